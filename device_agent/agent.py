"""The agent: carries the effects of its nodes between the broker, the interpreter and the sources.

One lock, `transport.lock`, guards the nodes and the connection; inference and waiting happen outside of it. Effects
are carried out right where they arise, by whichever thread it is (see `device_agent.crew`), so there is no queue
between node and socket.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from device_agent import presence
from device_agent.config import AgentConfig, OriginConfig, PipelineConfig
from device_agent.crew import Crew
from device_agent.repeats import Repeats
from device_agent.selftest import SelfTest
from device_agent.sources import Feed, Source, make_source
from device_agent.spool import Recovered, Spool
from device_agent.startup import fuses, load_bundles, start_self_tests, travels
from device_agent.system import clock_synced, memory_mb, rss_bytes
from device_agent.thumbnails import Thumbnails
from device_agent.watchdog import SystemdNotifier
from distree import __version__, tensors, topics, wire
from distree.bundle import Bundle, TensorSpec
from distree.errors import DistreeError, LocalProtocolError, RemoteProtocolError
from distree.node import Accepted, StageNode
from distree.preprocess import Preprocessor
from distree.protocols import Array, PolicyParameters, Received, SegmentOutput, SegmentRuntime, Transport
from distree.runtimes.tflite import TFLiteRuntime
from distree.settings import NodeSettings, OriginSettings
from distree.topics import DELIVERY, Kind
from distree.transport.paho import PahoTransport
from distree.types import (
    Acknowledge,
    AuditRow,
    DeadLetter,
    Decision,
    DeviceMeta,
    DeviceState,
    DeviceStatus,
    Drop,
    Effect,
    Embedding,
    Fuse,
    HeldStage,
    Lane,
    Outcome,
    PipelineTelemetry,
    Publish,
    Result,
    Run,
    Session,
    StageMessage,
    Telemetry,
    Tell,
    Tensor,
    Thumbnail,
)
from distree.waiting import Waiting

log = logging.getLogger(__name__)

_NEVER = float("inf")

POLL_S = 1.0
"""Longest wait for the network; everything that is due sooner shortens it."""

SIGNALS_S = 2.0
"""How often the waiting main thread looks for signals that another thread was given."""

DECISION_EXPIRY_S = 10.0
"""A decision that reaches its branch later than this, in seconds, is of no use any more."""

REFUSED_S = 600.0
"""How often the log says that a broker does not take some message."""

SOURCES_S = 5.0
"""An agent whose inputs cannot be subscribed to is ready after so long all the same: it may serve stages."""

_TOPICS_KEPT = 1024
"""Topics of other boards that are kept ready, of each kind: peers choose their names."""


class Pipeline:
    """One pipeline on this board: its node, runtime, inputs and topics. Also the `Inlet` of its source."""

    def __init__(self, agent: Agent, index: int, config: PipelineConfig, bundle: Bundle) -> None:
        self.agent = agent
        self.index = index
        self.config = config
        self.bundle = bundle
        self.runtime: SegmentRuntime | None = None
        self.fuses = fuses(config, bundle)
        self.is_eager = False
        """Whether the last input of a branch came from an origin whose branches go on by themselves."""
        self.preprocessor = Preprocessor(bundle.manifest)
        self.specs = [self._input(k) for k in range(len(bundle.stages))]
        site, name, device = agent.config.site, config.name, agent.config.device
        self.stage_topics = [topics.stage(site, name, k) for k in range(len(bundle.stages))]
        self.result_topic = topics.of_origin(site, name, Kind.RESULT, device)
        self.audit_topic = topics.of_origin(site, name, Kind.AUDIT, device)
        self.thumbnail_topic = topics.of_origin(site, name, Kind.THUMBNAIL, device)
        self.thumbnails: Thumbnails | None = None
        if config.origin is not None and config.origin.thumbnails is not None:
            self.thumbnails = Thumbnails(config.origin.thumbnails)
        self.spool: Spool | None = None
        if config.origin is not None and config.origin.spool:
            self.spool = Spool(agent.config.state_dir / f"{name}.spool")
        left = self.spool.recover() if self.spool is not None else Recovered()
        self.unpublished = left.unpublished
        answered = (*left.answered, *(request for request, _ in left.unpublished))
        spec = self.specs[0]
        # What an earlier run left open and this bundle can still take.
        restore = [item for item in left.open if (item.tensor.dtype, item.tensor.shape) == (spec.dtype, spec.shape)]
        self.node = StageNode(_node_settings(agent, index, config, bundle), restore=restore, answered=answered)
        self.room = Waiting(agent.transport.lock)
        self.source: Source | None = None
        self.feed: Feed | None = None

    def _input(self, k: int) -> TensorSpec:
        """Return what this board's segment of a stage takes; where it has none, what travels to that stage."""
        if k in self.config.stages and self.branch_of(k) is not None:
            return self.bundle.branch(k, self.config.branch).input
        return self.bundle.stages[k].input

    def branch_of(self, k: int) -> int | None:
        """Return the branch that this board would run of a stage; None for a plain one."""
        return self.config.branch if self.bundle.stages[k].branches else None

    def compute(self, task: Run | Fuse) -> tuple[SegmentOutput, float]:
        """Run a segment or a fusion head; return what it gave and the seconds that the interpreter took."""
        runtime = self.runtime
        assert runtime is not None  # noqa: S101 - a pipeline without segments asks for no run
        if isinstance(task, Run):
            features = _decode(task.tensor, self.specs[task.stage])
            started_at = time.monotonic()
            return runtime.run(task.stage, features), time.monotonic() - started_at
        embeddings = zip(task.embeddings, self.bundle.stages[task.stage].branches, strict=True)
        given = [None if tensor is None else _decode(tensor, branch.embedding) for tensor, branch in embeddings]
        started_at = time.monotonic()
        return runtime.fuse(task.stage, given), time.monotonic() - started_at

    # ------------------------------------------------------------ Inlet

    def wait_for_room(self, timeout_s: float) -> bool:
        """Wait until an input can be accepted without shedding another; False on time-out."""
        with self.agent.transport.lock:
            return self.room.wait_for(lambda: self.node.room() > 0, timeout_s)

    def submit(self, name: str, raw: Array, request: str | None = None) -> str:
        """Accept an input and do what work it brings; return its request id."""
        request = self.accept(name, raw, request)
        self.agent.crew.work()
        return request

    def accept(self, name: str, raw: Array, request: str | None = None) -> str:
        """Accept an input; return its request id. RemoteProtocolError for a wrong dtype or shape.

        The caller sees to its work, by `Agent.crew.work` or by waking the network's thread.
        """
        tensor = self.encode(raw)
        with self.agent.transport.lock:
            request = self.take(name, tensor, request)
        self.taken(request, raw)
        return request

    def encode(self, raw: Array) -> Tensor:
        """Return the tensor of stage 0, a copy; RemoteProtocolError for a wrong dtype or shape."""
        return tensors.encode(self.preprocessor.tensor(raw))

    def take(self, name: str, tensor: Tensor, request: str | None) -> str:
        """Take an encoded input into custody. Called with the lock held; then call `taken` without it."""
        request, effects = self.node.accept(time.monotonic(), name, tensor, request=request)
        if self.node.holds(request):
            if self.spool is not None:
                self.spool.accepted(Accepted(request=request, name=name, tensor=tensor))
        elif self.source is not None:
            # Shed, or answered before: either way this input is done with.
            self.source.answered(request)
        self.agent.perform(self, effects)
        return request

    def taken(self, request: str, raw: Array) -> None:
        """See to what an input brings beside its work, without the lock."""
        if self.thumbnails is not None:
            self._show(self.thumbnails, request, raw)
        # A deadline nearer than what the network's thread waits for would be noticed late.
        self.agent.wake_for(self.node.notify_at())

    def _show(self, thumbnails: Thumbnails, request: str, raw: Array) -> None:
        """Publish a picture of an input, if it is time for one; offline there is nobody to see it."""
        transport = self.agent.transport
        png = thumbnails.take(time.monotonic(), raw) if transport.online else None
        if png is not None:
            payload = wire.encode_thumbnail(Thumbnail(request=request, png=png))
            # A broker may take no packet of this size.
            with transport.lock, contextlib.suppress(LocalProtocolError):
                how = DELIVERY[Kind.THUMBNAIL]
                transport.publish(self.thumbnail_topic, payload, qos=how.qos, lane=how.lane)

    def reject(self, name: str, reason: str, detail: str, payload: bytes) -> None:
        """Dead-letter something that is no input."""
        site, device = self.agent.config.site, self.agent.config.device
        topic = topics.of_origin(site, self.config.name, Kind.INPUT, device)
        with self.agent.transport.lock:
            self.agent.dead_letter(topic, RemoteProtocolError(reason, f"{name}: {detail}"), payload)

    def wake(self) -> None:
        """Have the agent see what has changed."""
        self.agent.transport.wake()

    # ------------------------------------------------------------ the agent's side

    def publish_result(self, effect: Publish, result: Result) -> None:
        """Publish a result of the node."""
        agent = self.agent
        time_now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        payload = wire.encode_result(result, time=time_now, clock_synced=agent.clock_synced)
        if result.final:
            if self.spool is not None:
                self.spool.answering(result.request, payload)
            self._publish_answer(result.request, payload, Lane.SHED if effect.turned_away else Lane.OWED)
            self.room.notify()
            if agent.on_result is not None:
                agent.answers.append(result)
        else:
            self._publish_answer(None, payload, Lane.SHED)

    def _publish_answer(self, request: str | None, payload: bytes, lane: Lane) -> None:
        """Publish an encoded result; `request` where it is the final one, of whose fate the books are told."""
        how = DELIVERY[Kind.RESULT]
        token = None if request is None else f"{self.index}/{lane.name}/{request}"
        try:
            self.agent.transport.publish(
                self.result_topic, payload, qos=how.qos, content_type=how.content_type, token=token, lane=lane
            )
        except LocalProtocolError as error:
            # This broker does not take it today, nor would it after the next start.
            self.agent.refuse(self.result_topic, error)
            self.agent.dead_letter(self.result_topic, error, payload)
            if token is not None:
                self.agent.given_up(token)

    def say_again(self) -> None:
        """Publish the answers of an earlier run that the broker may not have."""
        again, self.unpublished = self.unpublished, ()
        with self.agent.transport.lock:
            for request, payload in again:
                self._publish_answer(request, payload, Lane.OWED)

    def report(self) -> PipelineTelemetry:
        """Report on the node, and on the spool."""
        report = self.node.telemetry()
        if self.spool is None or report.origin is None:
            return report
        return replace(report, origin=replace(report.origin, unspooled=self.spool.unspooled))

    def due_at(self) -> float:
        """When something is due: in the node, or the next input of a feed for which there is room."""
        due = self.node.notify_at()
        if self.feed is not None and self.node.room() > 0:
            return min(due, self.feed.due_at())
        return due

    def tick(self, now: float) -> None:
        """Do what is due. Called with the lock held."""
        if self.node.notify_at() <= now:
            self.agent.perform(self, self.node.tick(now))
        if self.feed is not None:
            while self.feed.due_at() <= now and self.node.room() > 0:
                self.accept(*self.feed.take(now))

    def published(self, request: str) -> None:
        """The broker has the result of `request`, or will never have it: nothing more can be done for it."""
        if self.spool is not None:
            self.spool.answered(request)
        if not self.node.published(request):
            return
        if self.source is not None:
            self.source.answered(request)
        self.room.notify()

    def turned_away(self, request: str, *, told: bool) -> None:
        """Note what became of the result of an input that found no room: with the broker, or given up."""
        if self.spool is not None:
            self.spool.answered(request)
        self.node.turned_away(told=told)


def _decode(tensor: Tensor, spec: TensorSpec) -> Array:
    return tensors.decode(tensor, dtype=spec.dtype, shape=spec.shape)


def _node_settings(agent: Agent, index: int, config: PipelineConfig, bundle: Bundle) -> NodeSettings:
    return NodeSettings(
        site=agent.config.site,
        device=agent.config.device,
        pipeline=config.name,
        boot=f"{agent.boot}{index or ''}",
        model=bundle.name,
        revision=bundle.revision,
        labels=bundle.labels,
        inputs=tuple((stage.input.dtype, stage.input.shape) for stage in bundle.stages),
        stages=config.stages,
        criterion=bundle.criterion,
        thresholds=bundle.thresholds,
        codec=agent.config.codec,
        inbox_items=agent.config.inbox.items,
        inbox_bytes=agent.config.inbox.kb << 10,
        origin=_origin_settings(config.origin),
        embeddings=tuple(
            tuple((branch.embedding.dtype, branch.embedding.shape) for branch in stage.branches)
            for stage in bundle.stages
        ),
        branch=config.branch,
        fuses=config.fuse,
        branch_timeout_s=config.branch_timeout_ms / 1e3,
        masked=bundle.manifest.exits.masked,
        # A board that runs branches alone decides nothing.
        parameters=bundle.policy_parameters() if _decides(config, bundle) else PolicyParameters(),
        audit_key=os.urandom(16),
    )


def _decides(config: PipelineConfig, bundle: Bundle) -> bool:
    """Whether an exit may be decided on this board: that of a plain stage, or one that it fuses."""
    return fuses(config, bundle) or any(not bundle.stages[k].branches for k in config.stages)


def _origin_settings(config: OriginConfig | None) -> OriginSettings | None:
    if config is None:
        return None
    return OriginSettings(
        deadline_s=config.deadline_ms / 1e3,
        pending_items=config.pending,
        silence_floor_s=config.silence_ms / 1e3,
        fuser=config.fuser,
        eager=config.mode == "eager",
    )


def _topic_cache(site: str, kind: Kind, build: Callable[[str, str, Kind, str], str]) -> Callable[[str, str], str]:
    """Return a function that gives the topic of a kind for (pipeline, device) and keeps those it has built."""
    return functools.lru_cache(_TOPICS_KEPT)(lambda pipeline, device: build(site, pipeline, kind, device))


class Agent:
    """A device agent. `run` blocks until `stop` is called (from any thread or a signal handler).

    Raises ConfigError, BundleError or RuntimeUnavailableError out of the constructor or `prepare`.
    """

    def __init__(
        self,
        config: AgentConfig,
        transport: Transport | None = None,
        bundles: Sequence[Bundle] | None = None,
        input_transport: Callable[[str], Transport] | None = None,
    ) -> None:
        self.config = config
        self.boot = os.urandom(4).hex()
        self._started_at = time.monotonic()
        state_topic = topics.device(config.site, config.device, Kind.STATE)
        will = (state_topic, self._state(DeviceStatus.LOST))
        self.transport: Transport = transport or PahoTransport(
            config.broker,
            client_id=config.client_id,
            will=will,
            receive_maximum=config.receive_maximum,
            trial_payload=wire.PROBE,
        )
        self._input_transport = input_transport or self._connect_inputs
        self.pipelines = [
            Pipeline(self, index, pipeline, bundle)
            for index, (pipeline, bundle) in enumerate(
                zip(config.pipelines, load_bundles(config) if bundles is None else bundles, strict=True)
            )
        ]
        self.on_result: Callable[[Result], None] | None = None
        """Called with each final result of this board's origins, without the lock, by a thread of the crew."""
        self.on_hang: Callable[[], object] = functools.partial(os._exit, 70)
        """Called, with the lock held, when inference hangs for good. A thread cannot be ended, a process can."""
        self.answers: deque[Result] = deque()
        """Final results for the program that runs this agent."""
        self.dead_letters = 0
        self._status = DeviceStatus.INIT
        self._state_topic = state_topic
        self._routes = self._make_routes()
        self._outcome_topic = _topic_cache(config.site, Kind.OUTCOME, topics.of_origin)
        self._exit_topic = _topic_cache(config.site, Kind.EXIT, topics.of_wide)
        self._decision_topic = _topic_cache(config.site, Kind.DECISION, topics.of_wide)
        self.crew: Crew[tuple[Pipeline, Run | Fuse]] = Crew(
            self._turn, self._glance, self._infer, self.transport.lock, self._fault
        )
        self._notifier = SystemdNotifier()
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._sources: list[threading.Thread] = []
        self._exit_status = 0
        self._sequence = 0
        self._telemetry_at = 0.0
        self._watchdog_at = 0.0
        self._waits_until = 0.0
        self._healed_at = 0.0
        self._heal_at = _NEVER
        self._problem = ""
        self._repeats = Repeats()
        self._refused = Repeats(every_s=REFUSED_S)
        self.unpublished = 0
        """Messages that the broker does not take."""
        self._was_connected = False
        self._unready_until = 0.0
        self.clock_synced = clock_synced()
        """Whether this board's clock may be believed, as last seen."""

    # ------------------------------------------------------------ life

    def prepare(self, tests: Iterable[SelfTest] | None = None) -> None:
        """Test and load the interpreters. Without `tests` under way it starts them, so call it in a single thread."""
        if tests is None:
            tests = start_self_tests(self.config, [pipeline.bundle for pipeline in self.pipelines])
        for test in tests:
            test.wait()
        for pipeline in self.pipelines:
            config = pipeline.config
            if config.stages or pipeline.fuses:
                pipeline.runtime = TFLiteRuntime(
                    pipeline.bundle, config.stages, self.config.num_threads, branch=config.branch, fuse=pipeline.fuses
                )
            if config.origin is not None:
                made = make_source(
                    config.origin.source,
                    pipeline,
                    self._origin_topic(pipeline, Kind.INPUT),
                    functools.partial(self._input_transport, f"{self.config.client_id}_{config.name}"),
                )
                pipeline.source = made if isinstance(made, Source) else None
                pipeline.feed = made if isinstance(made, Feed) else None

    def _connect_inputs(self, client_id: str) -> Transport:
        return PahoTransport(
            self.config.broker,
            client_id=client_id,
            receive_maximum=self.config.receive_maximum,
            session=Session.DURABLE,
            trial_payload=wire.PROBE,
        )

    def run(self) -> int:
        """Serve until `stop`, then drain; return the exit status (0, or 70 after a fault of the program)."""
        here = presence.announce(self.config, self.boot)
        with contextlib.closing(self.transport), here or contextlib.nullcontext():
            self.transport.open(self, self._subscriptions())
            self.crew.start()
            # The calling thread only waits, so that it is free to take signals, whatever hangs elsewhere. The kernel
            # may give one to another thread, though, and then Python's handler runs when this one looks up.
            while not self._stopping.wait(SIGNALS_S):
                pass
            self._drain()
        for pipeline in self.pipelines:
            if pipeline.spool is not None:
                pipeline.spool.close()
        return self._exit_status

    def stop(self) -> None:
        """Ask `run` to drain and return; safe in a signal handler."""
        self._stopping.set()

    def abandon(self) -> None:
        """Ask `run` to return without draining, with exit status 70."""
        self._exit_status = 70
        self.stop()

    def _turn(self) -> None:
        """Wait for the network or for what is due, and see to both."""
        now = time.monotonic()
        self._waits_until = until = min(now + POLL_S, self._due_at())
        self.transport.poll(max(0.0, until - now))
        self._waits_until = 0.0
        if time.monotonic() >= until:
            with self.transport.lock:
                self._tick(time.monotonic())
        self._hand_out()

    def _glance(self) -> None:
        """See to what the network has brought, without waiting for more."""
        self.transport.poll(0.0)
        self._hand_out()

    def _hand_out(self) -> None:
        """Hand results to the program that runs this agent; without the lock, for it may take its time."""
        while self.answers and self.on_result is not None:
            with contextlib.suppress(IndexError):  # the crew's other thread was quicker
                self.on_result(self.answers.popleft())

    def _due_at(self) -> float:
        due = min([pipeline.due_at() for pipeline in self.pipelines])
        if self._unready_until:
            due = 0.0 if self._sources_ready() else min(due, self._unready_until)
        return min(due, self._telemetry_at, self._heal_at, self._watchdog_at if self._notifier.interval_s else due)

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the agent has connected for the first time; for programs that run it in a thread."""
        return self._ready.wait(timeout_s)

    def wake_for(self, due_at: float) -> None:
        """Shorten the network thread's wait if something is due before its end."""
        if due_at < self._waits_until:
            self.transport.wake()

    def _tick(self, now: float) -> None:
        for pipeline in self.pipelines:
            pipeline.tick(now)
        while self.transport.notices:
            log.warning("%s", self.transport.notices.popleft())
        if self.transport.last_error not in (None, self._problem):
            self.disconnected(self.transport.last_error or "")
        if self._unready_until and (self._sources_ready() or now >= self._unready_until):
            self._be_ready()
        if now >= self._heal_at:
            self._healed_at, self._heal_at = now, _NEVER
            self._set_status(self._status)
        if now >= self._telemetry_at:
            self._telemetry_at = now + self.config.telemetry_s
            self._report()
        interval_s = self._notifier.interval_s
        if interval_s and now >= self._watchdog_at:
            self._watchdog_at = now + interval_s
            if self.crew.busy_s() < self.config.hang_s:
                self._notifier.send("WATCHDOG=1")
        if self.crew.busy_s() > 2 * self.config.hang_s:
            # Not even a supervisor helped. Custody of what is spooled survives; a hung thread cannot be ended.
            log.critical("inference has hung for %.0f s: giving up, to be restarted", self.crew.busy_s())
            self.on_hang()

    def _drain(self) -> None:
        """Answer what is in custody and finish what is at work, within `drain_s`; then say goodbye."""
        self._notifier.send("STOPPING=1")
        with self.transport.lock:
            for pipeline in self.pipelines:
                pipeline.feed = None
            # What others send from here on is for another board, or for the next run of this one.
            self.transport.unsubscribe(list(self._shared_filters().values()))
        self._set_status(DeviceStatus.DRAINING)
        ends_at = time.monotonic() + self.config.drain_s
        while not self._idle() and time.monotonic() < ends_at and not self._exit_status:
            time.sleep(0.01)
        for thread in self._sources:
            thread.join(1.0)
        self.transport.wake()
        self.crew.stop(2.0)
        with self.transport.lock:
            for pipeline in self.pipelines:
                self.perform(pipeline, pipeline.node.give_up_audits(time.monotonic()))
            self._report()
        self._set_status(DeviceStatus.DISCONNECTED)

    def _idle(self) -> bool:
        with self.transport.lock:
            return all(pipeline.node.idle() for pipeline in self.pipelines)

    def _fault(self, error: BaseException) -> None:
        log.critical("ended by a fault of this program", exc_info=error)
        self.abandon()

    # ------------------------------------------------------------ Listener

    def connected(self) -> None:
        """Birth on every connect, so that no board is stuck as lost."""
        first = not self._was_connected
        self._was_connected = True
        if not first:
            log.info("connected again")
            for pipeline in self.pipelines:
                pipeline.node.reconnected()
        if first:
            for pipeline in self.pipelines:
                pipeline.say_again()
            self._start_sources()
            self._unready_until = time.monotonic() + SOURCES_S
        self._publish(Kind.META, topics.device(self.config.site, self.config.device, Kind.META), self._meta())
        if self._unready_until and self._sources_ready():
            self._be_ready()
        elif not self._unready_until:
            self._set_status(DeviceStatus.DRAINING if self._stopping.is_set() else DeviceStatus.READY)

    def _sources_ready(self) -> bool:
        return all(pipeline.source is None or pipeline.source.ready for pipeline in self.pipelines)

    def _be_ready(self) -> None:
        self._unready_until = 0.0
        if not self._stopping.is_set():
            self._set_status(DeviceStatus.READY)
        log.info("%s is ready: %s", self.config.device, ", ".join(map(_describe, self.pipelines)))
        self._notifier.send("READY=1")
        self._ready.set()

    def disconnected(self, why: str) -> None:
        """Say why, at a bounded rate; the transport keeps trying."""
        self._problem = why
        if self.transport.judging:
            log.debug("%s", why)  # what comes of it will be said
            return
        line = self._repeats.line(time.monotonic(), why)
        if line is not None:
            log.warning("%s", line)

    def received(self, message: Received) -> None:
        """Route a message by its topic; whatever breaks the protocol is dead-lettered and acknowledged."""
        route = self._routes.get(message.topic)
        if message.payload == wire.PROBE:
            self.transport.acknowledge(message.token)
            return
        try:
            if route is None:
                raise RemoteProtocolError("topic", "not subscribed by this agent")
            route(message)
        except RemoteProtocolError as error:
            self.dead_letter(message.topic, error, message.payload)
            self.transport.acknowledge(message.token)

    def published(self, token: str) -> None:
        """The broker acknowledged a result."""
        self._settle(token, told=True)

    def given_up(self, token: str) -> None:
        """A result will never be with the broker."""
        self._settle(token, told=False)

    def _settle(self, token: str, *, told: bool) -> None:
        index, lane, request = token.split("/", 2)
        pipeline = self.pipelines[int(index)]
        if lane == Lane.SHED.name:
            pipeline.turned_away(request, told=told)
        else:
            pipeline.published(request)

    # ------------------------------------------------------------ messages in

    def _make_routes(self) -> dict[str, Callable[[Received], None]]:
        routes: dict[str, Callable[[Received], None]] = {self._state_topic: self._on_own_state}
        for pipeline in self.pipelines:
            for k in pipeline.config.stages:
                if travels(pipeline.bundle, k):
                    routes[pipeline.stage_topics[k]] = self._stage_route(pipeline, k)
            if pipeline.fuses:
                routes[self._wide_topic(pipeline, Kind.EXIT)] = self._exit_route(pipeline)
            if pipeline.config.branch is not None:
                routes[self._wide_topic(pipeline, Kind.DECISION)] = self._decision_route(pipeline)
            routes[topics.plan(self.config.site, pipeline.config.name)] = self._plan_route(pipeline)
            if pipeline.config.origin is not None:
                routes[self._origin_topic(pipeline, Kind.OUTCOME)] = self._outcome_route(pipeline)
        return routes

    def _origin_topic(self, pipeline: Pipeline, kind: Kind) -> str:
        return topics.of_origin(self.config.site, pipeline.config.name, kind, self.config.device)

    def _wide_topic(self, pipeline: Pipeline, kind: Kind) -> str:
        return topics.of_wide(self.config.site, pipeline.config.name, kind, self.config.device)

    def _subscriptions(self) -> list[tuple[str, int]]:
        shared = self._shared_filters()
        return [(shared.get(topic, topic), 1) for topic in self._routes]

    def _shared_filters(self) -> dict[str, str]:
        """Return, by topic, the filters by which this board shares the work of its stages."""
        return {
            pipeline.stage_topics[k]: topics.shared_stage(
                self.config.site, pipeline.config.name, k, pipeline.branch_of(k) or 0
            )
            for pipeline in self.pipelines
            for k in pipeline.config.stages
        }

    def _stage_route(self, pipeline: Pipeline, k: int) -> Callable[[Received], None]:
        receive, is_wide = pipeline.node.receive, pipeline.branch_of(k) is not None

        def route(message: Received) -> None:
            decoded = wire.decode_stage(message.payload)
            if decoded.stage != k:
                raise RemoteProtocolError("stage", f"says stage {decoded.stage} on the topic of stage {k}")
            effects = receive(time.monotonic(), decoded, message.token)
            if is_wide:
                pipeline.is_eager = decoded.eager
            self.perform(pipeline, effects)

        return route

    def _exit_route(self, pipeline: Pipeline) -> Callable[[Received], None]:
        def route(message: Received) -> None:
            embedding = wire.decode_embedding(message.payload)
            self.perform(pipeline, pipeline.node.receive(time.monotonic(), embedding, message.token))

        return route

    def _decision_route(self, pipeline: Pipeline) -> Callable[[Received], None]:
        def route(message: Received) -> None:
            decision = wire.decode_decision(message.payload)
            self.perform(pipeline, pipeline.node.receive(time.monotonic(), decision, message.token))

        return route

    def _outcome_route(self, pipeline: Pipeline) -> Callable[[Received], None]:
        def route(message: Received) -> None:
            outcome = wire.decode_outcome(message.payload)
            self.perform(pipeline, pipeline.node.receive(time.monotonic(), outcome, message.token))

        return route

    def _plan_route(self, pipeline: Pipeline) -> Callable[[Received], None]:
        def route(message: Received) -> None:
            before = pipeline.node.plan.epoch
            plan = wire.decode_plan(message.payload)
            self.perform(pipeline, pipeline.node.receive(time.monotonic(), plan, message.token))
            if pipeline.node.plan.epoch != before:
                log.info("%s: epoch %d, %s %s", pipeline.config.name, plan.epoch, plan.criterion, plan.thresholds)
                # The acknowledgement of a plan is the epoch in the next report; it need not wait.
                self._telemetry_at = 0.0

        return route

    def _on_own_state(self, message: Received) -> None:
        """Heal a state that is not ours: the will of an earlier connection may arrive after the new birth."""
        self.transport.acknowledge(message.token)
        if message.payload == self._state(self._status):
            return
        # At most once a second: two boards of one name would otherwise correct each other without end.
        self._heal_at = max(time.monotonic(), self._healed_at + 1.0)
        wire.decode_state(message.payload)

    # ------------------------------------------------------------ effects out

    def perform(self, pipeline: Pipeline, effects: Sequence[Effect]) -> None:
        """Carry out a node's effects, in order. Called with the lock held."""
        if len(effects) == 1 and type(effects[0]) is Run:
            # What a message usually comes to; there is nothing to gather.
            self.crew.put((pipeline, effects[0]))
            return
        self.transport.cork()
        try:
            self._carry_out(pipeline, effects)
        finally:
            self.transport.uncork()

    def _carry_out(self, pipeline: Pipeline, effects: Sequence[Effect]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Publish:
                self._send(pipeline, effect)  # type: ignore[arg-type]
            elif kind is Run or kind is Fuse:
                self.crew.put((pipeline, effect))  # type: ignore[arg-type]
            elif kind is Acknowledge:
                self.transport.acknowledge(effect.delivery)  # type: ignore[union-attr]
            elif kind is Tell:
                self._send_decision(pipeline, effect.device, effect.decision)  # type: ignore[union-attr]
            elif kind is Drop and log.isEnabledFor(logging.DEBUG):
                log.debug("%s dropped: %s", effect.request, effect.reason)  # type: ignore[union-attr]

    def _send(self, pipeline: Pipeline, effect: Publish) -> None:
        message = effect.message
        if isinstance(message, StageMessage):
            self._send_stage(pipeline, message)
        elif isinstance(message, Outcome):
            topic = self._outcome_topic(pipeline.config.name, message.origin)
            self._publish_work(topic, wire.encode_outcome(message), None)
        elif isinstance(message, Embedding):
            payload, topic = wire.encode_embedding(message), self._exit_topic(pipeline.config.name, message.fuser)
            pipeline.node.sent(message.stage + 1, len(payload), audit=message.audit)
            # If it is not sent, it is to the board that fuses as if this branch had not been heard.
            self._publish_work(topic, payload, message.budget_s - message.spent_s)
        elif isinstance(message, AuditRow):
            self._publish(Kind.AUDIT, pipeline.audit_topic, wire.encode_audit(message))
        else:
            pipeline.publish_result(effect, message)

    def _send_stage(self, pipeline: Pipeline, message: StageMessage) -> None:
        payload, topic = wire.encode_stage(message), pipeline.stage_topics[message.stage]
        pipeline.node.sent(message.stage, len(payload), audit=message.audit)
        try:
            self.transport.publish(topic, payload, qos=1, expiry_s=message.budget_s - message.spent_s)
        except LocalProtocolError as error:
            self.refuse(topic, error)
            self.dead_letter(topic, error, payload)
            self.perform(pipeline, pipeline.node.refused(time.monotonic(), message))

    def _send_decision(self, pipeline: Pipeline, device: str, decision: Decision) -> None:
        topic = self._decision_topic(pipeline.config.name, device)
        self._publish_work(topic, wire.encode_decision(decision), DECISION_EXPIRY_S)

    def _publish_work(self, topic: str, payload: bytes, expiry_s: float | None) -> None:
        """Publish what boards say to each other: at QoS 1, in the lane WORK."""
        try:
            self.transport.publish(topic, payload, qos=1, expiry_s=expiry_s)
        except LocalProtocolError as error:
            self.refuse(topic, error)

    def _publish(self, kind: Kind, topic: str, payload: bytes) -> None:
        how = DELIVERY[kind]
        try:
            self.transport.publish(
                topic, payload, qos=how.qos, retain=how.retain, content_type=how.content_type, lane=how.lane
            )
        except LocalProtocolError as error:
            self.refuse(topic, error)

    def refuse(self, topic: str, error: LocalProtocolError) -> None:
        """Say in the log, once in a while for each topic, that the broker does not take some message."""
        self.unpublished += 1
        line = self._refused.line(time.monotonic(), error.detail, topic)
        if line is not None:
            log.warning("%s", line)

    def dead_letter(self, topic: str, error: RemoteProtocolError | LocalProtocolError, payload: bytes) -> None:
        """Count a message that broke the protocol and publish why. Called with the lock held."""
        self.dead_letters += 1
        letter = DeadLetter(
            device=self.config.device,
            topic=wire.printable(topic)[:256],
            reason=error.reason,
            detail=wire.printable(error.detail)[:256],
            payload_bytes=len(payload),
            head_hex=bytes(payload[:32]).hex(),
        )
        self._publish(
            Kind.DEAD,
            topics.device(self.config.site, self.config.device, Kind.DEAD),
            wire.encode_dead(letter),
        )

    # ------------------------------------------------------------ inference

    def _infer(self, job: tuple[Pipeline, Run | Fuse]) -> None:
        """Run one segment or fusion head and carry out what follows."""
        pipeline, task = job
        try:
            output, took_s = pipeline.compute(task)
        except Exception as error:  # noqa: BLE001 - whatever the interpreter raises costs this input, not the agent
            self._infer_failed(pipeline, task, error)
            return
        if pipeline.is_eager:
            # A word to stop that has come meanwhile is to be heard before its branch goes on by itself.
            self.crew.look()
        with self.transport.lock:
            # The node's time is read under the lock: it must not run backwards between two events.
            self.perform(pipeline, pipeline.node.completed(time.monotonic(), task.key, output, took_s))
            # What was sent on has left the inbox, which may be what an input waits for.
            pipeline.room.notify()
        self._hand_out()
        self.wake_for(pipeline.node.notify_at())

    def _infer_failed(self, pipeline: Pipeline, task: Run | Fuse, error: Exception) -> None:
        with self.transport.lock:
            if isinstance(error, RemoteProtocolError) and isinstance(task, Run):
                self.dead_letter(pipeline.stage_topics[task.stage], error, bytes(task.tensor.payload))
            else:
                # Not its traceback: this comes with each input, and the line says it all.
                log.error("stage %d: %s: %s", task.stage, type(error).__name__, error)
            self.perform(pipeline, pipeline.node.failed(time.monotonic(), task.key, str(error)))
        self._hand_out()

    # ------------------------------------------------------------ sources

    def _start_sources(self) -> None:
        for pipeline in self.pipelines:
            if pipeline.feed is not None:
                pipeline.feed.start(time.monotonic())
            if pipeline.source is not None:
                name = f"source-{pipeline.config.name}"
                thread = threading.Thread(target=self._run_source, args=(pipeline,), name=name, daemon=True)
                self._sources.append(thread)
                thread.start()

    def _run_source(self, pipeline: Pipeline) -> None:
        source = pipeline.source
        assert source is not None  # noqa: S101
        try:
            source.run(self._stopping)
        except DistreeError as error:
            log.error("source of %s ended: %s", pipeline.config.name, error)  # noqa: TRY400 - the line says it all
        except Exception as error:  # noqa: BLE001 - a source must not end without a word
            self._fault(error)

    # ------------------------------------------------------------ state, meta, telemetry

    def _state(self, status: DeviceStatus) -> bytes:
        return wire.encode_state(DeviceState(device=self.config.device, boot=self.boot, status=status))

    def _set_status(self, status: DeviceStatus) -> None:
        with self.transport.lock:
            self._status = status
            self._publish(Kind.STATE, self._state_topic, self._state(status))

    def _meta(self) -> bytes:
        runtimes = {pipeline.runtime.name for pipeline in self.pipelines if pipeline.runtime is not None}
        return wire.encode_meta(
            DeviceMeta(
                device=self.config.device,
                boot=self.boot,
                version=__version__,
                python=platform.python_version(),
                runtime=", ".join(sorted(runtimes)),
                machine=platform.machine(),
                memory_mb=memory_mb(),
                stages=tuple(
                    HeldStage(
                        pipeline=p.config.name,
                        stage=k,
                        model=p.bundle.name,
                        revision=p.bundle.revision,
                        branch=p.branch_of(k),
                    )
                    for p in self.pipelines
                    for k in p.config.stages
                ),
                origins=tuple(p.config.name for p in self.pipelines if p.config.origin is not None),
                fusers=tuple(p.config.name for p in self.pipelines if p.fuses),
            )
        )

    def _report(self) -> None:
        for pipeline in self.pipelines:
            if pipeline.spool is not None:
                pipeline.spool.retry(time.monotonic())
        if not self.transport.online:
            return
        self._sequence += 1
        self.clock_synced = clock_synced()
        report = Telemetry(
            device=self.config.device,
            boot=self.boot,
            sequence=self._sequence,
            uptime_s=time.monotonic() - self._started_at,
            rss_bytes=rss_bytes(),
            dead_letters=self.dead_letters,
            offline_dropped=self.transport.offline_dropped + self.unpublished,
            pipelines=tuple(pipeline.report() for pipeline in self.pipelines),
        )
        topic = topics.device(self.config.site, self.config.device, Kind.TELEMETRY)
        self._publish(Kind.TELEMETRY, topic, wire.encode_telemetry(report))


def _branch_words(branch: int | None) -> str:
    return "" if branch is None else f" branch {branch}"


def _describe(pipeline: Pipeline) -> str:
    parts = [f"stage {k}{_branch_words(pipeline.branch_of(k))}" for k in pipeline.config.stages]
    if pipeline.config.fuse:
        parts.append("fuses")
    if pipeline.config.origin is not None:
        parts.append(f"origin ({pipeline.config.origin.source.kind})")
    return f"{pipeline.config.name} ({pipeline.bundle.name} {pipeline.bundle.revision}): {', '.join(parts)}"
