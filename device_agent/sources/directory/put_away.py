"""Takes files out of the folder that are done with, and never one that was not read.

A file is first moved to a hidden subfolder, where nobody can reach it by its name any more. A moment later, when
whoever was just opening it has done so, it is read again: if it does not hold what was answered it goes back. Only then
is it moved to where it belongs, or deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from device_agent.disk import remedy_of
from device_agent.sources.directory.identity import FileChangedError, look, read
from device_agent.sources.directory.journal import Place, SettledFile, Tell
from device_agent.sources.directory.retention import Retention
from distree.errors import RemoteProtocolError
from distree.formatting import counted
from distree.messages.events import EventKind, Severity
from distree.printable import quoted
from distree.regular_files import open_regular

LEAVING = ".leaving"
"""Subfolder for files on their way out."""

SETTLE_S = 0.05
"""How long a file stays there before it is read again."""

FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0

_TRIES = 3
"""Files that are tried in one go while it fails, to begin with: what holds one up need not hold up the others."""

_NO_LIMIT = 1 << 30

_NEVER = float("inf")
_NO_REPLACE = 1
_AT_CWD = -100
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)

Outcome = Literal["away", "gone", "replaced", "returned", "overwritten"]
"""What became of a file: it was put away; it was not there; a newer one had its name; it holds something else, and is
back; it held something else, and while it was away a newer one took its name.
"""


class PutAway:
    """Moves files to `done/` and `failed/`, or deletes the answered ones; what fails is tried again, ever more rarely.

    `note_stays` is told of each file that was taken out and put back because it cannot be put away.
    """

    def __init__(
        self,
        folder: Path,
        *,
        delete: bool,
        kept: dict[Place, Retention],
        most_bytes: int,
        tell: Tell,
        note_stays: Callable[[SettledFile], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._delete = delete
        self._kept = kept
        self._most_bytes = most_bytes
        self._tell = tell
        self._note_stays = note_stays
        self._clock = clock
        self._files: dict[str, SettledFile] = {}
        self._leaving: dict[str, tuple[float, SettledFile]] = {}
        self._tries = _NO_LIMIT
        self._failing: Place | None = None
        self._retry_s = 0.0
        self._retry_at = 0.0
        self._has_surplus = False
        self._limit_at = 0.0

    def restore(self) -> None:
        """Put back what a crash left on its way out. OSError if that fails."""
        with contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(self._folder / LEAVING)):
                self._give_back(entry.name)
        self.close()

    def close(self) -> None:
        """Leave nothing of our own in the folder."""
        with contextlib.suppress(OSError):
            (self._folder / LEAVING).rmdir()

    def add(self, file: SettledFile) -> None:
        """Put a file away as soon as possible."""
        self._files[file.name] = file

    def due_at(self) -> float:
        """When `turn` has something to do; monotonic seconds."""
        if self._has_surplus:
            return 0.0
        finish_at = next((at for at, _ in self._leaving.values()), _NEVER)
        may_begin = self._may_begin and self._files.keys() - self._leaving.keys()
        return min(finish_at, self._retry_at if may_begin else _NEVER)

    @property
    def _may_begin(self) -> bool:
        """Whether more files may be taken out: where it has failed, no more than were tried."""
        return self._failing is None or not self._leaving

    def turn(self, *, at_once: bool = False) -> list[tuple[SettledFile, Outcome]]:
        """Put away what can be; return what became of which files. `at_once`: without the moment in between."""
        outcomes: list[tuple[SettledFile, Outcome]] = []
        has_failed = self._finish(outcomes, _NEVER if at_once else self._clock())
        if not has_failed and self._may_begin and self._clock() >= self._retry_at:
            has_failed = self._begin(outcomes)
            if at_once:
                has_failed |= self._finish(outcomes, _NEVER)
        if has_failed:
            self._tries = _TRIES
            self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s or FIRST_RETRY_S)
            self._retry_at = self._clock() + self._retry_s
        elif not self._files and not self._leaving and self._failing is not None:
            self._tell(EventKind.DISK, f"files of {self._folder} are put away again", severity=Severity.INFO)
            self._failing, self._retry_s, self._tries = None, 0.0, _NO_LIMIT
        self._limit()
        return outcomes

    def _begin(self, outcomes: list[tuple[SettledFile, Outcome]]) -> bool:
        """Take files out of the folder; return whether that fails."""
        now, failures, tries = self._clock(), 0, 0
        for file in list(self._files.values()):
            if file.name in self._leaving:
                continue  # an older one of its name is on its way
            if failures == _TRIES or tries == self._tries:
                break
            del self._files[file.name]
            tries += 1
            try:
                outcome = self._take_out(file)
            except OSError as error:
                self._fail(file, error)
                failures += 1
            else:
                if outcome is None:
                    self._leaving[file.name] = now + SETTLE_S, file
                else:
                    outcomes.append((file, outcome))
        return failures > 0

    def _finish(self, outcomes: list[tuple[SettledFile, Outcome]], now: float) -> bool:
        """Put away what was taken out; where that fails put it all back, and return True."""
        while self._leaving:
            at, file = next(iter(self._leaving.values()))
            if at > now:
                break
            try:
                outcomes.append((file, self._put_away(file)))
            except OSError as error:
                self._fail(file, error)
                for _, other in list(self._leaving.values()):
                    with contextlib.suppress(OSError):  # then the next start puts it back
                        if self._give_back(other.name):
                            self._note_stays(other)
                    self._files.setdefault(other.name, other)
                self._leaving.clear()
                return True
            del self._leaving[file.name]
            self._tries = min(2 * self._tries, _NO_LIMIT)
        return False

    def _limit(self) -> None:
        self._has_surplus = False
        if self._clock() < self._limit_at:
            return
        for place, kept in self._kept.items():
            try:
                self._has_surplus |= kept.turn()
            except OSError as error:
                self._limit_at = self._clock() + LONGEST_RETRY_S
                what = f"{self._folder / place} cannot be kept within its limit ({error.strerror})"
                self._tell(EventKind.DISK, what, remedy_of(error, "delete old files there"), like=f"limit of {place}")

    def _fail(self, file: SettledFile, error: OSError) -> None:
        self._files.setdefault(file.name, file)  # behind the others, unless a newer one of its name is among them
        if self._failing is not None:
            return
        self._failing = file.place
        deletes = self._delete and file.place == "done"
        todo = "deleted" if deletes else f"moved to {file.place}/"
        self._tell(
            EventKind.DISK,
            f"{quoted(file.name)} cannot be {todo} ({error.strerror or error}), and stays in {self._folder}; it is not "
            f"answered again, and tried again within {LONGEST_RETRY_S:.0f} s",
            remedy_of(error, "set after: keep", unknown=f"see what is the matter with {self._folder / file.place}"),
        )

    # ------------------------------------------------------------ one file

    def _take_out(self, file: SettledFile) -> Outcome | None:
        """Move a file to where nobody finds it; return what became of it if that is the end of it."""
        state = look(self._folder / file.name)
        if state is None:
            return "gone"
        if state != file.state:
            return "replaced"
        leaving = self._folder / LEAVING
        hidden = leaving / file.name
        try:
            rename(self._folder / file.name, hidden)
        except FileNotFoundError:
            leaving.mkdir(exist_ok=True)
            try:
                rename(self._folder / file.name, hidden)
            except FileNotFoundError:
                if not os.path.lexists(hidden):  # on a share, what was done may be reported as what was in vain
                    return "gone"  # somebody else was quicker
        return None

    def _put_away(self, file: SettledFile) -> Outcome:
        hidden = self._folder / LEAVING / file.name
        if not self._holds(hidden, file):
            return "returned" if self._give_back(file.name) else "overwritten"
        if self._delete and file.place == "done":
            hidden.unlink()
        else:
            self._keep(hidden, file)
        return "away"

    def _holds(self, hidden: Path, file: SettledFile) -> bool:
        """Whether a file holds what was read."""
        if hidden.is_symlink():
            return True  # from here its target may not be found, and it is not the target that is moved
        if look(hidden) != file.state:
            return False
        if not file.request:
            return True
        try:
            return read(hidden, file.name, self._most_bytes).request == file.request
        except (FileChangedError, RemoteProtocolError):
            return False

    def _give_back(self, name: str) -> bool:
        """Move a file back to its place; False if a newer one has it by now, which this one must not replace."""
        hidden = self._folder / LEAVING / name
        try:
            rename_new(hidden, self._folder / name)
        except FileExistsError:
            hidden.unlink()
            return False
        return True

    def _keep(self, hidden: Path, file: SettledFile) -> None:
        folder = self._folder / file.place
        tag = file.request[-12:] or f"{file.state.inode:x}"
        for number in range(1000):
            name = file.name if number == 0 else _distinct(file.name, tag if number == 1 else f"{tag}-{number}")
            try:
                self._move(hidden, folder / name)
            except FileExistsError:
                continue
            self._kept[file.place].note(name, file.state.size)
            return
        raise OSError(errno.EEXIST, f"{counted(number, 'file')} of that name are there")

    def _move(self, hidden: Path, target: Path) -> None:
        """Move a file; FileExistsError if there is one of that name."""
        if hidden.is_symlink():
            # Relative to where it was, it would point to nothing from where it goes.
            points_to = os.path.abspath(self._folder / hidden.readlink())  # noqa: PTH100 - not resolved any further
            _in_folder(target.parent, lambda: target.symlink_to(points_to))
            hidden.unlink()
            return
        try:
            _in_folder(target.parent, lambda: rename_new(hidden, target))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy(hidden, target)
            hidden.unlink()

    def _copy(self, hidden: Path, target: Path) -> None:
        """Copy a file to another file system, so that it is there completely or not at all."""
        if look(hidden) is None or hidden.stat().st_size > self._most_bytes or not hidden.is_file():
            raise OSError(errno.EXDEV, f"too large, or no file, to be copied to the file system of {target.parent}")
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        arriving = target.parent / ".arriving"
        try:
            with open_regular(hidden) as source, arriving.open("wb") as copy:
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
            with contextlib.suppress(OSError):  # not every file system has dates and permissions
                shutil.copystat(hidden, arriving)
            rename_new(arriving, target)
        except OSError:
            with contextlib.suppress(OSError):
                arriving.unlink(missing_ok=True)
            raise


def _in_folder(folder: Path, put: Callable[[], None]) -> None:
    """Put something into a folder, which is made if there is none."""
    try:
        put()
    except FileNotFoundError:
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None  # a link to nothing
        put()


def _distinct(name: str, tag: str) -> str:
    """Return a name with a tag before its suffix, no longer than file systems allow."""
    stem, dot, suffix = name.rpartition(".")
    if not stem or len(os.fsencode(suffix)) > 16:
        stem, dot, suffix = name, "", ""
    end = f"~{tag}{dot}{suffix}"
    while len(os.fsencode(stem + end)) > 255:
        stem = stem[:-1]
    return stem + end


_libc = ctypes.CDLL(None, use_errno=True)

rename = os.rename
"""Rename a file, over another if need be."""


def rename_new(source: Path, target: Path) -> None:
    """Rename a file; FileExistsError if the new name is taken, in one step where the file system can do that."""
    renameat2 = getattr(_libc, "renameat2", None)
    if renameat2 is not None:
        if renameat2(_AT_CWD, os.fsencode(source), _AT_CWD, os.fsencode(target), _NO_REPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number))
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    rename(source, target)
