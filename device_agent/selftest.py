"""Golden-vector self-test, in a child process: an interpreter that crashes here does not take the agent with it."""

from __future__ import annotations

import io
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from distree import children
from distree.bundle import Bundle, read_verified
from distree.errors import DistreeError, RuntimeUnavailableError
from distree.protocols import Array, SegmentRuntime
from distree.runtimes.tflite import TFLiteRuntime

TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A self-test under way in a child process."""

    bundle: str
    child: int
    reader: int
    timeout_s: float

    def wait(self) -> None:
        """Wait for the verdict, at most `timeout_s`; raise RuntimeUnavailableError if the interpreter is no good."""
        try:
            verdict, status = _await_child(self.child, self.reader, self.timeout_s)
        finally:
            os.close(self.reader)
        _judge(f"self-test of bundle {self.bundle}", verdict, status, self.timeout_s)


def start_self_test(bundle: Bundle, stages: Iterable[int], num_threads: int, timeout_s: float = TIMEOUT_S) -> SelfTest:
    """Start running the golden vectors of `stages` in a forked child.

    Call it while this process has one thread: a fork keeps only the calling one.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(parent, writer, bundle, list(stages), num_threads)
    os.close(writer)
    return SelfTest(bundle=bundle.name, child=child, reader=reader, timeout_s=timeout_s)


def self_test(bundle: Bundle, stages: Iterable[int], num_threads: int, timeout_s: float = TIMEOUT_S) -> None:
    """Run the golden vectors of `stages` in a forked child; raise RuntimeUnavailableError if they come out wrong."""
    start_self_test(bundle, stages, num_threads, timeout_s).wait()


def _judge(where: str, verdict: str, status: int | None, timeout_s: float) -> None:
    if status is None:
        raise RuntimeUnavailableError(f"{where}: no answer within {timeout_s:g} s; the interpreter hangs on this CPU")
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        raise RuntimeUnavailableError(
            f"{where}: the interpreter crashed ({name}): its wheel does not fit this CPU; install another version, "
            "such as ai-edge-litert==1.2.0"
        )
    if verdict or os.WEXITSTATUS(status):
        raise RuntimeUnavailableError(verdict or f"{where}: exit status {os.WEXITSTATUS(status)}")


def _child(parent: int, writer: int, bundle: Bundle, stages: list[int], num_threads: int) -> None:
    """Run the test and leave without cleaning up what belongs to the parent."""
    children.end_with_parent(parent)
    code = 1
    try:
        runtime = TFLiteRuntime(bundle, stages, num_threads)
        problem = compare(bundle, runtime, stages)
        code = 0
    except DistreeError as error:
        problem = str(error)
    except BaseException as error:  # noqa: BLE001 - the child must not return into the parent's code
        problem = f"self-test of bundle {bundle.name}: {type(error).__name__}: {error}"
    try:
        os.write(writer, problem.encode(errors="replace")[:4000])
    finally:
        os._exit(code)


def _await_child(child: int, reader: int, timeout_s: float) -> tuple[str, int | None]:
    """Return (what the child wrote, its wait status); a child that takes too long is killed: (…, None)."""
    ready, _, _ = select.select([reader], [], [], timeout_s)
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


def compare(bundle: Bundle, runtime: SegmentRuntime, stages: Iterable[int]) -> str:
    """Run the golden vectors through `runtime`; return "" or one line that says what is off."""
    golden = bundle.manifest.golden
    content = read_verified(bundle.path / golden.file, golden.sha256)
    with np.load(io.BytesIO(content), allow_pickle=False) as vectors:
        for k in stages:
            spec = bundle.stages[k]
            for index, tensor in enumerate(vectors[f"stage{k}_input"]):
                output = runtime.run(k, tensor.reshape(spec.input.shape))
                steps = np.asarray(output.logits) / spec.logits.scale + spec.logits.zero_point
                off = _distance(steps, vectors[f"stage{k}_logits"][index])
                if output.features is not None:
                    off = max(off, _distance(output.features, vectors[f"stage{k}_features"][index]))
                if off > golden.tolerance + 1e-3:
                    return (
                        f"self-test of bundle {bundle.name}: stage {k} is off by {off:.0f} quantisation steps, "
                        f"{golden.tolerance} allowed; {runtime.name} is wrong on this CPU: install another version"
                    )
    return ""


def _distance(found: Array, expected: Array) -> float:
    return float(np.max(np.abs(found.astype(np.float64).ravel() - expected.astype(np.float64).ravel())))
