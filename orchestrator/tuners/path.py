"""A path of threshold vectors from safe to risky, made from audits that certify nothing afterwards.

The first vector lets nobody leave early; each one after lowers one threshold, so that more inputs leave, where that
costs the least loss for the compute that it saves. Any path gives a sound certificate; a good one saves more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distree.policies import NEVER
from orchestrator.tuners.audits import Audit, Vector

Floats = npt.NDArray[np.float64]

_FIRST_STEP = 1 / 200  # of the audits
_LONGEST_STEP = 1 / 25


def safe_to_risky(audits: Sequence[Audit], costs: Sequence[float]) -> tuple[Vector, ...]:
    """Return threshold vectors of all exits but the last, each lower than the one before in exactly one.

    costs: of leaving at each exit, the last included, in any unit. An exit's step, the share of the audits that it
    lets out at once, is doubled after a move that cost no loss and halved after one that did. Lost audits are left out.
    """
    kept = [audit for audit in audits if not audit.lost]
    early = len(costs) - 1
    start: Vector = (NEVER,) * early
    if not kept or not early:
        return (start,)
    search = _Search(
        scores=np.array([audit.scores for audit in kept]),
        losses=np.array([audit.losses() for audit in kept]),
        costs=np.asarray(costs, np.float64),
    )
    path = [start]
    while (move := search.best_move()) is not None:
        search.make(move)
        path.append(tuple(search.thresholds.tolist()))
    return tuple(path)


class _Move:
    """Lower the threshold of `exit`, so that the audits in `who` leave there."""

    __slots__ = ("cost", "exit", "loss", "threshold", "who")

    def __init__(self, exit: int, threshold: float, who: npt.NDArray[np.bool_], loss: float, cost: float) -> None:
        self.exit, self.threshold, self.who = exit, threshold, who
        self.loss, self.cost = loss, cost


class _Search:
    def __init__(self, scores: Floats, losses: Floats, costs: Floats) -> None:
        count, early = scores.shape
        self._scores, self._losses, self._costs = scores, losses, costs
        self._taken = np.full(count, early)
        self._steps = np.full(early, max(1, round(count * _FIRST_STEP)))
        self._longest = max(1, round(count * _LONGEST_STEP))
        self.thresholds = np.full(early, NEVER)

    def best_move(self) -> _Move | None:
        """Return the move with the least loss for what it saves; of equal ones, the one that saves most."""
        moves = [move for exit in range(len(self.thresholds)) if (move := self._move(exit)) is not None]
        return min(moves, key=lambda move: (move.loss / move.cost, -move.cost), default=None)

    def make(self, move: _Move) -> None:
        self.thresholds[move.exit] = move.threshold
        self._taken[move.who] = move.exit
        step = self._steps[move.exit] * 2 if move.loss <= 0 else self._steps[move.exit] // 2
        self._steps[move.exit] = min(max(1, step), self._longest)

    def _move(self, exit: int) -> _Move | None:
        scores = self._scores[:, exit]
        # -inf is the score of an exit that knows nothing: no threshold lets it out.
        inside = (self._taken > exit) & np.isfinite(scores)
        if not inside.any():
            return None
        highest = np.sort(scores[inside])[::-1]
        threshold = float(highest[min(self._steps[exit], len(highest)) - 1])
        who = inside & (scores >= threshold)
        before = self._taken[who]
        loss = float((self._losses[who, exit] - self._losses[who, before]).sum())
        cost = float((self._costs[before] - self._costs[exit]).sum())
        return _Move(exit, threshold, who, loss, cost)
