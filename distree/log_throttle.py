"""Limits how often a repeated log line appears, and counts the lines left out."""

from __future__ import annotations

from collections import deque

INTERVAL_S = 5.0
"""Shortest time between two lines of one kind, in seconds."""

_LINES = 64


class LogThrottle:
    """Decides which of the log lines that repeat are written: one of a kind in `interval_s` seconds.

    With `burst`, at most so many lines of all kinds are written in that time; the next one counts the others.

    >>> throttle = LogThrottle()
    >>> throttle.line(0.0, "the connection is lost")
    'the connection is lost'
    >>> throttle.line(1.0, "the connection is lost"), throttle.line(2.0, "the connection is lost")
    (None, None)
    >>> throttle.line(9.0, "the connection is lost")
    'the connection is lost (and 2 times before)'
    """

    def __init__(self, interval_s: float = INTERVAL_S, *, burst: int | None = None) -> None:
        self._interval_s = interval_s
        self._recent: deque[float] | None = None if burst is None else deque(maxlen=burst)
        self._beyond = 0
        self._said: dict[str, tuple[float, int]] = {}

    def line(self, now: float, text: str, kind: str = "") -> str | None:
        """Return the line to log now; None if one of its kind was logged a moment ago.

        Lines of one `kind` are alike even if their figures differ; by default only equal texts are.
        """
        unsaid = self.unsaid_before(now, kind or text)
        if unsaid is None:
            return None
        times = "1 time" if unsaid == 1 else f"{unsaid} times"
        return f"{text} (and {times} before)" if unsaid else text

    def unsaid_before(self, now: float, kind: str) -> int | None:
        """Return how many of a kind were left out since the last was said; None if this one is to be left out too."""
        said_at, unsaid = self._said.pop(kind, (None, 0))
        if said_at is not None and now - said_at < self._interval_s:
            self._said[kind] = said_at, unsaid + 1
            return None
        if self._recent is not None:
            if len(self._recent) == self._recent.maxlen and now - self._recent[0] < self._interval_s:
                self._beyond += 1
                return None
            self._recent.append(now)
            unsaid, self._beyond = unsaid + self._beyond, 0
        self._said[kind] = now, 0
        if len(self._said) > _LINES:
            del self._said[next(iter(self._said))]
        return unsaid
