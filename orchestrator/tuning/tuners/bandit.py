"""Bandit: tries threshold vectors and keeps to those that did best; without a guarantee, to compare with.

One arm a vector. Playing an arm on an input earns 1 if its answer agrees with the last exit's, less `price` times the
share of the last exit's cost that it took; no label is needed. The arm with the highest upper confidence bound is
played next. It learns from the played arm alone, as a tuner would that sees each input only as it was answered, and
what it maximises is a bargain between accuracy and cost: nothing keeps the accuracy drop below a bound.

Sources: P. Auer, N. Cesa-Bianchi and P. Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", Machine
Learning 2002 (UCB1); H. Hanawal et al., "Unsupervised Early Exit in DNNs with Multiple Exits", AIMLSystems 2022, for
its use on exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from distree.criteria import NEVER
from distree.thresholds import exits_taken
from orchestrator.tuning.tuners.audits import Audit, Vector, losses_of

_LEVELS = 6  # thresholds an exit: the arms are all their combinations, and too many arms are never learned
_WIDTH = 0.5  # of the confidence bound: UCB1's own explores too much for rewards that vary this little


def spread_levels(scores: npt.NDArray[np.float64]) -> list[Vector]:
    """Return thresholds to choose from, per exit: quantiles of scores (n, exits − 1), and one that nobody reaches."""
    shares = np.linspace(0, 1, _LEVELS - 1)
    return [(*np.quantile(column, shares, method="lower").tolist(), NEVER) for column in scores.T]


class Bandit:
    """UCB over a grid of thresholds.

    costs: of leaving at each exit, the last included. levels: per exit, the thresholds to choose from. price: what the
    whole cost of the last exit is worth, in answers that agree. seed: breaks ties.

    >>> tuner = Bandit(costs=(1.0, 3.0), levels=[(0.5, float("inf"))], price=0.3)
    >>> for _ in range(50):
    ...     tuner.observe(Audit(scores=(0.9,), predictions=(1, 1)))
    >>> tuner.thresholds
    (0.5,)
    """

    name = "bandit"

    def __init__(
        self, costs: Sequence[float], levels: Sequence[Sequence[float]], *, price: float = 0.1, seed: int = 0
    ) -> None:
        grids = np.meshgrid(*(np.asarray(of_exit, np.float64) for of_exit in levels), indexing="ij")
        self._arms = np.stack([grid.ravel() for grid in grids], axis=1)
        self._shares = np.asarray(costs, np.float64) / costs[-1]
        self._price = price
        self._plays = np.zeros(len(self._arms))
        self._earned = np.zeros(len(self._arms))
        self._order = np.random.default_rng(seed).permutation(len(self._arms))
        self._arm = int(self._order[0])

    @property
    def thresholds(self) -> Vector:
        """The arm to play next."""
        return tuple(self._arms[self._arm].tolist())

    def observe(self, audit: Audit) -> None:
        """Take in what the played arm would have earned on one audit, and choose the next arm."""
        arm = self._arms[self._arm]
        loss = float(losses_of(audit, arm[None])[0])
        taken = len(arm) if audit.lost else int(exits_taken(audit.scores, arm))
        self._plays[self._arm] += 1
        self._earned[self._arm] += 1.0 - loss - self._price * self._shares[taken]
        self._arm = self._next()

    def _next(self) -> int:
        plays = self._plays[self._order]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = self._earned[self._order] / plays
            bound = mean + _WIDTH * np.sqrt(np.log(plays.sum()) / plays)
        return int(self._order[int(np.where(plays == 0, NEVER, bound).argmax())])

    def snapshot(self) -> dict[str, Any]:
        """Return plain data, for `restore`."""
        return {"plays": self._plays.tolist(), "earned": self._earned.tolist(), "arm": self._arm}

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where another one of as many arms stood. Raises ValueError for one of another number."""
        plays, earned = np.asarray(data["plays"], np.float64), np.asarray(data["earned"], np.float64)
        if plays.shape != self._plays.shape or earned.shape != plays.shape or not 0 <= data["arm"] < len(plays):
            raise ValueError(f"is of {len(plays)} arms, {len(self._plays)} are wanted")
        self._plays, self._earned, self._arm = plays, earned, data["arm"]
