"""What a criterion is: what it is shown of an exit, and the score that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from distree.messages.request import CriterionMemory
from distree.record import record


@record
class ExitEvidence:
    """What an exit knows when it decides.

    `logits` are floats, one per class, of at least two. `confidence` is their largest softmax probability, where the
    caller has computed it already. `exit` is the exit's number, from 0. `embeddings` are those of a wide stage's
    branches, None where one is missing; () at the exit of a plain stage. `memory` is what the criterion returned at
    the exit before, or (). `left_s` is the budget left, `rest_s` the estimate of what going on would take; both are
    used by the deadline rule alone.
    """

    logits: Sequence[float]
    confidence: float | None = None
    exit: int = 0
    embeddings: Sequence[Sequence[float] | None] = ()
    memory: CriterionMemory = ()
    left_s: float = float("inf")
    rest_s: float = 0.0


@record
class Score:
    """A criterion's verdict: `value`, higher is surer, and what it wants to find in `memory` at the next exit."""

    value: float
    memory: CriterionMemory = ()


@record
class CriterionParameters:
    """What the criteria of a bundle have learned or measured; () where there is none.

    `class_means[c][b]` is the mean embedding of class c at branch b of the first exit, as floats. `gate[l]` holds the
    learned gate's weights at exit l, its bias last.
    """

    class_means: tuple[tuple[tuple[float, ...], ...], ...] = ()
    gate: tuple[tuple[float, ...], ...] = ()


@record
class Range:
    """The scores that a criterion can give, both ends included. A threshold outside of them is a mistake.

    At `least` every input leaves that has a score at all.

    >>> print(PROBABILITY)
    between 0 and 1
    """

    least: float
    most: float

    def __str__(self) -> str:
        return "any finite number" if self == ANY_NUMBER else f"between {self.least:g} and {self.most:g}"


ANY_NUMBER = Range(least=-1e299, most=1e299)
"""Of scores on a scale of their own, such as that of the logits. Below NEVER, as it has to be."""

PROBABILITY = Range(least=0.0, most=1.0)


class Criterion(Protocol):
    """A criterion. The exit is taken when `score(...).value >= threshold`; `range` is that of its finite scores."""

    name: str
    range: Range

    def score(self, evidence: ExitEvidence) -> Score:
        """Score one exit. Pure: the same evidence gives the same score on every board."""
