"""An MQTT client that asks one thing at a time and reports every answer: for checks, not for work.

`MqttTransport` recovers from whatever goes wrong; a check needs to know about it: which limits the broker states in its
CONNACK, and with which code it answers a subscription or a publish. The caller brings a connected socket, over TLS or
not.

`withhold` is a publish that reaches nobody: at QoS 2 a broker answers PUBREC, with MQTT 5 also whether the client may
publish there, and delivers the message when the client releases it, which it need not do. Brokers may deliver it at
once (MQTT 5.0, 4.3.3), so what is withheld must be harmless all the same. Source: MQTT 3.1.1 and 5.0 (OASIS).
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from distree.errors import BrokerError
from distree.transport.connect_errors import REASONS
from distree.transport.credentials import reason
from distree.transport.packets import PUBACK, PUBLISH, Published, frame, parse_publish, puback, publish, varint

_CONNACK, _PUBREC, _PUBREL, _PUBCOMP, _SUBACK, _DISCONNECT = 0x20, 0x50, 0x60, 0x70, 0x90, 0xE0
_PINGREQ, _PINGRESP = 0xC0, 0xD0
_MAX_BYTES = 16 << 20

MAX_HEARD_BYTES = 32 << 20
"""Most that one connection keeps of what it hears, in bytes: a check takes seconds."""

_HEARD_BYTES = 512
"""What a message takes besides topic and payload, about."""
_PUBACK_S = 5.0

_CHECK_BROKER = "check that it is an MQTT broker"
_CHECK_LOG = "check the network and the broker's log"

REFUSED = 0x80
"""Reason codes from this one on are refusals."""

_OLD_REFUSALS = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}
"""Return codes of a CONNACK of MQTT 3.1.1, as those of MQTT 5."""

_SIZES = {0x11: 4, 0x13: 2, 0x21: 2, 0x22: 2, 0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1}
_TEXTS = frozenset({0x12, 0x15, 0x16, 0x1A, 0x1C, 0x1F})
_PAIR = 0x26


class HangUpError(BrokerError):
    """The broker, or something on the way to it, ended the connection: the last request may be why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """A message that the broker publishes if the connection ends without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Connack:
    """What a broker says in its CONNACK: `code` 0 for success, and its limits, where it states them."""

    code: int
    max_packet_bytes: int | None = None
    max_qos: int = 2
    receive_maximum: int = 65_535
    retains: bool = True
    why: str = ""


@dataclass(slots=True)
class ProbeClient:
    """One connection. `heard` collects every message that arrives, whatever is being waited for.

    Every method takes `until`, of the monotonic clock, and raises TimeoutError after it; HangUpError where the
    connection ends, BrokerError where the broker breaks the protocol, and OSError where the network fails. While
    connecting, an error of TLS is raised as it is: it may say what the broker wants.
    """

    sock: socket.socket
    is_mqtt5: bool = True
    heard: list[Published] = field(default_factory=list)
    _ahead: bytes = b""
    _heard_bytes: int = 0
    _mid: int = 0
    _connected: bool = False
    _withheld: dict[str, int] = field(default_factory=dict)

    def connect(
        self, client_id: str, username: str | None, password: str | None, until: float, will: Will | None = None
    ) -> Connack:
        """Log in to a session that the broker does not keep."""
        flags = 0x02 | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
        last = b""
        if will is not None:
            flags |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
            last = self._no_properties() + _text(will.topic) + struct.pack(">H", len(will.payload)) + will.payload
        head = _text("MQTT") + bytes((5 if self.is_mqtt5 else 4, flags)) + struct.pack(">H", 60)
        texts = [text for text in (username, password) if text is not None]
        body = head + self._no_properties() + _text(client_id) + last + b"".join(map(_text, texts))
        self._send(0x10, body, until)
        answer = self._await(_CONNACK, lambda body: len(body) >= 2, until)
        self._connected = True
        if not self.is_mqtt5:
            return Connack(code=_OLD_REFUSALS.get(answer[1], 0x80) if answer[1] else 0)
        # A broker that speaks MQTT 3.1.1 only answers without properties, and with its own codes.
        if len(answer) == 2 and answer[1] == 1:
            return Connack(code=0x84)
        numbers, texts_found = _properties(answer[2:])
        return Connack(
            code=answer[1],
            max_packet_bytes=numbers.get(0x27),
            max_qos=numbers.get(0x24, 2),
            receive_maximum=numbers.get(0x21, 65_535),
            retains=bool(numbers.get(0x25, 1)),
            why=texts_found.get(0x1F, ""),
        )

    def subscribe(self, topic_filter: str, until: float) -> int:
        """Subscribe at QoS 1; return the reason code, from 0x80 on a refusal."""
        return self.subscribe_all([topic_filter], until)[0]

    def subscribe_all(self, filters: Sequence[str], until: float) -> list[int]:
        """Subscribe to several filters in one packet, at QoS 1; return their reason codes."""
        mid = self._next_mid()
        self._send(0x82, mid + self._no_properties() + b"".join(_text(name) + b"\x01" for name in filters), until)
        answer = self._await(_SUBACK, lambda answer: answer[:2] == mid, until)
        # With MQTT 5 properties stand before the codes.
        codes = list(answer[len(answer) - len(filters) :])
        if len(answer) < 2 + len(filters):
            raise BrokerError("the broker answered a subscription with too few codes", _CHECK_BROKER)
        return codes

    def publish(self, topic: str, payload: bytes, *, qos: int, until: float, retain: bool = False) -> int:
        """Publish at QoS 0 or 1; return the reason code of the acknowledgement, 0 where there is none."""
        mid = self._next_mid() if qos else None
        number = None if mid is None else int.from_bytes(mid, "big")
        packet = publish(topic, payload, mid=number, retain=retain, properties=self._no_properties())
        self._send_packet(packet, until)
        if mid is None:
            return 0
        answer = self._await(PUBACK, lambda answer: answer[:2] == mid, until)
        return answer[2] if len(answer) > 2 else 0

    def publish_pair(self, topic: str, payload: bytes, until: float) -> None:
        """Publish two messages at QoS 0, at once."""
        self._send_packet(publish(topic, payload, mid=None, properties=self._no_properties()) * 2, until)

    def ping(self, until: float) -> None:
        """Wait for an answer: what was sent before has then passed, or has ended the connection."""
        self._send(_PINGREQ, b"", until)
        self._await(_PINGRESP, lambda _: True, until)

    def withhold(self, topic: str, payload: bytes, until: float, *, retain: bool = False) -> int:
        """Publish at QoS 2 and never release it; return the reason code (0 with MQTT 3.1.1, which has none)."""
        mid = self._next_mid()
        header = PUBLISH | 0x04 | (0x01 if retain else 0)
        self._send(header, _text(topic) + mid + self._no_properties() + payload, until)
        answer = self._await(_PUBREC, lambda answer: answer[:2] == mid, until)
        code = answer[2] if len(answer) > 2 else 0
        if code < REFUSED:
            self._withheld[topic] = int.from_bytes(mid, "big")
        return code

    def release(self, topic: str, until: float) -> None:
        """Have the broker hand on what was withheld from a topic."""
        mid = self._withheld.pop(topic).to_bytes(2, "big")
        self._send(_PUBREL | 0x02, mid, until)
        self._await(_PUBCOMP, lambda answer: answer[:2] == mid, until)

    def listen(self, until: float, enough: Callable[[], bool] = lambda: False) -> bool:
        """Collect messages until `enough` or `until`; return whether it was enough."""
        while not enough():
            try:
                self._handle(*self._packet(until))
            except TimeoutError:
                return enough()
        return True

    def close(self) -> None:
        """Send DISCONNECT, if that is still possible, and close the socket."""
        try:
            self.sock.settimeout(1.0)
            self.sock.sendall(bytes((_DISCONNECT, 0)))
        except OSError:
            pass  # the connection is gone
        finally:
            self.sock.close()

    def _no_properties(self) -> bytes:
        return b"\x00" if self.is_mqtt5 else b""

    def _next_mid(self) -> bytes:
        self._mid += 1
        return self._mid.to_bytes(2, "big")

    def _send(self, header: int, body: bytes, until: float) -> None:
        self._send_packet(bytes((header,)) + varint(len(body)) + body, until)

    def _send_packet(self, packet: bytes, until: float) -> None:
        self.sock.settimeout(_left(until))
        try:
            self.sock.sendall(packet)
        except TimeoutError:
            raise
        except (ConnectionError, ssl.SSLError) as error:
            self._raise_ended(error)

    def _await(self, kind: int, fits: Callable[[bytes], bool], until: float) -> bytes:
        """Return the body of the next packet of a kind that fits, and handle what comes before it."""
        while True:
            header, body = self._packet(until)
            if header & 0xF0 == kind and fits(body):
                return body
            self._handle(header, body)

    def _handle(self, header: int, body: bytes) -> None:
        if header & 0xF0 == PUBLISH:
            try:
                message = parse_publish(header, body, is_mqtt5=self.is_mqtt5)
            except ValueError as error:
                raise BrokerError(f"the broker sent a malformed message ({error})", _CHECK_BROKER) from None
            self._heard_bytes += len(message.topic) + len(message.payload) + _HEARD_BYTES
            if self._heard_bytes > MAX_HEARD_BYTES:
                raise BrokerError(
                    f"the broker sent more than {MAX_HEARD_BYTES:,} bytes of messages during one check",
                    "find out who publishes so much, and restrict that in the broker's ACL",
                )
            self.heard.append(message)
            if message.mid is not None:
                self._send_packet(puback(message.mid), time.monotonic() + _PUBACK_S)
        elif header & 0xF0 == _DISCONNECT:
            code = body[0] if body else 0
            raise HangUpError(f"the broker ended the connection ({REASONS.get(code, f'code {code}')})", _CHECK_LOG)

    def _packet(self, until: float) -> tuple[int, bytes]:
        """Return the first byte and the body of the next packet."""
        while (found := frame(self._ahead, 0) if self._ahead else None) is None:
            if len(self._ahead) > _MAX_BYTES:
                raise BrokerError(f"the broker sent a packet of more than {_MAX_BYTES:,} bytes", _CHECK_BROKER)
            self.sock.settimeout(_left(until))
            more = self._recv()
            if not more:
                raise HangUpError("the broker closed the connection", _CHECK_LOG)
            self._ahead += more
        header, body = self._ahead[0], self._ahead[found[0] : found[1]]
        self._ahead = self._ahead[found[1] :]
        return header, body

    def _recv(self) -> bytes:
        try:
            return self.sock.recv(1 << 16)
        except TimeoutError:
            raise
        except (ConnectionError, ssl.SSLError) as error:
            self._raise_ended(error)

    def _raise_ended(self, error: OSError) -> NoReturn:
        if isinstance(error, ssl.SSLError) and not self._connected:
            raise error
        raise HangUpError(f"the connection to the broker ended ({reason(error)})", _CHECK_LOG) from None


def _left(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the broker did not answer in time")
    return left_s


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack(">H", len(encoded)) + encoded


def _properties(body: bytes) -> tuple[dict[int, int], dict[int, str]]:
    """Parse the properties of a CONNACK into numbers and texts by identifier; BrokerError for malformed ones."""
    numbers: dict[int, int] = {}
    texts: dict[int, str] = {}
    try:
        found = frame(b"\x00" + body, 0)  # they are framed as packets are, but for the first byte
        if found is None:
            raise IndexError
        part = body[found[0] - 1 : found[1] - 1]
        at = 0
        while at < len(part):
            name, at = part[at], at + 1
            if name in _SIZES:
                numbers[name] = int.from_bytes(part[at : at + _SIZES[name]], "big")
                at += _SIZES[name]
            elif name in _TEXTS or name == _PAIR:
                for _ in range(2 if name == _PAIR else 1):
                    (length,) = struct.unpack_from(">H", part, at)
                    texts[name] = part[at + 2 : at + 2 + length].decode(errors="replace")
                    at += 2 + length
            else:
                raise IndexError
    except (IndexError, struct.error):
        raise BrokerError("the broker answered the login with malformed properties", _CHECK_BROKER) from None
    return numbers, texts
