"""Files in a folder that are no inputs, and recordings that are several."""

from __future__ import annotations

import errno
import io
import os
import socket

import numpy as np
import pytest
from folder_source import QUIET_S, SHAPE, Folder, picture
from input_bundles import HOP, SAMPLES, sound_bundle, wav

from device_agent.sources.directory import (
    identity,
)
from device_agent.sources.directory.watch import PATIENCE_S
from distree.bundle.windows import count_of
from distree.errors import RemoteProtocolError


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


# ---------------------------------------------------------------- what is no input


def archive(**arrays):
    with io.BytesIO() as file:
        np.savez(file, **arrays)
        return file.getvalue()


def saved(array, **options):
    with io.BytesIO() as file:
        np.save(file, array, **options)
        return file.getvalue()


def huge_npy():
    """A header that promises more than any board has."""
    with io.BytesIO() as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 45,)})
        return file.getvalue()


BAD_FILES = {
    "cut.npy": (b"\x93NUMPY\x01\x00", "encoding"),
    "garbage.npy": (b"\x00\x01garbage", "image"),
    "header.npy": (b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((((\n", "encoding"),
    "archive.npy": (archive(input=np.zeros(SHAPE, np.uint8)), "image"),
    "broken-archive.npy": (b"PK\x03\x04" + b"\x00" * 40, "image"),
    "huge.npy": (huge_npy(), "encoding"),
    "pickle.npy": (saved(np.array([{}], object), allow_pickle=True), "encoding"),
    "shape.npy": (saved(np.zeros((3, 3), np.uint8)), "shape"),
    "dtype.npy": (saved(np.zeros(SHAPE, np.float32)), "dtype"),
    "broken.png": (b"\x89PNG\r\n\x1a\n and no more", "image"),
    "text.txt": (b"hello", "image"),
    "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "image"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_no_input_moves_to_failed_and_the_next_is_seen(folder, name):
    content, reason = BAD_FILES[name]
    folder.start()
    folder.put(name, content)
    folder.put("zz-good.npy")
    folder.turn()
    assert [(who, why) for who, why, _ in folder.sink.rejected] == [(name, reason)]
    assert folder.names("failed") == [name]
    assert folder.sink.names() == ["zz-good.npy"]


def test_what_lay_there_and_is_no_input_is_given_time(folder):
    folder.put("bad.npy", b"hello")
    folder.start()
    folder.pass_time(PATIENCE_S - 5)
    assert folder.sink.rejected == []
    folder.pass_time(10)
    assert [name for name, _, _ in folder.sink.rejected] == ["bad.npy"]
    assert folder.names("failed") == ["bad.npy"]


def test_an_empty_file_is_given_time_to_be_written(folder):
    folder.start()
    for name in ("later.npy", "never.npy"):
        (folder.path / name).touch()
    folder.pass_time(PATIENCE_S / 2)
    (folder.path / "later.npy").write_bytes(picture())
    folder.pass_time(PATIENCE_S)
    assert folder.sink.names() == ["later.npy"]
    assert [name for name, _, _ in folder.sink.rejected] == ["never.npy"]


def test_everything_that_is_no_file_moves_to_failed_and_nothing_hangs(folder, tmp_path):
    os.mkfifo(folder.path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder.path / "socket"))
        (tmp_path / "elsewhere").mkdir()
        (folder.path / "link to a folder").symlink_to(tmp_path / "elsewhere")
        (folder.path / "link to nothing").symlink_to("nothing")
        (folder.path / "device").symlink_to("/dev/zero")
        folder.start()
        folder.pass_time(QUIET_S)
    what = {name: detail.split(",")[0] for name, reason, detail in folder.sink.rejected if reason == "kind"}
    assert what == {
        "pipe": "is a pipe",
        "socket": "is a socket",
        "link to a folder": "is a folder",
        "link to nothing": "is a symbolic link to nothing",
        "device": "is a device",
    }
    assert folder.names() == []
    assert sorted(path.name for path in (folder.path / "failed").iterdir()) == sorted(what)
    assert (tmp_path / "elsewhere").is_dir()


def test_links_to_files_are_read_and_leave(folder, tmp_path):
    (tmp_path / "outside.npy").write_bytes(picture(7))
    (folder.path / "link.npy").symlink_to(tmp_path / "outside.npy")
    os.link(tmp_path / "outside.npy", folder.path / "hard.npy")
    folder.start()
    folder.pass_time(QUIET_S)
    assert folder.sink.values() == [7, 7]
    folder.answer()
    assert folder.names("done") == ["hard.npy", "link.npy"]
    assert (tmp_path / "outside.npy").read_bytes() == picture(7)


@pytest.mark.parametrize("name", ["done", "failed"])
def test_a_file_that_has_the_name_of_a_subfolder_is_refused(folder, name):
    folder.start()
    folder.put(name)
    folder.turn()
    folder.put("a.npy")
    folder.turn()
    folder.answer()
    assert [(who, why) for who, why, _ in folder.sink.rejected] == [(name, "kind")]
    assert (folder.names(), folder.names("failed"), folder.names("done")) == ([], [name], ["a.npy"])


def test_subfolders_are_not_looked_into_which_is_told(folder):
    folder.start()
    (folder.path / "2024").mkdir()
    (folder.path / "2024" / "a.npy").write_bytes(picture())
    folder.pass_time(20)
    assert folder.sink.submitted == []
    assert len(folder.sink.tell.lines("'2024'")) == 1
    assert (folder.path / "2024" / "a.npy").exists()


def test_a_file_that_may_not_be_read_is_given_time_and_holds_up_no_other(folder, monkeypatch):
    open_file = os.open

    def forbid(path, *args):
        if str(path).endswith("a.npy"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_file(path, *args)

    monkeypatch.setattr(identity.os, "open", forbid)
    folder.start()
    folder.put("a.npy")
    folder.put("b.npy")
    folder.turn()
    assert folder.sink.names() == ["b.npy"]
    folder.pass_time(PATIENCE_S + 5)
    assert folder.sink.rejected == [("a.npy", "file", "cannot be read (Permission denied)")]
    assert folder.names("failed") == ["a.npy"]


def test_a_file_whose_share_is_stale_for_a_while_is_read_in_the_end(folder, monkeypatch):
    def stale(path, flags):
        raise OSError(errno.ESTALE, "Stale file handle")

    folder.start()
    folder.put("a.npy")
    monkeypatch.setattr(identity.os, "open", stale)
    folder.pass_time(5)
    monkeypatch.undo()
    folder.pass_time(PATIENCE_S)
    assert folder.sink.names() == ["a.npy"]
    assert folder.sink.rejected == []


def test_too_large_a_file_is_refused_unread(folder, monkeypatch):
    folder.start()
    with (folder.path / ".huge").open("wb") as file:
        file.truncate(1 << 40)
    (folder.path / ".huge").rename(folder.path / "huge.npy")
    folder.turn()
    assert [(name, reason) for name, reason, _ in folder.sink.rejected] == [("huge.npy", "size")]
    assert folder.names("failed") == ["huge.npy"]


def test_a_refused_name_may_be_used_again(folder):
    folder.start()
    folder.put("a.npy", b"hello")
    folder.turn()
    folder.put("a.npy", picture(3))
    folder.turn()
    assert folder.sink.values() == [3]


# ---------------------------------------------------------------- recordings of several windows


@pytest.fixture
def sounds(tmp_path):
    return Folder(tmp_path, sound_bundle(tmp_path / "sound").manifest)


def recording(windows):
    return wav(np.arange(SAMPLES + HOP * (windows - 1)))


def test_a_recording_is_its_windows_and_answered_when_all_are(sounds):
    sounds.start()
    sounds.sink.on_submit = lambda request: setattr(sounds.sink, "room", 5)
    sounds.put("clip.wav", recording(3))
    sounds.turn()
    assert sounds.sink.names() == ["clip.wav@0s", "clip.wav@0.015s", "clip.wav@0.03s"]
    assert sounds.sink.values() == [0, HOP, 2 * HOP]
    requests = [request for _, _, request in sounds.sink.submitted]
    assert [count_of(request) for request in requests] == [(requests[0].removesuffix("~1/3"), 3)] * 3
    assert all(len(request) <= 64 for request in requests)
    sounds.answer(requests[0], requests[2])
    assert sounds.names() == ["clip.wav"]
    sounds.answer(requests[1])
    assert sounds.names("done") == ["clip.wav"]


def test_a_recording_waits_for_room_window_by_window_and_the_rest_is_taken_by_the_next_run(sounds):
    sounds.put("clip.wav", recording(3))
    sounds.start()
    sounds.sink.room = 2
    sounds.stop.set()  # as if the agent stopped while it waits for the third
    sounds.pass_time(QUIET_S)
    assert len(sounds.sink.submitted) == 2
    sounds.answer()
    assert sounds.names() == ["clip.wav"]
    sounds.stop.clear()
    sounds.start()
    sounds.pass_time(QUIET_S)
    sounds.answer()
    assert sounds.names("done") == ["clip.wav"]


def test_a_file_of_too_many_windows_is_refused(sounds):
    sounds.start()
    sounds.put("day.wav", recording(1001))
    sounds.turn()
    assert sounds.sink.rejected == [("day.wav", "size", "the recording has 1001 windows, but at most 1000 are read")]


def test_late_answers_to_a_refused_recording_finish_no_other_file_of_its_name(sounds):
    sounds.start()
    windows = iter(range(9))

    def refuse_the_second(request):
        if next(windows) == 1:
            raise RemoteProtocolError("value", "not this window", "fix what produced it")

    sounds.sink.on_submit = refuse_the_second
    sounds.put("clip.wav", recording(3))
    sounds.turn()
    assert sounds.names("failed") == ["clip.wav"]
    sounds.put("clip.wav", recording(2))
    sounds.turn()
    early, *others = [request for _, _, request in sounds.sink.submitted]
    sounds.answer(early, others[0])
    assert sounds.names() == ["clip.wav"]
    sounds.answer(others[1])
    assert sounds.names("done") == ["clip.wav"]
    assert not sounds.source._files
