"""Which of the certified thresholds are in force: the least loss by which goals of latency, energy or traffic hold.

Drift plus penalty: each goal has a virtual queue. That of a mean grows by how far a measurement lies above the goal and
shrinks by how far below. That of a percentile counts the periods in which it lay above, and forgives one in twenty: a
period far below the goal does not make up for one above. Among the certified vectors, the one with the smallest

    loss / ε  +  (sum of the queues) · share of the compute

is chosen. While all goals hold the queues are empty and nobody leaves early without need; the longer one is missed, the
earlier inputs leave, up to the riskiest certified vector. What is never chosen is a vector that is not certified.
Without such goals there is nothing to weigh, and the riskiest certified vector saves most.

Source: M. Neely, Stochastic Network Optimization with Application to Communication and Queueing Systems, 2010.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from distree.thresholds import exits_taken
from orchestrator.tuning.tuners import Audit

Floats = npt.NDArray[np.float64]

MOST = 10.0
"""Bound of a queue, so that an overload is forgotten in bounded time."""

_PERCENTILES = frozenset({"latency_p95_ms"})
_FORGIVEN = 0.05  # share of periods in which a percentile may lie above its goal
_LONGEST_STEP = 2.0  # of a queue in one period, so that one bad measurement is not an overload


class Control:
    """Virtual queues for goals, by name: how large a measurement may be. None of them, and the riskiest is chosen."""

    def __init__(self, goals: Mapping[str, float]) -> None:
        self._goals = dict(goals)
        self.queues = dict.fromkeys(self._goals, 0.0)

    @property
    def pressure(self) -> float:
        """The sum of the queues."""
        return sum(self.queues.values())

    @property
    def is_overloaded(self) -> bool:
        """Whether a goal has been missed for so long that its queue is full."""
        return any(queue >= MOST for queue in self.queues.values())

    def measured(self, values: Mapping[str, float]) -> None:
        """Take in measurements of one period, by the goals' names; others are ignored."""
        for name, goal in self._goals.items():
            if name in values:
                if name in _PERCENTILES:
                    step = float(values[name] > goal) - _FORGIVEN
                else:
                    step = min(_LONGEST_STEP, values[name] / goal - 1.0)
                self.queues[name] = min(MOST, max(0.0, self.queues[name] + step))

    def choose(self, losses: Floats, shares: Floats, epsilon: float) -> int:
        """Return the number of the vector to be in force. losses, shares: of each certified vector, (n,)."""
        if not self._goals:
            return len(losses) - 1
        return int(np.argmin(losses / epsilon + self.pressure * shares))


def outlook(
    vectors: Sequence[Sequence[float]], audits: Sequence[Audit], costs: Sequence[float]
) -> tuple[Floats, Floats]:
    """Return what each vector would have done to `audits`, lost ones left out: mean losses, shares of the compute.

    Both are (n,), of n vectors; a share is of what the last exit costs. Without audits nothing is lost or saved.
    """
    kept = [audit for audit in audits if not audit.lost]
    if not kept:
        return np.zeros(len(vectors)), np.ones(len(vectors))
    scores = np.array([audit.scores for audit in kept], np.float64)
    losses = np.array([audit.losses() for audit in kept], np.float64)
    of_exits = np.asarray(costs, np.float64) / costs[-1]
    taken = np.array([exits_taken(scores, vector) for vector in vectors])
    return losses[np.arange(len(kept)), taken].mean(axis=1), of_exits[taken].mean(axis=1)
