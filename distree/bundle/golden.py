"""Golden vectors: inputs of segments with their outputs, and how far what a segment gives is from these.

The file has an array (inputs, …) for every tensor of every segment: `stage0_input`, `stage0_features`,
`stage0_logits`, …; of wide stages `stage0_branch0_input`, `stage0_branch0_embedding`, … in place of `stage0_input`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from distree.bundle.loading import Bundle, read_verified
from distree.bundle.manifest import BranchSpec, StageSpec, TensorSpec
from distree.bundle.npz import read_npz
from distree.errors import BUILD_AGAIN, BundleError, RemoteProtocolError
from distree.tensors import Array

MAX_BYTES = 256 << 20
"""Most memory that golden vectors may take."""

_STEPS = 127.0


def read_golden(
    bundle: Bundle, stages: Iterable[int] | None = None, *, branch: int | None = None, fuse: bool = False
) -> dict[str, Array]:
    """Return the golden vectors of all segments, or of those of one board; arguments as for `Bundle.verify`.

    Raises BundleError if the file is missing or damaged, or has no vectors of the tensors that the manifest declares.
    """
    golden = bundle.manifest.golden
    path = bundle.path / golden.file
    wanted = dict(_wanted(bundle, stages, branch, fuse))
    try:
        vectors = read_npz(io.BytesIO(read_verified(path, golden.sha256)), MAX_BYTES, wanted)
    except RemoteProtocolError as error:
        raise BundleError(f"{path}: {error.detail}", BUILD_AGAIN) from None
    for fault in _faults(vectors, wanted):
        raise BundleError(f"{path}: {fault}", BUILD_AGAIN)
    return vectors


def _wanted(
    bundle: Bundle, stages: Iterable[int] | None, branch: int | None, fuse: bool
) -> Iterator[tuple[str, TensorSpec]]:
    """Give the names of arrays, and what tensor each holds."""
    is_all = stages is None
    for k in range(len(bundle.stages)) if stages is None else stages:
        stage = bundle.stages[k]
        if not stage.branches:
            yield f"stage{k}_input", stage.input
            yield from _outputs(f"stage{k}", stage)
        for b in range(len(stage.branches)) if is_all else [branch] if stage.branches else []:
            of_branch = bundle.branch(k, b)
            yield f"stage{k}_branch{b}_input", of_branch.input
            yield from _outputs(f"stage{k}_branch{b}", of_branch)
    for k, stage in enumerate(bundle.stages):
        if stage.branches and (fuse or is_all):
            yield from ((f"stage{k}_branch{b}_embedding", of.embedding) for b, of in enumerate(stage.branches))
            yield from _outputs(f"stage{k}", stage)


def _outputs(key: str, spec: StageSpec | BranchSpec) -> Iterator[tuple[str, TensorSpec]]:
    if spec.features is not None:
        yield f"{key}_features", spec.features
    if isinstance(spec, BranchSpec):
        yield f"{key}_embedding", spec.embedding
    else:
        yield f"{key}_logits", spec.logits


def _faults(vectors: Mapping[str, Array], wanted: Mapping[str, TensorSpec]) -> Iterator[str]:
    """Say what is wrong with vectors for such tensors: each has a row for each input, as large as the tensor."""
    counts = set()
    for name, spec in wanted.items():
        array = vectors.get(name)
        if array is None:
            yield f"has no golden vectors {name}"
        elif array.ndim < 1 or array.dtype != spec.dtype or math.prod(array.shape[1:]) != math.prod(spec.shape):
            yield f"{name}: {array.dtype} {array.shape} are no vectors of a tensor {spec.dtype} {spec.shape}"
        else:
            counts.add(len(array))
    if len(counts) > 1 or 0 in counts:
        yield f"has golden vectors of {' and '.join(map(str, sorted(counts)))} inputs, where all are of the same ones"


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
