"""The two MQTT packets of the hot path, PUBLISH at QoS 0 and 1 and PUBACK, built and parsed without I/O.

paho builds and parses them too, at several times the cost of running a small segment; it keeps all the rest:
connecting, TLS, logging in, subscribing, keeping alive. Sources: MQTT 3.1.1 and MQTT 5.0 (OASIS), chapters 2 and 3.
"""

from __future__ import annotations

import functools
import math

from distree.record import record

PUBLISH, PUBACK = 0x30, 0x40
NO_SUBSCRIBERS, REFUSED, QUOTA_EXCEEDED = 0x10, 0x80, 0x97
"""Reason codes of a PUBACK of MQTT 5: nobody subscribes to the topic; from here on, the broker refuses; for now."""

_DUP, _QOS_1, _QOS_2, _RETAIN = 0x08, 0x02, 0x04, 0x01


@record
class Published:
    """A parsed PUBLISH; `mid` is None at QoS 0."""

    topic: str
    payload: bytes
    retain: bool
    mid: int | None


def varint(value: int) -> bytes:
    """Encode a length of at most 268,435,455 as MQTT does: seven bits a byte, the lowest first.

    >>> varint(321).hex()
    'c102'
    """
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


@functools.lru_cache(maxsize=64)
def _content_type(name: str) -> bytes:
    text = name.encode()
    return b"\x03" + len(text).to_bytes(2, "big") + text


def properties(content_type: str | None, expiry_s: float | None) -> bytes:
    """Properties of an MQTT 5 PUBLISH with their length: message expiry (whole seconds, at least 1), content type."""
    body = b""
    if expiry_s is not None and expiry_s < 1 << 31:
        body = b"\x02" + max(1, math.ceil(expiry_s)).to_bytes(4, "big")
    if content_type is not None:
        body += _content_type(content_type)
    return varint(len(body)) + body


@functools.lru_cache(maxsize=1024)
def _topic(name: str) -> bytes:
    text = name.encode()
    return len(text).to_bytes(2, "big") + text


def publish(
    topic: str, payload: bytes, *, mid: int | None, retain: bool = False, dup: bool = False, properties: bytes = b""
) -> bytes:
    """Build a PUBLISH: at QoS 1 with a `mid`, at QoS 0 without. `properties` is b"" for MQTT 3.1.1."""
    head = _topic(topic)
    if mid is None:
        return b"".join(
            (bytes((PUBLISH | retain,)), varint(len(head) + len(properties) + len(payload)), head, properties, payload)
        )
    return b"".join(
        (
            bytes((PUBLISH | _QOS_1 | retain | (_DUP if dup else 0),)),
            varint(len(head) + 2 + len(properties) + len(payload)),
            head,
            mid.to_bytes(2, "big"),
            properties,
            payload,
        )
    )


def puback(mid: int) -> bytes:
    """Build a PUBACK that says success.

    >>> puback(258).hex()
    '40020102'
    """
    return b"\x40\x02" + mid.to_bytes(2, "big")


def frame(buffer: bytes, at: int) -> tuple[int, int] | None:
    """Return (start, end) of the body of the packet that begins at `at`, or None while it is not there in full."""
    length = shift = 0
    position = at + 1
    available = len(buffer)
    while position < available and shift < 28:
        byte = buffer[position]
        position += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (position, position + length) if position + length <= available else None
        shift += 7
    return None


def parse_publish(header: int, body: bytes | bytearray, *, is_mqtt5: bool) -> Published:
    """Parse the body of a PUBLISH whose first byte was `header`; ValueError for a malformed one, or one at QoS 2.

    A topic that is not UTF-8 is no reason to end the connection, though MQTT says so: not every broker refuses one, and
    if it were retained, a single publish would keep all who subscribe offline.
    """
    try:
        start = 2 + (body[0] << 8 | body[1])
        topic = bytes(body[2:start]).decode(errors="replace")
        mid = None
        if header & _QOS_1:
            mid = body[start] << 8 | body[start + 1]
            start += 2
        if is_mqtt5:
            start = _after_properties(body, start)
    except IndexError:
        raise ValueError("cut short") from None
    if header & _QOS_2 or start > len(body):
        raise ValueError("QoS 2, which is never subscribed to, or cut short")
    return Published(topic=topic, payload=bytes(body[start:]), retain=bool(header & _RETAIN), mid=mid)


def parse_puback(body: bytes | bytearray) -> tuple[int, int]:
    """Parse the body of a PUBACK into (mid, reason code); ValueError for a malformed one."""
    if len(body) < 2:
        raise ValueError("cut short")
    return body[0] << 8 | body[1], body[2] if len(body) > 2 else 0


def _after_properties(body: bytes | bytearray, start: int) -> int:
    length = shift = 0
    while shift < 28:
        byte = body[start]
        start += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return start + length
        shift += 7
    raise ValueError("a length of more than four bytes")
