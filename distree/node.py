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
from distree.audits import AUDIT_BUDGET_S, Audit, AuditBooks
from distree.custody import CUSTODY_TRANSITIONS, Circuit, Custody, Entry, RoundTrip
from distree.errors import ConfigError, RemoteProtocolError
from distree.exits import Epochs, reading, too_late
from distree.fusion import GATHERING_TRANSITIONS, Fuser
from distree.job import JOB_TRANSITIONS, BranchBooks, Delivered, Job
from distree.protocols import Evidence, SegmentOutput
from distree.record import record
from distree.settings import NodeSettings, OriginSettings
from distree.types import (
    Acknowledge,
    Decision,
    Drop,
    Effect,
    Embedding,
    Guess,
    Hop,
    OriginTelemetry,
    Outcome,
    PipelineTelemetry,
    Plan,
    Publish,
    Reason,
    Result,
    Run,
    StageMessage,
    StageTelemetry,
    Tell,
    Tensor,
    Trace,
)

SEEN = 1024
"""Deliveries remembered per node, to make a redelivery harmless."""

AUDITS_WAITING = 8
"""Jobs of audits that wait on a board; beyond them the oldest is shed, which its origin counts as lost."""

_NEVER = float("inf")

LATENCIES = 1024
"""Latencies kept per telemetry period; older ones of a busy period are left out."""

PROBES = 64
"""Probes remembered; one a second is sent to boards that do not answer, and its answer may be late."""

PROBE_BUDGET_S = 10.0
"""Longest time a probe may take, in seconds."""


@record
class Accepted:
    """An input that its origin has accepted and not yet answered: what a spool keeps."""

    request: str
    name: str
    tensor: Tensor


@dataclass(slots=True)
class _StageCounters:
    received: int = 0
    exited: int = 0
    forwarded: int = 0
    shed: int = 0
    expired: int = 0
    failed: int = 0
    duplicate: int = 0
    wasted: int = 0
    bytes_out: int = 0
    runs: int = 0
    period_runs: int = 0
    period_queue_s: float = 0.0
    period_compute_s: float = 0.0
    compute_s: float = 0.0

    def ran(self, queue_s: float, compute_s: float) -> None:
        self.runs += 1
        self.period_runs += 1
        self.period_queue_s += queue_s
        self.period_compute_s += compute_s
        # The estimate of what the next stage takes at least, for the deadline rule.
        self.compute_s += (compute_s - self.compute_s) / min(8, self.period_runs)


class _OriginCounters:
    def __init__(self, exits: int) -> None:
        self.accepted = self.answered = self.shed = self.dropped = self.resent = self.late = 0
        self.exits = [0] * exits
        self.reasons: dict[str, int] = {}
        self.latencies: deque[float] = deque(maxlen=LATENCIES)


class StageNode:
    """One pipeline on one board: stages it serves, and the inputs for which it is the origin.

    `restore` takes what `snapshot` of an earlier run returned: those inputs are run again and answered. `answered`
    names requests that an earlier run answered, so that the same again is dropped.
    """

    def __init__(self, settings: NodeSettings, restore: Sequence[Accepted] = (), answered: Sequence[str] = ()) -> None:
        self.settings = settings
        self._held = frozenset(settings.stages)
        self._is_local = 0 in self._held and settings.width(0) == 0
        """Whether this board can answer inputs at the first exit by itself."""
        self._input_bytes = [tensors.nbytes(dtype, shape) for dtype, shape in settings.inputs]
        self._last = settings.last
        self._waiting: deque[Job] = deque()
        self._waiting_bytes = 0
        self._waiting_audits: deque[Job] = deque()
        self._running: Job | None = None
        self._jobs: dict[Delivered, Job] = {}
        self._seen: OrderedDict[Delivered, None] = OrderedDict()
        self._next_key = 0
        self._next_request = 0
        self._stages = {k: _StageCounters() for k in settings.stages}
        self._audit_stages = {k: _StageCounters() for k in settings.stages}
        self._epochs = Epochs(_default_plan(settings), settings.parameters)
        self._restore = list(restore)
        self._branches = BranchBooks(settings.inbox_items, settings.inbox_bytes)
        self._fuser: Fuser | None = None
        self._fuser_circuit = Circuit(limit=3)
        self._probes: dict[str, float | None] = {}
        """When each was sent; None for one that has ended."""
        if any(settings.embeddings) and (settings.fuses or settings.origin is not None):
            self._fuser = self._make_fuser()
        if settings.origin is not None:
            self._custody = Custody(RoundTrip(settings.origin.silence_floor_s), Circuit())
            self._origin = _OriginCounters(len(settings.inputs))
            self._audits = AuditBooks(settings)
            self._custody.remember(answered)

    def _make_fuser(self) -> Fuser:
        return Fuser(
            self.settings,
            self._epochs,
            next_key=self._key,
            asked=self._asked,
            learned=self._learned,
            answer=self._fused_answer,
            forward=self._fused_forward,
            tell=self._tell,
        )

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
        # While the boards beyond do not answer, this one answers alone: no need to wait for what is with them.
        local = self._custody.circuit.is_open and self._is_local
        books = self._custody.room(self.settings.origin.pending_items, local=local)
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
        answered, whatever happens. Where the books are full it is turned away instead, by a result `shed` that is not
        kept in them: the driver tells `turned_away` what became of that one. `request` is the sender's own id, if it
        has one: while that id is remembered, the same again is dropped.
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
            epoch=self._epochs.current.plan.epoch,
            tensor=tensor,
        )
        if self._custody.remembered(entry.request) is not None:
            return entry.request, [Drop(request=entry.request, reason="duplicate")]
        if self._custody.room(origin.pending_items, local=self._is_local) <= 0:
            if request is not None:
                self._custody.remember([request], name)
            result = self._result(entry, None, "shed", 0.0, final=True)
            return entry.request, [Publish(message=result, turned_away=True)]
        self._origin.accepted += 1
        entry.audited = self._audits.draw(entry.request, self._epochs.current.plan.audit_rate)
        self._custody.open(entry)
        effects = self._begin(now, self._job(now, entry, budget_s))
        if self._fuser is not None and self._fuser_circuit.wants_probe(now):
            effects += self._probe_fuser(now, entry)
        return entry.request, effects

    def turned_away(self, *, told: bool) -> None:
        """Count an input that was turned away: its result is with the broker, or was dropped."""
        self._origin.shed += told
        self._origin.dropped += not told

    def _begin(self, now: float, job: Job) -> list[Effect]:
        """Start the work on an own input, on this board or elsewhere."""
        if self._is_local:
            self._count(job).received += 1
            return self._enqueue(now, job)
        return self._send_on(now, job, job.tensor, 0)

    def _serves(self, stage: int) -> bool:
        """Whether a stage is on this board, as a whole; branches get their input from the broker, wherever they are."""
        return stage in self._held and self.settings.width(stage) == 0

    def _request_id(self) -> str:
        self._next_request += 1
        return f"{self.settings.boot}-{self._next_request:x}"

    def _job(self, now: float, entry: Entry, budget_s: float) -> Job:
        return Job(
            key=self._key(),
            request=entry.request,
            origin=self.settings.device,
            attempt=entry.attempt,
            epoch=entry.epoch,
            stage=0,
            budget_s=budget_s,
            spent_s=0.0,
            arrived_at=now,
            guess=None,
            memory=(),
            hops=(),
            tensor=entry.tensor,
            delivery=None,
            own=True,
            fuser=self._fuser_now(),
            eager=self._origin_settings.eager,
            trace=() if entry.audited else None,
        )

    def _audit_job(self, now: float, audit: Audit) -> Job:
        # Gated, whatever the mode: nobody waits for it.
        fuser = self._fuser_now()
        return self._unasked_job(now, audit.request, audit.epoch, AUDIT_BUDGET_S, audit.tensor, fuser=fuser, trace=())

    def _unasked_job(
        self, now: float, request: str, epoch: int, budget_s: float, tensor: Tensor, *, fuser: str | None, trace: Trace
    ) -> Job:
        """Return a job for which nobody waits: it takes no exit and gives way to those that do."""
        return Job(
            key=self._key(),
            request=request,
            origin=self.settings.device,
            attempt=1,
            epoch=epoch,
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
            fuser=fuser,
            trace=trace,
            audit=True,
        )

    def _fuser_now(self) -> str | None:
        """Return the board that is to fuse an own input: this one itself while the one for that does not answer."""
        if self._fuser is None:
            return None
        other = self._origin_settings.fuser
        return self.settings.device if other is None or self._fuser_circuit.is_open else other

    @property
    def _origin_settings(self) -> OriginSettings:
        assert self.settings.origin is not None  # noqa: S101 - asked for own inputs alone
        return self.settings.origin

    def _key(self) -> int:
        self._next_key += 1
        return self._next_key

    # ------------------------------------------------------------ messages

    def receive(
        self, now: float, message: StageMessage | Embedding | Decision | Outcome | Plan, delivery: object
    ) -> list[Effect]:
        """Take a decoded message; raise RemoteProtocolError for one that does not belong here.

        `delivery` comes back in an Acknowledge, at once or when the work on it is handed over.
        """
        if isinstance(message, StageMessage):
            return self._receive_stage(now, message, delivery)
        if isinstance(message, Outcome):
            effects = self._receive_outcome(now, message)
        elif isinstance(message, Embedding):
            effects = self._receive_embedding(now, message)
        elif isinstance(message, Decision):
            effects = self._receive_decision(now, message)
        else:
            effects = self._receive_plan(message)
        effects.append(Acknowledge(delivery=delivery))
        return effects

    def _receive_stage(self, now: float, message: StageMessage, delivery: object) -> list[Effect]:
        self._check_stage(message)
        counters = (self._audit_stages if message.audit else self._stages)[message.stage]
        identity: Delivered = (message.request, message.attempt, message.stage)
        known = self._jobs.get(identity)
        if known is not None:
            # Redelivered after a reconnect while still at work: only the newest delivery can be acknowledged.
            counters.duplicate += 1
            if known.audit:
                return [Acknowledge(delivery=delivery)]
            known.delivery = delivery
            return []
        if identity in self._seen:
            counters.duplicate += 1
            return [Drop(request=message.request, reason="duplicate"), Acknowledge(delivery=delivery)]
        counters.received += 1
        job = Job(
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
            came_to=message.stage,
            fuser=message.fuser,
            eager=message.eager,
            trace=message.trace,
            audit=message.audit,
        )
        self._jobs[identity] = job
        if self.settings.width(job.stage):
            self._branches.begin(job)
        if not job.audit:
            return self._enqueue(now, job)
        # Audits may wait for long, and what the broker has not got back counts against what it sends.
        job.delivery = None
        return [Acknowledge(delivery=delivery), *self._enqueue(now, job)]

    def _check_stage(self, message: StageMessage) -> None:
        if message.stage not in self._held:
            raise RemoteProtocolError("stage", f"stage {message.stage} is not served here")
        if self.settings.width(message.stage):
            self._check_wide(message)
        self.settings.check_revision(message.revision)
        (dtype, shape), nbytes = self.settings.inputs[message.stage], self._input_bytes[message.stage]
        tensor = message.tensor
        if tensor.dtype != dtype:
            raise RemoteProtocolError("dtype", f"expected {dtype}, received {tensor.dtype}")
        if tensor.shape != shape:
            raise RemoteProtocolError("shape", f"expected {shape}, received {tensor.shape}")
        if tensor.codec == "raw" and len(tensor.payload) != nbytes:
            raise RemoteProtocolError("size", f"expected {nbytes} bytes, received {len(tensor.payload)}")
        self.settings.check_guess(message.guess)

    def _check_wide(self, message: StageMessage) -> None:
        if not self.settings.starts_group(message.stage):
            raise RemoteProtocolError("stage", f"stage {message.stage} takes its features from its own board")
        if message.fuser is None:
            raise RemoteProtocolError("fuser", f"stage {message.stage} is wide, and no board is named that fuses")

    def _receive_outcome(self, now: float, outcome: Outcome) -> list[Effect]:
        if self.settings.origin is None or outcome.origin != self.settings.device:
            raise RemoteProtocolError("origin", f"this board does not answer for {outcome.origin}")
        self.settings.check_revision(outcome.revision)
        self.settings.check_guess(outcome.guess)
        if outcome.request in self._probes:
            return self._probed(now, outcome)
        if self._audits.knows(outcome.request):
            return self._audited(now, outcome)
        is_traced = self._audits.is_complete(outcome.trace)
        entry = self._custody.entries.get(outcome.request)
        if entry is None or entry.state == "answered":
            return self._late(now, outcome)
        self._custody.heard(entry, outcome, now)
        if any(hop.device == self._origin_settings.fuser for hop in outcome.hops):
            self._fuser_circuit.answered()
        if outcome.reason == "fallback" and entry.attempt == 1 and entry.message is not None:
            # A board failed on it; another may share the stage, so the one repetition is spent at once.
            return self._resend(now, entry)
        entry.guess, entry.hops, entry.epoch = outcome.guess or entry.guess, outcome.hops, outcome.epoch
        entry.missing = outcome.missing
        entry.trace = outcome.trace if is_traced else None
        return self._answer(now, entry, outcome.reason, "outcome")

    def _late(self, now: float, outcome: Outcome) -> list[Effect]:
        remembered = self._custody.remembered(outcome.request)
        if remembered is None:
            raise RemoteProtocolError("request", f"{outcome.request} was never asked here")
        self._origin.late += 1
        name, accepted_at = remembered
        latency_s = 0.0 if accepted_at is None else now - accepted_at
        late = self._result(outcome, outcome.guess, outcome.reason, latency_s, name=name, final=False)
        return [Publish(message=late)]

    def _receive_plan(self, plan: Plan) -> list[Effect]:
        if plan.pipeline != self.settings.pipeline:
            raise RemoteProtocolError("pipeline", f"expected {self.settings.pipeline}, received {plan.pipeline}")
        self.settings.check_revision(plan.revision)
        if len(plan.thresholds) != self._last:
            raise RemoteProtocolError(
                "thresholds",
                f"{len(plan.thresholds)} received, one per exit but the last expected ({self._last})",
            )
        if plan.rest_s and len(plan.rest_s) != self._last:
            raise RemoteProtocolError("rest_s", f"{len(plan.rest_s)} received, {self._last} expected")
        for row in plan.masked:
            if len(row.thresholds) != self._last:
                raise RemoteProtocolError("masked", f"{len(row.thresholds)} thresholds received, {self._last} expected")
        if plan.epoch > self._epochs.current.plan.epoch:
            self._check_criterion(plan.criterion)
            self._epochs.adopt(plan)
        return []

    def _check_criterion(self, name: str) -> None:
        """Raise RemoteProtocolError for a criterion by which this board could not decide."""
        settings = self.settings
        decides = self._fuser is not None or any(settings.width(k) == 0 for k in settings.stages)
        if not decides:
            # It has no parameters of criteria and needs none.
            return
        wide = any(settings.embeddings)
        exits, classes = len(settings.inputs), len(settings.labels)
        problem = policies.problem(name, settings.parameters, wide, exits=exits, classes=classes)
        if problem is not None:
            raise RemoteProtocolError("criterion", problem)

    # ------------------------------------------------------------ the inbox

    def _enqueue(self, now: float, job: Job) -> list[Effect]:
        job.ready_at = now
        if self._running is None and not self._waiting and not (job.audit and self._waiting_audits):
            return [self._start(now, job)]
        if job.audit:
            return self._enqueue_audit(now, job)
        self._waiting.append(job)
        self._waiting_bytes += job.nbytes
        effects: list[Effect] = []
        while len(self._waiting) > self.settings.inbox_items or self._waiting_bytes > self.settings.inbox_bytes:
            effects += self._shed(now, self._pop_waiting())
        return effects

    def _enqueue_audit(self, now: float, job: Job) -> list[Effect]:
        self._waiting_audits.append(job)
        if len(self._waiting_audits) <= AUDITS_WAITING:
            return []
        return self._shed(now, self._waiting_audits.popleft())

    def _count(self, job: Job) -> _StageCounters:
        """Return the counters of the job's stage: audits are not to be mistaken for traffic."""
        return (self._audit_stages if job.audit else self._stages)[job.stage]

    def _pop_waiting(self) -> Job:
        job = self._waiting.popleft()
        self._waiting_bytes -= job.nbytes
        return job

    def _shed(self, now: float, job: Job) -> list[Effect]:
        job.move("shed")
        self._count(job).shed += 1
        if self.settings.width(job.stage):
            return self._branch_ends(job, "shed")
        return self._leave(job, [*self._reply(now, job, "shed"), Drop(request=job.request, reason="shed")])

    def _start(self, now: float, job: Job) -> Run:
        job.move("start")
        job.queue_s = now - job.ready_at
        self._running = job
        return Run(key=job.key, stage=job.stage, tensor=job.tensor)

    def _start_next(self, now: float) -> list[Effect]:
        """Start the oldest job that is still worth it; those whose budget has run out are dropped on the way."""
        effects: list[Effect] = []
        while self._running is None and (self._waiting or self._waiting_audits):
            job = self._pop_waiting() if self._waiting else self._waiting_audits.popleft()
            if self._expired(now, job):
                job.move("expire")
                self._count(job).expired += 1
                if self.settings.width(job.stage):
                    effects += self._branch_ends(job, "expired")
                    continue
                effects += self._leave(job, [Drop(request=job.request, reason="expired")])
            else:
                effects.append(self._start(now, job))
        return effects

    def _expired(self, now: float, job: Job) -> bool:
        if job.own and job.audit:
            return not (self._audits.is_open(job.request) or self._probes.get(job.request) is not None)
        if job.own:
            return self._custody.open_entry(job.request) is None
        return job.spent(now) >= job.budget_s

    def _leave(self, job: Job, effects: list[Effect]) -> list[Effect]:
        """End of a job on this board: remember it and acknowledge its delivery, after its effects."""
        if not job.own:
            self._jobs.pop(job.delivered, None)
            self._seen[job.delivered] = None
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
            if not job.audit:
                effects.append(Acknowledge(delivery=job.delivery))
        return effects

    # ------------------------------------------------------------ inference done

    def completed(self, now: float, key: int, output: SegmentOutput, took_s: float) -> list[Effect]:
        """The segment that Run(key) or Fuse(key) asked for gave `output` after `took_s` seconds of computing."""
        if self._fuser is not None and self._fuser.is_fusing(key):
            return self._fuser.completed(now, key, output, took_s)
        job = self._take_running(key)
        counters = self._count(job)
        counters.ran(job.queue_s, took_s)
        hop = Hop(device=self.settings.device, stage=job.stage, queue_s=job.queue_s, compute_s=took_s)
        job.hops = (*job.hops, hop)
        if self.settings.width(job.stage):
            return self._branch_ran(now, job, output) + self._start_next(now)
        class_id, confidence = policies.confidence(output.logits)
        job.guess = Guess(exit=job.stage, class_id=class_id, confidence=confidence)
        reason = self._decide(now, job, output.logits, job.guess)
        if reason is not None:
            job.move("exit")
            counters.exited += 1
            effects = self._leave(job, self._reply(now, job, reason))
            if reason == "fallback":
                effects += self._probe(now, job, output)
        else:
            effects = self._advance(now, job, output)
        return effects + self._start_next(now) if self._waiting or self._waiting_audits else effects

    def _take_running(self, key: int) -> Job:
        job = self._running
        if job is None or job.key != key:
            raise KeyError(f"no run {key} is under way")
        self._running = None
        return job

    def _decide(self, now: float, job: Job, logits: Sequence[float], guess: Guess) -> Reason | None:
        """Return why to answer at this exit, or None to go on."""
        if job.stage == self._last:
            if job.trace is not None:
                job.trace = (*job.trace, reading(0.0, guess.class_id))
            return "last"
        rule = self._epochs.of(job.epoch)
        job.epoch = rule.plan.epoch
        evidence = Evidence(
            logits=logits,
            confidence=guess.confidence,
            exit=job.stage,
            memory=job.memory,
            left_s=job.budget_s - job.spent(now),
            rest_s=self._rest_s(job),
        )
        score = rule.policy.score(evidence)
        job.memory = score.memory
        if job.trace is not None:
            job.trace = (*job.trace, reading(score.value, guess.class_id))
        if job.audit:
            return None
        if score.value >= rule.threshold(job.stage):
            return "confident"
        leaves_origin = job.own and not self._serves(job.stage + 1)
        if too_late(evidence):
            if leaves_origin:
                self._custody.round_trip.fade()
            return "deadline"
        if leaves_origin and (
            self._custody.circuit.is_open or self._custody.away >= self._origin_settings.pending_items
        ):
            return "fallback"
        return None

    def _rest_s(self, job: Job) -> float:
        """Estimate of the time to an answer from beyond this stage: measured at an origin, a lower bound elsewhere.

        That is what the plan says of the next stage's boards, or the time that this board took for its own stage.
        """
        if job.own and not self._serves(job.stage + 1):
            return self._custody.round_trip.mean_s or 0.0
        told = self._epochs.current.plan.rest_s
        own_s = self._stages[job.stage].compute_s
        return max(own_s, told[job.stage]) if told else own_s

    def _advance(self, now: float, job: Job, output: SegmentOutput) -> list[Effect]:
        assert output.features is not None  # noqa: S101 - a bundle is checked when it is loaded
        self._count(job).forwarded += 1
        if self._serves(job.stage + 1):
            job.stage += 1
            job.tensor = tensors.encode(output.features)
            job.queue_s = 0.0
            self._count(job).received += 1
            if job.audit and self._waiting:
                job.move("yield")
                self._waiting_audits.appendleft(job)
                return []
            job.move("continue")
            self._running = job
            return [Run(key=job.key, stage=job.stage, tensor=job.tensor)]
        job.move("forward")
        effects = self._send_on(now, job, tensors.encode(output.features, self.settings.codec), job.stage + 1)
        return self._leave(job, effects)

    def _send_on(self, now: float, job: Job, tensor: Tensor, stage: int) -> list[Effect]:
        """Publish `tensor` to a stage on another board."""
        message = StageMessage(
            request=job.request,
            origin=job.origin,
            stage=stage,
            attempt=job.attempt,
            revision=self.settings.revision,
            epoch=job.epoch,
            budget_s=job.budget_s,
            spent_s=job.spent(now),
            guess=job.guess,
            memory=job.memory,
            hops=job.hops,
            tensor=tensor,
            fuser=job.fuser,
            eager=job.eager,
            trace=job.trace,
            audit=job.audit,
        )
        if job.own and not job.audit:
            return self._send_own(now, message)
        return [Publish(message=message)]

    def _send_own(self, now: float, message: StageMessage) -> list[Effect]:
        """Publish features of an own input, and expect an outcome."""
        entry = self._custody.open_entry(message.request)
        if entry is None:
            return [Drop(request=message.request, reason="answered")]
        entry.guess, entry.hops = message.guess, message.hops
        self._custody.sent(entry, message, now)
        return [Publish(message=message)]

    def _reply(self, now: float, job: Job, reason: Reason) -> list[Effect]:
        """Answer a job: into the books when this board is its origin, else as an outcome to the origin."""
        if not job.own:
            return [Publish(message=self._outcome(now, job, reason))]
        if job.audit:
            return self._audited(now, self._outcome(now, job, reason))
        entry = self._custody.open_entry(job.request)
        if entry is None:
            return [Drop(request=job.request, reason="answered")]
        entry.guess, entry.hops, entry.epoch, entry.trace = job.guess, job.hops, job.epoch, job.trace
        return self._answer(now, entry, reason)

    def _outcome(self, now: float, job: Job, reason: Reason) -> Outcome:
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
            trace=job.trace if reason == "last" else None,
        )

    def failed(self, now: float, key: int, error: str) -> list[Effect]:
        """The segment that Run(key) or Fuse(key) asked for raised an error."""
        if self._fuser is not None and self._fuser.is_fusing(key):
            return self._fuser.failed(now, key, error)
        job = self._take_running(key)
        job.move("fail")
        self._count(job).failed += 1
        if self.settings.width(job.stage):
            return self._branch_ends(job, error) + self._start_next(now)
        effects = self._leave(job, [*self._reply(now, job, "fallback"), Drop(request=job.request, reason=error)])
        return effects + self._start_next(now)

    def refused(self, now: float, message: StageMessage) -> list[Effect]:
        """The transport will never deliver `message` (too large for the broker, say): answer with what there is."""
        is_own = message.origin == self.settings.device and self.settings.origin is not None
        entry = self._custody.open_entry(message.request) if is_own else None
        if entry is not None:
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
        return self._audited(now, outcome) if is_own and message.audit else [Publish(message=outcome)]

    # ------------------------------------------------------------ a branch of a wide stage

    def _branch_ran(self, now: float, job: Job, output: SegmentOutput) -> list[Effect]:
        """Send the embedding on its way, and keep the features until it is decided what becomes of them."""
        stage, stopped_at = job.stage, job.stopped_at
        counters = self._count(job)
        counters.forwarded += 1
        if stopped_at is not None:
            job.move("stop")
            counters.wasted += stage > stopped_at
            # Counted to here: a second word to stop finds nothing more to count.
            return self._branch_ends(job, "stopped", ran=min(stage, stopped_at))
        message = self._embedding(now, job, output)
        effects: list[Effect] = []
        if self.settings.ends_group(stage):
            job.move("forward")
            effects += self._branch_ends(job, ran=stage)
        else:
            assert output.features is not None  # noqa: S101 - a bundle is checked when it is loaded
            if self.settings.starts_group(stage):
                effects += self._leave(job, [])
            job.guess, job.memory, job.hops, job.trace = None, (), (), None
            job.move("keep")
            job.stage, job.tensor = stage + 1, tensors.encode(output.features)
            for dropped in self._branches.keep(now, job):
                dropped.move("shed")
                self._count(dropped).shed += 1
                effects += self._branch_ends(dropped, "shed")
        # Ahead of the acknowledgement of what it was made from, which may be in the effects.
        effects = [*self._send_embedding(now, message), *effects]
        if job.eager and job.state == "kept":
            effects += self._branch_goes_on(now, job)
        return effects

    def _embedding(self, now: float, job: Job, output: SegmentOutput) -> Embedding:
        assert output.embedding is not None  # noqa: S101 - a runtime gives one for every branch
        assert job.fuser is not None and self.settings.branch is not None  # noqa: S101, PT018 - checked on receipt
        return Embedding(
            request=job.request,
            origin=job.origin,
            fuser=job.fuser,
            device=self.settings.device,
            stage=job.stage,
            branch=self.settings.branch,
            attempt=job.attempt,
            revision=self.settings.revision,
            epoch=job.epoch,
            eager=job.eager,
            budget_s=job.budget_s,
            spent_s=job.spent(now),
            guess=job.guess,
            memory=job.memory,
            hops=job.hops,
            tensor=tensors.encode(output.embedding),
            trace=job.trace,
            audit=job.audit,
        )

    def _send_embedding(self, now: float, message: Embedding) -> list[Effect]:
        if message.fuser != self.settings.device:
            return [Publish(message=message)]
        try:
            return self._receive_embedding(now, message)
        except RemoteProtocolError as error:
            # An origin that was started anew does not know the requests of its earlier life.
            return [Drop(request=message.request, reason=str(error))]

    def _branch_goes_on(self, now: float, job: Job) -> list[Effect]:
        self._branches.take(job)
        job.move("go")
        self._count(job).received += 1
        return self._enqueue(now, job)

    def _branch_ends(self, job: Job, why: str = "", *, ran: int | None = None) -> list[Effect]:
        """End of a job of this board's branch. `ran` is the deepest stage it ran; by default the one before its own."""
        self._branches.end(job, job.stage - 1 if ran is None else ran)
        effects: list[Effect] = [Drop(request=job.request, reason=why)] if why else []
        return self._leave(job, effects) if self._jobs.get(job.delivered) is job else effects

    def _receive_decision(self, now: float, decision: Decision) -> list[Effect]:
        self.settings.check_revision(decision.revision)
        key = (decision.request, decision.attempt, self.settings.group_of(decision.stage))
        job = self._branches.live.get(key)
        if job is None:
            if key not in self._branches.ended:
                raise RemoteProtocolError("request", f"{decision.request} was never at work here")
            if not decision.go:
                self._count_wasted(decision.stage, self._branches.ended[key])
                self._branches.ended[key] = min(decision.stage, self._branches.ended[key])
            return []
        if decision.go:
            return self._branch_goes_on(now, job) if job.state == "kept" and not job.eager else []
        return self._branch_stops(job, decision.stage)

    def _branch_stops(self, job: Job, exit_taken: int) -> list[Effect]:
        self._count_wasted(exit_taken, job.stage - 1)
        if job.state == "running":
            job.stopped_at = exit_taken
            return []
        if job.state == "kept":
            self._branches.take(job)
        elif job.audit:
            self._waiting_audits.remove(job)
        else:
            self._waiting.remove(job)
            self._waiting_bytes -= job.nbytes
        job.move("stop")
        return self._branch_ends(job, ran=min(exit_taken, job.stage - 1))

    def _count_wasted(self, exit_taken: int, last_run: int) -> None:
        for stage in range(exit_taken + 1, last_run + 1):
            if stage in self._stages:
                self._stages[stage].wasted += 1

    # ------------------------------------------------------------ fusing

    def _receive_embedding(self, now: float, message: Embedding) -> list[Effect]:
        if self._fuser is None:
            raise RemoteProtocolError("fuser", f"this board does not fuse for {message.origin}")
        return self._fuser.receive(now, message)

    def _asked(self, request: str) -> bool | None:
        """Whether an own request still needs an answer; None if it is not known."""
        if self.settings.origin is None:
            return None
        if request in self._probes:
            return self._probes[request] is not None
        if self._audits.knows(request):
            return self._audits.is_open(request)
        if self._custody.open_entry(request) is not None:
            return True
        return None if self._custody.remembered(request) is None else False

    def _learned(self, request: str, guess: Guess, hops: tuple[Hop, ...]) -> None:
        """Note the best guess so far, for the deadline."""
        entry = self._custody.open_entry(request)
        if entry is not None:
            entry.guess, entry.hops = guess, hops

    def _fused_answer(self, now: float, outcome: Outcome) -> list[Effect]:
        if outcome.origin != self.settings.device:
            return [Publish(message=outcome)]
        if self._asked(outcome.request) is not True:
            return [Drop(request=outcome.request, reason="answered")]
        return self._receive_outcome(now, outcome)

    def _fused_forward(self, now: float, message: StageMessage) -> list[Effect]:
        is_own = message.origin == self.settings.device and not message.audit
        return self._send_own(now, message) if is_own else [Publish(message=message)]

    def _tell(self, now: float, device: str, decision: Decision) -> list[Effect]:
        if device != self.settings.device:
            return [Tell(device=device, decision=decision)]
        try:
            return self._receive_decision(now, decision)
        except RemoteProtocolError as error:
            return [Drop(request=decision.request, reason=str(error))]

    # ------------------------------------------------------------ answers

    def _answer(
        self, now: float, entry: Entry, reason: Reason, event: Literal["answer", "outcome", "deadline"] = "answer"
    ) -> list[Effect]:
        """Publish the one final result of a request and settle the books, but for the broker's acknowledgement."""
        self._custody.move(entry, event)
        latency_s = now - entry.accepted_at
        self._origin.answered += 1
        self._origin.latencies.append(latency_s)
        self._origin.reasons[reason] = self._origin.reasons.get(reason, 0) + 1
        if entry.guess is not None:
            self._origin.exits[entry.guess.exit] += 1
        result = self._result(entry, entry.guess, reason, latency_s, final=True)
        effects: list[Effect] = [Publish(message=result, token=entry.request)]
        if self._fuser is not None:
            effects += self._fuser.settled(now, entry.request)
        return effects + self._audit(now, entry, reason) if entry.audited else effects

    def _result(
        self,
        of: Entry | Outcome,
        guess: Guess | None,
        reason: Reason,
        latency_s: float,
        *,
        final: bool,
        name: str | None = None,
    ) -> Result:
        """Return the result of an entry, or of an outcome to what was once called `name`."""
        settings = self.settings
        return Result(
            request=of.request,
            site=settings.site,
            pipeline=settings.pipeline,
            origin=settings.device,
            input=of.name if isinstance(of, Entry) else name or "",
            label=None if guess is None else settings.labels[guess.class_id],
            class_id=None if guess is None else guess.class_id,
            confidence=0.0 if guess is None else guess.confidence,
            exit=None if guess is None else guess.exit,
            reason=reason,
            final=final,
            late=not final,
            attempt=of.attempt,
            latency_s=latency_s,
            epoch=of.epoch,
            model=settings.model,
            revision=settings.revision,
            hops=of.hops,
            missing=of.missing,
        )

    # ------------------------------------------------------------ audits

    def _audit(self, now: float, entry: Entry, reason: Reason) -> list[Effect]:
        """Find out what all exits say of an input that was drawn, now that it is answered."""
        criterion = self._epochs.of(entry.epoch).plan.criterion
        if reason == "last" and self._audits.is_complete(entry.trace):
            return [Publish(message=self._audits.row(entry.request, entry, criterion))]
        audit = Audit(
            request=self._request_id(),
            of=entry.request,
            epoch=entry.epoch,
            criterion=criterion,
            tensor=entry.tensor,
            due_at=now + AUDIT_BUDGET_S,
        )
        if not self._audits.open(audit):
            return [Publish(message=self._audits.lost_row(entry.request, entry.epoch, criterion))]
        return self._begin(now, self._audit_job(now, audit))

    def _audited(self, now: float, outcome: Outcome) -> list[Effect]:
        """An audit has come to its end, or to nothing. So has a probe that never left this board."""
        is_complete = self._audits.is_complete(outcome.trace)
        audit = self._audits.close(outcome.request)
        if audit is None:
            if outcome.request in self._probes:
                self._probes[outcome.request] = None
            return [Drop(request=outcome.request, reason="late")]
        # A board that did not have the epoch has decided by its own, which may be of another criterion.
        if is_complete and self._epochs.of(outcome.epoch).plan.criterion == audit.criterion:
            return [Publish(message=self._audits.row(audit.of, outcome, audit.criterion))]
        return self._audit_lost(now, audit)

    def _audit_lost(self, now: float, audit: Audit) -> list[Effect]:
        row = self._audits.lost_row(audit.of, audit.epoch, audit.criterion)
        effects: list[Effect] = [Publish(message=row)]
        return effects if self._fuser is None else effects + self._fuser.settled(now, audit.request)

    # ------------------------------------------------------------ probes

    def _probe(self, now: float, job: Job, output: SegmentOutput) -> list[Effect]:
        """Send a copy of what was answered here instead, if it is time to see whether the boards beyond are back."""
        if not job.own or job.audit or output.features is None or not self._custody.circuit.wants_probe(now):
            return []
        probe = self._unasked_job(
            now, self._probe_id(now), job.epoch, PROBE_BUDGET_S, job.tensor, fuser=job.fuser, trace=None
        )
        probe.guess, probe.memory = job.guess, job.memory
        return self._send_on(now, probe, tensors.encode(output.features, self.settings.codec), job.stage + 1)

    def _probe_fuser(self, now: float, entry: Entry) -> list[Effect]:
        """Send a copy of an input by way of the board that fused before it fell silent."""
        fuser = self._origin_settings.fuser
        probe = self._unasked_job(
            now, self._probe_id(now), entry.epoch, PROBE_BUDGET_S, entry.tensor, fuser=fuser, trace=None
        )
        return self._begin(now, probe)

    def _probe_id(self, now: float) -> str:
        request = self._request_id()
        self._probes[request] = now
        if len(self._probes) > PROBES:
            del self._probes[next(iter(self._probes))]
        return request

    def _probed(self, now: float, outcome: Outcome) -> list[Effect]:
        """A probe came back: it proves something if it went all the way, and in time for an answer."""
        sent_at, self._probes[outcome.request] = self._probes[outcome.request], None
        if sent_at is not None and outcome.reason == "last" and now - sent_at <= self._origin_settings.deadline_s:
            self._custody.circuit.answered()
            if any(hop.device == self._origin_settings.fuser for hop in outcome.hops):
                self._fuser_circuit.answered()
        return []

    # ------------------------------------------------------------ before the end

    def give_up_audits(self, now: float) -> list[Effect]:
        """End all audits under way as lost: this board is about to stop."""
        effects: list[Effect] = []
        while self.settings.origin is not None and (audit := self._audits.pop()) is not None:
            effects += self._audit_lost(now, audit)
        return effects

    # ------------------------------------------------------------ the connection

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
        due = _NEVER
        if self.settings.origin is not None:
            due = self._custody.agenda.next_due()
            if self._audits:
                due = min(due, self._audits.next_due())
        if self._fuser is not None:
            due = min(due, self._fuser.next_due())
        return min(due, self._branches.next_due()) if self._branches.kept else due

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: deadlines, silent hops and branches, features to forget, inputs to restore."""
        effects: list[Effect] = []
        while self._restore and self.room() > 0:
            accepted = self._restore.pop()
            effects += self.accept(now, accepted.name, accepted.tensor, request=accepted.request, attempt=2)[1]
        if self.settings.origin is not None:
            while (entry := self._custody.pop_due(now)) is not None:
                effects += self._due(now, entry)
            while (audit := self._audits.pop_due(now)) is not None:
                effects += self._audit_lost(now, audit)
        if self._fuser is not None:
            effects += self._fuser.tick(now)
        while (job := self._branches.pop_due(now)) is not None:
            job.move("expire")
            self._count(job).expired += 1
            effects += self._branch_ends(job, "expired")
        return effects

    def _due(self, now: float, entry: Entry) -> list[Effect]:
        if now < entry.deadline_at:
            if entry.attempt == 1:
                return self._resend(now, entry)
            self._custody.unheard(entry, now)
            return []
        reason = self._custody.reason_of_silence(entry)
        if entry.state == "away":
            self._custody.circuit.failed(now)
        return self._answer(now, entry, reason, "deadline")

    def _resend(self, now: float, entry: Entry) -> list[Effect]:
        assert entry.message is not None  # noqa: S101 - kept while the entry is away
        message = replace(entry.message, attempt=2, spent_s=min(entry.message.budget_s, now - entry.accepted_at))
        if message.fuser is not None:
            # The board that fuses may be what fell silent.
            if message.fuser != self.settings.device:
                self._fuser_circuit.failed(now)
            message = replace(message, fuser=self.settings.device)
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

    def books(self) -> dict[str, int]:
        """How much is in each book that is empty when nothing is at work: not in the bounded memories of what ended."""
        books = {
            "jobs": len(self._jobs),
            "waiting": len(self._waiting) + len(self._waiting_audits),
            "waiting_bytes": self._waiting_bytes,
            "running": int(self._running is not None),
            "branches": len(self._branches.live),
            "kept": len(self._branches.kept),
            "kept_bytes": self._branches.kept_bytes,
            "kept_times": len(self._branches.agenda),
            "restore": len(self._restore),
        }
        if self._fuser is not None:
            books |= self._fuser.books()
        if self.settings.origin is not None:
            books |= {
                "custody": len(self._custody.entries),
                "custody_times": len(self._custody.agenda),
                "unanswered": self._custody.unanswered,
                "away": self._custody.away,
                "audits": len(self._audits),
            }
        return books

    def idle(self) -> bool:
        """Whether nothing is at work, waiting or in custody."""
        at_work = self._running is not None or self._waiting or self._branches.live or self._fuser
        return not (at_work or self.pending or self._restore)

    # ------------------------------------------------------------ telemetry

    @property
    def plan(self) -> Plan:
        """The plan in force; epoch 0 is the bundle's calibrated defaults."""
        return self._epochs.current.plan

    def sent(self, stage: int, nbytes: int, *, audit: bool) -> None:
        """Count the bytes of a message that the driver published for stage `stage`."""
        counters = (self._audit_stages if audit else self._stages).get(stage - 1)
        if counters is not None:
            counters.bytes_out += nbytes

    def telemetry(self) -> PipelineTelemetry:
        """Report the counters since boot and the means since the last report."""
        return PipelineTelemetry(
            pipeline=self.settings.pipeline,
            epoch=self._epochs.current.plan.epoch,
            revision=self.settings.revision,
            stages=tuple(self._stage_telemetry(k, counters) for k, counters in self._stages.items()),
            origin=self._origin_telemetry() if self.settings.origin else None,
            fusions=() if self._fuser is None else self._fuser.telemetry(),
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
            wasted=counters.wasted,
            audited=self._audit_stages[k].runs,
        )
        counters.period_runs, counters.period_queue_s, counters.period_compute_s = 0, 0.0, 0.0
        return report

    def _origin_telemetry(self) -> OriginTelemetry:
        origin, ordered = self._origin, sorted(self._origin.latencies)
        origin.latencies.clear()
        return OriginTelemetry(
            accepted=origin.accepted,
            answered=origin.answered,
            shed=origin.shed,
            dropped=origin.dropped,
            resent=origin.resent,
            late=origin.late,
            pending=len(self._custody.entries),
            exits=tuple(origin.exits),
            reasons=dict(origin.reasons),
            latency_p50_s=_quantile(ordered, 0.50),
            latency_p95_s=_quantile(ordered, 0.95),
            latency_max_s=_quantile(ordered, 1.0),
            audits_drawn=self._audits.drawn,
            audits_lost=self._audits.lost,
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
        masked=settings.masked,
    )


def transition_tables() -> str:
    """Return the transition tables as text, one line a transition."""
    lines = ["A job on a board (a delivery, or an input of its own):"]
    lines += [f"  {state:<9} {event:<9} -> {after}" for (state, event), after in JOB_TRANSITIONS.items()]
    lines += ["The embeddings of a request at a wide stage's exit:"]
    lines += [f"  {state:<9} {event:<9} -> {after}" for (state, event), after in GATHERING_TRANSITIONS.items()]
    lines += ["An input in the custody of its origin:"]
    lines += [f"  {state:<9} {event:<9} -> {after}" for (state, event), after in CUSTODY_TRANSITIONS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(transition_tables())  # noqa: T201
