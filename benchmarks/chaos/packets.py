"""Control packets of MQTT 3.1.1 and 5, cut out of a stream of bytes.

Nothing of the project: it can be wrong about MQTT in other ways than the code under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE = 1, 2, 3, 4, 8

MAX_PACKET_BYTES = 4 << 20
"""Longest packet that is kept until it is whole; whoever sends a longer one is hung up on."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A control packet of MQTT: its type, the flags of its first byte, and what follows the length.

    `level` is the protocol level of the connection that it belongs to: 4 is MQTT 3.1.1, 5 is MQTT 5. What a packet of
    its type does not have is empty, 0 or False.
    """

    kind: int
    flags: int
    body: bytes
    size: int
    level: int

    @property
    def dup(self) -> bool:
        """Whether a PUBLISH is sent again."""
        return self.kind == PUBLISH and bool(self.flags & 8)

    @property
    def qos(self) -> int:
        """The quality of service of a PUBLISH."""
        return (self.flags >> 1) & 3 if self.kind == PUBLISH else 0

    @property
    def retain(self) -> bool:
        """Whether a PUBLISH is to be retained."""
        return self.kind == PUBLISH and bool(self.flags & 1)

    @property
    def topic(self) -> str:
        """The topic of a PUBLISH."""
        return _text(self.body, 0)[0] if self.kind == PUBLISH else ""

    @property
    def packet_id(self) -> int:
        """The number of a PUBLISH at QoS 1, or of the PUBACK for it."""
        if self.kind == PUBACK:
            return int.from_bytes(self.body[:2], "big")
        at = self._after_topic
        return int.from_bytes(self.body[at : at + 2], "big") if self.qos else 0

    @property
    def payload(self) -> bytes:
        """What a PUBLISH carries."""
        if self.kind != PUBLISH:
            return b""
        at = self._after_topic + (2 if self.qos else 0)
        if self.level >= 5:
            length, used = _varint(self.body, at)
            at += used + length
        return self.body[at:]

    @property
    def _after_topic(self) -> int:
        return _text(self.body, 0)[1] if self.kind == PUBLISH else 0

    @property
    def has_will(self) -> bool:
        """Whether a CONNECT has a will."""
        return bool(self._connect_flags & 0x04)

    @property
    def will_retain(self) -> bool:
        """Whether a CONNECT has a will that is to be retained."""
        return self.has_will and bool(self._connect_flags & 0x20)

    @property
    def _connect_flags(self) -> int:
        return self.body[_text(self.body, 0)[1] + 1] if self.kind == CONNECT else 0

    @property
    def filters(self) -> list[str]:
        """The filters of a SUBSCRIBE."""
        if self.kind != SUBSCRIBE:
            return []
        at = 2
        if self.level >= 5:
            length, used = _varint(self.body, at)
            at += used + length
        found = []
        while at < len(self.body):
            name, at = _text(self.body, at)
            found.append(name)
            at += 1
        return found


def _text(body: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + int.from_bytes(body[at : at + 2], "big")
    return body[at + 2 : end].decode("utf-8", "replace"), end


def _varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """Return a length and how many bytes tell it; IndexError where some are still to come."""
    value = used = 0
    while True:
        byte = data[at + used]
        value |= (byte & 127) << (7 * used)
        used += 1
        if not byte & 128:
            return value, used
        if used == 4:
            raise ValueError("no packet of MQTT")


class Reader:
    """Cuts a stream of bytes into packets."""

    def __init__(self) -> None:
        self.level = 0
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Packet, bytes]]:
        """Give each packet that is whole now, with its bytes. ValueError for what is too long, or no MQTT."""
        self._data += data
        while len(self._data) >= 2:
            try:
                length, used = _varint(self._data, 1)
            except IndexError:
                return
            end = 1 + used + length
            if end > MAX_PACKET_BYTES:
                raise ValueError(f"a packet of {end} bytes")
            if len(self._data) < end:
                return
            whole = bytes(self._data[:end])
            del self._data[:end]
            body = whole[1 + used :]
            if whole[0] >> 4 == CONNECT:
                _, at = _text(body, 0)
                self.level = body[at]
            yield Packet(whole[0] >> 4, whole[0] & 15, body, end, self.level), whole
