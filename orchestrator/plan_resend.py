"""When the plan of a pipeline is published once more, for boards that do not know it. No I/O, no clock.

A board that subscribes later gets the retained plan, but not from every broker: some have no retained messages, others
hand none to filters with a wildcard. There a board hears of the plan only when it is published.
"""

from __future__ import annotations

PAUSE_S = 5.0
"""Least time between two publishes of a plan. Boards that start together need but one, and a board that has heard it
says so within this time: it reports every 2 s where nothing else is configured."""

LONGEST_S = 600.0
"""A board that stays behind causes the next publish after twice the time, and after this one at most: it may have
another bundle, and no publish helps it."""


class Reminder:
    """Decides for one pipeline. Every `now_s` is of one monotonic clock.

    >>> reminder = Reminder()
    >>> reminder.reported(0.0, "b1", is_behind=True)
    >>> reminder.is_due(0.0)
    True
    >>> reminder.published(0.0, "8f14e45fceea167a")
    >>> reminder.is_due(PAUSE_S)
    False
    """

    def __init__(self) -> None:
        self._is_wanted = False
        self._pause_until_s = float("-inf")
        self._hash = ""
        self._behind: dict[str, tuple[float, float]] = {}
        """Boards that were behind: from when on a report causes another publish, and how long none does after that."""

    def started(self, device: str) -> None:
        """Note that a board has started: it may have been handed no plan."""
        self._is_wanted = True
        self._behind.pop(device, None)

    def reported(self, now_s: float, device: str, *, is_behind: bool) -> None:
        """Note a board's report on the plan that it follows."""
        if not is_behind:
            self._behind.pop(device, None)
            return
        from_s, wait_s = self._behind.get(device, (now_s, 2 * PAUSE_S))
        # What comes sooner after a publish may have been sent before it.
        if now_s >= max(from_s, self._pause_until_s):
            self._is_wanted = True
            self._behind[device] = now_s + wait_s, min(2 * wait_s, LONGEST_S)

    def is_due(self, now_s: float) -> bool:
        """Whether the plan is to be published again now."""
        return self._is_wanted and now_s >= self._pause_until_s

    def published(self, now_s: float, wanted: str) -> None:
        """Note that the plan of this hash was published, again or for the first time; all may follow a new one."""
        self._is_wanted, self._pause_until_s = False, now_s + PAUSE_S
        if wanted != self._hash:
            self._hash = wanted
            self._behind.clear()

    def forget(self, device: str) -> None:
        """Drop a board that is gone."""
        self._behind.pop(device, None)
