"""Golden-vector self-test, in a child process: an interpreter that crashes here does not take the agent with it."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from distree import child_processes
from distree.bundle.golden import read_golden, steps_off
from distree.bundle.loading import Bundle
from distree.bundle.manifest import TensorSpec
from distree.bundle.runtimes import load_runtime, make_runtime
from distree.errors import DistreeError, Problem, RuntimeUnavailableError
from distree.printable import printable
from distree.segments import SegmentOutput, SegmentRuntime
from distree.tensors import Array

TIMEOUT_S = 60.0

_OTHER_VERSION = "install another version of the interpreter, such as ai-edge-litert==1.2.0"

_BETWEEN = "\n"
"""Stands between what is wrong and how to fix it where the child tells its parent; neither has a line break."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A self-test under way in a child process."""

    bundle: str
    child: int
    reader: int
    timeout_s: float

    def wait(self) -> None:
        """Wait for the verdict, at most `timeout_s`; raise RuntimeUnavailableError if the interpreter is unusable."""
        try:
            verdict, status = _await_child(self.child, self.reader, self.timeout_s)
        finally:
            os.close(self.reader)
        _judge(f"self-test of bundle {self.bundle}", verdict, status, self.timeout_s)


def start_self_test(
    bundle: Bundle,
    stages: Iterable[int],
    num_threads: int,
    timeout_s: float = TIMEOUT_S,
    *,
    branch: int | None = None,
    fuse: bool = False,
) -> SelfTest:
    """Start running the golden vectors of `stages` in a forked child; `branch` and `fuse` are as for the runtime.

    Call it while this process has one thread: a fork keeps only the calling one.
    """
    load_runtime(bundle)  # before the fork, as this process needs it too
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(parent, writer, _Test(bundle, list(stages), num_threads, branch, fuse))
    os.close(writer)
    return SelfTest(bundle=bundle.name, child=child, reader=reader, timeout_s=timeout_s)


def self_test(
    bundle: Bundle,
    stages: Iterable[int],
    num_threads: int,
    timeout_s: float = TIMEOUT_S,
    *,
    branch: int | None = None,
    fuse: bool = False,
) -> None:
    """Run the golden vectors of `stages` in a forked child; raise RuntimeUnavailableError if the answers are wrong."""
    start_self_test(bundle, stages, num_threads, timeout_s, branch=branch, fuse=fuse).wait()


@dataclass(frozen=True, slots=True)
class _Test:
    """What a board loads, and so what its self-test runs."""

    bundle: Bundle
    stages: list[int]
    num_threads: int
    branch: int | None
    fuse: bool

    def run(self) -> Problem | None:
        runtime = make_runtime(self.bundle, self.stages, self.num_threads, branch=self.branch, fuse=self.fuse)
        return compare(self.bundle, runtime, self.stages, branch=self.branch, fuse=self.fuse)


def _judge(where: str, verdict: str, status: int | None, timeout_s: float) -> None:
    if status is None:
        raise RuntimeUnavailableError(
            f"{where}: no answer within {timeout_s:g} s, so the interpreter hangs on this CPU", _OTHER_VERSION
        )
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise RuntimeUnavailableError(
            f"{where}: the interpreter crashed ({name}), as its wheel does not fit this CPU", _OTHER_VERSION
        )
    if verdict:
        what, _, remedy = verdict.partition(_BETWEEN)
        raise RuntimeUnavailableError(what, remedy)
    if os.WEXITSTATUS(status):
        raise RuntimeUnavailableError(f"{where}: exit status {os.WEXITSTATUS(status)}", _OTHER_VERSION)


def _child(parent: int, writer: int, test: _Test) -> None:
    """Run the test and leave without cleaning up what belongs to the parent."""
    child_processes.end_with_parent(parent)
    code = 1
    try:
        problem = test.run()
        code = 0
    except DistreeError as error:
        problem = error.problem
    except BaseException as error:  # noqa: BLE001 - the child must not return into the parent's code
        what = f"self-test of bundle {test.bundle.name}: {type(error).__name__}: {printable(str(error), 1000)}"
        problem = Problem(what, "report this as a bug")
    try:
        os.write(writer, _BETWEEN.join(problem or ()).encode(errors="replace")[:4000])
    finally:
        os._exit(code)


def _await_child(child: int, reader: int, timeout_s: float) -> tuple[str, int | None]:
    """Return (what the child wrote, its wait status); a child that takes too long is killed: (…, None)."""
    # Not select(), which supports no descriptor above 1023, and a program may have that many.
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    ready = poller.poll(timeout_s * 1e3)
    verdict = os.read(reader, 4096).decode(errors="replace") if ready else ""
    ends_at = time.monotonic() + (5.0 if ready else 0.0)
    while time.monotonic() < ends_at:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return verdict, status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return verdict, None


def compare(
    bundle: Bundle,
    runtime: SegmentRuntime,
    stages: Iterable[int],
    *,
    branch: int | None = None,
    fuse: bool = False,
) -> Problem | None:
    """Run the golden vectors through `runtime`; return what is off, None if nothing is.

    Of wide stages among `stages`, the segments of `branch` are run; with `fuse`, the fusion heads of all wide stages.
    """
    golden, served = bundle.manifest.golden, tuple(stages)
    vectors = read_golden(bundle, served, branch=branch, fuse=fuse)
    for k, what, off in _distances(bundle, runtime, vectors, served, branch, fuse):
        # Written so that a NaN counts as off, too.
        if not off <= golden.allowed(k) + 1e-3:
            return Problem(
                f"self-test of bundle {bundle.name}: {what} is off by {off:.0f} quantisation steps "
                f"({golden.allowed(k)} allowed), so {runtime.name} computes wrongly on this CPU",
                _OTHER_VERSION,
            )
    return None


def _distances(
    bundle: Bundle,
    runtime: SegmentRuntime,
    vectors: Mapping[str, Array],
    stages: Iterable[int],
    branch: int | None,
    fuse: bool,
) -> Iterator[tuple[int, str, float]]:
    """Give, for each segment and golden input, its stage, what was run and how many steps its worst output is off."""
    for k in stages:
        if bundle.stages[k].branches:
            yield from _branch_distances(bundle, runtime, vectors, k, branch)
        else:
            yield from _stage_distances(bundle, runtime, vectors, k)
    for k, branches in enumerate(bundle.branch_counts):
        if fuse and branches:
            yield from _fusion_distances(bundle, runtime, vectors, k)


def _stage_distances(
    bundle: Bundle, runtime: SegmentRuntime, vectors: Mapping[str, Array], k: int
) -> Iterator[tuple[int, str, float]]:
    spec = bundle.stages[k]
    for row, tensor in enumerate(vectors[f"stage{k}_input"]):
        output = runtime.run(k, tensor.reshape(spec.input.shape))
        yield k, f"stage {k}", _exit_distance(output, spec.logits, vectors, f"stage{k}", row)


def _fusion_distances(
    bundle: Bundle, runtime: SegmentRuntime, vectors: Mapping[str, Array], k: int
) -> Iterator[tuple[int, str, float]]:
    spec = bundle.stages[k]
    given = [
        vectors[f"stage{k}_branch{b}_embedding"].reshape(-1, *branch.embedding.shape)
        for b, branch in enumerate(spec.branches)
    ]
    for row, embeddings in enumerate(zip(*given, strict=True)):
        output = runtime.fuse(k, embeddings)
        yield k, f"the fusion head of stage {k}", _exit_distance(output, spec.logits, vectors, f"stage{k}", row)


def _exit_distance(
    output: SegmentOutput, logits: TensorSpec, vectors: Mapping[str, Array], key: str, row: int
) -> float:
    off = steps_off(np.asarray(output.logits) / logits.scale + logits.zero_point, vectors[f"{key}_logits"][row])
    if output.features is not None:
        off = max(off, steps_off(output.features, vectors[f"{key}_features"][row]))
    return off


def _branch_distances(
    bundle: Bundle, runtime: SegmentRuntime, vectors: Mapping[str, Array], k: int, branch: int | None
) -> Iterator[tuple[int, str, float]]:
    spec, key = bundle.branch(k, branch), f"stage{k}_branch{branch}"
    for row, tensor in enumerate(vectors[f"{key}_input"]):
        output = runtime.run(k, tensor.reshape(spec.input.shape))
        assert output.embedding is not None  # noqa: S101 - the runtime was made for this branch
        off = steps_off(output.embedding, vectors[f"{key}_embedding"][row])
        if output.features is not None:
            off = max(off, steps_off(output.features, vectors[f"{key}_features"][row]))
        yield k, f"branch {branch} of stage {k}", off
