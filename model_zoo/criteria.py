"""The criteria that a bundle can use, and how each is scored on the images that thresholds are chosen on."""

from __future__ import annotations

from distree.bundle.loading import Bundle
from distree.criteria import CRITERIA, problem
from distree.criteria.base import CriterionParameters
from distree.criteria.deadline import Deadline
from distree.criteria.gate import Gate
from model_zoo.evaluation import ExitLogits, ExitScores, score_exits
from model_zoo.gate import cross_fitted_scores


def usable_criteria(bundle: Bundle, parameters: CriterionParameters) -> tuple[str, ...]:
    """Return the criteria that can decide at all exits of a bundle but the last, all but the deadline rule."""
    wide = all(bundle.branch_counts[:-1])
    exits, classes = len(bundle.stages), len(bundle.labels)
    candidates = (name for name in CRITERIA if name != Deadline.name)
    return tuple(name for name in candidates if not problem(name, parameters, wide, exits=exits, classes=classes))


def validation_scores(collected: ExitLogits, criterion: str, parameters: CriterionParameters) -> ExitScores:
    """Score validation images as a board would; by the learned gate, as `model_zoo.gate` says."""
    if criterion == Gate.name:
        return cross_fitted_scores(collected)
    return score_exits(collected, criterion, parameters)
