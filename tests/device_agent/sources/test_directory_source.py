"""A folder of inputs as a whole: stepped by hand, on a clock of the tests' own, and once in its thread."""

from __future__ import annotations

import errno
import os
import threading
import time

import pytest
from folder_source import QUIET_S, Folder, Sink, picture

from device_agent.sources.directory import (
    DirectorySource,
    DirectorySourceConfig,
    identity,
    put_away,
    source,
    watch,
)
from distree.messages.events import EventKind, Severity


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


def test_a_file_that_is_overwritten_in_the_moment_it_is_put_away_is_read_when_it_is_finished(folder, monkeypatch):
    writers, rename = [], put_away.rename

    def late(old, new):
        if not writers:
            writers.append((folder.path / "a.npy").open("wb", buffering=0))
            writers[0].write(picture(2)[:500])
        rename(old, new)

    folder.start()
    folder.put("a.npy", picture(1))
    folder.turn()
    monkeypatch.setattr(put_away, "rename", late)
    folder.answer()
    folder.pass_time(20)
    assert (folder.sink.values(), folder.sink.rejected, folder.names()) == ([1], [], ["a.npy"])
    writers[0].write(picture(2)[500:])
    writers[0].close()
    folder.turn()
    assert folder.sink.values() == [1, 2]
    folder.answer()
    assert (folder.path / "done" / "a.npy").read_bytes() == picture(2)


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
