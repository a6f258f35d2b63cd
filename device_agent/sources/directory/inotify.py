"""What the kernel says of a folder: Linux's inotify, called by ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import weakref
from pathlib import Path
from typing import NamedTuple

MODIFY = 0x2
CLOSE_WRITE = 0x8
CLOSE_NOWRITE = 0x10
OPEN = 0x20
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
OVERFLOW = 0x4000
IGNORED = 0x8000
IS_DIR = 0x40000000

LOST = DELETE_SELF | MOVE_SELF | UNMOUNT | IGNORED
"""The folder that is watched is no longer the one at its path."""

_ONLY_DIR = 0x01000000
_OF_FILES = MODIFY | CLOSE_WRITE | CLOSE_NOWRITE | OPEN | MOVED_FROM | MOVED_TO | CREATE | DELETE
_WANTED = _OF_FILES | DELETE_SELF | MOVE_SELF | _ONLY_DIR
_HEADER = struct.Struct("iIII")
_READ_BYTES = 1 << 16

_ON_DISKS = ("bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfsplus", "jffs2", "jfs", "msdos", "ntfs3")
LOCAL = frozenset((*_ON_DISKS, "overlay", "ramfs", "reiserfs", "tmpfs", "ubifs", "vfat", "xfs", "zfs"))
"""File systems that no other machine writes to, so that the kernel knows of every change."""


class FolderEvent(NamedTuple):
    """Something that happened in the folder; `name` is "" where it happened to the folder itself."""

    mask: int
    name: str


class Inotify:
    """Watches one folder at a time. OSError where the kernel does not have it, or has no more watches to give."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watch = -1
        self.file = self._call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
        """The descriptor to wait for."""
        self._close = weakref.finalize(self, os.close, self.file)  # the kernel has few of them to give
        self._close.atexit = False

    def watch(self, folder: Path) -> None:
        """Watch this folder, and no other; OSError if that is not possible."""
        if self._watch >= 0:
            with contextlib.suppress(OSError):  # gone with its folder
                self._call("inotify_rm_watch", self.file, self._watch)
            self._watch = -1
        self._watch = self._call("inotify_add_watch", self.file, os.fsencode(folder), _WANTED)

    def read(self) -> list[FolderEvent]:
        """Return what has happened since the last call, in order; without waiting."""
        events: list[FolderEvent] = []
        while True:
            try:
                content = os.read(self.file, _READ_BYTES)
            except BlockingIOError:
                return events
            at = 0
            while at < len(content):
                watch, mask, _, length = _HEADER.unpack_from(content, at)
                at += _HEADER.size + length
                if watch == self._watch or mask & OVERFLOW:
                    name = content[at - length : at].rstrip(b"\0")
                    events.append(FolderEvent(mask, os.fsdecode(name)))

    def close(self) -> None:
        """Watch nothing any more."""
        self._close()

    def _call(self, name: str, *args: int | bytes) -> int:
        function = getattr(self._libc, name, None)
        if function is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        result: int = function(*args)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


def is_local(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Tell whether the kernel of this machine sees every change in a folder; False if that is not known."""
    where = os.path.realpath(folder)
    kind, longest = "", -1
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = fields.split(" ")[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        # Of several on one mount point the last is seen.
        if len(point) >= longest and (where == point or where.startswith(point.rstrip("/") + "/")):
            kind, longest = rest.split(" ")[0], len(point)
    return kind in LOCAL
