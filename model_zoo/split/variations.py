"""Many inputs from few: mixed, shifted and, if they are pictures, mirrored.

The whole network answers them, so they need no labels, and a variation that makes no sense does no harm: a head
learns what the network answers there. On ResNet-8 with 500 inputs mixing alone let heads save 9 %, with
shifting and mirroring 13 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distree.tensors import Array

_SHIFT = 0.1  # of an axis, at most, either way
_LONG = 256  # a vector of at least this many values counts as a recording
_SMALLEST_PICTURE = 16


@dataclass(frozen=True, slots=True)
class Variation:
    """How one input is made from two: its sources, the share of the first, and how each is shifted and mirrored."""

    sources: tuple[int, int]
    share: float
    shifts: tuple[tuple[int, ...], tuple[int, ...]]
    mirrored: tuple[bool, bool]

    def make(self, inputs: Array) -> Array:
        """Make the input from `inputs` (n, …), of which `sources` are two indices; same dtype."""
        parts = [
            _moved(inputs[source], shift, mirror)
            for source, shift, mirror in zip(self.sources, self.shifts, self.mirrored, strict=True)
        ]
        mixed = self.share * parts[0].astype(np.float64) + (1.0 - self.share) * parts[1].astype(np.float64)
        return (np.rint(mixed) if inputs.dtype.kind in "iu" else mixed).astype(inputs.dtype)


def draw_variations(inputs: Array, count: int, generator: np.random.Generator) -> list[Variation]:
    """Draw `count` ways to make new inputs from the ones given, (n, …)."""
    limits = _shift_limits(inputs.shape[1:])
    picture = _is_picture(inputs)
    drawn = []
    for _ in range(count):
        shifts = [tuple(int(generator.integers(-limit, limit + 1)) for limit in limits) for _ in range(2)]
        first, second = generator.integers(0, len(inputs), 2).tolist()
        drawn.append(
            Variation(
                sources=(first, second),
                share=float(generator.uniform()),
                shifts=(shifts[0], shifts[1]),
                mirrored=(picture and generator.uniform() < 0.5, picture and generator.uniform() < 0.5),
            )
        )
    return drawn


def sources_of(variations: list[Variation]) -> npt.NDArray[np.int64]:
    """Return the sources of all variations, (n, 2)."""
    return np.asarray([variation.sources for variation in variations], np.int64).reshape(-1, 2)


def _is_picture(inputs: Array) -> bool:
    shape = inputs.shape[1:]
    sides = len(shape) == 3 and min(shape[:2]) >= _SMALLEST_PICTURE and shape[2] in (1, 3)
    return sides and inputs.dtype != np.int8


def _shift_limits(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return how far an input may be shifted along its first axes: space and time, never channels."""
    if len(shape) == 1:
        return (int(_SHIFT * shape[0]),) if shape[0] >= _LONG else (0,)
    axes = 2 if len(shape) == 3 and min(shape[:2]) >= _SMALLEST_PICTURE else 1
    return tuple(int(_SHIFT * size) for size in shape[:axes])


def _moved(value: Array, shifts: tuple[int, ...], mirror: bool) -> Array:
    for axis, shift in enumerate(shifts):
        if shift:
            # The gap at an edge is filled with copies of the edge.
            value = np.take(value, np.clip(np.arange(value.shape[axis]) - shift, 0, value.shape[axis] - 1), axis=axis)
    return value[:, ::-1] if mirror else value
