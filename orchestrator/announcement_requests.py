"""When boards are asked to announce themselves again. No I/O, no clock.

What boards say of themselves is retained, but not every broker hands it to a later subscriber: some retain nothing,
others do not deliver retained messages to filters with a wildcard, by which states and descriptions are read. There, or
on a site without boards, nothing comes after a connect.
"""

from __future__ import annotations

WAIT_S = 1.0
"""How long after a connect to wait for retained messages, in seconds."""

PAUSE_S = 10.0
"""Least time between two requests, in seconds: boards spread their answers, so that not all come at once."""


class AnnouncementRequester:
    """Decides for one orchestrator. Every `now_s` is of one monotonic clock.

    >>> requester = AnnouncementRequester()
    >>> requester.connected(0.0)
    >>> requester.step(0.5), requester.step(1.0), requester.step(2.0)
    (False, True, False)
    """

    def __init__(self) -> None:
        self._is_done = True
        self._has_asked = False
        self._ask_at_s = 0.0

    def connected(self, now_s: float) -> None:
        """Wait for what is retained."""
        self._is_done = self._has_asked = False
        self._ask_at_s = now_s + WAIT_S

    def disconnected(self) -> None:
        """Ask nobody until connected again."""
        self._is_done = True

    def heard(self, *, retained: bool) -> None:
        """Note a board's state or description: the broker delivers what it retains, or somebody answers a request.

        Before the first request, one that is not retained comes from a board that happens to start, and says nothing
        of the others. An orchestrator's claim says nothing either: its topic is read without a wildcard.
        """
        if retained or self._has_asked:
            self._is_done = True

    def step(self, now_s: float) -> bool:
        """Whether to ask now."""
        if self._is_done or now_s < self._ask_at_s:
            return False
        self._has_asked, self._ask_at_s = True, now_s + PAUSE_S
        return True
