"""When boards are asked to say again what they are. No I/O, no clock.

What boards say of themselves is retained, but not every broker hands it to who subscribes later: some have no retained
messages, others hand none to filters with a wildcard, by which states and descriptions are read. There, or where no
board has been on the site yet, nothing comes after a connect.
"""

from __future__ import annotations

WAIT_S = 1.0
"""How long after a connect retained messages are waited for, in seconds."""

PAUSE_S = 10.0
"""Least time between two calls, in seconds: boards answer at a time of their own, so that not all do at once."""


class Caller:
    """Decides for one orchestrator. Every `now_s` is of one monotonic clock.

    >>> caller = Caller()
    >>> caller.connected(0.0)
    >>> caller.step(0.5), caller.step(1.0), caller.step(2.0)
    (False, True, False)
    """

    def __init__(self) -> None:
        self._is_over = True
        self._has_called = False
        self._call_at_s = 0.0

    def connected(self, now_s: float) -> None:
        """Wait for what is retained."""
        self._is_over = self._has_called = False
        self._call_at_s = now_s + WAIT_S

    def disconnected(self) -> None:
        """Call nobody until connected again."""
        self._is_over = True

    def heard(self, *, retained: bool) -> None:
        """Note a board's state or description: the broker hands over what it retains, or somebody answers a call.

        Before the first call, one that is not retained is of a board that happens to start, and tells of no other. An
        orchestrator's claim tells nothing: its topic is read without a wildcard.
        """
        if retained or self._has_called:
            self._is_over = True

    def step(self, now_s: float) -> bool:
        """Whether to call now."""
        if self._is_over or now_s < self._call_at_s:
            return False
        self._has_called, self._call_at_s = True, now_s + PAUSE_S
        return True
