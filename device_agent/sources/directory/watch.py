"""Which files in a folder are finished, and in which order they are read.

A file is finished when the kernel says so (inotify): its writer has closed it, or it was moved here. Where the kernel
says nothing, as of files that lie there at the start and of those that other machines write to a network share, it is
finished once its size and its date have stayed the same for a while between looks of ours, by our own monotonic clock.
No date of a file is ever compared with a clock.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from device_agent.sources.directory import inotify
from device_agent.sources.directory.identity import FileState, look
from device_agent.sources.directory.inotify import Inotify
from device_agent.sources.directory.names import DONE, FAILED, is_ignored

PATIENCE_S = 30.0
"""How long a file that is no input must not have changed before it is refused, unless the kernel said that its writer
has finished it. An upload that pauses looks like that.
"""

MAX_ENTRIES = 10_000
"""Files that are kept in mind; of more, the folder itself is the list, and is read again."""

CATCH_UP_S = 10.0
"""Time between two looks at the whole folder where the kernel tells of all changes: nothing should turn up."""

CHECK_S = 1.0
"""Time between two looks at whether the folder is still the one that is watched, where the kernel tells of its end."""

_SCAN_SHARE = 10
"""A look at the whole folder waits for this many times what the last one took."""

_NEVER = float("inf")

_Phase = Literal["new", "opened", "writing", "quiet", "finished", "taken"]


@dataclass(slots=True)
class _Entry:
    """A file that is to be read, at the latest when it is finished.

    `state` is what was last seen of it, and `since` when that was first seen. `is_unread`: it has been finished, and
    what it held then was not read yet. `is_vouched`: by the kernel. `is_doubtful`: what it held was no input.
    """

    order: int
    phase: _Phase
    state: FileState | None = None
    since: float = 0.0
    look_at: float = _NEVER
    is_vouched: bool = False
    is_unread: bool = False
    is_queued: bool = False
    is_doubtful: bool = False


class Watch:
    """Says which files are finished. `turn` takes in what has happened; `take` then gives the next to be read.

    Without `kernel` it only looks. Whoever takes a file says what came of it: `note_read`, `note_changed`,
    `is_hopeless` or `forget`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        quiet_s: float,
        poll_s: float,
        kernel: Inotify | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.overwritten = 0
        """Finished files that were overwritten before they were read, as far as that was seen."""
        self.last_overwritten = ""
        self.gone: list[str] = []
        """Names that are no longer there, for whoever keeps books on them; to be cleared by them."""
        self.subfolders: list[str] = []
        """Names of folders that have turned up; to be cleared by whoever tells of them."""
        self.missing: OSError | None = None
        """Why the folder cannot be looked into."""
        self.blind: OSError | None = None
        """Why the kernel does not tell of this folder, though it was asked."""
        self._folder = folder
        self._quiet_s = quiet_s
        self._poll_s = poll_s
        self._kernel = kernel
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._finished: list[tuple[int, str]] = []
        self._looks: list[tuple[float, str]] = []
        self._known: dict[str, tuple[FileState, str]] = {}
        self._order = itertools.count()
        self._returned: set[str] = set()
        self._seen_folders: set[str] = set()
        self._place: tuple[int, int] | None = None
        self._is_trusted = False
        self._check_at = 0.0
        self._scan_at = 0.0
        self._are_left_out = False

    # ------------------------------------------------------------ what was finished

    def turn(self) -> bool:
        """Take in what has happened; return whether anything has."""
        now = self._clock()
        if now >= self._check_at:
            self._check_place()
            self._check_at = now + (max(CHECK_S, self._poll_s) if self._is_trusted else self._poll_s)
        has_events = self._listen(now)
        if self._are_left_out and len(self._entries) <= MAX_ENTRIES // 2:
            self._scan_at = min(self._scan_at, now)
        if now >= self._scan_at and self.missing is None:
            self._scan(now)
        self._look(now)
        return has_events

    def due_at(self) -> float:
        """When `turn` is to be called though the kernel has said nothing; monotonic seconds."""
        scan_at = self._scan_at if self.missing is None else _NEVER
        return min(self._check_at, scan_at, self._looks[0][0] if self._looks else _NEVER)

    @property
    def has_finished(self) -> bool:
        """Whether there may be a file to take."""
        return bool(self._finished)

    def take(self) -> str | None:
        """Return the name of the file that has waited longest, if one is finished."""
        while self._finished:
            _, name = heapq.heappop(self._finished)
            entry = self._entries.get(name)
            if entry is None:
                continue
            entry.is_queued = False
            if entry.phase == "finished":
                entry.phase = "taken"
                return name
        return None

    # ------------------------------------------------------------ what came of it

    def is_untouched(self, name: str) -> bool:
        """Tell whether a file was not written to, replaced or removed since it was taken, as far as the kernel knows.

        Otherwise what was read of it may be a part only. It is given again once it is finished.
        """
        self._listen(self._clock())
        entry = self._entries.get(name)
        return entry is not None and entry.phase == "taken"

    def note_read(self, name: str, state: FileState, request: str) -> bool:
        """Note what a file held when it was read; return whether that is new."""
        entry = self._entries.pop(name)
        is_new = not self.knows(name, request)
        # Either what was finished is not what was read, or it was read before the kernel told of it.
        was_replaced = (not is_new) if entry.is_vouched else entry.state != state
        if entry.is_unread and was_replaced:
            self.note_overwritten(name)
        self.settle(name, state, request)
        return is_new

    def note_changed(self, name: str) -> None:
        """Note that a file was changed while it was read."""
        self._wait(name, self._entries[name], self._clock(), None)

    def is_hopeless(self, name: str, *, is_complete: bool) -> bool:
        """Tell whether a file that cannot be read as an input is to be refused; otherwise it is looked at again.

        `is_complete`: what the file holds may be all that its writer wanted to write, if the kernel says so.
        """
        entry, now = self._entries[name], self._clock()
        if entry.is_doubtful or (entry.is_vouched and is_complete):
            return True
        self._wait(name, entry, now, entry.state, since=None if entry.is_vouched else entry.since)
        entry.is_doubtful = True
        return False

    def knows(self, name: str, request: str) -> bool:
        """Tell whether what a file holds is what was last read of it."""
        return self._known.get(name, (None, ""))[1] == request

    def settle(self, name: str, state: FileState, request: str) -> None:
        """Leave a file alone while it is in this state: what it holds is known by this request id."""
        self._known[name] = state, request

    def forget(self, name: str) -> None:
        """Forget a file that is no longer there."""
        self._entries.pop(name, None)
        if self._known.pop(name, None) is not None:
            self.gone.append(name)

    def note_returned(self, name: str) -> None:
        """Note that we have moved a file back to its place: what the kernel will tell of that is no news."""
        if self._kernel is not None and self.blind is None:
            self._returned.add(name)

    def look_again(self, name: str) -> None:
        """Read a file anew once it is quiet: it does not hold what was known of it."""
        self._known.pop(name, None)
        if name not in self._entries and (entry := self._entry(name)) is not None:
            self._wait(name, entry, self._clock(), None)

    # ------------------------------------------------------------ what the kernel says

    def _listen(self, now: float) -> bool:
        events = self._kernel.read() if self._kernel is not None else []
        for event in events:
            self._happened(event.mask, event.name, now)
        return bool(events)

    def _happened(self, mask: int, name: str, now: float) -> None:
        if mask & inotify.OVERFLOW:
            self._start_over(now)
        elif mask & inotify.LOST:
            self._place, self._check_at = None, now
        elif mask & inotify.IS_DIR:
            if mask & (inotify.CREATE | inotify.MOVED_TO):
                self._note_subfolder(name)
        elif not is_ignored(name):
            self._file_changed(mask, name, now)

    def _file_changed(self, mask: int, name: str, now: float) -> None:
        if mask & inotify.MOVED_TO and name in self._returned:
            self._returned.discard(name)
            return
        if mask & (inotify.MOVED_FROM | inotify.DELETE):
            self.forget(name)
            return
        entry = self._entries.get(name)
        if mask & (inotify.OPEN | inotify.CLOSE_NOWRITE):
            if entry is not None:
                self._opened(mask, name, entry, now)
            return
        was_there = entry is not None
        entry = entry or self._entry(name)
        if entry is None:
            return
        if mask & inotify.CREATE:
            # Nobody need ever open a hard link or a pipe: then it is finished when it stays as it is.
            self._wait(name, entry, now, None)
            entry.phase = "new"
        elif mask & inotify.MODIFY:
            self._replaced(name, entry)
            entry.phase, entry.is_doubtful = "writing", False
        elif mask & inotify.MOVED_TO:
            self._replaced(name, entry)
            entry.is_unread = True
            self._finish(name, entry)
        elif mask & inotify.CLOSE_WRITE:
            entry.is_unread |= was_there
            self._finish(name, entry)

    def _opened(self, mask: int, name: str, entry: _Entry, now: float) -> None:
        if mask & inotify.OPEN and entry.phase == "new":
            entry.phase = "opened"
        elif mask & inotify.CLOSE_NOWRITE and entry.phase == "opened":
            self._wait(name, entry, now, None)

    def _finish(self, name: str, entry: _Entry) -> None:
        entry.is_vouched, entry.is_doubtful, entry.state = True, False, None
        self._queue(name, entry)

    def _queue(self, name: str, entry: _Entry) -> None:
        entry.phase = "finished"
        if not entry.is_queued:
            entry.is_queued = True
            heapq.heappush(self._finished, (entry.order, name))

    def _replaced(self, name: str, entry: _Entry) -> None:
        if entry.is_unread:
            entry.is_unread = False
            self.note_overwritten(name)

    def note_overwritten(self, name: str) -> None:
        """Count a file that was overwritten before it was read."""
        self.overwritten += 1
        self.last_overwritten = name

    # ------------------------------------------------------------ what looks say

    def _wait(
        self, name: str, entry: _Entry, now: float, state: FileState | None, *, since: float | None = None
    ) -> None:
        """Look at a file again after a while, and see whether it is still in this state; None: in that of now."""
        entry.phase, entry.is_vouched = "quiet", False
        if state is None:
            with contextlib.suppress(OSError):
                state = look(self._folder / name)
        entry.state, entry.since = state, now if since is None else since
        self._look_at(name, entry, now + self._quiet_s)

    def _look_at(self, name: str, entry: _Entry, at: float) -> None:
        entry.look_at = at
        heapq.heappush(self._looks, (at, name))

    def _look(self, now: float) -> None:
        """Look at the files whose time has come, and see which have stayed as they were."""
        while self._looks and self._looks[0][0] <= now:
            at, name = heapq.heappop(self._looks)
            entry = self._entries.get(name)
            if entry is None or entry.look_at != at or entry.phase not in ("new", "quiet"):
                continue
            try:
                state = look(self._folder / name)
            except OSError:
                self._look_at(name, entry, now + self._quiet_s)
                continue
            if state is None:
                self.forget(name)
            elif state != entry.state:
                entry.state, entry.since, entry.is_doubtful = state, now, False
                self._look_at(name, entry, now + self._quiet_s)
            elif entry.is_doubtful and now < entry.since + PATIENCE_S:
                self._look_at(name, entry, now + self._quiet_s)
            else:
                entry.is_unread = True
                self._queue(name, entry)

    def _scan(self, now: float) -> None:
        """Look at the whole folder, and take up what is not known; the oldest if there is too much."""
        room = MAX_ENTRIES - len(self._entries)
        self._are_left_out = room <= 0
        unseen = set(self._known)
        try:
            found = heapq.nsmallest(room + 1, self._unknown(unseen))
        except OSError as error:
            self.missing = error
            return
        for name in unseen:
            with contextlib.suppress(OSError):
                if look(self._folder / name) is None:
                    self.forget(name)
        for _, name, state in found[:room]:
            if (entry := self._entry(name)) is not None:
                self._wait(name, entry, now, state)
        self._are_left_out |= len(found) > room
        took_s = self._clock() - now
        self._scan_at = now + max(CATCH_UP_S if self._is_trusted else self._poll_s, _SCAN_SHARE * took_s)

    def _unknown(self, unseen: set[str]) -> Iterator[tuple[int, str, FileState]]:
        """Yield date, name and state of each file that is not known; take all names that are there from `unseen`."""
        with os.scandir(self._folder) as entries:
            for found in entries:
                name = found.name
                unseen.discard(name)
                if name in self._entries or is_ignored(name):
                    continue
                if found.is_dir(follow_symlinks=False):
                    self._note_subfolder(name)
                    continue
                if name in (DONE, FAILED) and found.is_dir():
                    continue  # links to folders elsewhere
                try:
                    state = look(found.path)
                except OSError:
                    continue  # it is there at the next look, or gone
                if state is not None and self._known.get(name, (None, ""))[0] != state:
                    yield state.mtime_ns, name, state

    def _entry(self, name: str) -> _Entry | None:
        """Make an entry for a file; None if there are too many."""
        if len(self._entries) >= MAX_ENTRIES:
            self._are_left_out = True
            return None
        entry = self._entries[name] = _Entry(order=next(self._order), phase="quiet")
        return entry

    def _note_subfolder(self, name: str) -> None:
        is_ours = name in (DONE, FAILED) or is_ignored(name)
        if not is_ours and name not in self._seen_folders and len(self._seen_folders) < MAX_ENTRIES:
            self._seen_folders.add(name)
            self.subfolders.append(name)

    # ------------------------------------------------------------ the folder itself

    def _check_place(self) -> None:
        """See whether the folder is still the one that is watched: others may move it, mount it or make it anew."""
        try:
            found = os.stat(self._folder)  # noqa: PTH116 - called all the time
        except OSError as error:
            self.missing, self._place = error, None
            return
        if (place := (found.st_dev, found.st_ino)) == self._place and self.missing is None:
            return
        self._place, self.missing = place, None
        self._is_trusted = False
        if self._kernel is not None:
            self.blind = None
            try:
                self._kernel.watch(self._folder)
                self._is_trusted = inotify.is_local(self._folder)
            except OSError as error:
                self.blind = error
        self._start_over(self._clock())

    def _start_over(self, now: float) -> None:
        """Events were missed: rely on looks alone for what was under way, and see what else is there."""
        self._returned.clear()
        for name, entry in self._entries.items():
            if entry.phase in ("new", "opened", "writing"):
                self._wait(name, entry, now, None)
        self._scan_at = 0.0

    def close(self) -> None:
        """Watch no longer."""
        if self._kernel is not None:
            with contextlib.suppress(OSError):
                self._kernel.close()
            self._kernel = None
