"""All the boards of one bundle in one process: a runtime for what each would run."""

from __future__ import annotations

import numpy as np

from distree.bundle.loading import Bundle
from distree.bundle.manifest import TensorSpec
from distree.bundle.runtimes import make_runtime
from distree.segments import SegmentOutput
from distree.tensors import Array


class Boards:
    """One runtime for the plain stages and the fusion heads, and one per branch of the wide stages.

    Raises BundleError and RuntimeUnavailableError as the runtime does. `name` is the runtime's.
    """

    def __init__(self, bundle: Bundle) -> None:
        counts = bundle.branch_counts
        self._host = make_runtime(bundle, fuse=True)
        self.name = self._host.name
        self._branches = [
            make_runtime(bundle, [k for k, count in enumerate(counts) if b < count], branch=b)
            for b in range(max(counts))
        ]

    def run(self, stage: int, tensor: Array, branch: int | None = None) -> SegmentOutput:
        """Run a plain stage, or one branch of a wide one."""
        return (self._host if branch is None else self._branches[branch]).run(stage, tensor)

    def fuse(self, stage: int, embeddings: list[Array | None]) -> SegmentOutput:
        """Run the fusion head of a wide stage."""
        return self._host.fuse(stage, embeddings)


def quantised_logits(output: SegmentOutput, spec: TensorSpec) -> Array:
    """Return the logits as they left the segment: the runtime dequantises them, and this gives back the integers."""
    if spec.dtype not in ("int8", "uint8"):
        return np.asarray(output.logits, spec.dtype)
    return (np.rint(np.asarray(output.logits) / spec.scale) + spec.zero_point).astype(spec.dtype)
