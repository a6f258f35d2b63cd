"""The learned or measured parameters of criteria: an .npz file of float32 arrays beside the manifest."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from distree.bundle.manifest import StageSpec
from distree.bundle.npz import read_npz
from distree.errors import BUILD_AGAIN, BundleError, RemoteProtocolError
from distree.printable import printable
from distree.tensors import Array

MAX_BYTES = 64 << 20
"""Most memory that the arrays may take."""


def read_arrays(path: Path, content: bytes) -> dict[str, Array]:
    """Return the arrays of an .npz file by name; BundleError if it is not one."""
    try:
        return read_npz(io.BytesIO(content), MAX_BYTES)
    except RemoteProtocolError as error:
        raise BundleError(f"{path}: {error.detail}", BUILD_AGAIN) from None


def numbered(arrays: Mapping[str, Array], name: str) -> list[Array]:
    """Return the arrays `{name}0`, `{name}1`, … up to the first that is not there."""
    return [arrays[f"{name}{i}"] for i in itertools.takewhile(lambda i: f"{name}{i}" in arrays, itertools.count())]


def parameter_problems(arrays: Mapping[str, Array], stages: tuple[StageSpec, ...], classes: int) -> Iterable[str]:
    """Say what is wrong with the parameters of a bundle with these stages and so many classes."""
    means, gates = numbered(arrays, "class_means"), numbered(arrays, "gate")
    if len(means) + len(gates) != len(arrays):
        names = printable(", ".join(sorted(arrays)))
        yield f"contains {names}, where only class_means0, class_means1, … and gate0, gate1, … are allowed"
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            yield f"{name}: must be finite float32"
    wide = next((stage.branches for stage in stages if stage.branches), ())
    wanted = [(classes, *branch.embedding.shape[1:]) for branch in wide]
    if means and [array.shape for array in means] != wanted:
        shapes = ", ".join(str(array.shape) for array in means)
        yield f"class_means: {printable(shapes)}, not (classes, values) for each of the {len(wide)} branches"
    if gates and (len(gates) not in (len(stages) - 1, len(stages)) or any(array.ndim != 1 for array in gates)):
        yield f"gate: not (weights,), bias last, for each of the {len(stages)} exits, or for all but the last"
