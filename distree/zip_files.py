"""Zip files from anywhere: opened only if their table of contents is small, and their entries read within bounds.

`zipfile` makes an object of some 500 bytes for every entry that a file's table of contents lists, and unpacks bzip2 and
LZMA without a limit. Both are refused here, before anything is made of them.
"""

from __future__ import annotations

import zipfile
from typing import BinaryIO

from distree.regular_files import read_bounded

_END = b"PK\x05\x06"
_END_BYTES = 22
_LONG_END, _LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
_LONG_END_BYTES, _LOCATOR_BYTES = 56, 20
"""What stands before the end of a file of more than 2 GiB, and counts instead of it."""

_MAX_COMMENT = 0xFFFF
_ENTRY_BYTES = 46 + 320
"""An entry in the table of contents: its fixed part, and room for a name with what else may be stored there."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def open_zip(file: BinaryIO, most_entries: int) -> zipfile.ZipFile:
    """Open a zip file of at most `most_entries` entries, stored or deflated; BadZipFile for any other.

    As `zipfile` does, it may raise other exceptions for damaged files: OSError, ValueError, NotImplementedError.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_BYTES - _MAX_COMMENT - _LONG_END_BYTES - _LOCATOR_BYTES))
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise zipfile.BadZipFile("it is not a zip file, or is cut off")
    if _table_bytes(tail, at) > most_entries * _ENTRY_BYTES:
        raise zipfile.BadZipFile(f"its table of contents has room for more than {most_entries:,} entries")
    archive = zipfile.ZipFile(file)
    if len(archive.infolist()) > most_entries:
        raise zipfile.BadZipFile(f"it has more than {most_entries:,} entries")
    for entry in archive.infolist():
        if entry.compress_type not in _METHODS:
            raise zipfile.BadZipFile(f"it is compressed by method {entry.compress_type}, where 0 and 8 are read")
    return archive


def _table_bytes(tail: bytes, at: int) -> int:
    """Return how long the table of contents is, by the end of the file, which is at `at` of its last bytes."""
    locator = at - _LOCATOR_BYTES
    long_end = locator - _LONG_END_BYTES
    if long_end >= 0 and tail.startswith(_LOCATOR, locator) and tail.startswith(_LONG_END, long_end):
        return int.from_bytes(tail[long_end + 40 : long_end + 48], "little")
    return int.from_bytes(tail[at + 12 : at + 16], "little")


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, most_bytes: int) -> bytes:
    """Return the content of an entry; OSError if it has more than `most_bytes`, whatever its header says."""
    with archive.open(entry) as file:
        return read_bounded(file, most_bytes)
