"""Log lines that repeat: each kind at a bounded rate, and all of them counted."""

from __future__ import annotations

EVERY_S = 5.0
"""A line is logged at most this often."""

_LINES = 64


class Repeats:
    """Decides what to log of a line that comes again and again.

    >>> repeats = Repeats()
    >>> repeats.line(0.0, "the connection is lost")
    'the connection is lost'
    >>> repeats.line(1.0, "the connection is lost"), repeats.line(2.0, "the connection is lost")
    (None, None)
    >>> repeats.line(9.0, "the connection is lost")
    'the connection is lost (and 2 times in the 9 s before)'
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._said: dict[str, tuple[float, int]] = {}

    def line(self, now: float, text: str, kind: str = "") -> str | None:
        """Return what to log for `text` now; None if its like was logged a moment ago.

        Two lines of the same `kind` count as alike even where their figures differ; by default it is the text itself.
        """
        kind = kind or text
        said_at, unsaid = self._said.pop(kind, (None, 0))
        if said_at is not None and now - said_at < self._every_s:
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
