"""No message takes more than MAX_DECODE_BYTES while it is decoded: measured with the worst ones that can be made."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator

import msgpack
import pytest

from distree.errors import RemoteProtocolError
from distree.messages import packing
from distree.messages.codec import decode
from distree.messages.layout import layout_of
from distree.messages.limits import MAX_DECODE_BYTES, MAX_ITEMS, MAX_MESSAGE_BYTES, MAX_VALUES, SMALL_BYTES
from tools.json_schema import MESSAGES

MANY = b"\xdc" + struct.pack(">H", MAX_ITEMS)
"""The head of the longest list."""


def _packed(value: bytes, nbytes: int) -> Iterator[tuple[str, bytes]]:
    """Give so many bytes of one value, in lists as long as they may be, and in one that is not finished."""
    row = MANY + value * MAX_ITEMS
    rows = max(1, (nbytes - 3) // len(row))
    whole = b"".join((MANY, row * min(rows, MAX_ITEMS), b"\xc0" * (MAX_ITEMS - rows)))
    yield "in lists", whole[:nbytes]
    each = MANY + value * (MAX_ITEMS - 1)
    yield "in lists inside each other", (each * (nbytes // len(each) + 1))[:nbytes]
    depth = nbytes // (8 * len(MANY))
    yield "after many heads", (MANY * min(depth, 1000) + value * (nbytes // len(value)))[:nbytes]


PACKED = {
    "an empty map": b"\x80",
    "an empty list": b"\x90",
    "a map of one": b"\x81\xa0\xc0",
    "a list of one": b"\x91\xc0",
    "lists inside each other": b"\x91" * 500 + b"\xc0",
    "a short text": b"\xa2ab",
    "a text that is not Latin": b"\xa3\xe2\x82\xac",
    "two bytes": b"\xc4\x02ab",
    "an extension": b"\xd4\x05a",
    "an empty extension": b"\xc7\x00\x05",
    "a time": b"\xd6\xff\x00\x00\x00\x01",
    "a float": b"\xca\x3f\x80\x00\x01",
    "a number": b"\xcd\x12\x34",
    "a large number": b"\xcf" + b"\xff" * 8,
    "a map with a key": b"\x81\xa2ab\xcd\x12\x34",
}

IN_JSON = {
    "an empty object": "{}",
    "an empty list": "[]",
    "an object of one": '{"":0}',
    "a list of one": "[0]",
    "lists inside each other": "[" * 900 + "]" * 900,
    "objects inside each other": '{"":' * 900 + "0" + "}" * 900,
    "a short text": '"ab"',
    "a text that is not Latin": '"€😀"',
    "a float": "1e1",
    "a number": "1000",
    "a large number": "1" * 4000,
    "a key": '{"ab":[{}]}',
}


def _worst() -> Iterator[tuple[str, bytes, bool]]:
    for nbytes in (SMALL_BYTES, MAX_MESSAGE_BYTES):
        for what, value in PACKED.items():
            # Long ones are refused by their number of values, however these are arranged.
            for how, payload in list(_packed(value, nbytes))[: 3 if nbytes == SMALL_BYTES else 1]:
                yield f"{nbytes >> 10} KiB: {what} {how}", payload, False
    wide = ("€" + "a" * (MAX_MESSAGE_BYTES - 80)).encode()
    astral = ("😀" + "a" * (MAX_MESSAGE_BYTES - 80)).encode()
    for text in (wide, astral):
        yield "one long text", b"\xdb" + struct.pack(">I", len(text)) + text, False
        yield "one long text in JSON", b'{"schema":"' + text + b'"}', True
    keys = b"".join(b"\xa4" + b"%04d" % k + b"\xc0" for k in range(MAX_ITEMS))
    row = b"\xde" + struct.pack(">H", MAX_ITEMS) + keys
    yield "maps with keys", MANY + row * (MAX_MESSAGE_BYTES // len(row)), False
    for what, value in IN_JSON.items():
        times = (MAX_MESSAGE_BYTES - 2) // (len(value.encode()) + 1)
        for count in {times, min(times, MAX_VALUES // (value.count("[") + value.count("{") + 1) - 2)}:
            yield f"JSON: {count:,} times {what}", ("[" + ",".join([value] * count) + "]").encode(), True
    distinct = [f'"{k:04x}":{k}' for k in range(MAX_VALUES - 4)]
    yield "JSON: an object with many keys", ("{" + ",".join(distinct) + "}").encode(), True


WORST = list(_worst())


def _peak(read: Callable[[bytes], object], payload: bytes) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            read(payload)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_worst_messages_take_no_more_than_is_declared() -> None:
    peaks = {}
    cpu_s = time.process_time()
    for what, payload, is_json in WORST:
        assert len(payload) <= MAX_MESSAGE_BYTES, what
        for cls in MESSAGES.values():
            if layout_of(cls).is_json == is_json:
                peaks[what] = _peak(lambda told, cls=cls: decode(cls, told), payload)
                break
    assert max(peaks.values()) <= MAX_DECODE_BYTES, sorted(peaks.items(), key=lambda item: -item[1])[:3]
    # They were made to be bad: if they cost nothing, they are not the worst any more.
    assert max(peaks.values()) > MAX_DECODE_BYTES // 4
    assert time.process_time() - cpu_s < 30.0


def test_every_decoder_unpacks_by_these_limits() -> None:
    maps, objects = _maps(), b"[" + b",".join([b"{}"] * 300_000) + b"]"
    for cls in MESSAGES.values():
        payload = objects if layout_of(cls).is_json else maps
        assert _peak(lambda told, cls=cls: decode(cls, told), payload) <= MAX_DECODE_BYTES, cls


def _maps() -> bytes:
    return MANY + (MANY + b"\x80" * MAX_ITEMS) * (MAX_MESSAGE_BYTES // (MAX_ITEMS + 3) - 1)


@pytest.mark.parametrize(
    "value",
    [
        {"v": 1, "payload": bytes(500_000), "list": list(range(1000)), "text": "ä" * 300, "map": {"a": -1, "b": 1.5}},
        [1 << 63, -(1 << 63), 70_000, -70_000, 3.5, None, True, False, "x" * 70_000, b"y" * 300, -32, 127, -200],
        {str(k): [[k]] * 7 for k in range(900)} | {"payload": bytes(100_000)},
    ],
)
def test_long_messages_of_few_values_are_read(value: object) -> None:
    payload = msgpack.packb(value)
    assert len(payload) > SMALL_BYTES
    assert packing.unpack(payload) == msgpack.unpackb(payload, use_list=False)


@pytest.mark.parametrize("values", [MAX_VALUES - 40, MAX_VALUES + 40])
def test_values_are_counted_as_they_are_unpacked(values: int) -> None:
    rows, rest = divmod(values, MAX_ITEMS)
    value = [[1000] * (MAX_ITEMS - 1)] * rows + [7] * (rest + rows - rows - 2)
    payload = msgpack.packb([value, bytes(SMALL_BYTES)])
    if values < MAX_VALUES:
        assert packing.unpack(payload)[0][0][0] == 1000
    else:
        with pytest.raises(RemoteProtocolError, match="more than 32,768 values"):
            packing.unpack(payload)


def test_lengths_that_go_beyond_the_end_are_refused() -> None:
    for head in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"):
        for payload in (head, head + bytes(SMALL_BYTES + 1), MANY * 1000, MANY * 30_000):
            with pytest.raises(RemoteProtocolError):
                packing.unpack(payload)


def test_numbers_of_thousands_of_digits_are_refused_at_once() -> None:
    cls = next(cls for cls in MESSAGES.values() if layout_of(cls).is_json)
    payload = json.dumps({"schema": layout_of(cls).word, "x": 1})[:-1].encode() + b"1" * 900_000 + b"}"
    began = time.process_time()
    with pytest.raises(RemoteProtocolError, match="a number of 900,001 digits"):
        decode(cls, payload)
    assert time.process_time() - began < 1.0
