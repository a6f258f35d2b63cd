"""Arrays in .npy files: what numpy wrote comes back, and nothing else is taken or believed."""

from __future__ import annotations

import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distree.bundle.npy import MAX_HEADER_BYTES, read_array, read_header, read_rows
from distree.errors import RemoteProtocolError


def saved(array, **options):
    with io.BytesIO() as file:
        np.save(file, array, **options)
        return file.getvalue()


def with_header(text, data=b"", version=b"\x01\x00"):
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + size + text.encode("latin-1") + data


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<i8", "<f2", "<f4", ">f4", "<f8", "?", "<U7", "S3"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_wrote_comes_back(dtype, shape, order):
    numbers = np.random.default_rng(1).integers(0, 100, shape)
    array = np.asarray(numbers, order=order).astype(dtype, order=order)
    read = read_array(saved(array))
    assert read.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(read, array)


def test_first_rows_are_read_without_the_rest():
    content = saved(np.arange(60, dtype=np.int16).reshape(10, 6))
    file = io.BytesIO(content[:-70])  # of the last five rows and more nothing is there
    header = read_header(file)
    assert (str(header), header.row_bytes, header.nbytes) == ("int16 (10, 6)", 12, 120)
    np.testing.assert_array_equal(read_rows(file, header, 4), np.arange(24).reshape(4, 6))


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"

BAD = {
    "nothing": b"",
    "only the magic": b"\x93NUMPY",
    "another magic": b"\x93NUMPZ\x01\x00" + bytes(20),
    "version 4": with_header(GOOD, bytes(8), b"\x04\x00"),
    "header cut": with_header(GOOD)[:20],
    "a long header": with_header(GOOD + " " * MAX_HEADER_BYTES, bytes(8)),
    "a header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + GOOD.encode(),
    "no dictionary": with_header("((((((("),
    "deep": with_header("(" * 4000),
    "code": with_header("__import__('os').system('true')"),
    "no shape": with_header("{'descr': '<f4', 'fortran_order': False}"),
    "data cut": with_header(GOOD, bytes(7)),
    "data over": with_header(GOOD, bytes(9)),
    "a promise of terabytes": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 40, ), }".replace("1 << 40", str(1 << 40))),
    "a product beyond all": with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(1 << 40,) * 8}, }}"),
    "negative": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", bytes(8)),
    "rank": with_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(1,) * 9}, }}", bytes(4)),
    "a true size": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }", bytes(4)),
    "objects": saved(np.array([{}], object), allow_pickle=True),
    "records": saved(np.zeros(2, [("a", "<f4")])),
    "complex": saved(np.zeros(2, np.complex64)),
    "dates": saved(np.zeros(2, "datetime64[s]")),
    "an archive": b"PK\x03\x04" + bytes(40),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_anything_else_is_refused_in_one_line(what):
    with pytest.raises(RemoteProtocolError, match=r"not an \.npy array: ") as caught:
        read_array(BAD[what])
    assert caught.value.reason == "encoding"
    assert "\n" not in str(caught.value)
    assert "numpy.save" in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_read_or_refused(data):
    content = bytearray(saved(np.arange(12, dtype=np.float32).reshape(3, 4)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(RemoteProtocolError):
        read_array(bytes(content[: data.draw(st.integers(0, len(content)))]))
