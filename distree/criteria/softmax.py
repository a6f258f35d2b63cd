"""What several criteria share: the constants of the threshold rule and a numerically stable softmax.

Logits are plain lists of about ten floats here, where `math.exp` beats numpy several times over
(`benchmarks/criteria.py`). Sums are exact (`math.fsum`), because `sum` of floats rounds differently from one
Python release to the next, and the boards of one pipeline must agree about a score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distree.criteria.base import ANY_NUMBER

LEAST_SURE = -math.inf
"""The score of logits that are not all finite: no finite threshold takes such an exit."""


def finite(logits: Sequence[float]) -> bool:
    """Tell whether no logit is infinite or NaN."""
    return all(map(math.isfinite, logits))


def clamped(score: float) -> float:
    """Bring a score on a scale of its own within ANY_NUMBER, so that none reaches the threshold NEVER."""
    return min(max(score, ANY_NUMBER.least), ANY_NUMBER.most)


def odds(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Exponentials of finite logits over the temperature, scaled so that the largest is 1 (no overflow).

    Divided by their sum they are the softmax.
    """
    top = max(logits)
    if temperature == 1.0:
        return [math.exp(z - top) for z in logits]
    return [math.exp((z - top) / temperature) for z in logits]


def confidence(logits: Sequence[float]) -> tuple[int, float]:
    """Predicted class and its softmax probability; of equal logits the lowest class wins.

    `logits` has one float per class, at least one. Logits that are not all finite give the class of the
    largest that is not NaN (class 0 if all are), at confidence 0.0, which finite logits never have.

    >>> confidence([0.0, 2.0, 2.0])[0]
    1
    >>> round(confidence([0.0, 2.0, 0.0])[1], 4)
    0.787
    >>> confidence([0.0, float("nan"), 1.0])
    (2, 0.0)
    """
    if not finite(logits):
        return _largest(logits), 0.0
    return logits.index(max(logits)), 1.0 / math.fsum(odds(logits))


def _largest(logits: Sequence[float]) -> int:
    ranked = [LEAST_SURE if math.isnan(z) else z for z in logits]
    return ranked.index(max(ranked))
