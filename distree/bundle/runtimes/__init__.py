"""Runtimes that execute segments; shared, so that boards, the zoo's evaluation and benchmarks run the same code.

Each is a file of its own, and is loaded by those alone who run segments on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from distree import lazy

if TYPE_CHECKING:
    from distree.bundle.loading import Bundle
    from distree.segments import SegmentRuntime


RUNTIMES = {"tflite": "distree.bundle.runtimes.tflite:TFLiteRuntime"}
"""The runtimes that a bundle may name, and what each is made by."""

DEFAULT_RUNTIME = "tflite"


def load_runtime(bundle: Bundle) -> Callable[..., SegmentRuntime]:
    """Load what runs the segments of `bundle`, and return what makes it; the interpreter itself comes later."""
    made_by: Callable[..., SegmentRuntime] = lazy.load(RUNTIMES[bundle.manifest.runtime])
    return made_by


def make_runtime(
    bundle: Bundle,
    stages: Iterable[int] | None = None,
    num_threads: int = 1,
    *,
    branch: int | None = None,
    fuse: bool = False,
) -> SegmentRuntime:
    """Make what runs the segments of `bundle`, by its manifest; used by one thread at a time.

    `stages` are what `run` serves: plain stages, and of wide ones the branch `branch`. By default these are all
    stages, or, where no branch is named, the plain ones. `fuse` loads the fusion heads of all wide stages too.

    Raises RuntimeUnavailableError when no interpreter works here, BundleError when a segment is missing, was
    changed, cannot be read by the interpreter, or does not have the tensors that the manifest names, and for a
    wide stage without such a branch.
    """
    return load_runtime(bundle)(bundle, stages, num_threads, branch=branch, fuse=fuse)
