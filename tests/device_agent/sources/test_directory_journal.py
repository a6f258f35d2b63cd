"""Which files are done with though they are still there: over restarts, crashes and failing disks."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from folder_source import Clock, Told

from device_agent.sources.directory import journal
from device_agent.sources.directory.identity import FileState
from device_agent.sources.directory.journal import Journal, SettledFile


def settled(name, request="r", place="done"):
    return SettledFile(name=name, state=FileState(1, 2, 3), request=request, place=place)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "files.journal"


def load(path, told, is_there=lambda file: True, clock=None):
    made = Journal(path, told, clock or Clock())
    return made, made.load(is_there)


def test_what_was_noted_is_there_after_a_crash(path, told):
    first, nothing = load(path, told)
    assert nothing == []
    assert not path.exists(), "nothing is written before there is something to write"
    files = [settled("a"), settled("b\n\udcff", "x", "failed")]
    first.note(files)
    _, found = load(path, told)  # the first was never closed
    assert found == files
    assert told.events == []


def test_the_last_record_of_a_name_counts_and_what_was_put_away_is_forgotten(path, told):
    first, _ = load(path, told)
    first.note([settled("a", "old"), settled("b")])
    first.note([settled("a", "new")])
    second, found = load(path, told, lambda file: file.name == "a")
    assert found == [settled("a", "new")]
    assert second.get("a", "new") == settled("a", "new")
    assert second.get("a", "old") is None
    second.drop(settled("a", "old"))
    assert second.get("a", "new") is not None, "another file of the name"
    second.drop(settled("a", "new"))
    second.drop(settled("b"))
    assert second.get("b", "r") is None
    assert len(second) == 0


@pytest.mark.parametrize("left", [0, 1, 5, 10])
def test_a_record_that_was_cut_short_costs_only_itself(path, told, left):
    first, _ = load(path, told)
    first.note([settled("a")])
    whole = path.stat().st_size
    first.note([settled("b")])
    os.truncate(path, whole + left)
    second, found = load(path, told)
    assert [file.name for file in found] == ["a"]
    second.note([settled("c")])
    assert [file.name for file in load(path, told)[1]] == ["a", "c"]


@pytest.mark.parametrize(
    "garbage", [b"\xc1" * 50, b"\xff" * 10_000, b"\x93\x01\x02\x03", b"\xdd\xff\xff\xff\xff", b"hello"]
)
def test_garbage_costs_only_what_follows_it(path, told, garbage):
    first, _ = load(path, told)
    first.note([settled("a")])
    with path.open("ab") as file:
        file.write(garbage)
    assert [file.name for file in load(path, told)[1]] == ["a"]


def test_damage_is_told(path, told):
    load(path, told)[0].note([settled("a")])
    path.write_bytes(path.read_bytes() + b"\xc1")
    load(path, told)
    assert told.lines("cannot be read to its end (damaged)")


def test_a_pipe_in_its_place_is_not_waited_for(path, told):
    path.parent.mkdir()
    os.mkfifo(path)
    made, found = load(path, told)
    assert found == []
    assert told.lines("it is a pipe, not a file")
    made.note([settled("a")])
    assert [file.name for file in load(path, told)[1]] == ["a"]


def test_it_stays_small(path, told, monkeypatch):
    monkeypatch.setattr(journal, "LIMIT_BYTES", 1000)
    made, _ = load(path, told)
    made.note([settled("kept")])
    for number in range(1000):
        made.note([settled(f"{number}")])
        made.drop(settled(f"{number}"))
        assert path.stat().st_size <= 1100
    assert "kept" in [file.name for file in load(path, told)[1]]


def test_at_its_limit_no_more_should_be_read(path, told, monkeypatch):
    monkeypatch.setattr(journal, "MAX_FILES", 3)
    made, _ = load(path, told)
    made.note([settled("a"), settled("b")])
    assert not made.is_full
    made.note([settled("c")])
    assert made.is_full
    made.drop(settled("a"))
    assert not made.is_full


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_fails_is_told_once_and_again_when_it_works(path, told, monkeypatch, number):
    clock = Clock()
    made, _ = load(path, told, clock=clock)
    made.note([settled("a")])

    def fail(file, content):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(journal, "_write_all", fail)
    made.note([settled("b")])
    clock.sleep(10)
    made.note([settled("c")])
    assert len(told.events) == 1
    assert os.strerror(number) in told.events[0][1]
    assert "correct state_dir" in told.events[0][2]
    assert made.get("b", "r") is not None, "it is still known"
    monkeypatch.undo()
    clock.sleep(1)
    made.note([settled("d")])
    assert len(told.events) == 1, "not tried again at once"
    clock.sleep(3)
    made.note([settled("e")])
    assert told.events[1][1].endswith("is written again")
    assert [file.name for file in load(path, told)[1]] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("how", ["deleted", "replaced", "folder deleted"])
def test_a_journal_that_others_take_away_is_written_anew(path, told, how):
    clock = Clock()
    made, _ = load(path, told, clock=clock)
    made.note([settled("a")])
    path.unlink()
    if how == "replaced":
        path.write_bytes(b"")
    elif how == "folder deleted":
        path.parent.rmdir()
    made.note([settled("b")])
    clock.sleep(4)
    made.note([settled("c")])
    assert [file.name for file in load(path, told)[1]] == ["a", "b", "c"]
    assert len(told.events) == 2


def test_a_state_dir_that_is_no_folder_is_told(tmp_path, told):
    (tmp_path / "state").write_text("")
    made, _ = load(tmp_path / "state" / "files.journal", told)
    made.note([settled("a")])
    made.close()
    assert len(told.events) == 1
    assert Path(tmp_path / "state").is_file()


def test_what_is_gone_may_be_back_with_its_stick(path, told, monkeypatch):
    made, _ = load(path, told)
    made.note([settled("a"), settled("b")])
    made.note_absent("a")
    made.note_absent("never there")
    assert len(made) == 1
    assert made.get("a", "r") is not None
    again, found = load(path, told, lambda file: file.name == "b")
    assert [file.name for file in found] == ["b"]
    assert again.get("a", "r") is not None
    again.note([settled("a")])
    assert len(again) == 2
    monkeypatch.setattr(journal, "MAX_FILES", 1)
    again.note_absent("a")
    again.note_absent("b")
    assert (again.get("a", "r"), again.get("b", "r") is not None) == (None, True), "at its limit"
