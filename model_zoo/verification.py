"""Checks that a bundle computes here what it computed where it was built."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distree.bundle import Bundle, read_verified
from distree.errors import BundleError, RuntimeUnavailableError
from distree.protocols import Array
from distree.runtimes.tflite import TFLiteRuntime


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """The runtime, the largest difference seen and the one allowed, both in quantisation steps."""

    runtime: str
    worst_steps: int
    tolerance: int


def check_golden(bundle: Bundle) -> GoldenReport:
    """Run every segment on its golden inputs and compare with its golden outputs.

    Each segment gets its own golden input, not what the one before gives, so that differences do not add up.
    Raises BundleError for golden vectors that cannot be read, RuntimeUnavailableError where the results are
    off.
    """
    vectors = _read_golden(bundle)
    runtime = TFLiteRuntime(bundle)
    tolerance = bundle.manifest.golden.tolerance
    worst = max(_worst_steps(bundle, runtime, vectors, stage) for stage in range(len(bundle.stages)))
    if worst > tolerance:
        raise RuntimeUnavailableError(
            f"{bundle.name}: {runtime.name} is off by {worst} quantisation steps on the golden vectors, "
            f"{tolerance} are allowed: it computes wrongly on this machine, so install another version of it"
        )
    return GoldenReport(runtime.name, worst, tolerance)


def _read_golden(bundle: Bundle) -> Mapping[str, Array]:
    golden = bundle.manifest.golden
    content = read_verified(bundle.path / golden.file, golden.sha256)
    wanted = [
        f"stage{k}_{part}"
        for k, stage in enumerate(bundle.stages)
        for part in ("input", "features", "logits")
        if part != "features" or stage.features is not None
    ]
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in wanted}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{bundle.path / golden.file}: not golden vectors ({error}); build the bundle again"
        ) from error


def _worst_steps(bundle: Bundle, runtime: TFLiteRuntime, vectors: Mapping[str, Any], stage: int) -> int:
    spec = bundle.stages[stage].logits
    worst = 0
    for row, tensor in enumerate(vectors[f"stage{stage}_input"]):
        output = runtime.run(stage, np.ascontiguousarray(tensor[None]))
        steps = np.rint(np.asarray(output.logits) / spec.scale) + spec.zero_point
        worst = max(worst, _difference(steps, vectors[f"stage{stage}_logits"][row]))
        if output.features is not None:
            worst = max(worst, _difference(output.features[0], vectors[f"stage{stage}_features"][row]))
    return worst


def _difference(one: Array, other: Array) -> int:
    return int(np.abs(one.astype(np.int64) - other.astype(np.int64)).max())
