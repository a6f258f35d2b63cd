"""Exit criteria, one a file. Each scores an exit, which is taken when the score reaches its threshold.

Every criterion is pure, higher is surer, and logits that are not all finite score `LEAST_SURE`, never NaN.
Logits are one float per class, of at least two classes; what an empty list does is not defined.

A criterion that has learned or measured something takes it as `CriterionParameters`; without what it needs, of these or
of the evidence, it scores `LEAST_SURE`, so that the answer comes from a deeper exit. `problem` says so in advance.
"""

from __future__ import annotations

import difflib

from distree.criteria.base import Criterion, CriterionParameters
from distree.criteria.deadline import Deadline
from distree.criteria.energy import Energy
from distree.criteria.entropy import Entropy
from distree.criteria.feature_difference import FeatureDifference
from distree.criteria.gate import Gate
from distree.criteria.margin import Margin
from distree.criteria.max_softmax import MaxSoftmax
from distree.criteria.patience import Patience
from distree.criteria.softmax import LEAST_SURE, NEVER, NEVER_SENT, confidence
from distree.errors import ConfigError, Problem
from distree.printable import quoted

__all__ = ["CRITERIA", "LEAST_SURE", "NEVER", "NEVER_SENT", "confidence", "make_criterion", "problem", "unknown"]

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
    raise ConfigError(*unknown(name))


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
    return None if name in CRITERIA else unknown(name)


def unknown(name: str) -> Problem:
    """Say that there is no criterion called `name`, and name the one that was meant, or all."""
    near = difflib.get_close_matches(name, CRITERIA, n=1)
    return Problem(f"unknown criterion {quoted(name)}", f"use {near[0] if near else 'one of ' + ', '.join(CRITERIA)}")
