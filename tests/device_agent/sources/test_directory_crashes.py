"""A folder of inputs through kills, restarts, and disks that fail or go away."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest
from folder_source import QUIET_S, Folder, picture

from device_agent.sources.directory import (
    identity,
    journal,
    put_away,
)
from device_agent.sources.directory.put_away import LEAVING, rename_new
from distree.messages.events import EventKind


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


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
