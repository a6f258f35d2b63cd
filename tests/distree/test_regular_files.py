"""Files from anywhere: nothing but regular ones is opened, and nothing is read without a bound."""

from __future__ import annotations

import errno
import io
import os
import socket
import tracemalloc

import pytest

from distree.regular_files import open_regular, read_bounded, read_regular


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "what"),
    [(pipe, "a pipe"), (device, "a device"), (folder, "a folder"), (unix_socket, "a socket")],
)
@pytest.mark.parametrize("read", [open_regular, lambda path: read_regular(path, 100)], ids=["open", "read"])
def test_what_is_no_file_is_refused_at_once(tmp_path, make, what, read):
    path = tmp_path / "it"
    make(path)
    with pytest.raises(OSError, match=f"it is {what}, not a file"):
        read(path)


def test_what_replaces_a_file_between_the_look_and_the_opening_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "it"
    path.write_bytes(b"x")
    seen = path.stat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda _path: seen)
    with pytest.raises(OSError, match="it is a pipe"):
        open_regular(path)


def test_a_file_is_read_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 7) == b"content"
    assert read_regular(str(tmp_path / "file"), 1 << 40) == b"content"
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 7)


def test_a_sparse_file_of_ten_gigabytes_costs_nothing(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match="longer than 1,048,576 bytes") as caught:
            read_regular(path, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(("size", "most"), [(0, 0), (1, 1), (5, 9), (3 << 20, 3 << 20)])
def test_files_up_to_the_bound_are_read_whole(tmp_path, size, most):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert read_regular(tmp_path / "file", most) == content


def test_a_high_bound_takes_no_memory(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        assert len(read_regular(tmp_path / "file", 1 << 30)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_one_byte_too_many_is_noticed_even_if_the_file_grew():
    assert read_bounded(io.BytesIO(b"x" * 100), 100) == b"x" * 100
    with pytest.raises(OSError, match="longer than 99 bytes"):
        read_bounded(io.BytesIO(b"x" * 100), 99, expected_bytes=10)
