"""What runs segments: the contract between a node's driver and a runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from distree.record import record
from distree.tensors import Array


@record
class SegmentOutput:
    """What one segment gives: quantised features for the next stage (None at the last) and dequantised logits.

    `features` is the interpreter's output as (1, ...) int8 or float32; `logits` has one float per class. A branch of
    a wide stage gives an `embedding`, (1, n) as quantised, and no logits. A fusion head's `embeddings` are what it
    was given, dequantised, one list per branch, None where it is missing.
    """

    features: Array | None
    logits: list[float]
    embedding: Array | None = None
    embeddings: tuple[list[float] | None, ...] = ()


class SegmentRuntime(Protocol):
    """Runs the segments of one bundle. Used by one thread at a time."""

    name: str
    """Package and version, for meta and reports."""

    def run(self, stage: int, tensor: Array) -> SegmentOutput:
        """Run the segment of `stage`, or of this board's branch of it, on a tensor as the manifest says."""

    def fuse(self, stage: int, embeddings: Sequence[Array | None]) -> SegmentOutput:
        """Run the fusion head of a wide stage on one embedding per branch, None where it is missing."""
