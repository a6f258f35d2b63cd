"""Energy: the negative free energy of the logits.

Formula: T·ln Σ exp(z / T). Sign: the negative of the free energy, so that higher is surer. Range: the logits'
own scale, at least max z; unlike the softmax criteria it feels a shift of all logits. Parameters: the
temperature T > 0.

Reference: W. Liu, X. Wang, J. Owens and Y. Li, "Energy-based Out-of-distribution Detection", NeurIPS 2020.
"""

from __future__ import annotations

import math

from distree.criteria.base import ANY_NUMBER, ExitEvidence, Score
from distree.criteria.softmax import LEAST_SURE, clamped, finite, odds
from distree.errors import ConfigError


class Energy:
    """Score an exit by T·logsumexp(z/T); -inf if a logit is not finite.

    `temperature` is on the logits' scale, finite and above 0; otherwise ConfigError.

    >>> round(Energy().score(ExitEvidence(logits=[4.0, 1.0, 0.0])).value, 4)
    4.0659
    """

    name = "energy"
    range = ANY_NUMBER

    def __init__(self, temperature: float = 1.0) -> None:
        if not 0.0 < temperature < math.inf:
            raise ConfigError(
                f"energy: the temperature {temperature!r} is out of range", "choose a finite value above 0"
            )
        self.temperature = temperature

    def score(self, evidence: ExitEvidence) -> Score:
        """Score one exit."""
        logits = evidence.logits
        if not finite(logits):
            return Score(value=LEAST_SURE)
        total = math.fsum(odds(logits, self.temperature))
        return Score(value=clamped(max(logits) + self.temperature * math.log(total)))
