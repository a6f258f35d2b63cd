"""paho's client, reading ahead, with the packets of the hot path handled beside it.

PUBLISH and PUBACK bypass paho, see `packets`; they share its socket and its queue of what the socket did not take.
Whoever calls in here holds `MqttTransport.lock`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Container, Sequence
from typing import Any, Literal, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt import properties
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from distree.errors import BrokerError
from distree.transport import packets
from distree.transport.connect_errors import GaveUp

MAX_INCOMING_BYTES = (1 << 20) + (64 << 10)
"""Largest packet that is read, in bytes: a message of 1 MiB with its topic. MQTT 5 brokers are told, and send no larger
one; a larger one that arrives all the same is skipped as it comes in."""

_READ_BYTES = 1 << 16
"""Most bytes that are read ahead, into a buffer that is kept: a new one for each read, cut down to what
arrived, fragmented the memory of a busy board (3 MiB in 100,000 inputs)."""

_TURN_PACKETS, _TURN_BYTES = 32, 1 << 20
"""Packets read in one turn, and bytes of messages."""

MAX_UNSENT_PACKETS = 20_000
"""Answers that may wait for a broker that sends and does not read; beyond that the connection is closed. Own messages
wait elsewhere, see `outbox`."""

_RECORD_BYTES = 1 << 14
"""Most bytes of a record of TLS. With room for one, nothing of it stays behind, where no poll would announce it."""

_REPLACED = (
    "_sock_recv", "_packet_queue", "_out_packet", "_handle_publish", "_handle_pubackcomp", "_in_packet",
    "_send_pingreq", "_last_msg_out", "_ping_t", "_keepalive", "_loop_rc_handle",
)  # fmt: skip

_MALFORMED: tuple[type[Exception], ...] = (
    LookupError,
    ValueError,
    struct.error,
    properties.MQTTException,  # type: ignore[attr-defined]  # of paho 2.1; in 2.2 there is only one
)
"""What paho raises while it parses a malformed packet; paho 2.2 catches all of these itself, 2.1 hardly any."""


class Sink(Protocol):
    """What the client passes the broker's answers to."""

    def on_connack(self, limits: object) -> None:
        """A CONNACK came, with these properties; None where it has none."""

    def on_refusal(self, reason: str) -> None:
        """A CONNACK came that says no."""

    def on_suback(self, refusals: Sequence[str | None]) -> None:
        """A SUBACK came: for each filter None, or why it was refused."""

    def on_publish(self, packet: packets.Published) -> None:
        """A PUBLISH came."""

    def on_puback(self, mid: int, code: int) -> None:
        """A PUBACK came, with a reason code."""

    def on_oversized(self, topic: str, nbytes: int, mid: int | None) -> None:
        """A PUBLISH is coming that is too large to be read; `mid` is None at QoS 0."""

    def on_lost(self, said: str | None) -> None:
        """The connection ended; `said` is the reason in a DISCONNECT, if one came."""


class LeanClient(mqtt.Client):
    """paho's client for one `MqttTransport`, which is its `sink`.

    paho asks the socket for a packet in four small pieces; read ahead, one system call brings many packets. While
    `corked`, packets are gathered; then one system call sends them, and the broker wakes up once.
    """

    corked = 0
    acknowledges_at_once = False
    """Whether TCP is to acknowledge what is read without waiting for more to send: see `nagle`."""
    ended_by: ssl.SSLError | GaveUp | None = None
    """What TLS reported as it ended the connection, or why this side did; paho reports the end only."""
    _buffer = memoryview(b"")
    _ahead = b""
    _at = 0
    _dry = False
    _plain = True
    _turn_bytes = 0
    _skipping = 0
    """Bytes still to come of a packet that is too large to be read."""

    def __init__(self, sink: Sink, client_id: str, *, is_mqtt5: bool, clean_session: bool | None) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=clean_session,
            protocol=MQTTProtocolVersion.MQTTv5 if is_mqtt5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self.sink = sink
        # Window and queue are kept by `send_window`: paho would search its own at each acknowledgement.
        self.max_inflight_messages_set(0)
        self.on_connect = self._tell_connect
        self.on_subscribe = self._tell_subscribe
        self.on_disconnect = self._tell_disconnect
        self.begin_connection(None)

    def begin_connection(self, sock: Any) -> None:
        """Forget what was read ahead, or gathered, on an earlier connection."""
        self._ahead, self._at, self._dry, self._skipping = b"", 0, False, 0
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self.ended_by = None
        self._gathered: list[bytes] = []
        # TLS holds back bytes of its own, so that a short read does not mean an empty socket.
        self._plain = not hasattr(sock, "pending")

    def _tell_connect(self, _client: Any, _userdata: object, _flags: object, reason: Any, properties: object) -> None:
        if reason.is_failure:
            self.sink.on_refusal(reason.getName())
        else:
            self._keepalive = getattr(properties, "ServerKeepAlive", self._keepalive)  # paho 2.1 does not heed it
            self.sink.on_connack(properties)

    def _tell_subscribe(
        self, _client: Any, _userdata: object, _mid: int, reasons: Sequence[Any], _properties: object
    ) -> None:
        self.sink.on_suback([reason.getName() if reason.is_failure else None for reason in reasons])

    def _tell_disconnect(self, _client: Any, _userdata: object, flags: Any, reason: Any, _properties: object) -> None:
        said, from_broker = reason.getName(), flags.is_disconnect_packet_from_server
        if not from_broker and said == "Keep alive timeout":
            self.ended_by = "silent"
        self.sink.on_lost(said if from_broker else None)

    def _loop_rc_handle(self, rc: MQTTErrorCode) -> MQTTErrorCode:
        if rc == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            self.ended_by = "malformed"
        return super()._loop_rc_handle(rc)

    # Receiving.

    def reads_ahead(self) -> bool:
        """Whether bytes are left that the socket will not announce again."""
        return self._at < len(self._ahead)

    def read(self) -> None:
        """Read until nothing is pending, or a turn's worth: then others get the lock."""
        self._dry = False
        self._turn_bytes = 0
        for _ in range(_TURN_PACKETS):
            if not self._read_packet() or self._turn_bytes > _TURN_BYTES:
                break

    def _read_packet(self) -> bool:
        """Handle the next packet, or what has arrived of it; return whether there is more that was read ahead."""
        if self._skipping:
            self._skip()
        else:
            if self._at == len(self._ahead) and not self._dry and not self._in_packet["command"]:
                self._fill()
            if self._take_hot_packet():
                return self._at < len(self._ahead)
            try:
                self.loop_read()
            except _MALFORMED:
                self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_PROTOCOL)
                return False
            if self._in_packet["remaining_length"] > MAX_INCOMING_BYTES:
                self._begin_to_skip()
        return self.reads_ahead() and self.socket() is not None

    def _begin_to_skip(self) -> None:
        """Stop gathering a packet that is too large, once its topic is known; the rest is thrown away."""
        head, header = self._in_packet["packet"], self._in_packet["command"]
        if not self._in_packet["have_remaining"] or len(head) < 4 or len(head) < 4 + (head[0] << 8 | head[1]):
            return
        self._skipping = self._in_packet["to_process"]
        nbytes = self._in_packet["remaining_length"]
        self._in_packet = {
            "command": 0,
            "have_remaining": 0,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": 0,
            "packet": bytearray(),
            "to_process": 0,
            "pos": 0,
        }
        if header & 0xF0 == packets.PUBLISH:
            end = 2 + (head[0] << 8 | head[1])
            mid = head[end] << 8 | head[end + 1] if header & 0x06 else None
            self.sink.on_oversized(head[2:end].decode(errors="replace"), nbytes, mid)

    def _skip(self) -> None:
        try:
            piece = self._sock_recv(min(self._skipping, _READ_BYTES))
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        self._skipping = self._skipping - len(piece) if piece else 0  # paho will see the end of the connection itself

    def _fill(self) -> None:
        """Read ahead; whatever goes wrong here will go wrong for paho again, which knows what to do."""
        sock: Any = self.socket()
        if sock is None:
            return
        length = 0
        try:
            if self._plain:
                length = sock.recv_into(self._buffer)
                # A short read emptied the socket: asking it again would be a wasted system call. No bytes at all are
                # the end of the connection, which is left to paho.
                self._dry = 0 < length < _READ_BYTES
            else:  # record by record
                while length <= _READ_BYTES - _RECORD_BYTES and (come := sock.recv_into(self._buffer[length:])):
                    length += come
        except ssl.SSLWantReadError:
            self._dry = True
        except ssl.SSLError as error:
            self.ended_by = error  # it may not be told again
        except OSError:
            pass
        self._ahead, self._at = bytes(self._buffer[:length]), 0
        if length and self.acknowledges_at_once:  # the kernel forgets it after a while
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

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
                self.sink.on_puback(mid, code)
            else:
                message = packets.parse_publish(header, body, is_mqtt5=self._protocol == MQTTProtocolVersion.MQTTv5)
                self._at = found[1]
                self._turn_bytes += len(message.payload)
                self.sink.on_publish(message)
        except ValueError:
            return False  # paho meets the same packet, and ends the connection
        return True

    def _sock_recv(self, bufsize: int) -> bytes:
        at = self._at
        if at == len(self._ahead):
            if self._dry:
                raise BlockingIOError
            try:
                self._ahead, at = super()._sock_recv(_RECORD_BYTES), 0
            except ssl.SSLError as error:
                self.ended_by = error
                raise
            self._dry = self._plain and len(self._ahead) < _RECORD_BYTES
        piece = self._ahead[at : at + bufsize]
        self._at = at + len(piece)
        return piece

    def _handle_publish(self) -> MQTTErrorCode:
        is_mqtt5 = self._protocol == MQTTProtocolVersion.MQTTv5
        try:
            message = packets.parse_publish(self._in_packet["command"], self._in_packet["packet"], is_mqtt5=is_mqtt5)
        except ValueError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self._turn_bytes += len(message.payload)
        self.sink.on_publish(message)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        try:
            if cmd == "PUBACK":
                self.sink.on_puback(*packets.parse_puback(self._in_packet["packet"]))
        except ValueError:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def keep_alive(self, *, reads: bool) -> None:
        """Ping when it is time, and see that the broker reads; while nothing is read here, no answer is expected."""
        if len(self._out_packet) > MAX_UNSENT_PACKETS:
            self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_KEEPALIVE)
            return
        if reads:
            self.loop_misc()
        elif 0 < self._keepalive <= time.monotonic() - self._last_msg_out:
            self._send_pingreq()
            self._ping_t = 0

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
        if sock is not None and not self._out_packet:
            # paho will run into it again, and knows what to do. To TLS it then gives the same bytes, as it must.
            with contextlib.suppress(OSError):
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

    def hang_up(self) -> None:
        """Disconnect, without a DISCONNECT if need be."""
        self.disconnect()
        self.let_go()

    def let_go(self) -> None:
        """Close this process's copy of the socket, sending nothing: it may belong to the parent process."""
        sock = self.socket()
        if sock is not None:
            sock.close()


def check_paho() -> None:
    """Raise BrokerError where paho is too new, or too old, for what is replaced here."""
    known = set(dir(mqtt.Client)) | set(mqtt.Client.__init__.__code__.co_names)
    missing = [name for name in _REPLACED if name not in known]
    if missing:
        from importlib.metadata import version

        found = version("paho-mqtt")
        raise BrokerError(f"paho-mqtt {found} is not supported", "run: pip install 'paho-mqtt>=2.1,<2.3'")
