"""How files leave the folder, and how many are kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from folder_source import Clock, Told, picture

from device_agent.sources.directory import put_away, retention
from device_agent.sources.directory.identity import look, read
from device_agent.sources.directory.journal import SettledFile
from device_agent.sources.directory.put_away import LONGEST_RETRY_S, SETTLE_S, PutAway, rename_new
from device_agent.sources.directory.retention import Retention

MOST = 1 << 20


class Leaving:
    """A folder from which files are put away."""

    def __init__(self, folder, **changes):
        self.folder = folder
        self.told, self.clock, self.stays = Told(), Clock(), []
        kept = {place: Retention(folder / place, 1000, 1 << 30, self.told) for place in ("done", "failed")}
        self.put_away = PutAway(
            folder,
            delete=changes.pop("delete", False),
            kept=kept,
            most_bytes=MOST,
            tell=self.told,
            note_stays=self.stays.append,
            clock=self.clock,
        )

    def write(self, name, value=0):
        (self.folder / name).write_bytes(picture(value))

    def settled(self, name, place="done"):
        """What is to be put away: the file as it is now."""
        found = read(self.folder / name, name, MOST)
        return SettledFile(name=name, state=found.state, request=found.request, place=place)

    def add(self, name, value=0, place="done"):
        self.write(name, value)
        self.put_away.add(self.settled(name, place))

    def turn(self):
        outcomes = self.put_away.turn()
        self.clock.sleep(SETTLE_S)
        return [(file.name, outcome) for file, outcome in (*outcomes, *self.put_away.turn())]

    def names(self, *subfolder):
        where = self.folder.joinpath(*subfolder)
        return sorted(path.name for path in where.iterdir() if not path.is_dir()) if where.is_dir() else []


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    return path


@pytest.fixture
def leaving(folder):
    return Leaving(folder)


def fail(monkeypatch, target, number=errno.EROFS):
    """Have renames to below a folder fail; return the list of what was tried."""
    tried = []

    def rename(source, to):
        if Path(to).is_relative_to(target):
            tried.append(Path(to).name)
            raise OSError(number, os.strerror(number))
        rename_new(source, to)

    monkeypatch.setattr(put_away, "rename_new", rename)
    return tried


def test_files_go_where_they_belong(leaving):
    leaving.add("a.npy", 1)
    leaving.add("b.npy", 2, "failed")
    assert leaving.turn() == [("a.npy", "away"), ("b.npy", "away")]
    assert (leaving.folder / "done" / "a.npy").read_bytes() == picture(1)
    assert (leaving.folder / "failed" / "b.npy").read_bytes() == picture(2)
    assert leaving.put_away.due_at() == float("inf")


def test_answered_files_are_deleted_where_that_is_wanted_and_refused_ones_are_not(folder):
    leaving = Leaving(folder, delete=True)
    leaving.add("a.npy")
    leaving.add("b.npy", place="failed")
    leaving.turn()
    assert (leaving.names(), leaving.names("done"), leaving.names("failed")) == ([], [], ["b.npy"])


def test_files_of_one_name_all_stay(leaving):
    for value in range(4):
        leaving.add("a.npy", value)
        leaving.turn()
    leaving.add("b", 7)
    leaving.turn()
    leaving.add("b", 8)
    leaving.turn()
    kept = [path.read_bytes() for path in (leaving.folder / "done").iterdir()]
    assert sorted(kept) == sorted(map(picture, (0, 1, 2, 3, 7, 8)))
    assert all(name.endswith(".npy") for name in leaving.names("done") if name.startswith("a"))


def test_the_same_file_twice_stays_twice(leaving):
    for _ in range(3):
        leaving.write("a.npy")
        os.utime(leaving.folder / "a.npy", ns=(1, 1))
        leaving.put_away.add(leaving.settled("a.npy"))
        leaving.turn()
    assert len(leaving.names("done")) == 3


@pytest.mark.parametrize("name", ["x" * 251 + ".npy", "ü" * 125 + ".npy", "." + "x" * 254, "new\nline", "\udcff.npy"])
def test_any_name_that_a_file_can_have_can_be_put_away_twice(leaving, name):
    for value in (1, 2):
        leaving.add(name, value)
        assert leaving.turn() == [(name, "away")]
    assert len(list((leaving.folder / "done").iterdir())) == 2


@pytest.mark.parametrize("delete", [False, True])
def test_what_was_overwritten_before_is_left_alone(folder, delete):
    leaving = Leaving(folder, delete=delete)
    leaving.add("a.npy", 1)
    leaving.write("a.npy", 2)
    assert leaving.turn() == [("a.npy", "replaced")]
    assert (folder / "a.npy").read_bytes() == picture(2)
    assert not leaving.names("done")


@pytest.mark.parametrize("delete", [False, True])
def test_what_was_overwritten_in_the_same_instant_goes_back(folder, delete):
    leaving = Leaving(folder, delete=delete)
    leaving.add("a.npy", 1)
    at = (folder / "a.npy").stat()
    leaving.write("a.npy", 2)
    os.utime(folder / "a.npy", ns=(at.st_atime_ns, at.st_mtime_ns))
    assert leaving.turn() == [("a.npy", "returned")]
    assert (folder / "a.npy").read_bytes() == picture(2)


def between_look_and_move(monkeypatch, act):
    """Have something happen after the file was looked at and before it is moved, once."""
    rename, acts = os.rename, [act]

    def late(source, target):
        if acts:
            acts.pop()()
        rename(source, target)

    monkeypatch.setattr(put_away, "rename", late)


@pytest.mark.parametrize("delete", [False, True])
def test_what_was_overwritten_between_look_and_move_goes_back(folder, monkeypatch, delete):
    leaving = Leaving(folder, delete=delete)
    leaving.add("a.npy", 0)
    leaving.turn()
    leaving.add("a.npy", 1)
    (folder / ".new").write_bytes(picture(2))
    between_look_and_move(monkeypatch, lambda: (folder / ".new").rename(folder / "a.npy"))
    assert leaving.turn() == [("a.npy", "returned")]
    assert (folder / "a.npy").read_bytes() == picture(2)


def test_what_took_the_place_of_a_file_that_could_not_be_read_goes_back(folder, monkeypatch):
    leaving = Leaving(folder)
    leaving.write("huge.npy", 1)
    state = look(folder / "huge.npy")
    leaving.put_away.add(SettledFile(name="huge.npy", state=state, request="", place="failed"))
    (folder / put_away.LEAVING).mkdir()
    (folder / ".new").write_bytes(picture(2))
    between_look_and_move(monkeypatch, lambda: (folder / ".new").rename(folder / "huge.npy"))
    assert leaving.turn() == [("huge.npy", "returned")]
    assert (folder / "huge.npy").read_bytes() == picture(2)


def test_a_writer_that_is_at_it_finds_its_file_under_its_name(folder, monkeypatch):
    leaving = Leaving(folder)
    leaving.add("a.npy", 1)
    writers = []
    between_look_and_move(monkeypatch, lambda: writers.append((folder / "a.npy").open("wb", buffering=0)))
    assert leaving.turn() == [("a.npy", "returned")]
    writers[0].write(picture(2))
    assert (folder / "a.npy").read_bytes() == picture(2)


def test_what_cannot_go_back_because_a_newer_one_is_there_was_overwritten(folder, monkeypatch):
    leaving = Leaving(folder)
    leaving.add("a.npy", 1)
    between_look_and_move(monkeypatch, lambda: leaving.write("a.npy", 2))
    holds = leaving.put_away._holds

    def slow(hidden, file):
        leaving.write("a.npy", 3)
        return holds(hidden, file)

    monkeypatch.setattr(leaving.put_away, "_holds", slow)
    assert leaving.turn() == [("a.npy", "overwritten")]
    assert (folder / "a.npy").read_bytes() == picture(3)
    assert leaving.names("done") == leaving.names(put_away.LEAVING) == []


def test_what_was_taken_away_meanwhile_is_gone(folder, monkeypatch):
    leaving = Leaving(folder)
    leaving.add("a.npy")
    (folder / "a.npy").unlink()
    leaving.add("b.npy")
    between_look_and_move(monkeypatch, lambda: (folder / "b.npy").unlink())
    assert leaving.turn() == [("a.npy", "gone"), ("b.npy", "gone")]


def test_what_a_crash_left_on_its_way_goes_back_unless_there_is_a_newer_one(leaving):
    hidden = leaving.folder / put_away.LEAVING
    hidden.mkdir()
    (hidden / "a.npy").write_bytes(picture(1))
    (hidden / "b.npy").write_bytes(picture(1))
    leaving.write("b.npy", 2)
    leaving.put_away.restore()
    assert (leaving.folder / "a.npy").read_bytes() == picture(1)
    assert (leaving.folder / "b.npy").read_bytes() == picture(2)
    assert not hidden.exists()
    leaving.put_away.restore()


# ---------------------------------------------------------------- links


def test_a_link_leaves_and_its_target_stays(leaving, tmp_path):
    (tmp_path / "target.npy").write_bytes(picture(1))
    for name, target in (("absolute", tmp_path / "target.npy"), ("relative", "../target.npy")):
        (leaving.folder / name).symlink_to(target)
        leaving.put_away.add(leaving.settled(name))
    assert leaving.turn() == [("absolute", "away"), ("relative", "away")]
    for name in ("absolute", "relative"):
        assert (leaving.folder / "done" / name).is_symlink()
        assert (leaving.folder / "done" / name).read_bytes() == picture(1)
    assert (tmp_path / "target.npy").exists()


def test_other_names_of_a_file_stay(leaving, tmp_path):
    (tmp_path / "other.npy").write_bytes(picture(1))
    for name in ("a", "b"):
        os.link(tmp_path / "other.npy", leaving.folder / name)
        leaving.put_away.add(leaving.settled(name))
    assert leaving.turn() == [("a", "away"), ("b", "away")]
    assert leaving.names("done") == ["a", "b"]
    assert (tmp_path / "other.npy").exists()


# ---------------------------------------------------------------- where it fails


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.EIO])
def test_what_fails_is_told_once_and_tried_ever_more_rarely_until_it_works(leaving, monkeypatch, number):
    tried = fail(monkeypatch, leaving.folder / "done", number)
    leaving.add("a.npy")
    for _ in range(1000):
        assert leaving.turn() == []
        leaving.clock.sleep(1.0)
    assert 15 <= len(tried) <= 1000 / LONGEST_RETRY_S + 10
    assert leaving.names() == ["a.npy"]
    assert {file.name for file in leaving.stays} == {"a.npy"}
    (event,) = leaving.told.events
    assert os.strerror(number) in event[1]
    assert event[2]
    monkeypatch.undo()
    leaving.clock.sleep(LONGEST_RETRY_S)
    assert leaving.turn() == [("a.npy", "away")]
    assert leaving.told.events[1][1].endswith("are put away again")
    fail(monkeypatch, leaving.folder / "done", number)
    leaving.add("b.npy")
    leaving.turn()
    assert len(leaving.told.events) == 3, "told anew"


def test_while_it_fails_few_files_are_taken_out_and_all_leave_once_it_works(leaving, monkeypatch):
    fail(monkeypatch, leaving.folder / "done")
    for number in range(100):
        leaving.add(f"{number:02}.npy", number)
    leaving.turn()
    leaving.stays.clear()
    for _ in range(5):
        leaving.clock.sleep(LONGEST_RETRY_S)
        leaving.turn()
    assert len(leaving.names()) == 100
    assert len(leaving.stays) <= 15
    monkeypatch.undo()
    leaving.clock.sleep(LONGEST_RETRY_S)
    for _ in range(10):
        leaving.turn()
    assert len(leaving.names("done")) == 100
    assert leaving.put_away.due_at() == float("inf")


def test_one_that_cannot_be_moved_does_not_hold_up_the_others_for_ever(leaving, monkeypatch):
    rename = os.rename

    def sticky(source, target):
        if "stuck" in str(source):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        rename(source, target)

    monkeypatch.setattr(put_away, "rename", sticky)
    for number in range(5):
        leaving.add(f"stuck{number}.npy")
    leaving.add("a.npy")
    gone = []
    for _ in range(10):
        gone += leaving.turn()
        leaving.clock.sleep(LONGEST_RETRY_S)
    assert gone == [("a.npy", "away")]


def test_done_may_be_a_link_to_a_folder_on_another_file_system(leaving, monkeypatch, tmp_path):
    archive = tmp_path / "archive"
    archive.mkdir()
    (leaving.folder / "done").symlink_to(archive)

    def rename(source, to):
        if Path(to).parent.resolve() == archive and Path(source).parent.resolve() != archive:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename_new(source, to)

    monkeypatch.setattr(put_away, "rename_new", rename)
    for value in (1, 2):
        leaving.add("a.npy", value)
        changed = (leaving.folder / "a.npy").stat().st_mtime_ns
        assert leaving.turn() == [("a.npy", "away")]
    assert sorted(path.read_bytes() for path in archive.iterdir()) == sorted(map(picture, (1, 2)))
    assert changed in {path.stat().st_mtime_ns for path in archive.iterdir()}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second file system to be sure of")
def test_done_may_really_be_on_another_file_system(leaving):
    archive = Path("/dev/shm") / f"distree-test-{os.getpid()}"
    archive.mkdir()
    try:
        (leaving.folder / "done").symlink_to(archive)
        for value in (1, 2):
            leaving.add("a.npy", value)
            leaving.turn()
        assert sorted(path.read_bytes() for path in archive.iterdir()) == sorted(map(picture, (1, 2)))
    finally:
        for path in archive.iterdir():
            path.unlink()
        archive.rmdir()


def test_a_copy_that_fails_leaves_nothing_behind(leaving, monkeypatch, tmp_path):
    fail(monkeypatch, leaving.folder / "done", errno.EXDEV)
    (leaving.folder / "done").mkdir()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(put_away.os, "fsync", full)
    leaving.add("a.npy")
    assert leaving.turn() == []
    assert list((leaving.folder / "done").iterdir()) == []
    assert leaving.names() == ["a.npy"]
    assert "No space left" in leaving.told.events[0][1]


@pytest.mark.parametrize("what", ["a file", "a link to nothing"])
def test_a_place_that_is_no_folder_is_told(leaving, what):
    place = leaving.folder / "done"
    place.write_text("") if what == "a file" else place.symlink_to("nothing")
    leaving.add("a.npy")
    assert leaving.turn() == []
    assert (leaving.folder / "a.npy").exists()
    assert "Not a directory" in leaving.told.events[0][1]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_file_systems_that_cannot_rename_without_replacing_replace_nothing_either(tmp_path, monkeypatch, number):
    def unsupported(*args):
        put_away.ctypes.set_errno(number)
        return -1

    class Libc:
        renameat2 = staticmethod(unsupported)

    monkeypatch.setattr(put_away, "_libc", Libc)
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        rename_new(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"
    rename_new(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "a"


# ---------------------------------------------------------------- how many are kept


class Kept:
    def __init__(self, folder, files=1000, size=1 << 30):
        self.folder = folder
        self.told = Told()
        self.kept = Retention(folder, files, size, self.told)

    def put(self, name, size=10):
        self.folder.mkdir(exist_ok=True)
        (self.folder / name).write_bytes(b"x" * size)
        self.kept.note(name, size)
        while self.kept.turn():
            pass

    def names(self):
        return sorted(path.name for path in self.folder.iterdir())


def test_the_oldest_go_first_by_count_and_by_size(tmp_path):
    by_count = Kept(tmp_path / "count", files=20)
    for number in range(100):
        by_count.put(f"{number:03}")
        assert len(by_count.names()) <= 20
    assert by_count.names() == [f"{number:03}" for number in range(100 - len(by_count.names()), 100)]
    by_size = Kept(tmp_path / "size", size=1000)
    for number in range(100):
        by_size.put(f"{number:03}", 99)
        assert sum(path.stat().st_size for path in by_size.folder.iterdir()) <= 1000
    assert "099" in by_size.names()
    assert by_count.told.events
    assert "its oldest files are deleted" in by_count.told.events[0][1]


def test_the_order_is_ours_whatever_the_clock_does(tmp_path):
    kept = Kept(tmp_path / "done", files=5)
    for number in range(6):
        (kept.folder / f"{number}").parent.mkdir(exist_ok=True)
        (kept.folder / f"{number}").write_bytes(b"x")
        os.utime(kept.folder / f"{number}", ns=(10 - number, 10 - number))
        kept.kept.note(f"{number}", 1)
    kept.kept.turn()
    assert kept.names() == ["2", "3", "4", "5"]


def test_what_an_earlier_run_left_goes_before_what_this_one_put_there(tmp_path):
    kept = Kept(tmp_path / "done", files=10)
    kept.folder.mkdir()
    for number in range(15):
        (kept.folder / f"old{number:02}").write_bytes(b"x")
    kept.put("new")
    assert len(kept.names()) == 9
    assert "new" in kept.names()


def test_what_others_took_away_does_not_cost_what_is_left(tmp_path):
    kept = Kept(tmp_path / "done", files=10)
    for number in range(10):
        kept.put(f"{number:02}")
    for number in range(9):
        (kept.folder / f"{number:02}").unlink()
    for number in range(10, 18):
        kept.put(f"{number:02}")
    assert kept.names() == [f"{number:02}" for number in range(9, 18)]


def test_subfolders_and_links_are_no_trouble(tmp_path):
    kept = Kept(tmp_path / "done", files=2)
    kept.folder.mkdir()
    (kept.folder / "sub").mkdir()
    (kept.folder / "link").symlink_to(tmp_path)
    for number in range(9):
        kept.put(f"{number}")
    assert (kept.folder / "sub").is_dir()
    assert tmp_path.is_dir()
    assert not (kept.folder / "link").is_symlink(), "it was the oldest"


def test_not_too_many_are_deleted_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(retention, "_AT_ONCE", 5)
    kept = Kept(tmp_path / "done", files=10)
    kept.folder.mkdir()
    for number in range(100):
        (kept.folder / f"{number}").write_bytes(b"x")
    assert kept.kept.turn()
    assert len(kept.names()) == 95
    while kept.kept.turn():
        pass
    assert len(kept.names()) == 9


def test_a_folder_that_cannot_be_cleared_is_told_and_files_are_put_there_all_the_same(leaving, monkeypatch):
    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    tried = []
    monkeypatch.setattr(Retention, "turn", lambda self: tried.append(1) or refuse(self))
    for _ in range(10):
        leaving.add("a.npy")
        assert leaving.turn() == [("a.npy", "away")]
    assert len(tried) == 2, "both folders, and then not for a while"
    assert leaving.told.lines("cannot be kept within its limit (Permission denied)")
