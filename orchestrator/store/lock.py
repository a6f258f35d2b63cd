"""Which service uses a store: a lock beside the file, which the system releases however the process ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from distree.regular_files import open_regular
from orchestrator.store.connection import CHECK_STORE, StoreError


def _lock_path(store: Path) -> Path:
    return Path(f"{store}.lock")


class ServiceLock:
    """Held by the one service that uses a store, so that a second one is refused and readers know of it."""

    def __init__(self, store: Path) -> None:
        self._path = _lock_path(store)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> ServiceLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock; StoreError if another service has it or the folder cannot be written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Opening a pipe would wait.
            file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644), "wb")
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}", CHECK_STORE) from None
        if not _lock(file):
            file.close()
            what = f"{self._path}: another orchestrator is already using this store"
            raise StoreError(what, "stop it, or change store.path")
        self._file = file

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _lock(file: IO[bytes]) -> bool:
    # `is_served` holds the lock for a moment, which must not be taken for a service.
    return _try_lock(file) or any(_try_lock(file, pause_s) for pause_s in (0.02, 0.1))


def _try_lock(file: IO[bytes], pause_s: float = 0.0) -> bool:
    time.sleep(pause_s)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_served(store: Path) -> bool:
    """Whether a service on this machine is using the store at this moment."""
    try:
        with open_regular(_lock_path(store)) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
