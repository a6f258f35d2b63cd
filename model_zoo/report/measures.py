"""Statistics of a report: intervals of paired differences, how well scores rank, and spreads over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NORMAL_95 = 1.96
"""Two-sided 95 % of a normal distribution: of means over some thousand inputs."""

# Two-sided 95 % of Student's t with 1, 2, … degrees of freedom; more are treated as the last, which is cautious.
_STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval around a mean."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds: its values, their mean and their standard deviation (n − 1), None for a single one."""

    values: tuple[float, ...]
    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise at least one value."""
        kept = tuple(float(value) for value in values)
        mean = math.fsum(kept) / len(kept)
        squares = math.fsum((value - mean) ** 2 for value in kept)
        return cls(kept, mean, math.sqrt(squares / (len(kept) - 1)) if len(kept) > 1 else None)

    def of_one_more(self) -> Interval | None:
        """Return where one more seed's figure would lie with 95 %, after Student; None after a single seed."""
        if self.deviation is None:
            return None
        freedom = min(len(self.values) - 1, len(_STUDENT_95))
        reach = _STUDENT_95[freedom - 1] * self.deviation * math.sqrt(1 + 1 / len(self.values))
        return Interval(self.mean, self.mean - reach, self.mean + reach)


def paired_interval(differences: npt.NDArray[np.float64]) -> Interval:
    """Return the mean of differences (inputs,) and its normal 95 % interval.

    The differences are those of the same inputs with and without something, so what both find hard cancels.
    """
    mean = float(differences.mean())
    reach = NORMAL_95 * float(differences.std()) / math.sqrt(len(differences))
    return Interval(mean, mean - reach, mean + reach)


def auroc(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float | None:
    """Return the chance that a positive input scores above a negative one, ties counting half; None without both.

    It is Mann and Whitney's rank statistic: 1 ranks perfectly, 1/2 is blind.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
