"""Inputs from files that appear in a folder: what agent.yaml says of it, and the source itself."""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from device_agent.disk import remedy_of
from device_agent.sources.base import BaseSourceConfig, InputSink
from device_agent.sources.directory.identity import FileChangedError, FileContent, FileState, look, read
from device_agent.sources.directory.inotify import Inotify
from device_agent.sources.directory.journal import LIMIT_BYTES, MAX_FILES, Journal, Place, SettledFile
from device_agent.sources.directory.names import DONE, FAILED
from device_agent.sources.directory.put_away import Outcome, PutAway
from device_agent.sources.directory.retention import Retention
from device_agent.sources.directory.watch import Watch
from distree.bundle.windows import request_of
from distree.errors import CHECK_PATH, RemoteProtocolError
from distree.formatting import counted
from distree.log_throttle import INTERVAL_S
from distree.messages.events import EventKind, Severity
from distree.printable import printable, quoted
from distree.record import record
from distree.strict_yaml import check_positive
from distree.transport.base import Transport

if TYPE_CHECKING:
    from distree.bundle.inputs import RawInput

MAX_FILE_BYTES = 16 << 20

_JOURNAL = "files.journal"

_ROOM_S = 0.25
"""How long is waited for room before the folder is looked at again."""

_LONGEST_WAIT_S = 0.5
"""How long is waited before the agent's end is noticed."""

_BATCH_S = 0.005
"""How long the kernel gathers what it says of a file that is being written: each write is an event."""

_TELL_S = INTERVAL_S + 1.0
"""Shortest time between two events on files that were overwritten: none is left out, so that all are counted."""

_LINGER_S = 10.0
"""How long the source waits at the agent's end for answers to files that are under way, to put those away, too."""


@record
class DirectorySourceConfig(BaseSourceConfig):
    """Files that appear in a folder: images, WAV and CSV files, .npy arrays, raw values. An answered file leaves it."""

    kind: Literal["directory"]
    """Inputs from files that appear in a folder."""
    path: Path
    """The folder; created if it does not exist. Files may have up to 16 MiB, images up to 16 million pixels."""
    after: Literal["move", "delete", "keep"] = "move"
    """What to do with a file once it is answered: move it to the subfolder `done`, delete it, or keep it where it is.
    With `keep`, files that were refused stay, too; otherwise they are moved to the subfolder `failed`."""
    keep_files: int = 10_000
    """Most files kept in `done`, and as many in `failed`; beyond that the oldest are deleted."""
    keep_mib: int = 500
    """Most MiB kept in `done`, and as many in `failed`; beyond that the oldest are deleted."""
    quiet_ms: float = 1000
    """How long a file must not change before it counts as finished. It matters only for files of whose writer the
    kernel says nothing: those that are there at the start, and those that another machine writes to a network share."""
    poll_interval_ms: float = 200
    """Time between two looks at the folder where the kernel does not tell of all changes."""

    path_is: ClassVar[str] = "folder of inputs"
    keeps_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(
            keep_files=self.keep_files,
            keep_mib=self.keep_mib,
            quiet_ms=self.quiet_ms,
            poll_interval_ms=self.poll_interval_ms,
        )

    def make(self, sink: InputSink, topic: str, connection: Callable[[], Transport]) -> DirectorySource:  # noqa: ARG002
        """Make what watches the folder."""
        return DirectorySource(self, sink)

    def memory(self) -> dict[str, int]:
        """Return what one file may take, and the lists of files."""
        kept = _KEPT_BYTES * MAX_FILES if self.after == "keep" else 2 * _NAME_BYTES * self.keep_files
        return {"a file while it is read": MAX_FILE_BYTES, "lists of files": _LIST_BYTES + kept}

    def longest_file(self) -> int:
        """Return the size of the largest file that is read."""
        return MAX_FILE_BYTES

    def disk_bytes(self) -> int:
        """Return what the journal takes, and its successor while it is rewritten."""
        return 2 * LIMIT_BYTES

    def shared_folders(self) -> tuple[Path, ...]:
        """Return the folder, and those elsewhere to which its subfolders are links."""
        subfolders = (self.path / DONE, self.path / FAILED)
        return (self.path, *(folder.resolve() for folder in subfolders if folder.is_symlink()))


_LIST_BYTES = 8 << 20
_NAME_BYTES = 200
_KEPT_BYTES = 600
"""Memory for the files that wait to be read, with names of usual length; for each that is kept in a subfolder; and for
each that is kept where it is.
"""


@dataclass(slots=True)
class _SubmittedFile:
    """A file whose inputs are on their way: it is answered when none of them is unanswered any more."""

    settled: SettledFile
    unanswered: int


class DirectorySource:
    """Takes files from a folder, the one that waits longest first: whatever `InputReader` reads.

    A recording of several windows is as many inputs, and answered when all of them are. A file stays until the broker
    has its results, so a crash loses none; then it is put away. What cannot be read is moved to `failed/`. Of a name
    that is overwritten faster than it is read, the newest content is read, and what was not is counted.
    """

    def __init__(
        self, config: DirectorySourceConfig, sink: InputSink, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._folder = config.path
        self._sink = sink
        self._clock = clock
        self._has_events = False
        self.ready = True
        self._files: dict[str, _SubmittedFile] = {}
        self._answered: deque[SettledFile] = deque()
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._waker).atexit = False  # not after `run`: answers may come later
        self._journal = Journal(sink.state_dir / _JOURNAL, sink.tell, clock)
        self._kernel, blind = _kernel()
        self._watch = Watch(
            config.path,
            quiet_s=config.quiet_ms / 1e3,
            poll_s=config.poll_interval_ms / 1e3,
            kernel=self._kernel,
            clock=clock,
        )
        self._watch.blind = blind
        most_bytes = config.keep_mib << 20
        places: dict[str, tuple[Place, ...]] = {"move": ("done", "failed"), "delete": ("failed",), "keep": ()}
        self._put_away = PutAway(
            config.path,
            delete=config.after == "delete",
            kept={
                place: Retention(config.path / place, config.keep_files, most_bytes, sink.tell)
                for place in places[config.after]
            },
            most_bytes=MAX_FILE_BYTES,
            tell=sink.tell,
            note_stays=self._note_stays,
            clock=clock,
        )
        self._said_missing = self._said_blind = self._said_full = False
        self._said_overwritten = 0
        self._say_overwritten_at = 0.0

    @property
    def overwritten(self) -> int:
        """How many files were overwritten before they could be read, as far as that was seen."""
        return self._watch.overwritten

    def note_answered(self, request: str) -> None:
        """Note that an input is answered; its file is put away by the source's thread, outside the lock."""
        file = self._files.pop(request, None)
        if file is not None:
            file.unanswered -= 1
            if not file.unanswered:
                self._answered.append(file.settled)
                os.eventfd_write(self._waker, 1)

    def run(self, stop: threading.Event) -> None:
        """Take files until `stop`."""
        try:
            self.begin()
            while not stop.is_set():
                if not self.turn(stop):
                    self._wait(stop)
            self._linger()
        finally:
            self._put_away.close()
            self._watch.close()
            self._journal.close()

    # ------------------------------------------------------------ life

    def begin(self) -> None:
        """Take up what an earlier run left; `run` does this first."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._put_away.restore()
        except OSError as error:
            self._tell_missing(error)
        for file in self._journal.load(self._is_still_there):
            self._watch.settle(file.name, file.state, file.request)
            self._dispose(file)

    def turn(self, stop: threading.Event) -> bool:
        """Do what is due, and take a file if there is room; return whether there may be more to do at once."""
        self._has_events = self._work()
        if not self._watch.has_finished or self._journal.is_full:
            return False
        if self._sink.wait_for_room(_ROOM_S):
            self._work()  # what was overwritten meanwhile need not be read
            if (name := self._watch.take()) is not None:
                self._take(name, stop)
        return True

    def _is_still_there(self, file: SettledFile) -> bool:
        with contextlib.suppress(OSError):
            state = look(self._folder / file.name)
            # Some file systems number their files anew: then it is read again to see what it holds.
            return state is not None and state[1:] == file.state[1:]
        return False

    def _work(self) -> bool:
        """See to what was answered and to what the folder brings; return whether the kernel has told of anything."""
        self._settle_answered()
        has_events = self._watch.turn()
        self._note_outcomes(self._put_away.turn())
        while self._watch.gone:
            self._journal.note_absent(self._watch.gone.pop())
        self._tell_news()
        return has_events

    def _note_outcomes(self, outcomes: list[tuple[SettledFile, Outcome]]) -> None:
        for file, outcome in outcomes:
            match outcome:
                case "away":
                    self._journal.drop(file)
                case "gone":
                    self._journal.note_absent(file.name)
                case "returned":
                    self._watch.note_returned(file.name)
                    self._journal.drop(file)
                    self._watch.look_again(file.name)
                case "overwritten":
                    self._watch.note_overwritten(file.name)

    def _note_stays(self, file: SettledFile) -> None:
        self._watch.note_returned(file.name)
        self._watch.settle(file.name, file.state, file.request)
        self._journal.note([file])

    def _wait(self, stop: threading.Event) -> None:
        """Wait until there is something to do."""
        if self._has_events:
            stop.wait(_BATCH_S)
        due_at = min(self._watch.due_at(), self._put_away.due_at())
        wait_s = min(max(0.0, due_at - self._clock()), _LONGEST_WAIT_S)
        files = [self._waker] if self._kernel is None else [self._waker, self._kernel.file]
        self._wait_for(files, wait_s)

    def _wait_for(self, files: list[int], wait_s: float) -> None:
        poll = select.poll()
        for file in files:
            poll.register(file, select.POLLIN)
        poll.poll(math.ceil(wait_s * 1e3))
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._waker)

    def _linger(self) -> None:
        """Put away what is answered while the agent ends."""
        ends_at = self._clock() + _LINGER_S
        while self._files and self._clock() < ends_at:
            self._wait_for([self._waker], 0.1)
            self._work()
        self._say_overwritten_at = 0.0
        self._work()
        self._note_outcomes(self._put_away.turn(at_once=True))

    # ------------------------------------------------------------ a file

    def _take(self, name: str, stop: threading.Event) -> None:
        """Read a finished file, and submit what it holds."""
        found: FileContent | None = None
        try:
            if name in (DONE, FAILED):
                what = "a file must not have the name of the folder for files that are done with"
                raise RemoteProtocolError("kind", what, "give it another name")
            found = read(self._folder / name, name, MAX_FILE_BYTES)
            if not self._watch.is_untouched(name) or self._is_known(name, found):
                return
            inputs = self._sink.reader.read_all(found.content)
        except FileNotFoundError:
            self._watch.forget(name)  # whoever put it there removed it again
        except FileChangedError:
            self._watch.note_changed(name)
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
            self._doubt(name, RemoteProtocolError("file", what, CHECK_PATH), found)
        except RemoteProtocolError as error:
            self._doubt(name, error, found)
        else:
            self._watch.note_read(name, found.state, found.request)
            self._submit(name, found, inputs, stop)

    def _is_known(self, name: str, found: FileContent) -> bool:
        """Whether what a file holds is under way or answered: then it is put away, if it was not yet."""
        settled = self._journal.get(name, found.request)
        if settled is None and self._watch.knows(name, found.request):
            self._watch.note_read(name, found.state, found.request)
            return True
        if settled is None:
            return False
        self._watch.note_read(name, found.state, found.request)
        settled = SettledFile(name=name, state=found.state, request=found.request, place=settled.place)
        self._journal.note([settled])
        self._dispose(settled)
        return True

    def _submit(self, name: str, found: FileContent, inputs: list[RawInput], stop: threading.Event) -> None:
        settled = SettledFile(name=name, state=found.state, request=found.request, place="done")
        file = _SubmittedFile(settled, len(inputs))
        shown = printable(name, 256)
        for number, item in enumerate(inputs, 1):
            if number > 1 and not self._has_room(stop):
                return  # the rest is taken by the next run, because the file stays
            window = request_of(found.request, number, len(inputs))
            self._files[window] = file
            try:
                self._sink.submit(item.named(shown), item.raw, window)
            except RemoteProtocolError as error:
                del self._files[window]
                self._refuse(name, error, found.state, found.request, found.content)
                return
            self._sink.run_jobs()

    def _has_room(self, stop: threading.Event) -> bool:
        """Wait for room for an input; False if the agent stops first."""
        while not self._sink.wait_for_room(_ROOM_S):
            self._work()
            if stop.is_set():
                return False
        return True

    # ------------------------------------------------------------ what becomes of it

    def _doubt(self, name: str, error: RemoteProtocolError, found: FileContent | None) -> None:
        """Refuse a file that is no input, unless it may not be finished yet."""
        # An empty file is what some programs make before they write; one that cannot be read now may be so later.
        is_complete = bool(found.content) if found is not None else error.reason != "file"
        if error.reason != "kind" and not self._watch.is_hopeless(name, is_complete=is_complete):
            return
        state = None if found is None else found.state
        with contextlib.suppress(OSError):
            state = state or look(self._folder / name)
        if state is None:
            self._watch.forget(name)
            return
        request = "" if found is None else found.request
        self._watch.note_read(name, state, request)
        self._refuse(name, error, state, request, b"" if found is None else found.content)

    def _refuse(self, name: str, error: RemoteProtocolError, state: FileState, request: str, content: bytes) -> None:
        self._sink.reject(printable(name), error, content)
        file = SettledFile(name=name, state=state, request=request, place="failed")
        self._journal.note([file])
        self._dispose(file)

    def _settle_answered(self) -> None:
        """Note in the journal what was answered, before anything is done with it."""
        files = []
        while self._answered:
            file = self._answered.popleft()
            with contextlib.suppress(OSError):
                state = look(self._folder / file.name)
                if state is not None and state != file.state:
                    continue  # it was overwritten meanwhile
            files.append(file)
        self._journal.note(files)
        for file in files:
            self._dispose(file)

    def _dispose(self, file: SettledFile) -> None:
        if self._config.after != "keep":
            self._put_away.add(file)

    # ------------------------------------------------------------ what people should know

    def _tell_news(self) -> None:
        if (missing := self._watch.missing) is not None:
            self._tell_missing(missing)
        elif self._said_missing:
            self._said_missing = False
            self._sink.tell(EventKind.SOURCE, f"folder {self._folder} is there again", severity=Severity.INFO)
        if (blind := self._watch.blind) is not None and not self._said_blind:
            self._sink.tell(
                EventKind.SOURCE,
                f"the kernel cannot watch folder {self._folder} ({blind.strerror}), so files are found by looking, "
                "which is slower",
                "raise fs.inotify.max_user_watches and max_user_instances (sysctl)",
            )
        self._said_blind = blind is not None
        if self._journal.is_full and not self._said_full:
            what = f"{counted(MAX_FILES, 'file')} in {self._folder} are answered or refused; no more are read"
            self._sink.tell(EventKind.SOURCE, what, "move or delete some of them", severity=Severity.ERROR)
        self._said_full = self._journal.is_full
        while self._watch.subfolders:
            what = f"{quoted(self._watch.subfolders.pop())} in {self._folder} is a folder, and is not looked into"
            self._sink.tell(
                EventKind.SOURCE, what, f"put files right into {self._folder}", severity=Severity.INFO, like="subfolder"
            )
        self._tell_overwritten()

    def _tell_overwritten(self) -> None:
        count, now = self._watch.overwritten, self._clock()
        if count == self._said_overwritten or now < self._say_overwritten_at:
            return
        self._sink.tell(
            EventKind.SOURCE,
            f"{counted(count - self._said_overwritten, 'file')} overwritten before being read, the last of them "
            f"{quoted(self._watch.last_overwritten)}; {count} since the start",
            "give each picture a name of its own, or take fewer",
            severity=Severity.INFO,
            like="overwritten",
        )
        self._said_overwritten, self._say_overwritten_at = count, now + _TELL_S

    def _tell_missing(self, error: OSError) -> None:
        if not self._said_missing:
            self._said_missing = True
            why = error.strerror or error
            remedy = remedy_of(error, "correct path", unknown="create the folder")
            self._sink.tell(EventKind.SOURCE, f"folder {self._folder} cannot be read ({why})", remedy)


def _kernel() -> tuple[Inotify | None, OSError | None]:
    """Return what asks the kernel, or why that is not possible."""
    try:
        return Inotify(), None
    except OSError as error:
        return None, error
