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

Why quantiles of the scores: softmax scores crowd near 1, where equal steps would separate next to nothing, and a
coarse grid has fewer lucky vectors to pick. The grid always includes its ends: the lowest score, at which
every input leaves, and NEVER, at which none does. The latter costs no accuracy, so the rule always finds a vector.

All vectors are judged at once: an input only counts by how many levels of each exit's grid its score reaches, so
that tables of such counts, summed up along their axes, hold what a vector does as one entry.

Wide stages need thresholds for sets of missing branches too, which follow the same rule, against the last exit with
the same branches missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distree.bundle.loading import Bundle
from distree.criteria.base import CriterionParameters
from distree.errors import ConfigError
from distree.messages.plan import MaskedThresholds
from distree.thresholds import NEVER
from model_zoo.build.segments import missing_sets
from model_zoo.costs import Costs, costs_of
from model_zoo.evaluation import Collector, ExitScores, score_exits

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
    scored: ExitScores,
    costs: Costs,
    max_drop: float = MAX_DROP,
    deviations: float = DEVIATIONS,
    fixed: Mapping[int, float] | None = None,
) -> Choice:
    """Apply this module's rule to scores on validation images.

    `fixed` are exits whose threshold is given already. Ties go to the smaller bound, then to the higher thresholds.
    Raises ConfigError for more exits than the rule can search, or if the fixed thresholds alone cost more than allowed.
    """
    exits = scored.scores.shape[1]
    given = dict(fixed or {})
    levels = _levels(exits - 1 - len(given))
    grids = [[given[k]] if k in given else _grid(scored.scores[:, k], levels) for k in range(exits - 1)]
    macs, differences, squares = _judge_all(scored, costs, grids)
    inputs = len(scored.scores)
    drop = differences / inputs
    spread = np.sqrt(np.maximum(squares / inputs - drop**2, 0.0))
    bound = drop + deviations * spread / math.sqrt(inputs)
    allowed = np.argwhere(bound <= max_drop + 1e-12)
    if len(allowed) == 0:
        what = "thresholds: the fixed ones cost more accuracy than is allowed"
        raise ConfigError(what, "raise these thresholds, or allow a larger drop")
    costs_allowed = macs[tuple(allowed.T)]
    cheapest = [tuple(place.tolist()) for place in allowed[costs_allowed == costs_allowed.min()]]
    best = min(cheapest, key=lambda place: (bound[place], tuple(-level for level in place)))
    chosen = tuple(grid[place] for grid, place in zip(grids, best, strict=True))
    return Choice(
        thresholds=chosen,
        drop=float(drop[best]),
        drop_bound=float(bound[best]),
        macs_per_input=float(macs[best] / inputs),
    )


def choose_masked(
    collector: Collector,
    criterion: str,
    thresholds: Sequence[float],
    masks: Iterable[tuple[int, ...]],
    parameters: CriterionParameters = CriterionParameters(),  # noqa: B008 - frozen
    max_drop: float = MAX_DROP,
    deviations: float = DEVIATIONS,
) -> tuple[MaskedThresholds, ...]:
    """Apply this module's rule for each set of missing branches, on the collector's validation images.

    thresholds: those with no branch missing, which exits of plain stages keep.
    """
    stages = collector.bundle.stages
    fixed = {k: value for k, value in enumerate(thresholds) if not stages[k].branches}
    chosen = []
    for missing in masks:
        scored = score_exits(collector.collect(missing), criterion, parameters)
        choice = choose_thresholds(scored, costs_of(stages, missing), max_drop, deviations, fixed)
        chosen.append(MaskedThresholds(missing=missing, thresholds=choice.thresholds))
    return tuple(chosen)


def masks_of(bundle: Bundle) -> tuple[tuple[int, ...], ...]:
    """Return the sets of missing branches that deserve thresholds; none for a bundle without wide stages."""
    counts = [count for count in bundle.branch_counts if count]
    return missing_sets(min(counts)) if counts else ()


def _levels(thresholds: int) -> int:
    levels = min(_MOST_LEVELS, int(_MAX_VECTORS ** (1 / max(thresholds, 1)))) - 1
    if levels < 1:
        raise ConfigError(f"thresholds: {thresholds} are too many to search", "choose them by hand")
    return levels


def _grid(scores: npt.NDArray[np.float64], levels: int) -> list[float]:
    finite = scores[np.isfinite(scores)]
    if len(finite) == 0:
        return [NEVER]
    # The method "lower" gives scores that occur: an input leaves exactly at its own score.
    quantiles = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, levels), method="lower"))
    # Rounded down, so that the score itself still reaches its threshold.
    return [*(np.floor(quantiles * _DIGITS) / _DIGITS).tolist(), NEVER]


def _judge_all(
    scored: ExitScores, costs: Costs, grids: Sequence[Sequence[float]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Judge every vector of the grids' product.

    Returns three tables, one axis per threshold: sums over the inputs of the multiply-accumulates, of the differences
    to the last exit (1 where leaving early lost a right answer, -1 where it won one), and of their squares.
    """
    # How many thresholds of its exit's grid an input's score reaches: it leaves there if that is above the place.
    reached = [np.searchsorted(grid, scored.scores[:, k], side="right") for k, grid in enumerate(grids)]
    shape = tuple(len(grid) for grid in grids)
    last = scored.correct[:, -1].astype(np.int64)
    macs, differences, squares = (np.zeros(shape, np.int64) for _ in range(3))
    for k in range(len(grids) + 1):
        difference = last - scored.correct[:, k]
        leaving = [_leaving(reached, shape, k, weights) for weights in (np.ones_like(last), difference, difference**2)]
        macs += leaving[0] * costs.macs[k]
        differences += leaving[1]
        squares += leaving[2]
    return macs, differences, squares


def _leaving(
    reached: Sequence[npt.NDArray[np.int64]], shape: tuple[int, ...], k: int, weights: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Add up the weights of the inputs that leave at exit `k`, for every vector.

    Returns int64 of `shape`, with 1 on the axes of exits deeper than `k`, which do not matter.
    """
    axes = min(k + 1, len(shape))
    table = np.zeros(tuple(size + 1 for size in shape[:axes]), np.int64)
    np.add.at(table, tuple(reached[:axes]), weights)
    for axis in range(min(k, len(shape))):
        # Passed: at most `place` thresholds reached.
        table = np.cumsum(table, axis=axis).take(range(shape[axis]), axis=axis)
    if k < len(shape):
        # Taken: more than `place` reached.
        table = np.flip(np.cumsum(np.flip(table, axis=k), axis=k), axis=k).take(range(1, shape[k] + 1), axis=k)
    return table.reshape(table.shape + (1,) * (len(shape) - axes))
