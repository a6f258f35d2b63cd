"""What an origin has seen of a board that it chose: how quick it is, and whether it answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from distree.messages.request import Hop

FADES_S = 5.0
"""A queue that was measured so long ago is taken to be shorter by e, for others may have come and gone; and so is what
makes a board, while nothing is with it, slower or quicker than others."""

WEIGHT = 4
"""A measured time changes the estimate by one part in so many."""

PROBE_S, PROBE_MAX_S = 1.0, 30.0
"""A board that is left out is probed so soon, and twice as long after each probe that it does not answer."""


class PeerEstimate:
    """A board that was chosen for requests of this origin.

    `under_way` counts those that are not answered, `misses` those that it did not answer in time, in a row. One that is
    left out is chosen no more until it is heard; `probe_at` is when it is asked next.
    """

    __slots__ = (
        "_compute_s", "_measured_at", "_missed_at", "_queue_s", "heard_at", "misses", "probe_at", "probe_wait_s",
        "under_way",
    )  # fmt: skip

    def __init__(self) -> None:
        self.under_way = 0
        self.misses = 0
        self.heard_at = self._missed_at = -math.inf
        self.probe_at = math.inf
        self.probe_wait_s = PROBE_S
        self._compute_s: dict[int, float] = {}
        self._queue_s = 0.0
        self._measured_at = 0.0

    def reset(self) -> None:
        """Take it in again: it has been heard, or has just come."""
        self.misses = 0
        self.probe_at, self.probe_wait_s = math.inf, PROBE_S

    def missed(self, now: float, since: float) -> None:
        """It did not answer in time what was sent at `since`; all that was under way then is missed together, once."""
        if since >= self._missed_at:
            self.misses += 1
            self._missed_at = now

    def probed(self, now: float) -> None:
        """A probe goes to it; the next one is due later than that one was."""
        self.probe_wait_s = min(PROBE_MAX_S, 2 * self.probe_wait_s)
        self.probe_at = now + self.probe_wait_s

    def measured(self, now: float, hop: Hop) -> None:
        """Take in what it took for one request, of which it is said in an outcome."""
        known = self._compute_s.get(hop.stage)
        self._compute_s[hop.stage] = hop.compute_s if known is None else known + (hop.compute_s - known) / WEIGHT
        if self._queue_s or hop.queue_s:
            queue_s = self._queue_s * self._faded(now)
            self._queue_s = queue_s + (hop.queue_s - queue_s) / WEIGHT
        self._measured_at = now

    def expected_s(self, now: float, stages: Iterable[int], usual_s: Mapping[int, float]) -> float:
        """Return how long it would take for these stages, own work under way first.

        `usual_s` has what each stage takes wherever it is run. That is believed of stages that were never measured
        here, and more and more while nothing is under way: a board that was slow once would never be asked again.
        """
        return self._expected_s(now, stages, usual_s, 1 + self.under_way)

    def worst_s(self, now: float, stages: Iterable[int], usual_s: Mapping[int, float]) -> float:
        """Return how long it would take at worst: what is under way there may take twice as long as was measured."""
        return self._queue_s * self._faded(now) + self._expected_s(now, stages, usual_s, 1 + 2 * self.under_way)

    def _expected_s(self, now: float, stages: Iterable[int], usual_s: Mapping[int, float], times: int) -> float:
        compute, faded, own_s = self._compute_s, self._faded(now), 0.0
        weight = 1.0 if self.under_way else faded
        for stage in stages:
            usual = usual_s.get(stage, 0.0)
            own_s += usual + (compute.get(stage, usual) - usual) * weight
        return self._queue_s * faded + own_s * times

    def _faded(self, now: float) -> float:
        return math.exp((self._measured_at - now) / FADES_S)
