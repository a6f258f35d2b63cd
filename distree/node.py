"""StageNode: one pipeline on one board, as a state machine without clock, socket, thread or sleep.

Events come in as method calls with the time `now` (monotonic seconds); each returns the effects that the driver is
to carry out, in order. The same code runs on a board over MQTT, in tests over a fake link, and under a simulated
clock. `python -m distree.node` prints the transition tables.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from distree import policies, tensors
from distree.custody import CUSTODY_TRANSITIONS, Circuit, Custody, Entry, RoundTrip
from distree.errors import ConfigError, RemoteProtocolError
from distree.protocols import Evidence, ExitPolicy, SegmentOutput
from distree.record import record
from distree.types import (
    Acknowledge,
    Codec,
    Drop,
    DType,
    Effect,
    Guess,
    Hop,
    OriginTelemetry,
    Outcome,
    PipelineTelemetry,
    Plan,
    PolicyMemory,
    Publish,
    Reason,
    Result,
    Run,
    StageMessage,
    StageTelemetry,
    Tensor,
)

JobState = Literal["waiting", "running", "done"]
JobEvent = Literal["start", "exit", "forward", "continue", "fail", "shed", "expire"]

JOB_TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    ("waiting", "start"): "running",
    ("waiting", "shed"): "done",
    ("waiting", "expire"): "done",
    ("running", "exit"): "done",
    ("running", "forward"): "done",
    # The next stage is on this board too.
    ("running", "continue"): "running",
    ("running", "fail"): "done",
}

KEPT_EPOCHS = 8
"""Plans kept, so that a request is decided by the thresholds under which it was accepted."""

SEEN = 1024
"""Deliveries remembered per node, to make a redelivery harmless."""

LATENCIES = 1024
"""Latencies kept per telemetry period; older ones of a busy period are left out."""


@record
class OriginSettings:
    """How this board answers for its own inputs.

    `pending_items` bounds the inputs without an answer, and the answers that the broker has not acknowledged.
    """

    deadline_s: float = 1.0
    pending_items: int = 64
    silence_floor_s: float = 0.1


@record
class NodeSettings:
    """What a node must know of its board, its model and its limits.

    `inputs` holds (dtype, shape) of every stage's input tensor, whether held here or not. `boot` is put into request
    ids, so it must differ from one run of the origin to the next.
    """

    site: str
    device: str
    pipeline: str
    boot: str
    model: str
    revision: str
    labels: tuple[str, ...]
    inputs: tuple[tuple[DType, tuple[int, ...]], ...]
    stages: tuple[int, ...]
    criterion: str
    thresholds: tuple[float, ...]
    codec: Codec = "raw"
    inbox_items: int = 64
    inbox_bytes: int = 4 << 20
    origin: OriginSettings | None = None


@record
class Accepted:
    """An input that its origin has accepted and not yet answered: what a spool keeps."""

    request: str
    name: str
    tensor: Tensor


@dataclass(slots=True, kw_only=True)
class _Job:
    """One input or set of features, from its arrival at this board until it leaves."""

    key: int
    request: str
    origin: str
    attempt: int
    epoch: int
    stage: int
    budget_s: float
    spent_s: float
    arrived_at: float
    guess: Guess | None
    memory: PolicyMemory
    hops: tuple[Hop, ...]
    tensor: Tensor
    delivery: object | None
    own: bool = False
    """Accepted by this board, which is its origin; others came in a delivery."""
    state: JobState = "waiting"
    ready_at: float = 0.0
    queue_s: float = 0.0

    def move(self, event: JobEvent) -> None:
        self.state = JOB_TRANSITIONS[self.state, event]

    def spent(self, now: float) -> float:
        return self.spent_s + (now - self.arrived_at)

    @property
    def nbytes(self) -> int:
        return len(self.tensor.payload)


@dataclass(slots=True)
class _StageCounters:
    received: int = 0
    exited: int = 0
    forwarded: int = 0
    shed: int = 0
    expired: int = 0
    failed: int = 0
    duplicate: int = 0
    bytes_out: int = 0
    period_runs: int = 0
    period_queue_s: float = 0.0
    period_compute_s: float = 0.0
    compute_s: float = 0.0

    def ran(self, queue_s: float, compute_s: float) -> None:
        self.period_runs += 1
        self.period_queue_s += queue_s
        self.period_compute_s += compute_s
        # The estimate of what the next stage takes at least, for the deadline rule.
        self.compute_s += (compute_s - self.compute_s) / min(8, self.period_runs)


class _OriginCounters:
    def __init__(self, exits: int) -> None:
        self.accepted = self.answered = self.resent = self.late = 0
        self.exits = [0] * exits
        self.reasons: dict[str, int] = {}
        self.latencies: deque[float] = deque(maxlen=LATENCIES)


@dataclass(frozen=True, slots=True)
class _Exits:
    """The exit rule of one epoch."""

    plan: Plan
    policy: ExitPolicy


class StageNode:
    """One pipeline on one board: stages it serves, and the inputs for which it is the origin.

    `restore` takes what `snapshot` of an earlier run returned: those inputs are run again and answered. `answered`
    names requests that an earlier run answered, so that the same again is dropped.
    """

    def __init__(self, settings: NodeSettings, restore: Sequence[Accepted] = (), answered: Sequence[str] = ()) -> None:
        self.settings = settings
        self._held = frozenset(settings.stages)
        self._input_bytes = [tensors.nbytes(dtype, shape) for dtype, shape in settings.inputs]
        self._last = len(settings.inputs) - 1
        self._waiting: deque[_Job] = deque()
        self._waiting_bytes = 0
        self._running: _Job | None = None
        self._jobs: dict[tuple[str, int, int], _Job] = {}
        self._seen: OrderedDict[tuple[str, int, int], None] = OrderedDict()
        self._next_key = 0
        self._next_request = 0
        self._stages = {k: _StageCounters() for k in settings.stages}
        self._deadline_rule = policies.make_policy("deadline")
        self._epochs: OrderedDict[int, _Exits] = OrderedDict()
        self._current = self._adopt(_default_plan(settings))
        self._restore = list(restore)
        if settings.origin is not None:
            self._custody = Custody(RoundTrip(settings.origin.silence_floor_s), Circuit())
            self._origin = _OriginCounters(len(settings.inputs))
            self._custody.remember(answered)

    # ------------------------------------------------------------ inputs of this origin

    @property
    def pending(self) -> int:
        """Inputs in custody: accepted, and their result not yet acknowledged by the broker."""
        return len(self._custody.entries) if self.settings.origin else 0

    def holds(self, request: str) -> bool:
        """Whether `request` is in custody."""
        return self.settings.origin is not None and request in self._custody.entries

    def room(self) -> int:
        """How many more inputs `accept` takes before it sheds; sources that can wait look here first."""
        if self.settings.origin is None:
            return 0
        books = self._custody.room(self.settings.origin.pending_items)
        return min(books, self.settings.inbox_items - len(self._waiting))

    def accept(
        self,
        now: float,
        name: str,
        tensor: Tensor,
        *,
        deadline_s: float | None = None,
        request: str | None = None,
        attempt: int = 1,
    ) -> tuple[str, list[Effect]]:
        """Take an input into custody; return its request id and effects.

        `tensor` is the quantised input of stage 0, `name` stands in the result as `input`. From here on the input is
        answered, whatever happens. `request` is the sender's own id, if it has one: while that id is remembered,
        the same again is dropped.
        """
        origin = self.settings.origin
        if origin is None:
            raise ConfigError(f"{self.settings.device} is no origin of pipeline {self.settings.pipeline}")
        budget_s = origin.deadline_s if deadline_s is None else deadline_s
        entry = Entry(
            request=request or self._request_id(),
            name=name,
            accepted_at=now,
            deadline_at=now + budget_s,
            attempt=attempt,
            epoch=self._current.plan.epoch,
            tensor=tensor,
        )
        if self._custody.remembered(entry.request) is not None:
            return entry.request, [Drop(request=entry.request, reason="duplicate")]
        self._origin.accepted += 1
        full = self._custody.room(origin.pending_items) <= 0
        self._custody.open(entry)
        if full:
            effects = self._answer(now, entry, "shed")
            # Not kept until the broker acknowledges it: the books are full.
            self._custody.close(entry.request)
            return entry.request, effects
        job = self._job(now, entry.request, entry.attempt, budget_s, tensor)
        if 0 in self._held:
            self._stages[0].received += 1
            return entry.request, self._enqueue(now, job)
        return entry.request, self._send_on(now, job, tensor)

    def _request_id(self) -> str:
        self._next_request += 1
        return f"{self.settings.boot}-{self._next_request:x}"

    def _job(self, now: float, request: str, attempt: int, budget_s: float, tensor: Tensor) -> _Job:
        return _Job(
            key=self._key(),
            request=request,
            origin=self.settings.device,
            attempt=attempt,
            epoch=self._current.plan.epoch,
            stage=0,
            budget_s=budget_s,
            spent_s=0.0,
            arrived_at=now,
            guess=None,
            memory=(),
            hops=(),
            tensor=tensor,
            delivery=None,
            own=True,
        )

    def _key(self) -> int:
        self._next_key += 1
        return self._next_key

    # ------------------------------------------------------------ messages

    def receive(self, now: float, message: StageMessage | Outcome | Plan, delivery: object) -> list[Effect]:
        """Take a decoded message; raise RemoteProtocolError for one that does not belong here.

        `delivery` comes back in an Acknowledge, at once or when the work on it is handed over.
        """
        if isinstance(message, StageMessage):
            return self._receive_stage(now, message, delivery)
        if isinstance(message, Outcome):  # noqa: SIM108 - one line would be three deep
            effects = self._receive_outcome(now, message)
        else:
            effects = self._receive_plan(message)
        effects.append(Acknowledge(delivery=delivery))
        return effects

    def _receive_stage(self, now: float, message: StageMessage, delivery: object) -> list[Effect]:
        self._check_stage(message)
        counters = self._stages[message.stage]
        identity = (message.request, message.attempt, message.stage)
        known = self._jobs.get(identity)
        if known is not None:
            # Redelivered after a reconnect while still at work: only the newest delivery can be acknowledged.
            known.delivery = delivery
            counters.duplicate += 1
            return []
        if identity in self._seen:
            counters.duplicate += 1
            return [Drop(request=message.request, reason="duplicate"), Acknowledge(delivery=delivery)]
        counters.received += 1
        job = _Job(
            key=self._key(),
            request=message.request,
            origin=message.origin,
            attempt=message.attempt,
            epoch=message.epoch,
            stage=message.stage,
            budget_s=message.budget_s,
            spent_s=message.spent_s,
            arrived_at=now,
            guess=message.guess,
            memory=message.memory,
            hops=message.hops,
            tensor=message.tensor,
            delivery=delivery,
        )
        self._jobs[identity] = job
        return self._enqueue(now, job)

    def _check_stage(self, message: StageMessage) -> None:
        if message.stage not in self._held:
            raise RemoteProtocolError("stage", f"stage {message.stage} is not served here")
        self._check_revision(message.revision)
        (dtype, shape), nbytes = self.settings.inputs[message.stage], self._input_bytes[message.stage]
        tensor = message.tensor
        if tensor.dtype != dtype:
            raise RemoteProtocolError("dtype", f"expected {dtype}, received {tensor.dtype}")
        if tensor.shape != shape:
            raise RemoteProtocolError("shape", f"expected {shape}, received {tensor.shape}")
        if tensor.codec == "raw" and len(tensor.payload) != nbytes:
            raise RemoteProtocolError("size", f"expected {nbytes} bytes, received {len(tensor.payload)}")
        self._check_guess(message.guess)

    def _check_revision(self, revision: str) -> None:
        if revision != self.settings.revision:
            raise RemoteProtocolError(
                "revision",
                f"expected {self.settings.revision}, received {revision}: this board has another bundle",
            )

    def _check_guess(self, guess: Guess | None) -> None:
        if guess and (guess.class_id >= len(self.settings.labels) or guess.exit > self._last):
            raise RemoteProtocolError("guess", f"class {guess.class_id} at exit {guess.exit} does not exist")

    def _receive_outcome(self, now: float, outcome: Outcome) -> list[Effect]:
        if self.settings.origin is None or outcome.origin != self.settings.device:
            raise RemoteProtocolError("origin", f"this board does not answer for {outcome.origin}")
        self._check_revision(outcome.revision)
        self._check_guess(outcome.guess)
        entry = self._custody.entries.get(outcome.request)
        if entry is None or entry.state == "answered":
            return self._late(now, outcome)
        self._custody.heard(entry, outcome, now)
        if outcome.reason == "fallback" and entry.attempt == 1 and entry.message is not None:
            # A board failed on it; another may share the stage, so the one repetition is spent at once.
            return self._resend(now, entry)
        entry.guess, entry.hops, entry.epoch = outcome.guess or entry.guess, outcome.hops, outcome.epoch
        entry.move("outcome")
        return self._publish_result(now, entry, outcome.reason)

    def _late(self, now: float, outcome: Outcome) -> list[Effect]:
        remembered = self._custody.remembered(outcome.request)
        if remembered is None:
            raise RemoteProtocolError("request", f"{outcome.request} was never asked here")
        self._origin.late += 1
        name, accepted_at = remembered
        latency_s = 0.0 if accepted_at is None else now - accepted_at
        late = self._result(
            outcome.request, name, outcome.guess, outcome.reason, latency_s,
            attempt=outcome.attempt, epoch=outcome.epoch, hops=outcome.hops, final=False,
        )  # fmt: skip
        return [Publish(message=late)]

    def _receive_plan(self, plan: Plan) -> list[Effect]:
        if plan.pipeline != self.settings.pipeline:
            raise RemoteProtocolError("pipeline", f"expected {self.settings.pipeline}, received {plan.pipeline}")
        self._check_revision(plan.revision)
        if len(plan.thresholds) != self._last:
            raise RemoteProtocolError(
                "thresholds",
                f"{len(plan.thresholds)} received, one per exit but the last expected ({self._last})",
            )
        if plan.epoch > self._current.plan.epoch:
            self._current = self._adopt(plan)
        return []

    def _adopt(self, plan: Plan) -> _Exits:
        try:
            policy = policies.make_policy(plan.criterion)
        except ConfigError as error:
            raise RemoteProtocolError("criterion", str(error)) from None
        exits = self._epochs[plan.epoch] = _Exits(plan, policy)
        if len(self._epochs) > KEPT_EPOCHS:
            self._epochs.popitem(last=False)
        return exits

    # ------------------------------------------------------------ the inbox

    def _enqueue(self, now: float, job: _Job) -> list[Effect]:
        job.ready_at = now
        if self._running is None and not self._waiting:
            return [self._start(now, job)]
        self._waiting.append(job)
        self._waiting_bytes += job.nbytes
        effects: list[Effect] = []
        while len(self._waiting) > self.settings.inbox_items or self._waiting_bytes > self.settings.inbox_bytes:
            effects += self._shed(now, self._pop_waiting())
        return effects

    def _pop_waiting(self) -> _Job:
        job = self._waiting.popleft()
        self._waiting_bytes -= job.nbytes
        return job

    def _shed(self, now: float, job: _Job) -> list[Effect]:
        job.move("shed")
        self._stages[job.stage].shed += 1
        return self._leave(job, [*self._reply(now, job, "shed"), Drop(request=job.request, reason="shed")])

    def _start(self, now: float, job: _Job) -> Run:
        job.move("start")
        job.queue_s = now - job.ready_at
        self._running = job
        return Run(key=job.key, stage=job.stage, tensor=job.tensor)

    def _start_next(self, now: float) -> list[Effect]:
        """Start the oldest job that is still worth it; those whose budget has run out are dropped on the way."""
        effects: list[Effect] = []
        while self._waiting and self._running is None:
            job = self._pop_waiting()
            if self._expired(now, job):
                job.move("expire")
                self._stages[job.stage].expired += 1
                effects += self._leave(job, [Drop(request=job.request, reason="expired")])
            else:
                effects.append(self._start(now, job))
        return effects

    def _expired(self, now: float, job: _Job) -> bool:
        if job.own:
            return self._custody.open_entry(job.request) is None
        return job.spent(now) >= job.budget_s

    def _leave(self, job: _Job, effects: list[Effect]) -> list[Effect]:
        """End of a job on this board: remember it and acknowledge its delivery, after its effects."""
        if not job.own:
            identity = (job.request, job.attempt, job.stage)
            self._jobs.pop(identity, None)
            self._seen[identity] = None
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
            effects.append(Acknowledge(delivery=job.delivery))
        return effects

    # ------------------------------------------------------------ inference done

    def completed(self, now: float, key: int, output: SegmentOutput, took_s: float) -> list[Effect]:
        """The segment that Run(key) asked for gave `output` after `took_s` seconds of computing."""
        job = self._take_running(key)
        counters = self._stages[job.stage]
        counters.ran(job.queue_s, took_s)
        hop = Hop(device=self.settings.device, stage=job.stage, queue_s=job.queue_s, compute_s=took_s)
        job.hops = (*job.hops, hop)
        class_id, confidence = policies.confidence(output.logits)
        job.guess = Guess(exit=job.stage, class_id=class_id, confidence=confidence)
        reason = self._decide(now, job, output, confidence)
        if reason is not None:
            job.move("exit")
            counters.exited += 1
            effects = self._leave(job, self._reply(now, job, reason))
        else:
            effects = self._advance(now, job, output)
        return effects + self._start_next(now) if self._waiting else effects

    def _take_running(self, key: int) -> _Job:
        job = self._running
        if job is None or job.key != key:
            raise KeyError(f"no run {key} is under way")
        self._running = None
        return job

    def _decide(self, now: float, job: _Job, output: SegmentOutput, confidence: float) -> Reason | None:
        """Return why to answer at this exit, or None to go on."""
        if job.stage == self._last:
            return "last"
        exits = self._epochs.get(job.epoch, self._current)
        job.epoch = exits.plan.epoch
        evidence = Evidence(
            logits=output.logits,
            confidence=confidence,
            memory=job.memory,
            left_s=job.budget_s - job.spent(now),
            rest_s=self._rest_s(job),
        )
        score = exits.policy.score(evidence)
        job.memory = score.memory
        if score.value >= exits.plan.thresholds[job.stage]:
            return "confident"
        leaves_origin = job.own and job.stage + 1 not in self._held
        if self._deadline_rule.score(evidence).value >= 0.0:
            if leaves_origin:
                self._custody.round_trip.fade()
            return "deadline"
        if leaves_origin and self._custody.circuit.blocks(now):
            return "fallback"
        return None

    def _rest_s(self, job: _Job) -> float:
        """Estimate of the time to an answer from beyond this stage: measured at an origin, a lower bound elsewhere."""
        if job.own and job.stage + 1 not in self._held:
            return self._custody.round_trip.mean_s or 0.0
        return self._stages[job.stage].compute_s

    def _advance(self, now: float, job: _Job, output: SegmentOutput) -> list[Effect]:
        assert output.features is not None  # noqa: S101 - a bundle is checked when it is loaded
        counters = self._stages[job.stage]
        counters.forwarded += 1
        if job.stage + 1 in self._held:
            job.move("continue")
            job.stage += 1
            job.tensor = tensors.encode(output.features)
            job.queue_s = 0.0
            self._stages[job.stage].received += 1
            self._running = job
            return [Run(key=job.key, stage=job.stage, tensor=job.tensor)]
        job.move("forward")
        stage = job.stage
        job.stage += 1
        effects = self._send_on(now, job, tensors.encode(output.features, self.settings.codec))
        job.stage = stage
        return self._leave(job, effects)

    def _send_on(self, now: float, job: _Job, tensor: Tensor) -> list[Effect]:
        """Publish `tensor` to the job's stage on another board."""
        message = StageMessage(
            request=job.request,
            origin=job.origin,
            stage=job.stage,
            attempt=job.attempt,
            revision=self.settings.revision,
            epoch=job.epoch,
            budget_s=job.budget_s,
            spent_s=job.spent(now),
            guess=job.guess,
            memory=job.memory,
            hops=job.hops,
            tensor=tensor,
        )
        if job.own:
            entry = self._custody.open_entry(job.request)
            if entry is None:
                return [Drop(request=job.request, reason="answered")]
            entry.guess, entry.hops = job.guess, job.hops
            self._custody.sent(entry, message, now)
        return [Publish(message=message)]

    def _reply(self, now: float, job: _Job, reason: Reason) -> list[Effect]:
        """Answer a job: into the books when this board is its origin, else as an outcome to the origin."""
        if not job.own:
            return [Publish(message=self._outcome(now, job, reason))]
        entry = self._custody.open_entry(job.request)
        if entry is None:
            return [Drop(request=job.request, reason="answered")]
        entry.guess, entry.hops, entry.epoch = job.guess, job.hops, job.epoch
        return self._answer(now, entry, reason)

    def _outcome(self, now: float, job: _Job, reason: Reason) -> Outcome:
        return Outcome(
            request=job.request,
            origin=job.origin,
            attempt=job.attempt,
            revision=self.settings.revision,
            epoch=job.epoch,
            guess=job.guess,
            reason=reason,
            spent_s=job.spent(now),
            hops=job.hops,
        )

    def failed(self, now: float, key: int, error: str) -> list[Effect]:
        """The segment that Run(key) asked for raised an error."""
        job = self._take_running(key)
        job.move("fail")
        self._stages[job.stage].failed += 1
        effects = self._leave(job, [*self._reply(now, job, "fallback"), Drop(request=job.request, reason=error)])
        return effects + self._start_next(now)

    def refused(self, now: float, message: StageMessage) -> list[Effect]:
        """The transport will never deliver `message` (too large for the broker, say): answer with what there is."""
        entry = self._custody.open_entry(message.request) if self.settings.origin else None
        if message.origin == self.settings.device and entry is not None:
            return self._answer(now, entry, "fallback")
        outcome = Outcome(
            request=message.request,
            origin=message.origin,
            attempt=message.attempt,
            revision=message.revision,
            epoch=message.epoch,
            guess=message.guess,
            reason="fallback",
            spent_s=message.spent_s,
            hops=message.hops,
        )
        return [Publish(message=outcome)]

    # ------------------------------------------------------------ answers

    def _answer(self, now: float, entry: Entry, reason: Reason) -> list[Effect]:
        entry.move("answer")
        return self._publish_result(now, entry, reason)

    def _publish_result(self, now: float, entry: Entry, reason: Reason) -> list[Effect]:
        """Publish the one final result of a request and settle the books, but for the broker's acknowledgement."""
        latency_s = now - entry.accepted_at
        self._custody.unanswered -= 1
        self._origin.answered += 1
        self._origin.latencies.append(latency_s)
        self._origin.reasons[reason] = self._origin.reasons.get(reason, 0) + 1
        if entry.guess is not None:
            self._origin.exits[entry.guess.exit] += 1
        entry.message = None
        result = self._result(
            entry.request, entry.name, entry.guess, reason, latency_s,
            attempt=entry.attempt, epoch=entry.epoch, hops=entry.hops, final=True,
        )  # fmt: skip
        return [Publish(message=result, token=entry.request)]

    def _result(
        self,
        request: str,
        name: str,
        guess: Guess | None,
        reason: Reason,
        latency_s: float,
        *,
        attempt: int,
        epoch: int,
        hops: tuple[Hop, ...],
        final: bool,
    ) -> Result:
        settings = self.settings
        return Result(
            request=request,
            site=settings.site,
            pipeline=settings.pipeline,
            origin=settings.device,
            input=name,
            label=None if guess is None else settings.labels[guess.class_id],
            class_id=None if guess is None else guess.class_id,
            confidence=0.0 if guess is None else guess.confidence,
            exit=None if guess is None else guess.exit,
            reason=reason,
            final=final,
            late=not final,
            attempt=attempt,
            latency_s=latency_s,
            epoch=epoch,
            model=settings.model,
            revision=settings.revision,
            hops=hops,
        )

    def reconnected(self) -> None:
        """This board is connected again: what went unanswered may have been its own connection's fault."""
        if self.settings.origin is not None:
            self._custody.circuit.answered()

    def published(self, token: str) -> bool:
        """The broker has the result of request `token`; True if its entry was closed by this."""
        return self.settings.origin is not None and self._custody.close(token)

    # ------------------------------------------------------------ time

    def notify_at(self) -> float:
        """When the node next wants a tick; infinity if never."""
        if self._restore and self.room() > 0:
            return 0.0
        return self._custody.next_due() if self.settings.origin else float("inf")

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: deadlines, silent hops, inputs to restore."""
        effects: list[Effect] = []
        while self._restore and self.room() > 0:
            accepted = self._restore.pop()
            effects += self.accept(now, accepted.name, accepted.tensor, request=accepted.request, attempt=2)[1]
        if self.settings.origin is not None:
            while (entry := self._custody.pop_due(now)) is not None:
                effects += self._due(now, entry)
        return effects

    def _due(self, now: float, entry: Entry) -> list[Effect]:
        if now < entry.deadline_at:
            return self._resend(now, entry) if entry.state == "away" and entry.attempt == 1 else []
        reason = self._custody.reason_of_silence(entry)
        if entry.state == "away":
            self._custody.circuit.failed(now)
        entry.move("deadline")
        return self._publish_result(now, entry, reason)

    def _resend(self, now: float, entry: Entry) -> list[Effect]:
        assert entry.message is not None  # noqa: S101 - kept while the entry is away
        message = replace(entry.message, attempt=2, spent_s=min(entry.message.budget_s, now - entry.accepted_at))
        self._origin.resent += 1
        self._custody.resent(entry, message, now)
        return [Publish(message=message)]

    def snapshot(self) -> tuple[Accepted, ...]:
        """Return the inputs that are not yet answered, as plain data for `restore`."""
        if self.settings.origin is None:
            return ()
        open_entries = [entry for entry in self._custody.entries.values() if entry.state != "answered"]
        return (
            *(Accepted(request=entry.request, name=entry.name, tensor=entry.tensor) for entry in open_entries),
            *self._restore,
        )

    def idle(self) -> bool:
        """Whether nothing is at work, waiting or in custody."""
        return self._running is None and not self._waiting and not self.pending and not self._restore

    # ------------------------------------------------------------ telemetry

    @property
    def plan(self) -> Plan:
        """The plan in force; epoch 0 is the bundle's calibrated defaults."""
        return self._current.plan

    def sent(self, stage: int, nbytes: int) -> None:
        """Count the bytes of a message that the driver published for stage `stage`."""
        counters = self._stages.get(stage - 1)
        if counters is not None:
            counters.bytes_out += nbytes

    def telemetry(self) -> PipelineTelemetry:
        """Report the counters since boot and the means since the last report."""
        return PipelineTelemetry(
            pipeline=self.settings.pipeline,
            epoch=self._current.plan.epoch,
            revision=self.settings.revision,
            stages=tuple(self._stage_telemetry(k, counters) for k, counters in self._stages.items()),
            origin=self._origin_telemetry() if self.settings.origin else None,
        )

    def _stage_telemetry(self, k: int, counters: _StageCounters) -> StageTelemetry:
        runs = max(1, counters.period_runs)
        report = StageTelemetry(
            stage=k,
            received=counters.received,
            exited=counters.exited,
            forwarded=counters.forwarded,
            shed=counters.shed,
            expired=counters.expired,
            failed=counters.failed,
            duplicate=counters.duplicate,
            waiting=sum(job.stage == k for job in self._waiting),
            bytes_out=counters.bytes_out,
            queue_s=counters.period_queue_s / runs,
            compute_s=counters.period_compute_s / runs,
        )
        counters.period_runs, counters.period_queue_s, counters.period_compute_s = 0, 0.0, 0.0
        return report

    def _origin_telemetry(self) -> OriginTelemetry:
        origin, ordered = self._origin, sorted(self._origin.latencies)
        origin.latencies.clear()
        return OriginTelemetry(
            accepted=origin.accepted,
            answered=origin.answered,
            resent=origin.resent,
            late=origin.late,
            pending=len(self._custody.entries),
            exits=tuple(origin.exits),
            reasons=dict(origin.reasons),
            latency_p50_s=_quantile(ordered, 0.50),
            latency_p95_s=_quantile(ordered, 0.95),
            latency_max_s=_quantile(ordered, 1.0),
        )


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def _default_plan(settings: NodeSettings) -> Plan:
    return Plan(
        pipeline=settings.pipeline,
        epoch=0,
        model=settings.model,
        revision=settings.revision,
        criterion=settings.criterion,
        thresholds=settings.thresholds,
    )


def transition_tables() -> str:
    """Return both transition tables as text, one line a transition."""
    lines = ["A job on a board (a delivery, or an input of its own):"]
    lines += [f"  {state:<9} {event:<9} -> {after}" for (state, event), after in JOB_TRANSITIONS.items()]
    lines += ["An input in the custody of its origin:"]
    lines += [f"  {state:<9} {event:<9} -> {after}" for (state, event), after in CUSTODY_TRANSITIONS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(transition_tables())  # noqa: T201
