"""Arrays in NumPy's .npy format, of plain elements; never pickles, and never more memory than the file has bytes.

The header is read here and not by NumPy, whose reader trusts it: a header that promises terabytes, or is itself
gigabytes long, is refused.
"""

from __future__ import annotations

import ast
import io
import math
from typing import BinaryIO

import numpy as np

from distree.errors import RemoteProtocolError
from distree.record import record
from distree.tensors import Array

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000
MAX_RANK = 8

_KINDS = "biufUS"
"""Booleans, integers, floating-point numbers, and text, which labels may be."""


@record
class ArrayHeader:
    """What a file says about its array."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    is_fortran: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, a part along the first axis."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def __str__(self) -> str:
        """Say dtype and shape."""
        return f"{self.dtype} {self.shape}"


def read_header(file: BinaryIO) -> ArrayHeader:
    """Read the header of an .npy file, up to where its data begin.

    Raises RemoteProtocolError("encoding") for anything else, and for arrays of Python objects or of records.
    """
    start = file.read(8)
    if start[:6] != MAGIC or len(start) < 8:
        raise _refused("its first bytes are not those of the format")
    size_bytes = 2 if start[6] == 1 else 4
    size = file.read(size_bytes)
    length = int.from_bytes(size, "little")
    if start[6] not in (1, 2, 3) or len(size) < size_bytes or length > MAX_HEADER_BYTES:
        raise _refused(f"format version {start[6]} with a header of {length} bytes is not supported")
    text = file.read(length)
    if len(text) < length:
        raise _refused("its header is cut off")
    try:
        return _parsed(text)
    except RemoteProtocolError:
        raise
    except Exception:  # noqa: BLE001 - the parser raises many kinds for text that is no dictionary
        raise _refused("its header is damaged") from None


def _parsed(text: bytes) -> ArrayHeader:
    given = ast.literal_eval(text.decode("latin-1").strip())
    descr, is_fortran, shape = given["descr"], given["fortran_order"], given["shape"]
    if not isinstance(descr, str):
        raise _refused("it contains records instead of numbers")
    dtype = np.dtype(descr)
    if dtype.kind not in _KINDS:
        raise _refused(f"it contains {dtype} values instead of numbers")
    sizes = isinstance(shape, tuple) and all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
    if not sizes or len(shape) > MAX_RANK or type(is_fortran) is not bool:
        raise _refused("its header is damaged")
    return ArrayHeader(dtype=dtype, shape=shape, is_fortran=is_fortran)


def read_rows(file: BinaryIO, header: ArrayHeader, rows: int | None = None) -> Array:
    """Read the data after a header whose size the caller has checked: all of it, or its first rows.

    Raises RemoteProtocolError("encoding") if the file ends too early.
    """
    shape = header.shape
    if rows is not None and shape and not header.is_fortran:
        shape = (min(rows, shape[0]), *shape[1:])
    wanted = header.dtype.itemsize * math.prod(shape)
    content = file.read(wanted)
    if len(content) < wanted:
        raise _refused(f"it is cut off: it has {len(content)} bytes of data, but {header} needs {wanted}")
    flat: Array = np.frombuffer(content, header.dtype, math.prod(shape)) if wanted else np.empty(0, header.dtype)
    array: Array = flat.reshape(shape[::-1]).T if header.is_fortran else flat.reshape(shape)
    return array if rows is None or not shape else array[:rows]


def read_array(content: bytes) -> Array:
    """Return the array of a whole .npy file, in this machine's byte order.

    Raises RemoteProtocolError("encoding") if it is damaged, cut off, or followed by other bytes.
    """
    file = io.BytesIO(content)
    header = read_header(file)
    left = len(content) - file.tell()
    if left != header.nbytes:
        raise _refused(f"it has {left} bytes of data, but {header} needs {header.nbytes}")
    return in_native_order(read_rows(file, header))


def in_native_order(array: Array) -> Array:
    """Return an array in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _refused(why: str) -> RemoteProtocolError:
    return RemoteProtocolError("encoding", f"not an .npy array: {why}", "write one with numpy.save(path, array)")
