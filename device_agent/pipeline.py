"""One pipeline on this board: its node, its interpreter, and what is owed on disk.

It calls nobody: what is to be done is returned as the node's effects. Inputs come to it by `intake`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from device_agent.config import AgentConfig
from device_agent.node_settings import node_settings
from device_agent.preflight import fuses
from device_agent.sources import PushSource
from device_agent.spool import Recovered, Spool
from distree import tensors, topics
from distree.bundle.loading import Bundle
from distree.bundle.manifest import TensorSpec
from distree.bundle.preprocessing import Preprocessor
from distree.bundle.runtimes import make_runtime
from distree.client.waiting import WaitQueue
from distree.messages.request import Tensor
from distree.messages.telemetry import PipelineTelemetry
from distree.node import AcceptedInput, Effect, Fuse, Run, StageNode
from distree.segments import SegmentOutput, SegmentRuntime
from distree.tensors import Array
from distree.topics import Kind

if TYPE_CHECKING:
    from distree.bundle.inputs import InputReader


class AgentPipeline:
    """Number `index` of a board's pipelines. `lock` is held by callers, but where a method says otherwise.

    Unless `keeps_state`, nothing is read from disk or written there.
    """

    def __init__(
        self,
        agent: AgentConfig,
        index: int,
        bundle: Bundle,
        boot: str,
        lock: threading.RLock,
        *,
        keeps_state: bool = True,
    ) -> None:
        self.index = index
        self.config = config = agent.pipelines[index]
        self.bundle = bundle
        self.runtime: SegmentRuntime | None = None
        self.fuses = fuses(config, bundle)
        self.is_eager = False
        """Whether the last input of a branch came from an origin whose branches go on by themselves."""
        self.preprocessor = Preprocessor(bundle.manifest)
        self.source: PushSource | None = None
        """Told which inputs are answered."""
        self._site, self._device = agent.site, agent.device
        self._specs = [self._input_of(k) for k in range(len(bundle.stages))]
        self.state_dir = agent.state_dir / f"{config.name}.source"
        """What the source may keep is there."""
        self.plan_file = agent.state_dir / f"{config.name}.plans" if keeps_state else None
        """Where the numbers of signed plans are kept."""
        self.spool: Spool | None = None
        if keeps_state and config.origin is not None and config.origin.has_spool:
            self.spool = Spool(agent.state_dir / f"{config.name}.spool", keeps_inputs=config.origin.spool)
        left = self.spool.recover() if self.spool is not None else Recovered()
        self._unpublished = left.unpublished
        answered = (*left.answered, *(request for request, _ in left.unpublished))
        spec = self._specs[0]
        # What an earlier run left open, as far as this bundle can still take it.
        restore = [item for item in left.open if (item.tensor.dtype, item.tensor.shape) == (spec.dtype, spec.shape)]
        self.node = StageNode(node_settings(agent, index, bundle, boot), restore=restore, answered=answered)
        self.room = WaitQueue(lock)

    @cached_property
    def reader(self) -> InputReader:
        """What reads files as inputs; loaded where there are any, for most boards have none."""
        from distree.bundle.inputs import InputReader

        return InputReader(self.bundle.manifest.input, self.bundle.manifest.preprocess)

    def _input_of(self, k: int) -> TensorSpec:
        """Return what this board's segment of a stage takes; where it has none, what travels to that stage."""
        if k in self.config.stages and self.branch_of(k) is not None:
            return self.bundle.branch(k, self.config.branch).input
        return self.bundle.stages[k].input

    def branch_of(self, k: int) -> int | None:
        """Return the branch that this board would run of a stage; None for a plain one."""
        return self.config.branch if self.bundle.stages[k].branches else None

    @property
    def input_topic(self) -> str:
        """The topic on which inputs come to this board, if its source reads it."""
        return topics.of_origin(self._site, self.config.name, Kind.INPUT, self._device)

    # ------------------------------------------------------------ life

    def load(self, num_threads: int) -> None:
        """Load the interpreter."""
        if self.config.stages or self.fuses:
            self.runtime = make_runtime(
                self.bundle, self.config.stages, num_threads, branch=self.config.branch, fuse=self.fuses
            )

    def close(self) -> None:
        """Close the spool; what is open in it stays for the next run."""
        if self.spool is not None:
            self.spool.close()

    # ------------------------------------------------------------ inputs

    def to_tensor(self, raw: Array) -> Tensor:
        """Return the tensor of stage 0, a copy; RemoteProtocolError for a wrong dtype or shape. Without the lock."""
        return tensors.encode(self.preprocessor.tensor(raw))

    def accept(self, now: float, name: str, tensor: Tensor, request: str | None) -> tuple[str, Sequence[Effect]]:
        """Have the node accept an input, or shed it; return its request id, and what is to be done."""
        request, effects = self.node.accept(now, name, tensor, request=request)
        if self.node.holds(request):
            if self.spool is not None:
                self.spool.note_accepted(AcceptedInput(request=request, name=name, tensor=tensor))
        elif self.source is not None:
            # Shed, or answered before: either way this input is done with.
            self.source.note_answered(request)
        return request, effects

    # ------------------------------------------------------------ inference

    def compute(self, task: Run | Fuse) -> tuple[SegmentOutput, float]:
        """Return what a segment or a fusion head gives and the seconds that the interpreter took. Without the lock.

        Raises whatever the interpreter raises, and RemoteProtocolError for a tensor that is not what it takes.
        """
        runtime = self.runtime
        assert runtime is not None  # noqa: S101 - a pipeline without segments asks for no run
        if isinstance(task, Run):
            features = _decode(task.tensor, self._specs[task.stage])
            started_at = time.monotonic()
            return runtime.run(task.stage, features), time.monotonic() - started_at
        embeddings = zip(task.embeddings, self.bundle.stages[task.stage].branches, strict=True)
        given = [None if tensor is None else _decode(tensor, branch.embedding) for tensor, branch in embeddings]
        started_at = time.monotonic()
        return runtime.fuse(task.stage, given), time.monotonic() - started_at

    def completed(self, now: float, task: Run | Fuse, output: SegmentOutput, took_s: float) -> Sequence[Effect]:
        """Take what `compute` returned; return what is to be done."""
        effects = self.node.completed(now, task.key, output, took_s)
        # What is sent on has left the inbox, and an input may be waiting for that.
        self.room.notify()
        return effects

    # ------------------------------------------------------------ results

    def note_answer(self, request: str, payload: bytes) -> None:
        """Note a final result, encoded, that is about to be published."""
        if self.spool is not None:
            self.spool.note_answer(request, payload)

    def note_published(self, request: str) -> None:
        """Note that the broker has the result of `request`, or never will: nothing more can be done about it."""
        if self.spool is not None:
            self.spool.note_published(request)
        if not self.node.published(request):
            return
        if self.source is not None:
            self.source.note_answered(request)
        self.room.notify()

    def note_turned_away(self, request: str, *, told: bool) -> None:
        """Note what became of the result of an input that found no room: with the broker, or given up."""
        if self.spool is not None:
            self.spool.note_published(request)
        self.node.turned_away(told=told)

    def take_unpublished(self) -> tuple[tuple[str, bytes], ...]:
        """Return (request, encoded result) of an earlier run that the broker may not have; once."""
        left, self._unpublished = self._unpublished, ()
        return left

    # ------------------------------------------------------------ what is due

    def tick(self, now: float, owed_since: float) -> Sequence[Effect]:
        """Return what is to be done by now; `owed_since` is as for `StageNode.tick`."""
        return self.node.tick(now, owed_since) if self.node.notify_at() <= now else ()

    def telemetry(self) -> PipelineTelemetry:
        """Report on the node, and on the spool."""
        report = self.node.telemetry()
        if self.spool is None or report.origin is None:
            return report
        return replace(report, origin=replace(report.origin, unspooled=self.spool.unspooled))

    def __str__(self) -> str:
        """Say what this board does in the pipeline."""
        parts = [f"stage {k}{_branch_words(self.branch_of(k))}" for k in self.config.stages]
        if self.config.fuse:
            parts.append("fuses")
        if self.config.origin is not None:
            parts.append(f"origin ({self.config.origin.source.kind})")
        return f"{self.config.name} ({self.bundle.name} {self.bundle.revision}): {', '.join(parts)}"


def _branch_words(branch: int | None) -> str:
    return "" if branch is None else f" branch {branch}"


def _decode(tensor: Tensor, spec: TensorSpec) -> Array:
    return tensors.decode(tensor, dtype=spec.dtype, shape=spec.shape)
