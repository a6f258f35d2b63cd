"""MQTT by paho-mqtt: a connection that heals itself. The only module that imports paho.

paho's network thread is not used: `poll` waits on the socket, and a publish from any thread goes straight to
the socket under `lock`, without a hand-over. The packets of the hot path bypass paho, see `packets`; they share its
socket and its queue of what the socket did not take.

Whoever calls into the paho client holds `PahoTransport.lock`. The dialling thread is the one exception: while
it runs, nobody else touches the client.
"""

from __future__ import annotations

import contextlib
import enum
import math
import random
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from distree.errors import BrokerError, ConfigError, LocalProtocolError
from distree.protocols import Listener, Received
from distree.transport import explain, login, packets
from distree.types import BrokerSettings

_PROTOCOL_LIMIT_BYTES = 268_435_455
_SILENT_LIMIT_BYTES = 1 << 20
"""With MQTT 3.1.1 a broker cannot tell its limit, and what exceeds it ends each connection that sends it."""

_WINDOW = 64
"""Unacknowledged publishes under way; also bounded by the broker's Receive Maximum."""

_READ_BYTES = 1 << 16

_BURST = 32
"""Packets read in one turn before the lock is given back."""

_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.2, 5.0
_STABLE_S = 5.0
"""What lasted this long resets the back-off: two clients of one id shall not fight at full speed."""

_HOUSEKEEPING_S = 0.25
_CLOSE_S = 1.0

_REPLACED = ("_sock_recv", "_packet_queue", "_out_packet", "_handle_publish", "_handle_pubackcomp", "_in_packet")


class _State(enum.IntEnum):
    """In the order of a connection's life: from GREETING on there is a socket to serve."""

    CLOSED = enum.auto()
    WAITING = enum.auto()  # for the next attempt
    DIALLING = enum.auto()  # a thread resolves the name and connects
    GREETING = enum.auto()  # CONNECT is sent
    SUBSCRIBING = enum.auto()  # SUBSCRIBE is sent
    ONLINE = enum.auto()


class _Sink(Protocol):
    """Whoever takes what the lean client parsed."""

    def took(self, message: packets.Published) -> None: ...

    def settled(self, mid: int, code: int) -> None: ...


class _LeanClient(mqtt.Client):
    """paho's client, reading ahead, with the packets of the hot path handled beside it.

    paho asks the socket for a packet in four small pieces; read ahead, one system call brings many packets. While
    `corked`, packets are gathered; then one system call sends them, and the broker wakes up once.
    """

    sink: _Sink
    corked = 0
    tls_error: ssl.SSLError | None = None
    """What TLS said as it ended the connection; paho tells of no more than the end."""
    _ahead = b""
    _at = 0
    _dry = False
    _plain = True

    def begin_connection(self, sock: Any) -> None:
        """Forget what was read ahead, or gathered, on an earlier connection."""
        self._ahead, self._at, self._dry = b"", 0, False
        self.tls_error = None
        self._gathered: list[bytes] = []
        # TLS holds back bytes of its own, so that a short read does not mean an empty socket.
        self._plain = not hasattr(sock, "pending")

    # Receiving.

    def begin_turn(self) -> None:
        """Allow the socket to be asked again."""
        self._dry = False

    def reads_ahead(self) -> bool:
        """Whether bytes are left that the socket will not announce again."""
        return self._at < len(self._ahead)

    def read_packet(self) -> None:
        """Handle the next packet, or what has arrived of it."""
        if self._at == len(self._ahead) and not self._dry and not self._in_packet["command"]:
            self._fill()
        if not self._take_hot_packet():
            self.loop_read()

    def _fill(self) -> None:
        """Read ahead; whatever goes wrong will go wrong for paho once more, which knows what to do."""
        sock = self.socket()
        if sock is None or not self._plain:
            return
        with contextlib.suppress(OSError):
            self._ahead, self._at = sock.recv(_READ_BYTES), 0
            # A short read emptied the socket: asking it again would be a system call to learn nothing. No bytes at
            # all are the connection's end, which paho shall see.
            self._dry = 0 < len(self._ahead) < _READ_BYTES

    def _take_hot_packet(self) -> bool:
        """Handle a complete PUBLISH or PUBACK that was read ahead; False leaves it to paho."""
        ahead, at = self._ahead, self._at
        if at == len(ahead) or self._in_packet["command"]:
            return False
        header = ahead[at]
        kind = header & 0xF0
        if kind not in (packets.PUBLISH, packets.PUBACK):
            return False
        found = packets.frame(ahead, at)
        if found is None:
            return False
        body = ahead[found[0] : found[1]]
        try:
            if kind == packets.PUBACK:
                mid, code = packets.parse_puback(body)
                self._at = found[1]
                self.sink.settled(mid, code)
            else:
                message = packets.parse_publish(header, body, five=self._protocol == MQTTProtocolVersion.MQTTv5)
                self._at = found[1]
                self.sink.took(message)
        except ValueError:
            return False  # paho ends a connection that brings malformed packets
        return True

    def _sock_recv(self, bufsize: int) -> bytes:
        at = self._at
        if at == len(self._ahead):
            if self._dry:
                raise BlockingIOError
            try:
                self._ahead, at = super()._sock_recv(_READ_BYTES), 0
            except ssl.SSLError as error:
                self.tls_error = error
                raise
            self._dry = self._plain and len(self._ahead) < _READ_BYTES
        piece = self._ahead[at : at + bufsize]
        self._at = at + len(piece)
        return piece

    def _handle_publish(self) -> MQTTErrorCode:
        five = self._protocol == MQTTProtocolVersion.MQTTv5
        try:
            self.sink.took(packets.parse_publish(self._in_packet["command"], self._in_packet["packet"], five=five))
        except ValueError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        try:
            if cmd == "PUBACK":
                self.sink.settled(*packets.parse_puback(self._in_packet["packet"]))
        except ValueError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    # Sending.

    def backed_up(self) -> bool:
        """Whether the socket took less than it was given."""
        return len(self._out_packet) > 0

    def send_packet(self, packet: bytes) -> None:
        """Send a packet now, or with others at `uncork`; what the socket does not take waits in paho's queue."""
        if self.corked:
            self._gathered.append(packet)
            return
        sent = 0
        sock = self.socket()
        if sock is not None and self._plain and not self._out_packet:
            with contextlib.suppress(OSError):  # paho will meet it again, and knows what to do
                sent = sock.send(packet)
        if sent < len(packet):
            self._packet_queue(packets.PUBACK, packet[sent:], 0, 1)

    def uncork(self) -> None:
        """Send what was gathered, once every `cork` has its `uncork`."""
        self.corked = max(0, self.corked - 1)
        if self._gathered and not self.corked:
            gathered, self._gathered = self._gathered, []
            self.send_packet(gathered[0] if len(gathered) == 1 else b"".join(gathered))

    def fresh_mid(self, used: Container[int]) -> int:
        """Return a packet id that is not in `used`."""
        while (mid := self._mid_generate()) in used:
            pass
        return mid


@dataclass(slots=True)
class _Outgoing:
    """A publish at QoS 1 that waits or is under way. `expires_at` is of the monotonic clock, in seconds."""

    topic: str
    payload: bytes
    retain: bool
    content_type: str | None
    expires_at: float | None
    token: str | None

    @property
    def size(self) -> int:
        return len(self.topic) + len(self.payload)


class _Pending:
    """A received message at QoS 1, until its acknowledgement is sent; compared by identity."""

    __slots__ = ("done", "mid")

    def __init__(self, mid: int) -> None:
        self.mid = mid
        self.done = False


class PahoTransport:
    """`Transport` over MQTT 5, or over MQTT 3.1.1 where the broker knows no other.

    `will` is a topic and a payload, retained at QoS 1. `receive_maximum` bounds received messages without an
    acknowledgement (with MQTT 5). Acknowledgements go out in the order of arrival, as MQTT demands (rumqttd
    cuts off whoever does otherwise), so one that is given early waits for those before it. `offline_items`
    and `offline_bytes` bound what waits for the connection or for the broker's acknowledgements. `clean` asks
    for a session without memory. `protocol` is "5" or "3.1.1"; `last_error` is one line on why there is no
    connection, or on what was refused.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        client_id: str,
        will: tuple[str, bytes] | None = None,
        receive_maximum: int = 8,
        offline_items: int = 4096,
        offline_bytes: int = 8 << 20,
        clean: bool = False,
    ) -> None:
        self.lock = threading.RLock()
        self.online = False
        self.offline_dropped = 0
        self.protocol: Literal["5", "3.1.1"] = "5"
        self.last_error: str | None = None
        self._settings = settings
        self._address = f"{settings.host}:{settings.port}"
        self._client_id = client_id
        self._will = will
        self._receive_maximum = receive_maximum
        self._offline_items = offline_items
        self._offline_bytes = offline_bytes
        self._clean = clean
        self._random = random.Random()  # noqa: S311 - jitter
        self._listener: Listener | None = None
        self._subscriptions: tuple[tuple[str, int], ...] = ()
        self._state = _State.CLOSED
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._poller = select.poll()
        self._probe = select.poll()
        self._registered: tuple[int, int] | None = None
        # The protocol is settled by the first CONNACK that accepts; until then it alternates.
        self._protocol_settled = False
        self._silent_ends = 0
        self._failures = 0
        self._hopeless = False
        self._retry_at = 0.0
        self._greeting_until = 0.0
        self._online_since = 0.0
        self._housekeeping_at = 0.0
        self._window = _WINDOW
        self._max_packet_bytes = _PROTOCOL_LIMIT_BYTES
        self._events: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._early: list[Received] = []
        self._announced = False
        self._unsent: deque[_Outgoing] = deque()
        self._unsent_bytes = 0
        self._under_way: dict[int, _Outgoing] = {}
        self._unacknowledged: deque[_Pending] = deque()
        self._tls: ssl.SSLContext | None = None
        self._client = self._new_client()

    # Life: open, connect, close.

    def open(self, listener: Listener, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Remember listener and subscriptions (QoS 2 counts as 1); ConfigError for a bad password file, or TLS's."""
        login.read_password(self._settings)
        with self.lock:
            if self._settings.tls is not None:
                self._tls = login.tls_context(self._settings.tls)
                self._client.tls_set_context(self._tls)
            self._listener = listener
            self._subscriptions = tuple((name, min(qos, 1)) for name, qos in subscriptions)
            self._bell = socket.socketpair()
            for end in self._bell:
                end.setblocking(False)
            self._poller.register(self._bell[0], select.POLLIN)
            self._state = _State.WAITING
            self._retry_at = 0.0

    def connect_now(self, timeout_s: float) -> None:
        """Poll until online; BrokerError with the reason after `timeout_s`, or at once if it cannot heal."""
        until = time.monotonic() + timeout_s
        while not self.online:
            left = until - time.monotonic()
            if left <= 0 or self._hopeless:
                raise BrokerError(self.last_error or f"{self._address} did not answer within {timeout_s:g} s")
            self.poll(min(left, 0.1))

    def close(self) -> None:
        """Send what waits, disconnect (the will is not sent) and free the descriptors, within about 1 s."""
        until = time.monotonic() + _CLOSE_S
        while self.online and (self._unsent or self._under_way) and time.monotonic() < until:
            self._serve_closing()
        with self.lock:
            was, self._state = self._state, _State.CLOSED
            self.online = False
            self._events.clear()
            if was >= _State.GREETING:
                self._client.disconnect()
            self._release()

    def _serve_closing(self) -> None:
        self._probe.poll(20)
        with self.lock:
            if self._state is _State.ONLINE:
                self._client.begin_turn()
                self._client.read_packet()
                self._client.loop_write()
                self._flush()

    def _release(self) -> None:
        if self._registered is not None:
            self._poller.unregister(self._registered[0])
            self._registered = None
        if self._bell is not None:
            self.wake()  # a thread in `poll` leaves before the descriptors close
            bell, self._bell = self._bell, None
            self._poller.unregister(bell[0])
            for end in bell:
                end.close()

    # Sending.

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        content_type: str | None = None,
        expiry_s: float | None = None,
        token: str | None = None,
    ) -> None:
        """Send now, or queue where offline, backed up or at the window's bound; see `Transport.publish`.

        At QoS 0 a message is dropped and counted in `offline_dropped` where it could not be sent at once.
        QoS 2 counts as 1.
        """
        if len(topic) + len(payload) + 64 > self._max_packet_bytes:
            raise LocalProtocolError("size", self._too_large(topic, len(payload)))
        client = self._client
        free = self.online and not client.backed_up()
        if qos == 0:
            if free:
                properties = self._properties(content_type, expiry_s)
                client.send_packet(packets.publish(topic, payload, mid=None, retain=retain, properties=properties))
            else:
                self.offline_dropped += 1
        else:
            expires_at = None if expiry_s is None else time.monotonic() + expiry_s
            item = _Outgoing(topic, payload, retain, content_type, expires_at, token)
            if free and not self._unsent and len(self._under_way) < self._window:
                self._send(item, expiry_s)
            else:
                self._enqueue(item)
        if client.backed_up():
            self.wake()  # the polling thread waits for reading alone

    def _properties(self, content_type: str | None, expiry_s: float | None) -> bytes:
        return packets.properties(content_type, expiry_s) if self.protocol == "5" else b""

    def _too_large(self, topic: str, payload_bytes: int) -> str:
        limit = self._max_packet_bytes
        return f"{payload_bytes} bytes on {topic} exceed the {limit} that {self._address} takes in a packet"

    def _send(self, item: _Outgoing, expiry_s: float | None) -> None:
        mid = self._client.fresh_mid(self._under_way)
        self._under_way[mid] = item
        self._transmit(mid, item, expiry_s)

    def _transmit(self, mid: int, item: _Outgoing, expiry_s: float | None, *, dup: bool = False) -> None:
        properties = self._properties(item.content_type, expiry_s)
        self._client.send_packet(
            packets.publish(item.topic, item.payload, mid=mid, retain=item.retain, dup=dup, properties=properties)
        )

    def _send_again(self) -> None:
        """Repeat what the broker had not acknowledged when the connection was lost, under its old packet ids."""
        now = time.monotonic()
        for mid, item in self._under_way.items():
            expiry_s = None if item.expires_at is None else max(0.0, item.expires_at - now)
            self._transmit(mid, item, expiry_s, dup=True)

    def _enqueue(self, item: _Outgoing) -> None:
        self._unsent.append(item)
        self._unsent_bytes += item.size
        while len(self._unsent) > self._offline_items or self._unsent_bytes > self._offline_bytes:
            self._unsent_bytes -= self._unsent.popleft().size
            self.offline_dropped += 1

    def _flush(self) -> None:
        """Send what waits, as far as window and socket allow; drop what has expired or is now too large."""
        while self._unsent and self.online and len(self._under_way) < self._window:
            if self._client.backed_up():
                break
            item = self._unsent.popleft()
            self._unsent_bytes -= item.size
            left_s = None if item.expires_at is None else item.expires_at - time.monotonic()
            if left_s is not None and left_s <= 0:
                self.offline_dropped += 1
            elif item.size + 64 > self._max_packet_bytes:
                self.last_error = self._too_large(item.topic, len(item.payload))
                self.offline_dropped += 1
            else:
                self._send(item, left_s)

    def acknowledge(self, token: object) -> None:
        """Acknowledge a received message; harmless for QoS 0, twice, and after a reconnect."""
        if not isinstance(token, _Pending):
            return
        token.done = True
        # A token of an earlier connection is no longer in the deque, so that it acknowledges nothing.
        while self._unacknowledged and self._unacknowledged[0].done:
            self._client.send_packet(packets.puback(self._unacknowledged.popleft().mid))
        if self._client.backed_up():
            self.wake()

    def cork(self) -> None:
        """Gather what is sent from here on; calls may nest."""
        self._client.corked += 1

    def uncork(self) -> None:
        """Send what was gathered, in one write."""
        self._client.uncork()
        if self._client.backed_up():
            self.wake()

    def wake(self) -> None:
        """Make a waiting `poll` return early; callable from any thread, without the lock."""
        bell = self._bell
        if bell is not None:
            with contextlib.suppress(OSError):  # full: it rings already; closed: nobody waits
                bell[1].send(b"!")

    # The loop.

    def poll(self, timeout_s: float) -> None:
        """Wait at most `timeout_s`, serve the connection, call the listener; its exceptions come out here."""
        if self._state is _State.WAITING:
            self._dial_if_due()
        ready = self._poller.poll(math.ceil(self._patience_s(timeout_s) * 1000))
        with self.lock:
            readable = False
            for fd, _ in ready:
                if self._registered is not None and fd == self._registered[0]:
                    readable = True
                else:
                    self._drain_wake()
            if self._state >= _State.GREETING:
                self._serve(readable)
            self._dispatch()
            self._watch()

    def _patience_s(self, timeout_s: float) -> float:
        """Return how long to wait for the network: never past what housekeeping or the next attempt needs."""
        if self._events or self._state is _State.CLOSED or self._client.reads_ahead():
            return 0.0
        if self._state is _State.WAITING:
            timeout_s = min(timeout_s, self._retry_at - time.monotonic())
        return max(0.0, min(timeout_s, 1.0))

    def _drain_wake(self) -> None:
        if self._bell is not None:
            with contextlib.suppress(BlockingIOError):
                self._bell[0].recv(4096)

    def _serve(self, readable: bool) -> None:
        if readable or self._client.reads_ahead():
            self._read()
        if self._client.want_write():
            self._client.loop_write()
        if self._unsent:
            self._flush()
        now = time.monotonic()
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + _HOUSEKEEPING_S
            self._client.loop_misc()
            if self._state in (_State.GREETING, _State.SUBSCRIBING) and now > self._greeting_until:
                self._hang_up(f"{self._address} takes connections but does not answer MQTT: is it a broker?")

    def _read(self) -> None:
        """Read until nothing is pending, or _BURST packets."""
        self._client.begin_turn()
        for _ in range(_BURST):
            self._client.read_packet()
            if self._client.socket() is None or not self._client.reads_ahead():
                break

    def _dispatch(self) -> None:
        """Call the listener, outside of paho's locks. An event leaves the queue first: a call may raise."""
        events = self._events
        while events:
            call, arguments = events.popleft()
            call(*arguments)

    def _watch(self) -> None:
        """Have the poller wait for what the socket needs now."""
        sock = self._client.socket() if self._state >= _State.GREETING else None
        wanted = None
        if sock is not None:
            mask = select.POLLIN | (select.POLLOUT if self._client.want_write() else 0)
            wanted = (sock.fileno(), mask)
        if wanted != self._registered:
            if self._registered is not None:
                self._poller.unregister(self._registered[0])
            if wanted is not None:
                self._poller.register(*wanted)
            self._registered = wanted

    # Connecting.

    def _new_client(self) -> _LeanClient:
        _check_paho()
        five = self.protocol == "5"
        client = _LeanClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if five else self._clean,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.sink = self
        client.begin_connection(None)
        client.connect_timeout = self._settings.connect_timeout_s
        # Window and queue are held here: paho would search its own anew at each acknowledgement.
        client.max_inflight_messages_set(0)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_socket_open = self._on_socket_open
        if self._tls is not None:
            client.tls_set_context(self._tls)
        if self._will is not None:
            client.will_set(self._will[0], self._will[1], qos=1, retain=True)
        return client

    def _dial_if_due(self) -> None:
        with self.lock:
            if self._state is _State.WAITING and time.monotonic() >= self._retry_at:
                self._state = _State.DIALLING
                self._hopeless = False
                threading.Thread(target=self._connect, name="distree-dial", daemon=True).start()

    def _connect(self) -> None:
        """Resolve, connect and send CONNECT: seconds at worst, so in a thread of its own."""
        error = None
        try:
            self._client.username_pw_set(self._settings.username, login.read_password(self._settings))
            if self._tls is not None and self._settings.tls is not None:
                login.load_tls_files(self._tls, self._settings.tls)
            self._client.connect(
                self._settings.host, self._settings.port, self._settings.keepalive_s, **self._greeting()
            )
        except (OSError, ValueError, ConfigError) as caught:
            error = explain.unreachable(self._settings, caught)
            self._hopeless = isinstance(caught, ssl.SSLError)
        with self.lock:
            if self._state is _State.CLOSED:
                self._client.disconnect()
            elif error is not None:
                self._ended(error)
            elif self._client.socket() is None:
                self._ended(explain.no_mqtt(self._settings, self._client.tls_error))
            elif self._state is _State.DIALLING:
                self._state = _State.GREETING
                self._greeting_until = time.monotonic() + self._settings.connect_timeout_s
                self._housekeeping_at = 0.0
            self.wake()

    def _greeting(self) -> dict[str, Any]:
        if self.protocol != "5":
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0 if self._clean else self._settings.session_expiry_s
        properties.ReceiveMaximum = self._receive_maximum
        return {"clean_start": self._clean, "properties": properties}

    def _hang_up(self, why: str) -> None:
        """Close a connection that is of no use."""
        client = self._client
        self._ended(why)
        client.disconnect()
        sock = client.socket()
        if sock is not None:  # the DISCONNECT did not go out
            sock.close()

    def _ended(self, why: str | None) -> None:
        """Enter the wait for the next attempt. Idempotent: paho may report one end twice."""
        if self._state in (_State.CLOSED, _State.WAITING):
            return
        now = time.monotonic()
        if self._state is _State.ONLINE and now - self._online_since >= _STABLE_S:
            self._failures = 0
        soon = self._state is _State.GREETING and self._try_other_protocol()
        self._state = _State.WAITING
        self.online = False
        self._unacknowledged.clear()
        self._early.clear()
        if why is not None:
            self.last_error = why
        delay = min(_BACKOFF_MAX_S, _BACKOFF_MIN_S * 2.0 ** min(self._failures, 10))
        self._failures += 0 if soon else 1
        self._retry_at = now if soon else now + delay * self._random.uniform(0.5, 1.0)
        if self._announced and self._listener is not None:
            self._announced = False
            self._events.append((self._listener.disconnected, (self.last_error or "connection lost",)))
        self.wake()

    def _try_other_protocol(self) -> bool:
        """After two ends without a CONNACK, change the protocol. True: the next attempt comes at once."""
        if self._protocol_settled:
            return False
        self._silent_ends += 1
        if self._silent_ends % 2 == 0:
            self._use("3.1.1" if self.protocol == "5" else "5")
        return self._silent_ends < 4  # both protocols twice; then the usual back-off

    def _use(self, protocol: Literal["5", "3.1.1"]) -> None:
        self.protocol = protocol
        self._client = self._new_client()

    # What paho calls, with `lock` held.

    def _on_socket_open(self, _client: mqtt.Client, _userdata: object, sock: Any) -> None:
        self._probe = select.poll()
        self._probe.register(sock, select.POLLIN)
        self._client.begin_connection(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A cable that was pulled shows while data is under way, not only after two keep-alives.
        if self._settings.keepalive_s:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self._settings.keepalive_s * 1000)

    def _on_connect(
        self,
        client: mqtt.Client,
        _userdata: object,
        _flags: object,
        reason: Any,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._refused(reason.getName())
            return
        self._protocol_settled = True
        self._learn_limits(properties)
        self._state = _State.SUBSCRIBING
        if self._subscriptions:
            client.subscribe(list(self._subscriptions))
        else:
            # Later, outside of paho's callback and its locks.
            self._events.append((self._be_online, ()))

    def _refused(self, reason: str) -> None:
        if reason == "Unsupported protocol version" and not self._protocol_settled:
            self._silent_ends |= 1  # as good as the second end without an answer
            return
        self._hopeless = reason in explain.REFUSED_LOGIN
        self.last_error = explain.refusal(self._settings, self._client_id, reason)
        self._state = _State.SUBSCRIBING  # answered: not a matter of the protocol

    def _learn_limits(self, properties: Properties | None) -> None:
        silent = _PROTOCOL_LIMIT_BYTES if self.protocol == "5" else _SILENT_LIMIT_BYTES
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", silent)
        window = min(_WINDOW, getattr(properties, "ReceiveMaximum", _WINDOW))
        fits = all(item.size + 64 <= self._max_packet_bytes for item in self._under_way.values())
        self._window = window
        if len(self._under_way) > window or not fits:
            # Sent again all at once they would break the broker's bound, and it would hang up, for ever.
            self._unsent.extendleft(reversed(self._under_way.values()))
            self._unsent_bytes += sum(item.size for item in self._under_way.values())
            self._under_way.clear()

    def _on_subscribe(
        self, _client: mqtt.Client, _userdata: object, _mid: int, reasons: list[Any], _properties: object
    ) -> None:
        refused = [
            f"{name} ({reason.getName()})"
            for (name, _), reason in zip(self._subscriptions, reasons, strict=False)
            if reason.is_failure
        ]
        if refused:
            self._hopeless = True
            why = f"{self._address} refuses the subscription to {', '.join(refused)}: check the broker's ACL"
            # Hanging up inside paho's callback would wait for paho's own lock.
            self._events.append((self._hang_up, (why,)))
        else:
            self._events.append((self._be_online, ()))

    def _be_online(self) -> None:
        if self._state is not _State.SUBSCRIBING or self._listener is None:
            return
        self._state = _State.ONLINE
        self.online = True
        self.last_error = None
        self._online_since = time.monotonic()
        self._announced = True
        listener = self._listener
        self._events.extendleft((listener.received, (message,)) for message in reversed(self._early))
        self._early.clear()
        self._send_again()
        self._flush()
        listener.connected()

    def _on_disconnect(
        self, _client: mqtt.Client, _userdata: object, flags: Any, reason: Any, _properties: object
    ) -> None:
        if self._state < _State.GREETING:
            return
        why = None
        if flags.is_disconnect_packet_from_server:
            why = explain.refusal(self._settings, self._client_id, reason.getName())
        elif self._state is _State.ONLINE:
            why = f"{self._address} closed the connection, or the network did"
            if time.monotonic() - self._online_since < _STABLE_S:  # mosquitto 2.0 tells no reason
                why += f"; if it does so again and again, another client uses the id {self._client_id!r}"
        elif self._state is _State.GREETING:
            why = explain.no_mqtt(self._settings, self._client.tls_error)
        self._ended(why)

    # What the lean client calls, with `lock` held.

    def took(self, packet: packets.Published) -> None:
        """Queue a received message for the listener."""
        token = None
        if packet.mid is not None:
            token = _Pending(packet.mid)
            self._unacknowledged.append(token)
        message = Received(topic=packet.topic, payload=packet.payload, retain=packet.retain, token=token)
        if self._state is _State.ONLINE and self._listener is not None:
            self._events.append((self._listener.received, (message,)))
        else:
            self._early.append(message)

    def settled(self, mid: int, code: int) -> None:
        """Take the broker's verdict on a publish; codes from 0x80 on are refusals, and final."""
        item = self._under_way.pop(mid, None)
        if item is None:
            return
        if code >= 0x80:
            self.last_error = f"{self._address} refuses publishes on {item.topic} (code {code}): check its ACL"
        if item.token is not None and self._listener is not None:
            self._events.append((self._listener.published, (item.token,)))


def _check_paho() -> None:
    """Raise BrokerError where paho is so new, or so old, that the replaced handlers do not fit."""
    known = set(dir(mqtt.Client)) | set(mqtt.Client.__init__.__code__.co_names)
    missing = [name for name in _REPLACED if name not in known]
    if missing:
        from importlib.metadata import version

        found = version("paho-mqtt")
        raise BrokerError(f"paho-mqtt {found} is not known to work here: pip install 'paho-mqtt>=2.1,<2.3'")
