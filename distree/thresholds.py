"""What a threshold is, and how people write it: a number, or `never`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeAlias

NEVER = 1e300
"""The threshold that keeps an exit closed: no criterion scores this high. Finite, as all numbers in messages are."""

NEVER_WORD = "never"
"""How people write and read it."""

Threshold: TypeAlias = Annotated[float, NEVER_WORD]
"""A threshold in a YAML file: a finite number, or `never`."""


def parse_threshold(text: str) -> float:
    """Read what a person wrote; ValueError for what is neither a finite number nor `never`.

    >>> parse_threshold("0.9"), parse_threshold("never") == NEVER
    (0.9, True)
    """
    if text == NEVER_WORD:
        return NEVER
    value = float(text)
    # A NaN fails the comparison.
    if not abs(value) <= NEVER:
        raise ValueError(f"{text} is neither a finite number nor {NEVER_WORD!r}")
    return value


def plain_thresholds(thresholds: Iterable[float]) -> list[float | str]:
    """Return thresholds as they stand in JSON.

    >>> plain_thresholds([0.9, NEVER])
    [0.9, 'never']
    """
    return [NEVER_WORD if threshold >= NEVER else threshold for threshold in thresholds]
