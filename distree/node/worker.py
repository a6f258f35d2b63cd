"""The stage worker: runs plain stages, and decides at their exits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distree import criteria, tensors
from distree.criteria.base import ExitEvidence
from distree.messages.request import Guess, Hop, Outcome, Progress, Reason, StageMessage
from distree.node.counters import Counters
from distree.node.deliveries import Deliveries
from distree.node.effects import Drop, Output, Send
from distree.node.exits import CriterionCache, reading, too_late
from distree.node.job import Job
from distree.node.settings import NodeSettings
from distree.segments import SegmentOutput


class StageWorker:
    """The plain stages of one board. What it answers goes to the origin, what it does not to the next stage."""

    def __init__(self, settings: NodeSettings, criteria: CriterionCache, keys: Iterator[int]) -> None:
        self._settings = settings
        self._criteria = criteria
        self._deliveries = Deliveries(settings, keys)
        self._last = settings.last
        self.stages = frozenset(k for k in settings.stages if not settings.width(k))
        self.counters = Counters(sorted(self.stages))

    def books(self) -> dict[str, int]:
        """How much is in each book, but for the bounded memories of what has ended."""
        return {"jobs": len(self._deliveries)}

    # ------------------------------------------------------------ in

    def receive(self, now: float, message: StageMessage, delivery: object) -> list[Output]:
        """Take a stage message from the network; RemoteProtocolError for one that does not belong here."""
        self._deliveries.check(message)
        self._criteria.check(message.context.rule)
        counters = self.counters.at(message.stage, audit=message.context.audit)
        repeated = self._deliveries.repeated(message, delivery)
        if repeated is not None:
            counters.duplicate += 1
            return repeated
        counters.received += 1
        job, outputs = self._deliveries.begin(now, message, delivery)
        return [*outputs, job]

    def knows(self, message: StageMessage) -> bool:
        """Whether a message is at work here, or has been."""
        return self._deliveries.knows(message)

    def receive_local(self, now: float, message: StageMessage) -> Job:
        """Take a stage message from this board itself."""
        job = self._deliveries.job(now, message)
        self.counters.of(job).received += 1
        return job

    # ------------------------------------------------------------ a run is over

    def completed(self, now: float, job: Job, output: SegmentOutput, took_s: float) -> list[Output]:
        """The segment that the job asked for gave `output` after `took_s` seconds of computing."""
        counters = self.counters.of(job)
        counters.ran(job.queue_s, took_s)
        class_id, confidence = criteria.confidence(output.logits)
        guess = Guess(exit=job.stage, class_id=class_id, confidence=confidence)
        reason = self._decide(now, job, output.logits, guess, took_s)
        if reason is not None:
            job.move("exit")
            counters.exited += 1
            return [self._answer(now, job, reason), *self._deliveries.end(job)]
        assert output.features is not None  # noqa: S101 - a bundle is checked when it is loaded
        counters.forwarded += 1
        if job.stage + 1 in self.stages and self._stays(job):
            job.stage += 1
            job.tensor = tensors.encode(output.features)
            self.counters.of(job).received += 1
            return [job]
        job.move("forward")
        message = StageMessage(
            context=job.context,
            progress=job.progress,
            stage=job.stage + 1,
            tensor=tensors.encode(output.features, self._settings.codec),
        )
        return [Send(message=message), *self._deliveries.end(job)]

    def _stays(self, job: Job) -> bool:
        """Whether a job's next stage is run here too, as no other board is named for it."""
        stop = job.context.stop_at(job.stage + 1)
        return stop is None or stop.boards == (self._settings.device,)

    def _decide(self, now: float, job: Job, logits: Sequence[float], guess: Guess, took_s: float) -> Reason | None:
        """Note what the exit says; return why to answer there, or None to go on."""
        context, before, stage = job.context, job.progress, job.stage
        hop = Hop(device=self._settings.device, stage=stage, queue_s=job.queue_s, compute_s=took_s)
        spent_s = job.spent(now)
        evidence = None
        value, memory = 0.0, before.memory
        if stage < self._last:
            evidence = ExitEvidence(
                logits=logits,
                confidence=guess.confidence,
                exit=stage,
                memory=memory,
                left_s=context.budget_s - spent_s,
                rest_s=self._rest_s(job),
            )
            score = self._criteria.of(context.rule.criterion).score(evidence)
            value, memory = score.value, score.memory
        job.progress = Progress(
            spent_s=spent_s,
            guess=guess,
            memory=memory,
            hops=(*before.hops, hop),
            trace=None if before.trace is None else (*before.trace, reading(value, guess.class_id)),
        )
        job.arrived_at = now
        if evidence is None:
            return "last"
        if context.audit:
            return None
        if value >= context.rule.thresholds[stage]:
            return "confident"
        return "deadline" if too_late(evidence) else None

    def _rest_s(self, job: Job) -> float:
        """Lower bound of the time to an answer from beyond this stage.

        That is what the rule says of the next stage's boards, or the time that this board took for its own stage. Of
        what leaves the board on which it was accepted, the origin knows better.
        """
        if job.context.origin == self._settings.device and job.stage + 1 not in self.stages:
            return 0.0
        told = job.context.rule.rest_s
        own_s = self.counters.at(job.stage).compute_s
        return max(own_s, told[job.stage]) if told else own_s

    def failed(self, now: float, job: Job, error: str) -> list[Output]:
        """The segment that the job asked for raised an error."""
        job.move("fail")
        self.counters.of(job).failed += 1
        return self._ended(now, job, "fallback", error)

    # ------------------------------------------------------------ out of the inbox

    def shed(self, now: float, job: Job) -> list[Output]:
        """The inbox had no room for a job."""
        job.move("shed")
        self.counters.of(job).shed += 1
        return self._ended(now, job, "shed", "shed")

    def expired(self, job: Job) -> list[Output]:
        """A job's budget ran out while it waited: its origin has answered without it."""
        job.move("expire")
        self.counters.of(job).expired += 1
        return [Drop(request=job.context.request, reason="expired"), *self._deliveries.end(job)]

    def answered_here(self, message: StageMessage) -> None:
        """The origin, this board, has answered instead of sending `message` on: count it as an exit."""
        counters = self.counters.at(message.stage - 1)
        counters.forwarded -= 1
        counters.exited += 1

    def _ended(self, now: float, job: Job, reason: Reason, why: str) -> list[Output]:
        drop = Drop(request=job.context.request, reason=why)
        return [self._answer(now, job, reason), drop, *self._deliveries.end(job)]

    def _answer(self, now: float, job: Job, reason: Reason) -> Send:
        progress = job.progress
        outcome = Outcome(
            request=job.context.request,
            token=job.context.token,
            reason=reason,
            guess=progress.guess,
            spent_s=job.spent(now),
            hops=progress.hops,
            trace=progress.trace if reason == "last" else None,
        )
        return Send(message=outcome, to=job.context.origin)
