"""Checks that a bundle computes the same here as where it was built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from distree.bundle.golden import read_golden, steps_off
from distree.bundle.loading import Bundle
from distree.errors import RuntimeUnavailableError
from distree.segments import SegmentOutput
from distree.tensors import Array
from model_zoo.boards import Boards, quantised_logits


@dataclass(frozen=True, slots=True)
class GoldenReport:
    """The runtime, and the largest difference of any segment and the one that it is allowed, both in steps.

    Steps are those of `distree.bundle.golden`. The segment is the one that comes nearest to what it is allowed.
    """

    runtime: str
    worst_steps: float
    tolerance: int


def check_golden(bundle: Bundle) -> GoldenReport:
    """Run every segment on its golden inputs and compare with its golden outputs.

    Each segment gets its own golden input, not what the one before gives, so that differences do not add up.
    Raises BundleError for golden vectors that cannot be read, RuntimeUnavailableError where the results are
    off.
    """
    vectors, boards = read_golden(bundle), Boards(bundle)
    golden = bundle.manifest.golden
    off = [(steps, golden.allowed(k)) for k, steps in _differences(bundle, boards, vectors)]
    worst, tolerance = max(off, key=lambda found: found[0] - found[1])
    if not worst <= tolerance:
        raise RuntimeUnavailableError(
            f"{bundle.name}: {boards.name} is off by {worst:.3g} quantisation steps on the golden vectors ({tolerance} "
            "allowed), so it computes wrongly on this machine",
            "install another version of it",
        )
    return GoldenReport(boards.name, worst, tolerance)


def _differences(bundle: Bundle, boards: Boards, vectors: Mapping[str, Array]) -> Iterator[tuple[int, float]]:
    """Give, for every output of every segment and each golden input, its stage and the largest difference in steps."""
    for k, stage in enumerate(bundle.stages):
        for b in range(len(stage.branches)):
            for row, tensor in enumerate(vectors[f"stage{k}_branch{b}_input"]):
                output = boards.run(k, np.ascontiguousarray(tensor[None]), b)
                found = {"features": output.features, "embedding": output.embedding}
                yield k, _of_outputs(f"stage{k}_branch{b}", row, found, vectors)
        for row in range(len(vectors[f"stage{k}_logits"])):
            output = _exit_of(boards, k, len(stage.branches), row, vectors)
            found = {"features": output.features, "logits": quantised_logits(output, stage.logits)[None]}
            yield k, _of_outputs(f"stage{k}", row, found, vectors)


def _exit_of(boards: Boards, k: int, branches: int, row: int, vectors: Mapping[str, Array]) -> SegmentOutput:
    """Run a plain stage on its golden input, or a fusion head on the golden embeddings."""
    if not branches:
        return boards.run(k, np.ascontiguousarray(vectors[f"stage{k}_input"][row][None]))
    return boards.fuse(k, [vectors[f"stage{k}_branch{b}_embedding"][row][None] for b in range(branches)])


def _of_outputs(key: str, row: int, found: Mapping[str, Array | None], vectors: Mapping[str, Array]) -> float:
    return max(steps_off(array[0], vectors[f"{key}_{name}"][row]) for name, array in found.items() if array is not None)
