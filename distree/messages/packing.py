"""Bytes to maps of plain values and back, within limits; the fields say what the values must be."""

from __future__ import annotations

import json
from typing import Any

import msgpack

from distree.errors import RemoteProtocolError
from distree.messages.layout import AS_DESCRIBED, shown
from distree.messages.limits import MAX_ITEMS, MAX_MESSAGE_BYTES, MAX_VALUES, SMALL_BYTES
from distree.printable import printable

_to_json = json.JSONEncoder(separators=(",", ":")).encode
"""As `json.dumps`, which would make such an encoder each time."""

Fields = dict[str, Any]

_SAME_VERSION = "run the same version of DistrEE at both ends"


def unpack(payload: bytes) -> Any:
    """Return what MessagePack bytes hold, lists as tuples."""
    if len(payload) > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError("size", f"{len(payload)} bytes exceed the limit of {MAX_MESSAGE_BYTES}", "send less")
    try:
        if len(payload) > SMALL_BYTES:
            _count_values(payload)
        return msgpack.unpackb(payload, use_list=False, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS, max_ext_len=0)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError("encoding", f"not MessagePack ({printable(str(error))})", AS_DESCRIBED) from None


def pack(fields: Any) -> bytes:
    """Return plain values as MessagePack bytes."""
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer()
    payload: bytes = packer.pack(fields)
    if len(payload) <= SMALL_BYTES:
        _packers.append(packer)
    return payload


_packers: list[Any] = []
"""Idle ones, with their buffers, so that none is made for each message. One is used by one thread at a time."""


_SIZES = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4,
          0xD3: 8}  # fmt: skip
"""Bytes that follow a value's first one, if their number is fixed."""

_LENGTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Bytes of the length that follows the first one of a text or bytes."""

_COUNTS = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
"""Bytes of the number that follows the first one of a list or a map."""


def _count_values(payload: bytes) -> None:
    """Raise ValueError if a MessagePack message has more than MAX_VALUES values; others are left to the unpacker.

    A long message, which is long because of one payload, has few: this takes some microseconds.
    """
    at, open_, end, seen = 0, 1, len(payload), 0
    while open_ > 0 and at < end:
        first = payload[at]
        at += 1
        open_ -= 1
        seen += 1
        if seen + open_ > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        if first < 0x80 or first >= 0xE0:
            continue
        if first < 0x90:
            open_ += 2 * (first - 0x80)
        elif first < 0xA0:
            open_ += first - 0x90
        elif first < 0xC0:
            at += first - 0xA0
        elif first in _SIZES:
            at += _SIZES[first]
        elif first in _LENGTHS:
            width = _LENGTHS[first]
            at += width + int.from_bytes(payload[at : at + width], "big")
        elif first in _COUNTS:
            width = _COUNTS[first]
            count = int.from_bytes(payload[at : at + width], "big")
            at += width
            open_ += count if first < 0xDE else 2 * count
        else:
            raise ValueError("a value of a kind that no message has")


def unpack_message(payload: bytes, kind: str, version: int) -> Fields:
    """Return the map of a MessagePack message of a kind and version."""
    fields = unpack(payload)
    if type(fields) is not dict:
        raise RemoteProtocolError("encoding", f"expected a map, received {type(fields).__name__}", AS_DESCRIBED)
    if fields.get("v") != version:
        raise RemoteProtocolError("version", f"expected {version}, received {shown(fields.get('v'))}", _SAME_VERSION)
    if fields.get("kind") != kind:
        raise RemoteProtocolError("kind", f"expected {kind!r}, received {shown(fields.get('kind'))}", AS_DESCRIBED)
    return fields


def load_message(payload: bytes, schema: str, _version: int = 0) -> Fields:
    """Return the object of a JSON message of a schema, whose name ends in its version."""
    if len(payload) > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError("size", f"{len(payload)} bytes exceed the limit of {MAX_MESSAGE_BYTES}", "send less")
    try:
        # All that makes a value more; in texts, too, but none has that many.
        if payload.count(b",") + payload.count(b"[") + payload.count(b"{") > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values")
        fields = _from_json(payload.decode())
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("encoding", f"not JSON ({printable(str(error))})", AS_DESCRIBED) from None
    if type(fields) is not dict:
        raise RemoteProtocolError("encoding", f"expected an object, received {type(fields).__name__}", AS_DESCRIBED)
    if fields.get("schema") != schema:
        raise RemoteProtocolError(
            "version", f"expected {schema}, received {shown(fields.get('schema'))}", _SAME_VERSION
        )
    return fields


_LONGEST_NUMBER = 4300
"""Characters of a whole number in JSON: as many as newer Pythons read, before others take seconds."""


def _whole(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


_from_json = json.JSONDecoder(parse_int=_whole).decode


def dump_message(fields: Fields) -> bytes:
    """Return an object as JSON."""
    return _to_json(fields).encode()
