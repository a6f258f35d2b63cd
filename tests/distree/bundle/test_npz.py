"""Archives of arrays are read within bounds, whatever their headers declare."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from distree.bundle.npz import names_in_npz, read_npz
from distree.errors import RemoteProtocolError


def saved(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return io.BytesIO(file.getvalue())


def archive_of(content, name="a.npy"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file


def headed(text, data=b""):
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def test_arrays_come_back_by_name():
    given = {"a": np.arange(12).reshape(3, 4), "b": np.array(["x", "yz"]), "c": np.asfortranarray(np.eye(3))}
    assert names_in_npz(saved(**given)) == ("a", "b", "c")
    found = read_npz(saved(**given), 1 << 20)
    assert found.keys() == given.keys()
    assert all(np.array_equal(found[name], array) for name, array in given.items())
    assert read_npz(saved(**given), 1 << 20, ("c", "none")).keys() == {"c"}
    assert np.array_equal(read_npz(saved(**given), 1 << 20, ("a",), rows=2)["a"], given["a"][:2])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (headed("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}"), "takes more memory"),
        (headed("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", b"pickle"), "contains object values"),
        (headed("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,)}"), "contains records"),
        (headed("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}"), "its header is damaged"),
        (headed("{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}", bytes(8)), "it is cut off"),
        (headed("{'descr': '<U99999999', 'fortran_order': False, 'shape': (9,)}"), "takes more memory"),
        (headed("(" * 100), "its header is damaged"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "is not supported"),
        (b"\x80\x04\x95pickle", "its first bytes"),
    ],
)
def test_headers_are_not_believed(content, why):
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError) as caught:
            read_npz(archive_of(content), 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    assert why in caught.value.detail
    assert caught.value.detail.startswith("a: ")


def test_all_arrays_together_are_bounded():
    given = {f"a{k}": np.zeros(100_000, np.uint8) for k in range(20)}
    assert len(read_npz(saved(**given), 2_000_000)) == 20
    with pytest.raises(RemoteProtocolError, match="more memory than is allowed"):
        read_npz(saved(**given), 1_999_999)


def test_a_bomb_of_zeros_is_refused_by_its_size():
    bomb = saved(a=np.zeros(64 << 20, np.uint8))
    assert len(bomb.getvalue()) < 100_000
    with pytest.raises(RemoteProtocolError, match="more memory than is allowed"):
        read_npz(bomb, 1 << 20)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_what_is_no_archive_is_told_in_a_line(content):
    with pytest.raises(RemoteProtocolError, match=r"not a readable \.npz archive: it is not a zip file") as caught:
        read_npz(io.BytesIO(content), 1 << 20)
    assert caught.value.remedy == "save it again with numpy.savez"
