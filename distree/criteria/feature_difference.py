"""Feature difference: how far the fused embedding has moved since the exit before.

Formula, at exit l > 0: −‖f_l − f_{l−1}‖₂, where f is the concatenation of the embeddings of the branches that are
there at both exits, divided by its norm. At exit 0: −min_c ‖f_0 − m_c‖₂ over the classes c, where f_0 concatenates the
branches that are there, and m_c the means of class c over the same branches, divided by its norm. Sign: the negative
of the distance, so that higher is surer: features that no longer change will not change the answer. Range: −2 to 0,
and −√2 to 0 where no value is negative. Parameters: `class_means`. Memory: the embeddings, each after its number of
values, which is 0 for a missing one: (n₀, values of branch 0 …, n₁, …).

Reference: DistrEE, arXiv:2502.15735. The paper is known to us in words only, so that this is a reconstruction:
normalisation, the norm and the first exit are our reading of it.

A score takes about as long as one division per value: `math.hypot` and `math.dist` sum in C. Their error is below one
unit in the last place from Python 3.10 on, but the last bit is no promise of theirs, as it is of `math.fsum`, which
costs twice the time at one distance and five times at ten classes. Hence the score is rounded to 9 decimals: two
boards could differ only where that last bit falls across a rounding boundary, and then by 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from distree.criteria.base import CriterionParameters, ExitEvidence, Range, Score
from distree.criteria.softmax import LEAST_SURE, finite
from distree.errors import BUILD_AGAIN, Problem
from distree.messages.request import CriterionMemory

MAX_REMEMBERED = 1024
"""Longest memory, of as many numbers as the codec lets through; longer embeddings are not remembered."""

_SMALLEST, _LARGEST = 1e-100, 1e100
_DECIMALS = 9
_KEPT_SETS = 64

Vector = Sequence[float]


class FeatureDifference:
    """Score an exit by minus the distance of its unit-normalised embedding to that of the exit before.

    The score is -inf without embeddings; without a branch in common with the exit before, or where one has changed its
    size; at the first exit without class means of the embeddings' sizes; for embeddings, or logits, that are not
    finite; for a zero vector, which has no direction (a class whose mean is one is left out); and for a memory that is
    none. "Finite" and "zero" are meant of the norm: 1e-100 to 1e100 is taken.

    >>> means = CriterionParameters(class_means=(((4.0, 3.0), (0.0,)), ((0.0, 0.0), (1.0,))))
    >>> criterion = FeatureDifference(means)
    >>> first = criterion.score(ExitEvidence(logits=[1.0, 0.0], embeddings=[[3.0, 4.0], None]))
    >>> first
    Score(value=-0.282842712, memory=(2.0, 3.0, 4.0, 0.0))
    >>> second = ExitEvidence(logits=[1.0, 0.0], exit=1, embeddings=[[6.0, 8.0], [5.0]], memory=first.memory)
    >>> criterion.score(second).value
    0.0
    """

    name = "feature_difference"
    range = Range(least=-2.0, most=0.0)

    def __init__(self, parameters: CriterionParameters = CriterionParameters()) -> None:  # noqa: B008 - frozen
        means = parameters.class_means
        self._means = means if _misshapen(means) is None else ()
        self._sizes = [len(values) for values in means[0]] if self._means else []
        self._unit_means: dict[tuple[int, ...], list[tuple[float, ...]]] = {}

    @staticmethod
    def problem(
        parameters: CriterionParameters,
        *,
        wide: bool,
        exits: int | None,  # noqa: ARG004
        classes: int | None,
    ) -> Problem | None:
        """Return why the criterion could not work, see `distree.criteria.problem`."""
        means = parameters.class_means
        if not wide:
            return Problem(
                "feature_difference compares embeddings, which only wide stages have", "choose another criterion"
            )
        if not means:
            return Problem(
                "feature_difference needs class_means for the first exit",
                "build a bundle with them (exits.parameters), or choose another criterion",
            )
        if classes is not None and len(means) != classes:
            return Problem(f"feature_difference: class_means are of {len(means)} classes, not {classes}", BUILD_AGAIN)
        return _misshapen(means)

    def score(self, evidence: ExitEvidence) -> Score:
        """Score one exit after the exit that `evidence.memory` tells of."""
        embeddings = evidence.embeddings
        memory = _remembered(embeddings)
        if not memory or not finite(evidence.logits):
            return Score(value=LEAST_SURE, memory=memory)
        if evidence.exit == 0:
            distance = self._to_nearest_mean(embeddings)
        else:
            distance = _since(_recalled(evidence.memory), embeddings)
        return Score(value=0.0 - round(distance, _DECIMALS), memory=memory)

    def _to_nearest_mean(self, embeddings: Sequence[Vector | None]) -> float:
        """Distance to the nearest class mean, inf if there is none."""
        sizes = self._sizes
        if len(embeddings) != len(sizes):
            return math.inf
        values: list[float] = []
        for size, embedding in zip(sizes, embeddings, strict=True):
            if embedding:
                if len(embedding) != size:
                    return math.inf
                values += embedding
        unit = _unit(values)
        present = tuple([b for b, embedding in enumerate(embeddings) if embedding])
        return min([math.dist(unit, mean) for mean in self._means_of(present)], default=math.inf) if unit else math.inf

    def _means_of(self, present: tuple[int, ...]) -> list[tuple[float, ...]]:
        """Unit-normalised class means over the branches that are there, kept for the sets of branches seen last."""
        found = self._unit_means.get(present)
        if found is None:
            whole = ([value for b in present for value in of_class[b]] for of_class in self._means)
            found = [unit for unit in map(_unit, whole) if unit]
            if len(self._unit_means) >= _KEPT_SETS:
                self._unit_means.clear()
            self._unit_means[present] = found
        return found


def _misshapen(means: Sequence[Sequence[Vector]]) -> Problem | None:
    sizes = [[len(values) for values in of_class] for of_class in means]
    if any(of_class != sizes[0] for of_class in sizes):
        return Problem("feature_difference: class_means differ in size from class to class", BUILD_AGAIN)
    if sizes and not (sizes[0] and all(sizes[0])):
        return Problem("feature_difference: class_means of a branch are empty", BUILD_AGAIN)
    if not all(finite(values) for of_class in means for values in of_class):
        return Problem("feature_difference: class_means are not all finite", BUILD_AGAIN)
    if sizes and sum(sizes[0]) + len(sizes[0]) > MAX_REMEMBERED:
        return Problem(
            f"feature_difference: {len(sizes[0])} embeddings of {sum(sizes[0])} values do not fit into a message, "
            f"which carries at most {MAX_REMEMBERED} numbers",
            "choose smaller embeddings or another criterion",
        )
    return None


def _unit(values: Vector) -> tuple[float, ...]:
    """Divide by the norm; () for a vector without a direction (no value, zero, not finite)."""
    norm = math.hypot(*values)
    # A NaN fails both comparisons.
    return tuple([value / norm for value in values]) if _SMALLEST <= norm <= _LARGEST else ()


def _between_directions(old: Vector, new: Vector) -> float:
    """Distance between two vectors divided by their norms, inf where one of them has no direction."""
    norm_old, norm_new = math.hypot(*old), math.hypot(*new)
    if not (_SMALLEST <= norm_old <= _LARGEST and _SMALLEST <= norm_new <= _LARGEST):
        return math.inf
    # Bringing one to the other's norm takes one pass over the values instead of two.
    scale = norm_new / norm_old
    return math.dist([value * scale for value in old], new) / norm_new


def _since(before: Sequence[Vector], now: Sequence[Vector | None]) -> float:
    """Distance between the unit vectors of the branches that are there on both sides, inf if there are none."""
    if len(before) != len(now):
        return math.inf
    old: list[float] = []
    new: list[float] = []
    for was, embedding in zip(before, now, strict=True):
        if was and embedding:
            if len(was) != len(embedding):
                return math.inf
            old += was
            new += embedding
    return _between_directions(old, new)


def _remembered(embeddings: Sequence[Vector | None]) -> CriterionMemory:
    """Lay embeddings out for the next exit; () if they are of no use there, or too long to be carried."""
    memory: list[float] = []
    values: list[float] = []
    for embedding in embeddings:
        if embedding:
            memory.append(float(len(embedding)))
            memory += embedding
            values += embedding
        else:
            memory.append(0.0)
    useful = len(memory) <= MAX_REMEMBERED and _SMALLEST <= math.hypot(*values) <= _LARGEST
    return tuple(memory) if useful else ()


def _recalled(memory: CriterionMemory) -> list[Vector]:
    """Undo `_remembered`; [] for what is no such memory, as it may come from another board."""
    return list(_parts(memory)) if _is_whole(memory) else []


def _is_whole(memory: CriterionMemory) -> bool:
    at = 0
    while at < len(memory):
        size = memory[at]
        # A NaN fails the comparison; infinity is above every length.
        if not 0.0 <= size < len(memory) - at or size % 1.0:
            return False
        at += 1 + int(size)
    return True


def _parts(memory: CriterionMemory) -> Iterator[Vector]:
    at = 0
    while at < len(memory):
        end = at + 1 + int(memory[at])
        yield memory[at + 1 : end]
        at = end
