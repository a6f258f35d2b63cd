"""Which of a tuner's choices is in force: the one with the least loss that meets goals for latency, energy or traffic.

Drift plus penalty: each goal has a virtual queue. That of a mean grows by how far a measurement lies above the goal and
shrinks by how far it lies below. That of a percentile counts the periods in which it lay above, and forgives one in
twenty: a period far below the goal does not make up for one above. Among the choices, the one with the smallest

    loss / ε  +  (sum of the queues) · share of the compute

is taken. While all goals are met the queues are empty and no input leaves early without need; the longer one is missed,
the earlier inputs leave, up to the riskiest choice. Nothing is ever in force that is not among the tuner's choices.
Without such goals there is nothing to weigh, and the riskiest choice saves most.

Source: M. Neely, Stochastic Network Optimization with Application to Communication and Queueing Systems, 2010.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from distree.exits_taken import exits_taken
from orchestrator.tuning.samples import AuditedInput

Floats = npt.NDArray[np.float64]

FULL_QUEUE = 10.0
"""Upper bound of a queue, so that an overload is forgotten in bounded time."""

_PERCENTILES = frozenset({"latency_p95_ms"})
_FORGIVEN = 0.05  # Share of periods in which a percentile may lie above its goal.
_LONGEST_STEP = 2.0  # Of a queue in one period, so that one bad measurement is not an overload.


class GoalControl:
    """Virtual queues for goals; `goals` says by name how large a measurement may be."""

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
        return any(queue >= FULL_QUEUE for queue in self.queues.values())

    def measured(self, values: Mapping[str, float]) -> None:
        """Take in measurements of one period, by the goals' names; others are ignored."""
        for name, goal in self._goals.items():
            if name in values:
                if name in _PERCENTILES:
                    step = float(values[name] > goal) - _FORGIVEN
                else:
                    step = min(_LONGEST_STEP, values[name] / goal - 1.0)
                self.queues[name] = min(FULL_QUEUE, max(0.0, self.queues[name] + step))

    def choose(self, losses: Floats, shares: Floats, epsilon: float) -> int:
        """Return the index of the vector to be in force. losses, shares: of each choice, safest first, (n,)."""
        if not self._goals:
            return len(losses) - 1
        return int(np.argmin(losses / epsilon + self.pressure * shares))


def outlook(
    vectors: Sequence[Sequence[float]], audits: Sequence[AuditedInput], costs: Sequence[float]
) -> tuple[Floats, Floats]:
    """Return what each vector would have done to `audits`: mean losses and shares of the compute, both (n,).

    Lost audits are left out; a share is of what the last exit costs. Without audits nothing is lost or saved.
    """
    kept = [audit for audit in audits if not audit.lost]
    if not kept:
        return np.zeros(len(vectors)), np.ones(len(vectors))
    scores = np.array([audit.scores for audit in kept], np.float64)
    losses = np.array([audit.losses() for audit in kept], np.float64)
    of_exits = np.asarray(costs, np.float64) / costs[-1]
    taken = np.array([exits_taken(scores, vector) for vector in vectors])
    return losses[np.arange(len(kept)), taken].mean(axis=1), of_exits[taken].mean(axis=1)
