"""What the bytes of a connection are for: MQTT, HTTP/1.1, HTTP/2 under gRPC, and ZeroMQ's ZMTP, taken apart.

Each reader takes a stream from its first byte and yields its parts in order: the offset at which the packet that holds
it begins, what it is, and its bytes. The bytes of all parts are those of the stream up to the last whole packet. They
know the protocols and nothing of what DistrEE says in them, but that a message's longest byte string is its tensor.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgpack

Part = tuple[int, str, int]

FEATURES = "features"
TENSOR_BYTES = 256
"""The longest byte string of a message is a tensor from this length on."""

_MQTT_KINDS = (
    "reserved", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK",
    "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
)  # fmt: skip
_HTTP2_KINDS = (
    "DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY", "WINDOW_UPDATE",
    "CONTINUATION",
)  # fmt: skip
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_ZMTP_GREETING = 64


def count(read: Callable[[bytes], Iterator[Part]], stream: bytes, start: int, end: int) -> Counter[str]:
    """Return bytes by part of the packets that begin at `start` or later, and before `end`."""
    found: Counter[str] = Counter()
    for at, name, nbytes in read(stream):
        if start <= at < end:
            found[name] += nbytes
    return found


# ---------------------------------------------------------------- MQTT 5


def mqtt(stream: bytes) -> Iterator[Part]:
    """Take MQTT 5 apart: a PUBLISH into header, topic, properties and what its payload is made of."""
    at = 0
    while (found := _varint(stream, at + 1)) is not None:
        length, start = found
        if start + length > len(stream):
            return
        kind = _MQTT_KINDS[stream[at] >> 4]
        if kind == "PUBLISH":
            yield from ((at, name, nbytes) for name, nbytes in _publish(stream, at, start, start + length))
        else:
            yield at, kind, start + length - at
        at = start + length


def _publish(stream: bytes, at: int, start: int, end: int) -> Iterator[tuple[str, int]]:
    topic_end = start + 2 + int.from_bytes(stream[start : start + 2], "big")
    topic = stream[start + 2 : topic_end].decode()
    position = topic_end + (2 if stream[at] & 0x06 else 0)
    length, properties = _varint(stream, position) or (0, position)
    payload = stream[properties + length : end]
    name = f"PUBLISH {topic}"
    yield f"{name}: header and packet id", start - at + position - topic_end
    yield f"{name}: topic", topic_end - start
    yield f"{name}: properties", properties + length - position
    for part, nbytes in _payload(payload):
        yield f"{name}: {part}", nbytes


def _varint(stream: bytes, at: int) -> tuple[int, int] | None:
    """Return a length as MQTT writes it and where it ends; None where the stream ends before."""
    value = shift = 0
    while at < len(stream):
        value |= (stream[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if stream[at - 1] < 0x80:
            return value, at
    return None


def _payload(payload: bytes) -> Iterator[tuple[str, int]]:
    """Divide a message into names of its fields, a tensor, and all the rest."""
    try:
        value, name_bytes = json.loads(payload), _json_name
    except ValueError:
        try:
            value, name_bytes = msgpack.unpackb(payload, strict_map_key=False), _msgpack_name
        except (ValueError, msgpack.UnpackException):
            yield "payload", len(payload)
            return
    names = sum(name_bytes(name) for name in _names(value))
    tensor = max(_byte_strings(value), default=0)
    if tensor < TENSOR_BYTES:
        tensor = 0
    yield "names of fields", names
    yield "values of fields", len(payload) - names - tensor
    if tensor:
        yield FEATURES, tensor


def _json_name(name: Any) -> int:
    return len(json.dumps(name)) + 1


def _msgpack_name(name: Any) -> int:
    return len(msgpack.packb(name))


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _names(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
    for part in _inside(value):
        yield from _names(part)


def _byte_strings(value: Any) -> Iterator[int]:
    if isinstance(value, bytes):
        yield len(value)
    for part in _inside(value):
        yield from _byte_strings(part)


# ---------------------------------------------------------------- the peers


def http1(stream: bytes) -> Iterator[Part]:
    """Take HTTP/1.1 apart: heads, and bodies of a Content-Length."""
    at = 0
    while (end := stream.find(b"\r\n\r\n", at)) >= 0:
        body = end + 4
        found = re.search(rb"\r\ncontent-length: *(\d+)", stream[at:end], re.IGNORECASE)
        length = int(found[1]) if found else 0
        if body + length > len(stream):
            return
        yield at, "head", body - at
        yield at, FEATURES if length >= TENSOR_BYTES else "answer", length
        at = body + length


def http2(stream: bytes) -> Iterator[Part]:
    """Take HTTP/2 apart by kind of frame, and gRPC's messages out of DATA."""
    at = 0
    if stream.startswith(_HTTP2_PREFACE):
        at = len(_HTTP2_PREFACE)
        yield 0, "preface", at
    while at + 9 <= len(stream):
        length, kind = int.from_bytes(stream[at : at + 3], "big"), stream[at + 3]
        if at + 9 + length > len(stream):
            return
        name = _HTTP2_KINDS[kind] if kind < len(_HTTP2_KINDS) else "other"
        yield at, "frame headers", 9
        if name == "DATA" and length > 5:
            yield at, "DATA: message prefix", 5
            yield at, FEATURES if length >= TENSOR_BYTES else "answer", length - 5
        else:
            yield at, name, length
        at += 9 + length


def zmtp(stream: bytes) -> Iterator[Part]:
    """Take ZMTP 3 apart: greeting, commands, and the frames of messages."""
    if len(stream) < _ZMTP_GREETING:
        return
    yield 0, "greeting", _ZMTP_GREETING
    at = _ZMTP_GREETING
    while at + 2 <= len(stream):
        flags, is_long = stream[at], stream[at] & 0x02
        start = at + (9 if is_long else 2)
        length = int.from_bytes(stream[at + 1 : start], "big")
        if start + length > len(stream):
            return
        if flags & 0x04:
            yield at, "commands", start + length - at
        else:
            yield at, "frame headers", start - at
            yield at, FEATURES if length >= TENSOR_BYTES else "answer", length
        at = start + length


READERS: dict[str, Callable[[bytes], Iterator[Part]]] = {
    "distree": mqtt,
    "leaves": mqtt,
    "grpc": http2,
    "http": http1,
    "zeromq": zmtp,
}
