"""A small disk that fills and empties: a tmpfs of a few MiB, which only root can mount."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chaos.site import CannotPlayError

SIZE_MIB = 16
_FILLER = "filler"
_PIECE = bytes(1 << 16)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of SIZE_MIB at a folder; CannotPlayError where that is not allowed."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=700", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        raise CannotPlayError("cannot mount a tmpfs: run it as root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no room for a single byte on a folder's disk."""
    with (folder / _FILLER).open("ab", buffering=0) as file:
        for piece in (_PIECE, b"\0"):
            try:
                while True:
                    file.write(piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        os.fsync(file.fileno())


def empty(folder: Path) -> None:
    """Make room again."""
    (folder / _FILLER).unlink()
