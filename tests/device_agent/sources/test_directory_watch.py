"""Which files are finished, by the kernel and by looks, on a clock of the tests' own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from folder_source import Clock, picture

from device_agent.sources.directory import inotify, watch
from device_agent.sources.directory.identity import read
from device_agent.sources.directory.inotify import Inotify
from device_agent.sources.directory.watch import PATIENCE_S, Watch

QUIET_S, POLL_S = 1.0, 0.2


class Watched:
    """A watch, and what became of the files that it gave."""

    def __init__(self, folder, kernel):
        self.folder = folder
        self.clock = Clock()
        self.watch = Watch(folder, quiet_s=QUIET_S, poll_s=POLL_S, kernel=kernel, clock=self.clock)

    def finished(self):
        """Take and read all files that are finished by now; return their names."""
        self.watch.turn()
        names = []
        while (name := self.watch.take()) is not None:
            names.append(name)
            found = read(self.folder / name, name, 1 << 20)
            self.watch.note_read(name, found.state, found.request)
        return names

    def pass_time(self, seconds):
        """Let time pass in steps of polls; return the names of files that are finished meanwhile."""
        names = []
        for _ in range(round(seconds / POLL_S)):
            self.clock.sleep(POLL_S)
            names += self.finished()
        return names


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    return path


@pytest.fixture
def seen(folder):
    """A watch of which the kernel tells."""
    watched = Watched(folder, Inotify())
    watched.watch.turn()
    yield watched
    watched.watch.close()


@pytest.fixture
def blind(folder):
    """A watch that only looks, as on a network share."""
    watched = Watched(folder, None)
    watched.watch.turn()
    return watched


def overwrite(path, value):
    """Open, truncate, write, close."""
    path.write_bytes(picture(value))


def replace(path, value):
    """Write another file, and rename it over this one."""
    new = path.with_name(".new")
    new.write_bytes(picture(value))
    new.rename(path)


# ---------------------------------------------------------------- the kernel tells


@pytest.mark.parametrize("write", [overwrite, replace])
def test_a_file_is_finished_when_its_writer_is(seen, folder, write):
    write(folder / "a.npy", 1)
    assert seen.finished() == ["a.npy"]
    assert seen.pass_time(60) == []


def test_a_writer_that_pauses_has_not_finished(seen, folder):
    with (folder / "a.npy").open("wb", buffering=0) as file:
        assert seen.pass_time(60) == [], "not even begun"
        file.write(picture()[:500])
        assert seen.pass_time(60) == []
        file.write(picture()[500:])
        assert seen.pass_time(60) == []
    assert seen.finished() == ["a.npy"]


def test_a_writer_that_opens_an_old_file_again_has_not_finished(seen, folder):
    overwrite(folder / "a.npy", 1)
    assert seen.finished() == ["a.npy"]
    with (folder / "a.npy").open("r+b", buffering=0) as file:
        file.write(picture(2)[:500])
        assert seen.pass_time(60) == []
    assert seen.finished() == ["a.npy"]


@pytest.mark.parametrize("write", [overwrite, replace])
def test_what_was_overwritten_unread_is_counted(seen, folder, write):
    for value in range(5):
        write(folder / "a.npy", value)
    assert seen.finished() == ["a.npy"]
    assert seen.watch.overwritten == 4
    write(folder / "a.npy", 5)
    assert seen.finished() == ["a.npy"]
    assert seen.watch.overwritten == 4
    assert seen.watch.last_overwritten == "a.npy"


@pytest.mark.parametrize("write", [overwrite, replace])
def test_a_picture_that_was_read_before_the_kernel_told_of_it_is_counted_once(seen, folder, write):
    write(folder / "a.npy", 1)
    seen.watch.turn()
    name = seen.watch.take()
    write(folder / "a.npy", 2)
    found = read(folder / name, name, 1 << 20)
    assert seen.watch.note_read(name, found.state, found.request)
    assert seen.finished() == ["a.npy"], "looked at again, and found to be the same"
    assert seen.watch.overwritten == 1


def test_a_file_that_is_overwritten_all_the_time_keeps_its_place(seen, folder):
    for value in range(3):
        overwrite(folder / "camera.npy", value)
        overwrite(folder / f"{value}.npy", value)
    assert seen.finished() == ["camera.npy", "0.npy", "1.npy", "2.npy"]


def test_opening_it_to_read_or_to_write_nothing_is_no_news(seen, folder):
    overwrite(folder / "a.npy", 1)
    assert seen.finished() == ["a.npy"]
    (folder / "a.npy").read_bytes()
    assert seen.finished() == []
    (folder / "a.npy").open("ab").close()
    seen.watch.turn()
    name = seen.watch.take()
    found = read(folder / name, name, 1 << 20)
    assert not seen.watch.note_read(name, found.state, found.request)
    assert seen.watch.overwritten == 0


def test_the_same_bytes_again_are_a_new_picture(seen, folder):
    overwrite(folder / "a.npy", 1)
    assert seen.finished() == ["a.npy"]
    os.utime(folder / "a.npy", ns=(5, 5))
    replace(folder / "a.npy", 1)
    seen.watch.turn()
    name = seen.watch.take()
    found = read(folder / name, name, 1 << 20)
    assert seen.watch.note_read(name, found.state, found.request)


def test_what_is_taken_away_or_renamed_to_an_unfinished_name_is_not_given(seen, folder):
    overwrite(folder / "a.npy", 1)
    overwrite(folder / "b.npy", 1)
    (folder / "a.npy").unlink()
    (folder / "b.npy").rename(folder / "b.npy.part")
    assert seen.finished() == []
    (folder / "b.npy.part").rename(folder / "b.npy")
    assert seen.finished() == ["b.npy"]


def test_a_hard_link_is_finished_when_it_stays_as_it_is(seen, folder, tmp_path):
    overwrite(tmp_path / "elsewhere.npy", 1)
    os.link(tmp_path / "elsewhere.npy", folder / "a.npy")
    assert seen.finished() == []
    assert seen.pass_time(QUIET_S + 2 * POLL_S) == ["a.npy"]


def test_a_hard_link_that_somebody_reads_is_finished_all_the_same(seen, folder, tmp_path):
    overwrite(tmp_path / "elsewhere.npy", 1)
    os.link(tmp_path / "elsewhere.npy", folder / "a.npy")
    with (folder / "a.npy").open("rb"):
        assert seen.pass_time(5) == []
    assert seen.pass_time(QUIET_S + 2 * POLL_S) == ["a.npy"]


def test_what_the_kernel_could_not_tell_is_found(seen, folder, monkeypatch):
    overwrite(folder / "before.npy", 1)
    late = (folder / "open.npy").open("wb", buffering=0)
    late.write(b"x")
    assert seen.finished() == ["before.npy"]
    overwrite(folder / "missed.npy", 1)
    late.close()
    events = seen.watch._kernel.read()
    assert events
    monkeypatch.setattr(seen.watch._kernel, "read", lambda: [inotify.FolderEvent(inotify.OVERFLOW, "")])
    seen.watch.turn()
    monkeypatch.undo()
    assert sorted(seen.pass_time(QUIET_S + 2 * POLL_S)) == ["missed.npy", "open.npy"]


def test_the_queue_of_the_kernel_really_overflows(folder, tmp_path):
    watched = Watched(folder, Inotify())
    watched.watch.turn()
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    overwrite(tmp_path / "one.npy", 1)
    for number in range(most // 2 + 10):
        os.link(tmp_path / "one.npy", folder / ".x")
        (folder / ".x").unlink()
        if number == most // 2:
            overwrite(folder / "missed.npy", 1)
    assert watched.finished() == []
    assert watched.pass_time(QUIET_S + 2 * POLL_S) == ["missed.npy"]
    watched.watch.close()


def test_a_folder_that_is_made_anew_is_watched_anew(seen, folder):
    overwrite(folder / "a.npy", 1)
    assert seen.finished() == ["a.npy"]
    (folder / "a.npy").unlink()
    folder.rmdir()
    assert seen.pass_time(1) == []
    assert isinstance(seen.watch.missing, FileNotFoundError)
    folder.mkdir()
    assert seen.pass_time(1) == []
    assert seen.watch.missing is None
    overwrite(folder / "b.npy", 1)
    assert seen.finished() == ["b.npy"], "the kernel tells"


def test_a_folder_that_is_swapped_for_another_is_watched_anew(seen, folder, tmp_path):
    (tmp_path / "other").mkdir()
    overwrite(tmp_path / "other" / "a.npy", 1)
    folder.rename(tmp_path / "old")
    (tmp_path / "other").rename(folder)
    assert seen.pass_time(QUIET_S + 3 * POLL_S) == ["a.npy"]
    overwrite(folder / "b.npy", 1)
    assert seen.finished() == ["b.npy"]


def test_without_a_watch_to_spare_it_looks(folder, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Inotify, "watch", full)
    watched = Watched(folder, Inotify())
    overwrite(folder / "a.npy", 1)
    assert watched.pass_time(QUIET_S + 3 * POLL_S) == ["a.npy"]
    assert watched.watch.blind.errno == 28
    watched.watch.close()


# ---------------------------------------------------------------- only looks tell


def test_what_lies_there_is_finished_once_it_is_quiet(blind, folder):
    overwrite(folder / "a.npy", 1)
    assert blind.pass_time(QUIET_S) == []
    assert blind.pass_time(3 * POLL_S) == ["a.npy"]
    assert blind.pass_time(60) == []


@pytest.mark.parametrize("date_s", [0, -(1 << 31), 1 << 33])
def test_no_date_counts_however_wrong_it_is(blind, folder, date_s):
    overwrite(folder / "a.npy", 1)
    os.utime(folder / "a.npy", (date_s, date_s))
    assert blind.pass_time(QUIET_S + 3 * POLL_S) == ["a.npy"]


def test_a_file_that_changes_between_looks_is_not_finished(blind, folder):
    for part in range(20):
        with (folder / "a.npy").open("ab") as file:
            file.write(b"x" * (part + 1))
        assert blind.pass_time(QUIET_S - POLL_S) == []
    assert blind.pass_time(QUIET_S + 3 * POLL_S) == ["a.npy"]


def test_the_oldest_comes_first(blind, folder):
    for age, name in enumerate(("c", "a", "b")):
        overwrite(folder / name, 1)
        os.utime(folder / name, ns=(age, age))
    assert blind.pass_time(QUIET_S + 3 * POLL_S) == ["c", "a", "b"]


def test_a_name_that_is_overwritten_on_a_share_is_seen_and_counted(blind, folder):
    overwrite(folder / "a.npy", 1)
    assert blind.pass_time(QUIET_S + 3 * POLL_S) == ["a.npy"]
    replace(folder / "a.npy", 2)
    assert blind.pass_time(QUIET_S + 3 * POLL_S) == ["a.npy"]
    assert blind.watch.overwritten == 0
    replace(folder / "a.npy", 3)
    for _ in range(8):
        blind.clock.sleep(POLL_S)
        blind.watch.turn()
    replace(folder / "a.npy", 4)
    assert blind.finished() == ["a.npy"]
    assert blind.watch.overwritten == 1


def test_what_is_gone_is_told(blind, folder):
    overwrite(folder / "a.npy", 1)
    assert blind.pass_time(QUIET_S + 3 * POLL_S) == ["a.npy"]
    (folder / "a.npy").unlink()
    blind.pass_time(3 * POLL_S)
    assert blind.watch.gone == ["a.npy"]


# ---------------------------------------------------------------- files that are no inputs


def refused_after(watched, *, is_complete=True):
    """Seconds until a file that is no input is hopeless; None if it never is."""
    began_at = watched.clock()
    for _ in range(round(3 * PATIENCE_S / POLL_S)):
        watched.watch.turn()
        name = watched.watch.take()
        if name is not None and watched.watch.is_hopeless(name, is_complete=is_complete):
            return watched.clock() - began_at
        watched.clock.sleep(POLL_S)
    return None


def test_what_the_kernel_calls_finished_is_hopeless_at_once_unless_it_is_empty(seen, folder):
    overwrite(folder / "a.npy", 1)
    assert refused_after(seen) == 0.0
    overwrite(folder / "b.npy", 1)
    assert refused_after(seen, is_complete=False) == pytest.approx(PATIENCE_S, abs=3 * QUIET_S)


def test_what_was_only_quiet_is_given_time_from_its_last_change(blind, folder):
    overwrite(folder / "a.npy", 1)
    assert refused_after(blind) == pytest.approx(PATIENCE_S, abs=3 * QUIET_S)


def test_what_was_only_quiet_is_read_again_when_it_changes(blind, folder):
    (folder / "a.npy").write_bytes(picture()[:500])
    taken = 0
    for step in range(round(0.9 * PATIENCE_S / POLL_S)):
        blind.clock.sleep(POLL_S)
        blind.watch.turn()
        if (name := blind.watch.take()) is not None:
            assert not blind.watch.is_hopeless(name, is_complete=True)
            taken += 1
        if step == 40:
            (folder / "a.npy").write_bytes(picture())
    assert taken >= 2, "before and after the change"
    assert refused_after(blind) > PATIENCE_S / 3, "the change gave it more time than the tenth that was left"


# ---------------------------------------------------------------- many


def test_of_too_many_files_the_oldest_are_kept_in_mind_and_all_are_read(blind, folder, monkeypatch):
    monkeypatch.setattr(watch, "MAX_ENTRIES", 10)
    names = [f"{number:02}.npy" for number in range(35)]
    for age, name in enumerate(reversed(names)):
        (folder / name).write_bytes(picture())
        os.utime(folder / name, ns=(age, age))
    found = []
    for _ in range(100):
        blind.clock.sleep(POLL_S)
        assert len(blind.watch._entries) <= 10
        found += blind.finished()
    assert found == names[::-1]


def test_of_too_many_new_files_none_is_lost(seen, folder, monkeypatch):
    monkeypatch.setattr(watch, "MAX_ENTRIES", 10)
    names = {f"{number:02}.npy" for number in range(35)}
    for name in names:
        (folder / name).write_bytes(picture())
    assert len(seen.finished()) == 10
    seen.pass_time(30)
    assert set(seen.watch._known) == names


def test_the_whole_folder_is_not_looked_at_all_the_time(seen, folder, monkeypatch):
    looks = []
    look = watch.look
    for number in range(50):
        (folder / f"{number}.npy").write_bytes(picture())
    assert len(seen.finished()) == 50
    monkeypatch.setattr(watch, "look", lambda path: looks.append(path) or look(path))
    seen.pass_time(0.9 * watch.CATCH_UP_S)
    assert not looks


def test_a_look_at_a_huge_folder_is_given_its_time(folder):
    class Slow(Clock):
        def __call__(self):
            self.now += 0.1
            return self.now

    slow = Watch(folder, quiet_s=QUIET_S, poll_s=POLL_S, kernel=None, clock=Slow())
    slow.turn()
    assert slow._scan_at - slow._clock.now >= 0.5


# ---------------------------------------------------------------- what is left alone

UNFINISHED = [".a.npy", "a.npy.part", "a.PARTIAL", "a.filepart", "a.tmp", "a.temp", "a.crdownload", "a.download",
              ".a.npy.swp", "a.swp", "a.npy~", ".a.npy.Xk3fQz", "._a.npy", "Thumbs.db", "desktop.ini"]  # fmt: skip


@pytest.mark.parametrize("way", ["seen", "blind"])
def test_unfinished_names_and_folders_are_left_alone(request, folder, way):
    watched = request.getfixturevalue(way)
    for name in UNFINISHED:
        overwrite(folder / name, 1)
    for name in ("done", "failed", "sub", ".hidden"):
        (folder / name).mkdir()
    assert watched.pass_time(20) == []
    assert watched.watch.subfolders == ["sub"]


# ---------------------------------------------------------------- which file systems the kernel knows all of

MOUNTS = """\
21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
22 21 0:40 / /mnt/nas rw - nfs4 nas:/x rw
23 22 8:2 / /mnt/nas/usb\\040stick rw shared:1 - vfat /dev/sdb1 rw
24 21 0:41 / /srv rw - ext4 /dev/sdc1 rw
25 24 0:42 / /srv rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("folder", "is_local"),
    [("/home/in", True), ("/mnt/nas", False), ("/mnt/nas/in", False), ("/mnt/nasty", True),
     ("/mnt/nas/usb stick/in", True), ("/srv/in", False)],
)  # fmt: skip
def test_the_file_system_says_whether_the_kernel_tells_of_all_changes(tmp_path, folder, is_local):
    (tmp_path / "mounts").write_text(MOUNTS)
    assert inotify.is_local(folder, tmp_path / "mounts") is is_local
    assert inotify.is_local(folder, tmp_path / "none") is False
