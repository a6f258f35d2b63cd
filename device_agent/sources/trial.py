"""Tries an output for a moment, as `distree doctor` does: whether something comes from it, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable

from device_agent.sources.output import Output, OutputReader
from distree.errors import ConfigError, RemoteProtocolError
from distree.record import record

_TURN_S = 0.2
_MEASURED_S = 2.0
"""How long it is measured how fast things come."""


@record
class Trial:
    """How long the first thing took to come, and for how long others were awaited after it; in seconds."""

    first_s: float
    measured_s: float

    def rate_hz(self, count: int) -> float:
        """Return how fast `count` things came in all, the first included."""
        return (count - 1) / self.measured_s if self.measured_s > 0 else 0.0

    def words(self, count: int) -> str:
        """Say it."""
        rate = self.rate_hz(count)
        return f"the first after {self.first_s:.1f} s" + (f", then {rate:.3g} per second" if rate > 0 else "")


def try_output(
    open_output: Callable[[], Output],
    reader: OutputReader,
    expects: str,
    remedy_for: Callable[[str], str],
    timeout_s: float,
) -> Trial:
    """Read an output until something has come, and for a while longer; ConfigError if nothing comes in time."""
    started_at = time.monotonic()
    try:
        output = open_output()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(reason, remedy_for(reason)) from None
    first_at, ends_at = 0.0, started_at + timeout_s - 1.5  # to end a program takes time, too
    try:
        while (now := time.monotonic()) < ends_at:
            piece = output.read(_TURN_S)
            if piece == b"":
                reader.end()
                reason = output.finish(1.0).reason
                break
            if piece is not None and reader.take(piece) and not first_at:
                first_at = time.monotonic()
                ends_at = min(ends_at, first_at + _MEASURED_S)
        else:
            reason = f"no {expects} for {timeout_s:.3g} s"
            reason += f" ({output.last_line})" if output.last_line else ""
    except RemoteProtocolError as error:
        raise ConfigError(error.detail, error.remedy) from None
    finally:
        output.finish()
    if not first_at:
        raise ConfigError(reason, remedy_for(reason))
    return Trial(first_s=first_at - started_at, measured_s=now - first_at)
