"""Max softmax: the probability of the predicted class.

Formula: max p, p = softmax(z). Sign: as it is. Range: [1/K, 1]. Parameters: none.

Reference: D. Hendrycks and K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
Examples in Neural Networks", ICLR 2017.
"""

from __future__ import annotations

from distree.criteria.base import PROBABILITY, ExitEvidence, Score
from distree.criteria.softmax import LEAST_SURE, confidence


class MaxSoftmax:
    """Score an exit by the probability of its predicted class; -inf if a logit is not finite.

    >>> round(MaxSoftmax().score(ExitEvidence(logits=[4.0, 1.0, 0.0])).value, 4)
    0.9362
    """

    name = "max_softmax"
    range = PROBABILITY

    def score(self, evidence: ExitEvidence) -> Score:
        """Score one exit: the very number that results report as confidence."""
        probability = evidence.confidence
        if probability is None:
            probability = confidence(evidence.logits)[1]
        return Score(value=probability if probability > 0.0 else LEAST_SURE)
