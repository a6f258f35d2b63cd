"""Patience: for how many exits in a row the predicted class has stayed the same.

Formula: s_l = s_(l-1) + 1 if argmax z_l = argmax z_{l-1}, else 1; s = 1 at the first exit. Sign: as it is.
Range: 1, 2, … Parameters: none. Memory: (predicted class, s).

A threshold of 2 asks two neighbouring exits to agree. PABEE counts agreements, s - 1, so its patience t is a
threshold of t + 1 here.

Reference: W. Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early Exit", NeurIPS 2020.
"""

from __future__ import annotations

from distree.criteria.base import ExitEvidence, Range, Score
from distree.criteria.softmax import LEAST_SURE, confidence
from distree.messages.limits import MAX_STAGES
from distree.messages.request import CriterionMemory


class Patience:
    """Score an exit by the length of the streak of equal predictions that ends there.

    Logits that are not all finite score -inf and break the streak.

    >>> first = Patience().score(ExitEvidence(logits=[4.0, 1.0, 0.0]))
    >>> first
    Score(value=1.0, memory=(0.0, 1.0))
    >>> Patience().score(ExitEvidence(logits=[2.0, 1.0, 0.0], memory=first.memory)).value
    2.0
    """

    name = "patience"
    range = Range(least=1.0, most=float(MAX_STAGES))

    def score(self, evidence: ExitEvidence) -> Score:
        """Score one exit after the exits that `evidence.memory` tells of."""
        class_id, probability = confidence(evidence.logits)
        if probability == 0.0:
            return Score(value=LEAST_SURE)
        streak = _streak_before(class_id, evidence.memory) + 1.0
        return Score(value=streak, memory=(float(class_id), streak))


def _streak_before(class_id: int, memory: CriterionMemory) -> float:
    # The memory came over the network: what is not a streak of this class counts as none.
    match memory:
        case (last, streak) if last == class_id and 0.0 <= streak < MAX_STAGES:
            return streak
    return 0.0
