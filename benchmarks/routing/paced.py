"""`python paced.py MS …`: `distree …`, but each segment takes `MS` milliseconds at the least.

A board's speed is so its own, and not this machine's: boards of 5 and of 20 ms can share two cores. It takes the
`distree` that stands first on the path, so that it can slow agents of other checkouts down too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from distree.bundle.runtimes.tflite import TFLiteRuntime


def at_least(seconds: float, run: Callable[..., Any]) -> Callable[..., Any]:
    """Return `run`, which sleeps until so many seconds have passed."""

    def paced(*args: Any) -> Any:
        ends_at = time.perf_counter() + seconds
        output = run(*args)
        left_s = ends_at - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)
        return output

    return paced


def pace(milliseconds: float) -> None:
    """Have each segment of this process take so long at the least."""
    if milliseconds:
        TFLiteRuntime.run = at_least(milliseconds / 1000, TFLiteRuntime.run)  # type: ignore[method-assign]


if __name__ == "__main__":
    from distree.apps.cli import main

    pace(float(sys.argv[1]))
    sys.argv = ["distree", *sys.argv[2:]]
    sys.exit(main())
