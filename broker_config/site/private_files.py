"""Files and folders that only their owner may read, changed by one command at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from distree.errors import ConfigError

LOCK = ".lock"
LOCK_PATIENCE_S = 30.0
"""How long a command waits for another one to end: longer than it waits for a broker."""


def check_owner(folder: Path) -> None:
    """Raise ConfigError if a folder that exists belongs to another user."""
    if folder.exists() and (owner := folder.stat().st_uid) != os.geteuid():
        # Root could, but what it writes here could not be read by the broker, which goes on as the owner.
        name = user_name(owner) or f"#{owner}"
        raise ConfigError(
            f"{folder} belongs to the user {name}; the broker could not read what another user writes there",
            f"run this as that user: sudo -u {name} distree broker …",
        )


def user_name(number: int) -> str | None:
    """Return the name of a user by number; None if it has none, as in some containers."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands from changing a folder; ConfigError if another one does not end in time.

    The system releases the lock however the process ends.
    """
    with os.fdopen(
        os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600), "wb"
    ) as file:
        until = time.monotonic() + LOCK_PATIENCE_S
        while not _try_lock(file.fileno()):
            if time.monotonic() > until:
                raise ConfigError(
                    f"{folder} is still being changed by another `distree broker` after {LOCK_PATIENCE_S:g} s",
                    "wait until it has ended, and try again",
                )
            time.sleep(0.05)
        yield


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    made = path.with_name(f".{path.name}.new")
    made.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)  # a full disk does not say which file it had no room for
        raise
    made.replace(path)


def delete(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
