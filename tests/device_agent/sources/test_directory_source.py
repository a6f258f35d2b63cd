"""A folder of inputs as a whole: stepped by hand, on a clock of the tests' own, and once in its thread."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import threading
import time

import numpy as np
import pytest
from folder_source import SHAPE, Folder, Sink, picture
from input_bundles import HOP, SAMPLES, sound_bundle, wav

from device_agent.sources.base import PushSource
from device_agent.sources.directory import (
    DirectorySource,
    DirectorySourceConfig,
    identity,
    journal,
    put_away,
    source,
    watch,
)
from device_agent.sources.directory.put_away import LEAVING, rename_new
from device_agent.sources.directory.watch import PATIENCE_S
from distree.bundle.windows import count_of
from distree.errors import RemoteProtocolError
from distree.messages.events import EventKind, Severity

QUIET_S = 1.6
"""More than the tests' `quiet_ms`, with the looks before and after."""


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


# ---------------------------------------------------------------- the usual


def test_a_file_stays_until_it_is_answered_and_then_moves_to_done(folder):
    folder.start()
    folder.put("a.npy", picture(1))
    folder.put("b.npy", picture(2))
    folder.turn()
    assert folder.sink.names() == ["a.npy", "b.npy"]
    assert folder.sink.values() == [1, 2]
    folder.pass_time(60)
    assert folder.names() == ["a.npy", "b.npy"]
    folder.answer(folder.sink.submitted[0][2])
    assert (folder.names(), folder.names("done")) == (["b.npy"], ["a.npy"])
    folder.answer()
    folder.pass_time(60)
    assert folder.names("done") == ["a.npy", "b.npy"]
    assert len(folder.sink.submitted) == 2
    assert folder.sink.tell.events == []


def test_it_is_a_source():
    assert isinstance(DirectorySource, type)
    assert all(hasattr(DirectorySource, name) for name in ("run", "note_answered"))
    assert PushSource


def test_what_lies_there_is_taken_oldest_first(folder):
    for age, name in enumerate(("c.npy", "a.npy", "b.npy")):
        folder.put(name)
        os.utime(folder.path / name, ns=(age, age))
    folder.start()
    assert folder.sink.names() == []
    folder.pass_time(QUIET_S)
    assert folder.sink.names() == ["c.npy", "a.npy", "b.npy"]


def test_an_answered_file_is_deleted_where_that_is_wanted(folder):
    folder.start(after="delete")
    folder.put("a.npy")
    folder.turn()
    folder.answer()
    assert folder.names() == []
    assert not (folder.path / "done").exists()


def test_a_file_may_be_kept_where_it_is_and_is_answered_once(folder):
    folder.start(after="keep")
    folder.put("a.npy")
    folder.put("bad.npy", b"no picture")
    folder.turn()
    folder.answer()
    for _ in range(3):
        folder.pass_time(60)
        assert folder.names() == ["a.npy", "bad.npy"]
        assert folder.sink.submitted == [] or folder.sink.names() == ["a.npy"]
        folder.start(after="keep")
    assert (folder.sink.submitted, folder.sink.rejected) == ([], [])
    folder.put("a.npy", picture(2))
    folder.turn()
    assert folder.sink.values() == [2]
    folder.answer()


@pytest.mark.parametrize("after", ["keep", "move"])
def test_a_stick_that_is_taken_out_and_put_back_has_no_file_answered_again(folder, tmp_path, monkeypatch, after):
    def read_only(old, new):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(put_away, "rename", read_only)
    folder.start(after=after)
    folder.put("a.npy")
    folder.turn()
    folder.answer()
    for restarts in (False, True):
        folder.path.rename(tmp_path / "stick")
        folder.path.mkdir()
        if restarts:
            folder.start(after=after)
        folder.pass_time(5)
        folder.path.rmdir()
        (tmp_path / "stick").rename(folder.path)
        folder.pass_time(10)
        assert len(folder.sink.submitted) == (0 if restarts else 1)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOTCONN])
def test_a_share_that_does_not_answer_for_a_while_has_no_file_answered_again(folder, monkeypatch, number):
    folder.start(after="keep")
    folder.put("a.npy")
    folder.put("b.npy", picture(2))
    folder.turn()
    folder.answer(folder.sink.submitted[0][2])
    stat = os.stat

    def broken(path, **options):
        if str(path).startswith(str(folder.path)):
            raise OSError(number, os.strerror(number))
        return stat(path, **options)

    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "scandir"):
            patch.setattr(identity.os, name, broken)
        folder.pass_time(15)
        folder.answer(folder.sink.submitted[1][2])
        folder.pass_time(15)
    folder.pass_time(30)
    assert len(folder.sink.submitted) == 2
    assert len(folder.sink.tell.lines("cannot be read")) == 1
    folder.start(after="keep")
    folder.pass_time(30)
    assert folder.sink.submitted == []


def test_kept_files_may_be_moved_by_a_later_run(folder):
    folder.start(after="keep")
    folder.put("a.npy")
    folder.turn()
    folder.answer()
    folder.start(after="move")
    folder.turn()
    assert folder.names("done") == ["a.npy"]
    assert folder.sink.submitted == []


def test_without_room_files_wait(folder):
    folder.start()
    folder.sink.room = 0
    folder.put("a.npy")
    folder.turn()
    assert folder.sink.submitted == []
    folder.sink.room = 1
    folder.turn()
    assert folder.sink.names() == ["a.npy"]


def test_a_request_is_the_same_over_a_restart_and_another_for_a_new_file_of_the_name(folder):
    folder.put("a.npy")
    requests = []
    for _ in range(2):
        folder.start()
        folder.pass_time(QUIET_S)
        requests += [request for _, _, request in folder.sink.submitted]
    folder.put("a.npy")
    folder.turn()
    requests.append(folder.sink.submitted[-1][2])
    assert requests[0] == requests[1] != requests[2]
    assert all(len(request) <= 64 and request.isprintable() for request in requests)


def test_names_that_cannot_be_printed_are_escaped(folder):
    folder.start()
    for name in ("bell\x07.npy", "new\nline.npy", os.fsdecode(b"\xff.npy")):
        folder.put(name)
    folder.turn()
    assert folder.sink.names() == ["bell\\x07.npy", "new\\nline.npy", "\\udcff.npy"]
    folder.answer()
    assert len(folder.names("done")) == 3


# ---------------------------------------------------------------- one name, again and again


@pytest.mark.parametrize("in_place", [False, True])
def test_a_newer_picture_of_a_name_is_taken_while_the_one_before_is_under_way(folder, in_place):
    folder.start()
    write = (lambda value: (folder.path / "a.npy").write_bytes(picture(value))) if in_place else (
        lambda value: folder.put("a.npy", picture(value))
    )  # fmt: skip
    for value in range(5):
        write(value)
        folder.turn()
    assert folder.sink.values() == [0, 1, 2, 3, 4]
    folder.answer()
    assert folder.names() == []
    assert [(folder.path / "done" / name).read_bytes() for name in folder.names("done")] == [picture(4)]
    assert folder.source.overwritten == 0


@pytest.mark.parametrize("in_place", [False, True])
def test_during_an_outage_the_newest_is_kept_and_the_others_are_counted_and_told(folder, in_place):
    folder.start()
    folder.sink.room = 2
    for value in range(50):
        if in_place:
            (folder.path / "a.npy").write_bytes(picture(value))
        else:
            folder.put("a.npy", picture(value))
        folder.clock.sleep(0.1)
        folder.turn()
    assert folder.sink.values() == [0, 1]
    folder.answer(folder.sink.submitted[0][2])
    folder.sink.room = 2
    folder.turn()
    assert folder.sink.values() == [0, 1, 49]
    assert folder.source.overwritten == 47
    folder.answer()
    folder.pass_time(10)
    assert folder.names("done") == ["a.npy"]
    assert (folder.path / "done" / "a.npy").read_bytes() == picture(49)
    lines = folder.sink.tell.lines("overwritten before being read")
    assert lines[-1].endswith("47 since the start")
    assert 1 <= len(lines) <= 4, "at a bounded rate"
    assert {(kind, severity) for kind, _, _, severity in folder.sink.tell.events} == {(EventKind.SOURCE, Severity.INFO)}


def test_a_file_that_is_overwritten_in_the_moment_it_is_read_is_read_when_it_is_finished(folder, monkeypatch):
    """What is read is a part, and nothing changes while it is read; only the kernel knows that its writer is at it."""
    writers = []

    def read(path, name, most):
        if not writers:
            writers.append(path.open("wb", buffering=0))
            writers[0].write(picture(2)[:500])
        return identity.read(path, name, most)

    folder.start()
    monkeypatch.setattr(source, "read", read)
    folder.put("a.npy", picture(1))
    folder.pass_time(60)
    assert (folder.sink.submitted, folder.sink.rejected) == ([], [])
    writers[0].write(picture(2)[500:])
    writers[0].close()
    folder.turn()
    assert folder.sink.values() == [2]
    assert folder.source.overwritten == 1


def test_a_file_that_is_removed_in_the_moment_it_is_read_is_none(folder, monkeypatch):
    def read(path, name, most):
        found = identity.read(path, name, most)
        path.unlink()
        return found

    folder.start()
    monkeypatch.setattr(source, "read", read)
    folder.put("a.npy")
    folder.pass_time(60)
    assert folder.sink.submitted == []


def test_the_answer_to_an_older_picture_does_not_take_the_newer_one_away(folder):
    folder.start()
    folder.put("a.npy", picture(1))
    folder.turn()
    folder.sink.room = 0
    folder.put("a.npy", picture(2))
    folder.answer()
    folder.pass_time(5)
    assert folder.names() == ["a.npy"]
    folder.sink.room = 1
    folder.turn()
    assert folder.sink.values() == [1, 2]


def test_a_file_that_is_touched_but_not_changed_is_put_away_all_the_same(folder):
    folder.start()
    folder.put("a.npy")
    folder.turn()
    folder.sink.room = 0
    (folder.path / "a.npy").open("ab").close()
    folder.answer()
    folder.sink.room = 1
    folder.pass_time(1)
    assert folder.names("done") == ["a.npy"]
    assert len(folder.sink.submitted) == 1


def test_a_file_that_is_put_back_unchanged_is_answered_from_memory(folder, monkeypatch):
    """Something of the same date and other bytes took the place of an answered file, and is read in its turn."""
    folder.start()
    folder.put("a.npy", picture(1))
    folder.turn()
    at = (folder.path / "a.npy").stat()
    with (folder.path / "a.npy").open("r+b") as file:
        file.write(picture(2))
    os.utime(folder.path / "a.npy", ns=(at.st_atime_ns, at.st_mtime_ns))
    monkeypatch.setattr(folder.source._watch, "_kernel", None)  # which would have told
    folder.answer()
    assert folder.names() == ["a.npy"]
    folder.pass_time(5)
    assert folder.sink.values() == [1, 2]


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


# ---------------------------------------------------------------- crashes


class Killed(BaseException):
    """Stands for SIGKILL at this moment."""


def kill_at(monkeypatch, moment):
    """Raise Killed before step number `moment` of those that change the disk; return the steps so far."""
    steps = []

    def killing(what, act):
        def step(*args):
            if len(steps) == moment:
                raise Killed
            steps.append(what)
            return act(*args)

        return step

    monkeypatch.setattr(put_away, "rename", killing("rename", put_away.rename))
    monkeypatch.setattr(put_away, "rename_new", killing("rename_new", rename_new))
    monkeypatch.setattr(journal, "_write_all", killing("note", journal._write_all))
    return steps


@pytest.mark.parametrize("after", ["move", "delete", "keep"])
@pytest.mark.parametrize("moment", range(12))
def test_a_kill_at_any_moment_loses_no_file_and_answers_none_again_that_was_noted(folder, monkeypatch, after, moment):
    folder.start(after=after)
    for value in range(3):
        folder.put(f"{value}.npy", picture(value))
    folder.turn()
    with monkeypatch.context() as patch:
        steps = kill_at(patch, moment)
        try:
            folder.answer()
        except Killed:
            pass
        else:
            assert len(steps) <= moment
    folder.start(after=after)
    folder.pass_time(QUIET_S)
    noted = "note" in steps
    assert folder.sink.values() == ([] if noted else [0, 1, 2])
    folder.answer()
    folder.pass_time(1)
    kept = folder.names() if after == "keep" else folder.names("done")
    assert kept == ([] if after == "delete" else ["0.npy", "1.npy", "2.npy"])
    assert folder.names(LEAVING) == []
    folder.start(after=after)
    folder.pass_time(QUIET_S)
    assert folder.sink.submitted == []


@pytest.mark.parametrize("moment", range(4))
def test_a_kill_while_an_overwritten_file_is_put_away_loses_no_picture(folder, monkeypatch, moment):
    folder.start()
    folder.put("a.npy", picture(1))
    folder.turn()
    rename, acts = os.rename, [1]

    def overwritten_first(old, new):
        if acts:
            acts.pop()
            folder.put("a.npy", picture(2))
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(put_away, "rename", overwritten_first)
        kill_at(patch, moment)
        with contextlib.suppress(Killed):
            folder.answer()
    folder.start()
    folder.pass_time(3 * QUIET_S)
    folder.answer()
    folder.pass_time(1)
    contents = {(folder.path / "done" / name).read_bytes() for name in folder.names("done")}
    assert contents == {picture(2 if not acts else 1)}
    assert folder.names() == []


def test_a_file_that_cannot_be_moved_is_not_answered_again_now_or_after_a_restart(folder, monkeypatch):
    def read_only(old, new):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(put_away, "rename", read_only)
    folder.start()
    folder.put("a.npy")
    folder.put("bad.npy", b"hello")
    folder.turn()
    folder.answer()
    folder.pass_time(100)
    assert len(folder.sink.tell.lines("Read-only file system")) == 1
    assert len(folder.sink.submitted) == len(folder.sink.rejected) == 1
    for _ in range(2):
        folder.start()
        folder.pass_time(100)
        assert (folder.sink.submitted, folder.sink.rejected) == ([], [])
    monkeypatch.undo()
    folder.pass_time(100)
    assert (folder.names("done"), folder.names("failed")) == (["a.npy"], ["bad.npy"])


def test_a_file_system_that_numbers_its_files_anew_has_no_file_answered_again(folder):
    folder.start(after="keep")
    folder.put("a.npy")
    folder.turn()
    folder.answer()
    changed = (folder.path / "a.npy").stat().st_mtime_ns
    (folder.path / ".copy").write_bytes(picture())
    (folder.path / ".copy").rename(folder.path / "a.npy")
    os.utime(folder.path / "a.npy", ns=(changed, changed))
    folder.start(after="keep")
    folder.pass_time(60)
    assert folder.sink.submitted == []
    folder.start(after="move")
    folder.pass_time(QUIET_S)
    assert folder.names("done") == ["a.npy"]


def test_a_broken_journal_costs_nothing_but_its_promise(folder, tmp_path):
    (tmp_path / "state").write_text("no folder")
    folder.start()
    folder.put("a.npy")
    folder.turn()
    folder.answer()
    assert folder.names("done") == ["a.npy"]
    (event,) = folder.sink.tell.events
    assert event[0] is EventKind.DISK


def test_with_too_many_files_that_do_not_leave_no_more_are_read(folder, monkeypatch):
    monkeypatch.setattr(journal, "MAX_FILES", 3)
    folder.start(after="keep")
    for number in range(5):
        folder.put(f"{number}.npy", picture(number))
        folder.turn()
        folder.answer()
    assert folder.sink.values() == [0, 1, 2]
    assert len(folder.sink.tell.lines("no more are read")) == 1
    (folder.path / "0.npy").unlink()
    folder.sink.room = 1
    folder.turn()
    folder.answer()
    folder.sink.room = 9
    folder.pass_time(1)
    assert folder.sink.values() == [0, 1, 2, 3]


# ---------------------------------------------------------------- the folder itself


def test_a_folder_that_goes_and_comes_back_is_told(folder):
    folder.start()
    folder.path.rmdir()
    folder.pass_time(10)
    folder.path.mkdir()
    folder.pass_time(10)
    (kind, what, remedy, _), (_, again, _, severity) = folder.sink.tell.events
    assert kind is EventKind.SOURCE
    assert "cannot be read (No such file or directory)" in what
    assert remedy == "create the folder, or correct path"
    assert again.endswith("is there again")
    assert severity is Severity.INFO
    folder.put("a.npy")
    folder.turn()
    assert folder.sink.names() == ["a.npy"]


def test_without_inotify_it_says_so_and_looks(folder, monkeypatch):
    def none():
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(source, "Inotify", none)
    folder.start()
    folder.put("a.npy")
    folder.pass_time(QUIET_S)
    assert folder.sink.names() == ["a.npy"]
    folder.answer()
    assert folder.names("done") == ["a.npy"]
    assert len(folder.sink.tell.lines("Too many open files")) == 1
    folder.put("a.npy", picture(2))
    folder.pass_time(QUIET_S)
    assert folder.sink.values() == [0, 2]


@pytest.mark.parametrize("what", ["missing", "unreadable", "idle"])
def test_it_does_not_spin(folder, monkeypatch, what):
    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    folder.start()
    folder.put("a.npy")
    folder.turn()
    if what == "missing":
        folder.path.rename(folder.path.with_name("elsewhere"))
    elif what == "unreadable":
        monkeypatch.setattr(watch.os, "scandir", forbidden)
    for _ in range(100):
        folder.turn()
        folder.turn()  # the folder's end has it looked for at once
        due_at = min(folder.source._watch.due_at(), folder.source._put_away.due_at())
        assert due_at > folder.clock(), "everything that was due was done"
        folder.clock.sleep(0.2)
    assert len(folder.sink.tell.events) == (0 if what == "idle" else 1)


# ---------------------------------------------------------------- many


def test_thousands_of_files_are_taken_and_put_away(folder):
    for number in range(5000):
        (folder.path / f"{number:04}.npy").write_bytes(picture(number % 256))
    folder.start()
    folder.sink.room = 10_000
    began_at = time.process_time()
    folder.pass_time(QUIET_S)
    assert len(folder.sink.submitted) == 5000
    folder.answer()
    assert len(folder.names("done")) == 5000
    assert folder.names() == []
    assert time.process_time() - began_at < 60


# ---------------------------------------------------------------- in its thread


def test_it_wakes_for_files_and_answers_and_ends_with_the_last_answer(tmp_path):
    sink, folder, stop = Sink(tmp_path / "state"), tmp_path / "in", threading.Event()
    config = DirectorySourceConfig(kind="directory", path=folder, poll_interval_ms=60_000, quiet_ms=60_000)
    made = DirectorySource(config, sink)
    seen = threading.Semaphore(0)
    sink.on_submit = lambda request: seen.release()
    thread = threading.Thread(target=made.run, args=(stop,))
    thread.start()
    try:
        ends_at = time.monotonic() + 30
        while made._watch._place is None and time.monotonic() < ends_at:
            time.sleep(0.001)
        for name in ("a.npy", "b.npy"):
            (folder / name).write_bytes(picture())
            assert seen.acquire(timeout=30)
        while len(sink.submitted) < 2:
            time.sleep(0.001)
        made.note_answered(sink.submitted[0][2])
        while not (folder / "done" / "a.npy").exists() and time.monotonic() < ends_at:
            time.sleep(0.001)
        stop.set()
        made.note_answered(sink.submitted[1][2])
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert sorted(path.name for path in (folder / "done").iterdir()) == ["a.npy", "b.npy"]
