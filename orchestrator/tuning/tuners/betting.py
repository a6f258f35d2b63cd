"""Evidence by betting: certificates that a mean loss is small, and alarms that it no longer is.

Both watch losses between 0 and 1, one after the other, and may be checked after each of them: what they promise holds
at all times at once, no matter when you check or stop.

Sources: I. Waudby-Smith and A. Ramdas, "Estimating means of bounded random variables by betting", JRSS B 2024, for the
bets; J. Shin, A. Ramdas and A. Rinaldo, "E-detectors", NEJSDS 2024, for the alarm.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_HOPED = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9])
"""Mean losses that are bet on, as shares of the bound: the low ones are quick, the high ones reach up to the bound."""

_SHARES = np.array([0.18, 0.18, 0.18, 0.18, 0.18, 0.05, 0.05])
_LONGEST = 1 << 40  # Audits: where a search for the moment of passing ends.

_MOST = 0.9
"""Largest stake of a bet of the alarm: at 1, a single loss of 0 could ruin the bettor for good."""

_ALARM_RATES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Bets of the alarm; 1 is the best one against a loss of twice the bound."""


class Certificate:
    """Tests, for each of many hypotheses at once, whether its mean loss is at most `bound`.

    Every hypothesis starts with a wealth of 1, divided among bettors. The one that hopes for a mean loss of r·bound
    multiplies its part by 1 + b·(bound − loss), b = (1 − r)/(1 − bound): by (1 − r·bound)/(1 − bound) after no loss,
    by r after a loss. Where the mean loss, given all before it, is above the bound, no such bet gains on average, so
    the wealth ever reaching 1/δ has a probability of at most δ (Ville's inequality).

    No bet depends on what came before, so the wealth follows from the number of losses and their sum alone. For losses
    between 0 and 1 it uses the sum, which never claims more than the bets won: log(1 + b·(bound − loss)) is concave.
    And 1/δ is reached where the sum is at most a number that grows with the count: hypotheses need to be checked only
    when that number grows, because in between only sums grow.

    >>> certificate = Certificate(hypotheses=2, bound=0.01, delta=0.05)
    >>> for k in range(500):
    ...     certificate.observe(np.array([0.0, float(k % 50 == 0)]))
    >>> certificate.passed
    array([ True, False])
    """

    def __init__(self, hypotheses: int, bound: float, delta: float = 0.05) -> None:
        if not 0.0 < bound < 1.0:
            raise ValueError(f"bound: must be above 0 and below 1, not {bound}")
        self._needed = -math.log(delta)
        self._per_win = np.log1p((1.0 - _HOPED) * bound / (1.0 - bound))
        self._per_loss = np.log(_HOPED)
        self._losses = np.zeros(hypotheses)
        self.count = 0
        self.passed = np.zeros(hypotheses, np.bool_)
        """Whether each hypothesis's wealth has ever reached 1/delta."""
        self._allow(0)

    def observe(self, losses: Floats) -> None:
        """Take in one loss, 0..1, of each hypothesis."""
        self._losses += losses
        self.count += 1
        if self.count >= self._allowed_from:
            self.passed |= self._losses <= self._allowed
            self._allow(self._allowed + 1)

    def _allow(self, losses: int) -> None:
        """Find the count from which on so many losses are few enough."""
        self._allowed = losses
        self._allowed_from = self._count_to_pass(float(losses))

    def _count_to_pass(self, losses: float) -> int:
        """Return the least count after which so many losses are few enough."""
        of = np.array(losses)
        return bisect_left(
            range(_LONGEST), self._needed, math.ceil(losses), key=lambda n: float(self._log_wealth(n, of))
        )

    def _log_wealth(self, count: int, losses: Floats) -> Floats:
        won = np.multiply.outer(count - losses, self._per_win)
        lost = np.multiply.outer(losses, self._per_loss)
        return np.asarray(np.logaddexp.reduce(np.log(_SHARES) + won + lost, axis=-1))

    def log_wealth(self) -> Floats:
        """Natural logarithm of each hypothesis's wealth now."""
        return self._log_wealth(self.count, self._losses)

    def to_pass(self, hypothesis: int) -> int:
        """How many more losses of 0 a hypothesis that has not passed is away from it."""
        return max(0, self._count_to_pass(float(self._losses[hypothesis])) - self.count)

    def mean_losses(self) -> Floats:
        """Mean loss of each hypothesis so far, 0 before any."""
        return self._losses / max(1, self.count)

    def snapshot(self) -> dict[str, Any]:
        """Return plain data for `restore`."""
        return {"count": self.count, "losses": self._losses.tolist(), "passed": self.passed.tolist()}

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where a certificate of as many hypotheses stood. Raises ValueError for one of another number."""
        self._losses = _like(self._losses, data["losses"])
        self.passed = _like(self.passed, data["passed"]).astype(np.bool_)
        self.count = data["count"]
        self._allow(0)
        while self._allowed_from <= self.count:
            self._allow(self._allowed + 1)


class Alarm:
    """Watches whether a mean loss that was below `bound` still is.

    `log_level` is of a mixture of CUSUM statistics, of which each starts again from 1 when it has fallen below. While
    the mean of each loss, given all before it, stays at most the bound, an alarm at `height` comes after at least
    `height` losses on average; as losses are usually well below the bound, it comes far more rarely. `since` counts the
    losses since the highest statistic last stood at 1: about as long ago things changed.
    """

    def __init__(self, bound: float) -> None:
        if not 0.0 < bound < 1.0:
            raise ValueError(f"bound: must be above 0 and below 1, not {bound}")
        self._bound = bound
        self._rates = [min(rate, _MOST / bound) for rate in _ALARM_RATES]
        self._log_levels = [0.0] * len(self._rates)
        self._since = [0] * len(self._rates)

    def observe(self, loss: float) -> None:
        """Take in one loss, 0..1."""
        # Plain Python: numpy costs more for so few numbers.
        for k, rate in enumerate(self._rates):
            if self._log_levels[k] <= 0.0:
                self._log_levels[k], self._since[k] = 0.0, 0
            self._log_levels[k] += math.log1p(rate * (loss - self._bound))
            self._since[k] += 1

    def log_level(self) -> float:
        """Natural logarithm of the level."""
        highest = max(self._log_levels)
        return highest + math.log(math.fsum(math.exp(level - highest) for level in self._log_levels) / len(self._rates))

    def reached(self, log_height: float) -> bool:
        """Whether the level is at least a height, given as its natural logarithm."""
        # A mean is at most the highest of its parts, which mostly answers.
        return max(self._log_levels) >= log_height and self.log_level() >= log_height

    def since(self) -> int:
        """How many losses ago the statistic that is highest now last stood at 1."""
        return self._since[self._log_levels.index(max(self._log_levels))]

    def snapshot(self) -> dict[str, Any]:
        """Return plain data for `restore`."""
        return {"log_level": list(self._log_levels), "since": list(self._since)}

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where another alarm stood. Raises ValueError for one of another kind."""
        levels = np.array(self._log_levels)
        self._log_levels = _like(levels, data["log_level"]).tolist()
        self._since = _like(levels, data["since"]).astype(int).tolist()


def _like(wanted: npt.NDArray[Any], values: object) -> Floats:
    found = np.asarray(values, np.float64)
    if found.shape != wanted.shape:
        raise ValueError(f"values of shape {found.shape} for {wanted.shape}")
    return found
