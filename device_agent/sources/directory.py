"""Inputs from files that appear in a folder."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from pathlib import Path

from device_agent.config import DirectorySource
from device_agent.sources.base import Inlet
from distree.bundle.windows import request_of
from distree.errors import RemoteProtocolError
from distree.messages.packing import printable

log = logging.getLogger(__name__)

SETTLED_S = 0.2
"""A file that changed more recently than this may still be written, and waits for the next look."""

MAX_FILE_BYTES = 16 << 20


class Directory:
    """Takes files from a folder, oldest name first: whatever `InputReader` reads.

    A recording of several windows is as many inputs, and answered when all of them are. A file stays until its result
    is with the broker, so a crash loses none; then it is moved to `done/`, or deleted. What cannot be read is moved to
    `failed/`. Names that start with a dot are left alone: write under such a name, then rename, to hand a file over in
    one step.
    """

    def __init__(self, config: DirectorySource, inlet: Inlet) -> None:
        self._config = config
        self._inlet = inlet
        self.ready = True
        self._taken: dict[Path, str | None] = {}
        self._files: dict[str, Path] = {}
        self._unanswered: dict[Path, int] = {}
        self._finished: list[Path] = []

    def run(self, stop: threading.Event) -> None:
        """Look every `poll_ms` until `stop`."""
        self._config.path.mkdir(parents=True, exist_ok=True)
        while not stop.wait(self._config.poll_ms / 1e3):
            try:
                self._put_away()
                for path in self._new_files():
                    self._take(path, stop)
            except OSError as error:
                log.warning("source %s: %s; looking again", self._config.path, error)

    def note_answered(self, request: str) -> None:
        """Note that a file is done; it is moved at the next look, outside the lock."""
        path = self._files.pop(request, None)
        if path is None:
            return
        self._unanswered[path] -= 1
        if not self._unanswered[path]:
            del self._unanswered[path]
            self._finished.append(path)

    def _new_files(self) -> list[Path]:
        settled = time.time() - SETTLED_S
        return [
            path
            for path in sorted(self._config.path.iterdir())
            if path.is_file()
            and not path.name.startswith(".")
            and path not in self._taken
            and path.stat().st_mtime < settled
        ]

    def _take(self, path: Path, stop: threading.Event) -> None:
        if not self._has_room(stop):
            return
        content = b""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise RemoteProtocolError("size", f"{path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
            content = path.read_bytes()
            found = self._inlet.reader.read_all(content)
            self._taken[path] = None
            self._unanswered[path] = len(found)
            # Named by file and time: a new file of an old name is a new input, the same file after a crash is not.
            name = printable(path.name)
            digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
            request = f"{name[:24]}-{digest}-{path.stat().st_mtime_ns:x}"
            for number, item in enumerate(found, 1):
                if number > 1 and not self._has_room(stop):
                    return  # the rest is taken by the next run, for the file stays
                window = request_of(request, number, len(found))
                self._files[window] = path
                self._inlet.accept(item.named(name), item.raw, window)
                self._inlet.work()
        except FileNotFoundError:
            return  # whoever put it there took it back
        except OSError as error:
            self._refuse(path, RemoteProtocolError("file", f"cannot be read: {error.strerror or error}"), content)
        except RemoteProtocolError as error:
            self._refuse(path, error, content)

    def _has_room(self, stop: threading.Event) -> bool:
        """Wait for room for an input; False if the agent stops first."""
        while not self._inlet.wait_for_room(0.5):
            self._put_away()
            if stop.is_set():
                return False
        return True

    def _refuse(self, path: Path, error: RemoteProtocolError, content: bytes) -> None:
        """Put a file aside; where even that is forbidden it is left where it is, and not looked at again."""
        self._inlet.reject(printable(path.name), error.reason, error.detail, content)
        try:
            self._move(path, "failed")
            self._taken.pop(path, None)
        except OSError as problem:
            self._taken[path] = None
            log.warning("source %s: %s stays where it is: %s", self._config.path, path.name, problem.strerror)

    def _put_away(self) -> None:
        while self._finished:
            path = self._finished.pop()
            if self._config.after == "delete":
                path.unlink(missing_ok=True)
            else:
                self._move(path, "done")
            self._taken.pop(path, None)

    def _move(self, path: Path, folder: str) -> None:
        target = self._config.path / folder
        target.mkdir(exist_ok=True)
        if path.exists():
            path.replace(target / path.name)
