"""Names in a folder that are no inputs: unfinished files of programs that write or fetch them, and the system's own."""

from __future__ import annotations

DONE, FAILED = "done", "failed"
"""Subfolders for files that were answered, and for those that were refused."""

PARTIAL = (".part", ".partial", ".filepart", ".tmp", ".temp", ".crdownload", ".download", ".swp", "~")
"""Ends of the names of unfinished files: FTP and SFTP clients, browsers, editors. Upper or lower case."""

OF_THE_SYSTEM = ("thumbs.db", "desktop.ini")
"""What Windows puts into folders. Upper or lower case."""


def is_ignored(name: str) -> bool:
    """Tell whether a file of this name is left alone, however long it lies there.

    A leading dot stands for rsync's `.name.XXXXXX` and macOS's `._name`, too.

    >>> [is_ignored(name) for name in ("a.jpg.part", ".a.jpg.Xk3fQz", "Thumbs.db", "a.jpg")]
    [True, True, True, False]
    """
    small = name.lower()
    return name.startswith(".") or small.endswith(PARTIAL) or small in OF_THE_SYSTEM
