"""When something is due that is done again and again. No clock."""

from __future__ import annotations


class Periodic:
    """Is due at once, and then again `period_s` seconds after each time. Every `now_s` is of one monotonic clock.

    >>> timer = Periodic(2.0)
    >>> timer.is_due(10.0), timer.is_due(11.0), timer.is_due(12.0)
    (True, False, True)
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._at_s = float("-inf")

    def is_due(self, now_s: float) -> bool:
        """Whether it is due now; it then counts as done."""
        if now_s < self._at_s:
            return False
        self._at_s = now_s + self._period_s
        return True

    def hasten(self) -> None:
        """Make it due now."""
        self._at_s = float("-inf")
