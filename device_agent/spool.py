"""What an origin owes, on disk, so that it survives a crash: accepted inputs, and answers that the broker may not have.

A journal of msgpack records, appended to and rewritten from time to time: [1, request, name, dtype, shape, payload]
when an input is accepted; [2, request, payload] before its answer is published, with the result exactly as it goes out,
so that after a crash the same answer is published again and no other; [0, request] when the broker has it. Nothing is
forced to the medium: the journal survives the death of the process, and a power cut as far as the kernel has written
it. Inputs that stay where they are until they are answered, such as files in a folder, need not be kept here; their
answers are. On a small board put `state_dir` on a tmpfs to spare the SD card; then it does not survive a power cut.

A failing disk stops nothing. Everything owed is in memory as well, and goes to the disk as soon as possible.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgpack

from device_agent.disk import remedy_of
from distree.formatting import counted
from distree.messages.events import EventKind, Severity
from distree.messages.request import Tensor
from distree.node import AcceptedInput, Tell
from distree.record import record
from distree.regular_files import read_regular

MAX_FILE_BYTES = 512 << 20
"""Longest spool that is read. What an origin owes takes far less."""

_MAX_FIELDS = 16
"""More than a record has, or a shape: damaged bytes may announce lists of any length, for which memory is taken."""

LIMIT_BYTES = 4 << 20
"""Size at which the journal is rewritten; twice what is owed, if that is more."""

MAX_REMEMBERED = 1024
"""Answered requests that a rewritten journal still names, so that one delivered again is not answered again.

Also how many answers to inputs that were shed may wait for the broker; beyond that the oldest is not repeated.
"""

MAX_UNPUBLISHED = 4096
"""Answers of earlier runs that are kept, however many starts without a broker there are."""

MAX_NOTICES = 16
"""Notices kept until somebody takes them."""

RETRY_S = 3.0
"""Shortest time in seconds between two attempts to rewrite the journal while the disk fails."""


@record
class Recovered:
    """What an earlier run left.

    `open` inputs have no answer yet. `unpublished` are (request, encoded result): answers that the broker may not
    have. `answered` are the requests that were closed last, oldest first.
    """

    open: tuple[AcceptedInput, ...] = ()
    unpublished: tuple[tuple[str, bytes], ...] = ()
    answered: tuple[str, ...] = ()


class Spool:
    """The journal of one pipeline's origin. Nothing that the disk does raises; an outage is told once.

    Unless it `keeps_inputs`, only answers are kept. `clock` gives monotonic seconds, the same as the `now` of `retry`.
    """

    def __init__(
        self,
        path: Path,
        limit_bytes: int = LIMIT_BYTES,
        clock: Callable[[], float] = time.monotonic,
        *,
        keeps_inputs: bool = True,
    ) -> None:
        self.notices: deque[Tell] = deque(maxlen=MAX_NOTICES)
        """What people should know of it, to be logged and published by its owner."""
        self._path = path
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._keeps_inputs = keeps_inputs
        self._open: dict[str, AcceptedInput] = {}
        self._unpublished: dict[str, bytes] = {}
        self._shed: dict[str, None] = {}
        self._answered: dict[str, None] = {}
        self._unwritten: set[str] = set()
        self._file: int | None = None
        self._identity: tuple[int, int] | None = None
        self._size = 0
        self._rewrite_above = limit_bytes
        self._failed_at: float | None = None
        self._retry_at = 0.0

    def recover(self) -> Recovered:
        """Read what an earlier run left, and start over with just that. Call it once, before anything else."""
        for entry in self._read():
            self._replay(entry)
        surplus = len(self._unpublished) - MAX_UNPUBLISHED
        if surplus > 0:
            self._tell(
                f"{counted(surplus, 'answer')} of earlier runs will never be published, because more than "
                f"{MAX_UNPUBLISHED} wait for the broker",
                "let this board reach its broker",
            )
            for request in list(self._unpublished)[:surplus]:
                self._settle(request)
        self._rewrite(self._clock())
        return Recovered(
            open=tuple(self._open.values()),
            unpublished=tuple(self._unpublished.items()),
            answered=tuple(self._answered),
        )

    @property
    def unspooled(self) -> int:
        """How many inputs in custody a crash would lose, or answer differently: their last record is not on disk."""
        return len(self._unwritten)

    def note_accepted(self, item: AcceptedInput) -> None:
        """Note an accepted input."""
        if self._keeps_inputs and self._take(item):
            self._write_record(item.request, _pack_input(item))

    def note_answer(self, request: str, payload: bytes) -> None:
        """Note the encoded result of a request; to be called before it is published."""
        is_shed = self._keeps_inputs and request not in self._open
        if not self._answer(request, payload):
            return
        self._write_record(request, _pack_answer(request, payload))
        if is_shed:
            # No input in custody bounds how many of these there are.
            self._shed[request] = None
            if len(self._shed) > MAX_REMEMBERED:
                self.note_published(next(iter(self._shed)))

    def note_published(self, request: str) -> None:
        """Note that the broker has a request's result; nothing for a request that is not open."""
        if self._settle(request):
            self._write_record(request, _pack_settled(request))

    def retry(self, now: float) -> None:
        """See whether the journal is still there, and whether a disk that failed works again; call it now and then."""
        if self._file is not None:
            try:
                self._check()
            except OSError as error:
                self._fail(now, error)
        if self._failed_at is not None and now >= self._retry_at:
            self._rewrite(now)

    def close(self) -> None:
        """Close the file; what is open in it stays for the next run."""
        if self._failed_at is not None:
            self._rewrite(self._clock())
        self._close_file()
        self._failed_at = None

    # ------------------------------------------------------------ what is owed: the same live and read back

    def _take(self, item: AcceptedInput) -> bool:
        if item.request in self._unpublished:
            # Its answer is settled, whoever asks again.
            return False
        self._answered.pop(item.request, None)
        self._open[item.request] = item
        return True

    def _answer(self, request: str, payload: bytes) -> bool:
        if request in self._unpublished:
            return False
        # From here on the answer is what counts; the input need not be kept.
        self._open.pop(request, None)
        self._answered.pop(request, None)
        self._unpublished[request] = payload
        return True

    def _settle(self, request: str) -> bool:
        was_open = self._open.pop(request, None) is not None
        if self._unpublished.pop(request, None) is None and not was_open:
            return False
        self._shed.pop(request, None)
        self._unwritten.discard(request)
        self._remember(request)
        return True

    def _remember(self, request: str) -> None:
        self._answered.pop(request, None)
        self._answered[request] = None
        if len(self._answered) > MAX_REMEMBERED:
            del self._answered[next(iter(self._answered))]

    def _replay(self, entry: object) -> None:
        match entry:
            case (
                1,
                str(request),
                str(name),
                ("int8" | "uint8" | "float16" | "float32") as dtype,
                tuple(shape),
                bytes(payload),
            ):
                tensor = Tensor(dtype=dtype, shape=shape, codec="raw", payload=payload)
                self._take(AcceptedInput(request=request, name=name, tensor=tensor))
            case (2, str(request), bytes(payload)):
                self._answer(request, payload)
            case (0, str(request)) if not self._settle(request):
                # A rewritten journal has nothing else of it.
                self._remember(request)

    # ------------------------------------------------------------ the disk

    def _read(self) -> list[object]:
        """Read the records up to the first that a crash cut short."""
        try:
            found = self._path.stat()
            content = read_regular(self._path, MAX_FILE_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            aside = self._path.with_suffix(".unread")
            with contextlib.suppress(OSError):
                self._path.replace(aside)
            self._tell(
                f"cannot be read ({error.strerror}), so inputs that an earlier run left are not answered",
                f"look at {aside}",
                Severity.ERROR,
            )
            return []
        self._identity = (found.st_dev, found.st_ino)
        unpacker = msgpack.Unpacker(
            use_list=False,
            unicode_errors="surrogatepass",
            max_buffer_size=max(1, len(content)),
            max_array_len=_MAX_FIELDS,
            max_map_len=_MAX_FIELDS,
            max_ext_len=0,
        )
        unpacker.feed(content)
        entries: list[object] = []
        try:
            entries.extend(unpacker)
        except (ValueError, msgpack.UnpackException) as error:
            self._tell(
                f"damaged after {counted(len(entries), 'record')} ({error}), so inputs noted after it are not answered",
                "check the disk",
            )
        return entries

    def _write_record(self, request: str, packed: bytes) -> None:
        """Bring one change to the disk."""
        now = self._clock()
        if self._file is not None and self._size + len(packed) <= self._rewrite_above:
            try:
                self._append(packed)
            except OSError as error:
                self._fail(now, error)
            else:
                return
        elif self._file is None and self._failed_at is None:
            # Closed, or never opened.
            return
        if request in self._open or request in self._unpublished:
            self._unwritten.add(request)
        if self._file is not None or now >= self._retry_at:
            self._rewrite(now)

    def _check(self) -> None:
        """Raise OSError where the journal is no longer what was last written."""
        found = self._path.stat()
        if (found.st_dev, found.st_ino, found.st_size) != (*(self._identity or (0, 0)), self._size):
            raise OSError(errno.ESTALE, "another program has replaced or changed it")

    def _append(self, packed: bytes) -> None:
        assert self._file is not None  # noqa: S101 - the caller has looked
        self._check()
        _write(self._file, packed)
        self._size += len(packed)

    def _rewrite(self, now: float) -> None:
        """Replace the journal by one with just what is owed, in one step that a crash cannot leave half done."""
        self._close_file()
        self._retry_at = now + RETRY_S
        content = b"".join(
            (
                *map(_pack_settled, self._answered),
                *(_pack_answer(request, payload) for request, payload in self._unpublished.items()),
                *map(_pack_input, self._open.values()),
            )
        )
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            self._file = os.open(fresh, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            _write(self._file, content)
            fresh.replace(self._path)
            found = self._path.stat()
        except OSError as error:
            # Half a journal would take up what room there is.
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            self._fail(now, error)
            return
        self._identity = (found.st_dev, found.st_ino)
        self._size = len(content)
        self._rewrite_above = max(self._limit_bytes, 2 * len(content))
        self._unwritten.clear()
        if self._failed_at is not None:
            owed = len(self._open) + len(self._unpublished)
            down_s, saved = now - self._failed_at, counted(owed, "input")
            self._tell(f"works again after {down_s:.0f} s, with {saved}", severity=Severity.INFO)
            self._failed_at = None

    def _fail(self, now: float, error: OSError) -> None:
        """Go on in memory, and tell so the first time."""
        self._close_file()
        if not self._is_there():
            self._unwritten.update(self._open, self._unpublished)
        if self._failed_at is not None:
            return
        self._failed_at = now
        cost = "lose inputs" if self._keeps_inputs else "have files answered a second time"
        self._tell(
            f"cannot be written ({error.strerror or error}), so a crash of this agent would now {cost}",
            _REMEDIES.get(error.errno or 0) or remedy_of(error, "correct state_dir"),
            Severity.ERROR,
        )

    def _tell(self, what: str, remedy: str = "", severity: Severity = Severity.WARNING) -> None:
        told = Tell(kind=EventKind.DISK, what=f"spool {self._path}: {what}", remedy=remedy, severity=severity)
        self.notices.append(told)

    def _is_there(self) -> bool:
        """Whether what was last written can still be read, as far as it goes."""
        try:
            found = self._path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


_NO_FOLDER = "correct state_dir, which is not a folder"
_REMEDIES = {
    errno.ENOENT: "keep other programs from removing it while the agent runs",
    errno.ESTALE: "make sure that only one agent uses it",
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
}


def _write(file: int, content: bytes) -> None:
    """Write in one call. OSError if less was written: later records would be read as the rest of that one."""
    if os.write(file, content) < len(content):
        raise OSError(errno.ENOSPC, "only a part was written")


def _pack_input(item: AcceptedInput) -> bytes:
    tensor = item.tensor
    return _pack(1, item.request, item.name, tensor.dtype, tensor.shape, bytes(tensor.payload))


def _pack_answer(request: str, payload: bytes) -> bytes:
    return _pack(2, request, payload)


def _pack_settled(request: str) -> bytes:
    return _pack(0, request)


def _pack(*entry: object) -> bytes:
    packed: bytes = msgpack.packb(entry, unicode_errors="surrogatepass")
    return packed
