"""Log lines that repeat: each kind at a bounded rate, and none forgotten."""

from __future__ import annotations

INTERVAL_S = 5.0
"""A line is said at most this often."""

_LINES = 64


class LogThrottle:
    """Decides what is said of a line that comes again and again.

    >>> throttle = LogThrottle()
    >>> throttle.line(0.0, "the connection is lost")
    'the connection is lost'
    >>> throttle.line(1.0, "the connection is lost"), throttle.line(2.0, "the connection is lost")
    (None, None)
    >>> throttle.line(9.0, "the connection is lost")
    'the connection is lost (and 2 times in the 9 s before)'
    """

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._said: dict[str, tuple[float, int]] = {}

    def line(self, now: float, text: str, kind: str = "") -> str | None:
        """Return what to say of `text` now; None if its like was said a moment ago.

        `kind` is what makes two lines alike, where they differ in figures; the text itself by default.
        """
        kind = kind or text
        said_at, unsaid = self._said.pop(kind, (None, 0))
        if said_at is not None and now - said_at < self._interval_s:
            self._said[kind] = said_at, unsaid + 1
            return None
        self._said[kind] = now, 0
        if len(self._said) > _LINES:
            del self._said[next(iter(self._said))]
        return (
            f"{text} (and {unsaid} times in the {now - said_at:.0f} s before)"
            if unsaid and said_at is not None
            else text
        )
