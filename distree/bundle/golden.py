"""How far what a segment gives is from what it should give, in quantisation steps."""

from __future__ import annotations

import math

import numpy as np

from distree.tensors import Array

_STEPS = 127.0


def steps_off(found: Array, expected: Array) -> float:
    """Return the largest difference between two outputs of the same values, in steps of `expected`'s dtype.

    Quantised values differ by whole steps. Values of float32 have none: there a step is what it would be if the
    outputs were quantised to 8 bits, the largest magnitude of `expected` over 127. What is not a number is infinitely
    far off.
    """
    one, other = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    off = float(np.abs(one - other).max(initial=0.0))
    if expected.dtype.kind == "f":
        largest = float(np.abs(other).max(initial=0.0))
        off = off * _STEPS / largest if largest > 0.0 else (math.inf if off else 0.0)
    return off if off == off else math.inf
