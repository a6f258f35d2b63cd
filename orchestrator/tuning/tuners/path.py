"""A path of threshold vectors from safe to risky, made from audits that certify nothing afterwards.

The first vector disables every early exit. Each one after it lowers one threshold, so that more inputs leave early,
where that costs the least loss for the compute it saves. Any path gives a sound certificate; a good one saves more.

A few hundred audits contain only a handful of losses among the sure inputs, and moves chosen by these would be led
astray by chance. The cost of a move is therefore read off a curve per exit: the probability of a loss by the rank of an
input's score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distree.thresholds import NEVER
from orchestrator.tuning.samples import AuditedInput, Vector

Floats = npt.NDArray[np.float64]

_STEP = 1 / 100
"""Share of the audits that leave early by one move."""

_PRIOR_SLOPES = (4.0, 0.2)
"""Of the loss curve. Those of trained networks are 4 to 11 and 0.1 to 0.7; paths hardly depend on these numbers."""

_PRIOR_WEIGHT = 0.2
_ROUNDS = 50
_LONGEST_STRIDE = 1.0  # Newton's method may overshoot where there is hardly any loss.


def safe_to_risky(audits: Sequence[AuditedInput], costs: Sequence[float]) -> tuple[Vector, ...]:
    """Return threshold vectors of all exits but the last, each lower than the one before in exactly one.

    costs: of leaving at each exit, the last included, in any unit. Lost audits are left out.
    """
    kept = [audit for audit in audits if not audit.lost]
    early = len(costs) - 1
    start: Vector = (NEVER,) * early
    if not kept or not early:
        return (start,)
    scores = np.array([audit.scores for audit in kept])
    losses = np.array([audit.losses() for audit in kept])
    for exit in range(early):
        losses[:, exit] = loss_curve(scores[:, exit], losses[:, exit])
    search = _Search(scores, losses, np.asarray(costs, np.float64))
    path = [start]
    while (move := search.best_move()) is not None:
        search.make(move)
        path.append(tuple(search.thresholds.tolist()))
    return tuple(path)


def loss_curve(scores: Floats, losses: Floats) -> Floats:
    """Return the probability of a loss at each score, which never rises with the score; all of shape (n,).

    A logistic regression on log u and −log(1 − u), where u, 0..1, is the rank of a score, 0 the highest: the first
    says how rare losses become among the surest inputs, the second how frequent among the least sure. Slopes are pulled
    towards a prior, so that there is a curve even where hardly any loss was seen; a slope below 0 is set to 0.
    """
    count = len(scores)
    ranks = np.empty(count)
    ranks[np.argsort(-scores, kind="stable")] = (np.arange(count) + 0.5) / count
    features = np.stack([np.ones(count), np.log(ranks), -np.log1p(-ranks)], axis=1)
    mean = (losses.sum() + 0.5) / (count + 1.0)
    prior = np.array([np.log(mean / (1.0 - mean)), *_PRIOR_SLOPES])
    weights = _fit(features, losses, prior)
    while (weights[1:] < 0.0).any():
        kept = np.append(True, weights[1:] > 0.0)
        weights = np.zeros_like(weights)
        weights[kept] = _fit(features[:, kept], losses, prior[kept])
    return _logistic(features @ weights)


def _fit(features: Floats, losses: Floats, prior: Floats) -> Floats:
    """Return the weights (k,) of features (n, k) that fit the losses best, pulled towards the prior."""
    weights = prior
    for _ in range(_ROUNDS):
        chances = _logistic(features @ weights)
        slope = features.T @ (losses - chances) - _PRIOR_WEIGHT * (weights - prior)
        curvature = (features * (chances * (1.0 - chances))[:, None]).T @ features + _PRIOR_WEIGHT * np.eye(len(prior))
        stride = np.linalg.solve(curvature, slope)
        weights = weights + stride * min(1.0, _LONGEST_STRIDE / max(1e-12, float(np.abs(stride).max())))
    return weights


def _logistic(values: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)))


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
        self._step = max(1, round(count * _STEP))
        self.thresholds = np.full(early, NEVER)

    def best_move(self) -> _Move | None:
        """Return the move with the least loss per compute saved; of equal ones, the one that saves most."""
        moves = [move for exit in range(len(self.thresholds)) if (move := self._move(exit)) is not None]
        return min(moves, key=lambda move: (move.loss / move.cost, -move.cost), default=None)

    def make(self, move: _Move) -> None:
        self.thresholds[move.exit] = move.threshold
        self._taken[move.who] = move.exit

    def _move(self, exit: int) -> _Move | None:
        scores = self._scores[:, exit]
        # -inf, in messages -NEVER, is the score of an exit that knows nothing: no threshold is reached by it.
        inside = (self._taken > exit) & (np.abs(scores) < NEVER)
        if not inside.any():
            return None
        highest = np.sort(scores[inside])[::-1]
        threshold = float(highest[min(self._step, len(highest)) - 1])
        who = inside & (scores >= threshold)
        before = self._taken[who]
        loss = float((self._losses[who, exit] - self._losses[who, before]).sum())
        cost = float((self._costs[before] - self._costs[exit]).sum())
        return _Move(exit, threshold, who, loss, cost)
