"""One pipeline on this board: its node, its interpreter, and where its inputs come from."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from device_agent.config import AgentConfig
from device_agent.node_settings import node_settings
from device_agent.preflight import fuses
from device_agent.sources import Feed, Source, make_source
from device_agent.spool import Recovered, Spool
from device_agent.thumbnails import Thumbnails
from distree import tensors, topics
from distree.bundle.loading import Bundle
from distree.bundle.manifest import TensorSpec
from distree.bundle.preprocessing import Preprocessor
from distree.bundle.runtimes import make_runtime
from distree.client.waiting import Waiting
from distree.errors import DistreeError, RemoteProtocolError
from distree.messages.events import Thumbnail
from distree.messages.request import Tensor
from distree.messages.telemetry import PipelineTelemetry
from distree.node import Accepted, Fuse, Run, StageNode
from distree.segments import SegmentOutput, SegmentRuntime
from distree.tensors import Array
from distree.topics import Kind
from distree.transport.base import Transport

if TYPE_CHECKING:
    from device_agent.pipeline_host import Board
    from distree.bundle.inputs import InputReader

log = logging.getLogger(__name__)


class Pipeline:
    """Number `index` of a board's pipelines. Also the `Inlet` of its source."""

    def __init__(self, board: Board, agent: AgentConfig, index: int, bundle: Bundle, boot: str) -> None:
        self.index = index
        self.config = config = agent.pipelines[index]
        self.bundle = bundle
        self.runtime: SegmentRuntime | None = None
        self.fuses = fuses(config, bundle)
        self.is_eager = False
        """Whether the last input of a branch came from an origin whose branches go on by themselves."""
        self.preprocessor = Preprocessor(bundle.manifest)
        self.source: Source | None = None
        self._board = board
        self._site, self._device = agent.site, agent.device
        self._specs = [self._input_of(k) for k in range(len(bundle.stages))]
        self._feed: Feed | None = None
        self._source_thread: threading.Thread | None = None
        self._thumbnails: Thumbnails | None = None
        if config.origin is not None and config.origin.thumbnails is not None:
            self._thumbnails = Thumbnails(config.origin.thumbnails)
        self.spool: Spool | None = None
        if config.origin is not None and config.origin.spool:
            self.spool = Spool(agent.state_dir / f"{config.name}.spool")
        left = self.spool.recover() if self.spool is not None else Recovered()
        self._unpublished = left.unpublished
        answered = (*left.answered, *(request for request, _ in left.unpublished))
        spec = self._specs[0]
        # What an earlier run left open and this bundle can still take.
        restore = [item for item in left.open if (item.tensor.dtype, item.tensor.shape) == (spec.dtype, spec.shape)]
        self.node = StageNode(node_settings(agent, index, bundle, boot), restore=restore, answered=answered)
        self.room = Waiting(board.lock)

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

    # ------------------------------------------------------------ life

    def load(self, num_threads: int, input_connection: Callable[[], Transport]) -> None:
        """Load the interpreter and make the source, which may call for a connection of its own."""
        if self.config.stages or self.fuses:
            self.runtime = self._load_runtime(num_threads)
        if self.config.origin is not None:
            made = make_source(self.config.origin.source, self, self._input_topic, input_connection)
            self.source = made if isinstance(made, Source) else None
            self._feed = made if isinstance(made, Feed) else None

    def _load_runtime(self, num_threads: int) -> SegmentRuntime:
        return make_runtime(self.bundle, self.config.stages, num_threads, branch=self.config.branch, fuse=self.fuses)

    def start(self, stop: threading.Event) -> None:
        """Begin to take inputs, until `stop`."""
        if self._feed is not None:
            self._feed.start(time.monotonic())
        if self.source is not None:
            name = f"source-{self.config.name}"
            self._source_thread = threading.Thread(
                target=self._run_source, args=(self.source, stop), name=name, daemon=True
            )
            self._source_thread.start()

    def _run_source(self, source: Source, stop: threading.Event) -> None:
        try:
            source.run(stop)
        except DistreeError as error:
            log.error("source of %s ended: %s", self.config.name, error)  # noqa: TRY400 - the line says it all
        except Exception as error:  # noqa: BLE001 - a source must not end without a word
            self._board.fault(error)

    @property
    def ready(self) -> bool:
        """Whether inputs that are offered from now on are taken."""
        return self.source is None or self.source.ready

    def stop_feeding(self) -> None:
        """Ask for no more inputs that are at hand. Called with the lock held."""
        self._feed = None

    def join_source(self, timeout_s: float) -> None:
        """Wait for the source's thread to end."""
        if self._source_thread is not None:
            self._source_thread.join(timeout_s)

    def close(self) -> None:
        """Close the spool; what is open in it stays for the next run."""
        if self.spool is not None:
            self.spool.close()

    # ------------------------------------------------------------ Inlet

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until an input can be accepted without shedding another; False on time-out."""
        with self._board.lock:
            return self.room.wait_for(lambda: self.node.room() > 0, timeout_s)

    def accept(self, name: str, raw: Array, request: str | None = None) -> str:
        """Accept an input; return its request id. RemoteProtocolError for a wrong dtype or shape.

        The caller sees to its computing, by `work` or by waking the network's thread.
        """
        tensor = self.to_tensor(raw)
        with self._board.lock:
            request = self.admit(name, tensor, request)
        self.show_and_wake(request, raw)
        return request

    def work(self) -> None:
        """Compute what accepted inputs bring, unless another thread is at it."""
        self._board.work()

    def to_tensor(self, raw: Array) -> Tensor:
        """Return the tensor of stage 0, a copy; RemoteProtocolError for a wrong dtype or shape."""
        return tensors.encode(self.preprocessor.tensor(raw))

    def admit(self, name: str, tensor: Tensor, request: str | None) -> str:
        """Take an input into custody, or turn it away. Called with the lock held; then call `show_and_wake`."""
        request, effects = self.node.accept(time.monotonic(), name, tensor, request=request)
        if self.node.holds(request):
            if self.spool is not None:
                self.spool.note_accepted(Accepted(request=request, name=name, tensor=tensor))
        elif self.source is not None:
            # Shed, or answered before: either way this input is done with.
            self.source.note_answered(request)
        self._board.perform(self, effects)
        return request

    def show_and_wake(self, request: str, raw: Array) -> None:
        """Publish a picture of an input, and have its deadline noticed. Pictures take time: best without the lock."""
        if self._thumbnails is not None:
            # Offline there is nobody to see it.
            png = self._thumbnails.take(time.monotonic(), raw) if self._board.online else None
            if png is not None:
                self._board.show(self, Thumbnail(request=request, png=png))
        # A deadline nearer than what the network's thread waits for would be noticed late.
        self._board.wake_for(self.node.notify_at())

    def reject(self, name: str, reason: str, detail: str, payload: bytes) -> None:
        """Dead-letter something that is no input."""
        with self._board.lock:
            self._board.dead_letter(self._input_topic, RemoteProtocolError(reason, f"{name}: {detail}"), payload)

    @property
    def _input_topic(self) -> str:
        return topics.of_origin(self._site, self.config.name, Kind.INPUT, self._device)

    def wake(self) -> None:
        """Have the agent see what has changed."""
        self._board.wake()

    # ------------------------------------------------------------ inference

    def infer(self, task: Run | Fuse) -> None:
        """Run one segment or fusion head and carry out what follows."""
        board = self._board
        try:
            output, took_s = self._compute(task)
        except Exception as error:  # noqa: BLE001 - whatever the interpreter raises costs this input, not the agent
            self._fail(task, error)
            return
        if self.is_eager:
            # A word to stop that has come meanwhile is to be heard before its branch goes on by itself.
            board.look()
        with board.lock:
            # The node's time is read under the lock: it must not run backwards between two events.
            board.perform(self, self.node.completed(time.monotonic(), task.key, output, took_s))
            # What was sent on has left the inbox, which may be what an input waits for.
            self.room.notify()
        board.deliver_results()
        board.wake_for(self.node.notify_at())

    def _compute(self, task: Run | Fuse) -> tuple[SegmentOutput, float]:
        """Return what a segment or a fusion head gives and the seconds that the interpreter took."""
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

    def _fail(self, task: Run | Fuse, error: Exception) -> None:
        board = self._board
        with board.lock:
            if isinstance(error, RemoteProtocolError) and isinstance(task, Run):
                # Who sent it is not known any more.
                topic = topics.stage(self._site, self.config.name, task.stage, self._device, "+")
                board.dead_letter(topic, error, bytes(task.tensor.payload))
            else:
                # Not its traceback: this comes with each input, and the line says it all.
                log.error("stage %d: %s: %s", task.stage, type(error).__name__, error)
            board.perform(self, self.node.failed(time.monotonic(), task.key, str(error)))
        board.deliver_results()

    # ------------------------------------------------------------ results

    def note_answer(self, request: str, payload: bytes) -> None:
        """Note a final result, encoded, that is about to be published. Called with the lock held, as all below."""
        if self.spool is not None:
            self.spool.note_answer(request, payload)

    def note_published(self, request: str) -> None:
        """Note that the broker has the result of `request`, or never will: nothing more can be done for it."""
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

    def due_at(self) -> float:
        """When something is due: in the node, or the next input of a feed for which there is room."""
        due = self.node.notify_at()
        if self._feed is not None and self.node.room() > 0:
            return min(due, self._feed.due_at())
        return due

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self.node.notify_at() <= now:
            self._board.perform(self, self.node.tick(now, self._board.owed_since()))
        if self._feed is not None:
            while self._feed.due_at() <= now and self.node.room() > 0:
                self.accept(*self._feed.next_input(now))

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
