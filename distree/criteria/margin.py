"""Margin: how far the best class is ahead of the second.

Formula: p₍₁₎ - p₍₂₎, the two largest of p = softmax(z). Sign: as it is. Range: [0, 1]. Parameters: none.

References: T. Scheffer, C. Decomain and S. Wrobel, "Active Hidden Markov Models for Information Extraction",
IDA 2001, for the margin; E. Park et al., "Big/Little Deep Neural Network for Ultra Low Power Inference",
CODES+ISSS 2015, for its use to decide whether a larger network has to run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distree.criteria.base import PROBABILITY, ExitEvidence, Score
from distree.criteria.softmax import LEAST_SURE, finite, odds


class Margin:
    """Score an exit by the distance between its two best probabilities; -inf if a logit is not finite.

    >>> Margin().score(ExitEvidence(logits=[3.0, 3.0, 0.0])).value
    0.0
    >>> round(Margin().score(ExitEvidence(logits=[4.0, 1.0, 0.0])).value, 4)
    0.8896
    """

    name = "margin"
    range = PROBABILITY

    def score(self, evidence: ExitEvidence) -> Score:
        """Score one exit of at least two classes."""
        logits = evidence.logits
        return Score(value=_lead(logits) if finite(logits) else LEAST_SURE)


def _lead(logits: Sequence[float]) -> float:
    weights = odds(logits)
    total = math.fsum(weights)
    weights.remove(1.0)  # the largest is exactly 1; a tie leaves the other one
    return (1.0 - max(weights)) / total
