"""Which files are done with though they are still there: answered or refused, and not yet moved away, or never to be.

A file of msgpack records, appended to and rewritten from time to time: [name, inode, size, mtime_ns, request, folder].
The last record of a name counts. Nothing is forced to the medium: it survives the death of the process, and a power
cut as far as the kernel has written it. Where the disk fails all goes on in memory, and only a restart would answer
again what is still there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgpack

from device_agent.disk import remedy_of
from device_agent.sources.directory.identity import FileState
from distree.messages.events import EventKind, Severity
from distree.record import record
from distree.regular_files import read_regular

MAX_FILES = 50_000
"""Files that may be done with and still be there. At this limit no more are read."""

MAX_FILE_BYTES = 256 << 20
"""Longest journal that is read; one of `MAX_FILES` takes a tenth of that."""

_MAX_FIELDS = 16
"""More than a record has: damaged bytes may announce lists of any length, for which memory is taken."""

LIMIT_BYTES = 1 << 20
"""Size at which the journal is rewritten; twice what it must hold, if that is more."""

RETRY_S = 3.0
"""Shortest time between two attempts to rewrite the journal while the disk fails."""

Place = Literal["done", "failed"]
"""The subfolder in which a file belongs."""

Tell = Callable[..., None]
"""`InputSink.tell`."""


@record
class SettledFile:
    """A file with which nothing is to be done but to take it away.

    `request` is "" for one that could not be read.
    """

    name: str
    state: FileState
    request: str
    place: Place


class Journal:
    """Remembers files that are done with, by name, over restarts. Nothing that the disk does raises."""

    def __init__(self, path: Path, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._tell = tell
        self._clock = clock
        self._files: dict[str, SettledFile] = {}
        self._absent: dict[str, None] = {}
        self._file: int | None = None
        self._size = 0
        self._rewrite_above = LIMIT_BYTES
        self._failed_at: float | None = None
        self._retry_at = 0.0

    def load(self, is_there: Callable[[SettledFile], bool]) -> list[SettledFile]:
        """Read what an earlier run left, and return those files that are still there; call it once."""
        for entry in self._read():
            if (found := _unpacked(entry)) is not None:
                self._files.pop(found.name, None)
                self._files[found.name] = found
        present = [file for file in self._files.values() if is_there(file)]
        for name in self._files.keys() - {file.name for file in present}:
            self.note_absent(name)
        if self._files or self._path.exists():
            self._rewrite()
        return present

    def __len__(self) -> int:
        """Return how many files are remembered that are still there."""
        return len(self._files) - len(self._absent)

    @property
    def is_full(self) -> bool:
        """Whether no more files should be read."""
        return len(self) >= MAX_FILES

    def get(self, name: str, request: str) -> SettledFile | None:
        """Return what is remembered of a file that holds what `request` says."""
        found = self._files.get(name)
        return found if found is not None and found.request == request else None

    def note(self, files: Iterable[SettledFile]) -> None:
        """Remember files, before anything is done with them."""
        packed = b""
        for file in files:
            self._files[file.name] = file
            self._absent.pop(file.name, None)
            packed += _packed(file)
        if packed:
            self._write(packed)

    def note_absent(self, name: str) -> None:
        """Note that a file is not there: it may be back with the share or the stick that it was on."""
        if name in self._files:
            self._absent[name] = None
            if len(self._absent) > MAX_FILES:
                self.drop(self._files[next(iter(self._absent))])

    def drop(self, file: SettledFile) -> None:
        """Forget a file that was put away. What is on disk of it does no harm: it says what the file held."""
        if self.get(file.name, file.request) is not None:
            del self._files[file.name]
            self._absent.pop(file.name, None)

    def close(self) -> None:
        """Close the file."""
        if self._failed_at is not None:
            self._rewrite()
        self._close_file()

    # ------------------------------------------------------------ the disk

    def _read(self) -> Iterator[object]:
        """Yield the records up to the first that is damaged."""
        unpacker = msgpack.Unpacker(
            use_list=False,
            max_buffer_size=MAX_FILE_BYTES,
            max_array_len=_MAX_FIELDS,
            max_map_len=_MAX_FIELDS,
            max_ext_len=0,
        )
        try:
            unpacker.feed(read_regular(self._path, MAX_FILE_BYTES))
            yield from unpacker
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, msgpack.UnpackException) as error:
            why = (isinstance(error, OSError) and error.strerror) or "damaged"
            self._tell(
                EventKind.DISK,
                f"journal {self._path} cannot be read to its end ({why}), so answered files that are still in the "
                "folder may be answered again",
                "check the disk",
            )

    def _write(self, packed: bytes) -> None:
        if self._file is None or self._size + len(packed) > self._rewrite_above:
            if self._failed_at is None or self._clock() >= self._retry_at:
                self._rewrite()
            return
        try:
            if os.stat(self._path).st_ino != os.fstat(self._file).st_ino:  # noqa: PTH116 - before each record
                raise OSError(None, "another program has replaced it")
            _write_all(self._file, packed)
        except OSError as error:
            self._fail(error)
        else:
            self._size += len(packed)

    def _rewrite(self) -> None:
        """Replace the journal by one with what it must hold, in one step that a crash cannot leave half done."""
        self._close_file()
        self._retry_at = self._clock() + RETRY_S
        content = b"".join(map(_packed, self._files.values()))
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            self._file = os.open(fresh, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            _write_all(self._file, content)
            fresh.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            self._fail(error)
            return
        self._size = len(content)
        self._rewrite_above = max(LIMIT_BYTES, 2 * len(content))
        if self._failed_at is not None:
            self._failed_at = None
            self._tell(EventKind.DISK, f"journal {self._path} is written again", severity=Severity.INFO)

    def _fail(self, error: OSError) -> None:
        self._close_file()
        if self._failed_at is not None:
            return
        self._failed_at = self._clock()
        self._tell(
            EventKind.DISK,
            f"journal {self._path} cannot be written ({error.strerror or error}), so answered files that stay in the "
            "folder would be answered again after a restart",
            remedy_of(error, "correct state_dir"),
        )

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


def _write_all(file: int, content: bytes) -> None:
    """Write in one call. OSError if less was written: later records would be read as the rest of that one."""
    if os.write(file, content) < len(content):
        raise OSError(None, "only a part was written")


def _packed(file: SettledFile) -> bytes:
    packed: bytes = msgpack.packb((os.fsencode(file.name), *file.state, file.request, file.place))
    return packed


def _unpacked(entry: object) -> SettledFile | None:
    match entry:
        case (bytes(name), int(inode), int(size), int(mtime_ns), str(request), "done" | "failed" as place):
            state = FileState(inode, size, mtime_ns)
            return SettledFile(name=os.fsdecode(name), state=state, request=request, place=place)
    return None
