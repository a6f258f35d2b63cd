"""Tensors as they travel: C-ordered, little-endian bytes of one of four dtypes, plain or compressed by zlib.

`encode` and `decode` with the codec "raw" copy nothing.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from distree.errors import LocalProtocolError, RemoteProtocolError
from distree.messages.request import Codec, DType, Tensor

Array: TypeAlias = "npt.NDArray[Any]"

_DTYPES: dict[DType, np.dtype[np.generic]] = {
    "int8": np.dtype("<i1"),
    "uint8": np.dtype("<u1"),
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}
# Looked up by dtype, not by its name, which numpy builds on each access.
_NAMES: dict[np.dtype[np.generic], DType] = {
    order: name for name, dtype in _DTYPES.items() for order in (dtype, dtype.newbyteorder(">"))
}

# Features are noise-like and boards are slow: higher levels cost time and hardly save bytes.
_ZLIB_LEVEL = 1


def nbytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes of a decoded tensor.

    >>> nbytes("float16", (1, 8, 8))
    128
    """
    return math.prod(shape) * _DTYPES[dtype].itemsize


def encode(array: Array, codec: Codec = "raw") -> Tensor:
    """Describe an array of any shape as a Tensor.

    A C-ordered little-endian array is not copied under "raw": the payload is a view of it, so the array must
    not change before the message is packed. Raises LocalProtocolError("dtype") for anything but int8, uint8,
    float16 and float32.
    """
    name = _NAMES.get(array.dtype)
    if name is None:
        raise LocalProtocolError("dtype", f"cannot send {array.dtype}", f"use one of {', '.join(_DTYPES)}")
    flat = np.ascontiguousarray(array, dtype=_DTYPES[name]).reshape(-1)
    payload: bytes | memoryview = flat.view(np.uint8).data
    if codec == "zlib":
        payload = zlib.compress(payload, _ZLIB_LEVEL)
    return Tensor(dtype=name, shape=array.shape, codec=codec, payload=payload)


def zeros(dtype: DType, shape: tuple[int, ...]) -> Tensor:
    """Describe an array of zeros, in few bytes."""
    return Tensor(
        dtype=dtype, shape=shape, codec="zlib", payload=zlib.compress(bytes(nbytes(dtype, shape)), _ZLIB_LEVEL)
    )


def decode(tensor: Tensor, *, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Give the tensor as a read-only array of exactly the dtype and shape that this end expects.

    Under "raw" the array is a view of the payload. Raises RemoteProtocolError with the reason "dtype",
    "shape", "codec" (unknown, or not a zlib stream) or "size" (the payload does not hold exactly that many
    bytes). Never unpacks more than one byte beyond the expected size, however much a stream holds.
    """
    if tensor.dtype != dtype:
        raise RemoteProtocolError("dtype", f"expected {dtype}, received {tensor.dtype!r}")
    if tensor.shape != shape:
        raise RemoteProtocolError("shape", f"expected {shape}, received {tensor.shape!r}")
    kind = _DTYPES[dtype]
    expected_bytes = math.prod(shape) * kind.itemsize
    payload = tensor.payload if tensor.codec == "raw" else _decompress(tensor, expected_bytes)
    payload_bytes = len(payload)
    if isinstance(payload, memoryview):
        payload_bytes, payload = payload.nbytes, payload.toreadonly()
    if payload_bytes != expected_bytes:
        raise RemoteProtocolError("size", f"expected {expected_bytes} bytes, received {payload_bytes}")
    array: Array = np.ndarray(shape, kind, payload)
    return array


def _decompress(tensor: Tensor, expected_bytes: int) -> bytes:
    if tensor.codec != "zlib":
        raise RemoteProtocolError("codec", f"expected raw or zlib, received {tensor.codec!r}")
    stream = zlib.decompressobj()
    try:
        payload = stream.decompress(tensor.payload, expected_bytes + 1)
    except zlib.error as error:
        raise RemoteProtocolError("codec", f"not a zlib stream: {error}") from None
    if len(payload) <= expected_bytes and (not stream.eof or stream.unused_data):
        raise RemoteProtocolError("size", "the zlib stream is truncated or followed by other bytes")
    return payload
