"""How many files are kept in a folder that files are put into: the oldest go first.

The order is that in which they were put there. Of files that an earlier run put there the order is not known; they
count as older, and among themselves by the time at which the file system last changed their entry.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from distree.formatting import counted
from distree.messages.events import EventKind, Severity

_SLACK = 0.9
"""What is left of a limit once it was exceeded, so that the folder is not read for each file."""

_AT_ONCE = 200
"""Files that are deleted before other things are seen to."""


class Retention:
    """Keeps at most `most_files` files of at most `most_bytes` in all in a folder, and always the newest.

    Subfolders are left alone.
    """

    def __init__(self, folder: Path, most_files: int, most_bytes: int, tell: Callable[..., None]) -> None:
        self._folder = folder
        self._most_files = most_files
        self._most_bytes = most_bytes
        self._tell = tell
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._surplus: list[str] = []
        self._was_read = False

    def note(self, name: str, size: int) -> None:
        """Note that a file was put there."""
        self._bytes += size - self._sizes.pop(name, 0)
        self._sizes[name] = size

    def turn(self) -> bool:
        """Delete some of what is too much; return whether there is more to delete. Raises OSError."""
        if not self._surplus and (not self._was_read or self._exceeds(1.0)):
            self._reread()
            self._choose()
        gone, self._surplus = self._surplus[:_AT_ONCE], self._surplus[_AT_ONCE:]
        for name in gone:
            (self._folder / name).unlink(missing_ok=True)
            self._bytes -= self._sizes.pop(name, 0)
        if gone:
            kept = f"{counted(self._most_files, 'file')} or {self._most_bytes >> 20} MiB"
            self._tell(
                EventKind.SOURCE,
                f"{self._folder} has reached its limit of {kept}, so its oldest files are deleted",
                "raise keep_files or keep_mib, or copy elsewhere what must be kept",
                severity=Severity.INFO,
                like=f"limit of {self._folder}",
            )
        return bool(self._surplus)

    def _exceeds(self, share: float) -> bool:
        return len(self._sizes) > share * self._most_files or self._bytes > share * self._most_bytes

    def _reread(self) -> None:
        """See what is there: others take files away, and put some there."""
        self._was_read = True
        known, strange = self._sizes, []
        sizes = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) or entry.name.startswith("."):
                        continue
                    found = entry.stat(follow_symlinks=False)
                    sizes[entry.name] = found.st_size
                    if entry.name not in known:
                        strange.append((found.st_ctime_ns, entry.name))
        except FileNotFoundError:
            pass
        order = [name for _, name in sorted(strange)] + [name for name in known if name in sizes]
        self._sizes = {name: sizes[name] for name in order}
        self._bytes = sum(self._sizes.values())

    def _choose(self) -> None:
        if not self._exceeds(1.0):
            return
        files, size = len(self._sizes), self._bytes
        for name, its_size in list(self._sizes.items())[:-1]:  # the newest stays, however large it is
            if files <= _SLACK * self._most_files and size <= _SLACK * self._most_bytes:
                break
            self._surplus.append(name)
            files, size = files - 1, size - its_size
