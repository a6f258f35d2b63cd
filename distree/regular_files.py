"""Reading files that others may have made: only regular ones, and never more bytes than the reader has a use for.

A pipe would be waited for, a device may never end, and a sparse file can be larger than the disk. So every file that
is not this program's own is opened here. Whatever is wrong comes as an OSError whose `strerror` can be shown.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

_PIECE = 1 << 20

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


def kind_other_than_file(mode: int) -> str | None:
    """Return what an `st_mode` says that something is, such as "a pipe"; None for a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def open_regular(path: Path | str) -> BinaryIO:
    """Open a file for reading, through symbolic links too; OSError if it cannot be, or is no regular file."""
    # Looked at first: opening a pipe may wait, and opening a device may do anything.
    _check(os.stat(path))  # noqa: PTH116 - a text will do
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        # It may have been replaced meanwhile.
        _check(os.fstat(file))
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def read_regular(path: Path | str, most_bytes: int) -> bytes:
    """Return the content of a file; OSError as for `open_regular`, and if it has more than `most_bytes`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        return read_bounded(file, most_bytes, size) if size <= most_bytes else _refuse(most_bytes)


class Readable(Protocol):
    """What bytes can be read from: a file, or what unpacks one."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, b"" at the end."""


def read_bounded(file: Readable, most_bytes: int, expected_bytes: int = 0) -> bytes:
    """Return the rest of an open file, or of what is unpacked from one; OSError if it has more than `most_bytes`.

    Python takes memory for all that is asked for: so that is what is expected, and then a piece at a time.
    """
    content, wanted = bytearray(), min(expected_bytes, most_bytes) + 1
    while part := file.read(wanted):
        content += part
        if len(content) > most_bytes:
            _refuse(most_bytes)
        wanted = _PIECE
    return bytes(content)


def _refuse(most_bytes: int) -> NoReturn:
    raise OSError(errno.EFBIG, f"longer than {most_bytes:,} bytes")


def _check(found: os.stat_result) -> None:
    kind = kind_other_than_file(found.st_mode)
    if kind is not None:
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")
