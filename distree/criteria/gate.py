"""Gate: a learned linear score of the softmax, of how sure it is, and of the scores of the exits before.

Formula, at exit l: w_l · (p₁, …, p_K, max p, h, s₀, …, s_{l−1}) + b_l, where p = softmax(z), K classes, h is the score
of the entropy criterion, 1 + (Σ p ln p) / ln K, and s are the gate's own scores at the exits before. Sign: as it is; it
is learned so that higher is surer. Range: any finite number. Parameters: `gate`, of exit l the K + 2 + l weights and
then b_l. Memory: (s₀, …, s_l).

Reference: F. Ilhan et al., "EENet: Learning to Early Exit for Adaptive Inference", 2023 (arXiv:2301.07099), whose exit
scores are learned functions of prediction, confidence and earlier scores too. Ours is linear, since a threshold on an
increasing function of a score is a threshold on the score.

The sum is exact (`math.fsum`), so that Python's release does not matter; `exp` and `log` are the C library's, as in all
criteria of the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from distree.criteria.base import CriterionParameters, ExitEvidence, Range, Score
from distree.criteria.entropy import certainty
from distree.criteria.softmax import LEAST_SURE, finite, odds
from distree.errors import BUILD_AGAIN, Problem

_LARGEST = 1e100
"""Weights and scores beyond it count as not finite, so that no sum of products overflows."""

_OF_SOFTMAX = 2


class Gate:
    """Score an exit by a learned linear function.

    The score is -inf if a logit is not finite; without weights for this exit, finite and of the right number; and
    without the scores of all exits before, so that an exit that could not be scored is followed by no other.

    >>> weights = (0.0, 0.0, 0.0, 2.0, 1.0, -1.5), (0.0, 0.0, 0.0, 1.0, 0.0, 0.5, 0.25)
    >>> criterion = Gate(CriterionParameters(gate=weights))
    >>> first = criterion.score(ExitEvidence(logits=[4.0, 1.0, 0.0]))
    >>> round(first.value, 4)
    1.1228
    >>> round(criterion.score(ExitEvidence(logits=[4.0, 1.0, 0.0], exit=1, memory=first.memory)).value, 4)
    1.7476
    """

    name = "gate"
    range = Range(least=-_LARGEST, most=_LARGEST)

    def __init__(self, parameters: CriterionParameters = CriterionParameters()) -> None:  # noqa: B008 - frozen
        self._gate = [weights if _usable(weights) else () for weights in parameters.gate]

    @staticmethod
    def problem(
        parameters: CriterionParameters,
        *,
        wide: bool,  # noqa: ARG004
        exits: int | None,
        classes: int | None,
    ) -> Problem | None:
        """Return why the criterion could not work, see `distree.criteria.problem`."""
        gate = parameters.gate
        if not gate:
            return Problem(
                "gate needs learned weights",
                "build a bundle with them (exits.parameters), or choose another criterion",
            )
        if exits is not None and len(gate) < exits - 1:
            return Problem(f"gate: sets of weights: {len(gate)} given, {exits - 1} needed", BUILD_AGAIN)
        first = len(gate[0]) if classes is None else classes + _OF_SOFTMAX + 1
        for exit, weights in enumerate(gate):
            if len(weights) != first + exit:
                return Problem(
                    f"gate: weights of exit {exit}, bias included: {len(weights)} given, {first + exit} needed",
                    BUILD_AGAIN,
                )
            if not _usable(weights):
                return Problem(f"gate: weights of exit {exit} are not all finite", BUILD_AGAIN)
        return None

    def score(self, evidence: ExitEvidence) -> Score:
        """Score one exit of at least two classes after the exits whose scores are in `evidence.memory`."""
        logits, earlier, exit = evidence.logits, evidence.memory, evidence.exit
        if not (exit < len(self._gate) and len(earlier) == exit and _usable(earlier) and finite(logits)):
            return Score(value=LEAST_SURE)
        weights = self._gate[exit]
        if len(weights) != len(logits) + _OF_SOFTMAX + exit + 1:
            return Score(value=LEAST_SURE)
        value = math.fsum(map(mul, weights, _features(logits, earlier)))
        return Score(value=value, memory=(*earlier, value)) if abs(value) <= _LARGEST else Score(value=LEAST_SURE)


def _features(logits: Sequence[float], earlier: Sequence[float]) -> list[float]:
    weights = odds(logits)
    total = math.fsum(weights)
    return [*[weight / total for weight in weights], 1.0 / total, certainty(weights), *earlier, 1.0]


def _usable(numbers: Sequence[float]) -> bool:
    # A NaN fails both comparisons.
    return all(-_LARGEST <= number <= _LARGEST for number in numbers)
