"""MQTT by paho-mqtt: a connection that heals itself.

paho's network thread is not used: `poll` waits on the socket, and a publish from any thread goes straight to
the socket under `lock`, without a hand-over. What cannot go out at once waits in the `outbox`; what the broker hangs up
on is found out and given up, see `blame`.

Whoever calls into the paho client holds `PahoTransport.lock`. The dialling thread is the one exception: while
it runs, nobody else touches the client.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import random
import select
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from distree.errors import BrokerError, ConfigError, LocalProtocolError
from distree.protocols import Listener, Received
from distree.transport import explain, login, packets
from distree.transport.blame import ALONE, Blame, Verdict, at_qos_1
from distree.transport.greeting import FILTERS_A_SUBSCRIBE, Filters, Greeting, Version
from distree.transport.lean_client import MAX_INCOMING_BYTES, LeanClient, check_paho
from distree.transport.outbox import Outbox, Outgoing
from distree.types import BrokerSettings, Lane, Session

_PROTOCOL_LIMIT_BYTES = 268_435_455
_SILENT_LIMIT_BYTES = 1 << 20
"""With MQTT 3.1.1 a broker cannot tell its limit, and what exceeds it ends each connection that sends it."""

_WINDOW = 64
"""Unacknowledged publishes under way; also bounded by the broker's Receive Maximum."""

_BURST, _BURST_BYTES = 32, 1 << 20
"""Packets read in one turn before the lock is given back, and bytes of messages."""

_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.2, 5.0
_STABLE_S = 5.0
"""What lasted this long resets the back-off: two clients of one id shall not fight at full speed."""

_HOUSEKEEPING_S = 0.25
_CLOSE_S = 1.0

RESUME_S = 30
"""How long a broker keeps a session of `Session.PROCESS`, in seconds: after that, what waits in it is stale."""

_NOTICES = 16
_SKIPS_SAID_S = 60.0

_OVERHEAD_BYTES = 64
"""What a packet has beside topic and payload, at most."""


class _State(enum.IntEnum):
    """In the order of a connection's life: from GREETING on there is a socket to serve."""

    CLOSED = enum.auto()
    WAITING = enum.auto()  # for the next attempt
    DIALLING = enum.auto()  # a thread resolves the name and connects
    GREETING = enum.auto()  # CONNECT is sent
    ANSWERED = enum.auto()  # and answered, but by nothing to go on with
    SUBSCRIBING = enum.auto()  # SUBSCRIBE is sent
    ONLINE = enum.auto()


class _Pending:
    """A received message at QoS 1, until its acknowledgement is sent; compared by identity."""

    __slots__ = ("done", "mid")

    def __init__(self, mid: int) -> None:
        self.mid = mid
        self.done = False


_transports: weakref.WeakSet[PahoTransport] = weakref.WeakSet()
"""Those that are open, for a child process that is forked from this one."""


class PahoTransport:
    """`Transport` over MQTT 5, or over MQTT 3.1.1 where the broker knows no other.

    `will` is a topic and a payload, retained at QoS 1. `receive_maximum` bounds received messages without an
    acknowledgement (with MQTT 5). Acknowledgements go out in the order of arrival, as MQTT demands (rumqttd
    cuts off whoever does otherwise), so one that is given early waits for those before it. `offline_items`
    and `offline_bytes` bound the lane WORK while it waits for the connection or for the broker's acknowledgements.
    `trial_payload` is what every reader of every topic ignores, see `blame`. `protocol` is "5" or "3.1.1"; `last_error`
    is one line on why there is no connection, or on what was refused; `notices` are lines on what the broker does not
    take, and this goes on without: whoever shows them takes them out. `judging` says whether the last connection ended
    while it was being found out what the broker hangs up on, which a notice will say.
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
        session: Session = Session.PROCESS,
        trial_payload: bytes = b"",
    ) -> None:
        self.lock = threading.RLock()
        self.online = False
        self.judging = False
        self.last_error: str | None = None
        self.notices: deque[str] = deque(maxlen=_NOTICES)
        self.outbox = Outbox(offline_items, offline_bytes)
        self._settings = settings
        self._address = f"{settings.host}:{settings.port}"
        self._client_id = client_id
        self._will = will
        self._receive_maximum = receive_maximum
        self._session = session
        self._began = session is not Session.PROCESS
        """Whether the broker has forgotten what an earlier process left, where that is wanted."""
        self._random = random.Random()  # noqa: S311 - jitter
        self._listener: Listener | None = None
        self._state = _State.CLOSED
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._poller = select.poll()
        self._probe = select.poll()
        self._registered: tuple[int, int] | None = None
        versions: tuple[Version, ...] = ("5", "3.1.1")
        if settings.mqtt_version != "auto":
            versions = ("5",) if settings.mqtt_version == 5 else ("3.1.1",)
        self._greeting = Greeting(versions, has_will=will is not None)
        self._filters = Filters((), FILTERS_A_SUBSCRIBE)
        self._blame = Blame(trial_payload)
        self._broker_retains = self._broker_takes_qos_1 = True
        """What the broker says of itself, as it greets or refuses to; what it hangs up on is for `blame` to find."""
        self._failures = 0
        self._hopeless = False
        self._is_absent = False
        """Whether nothing listens where the broker should be, or its name is not known."""
        self._retry_at = 0.0
        self._greeting_until = 0.0
        self._online_since = 0.0
        self._housekeeping_at = 0.0
        self._window = _WINDOW
        self._max_packet_bytes = _PROTOCOL_LIMIT_BYTES
        self._events: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._early: list[Received] = []
        self._announced = False
        self._paused = False
        self._turn_bytes = 0
        self._forked = False
        self._alone = False
        """Whether what is under way is so by itself, to see whether the broker hangs up on it."""
        self._under_way: dict[int, Outgoing] = {}
        self._unacknowledged: deque[_Pending] = deque()
        self._warned: set[str] = set()
        self._skips_said_at = 0.0
        self._tls: ssl.SSLContext | None = None
        self._client = self._new_client()

    @property
    def protocol(self) -> Version:
        """The version of MQTT that is spoken, or tried next."""
        return self._greeting.version

    @property
    def offline_dropped(self) -> int:
        """Messages given up, of all lanes."""
        return self.outbox.dropped.total()

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent, or to be acknowledged by the broker."""
        return not self.outbox and not self._under_way

    # Life: open, connect, close.

    def open(self, listener: Listener, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Remember listener and subscriptions (QoS 2 counts as 1); ConfigError for a bad password file, or TLS's."""
        login.read_password(self._settings)
        with self.lock:
            if self._settings.tls is not None:
                self._tls = login.tls_context(self._settings.tls)
                self._client.tls_set_context(self._tls)
            self._listener = listener
            self._filters = Filters([(name, min(qos, 1)) for name, qos in subscriptions], FILTERS_A_SUBSCRIBE)
            self._bell = socket.socketpair()
            for end in self._bell:
                end.setblocking(False)
            self._poller.register(self._bell[0], select.POLLIN)
            self._state = _State.WAITING
            self._retry_at = 0.0
            _transports.add(self)

    def connect_now(self, timeout_s: float, *, patient: bool = False) -> None:
        """Poll until online; BrokerError with the reason after `timeout_s`, or at once if it cannot heal."""
        until = time.monotonic() + timeout_s
        while not self.online:
            left = until - time.monotonic()
            if left <= 0 or self._hopeless or (self._is_absent and not patient):
                raise BrokerError(self.last_error or f"{self._address} did not answer within {timeout_s:g} s")
            self.poll(min(left, 0.1))

    def unsubscribe(self, names: Sequence[str]) -> None:
        """Ask for no more messages of these filters; called with the lock held."""
        names = [name for name in names if name in self._filters.names]
        self._filters.remove(names)
        if self.online and names:
            self._client.unsubscribe(names)
            self.wake()

    def pause(self, *, paused: bool) -> None:
        """Stop reading from the socket, or go on; the connection is kept alive meanwhile. With the lock held.

        Whatever else comes on this connection waits too: acknowledgements, and the news that it was lost.
        """
        self._paused = paused

    def close(self) -> None:
        """Send what waits, disconnect (the will is not sent) and free the descriptors, within about 1 s.

        A session of this process alone ends with it.
        """
        until = time.monotonic() + _CLOSE_S
        while self.online and not self.idle and time.monotonic() < until:
            self._serve_closing()
        with self.lock:
            was, self._state = self._state, _State.CLOSED
            self.online = False
            self._events.clear()
            if was >= _State.GREETING:
                self._say_goodbye()
            self._release()

    def _say_goodbye(self) -> None:
        properties = None
        if self._session is Session.PROCESS and self.protocol == "5":
            properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = 0
        self._client.disconnect(properties=properties)

    def _serve_closing(self) -> None:
        self._probe.poll(20)
        with self.lock:
            if self._state is _State.ONLINE:
                self._client.begin_turn()
                self._client.read_packet()
                self._client.loop_write()
                self._flush()

    def _release(self) -> None:
        _transports.discard(self)
        if self._registered is not None:
            self._poller.unregister(self._registered[0])
            self._registered = None
        if self._bell is not None:
            self.wake()  # a thread in `poll` leaves before the descriptors close
            bell, self._bell = self._bell, None
            self._poller.unregister(bell[0])
            for end in bell:
                end.close()

    def _let_go(self) -> None:
        """Leave the connection to the process from which this one was forked."""
        self.lock = threading.RLock()  # whoever held it is not in this process
        self._forked = True
        self._max_packet_bytes = -1  # nothing is taken any more
        self.online = False
        self._state = _State.CLOSED
        self.last_error = (
            f"this process was forked from the one that is connected to {self._address}: "
            "open a connection of its own after the fork"
        )
        self._client.let_go()
        for end in self._bell or ():
            end.close()
        self._bell = None

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
        lane: Lane = Lane.WORK,
    ) -> None:
        """Send now, or queue where offline, backed up or at the window's bound; see `Transport.publish`.

        At QoS 0 a message is dropped and counted where it could not be sent at once. QoS 2 counts as 1.
        """
        nbytes = len(topic) + len(payload)
        if nbytes + _OVERHEAD_BYTES > self._max_packet_bytes or self._blame.refusals:
            self._check(topic, nbytes)
        client = self._client
        free = self.online and not client.backed_up()
        if qos == 0 and not (self._alone or self._blame.suspects(topic)):
            if free:
                self._blame.sent_at_0(topic)
                properties = self._properties(content_type, expiry_s)
                client.send_packet(packets.publish(topic, payload, mid=None, retain=retain, properties=properties))
            else:
                self.outbox.dropped[Lane.LOSSY] += 1
        else:
            expires_at = None if expiry_s is None else time.monotonic() + expiry_s
            if qos:
                item = Outgoing(topic, payload, retain, content_type, expires_at, token, lane)
                if self._blame.refusals:
                    self._blame.mark_retry(item)
            else:
                item = at_qos_1(topic, payload, content_type)
            if free and not self.outbox.count and len(self._under_way) < self._window and self._may_go(item):
                self._send(item, expiry_s)
            else:
                self.outbox.put(item)
                self._mourn()
        if client.backed_up():
            self.wake()  # the polling thread waits for reading alone

    def _check(self, topic: str, nbytes: int) -> None:
        """Raise LocalProtocolError for what the broker would not take; `nbytes` is of topic and payload."""
        if self._forked:
            raise LocalProtocolError("forked", self.last_error or "")
        if nbytes + _OVERHEAD_BYTES > self._max_packet_bytes:
            raise LocalProtocolError("size", self._too_large(topic, nbytes - len(topic)))
        verdict = self._blame.refuses(topic, nbytes, time.monotonic())
        if verdict is not None:
            raise LocalProtocolError("refused", self._explain(verdict))

    def _explain(self, verdict: Verdict) -> str:
        match verdict.why:
            case "topic":
                return explain.hangs_up_on_publish(self._settings, verdict.topic, verdict.nbytes)
            case "size":
                return explain.hangs_up_on_size(self._settings, verdict.nbytes, verdict.passed)
            case "retained":
                return explain.hangs_up_on_retained(self._settings)
            case "qos":
                return explain.hangs_up_on_qos(self._settings)

    def _mourn(self) -> None:
        """Tell the listener of messages that were given up."""
        while self.outbox.casualties:
            token = self.outbox.casualties.popleft()
            if self._listener is not None:
                self._events.append((self._listener.given_up, (token,)))

    def _properties(self, content_type: str | None, expiry_s: float | None) -> bytes:
        return packets.properties(content_type, expiry_s) if self.protocol == "5" else b""

    def _too_large(self, topic: str, payload_bytes: int) -> str:
        return explain.too_large(self._settings, topic, payload_bytes, self._max_packet_bytes)

    def _may_go(self, item: Outgoing) -> bool:
        """Whether a message may be under way with those that are."""
        return not self._under_way or not (self._alone or item.losses >= ALONE)

    def _send(self, item: Outgoing, expiry_s: float | None) -> None:
        properties = self._properties(item.content_type, expiry_s)
        retain = item.retain and self._retains
        if not self._takes_qos_1:
            # Nobody will acknowledge it: it is settled by being sent.
            self._client.send_packet(
                packets.publish(item.topic, item.payload, mid=None, retain=retain, properties=properties)
            )
            if item.token is not None and self._listener is not None:
                self._events.append((self._listener.published, (item.token,)))
            return
        mid = self._client.fresh_mid(self._under_way)
        self._under_way[mid] = item
        item.mark = self._blame.mark
        self._alone = item.losses >= ALONE
        if self._alone:
            item.sent_at = time.monotonic()
        self._client.send_packet(
            packets.publish(
                item.topic, item.payload, mid=mid, retain=retain, dup=item.losses > 0, properties=properties
            )
        )

    def _flush(self) -> None:
        """Send what waits, as far as window and socket allow; drop what has expired or would not be taken."""
        now = time.monotonic()
        while self.online and len(self._under_way) < self._window and not self._alone:
            if self._client.backed_up():
                break
            if self._blame.trials and not self._under_way:
                item: Outgoing | None = self._blame.trials.popleft()
            else:
                item = self.outbox.pop(now)
            if item is None:
                break
            if not self._may_go(item):
                self.outbox.put_back([item])
                break
            try:
                if not item.strikes:  # else it goes out to be judged
                    self._check(item.topic, item.size)
            except LocalProtocolError as error:
                self.last_error = error.detail
                self.outbox.drop(item)
                continue
            self._send(item, None if item.expires_at is None else item.expires_at - now)
        self._mourn()

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
        if self._events or self._state is _State.CLOSED or (self._client.reads_ahead() and not self._paused):
            return 0.0
        if self._state is _State.WAITING:
            timeout_s = min(timeout_s, self._retry_at - time.monotonic())
        return max(0.0, min(timeout_s, 1.0))

    def _drain_wake(self) -> None:
        if self._bell is not None:
            with contextlib.suppress(BlockingIOError):
                self._bell[0].recv(4096)

    def _serve(self, readable: bool) -> None:
        if readable or (self._client.reads_ahead() and not self._paused):
            self._read()
        if self._client.want_write():
            self._client.loop_write()
        if self.outbox.count or self._blame.trials:
            self._flush()
        now = time.monotonic()
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + _HOUSEKEEPING_S
            if self._paused:
                self._client.ping_unheard()
            else:
                self._client.loop_misc()
            if _State.GREETING <= self._state < _State.ONLINE and now > self._greeting_until:
                self._hang_up(f"{self._address} takes connections but does not answer MQTT: is it a broker?")

    def _read(self) -> None:
        """Read until nothing is pending, or _BURST packets."""
        self._client.begin_turn()
        self._turn_bytes = 0
        for _ in range(_BURST):
            self._client.read_packet()
            if self._client.socket() is None or not self._client.reads_ahead() or self._turn_bytes > _BURST_BYTES:
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
            mask = (0 if self._paused else select.POLLIN) | (select.POLLOUT if self._client.want_write() else 0)
            wanted = (sock.fileno(), mask)
        if wanted != self._registered:
            if self._registered is not None:
                self._poller.unregister(self._registered[0])
            if wanted is not None:
                self._poller.register(*wanted)
            self._registered = wanted

    # Connecting.

    def _new_client(self) -> LeanClient:
        check_paho()
        five = self.protocol == "5"
        client = LeanClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if five else self._cleans,
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
        return client

    def _set_will(self) -> None:
        """Leave the will with the client as this broker takes it, for the next CONNECT."""
        self._client.will_clear()
        if self._will is not None and self._greeting.with_will:
            topic, payload = self._will
            self._client.will_set(topic, payload, qos=int(self._takes_qos_1), retain=self._retains)

    @property
    def _cleans(self) -> bool:
        """Whether the broker is to forget what it kept.

        With MQTT 3.1.1 nothing is kept but over restarts: there a session never expires, so one that is kept for a
        process would outlive it; and a client of rumqttd with a shared subscription and a session takes the broker with
        it when it dies, see `broker_config.embedded`.
        """
        if self.protocol != "5":
            return self._session is not Session.DURABLE
        return self._session is Session.NONE or not self._began

    def _dial_if_due(self) -> None:
        with self.lock:
            if self._state is _State.WAITING and time.monotonic() >= self._retry_at:
                self._state = _State.DIALLING
                self._hopeless = self._is_absent = False
                threading.Thread(target=self._connect, name="distree-dial", daemon=True).start()

    def _connect(self) -> None:
        """Resolve, connect and send CONNECT: seconds at worst, so in a thread of its own."""
        error = None
        try:
            self._set_will()
            self._client.username_pw_set(self._settings.username, login.read_password(self._settings))
            if self._tls is not None and self._settings.tls is not None:
                login.load_tls_files(self._tls, self._settings.tls)
            self._client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s, **self._mqtt_5())
        except (OSError, ValueError, ConfigError) as caught:
            error = explain.unreachable(self._settings, caught)
            self._hopeless = isinstance(caught, ssl.SSLError | ConfigError)
            self._is_absent = isinstance(caught, ConnectionRefusedError | socket.gaierror)
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

    def _mqtt_5(self) -> dict[str, Any]:
        if self.protocol != "5":
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = {
            Session.NONE: 0,
            Session.PROCESS: RESUME_S,
            Session.DURABLE: self._settings.session_expiry_s,
        }[self._session]
        properties.ReceiveMaximum = self._receive_maximum
        properties.MaximumPacketSize = MAX_INCOMING_BYTES
        return {"clean_start": self._cleans, "properties": properties}

    def _hang_up(self, why: str) -> None:
        """Close a connection that is of no use."""
        client = self._client
        self._ended(why)
        client.disconnect()
        sock = client.socket()
        if sock is not None:  # the DISCONNECT did not go out
            sock.close()

    def _ended(self, why: str | None, *, soon: bool = False) -> None:
        """Enter the wait for the next attempt. Idempotent: paho may report one end twice."""
        if self._state in (_State.CLOSED, _State.WAITING):
            return
        now = time.monotonic()
        was, self._state = self._state, _State.WAITING
        if was is _State.ONLINE and now - self._online_since >= _STABLE_S:
            self._failures = 0
        if was is _State.GREETING and why is not None:
            before = self._greeting.version, self._greeting.with_will
            soon = self._greeting.unanswered() or soon
            if before != (self._greeting.version, self._greeting.with_will):
                self._client = self._new_client()
        elif was is _State.SUBSCRIBING:
            self._judge_filter(self._filters.unanswered())
        self.online = False
        # What the broker hangs up on is soon found out: no need to hold off for long.
        judging = self.judging = self._alone
        self._take_back(now)
        self._unacknowledged.clear()
        self._early.clear()
        if why is not None:
            self.last_error = why
        delay = min(_BACKOFF_MAX_S, _BACKOFF_MIN_S * 2.0 ** (0 if judging else min(self._failures, 10)))
        self._failures += 0 if soon or judging else 1
        self._retry_at = now if soon else now + delay * self._random.uniform(0.5, 1.0)
        if self._announced and self._listener is not None:
            self._announced = False
            self._events.append((self._listener.disconnected, (self.last_error or "connection lost",)))
        self.wake()

    def _take_back(self, now: float) -> None:
        """Have what was under way sent again, or give up what the broker hangs up on."""
        again, given_up, verdict = self._blame.lost(list(self._under_way.values()), now)
        self._under_way.clear()
        self._alone = False
        self.outbox.put_back(again)
        for item in given_up:
            self.outbox.drop(item)
        self._mourn()
        self._note(verdict)

    def _note(self, verdict: Verdict | None) -> None:
        if verdict is not None:
            self.notices.append(self._explain(verdict))

    def _judge_filter(self, name: str | None) -> None:
        if name is not None:
            self.notices.append(explain.hangs_up_on_subscribe(self._settings, [name]))

    def _begin_anew(self) -> None:
        """End a connection in good order and connect again at once, as another client would."""
        self._ended(None, soon=True)
        self._client.disconnect()
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
        doubted_will = self._greeting.confirming
        if self._greeting.answered() == "confirm":
            self._state = _State.ANSWERED
            self._events.append((self._begin_anew, ()))
            return
        if self._will is not None and not self._greeting.with_will and not doubted_will:
            self._warn_once(explain.hangs_up_on_will(self._settings))
        self._began = True
        self._learn_limits(properties)
        self._state = _State.SUBSCRIBING
        self._filters.begin()
        self._subscribe_on(client)

    def _subscribe_on(self, client: mqtt.Client) -> None:
        """Subscribe to the next few filters, or be online."""
        asked = self._filters.ask()
        if asked:
            client.subscribe(asked)
        else:
            # Later, outside of paho's callback and its locks.
            self._events.append((self._be_online, ()))

    def _warn_once(self, line: str) -> None:
        if line not in self._warned:
            self._warned.add(line)
            self.notices.append(line)

    def _refused(self, reason: str) -> None:
        self._state = _State.ANSWERED
        if reason == "Unsupported protocol version" and self._greeting.other_version():
            self._events.append((self._begin_anew, ()))
        elif reason == "Retain not supported" and self._retains:
            self._broker_says(retains=False)
            self._events.append((self._begin_anew, ()))
        elif reason == "QoS not supported" and self._takes_qos_1:
            self._broker_says(takes_qos_1=False)
            self._events.append((self._begin_anew, ()))
        else:
            self._hopeless = reason in explain.REFUSED_LOGIN
            self.last_error = explain.refusal(self._settings, self._client_id, reason)

    def _learn_limits(self, properties: Properties | None) -> None:
        silent = _PROTOCOL_LIMIT_BYTES if self.protocol == "5" else _SILENT_LIMIT_BYTES
        self._max_packet_bytes = getattr(properties, "MaximumPacketSize", silent)
        self._window = min(_WINDOW, getattr(properties, "ReceiveMaximum", _WINDOW))
        self._broker_says(
            retains=bool(getattr(properties, "RetainAvailable", 1)),
            takes_qos_1=getattr(properties, "MaximumQoS", 2) > 0,
        )

    def _broker_says(self, *, retains: bool | None = None, takes_qos_1: bool | None = None) -> None:
        """Take in what the broker says that it takes; a broker that was mended is believed at the next connection."""
        if retains is not None:
            self._broker_retains = retains
            self._warn_while(explain.takes_no_retained(self._settings), on=not retains)
        if takes_qos_1 is not None:
            self._broker_takes_qos_1 = takes_qos_1
            self._warn_while(explain.takes_no_qos_1(self._settings), on=not takes_qos_1)

    def _warn_while(self, line: str, *, on: bool) -> None:
        """Warn once of what lasts. A client without a will only reads, or hands over inputs: it misses nothing."""
        if not on:
            self._warned.discard(line)
        elif self._will is not None:
            self._warn_once(line)

    @property
    def _retains(self) -> bool:
        return self._broker_retains and self._blame.retains

    @property
    def _takes_qos_1(self) -> bool:
        return self._broker_takes_qos_1 and self._blame.takes_qos_1

    def _on_subscribe(
        self, client: mqtt.Client, _userdata: object, _mid: int, reasons: list[Any], _properties: object
    ) -> None:
        refused = [
            f"{name} ({reason.getName()})"
            for (name, _), reason in zip(self._filters.asked, reasons, strict=False)
            if reason.is_failure
        ]
        if refused:
            self._hopeless = True
            why = f"{self._address} refuses the subscription to {', '.join(refused)}: check the broker's ACL"
            # Hanging up inside paho's callback would wait for paho's own lock.
            self._events.append((self._hang_up, (why,)))
        else:
            self._subscribe_on(client)

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
        elif self._state is _State.SUBSCRIBING and self._filters.asked:
            why = f"{self._address} closed the connection when asked for {self._filters.asked[0][0]}"
        self._ended(why)

    # What the lean client calls, with `lock` held.

    def took(self, packet: packets.Published) -> None:
        """Queue a received message for the listener."""
        token = None
        self._turn_bytes += len(packet.payload)
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
        self._alone = False
        self._note(self._blame.passed(item, time.monotonic()))
        if self._blame.doubted:
            self._give_up_doubted()
        if code >= 0x80:
            self.last_error = f"{self._address} refuses publishes on {item.topic} (code {code}): check its ACL"
        if item.token is not None and self._listener is not None:
            self._events.append((self._listener.published, (item.token,)))

    def _give_up_doubted(self) -> None:
        for doubted in self._blame.doubted:
            self.outbox.drop(doubted)
        self._blame.doubted.clear()
        self._mourn()

    def skipped(self, topic: str, nbytes: int, mid: int | None) -> None:
        """Acknowledge a message that is too large to be read, so that it does not come again."""
        if mid is not None:
            pending = _Pending(mid)
            self._unacknowledged.append(pending)
            self.acknowledge(pending)
        now = time.monotonic()
        if now >= self._skips_said_at:  # peers choose topics and sizes, so that no two lines need be the same
            self._skips_said_at = now + _SKIPS_SAID_S
            self.notices.append(
                f"ignored a message of {nbytes:,} bytes on {topic[:120]!a}, as no more than {MAX_INCOMING_BYTES:,} are "
                "read: find out who publishes it, and forbid it in the broker's ACL"
            )


def _leave_to_the_parent() -> None:
    for transport in list(_transports):
        transport._let_go()
    _transports.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)
