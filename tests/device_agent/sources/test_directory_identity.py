"""What a file is, and what cannot be read as one."""

from __future__ import annotations

import os
import socket

import pytest
from folder_source import picture

from device_agent.sources.directory import identity
from device_agent.sources.directory.identity import FileChangedError, look, read, request_id
from distree.errors import RemoteProtocolError

MOST = 1 << 20


def test_a_file_is_known_by_its_name_its_bytes_and_its_date():
    ids = {
        request_id(name, content, mtime_ns)
        for name in ("a", "b")
        for content in (b"", b"x", b"1 a")
        for mtime_ns in (0, 1, 11)
    }
    assert len(ids) == 18
    assert request_id("a", b"x", 1) in ids
    assert all(len(one) <= 49 for one in ids)


@pytest.mark.parametrize("name", ["a" * 255, "new\nline", "\udcff\udcfe", "ü" * 100, "a b", "-rf"])
def test_a_request_id_can_be_printed_and_is_short(name):
    made = request_id(name, b"x", 1)
    assert made.isprintable()
    assert len(made) <= 49
    assert made != request_id(name + "b", b"x", 1)


def test_the_same_file_is_the_same_after_it_was_numbered_anew(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x")
    first = read(path, "a", MOST)
    changed = path.stat().st_mtime_ns
    (tmp_path / "b").write_bytes(b"x")
    (tmp_path / "b").rename(path)
    os.utime(path, ns=(changed, changed))
    again = read(path, "a", MOST)
    assert again.request == first.request
    assert again.state.inode != first.state.inode
    os.utime(path, ns=(changed + 1, changed + 1))
    assert read(path, "a", MOST).request != first.request, "the same bytes, taken anew"


@pytest.mark.parametrize("how", ["grows", "shrinks", "is touched", "changes in the same instant"])
def test_a_file_that_changes_while_it_is_read_is_not_finished(tmp_path, monkeypatch, how):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    before = path.stat()

    def meanwhile(file, most, read=identity._read):
        content = read(file, most)
        if how == "grows":
            with path.open("ab") as more:
                more.write(b"y")
        elif how == "shrinks":
            os.truncate(path, 10)
        elif how == "is touched":
            os.utime(path)
        else:
            path.write_bytes(b"z" * 1000)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return content

    monkeypatch.setattr(identity, "_read", meanwhile)
    with pytest.raises(FileChangedError):
        read(path, "a", MOST)


def test_of_a_file_that_was_cut_less_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    monkeypatch.setattr(identity, "_read", lambda file, most: b"x" * 10)
    with pytest.raises(FileChangedError):
        read(path, "a", MOST)


def test_too_large_a_file_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(identity, "_read", None)
    with pytest.raises(RemoteProtocolError, match="1099511627776 bytes exceed the limit"):
        read(path, "a", MOST)


def kinds(tmp_path):
    """Everything that is no file, by name."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link to a folder").symlink_to("folder")
    (tmp_path / "link to a pipe").symlink_to("pipe")
    (tmp_path / "link to a device").symlink_to("/dev/zero")
    (tmp_path / "link to nothing").symlink_to("nothing")
    return {
        "pipe": "is a pipe",
        "socket": "is a socket",
        "folder": "is a folder",
        "link to a folder": "is a folder",
        "link to a pipe": "is a pipe",
        "link to a device": "is a device",
        "link to nothing": "is a symbolic link to nothing",
    }


def test_what_is_no_file_is_never_opened(tmp_path, monkeypatch):
    found = kinds(tmp_path)
    monkeypatch.setattr(os, "open", None)
    for name, what in found.items():
        with pytest.raises(RemoteProtocolError, match=what) as told:
            read(tmp_path / name, name, MOST)
        assert told.value.reason == "kind"
        assert look(tmp_path / name) is not None


def test_a_link_is_followed_to_a_file(tmp_path):
    (tmp_path / "a").write_bytes(picture())
    (tmp_path / "b").symlink_to("a")
    assert read(tmp_path / "b", "b", MOST).content == picture()
    assert look(tmp_path / "b") == look(tmp_path / "a")


def test_there_may_be_nothing(tmp_path):
    assert look(tmp_path / "a") is None
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a", "a", MOST)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        read(tmp_path / "loop", "loop", MOST)
