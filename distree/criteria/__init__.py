"""Exit criteria, one a file. Each scores an exit, which is taken when the score reaches its threshold.

Every criterion is pure, higher is surer, and logits that are not all finite score `LEAST_SURE`, never NaN.
Logits are one float per class, of at least two classes; what an empty list does is not defined.

A criterion that has learned or measured something takes it as `CriterionParameters`; without what it needs, of these or
of the evidence, it scores `LEAST_SURE`, so that the answer comes from a deeper exit. `problem` says so in advance.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from distree.criteria.base import ANY_NUMBER, PROBABILITY, Criterion, CriterionParameters, Range
from distree.criteria.deadline import Deadline
from distree.criteria.energy import Energy
from distree.criteria.entropy import Entropy
from distree.criteria.feature_difference import FeatureDifference
from distree.criteria.gate import Gate
from distree.criteria.margin import Margin
from distree.criteria.max_softmax import MaxSoftmax
from distree.criteria.patience import Patience
from distree.criteria.softmax import LEAST_SURE, confidence
from distree.errors import ConfigError, Problem
from distree.printable import quoted
from distree.thresholds import NEVER, NEVER_WORD

__all__ = ["CRITERIA", "LEAST_SURE", "confidence", "make_criterion", "problem", "threshold_problem"]

_WITH_PARAMETERS: dict[str, type[FeatureDifference] | type[Gate]] = {
    FeatureDifference.name: FeatureDifference,
    Gate.name: Gate,
}

CRITERIA: dict[str, type[Criterion]] = {
    criterion.name: criterion
    for criterion in (MaxSoftmax, Entropy, Margin, Patience, Energy, Deadline, *_WITH_PARAMETERS.values())
}
"""Every criterion that a plan or a bundle may name, by name; each can be made without arguments."""


def make_criterion(name: str, parameters: CriterionParameters = CriterionParameters()) -> Criterion:  # noqa: B008 - frozen
    """Make the criterion called `name`, with a bundle's parameters if it takes any.

    An unknown name raises ConfigError. Parameters that are missing or make no sense do not: see `problem`.

    >>> make_criterion("entropy").name
    'entropy'
    """
    if name in _WITH_PARAMETERS:
        return _WITH_PARAMETERS[name](parameters)
    if name in CRITERIA:
        return CRITERIA[name]()
    raise ConfigError(*_unknown(name))


def problem(
    name: str,
    parameters: CriterionParameters = CriterionParameters(),  # noqa: B008 - frozen
    wide: bool = False,
    *,
    exits: int | None = None,
    classes: int | None = None,
) -> Problem | None:
    """Return why the criterion called `name` could not work with a bundle; None if it can.

    `parameters` are the bundle's, `wide` says whether the exits that decide are those of wide stages, since only those
    have embeddings. Numbers of exits (the last one included) and classes are checked where they are given.

    >>> problem("entropy")
    >>> print(problem("feature_difference"))
    feature_difference compares embeddings, which only wide stages have; choose another criterion
    """
    if name in _WITH_PARAMETERS:
        return _WITH_PARAMETERS[name].problem(parameters, wide=wide, exits=exits, classes=classes)
    return None if name in CRITERIA else _unknown(name)


def threshold_problem(name: str, thresholds: Iterable[float]) -> Problem | None:
    """Return which threshold the criterion called `name` has no use for; None if there is none.

    The thresholds are those of the exits 0, 1, … NEVER is always one.

    >>> threshold_problem("max_softmax", [0.9, NEVER])
    >>> print(threshold_problem("margin", [90.0, 80.0]).what)
    the threshold of exit 0 is 90, but scores of margin are between 0 and 1
    """
    if name not in CRITERIA:
        return _unknown(name)
    possible = CRITERIA[name].range
    for exit, threshold in enumerate(thresholds):
        # A NaN fails both comparisons.
        if not (threshold >= NEVER or possible.least <= threshold <= possible.most):
            return Problem(
                f"the threshold of exit {exit} is {threshold:g}, but scores of {name} are {possible}",
                f"give {_instead(threshold, possible)}, or {NEVER_WORD!r} to keep the exit closed",
            )
    return None


def _instead(threshold: float, possible: Range) -> str:
    if possible == PROBABILITY and 10.0 <= threshold <= 100.0:
        return f"{threshold / 100:g} for {threshold:g}%"
    return "one" if possible == ANY_NUMBER else f"a number {possible}"


def _unknown(name: str) -> Problem:
    nearest = difflib.get_close_matches(name, CRITERIA, n=1, cutoff=0.0)[0]
    return Problem(f"unknown criterion {quoted(name)}", f"use one of {', '.join(CRITERIA)} ({nearest} is the nearest)")
