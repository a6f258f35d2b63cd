"""A wall clock that Python processes read through a file; their monotonic clock stays as it is.

Setting the machine's own clock would hit everybody on it, a time namespace has no wall clock, and libfaketime 0.9.10
breaks `time.sleep` (EINVAL). So `jumping_clock/sitecustomize.py` takes the place of Python's functions.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.chaos.site import ROOT

_PATCH = Path(__file__).parent / "jumping_clock"


class Clock:
    """The wall clock of all who are started with `environment`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.environment = {"CHAOS_CLOCK": str(path), "PYTHONPATH": os.pathsep.join((str(_PATCH), str(ROOT)))}
        self.jump(0)

    def jump(self, hours: float) -> None:
        """Set the clock so many hours ahead of the machine's, or behind it."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{3600 * hours:+.0f}\n")
        new.rename(self._path)
