"""Choosing a bundle's default thresholds on validation images.

The rule: of all threshold vectors on a grid, take the one with the least mean multiply-accumulates whose
accuracy drop against the last exit has, on the validation images, an upper bound of at most `MAX_DROP`. The
bound is the mean drop plus `DEVIATIONS` standard errors.

Why a bound and not the mean: the promise is about images not seen yet. The drop is a mean of paired
differences, +1, 0 or -1 per image. With 1 to 3 % of images differing, its standard error on 5,000 images is
0.15 to 0.25 points, as large as the promise itself; a vector whose mean drop just met it would break it on
every second test set. The more inputs a vector lets go early against the last exit's word, the larger its
error, so the bound also keeps the rule from vectors that were merely lucky on validation, of which a search
over thousands finds some.

Why quantiles of the scores: softmax scores crowd near 1, where equal steps would see next to nothing, and a
coarse grid has fewer lucky vectors to pick. The grid's ends are always there: the lowest score, at which
everybody leaves, and a number above every score, at which nobody does. The latter costs no accuracy, so the
rule always finds a vector. It is finite because a manifest holds finite thresholds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_zoo.evaluation import Costs, ExitScores, exits_taken

MAX_DROP = 0.003  # what a bundle promises on images not seen yet: 0.3 points
DEVIATIONS = 2.33  # one-sided 99 %, as the search over many vectors eats some of it
_MAX_VECTORS = 20_000  # a few seconds on a small machine, whatever the number of exits
_MOST_LEVELS = 100
_DIGITS = 1e6  # thresholds have six digits, so that people can read and copy them


@dataclass(frozen=True, slots=True)
class Choice:
    """Thresholds and what they do on the images they were chosen on.

    drop: in accuracy against the last exit, a fraction. drop_bound: its upper bound. macs_per_input: mean.
    """

    thresholds: tuple[float, ...]
    drop: float
    drop_bound: float
    macs_per_input: float


def choose_thresholds(
    scored: ExitScores, costs: Costs, max_drop: float = MAX_DROP, deviations: float = DEVIATIONS
) -> Choice:
    """Apply this module's rule to scores on validation images.

    Ties go to the smaller bound, then to the higher thresholds.
    """
    exits = scored.scores.shape[1]
    grids = [_grid(scored.scores[:, k], _levels(exits - 1)) for k in range(exits - 1)]
    choices = (_judge(scored, costs, vector, deviations) for vector in itertools.product(*grids))
    allowed = (choice for choice in choices if choice.drop_bound <= max_drop + 1e-12)
    return min(allowed, key=_preference)


def _preference(choice: Choice) -> tuple[float, float, tuple[float, ...]]:
    return choice.macs_per_input, choice.drop_bound, tuple(-value for value in choice.thresholds)


def _levels(thresholds: int) -> int:
    return min(_MOST_LEVELS, int(_MAX_VECTORS ** (1 / max(thresholds, 1)))) - 1


def _grid(scores: npt.NDArray[np.float64], levels: int) -> list[float]:
    finite = scores[np.isfinite(scores)]
    if len(finite) == 0:
        return [0.0]
    # The method "lower" gives scores that occur: an input leaves exactly at its own score.
    quantiles = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, levels), method="lower"))
    nobody = float(quantiles[-1]) + max(1.0, abs(float(quantiles[-1])))
    # Rounded down, so that the score itself still reaches its threshold.
    return [*(np.floor(quantiles * _DIGITS) / _DIGITS).tolist(), nobody]


def _judge(scored: ExitScores, costs: Costs, thresholds: Sequence[float], deviations: float) -> Choice:
    taken = exits_taken(scored.scores, thresholds)
    at_exit = scored.correct[np.arange(len(taken)), taken]
    difference = scored.correct[:, -1].astype(np.float64) - at_exit
    drop = float(difference.mean())
    return Choice(
        thresholds=tuple(thresholds),
        drop=drop,
        drop_bound=drop + deviations * float(difference.std()) / math.sqrt(len(taken)),
        macs_per_input=float(np.asarray(costs.macs)[taken].mean()),
    )
