"""Imported by Python at its start where this folder is on its path: adds what a file says to the wall clock.

The file is named by CHAOS_CLOCK and holds seconds. The monotonic clock stays as it is, as it does when somebody sets
the clock of a real machine.
"""

import datetime as datetimes
import os
import time
from pathlib import Path
from typing import Any

_FILE = Path(os.environ["CHAOS_CLOCK"])
_real_time = time.time


def _ahead() -> float:
    return float(_FILE.read_text())


class _Datetime(datetimes.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return super().now(tz) + datetimes.timedelta(seconds=_ahead())


time.time = lambda: _real_time() + _ahead()
time.time_ns = lambda: int(time.time() * 1e9)
datetimes.datetime = _Datetime  # type: ignore[misc]
