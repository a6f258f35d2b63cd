"""Tensors on the wire: exact round trips, views instead of copies, and refusal of anything unexpected."""

from __future__ import annotations

import dataclasses
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distree.errors import LocalProtocolError, RemoteProtocolError
from distree.messages.request import Tensor
from distree.tensors import decode, encode, nbytes

DTYPES = ["int8", "uint8", "float16", "float32"]
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
CODECS = st.sampled_from(["raw", "zlib"])


@st.composite
def arrays(draw):
    dtype, shape = np.dtype(draw(st.sampled_from(DTYPES))), draw(SHAPES)
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


def tensor(**changes):
    plain = Tensor(dtype="int8", shape=(2, 3), codec="raw", payload=bytes(range(6)))
    return dataclasses.replace(plain, **changes)


def reason_of(message, dtype="int8", shape=(2, 3)):
    with pytest.raises(RemoteProtocolError) as caught:
        decode(message, dtype=dtype, shape=shape)
    return caught.value.reason


@given(arrays(), CODECS)
def test_round_trip(array, codec):
    message = encode(array, codec)
    assert (message.dtype, message.shape, message.codec) == (array.dtype.name, array.shape, codec)
    got = decode(message, dtype=message.dtype, shape=array.shape)
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes()
    assert not got.flags.writeable


@given(arrays(), CODECS, st.data())
def test_any_truncation_is_refused(array, codec, data):
    whole = bytes(encode(array, codec).payload)
    if whole:
        cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
        message = Tensor(dtype=array.dtype.name, shape=array.shape, codec=codec, payload=cut)
        assert reason_of(message, array.dtype.name, array.shape) == "size"


@given(arrays(), CODECS, st.binary(min_size=1, max_size=9))
def test_anything_appended_is_refused(array, codec, more):
    longer = bytes(encode(array, codec).payload) + more
    message = Tensor(dtype=array.dtype.name, shape=array.shape, codec=codec, payload=longer)
    assert reason_of(message, array.dtype.name, array.shape) == "size"


@given(st.binary(max_size=64))
def test_garbage_is_never_taken_for_a_zlib_stream(payload):
    assert reason_of(tensor(codec="zlib", payload=payload)) in {"codec", "size"}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (tensor(dtype="uint8"), "dtype"),
        (tensor(dtype="float64"), "dtype"),
        (tensor(dtype=None), "dtype"),
        (tensor(shape=(3, 2)), "shape"),
        (tensor(shape=(6,)), "shape"),
        (tensor(shape=(1, 2, 3)), "shape"),
        (tensor(shape=(-2, -3)), "shape"),
        (tensor(shape=()), "shape"),
        (tensor(codec="gzip"), "codec"),
        (tensor(codec="zlib"), "codec"),
        (tensor(payload=b""), "size"),
        (tensor(payload=bytes(5)), "size"),
        (tensor(payload=bytes(7)), "size"),
        (tensor(payload=memoryview(bytes(7))), "size"),
        (tensor(codec="zlib", payload=b""), "size"),
        (tensor(codec="zlib", payload=zlib.compress(bytes(5))), "size"),
        (tensor(codec="zlib", payload=zlib.compress(bytes(7))), "size"),
    ],
)
def test_reasons(message, reason):
    assert reason_of(message) == reason


def test_a_damaged_checksum_is_refused():
    payload = bytearray(zlib.compress(bytes(range(6))))
    payload[-1] ^= 1
    assert reason_of(tensor(codec="zlib", payload=bytes(payload))) == "codec"


def test_a_bomb_is_not_unpacked():
    bomb = zlib.compress(bytes(64 << 20), 9)
    tracemalloc.start()
    try:
        assert reason_of(tensor(codec="zlib", payload=bomb)) == "size"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_raw_is_a_view_both_ways():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    message = encode(array)
    got = decode(message, dtype="float32", shape=(2, 3))
    assert np.shares_memory(got, array)
    assert array.flags.writeable


@pytest.mark.parametrize("codec", ["raw", "zlib"])
@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[:, ::2], lambda a: a[::-1], np.asfortranarray])
def test_other_memory_orders_are_sent_in_c_order(view, codec):
    array = view(np.arange(12, dtype=np.float16).reshape(3, 4))
    got = decode(encode(array, codec), dtype="float16", shape=array.shape)
    np.testing.assert_array_equal(got, array)


def test_bytes_are_little_endian():
    for order in "<>":
        message = encode(np.array([1.0], dtype=f"{order}f4"))
        assert bytes(message.payload) == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize("dtype", ["float64", "int32", "bool", "complex64", "U1", "O"])
def test_other_dtypes_cannot_be_sent(dtype):
    with pytest.raises(LocalProtocolError, match=r"cannot send .*; use one of int8, uint8, float16, float32") as caught:
        encode(np.zeros(3, dtype))
    assert caught.value.reason == "dtype"


@given(arrays())
def test_nbytes(array):
    assert nbytes(array.dtype.name, array.shape) == array.nbytes
