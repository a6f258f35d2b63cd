"""What a file is: not its name, but what it holds.

A camera may write all its pictures under one name, and a picture may equal the one before. So a file is known by its
name, its content and the time at which it was last changed. The inode is no part of that: some file systems number
their files anew each time they are mounted.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from distree.errors import RemoteProtocolError
from distree.printable import printable
from distree.record import record
from distree.regular_files import kind_other_than_file

_PUT_FILES = "put the file itself there"


class FileChangedError(Exception):
    """A file was changed while it was read: it is not finished."""


class FileState(NamedTuple):
    """What a look at a file tells without reading it. Times are the file system's, and only compared for equality."""

    inode: int
    size: int
    mtime_ns: int


@record
class FileContent:
    """A file that was read: its state, its bytes, and the request id of what it holds."""

    state: FileState
    content: bytes
    request: str


def look(path: Path | str) -> FileState | None:
    """Return the state of a file, following a symbolic link; None if there is no such file.

    Raises OSError where that cannot be found out, as on a share whose server does not answer.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - called for each of thousands of files
    except OSError as error:
        try:
            found = os.lstat(path)  # a link to nothing is something all the same
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISLNK(found.st_mode):
            raise error from None
    return FileState(found.st_ino, found.st_size, found.st_mtime_ns)


def read(path: Path, name: str, most_bytes: int) -> FileContent:
    """Read a file, by symbolic links too; `name` is its own name in the folder.

    Raises RemoteProtocolError("kind") for what is no file, RemoteProtocolError("size") for a file of more than
    `most_bytes`, FileChangedError if it changes meanwhile, and OSError.
    """
    try:
        _check_kind(os.stat(path).st_mode)  # noqa: PTH116 - opening a pipe may wait, and opening a device may do anything
    except FileNotFoundError:
        if path.is_symlink():
            raise RemoteProtocolError("kind", "is a symbolic link to nothing", _PUT_FILES) from None
        raise
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        before = os.fstat(file)
        _check_kind(before.st_mode)
        if before.st_size > most_bytes:
            what = f"{before.st_size} bytes exceed the limit of {most_bytes}"
            raise RemoteProtocolError("size", what, "shrink the file")
        content = _read(file, before.st_size + 1)
        after = os.fstat(file)
    finally:
        os.close(file)
    if _seen(before) != _seen(after) or len(content) != after.st_size:
        raise FileChangedError
    state = FileState(after.st_ino, after.st_size, after.st_mtime_ns)
    return FileContent(state=state, content=content, request=request_id(name, content, state.mtime_ns))


def request_id(name: str, content: bytes, mtime_ns: int) -> str:
    """Return the request id of a picture: the same for the same file after a crash, another for a new picture.

    At most 49 characters, so that the number of a window still fits.
    """
    digest = hashlib.blake2b(content, digest_size=16)
    digest.update(b"%d " % mtime_ns + os.fsencode(name))
    return f"{printable(name, 24)}-{digest.hexdigest()[:24]}"


def _check_kind(mode: int) -> None:
    kind = kind_other_than_file(mode)
    if kind is not None:
        raise RemoteProtocolError("kind", f"is {kind}, or a link to one", _PUT_FILES)


def _seen(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(file: int, most_bytes: int) -> bytes:
    """Read to the end, or `most_bytes`: one more than the file had, so that one that grows is noticed."""
    parts, left = [], most_bytes
    while left and (part := os.read(file, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
