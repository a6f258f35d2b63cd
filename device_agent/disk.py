"""What to do about an error of a disk, in words for people."""

from __future__ import annotations

import errno

_FULL, _FORBIDDEN = "free some space there", "let the agent's user write there"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: "make the file system writable",
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
}


def remedy_of(error: OSError, otherwise: str, *, unknown: str = "check the disk") -> str:
    """Return how to fix it; `otherwise` is the other way out, which is always there.

    >>> remedy_of(OSError(errno.ENOSPC, ""), "correct state_dir")
    'free some space there, or correct state_dir'
    """
    return f"{_REMEDIES.get(error.errno or 0, unknown)}, or {otherwise}"
