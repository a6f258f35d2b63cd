"""Bytes to maps of plain values and back, within limits; the fields say what the values must be."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgpack

from distree.errors import RemoteProtocolError
from distree.messages.layout import AS_DESCRIBED, shown
from distree.messages.limits import MAX_CONTAINERS, MAX_ITEMS, MAX_MESSAGE_BYTES, SMALL_BYTES
from distree.printable import printable

_to_json = json.JSONEncoder(separators=(",", ":")).encode
"""As `json.dumps`, which would make such an encoder each time."""

T = TypeVar("T")
Fields = dict[str, Any]

_SAME_VERSION = "run the same version of DistrEE at both ends"


def unpack(payload: bytes) -> Any:
    """Return what MessagePack bytes hold, lists as tuples."""
    if len(payload) > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError("size", f"{len(payload)} bytes exceed the limit of {MAX_MESSAGE_BYTES}", "send less")
    try:
        if len(payload) <= SMALL_BYTES:
            return msgpack.unpackb(payload, use_list=False, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS)
        return _unpack_counting(payload)
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


def _unpack_counting(payload: bytes) -> Any:
    """Unpack a long message, which may be long because of one payload; ValueError if it is many small items instead."""
    left = MAX_CONTAINERS

    def count(container: T) -> T:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_CONTAINERS} maps and lists")
        return container

    return msgpack.unpackb(
        payload,
        use_list=False,
        max_array_len=MAX_ITEMS,
        max_map_len=MAX_ITEMS,
        object_hook=count,
        list_hook=count,
    )


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
        fields = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("encoding", f"not JSON ({printable(str(error))})", AS_DESCRIBED) from None
    if type(fields) is not dict:
        raise RemoteProtocolError("encoding", f"expected an object, received {type(fields).__name__}", AS_DESCRIBED)
    if fields.get("schema") != schema:
        raise RemoteProtocolError(
            "version", f"expected {schema}, received {shown(fields.get('schema'))}", _SAME_VERSION
        )
    return fields


def dump_message(fields: Fields) -> bytes:
    """Return an object as JSON."""
    return _to_json(fields).encode()
