"""What the agent asks Linux: memory, and whether to trust the clock."""

from __future__ import annotations

import ctypes
import os
import time

_TIME_ERROR = 5
EARLIEST_BELIEVABLE = 1_735_689_600.0
"""2025 in Unix time, before any release: boards without a battery-backed clock start in 1970."""


def rss_bytes() -> int:
    """Resident memory of this process; 0 where /proc does not say."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 - read on every report
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def memory_mb() -> int:
    """Memory of the board in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def clock_synced() -> bool:
    """Whether the kernel says that the clock is synchronised."""
    if time.time() < EARLIEST_BELIEVABLE:
        return False
    # struct timex with modes 0 asks and sets nothing; 512 bytes hold it on every architecture.
    state: int = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
    return 0 <= state < _TIME_ERROR
