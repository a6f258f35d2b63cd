"""What to call this machine in a report: its processor or accelerator, never its name."""

from __future__ import annotations

import os
import platform

_NAMES = {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "64-bit ARM", "armv7l": "32-bit ARM"}


def processor() -> str:
    """Return the number of cores that this process may use, and their kind, as in "2 x86-64 cores"."""
    count = len(os.sched_getaffinity(0))
    kind = platform.machine()
    return f"{count} {_NAMES.get(kind, kind)} core{'' if count == 1 else 's'}"
