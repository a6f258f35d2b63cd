"""Evidence by betting: certificates that a mean loss is small, and alarms that it no longer is.

Both watch losses between 0 and 1, one after the other, and may be looked at after each of them: what they promise holds
at every moment at once, so it does not matter when somebody looks or stops.

Sources: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024, for the
bets; J. Shin, A. Ramdas and A. Rinaldo, "E-detectors", NEJSDS 2024, for the alarm.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_MOST = 0.9
"""Of what a bet may put at stake: at 1, one loss could end all hope."""

_FIXED_BETS = (0.75, 0.5, 0.25)
_SHARES = (0.5, 0.15, 0.2, 0.15)  # of the learning bettor, then of the fixed ones
_PRIOR_LOSS = 0.25  # of the bound: what the learning bettor expects before it has seen anything
_PRIOR_WEIGHT = 200.0  # losses that this expectation is worth

_ALARM_RATES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Bets of the alarm; 1 is the best one against a loss of twice the bound."""


class Certificate:
    """Tests, for each of many hypotheses at once, whether its mean loss is at most `bound`.

    Every hypothesis starts with a wealth of 1 and bets on each loss being below the bound; where the mean loss is
    above the bound, its wealth ever reaching 1/δ has a probability of at most δ (Ville's inequality). Half of it is bet
    by how the losses so far suggest, half at fixed rates: the first is quick where losses are rare, the second sound
    where they come close to the bound.

    >>> certificate = Certificate(hypotheses=2, bound=0.01)
    >>> for _ in range(500):
    ...     certificate.observe(np.array([0.0, 0.02]))
    >>> certificate.passed(delta=0.05)
    array([ True, False])
    """

    def __init__(self, hypotheses: int, bound: float) -> None:
        if not 0.0 < bound < 1.0:
            raise ValueError(f"bound: must be above 0 and below 1, not {bound}")
        self._bound = bound
        self._log_wealth = np.zeros((len(_SHARES), hypotheses))
        self._losses = np.zeros(hypotheses)
        self._best = np.zeros(hypotheses)
        self.count = 0

    def observe(self, losses: Floats) -> None:
        """Take in one loss, 0..1, of each hypothesis."""
        bound, highest = self._bound, _MOST / (1.0 - self._bound)
        expected = (_PRIOR_LOSS * bound * _PRIOR_WEIGHT + self._losses) / (_PRIOR_WEIGHT + self.count)
        learning = np.clip((bound - expected) / (bound * (1.0 - bound)), 0.0, highest)
        won = bound - losses
        self._log_wealth[0] += np.log1p(learning * won)
        for k, share in enumerate(_FIXED_BETS, start=1):
            self._log_wealth[k] += np.log1p(share * highest * won)
        self._losses += losses
        self.count += 1
        np.maximum(self._best, self.log_wealth(), out=self._best)

    def log_wealth(self) -> Floats:
        """Natural logarithm of each hypothesis's wealth now."""
        return np.asarray(np.logaddexp.reduce(self._log_wealth + np.log(_SHARES)[:, None], axis=0))

    def passed(self, delta: float) -> npt.NDArray[np.bool_]:
        """Whether each hypothesis's wealth has ever reached 1/delta."""
        return self._best >= -math.log(delta)

    def mean_losses(self) -> Floats:
        """Mean loss of each hypothesis so far, 0 before any."""
        return self._losses / max(1, self.count)

    def snapshot(self) -> dict[str, Any]:
        """Return plain data for `restore`."""
        return {
            "count": self.count,
            "log_wealth": self._log_wealth.tolist(),
            "losses": self._losses.tolist(),
            "best": self._best.tolist(),
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where a certificate of as many hypotheses stood. Raises ValueError for one of another number."""
        self._log_wealth = _like(self._log_wealth, data["log_wealth"])
        self._losses = _like(self._losses, data["losses"])
        self._best = _like(self._best, data["best"])
        self.count = data["count"]


class Alarm:
    """Watches, for each of many hypotheses at once, whether a mean loss that was below `bound` still is.

    `level` is a mixture of CUSUM statistics, of which each starts again from 1 when it has fallen below. While the mean
    loss stays at most the bound, an alarm at `height` comes after at least `height` losses on average; as losses
    are usually well below the bound, it comes far more rarely. `since` counts the losses since the statistics of a
    hypothesis last stood at 1: about as long ago things changed.
    """

    def __init__(self, hypotheses: int, bound: float) -> None:
        if not 0.0 < bound < 1.0:
            raise ValueError(f"bound: must be above 0 and below 1, not {bound}")
        self._bound = bound
        highest = _MOST / bound
        self._rates = np.minimum(np.array(_ALARM_RATES), highest)[:, None]
        self._log_level = np.zeros((len(_ALARM_RATES), hypotheses))
        self._since = np.zeros((len(_ALARM_RATES), hypotheses), np.int64)

    def observe(self, losses: Floats) -> None:
        """Take in one loss, 0..1, of each hypothesis."""
        start = self._log_level <= 0.0
        self._since = np.where(start, 0, self._since) + 1
        self._log_level = np.maximum(self._log_level, 0.0) + np.log1p(self._rates * (losses - self._bound))

    def log_level(self) -> Floats:
        """Natural logarithm of each hypothesis's level."""
        return np.asarray(np.logaddexp.reduce(self._log_level, axis=0) - math.log(len(_ALARM_RATES)))

    def since(self, hypothesis: int) -> int:
        """How many losses ago the statistic that is highest now last stood at 1."""
        return int(self._since[int(self._log_level[:, hypothesis].argmax()), hypothesis])

    def snapshot(self) -> dict[str, Any]:
        """Return plain data for `restore`."""
        return {"log_level": self._log_level.tolist(), "since": self._since.tolist()}

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where an alarm of as many hypotheses stood. Raises ValueError for one of another number."""
        self._log_level = _like(self._log_level, data["log_level"])
        self._since = _like(self._since, data["since"]).astype(np.int64)


def _like(wanted: npt.NDArray[Any], values: object) -> Floats:
    found = np.asarray(values, np.float64)
    if found.shape != wanted.shape:
        raise ValueError(f"values of shape {found.shape} for {wanted.shape}")
    return found
