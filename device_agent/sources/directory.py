"""Inputs from files that appear in a folder."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from device_agent.sources.base import BaseSourceConfig, InputSink
from distree.bundle.windows import request_of
from distree.errors import CHECK_PATH, RemoteProtocolError
from distree.printable import printable
from distree.record import record
from distree.strict_yaml import check_positive
from distree.transport.base import Transport

log = logging.getLogger(__name__)

SETTLED_S = 0.2
"""A file that changed more recently than this may still be being written, and waits for the next look."""

MAX_FILE_BYTES = 16 << 20

_SAVE = "save it with numpy.save"


@record
class DirectorySourceConfig(BaseSourceConfig):
    """Files that appear in a folder: images, WAV and CSV files, .npy arrays, raw values. An answered file leaves it."""

    kind: Literal["directory"]
    """Inputs from files that appear in a folder."""
    path: Path
    """The folder; created if it does not exist. Files may have up to 16 MiB, images up to 16 million pixels."""
    after: Literal["move", "delete"] = "move"
    """What to do with a file once it is answered: move it to the subfolder `done`, or delete it."""
    poll_interval_ms: float = 200
    """Time between two looks for new files."""

    path_is: ClassVar[str] = "folder of inputs"

    def __post_init__(self) -> None:
        check_positive(poll_interval_ms=self.poll_interval_ms)

    def make(self, sink: InputSink, topic: str, connection: Callable[[], Transport]) -> DirectorySource:  # noqa: ARG002
        """Make what watches the folder."""
        return DirectorySource(self, sink)

    def memory(self) -> dict[str, int]:
        """Return what one file may take."""
        return {"a file while it is read": MAX_FILE_BYTES}

    def longest_file(self) -> int:
        """Return the size of the largest file that is read."""
        return MAX_FILE_BYTES

    def shared_folders(self) -> tuple[Path, ...]:
        """Return the folder."""
        return (self.path,)


@dataclass(slots=True)
class _SubmittedFile:
    """A file whose inputs are on their way: it is finished when none of them is unanswered any more."""

    path: Path
    unanswered: int


class DirectorySource:
    """Takes files from a folder, oldest name first: whatever `InputReader` reads.

    A recording of several windows is as many inputs, and answered when all of them are. A file stays until the broker
    has its results, so a crash loses none; then it is moved to `done/`, or deleted. What cannot be read is moved to
    `failed/`. Names that start with a dot are ignored: to hand a file over in one step, write it under such a name,
    then rename it.
    """

    def __init__(self, config: DirectorySourceConfig, sink: InputSink) -> None:
        self._config = config
        self._sink = sink
        self.ready = True
        self._seen: set[Path] = set()
        self._files: dict[str, _SubmittedFile] = {}
        self._finished: list[Path] = []

    def run(self, stop: threading.Event) -> None:
        """Look every `poll_interval_ms` until `stop`."""
        self._config.path.mkdir(parents=True, exist_ok=True)
        while not stop.wait(self._config.poll_interval_ms / 1e3):
            try:
                self._put_away()
                for path in self._new_files():
                    self._submit_file(path, stop)
            except OSError as error:
                log.warning("source %s: %s; trying again", self._config.path, error)

    def note_answered(self, request: str) -> None:
        """Note that a file is done; it is moved at the next look, outside the lock."""
        file = self._files.pop(request, None)
        if file is not None:
            file.unanswered -= 1
            if not file.unanswered:
                self._finished.append(file.path)

    def _new_files(self) -> list[Path]:
        settled = time.time() - SETTLED_S
        return [
            path
            for path in sorted(self._config.path.iterdir())
            if path.is_file()
            and not path.name.startswith(".")
            and path not in self._seen
            and path.stat().st_mtime < settled
        ]

    def _submit_file(self, path: Path, stop: threading.Event) -> None:
        if not self._has_room(stop):
            return
        content = b""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                what = f"{path.stat().st_size} bytes exceed the limit of {MAX_FILE_BYTES}"
                raise RemoteProtocolError("size", what, "shrink the file")
            content = path.read_bytes()
            found = self._sink.reader.read_all(content)
            self._seen.add(path)
            file = _SubmittedFile(path, len(found))
            # Named by file and time: a new file of an old name is a new input, the same file after a crash is not.
            name = printable(path.name, 256)
            digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
            request = f"{name[:24]}-{digest}-{path.stat().st_mtime_ns:x}"
            for number, item in enumerate(found, 1):
                if number > 1 and not self._has_room(stop):
                    return  # the rest is taken by the next run, because the file stays
                window = request_of(request, number, len(found))
                self._files[window] = file
                try:
                    self._sink.submit(item.named(name), item.raw, window)
                except RemoteProtocolError:
                    del self._files[window]
                    raise
                self._sink.run_jobs()
        except FileNotFoundError:
            return  # whoever put it there removed it again
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
            self._refuse(path, RemoteProtocolError("file", what, CHECK_PATH), content)
        except RemoteProtocolError as error:
            self._refuse(path, error, content)

    def _has_room(self, stop: threading.Event) -> bool:
        """Wait for room for an input; False if the agent stops first."""
        while not self._sink.wait_for_room(0.5):
            self._put_away()
            if stop.is_set():
                return False
        return True

    def _refuse(self, path: Path, error: RemoteProtocolError, content: bytes) -> None:
        """Move a file to `failed/`; where that is not allowed it stays where it is, and is not looked at again."""
        name = printable(path.name)
        self._sink.reject(name, error, content)
        try:
            self._move(path, "failed")
            self._seen.discard(path)
        except OSError as problem:
            self._seen.add(path)
            log.warning("source %s: cannot move %s to failed/ (%s)", self._config.path, name, problem.strerror)

    def _put_away(self) -> None:
        while self._finished:
            path = self._finished.pop()
            if self._config.after == "delete":
                path.unlink(missing_ok=True)
            else:
                self._move(path, "done")
            self._seen.discard(path)

    def _move(self, path: Path, folder: str) -> None:
        target = self._config.path / folder
        target.mkdir(exist_ok=True)
        if path.exists():
            path.replace(target / path.name)
