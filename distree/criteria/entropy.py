"""Normalised entropy: how far the softmax is from uniform.

Formula: 1 + (Σ p ln p) / ln K, p = softmax(z), K classes. Sign: one minus the normalised entropy, so that
higher is surer. Range: 0 (uniform) to 1 (one class has it all), whatever K. Parameters: none.

Reference: S. Teerapittayanon, B. McDanel and H. T. Kung, "BranchyNet: Fast Inference via Early Exiting from
Deep Neural Networks", ICPR 2016, which exits on low entropy; the division by ln K makes thresholds comparable
across K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distree.criteria.base import PROBABILITY, ExitEvidence, Score
from distree.criteria.softmax import LEAST_SURE, finite, odds


class Entropy:
    """Score an exit by one minus its normalised entropy; -inf if a logit is not finite.

    >>> Entropy().score(ExitEvidence(logits=[1.0, 1.0, 1.0])).value
    0.0
    >>> round(Entropy().score(ExitEvidence(logits=[4.0, 1.0, 0.0])).value, 4)
    0.7503
    """

    name = "entropy"
    range = PROBABILITY

    def score(self, evidence: ExitEvidence) -> Score:
        """Score one exit of at least two classes."""
        logits = evidence.logits
        return Score(value=certainty(odds(logits)) if finite(logits) else LEAST_SURE)


def certainty(weights: Sequence[float]) -> float:
    """One minus the normalised entropy of a softmax, given as its `odds`.

    >>> certainty([1.0, 1.0])
    0.0
    """
    # p = w/S gives Σ p ln p = (Σ w ln w)/S - ln S; classes whose w is rounded to 0 add nothing.
    heard = [weight for weight in weights if weight > 0.0]
    total = math.fsum(heard)
    negative_entropy = math.fsum([weight * math.log(weight) for weight in heard]) / total - math.log(total)
    return min(1.0, max(0.0, 1.0 + negative_entropy / math.log(len(weights))))
