"""The branch worker: runs this board's branch of wide stages, and keeps its features until it hears of a decision."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

from distree import tensors
from distree.errors import RESTRICT, RemoteProtocolError
from distree.messages.request import Decision, Embedding, Hop, Progress, StageMessage
from distree.node.counters import Counters
from distree.node.deliveries import Deliveries
from distree.node.effects import Drop, Output, Send
from distree.node.inbox import Inbox
from distree.node.job import NOTHING_YET, Delivered, Job
from distree.node.settings import NodeSettings
from distree.node.timers import Agenda
from distree.segments import SegmentOutput

MAX_ENDED = 1024
"""Ended jobs of a branch that are remembered, to tell a late decision from one on an unknown request."""


class BranchWorker:
    """This board's branch of wide stages: the jobs that are not at their end, and the memory of those that are.

    Features are kept up to `inbox_max_messages` and `inbox_max_bytes`, each until its budget has run out.
    """

    def __init__(self, settings: NodeSettings, inbox: Inbox, keys: Iterator[int]) -> None:
        self._settings = settings
        self._inbox = inbox
        self._deliveries = Deliveries(settings, keys)
        self._live: dict[Delivered, Job] = {}
        self._kept: OrderedDict[Delivered, Job] = OrderedDict()
        self._kept_bytes = 0
        self._ended: OrderedDict[Delivered, int] = OrderedDict()
        """The deepest stage that each job ran, -1 for none."""
        self._agenda: Agenda[Delivered] = Agenda()
        self.counters = Counters(k for k in settings.stages if settings.width(k))

    @property
    def has_work(self) -> bool:
        """Whether a job is not at its end."""
        return bool(self._live)

    def books(self) -> dict[str, int]:
        """How much is in each book, but for the bounded memories of what has ended."""
        return {
            "branch_jobs": len(self._deliveries),
            "branches": len(self._live),
            "kept": len(self._kept),
            "kept_bytes": self._kept_bytes,
            "kept_times": len(self._agenda),
        }

    # ------------------------------------------------------------ in

    def receive(self, now: float, message: StageMessage, delivery: object) -> list[Output]:
        """Take a stage message from the network; RemoteProtocolError for one that does not belong here."""
        if not self._settings.starts_group(message.stage):
            raise RemoteProtocolError(
                "stage", f"stage {message.stage} accepts features only from its own board", RESTRICT
            )
        if message.context.fuser is None:
            raise RemoteProtocolError(
                "fuser", f"stage {message.stage} is wide, but no board is named to fuse it", RESTRICT
            )
        self._deliveries.check(message)
        counters = self.counters.at(message.stage, audit=message.context.audit)
        repeated = self._deliveries.repeated(message, delivery)
        if repeated is not None:
            counters.duplicate += 1
            return repeated
        counters.received += 1
        job, outputs = self._deliveries.begin(now, message, delivery)
        self._live[job.delivered] = job
        return [*outputs, job]

    def knows(self, message: StageMessage) -> bool:
        """Whether a message is at work here, or has been."""
        return self._deliveries.knows(message)

    def decided(self, decision: Decision, sender: str) -> list[Output]:
        """Take a decision: go on, or stop. RemoteProtocolError for a request that was never at work here.

        Only the board that fuses the request may decide; `sender` is the one that does.
        """
        key = (decision.token, self._settings.group_of(decision.stage))
        job = self._live.get(key)
        if job is None:
            if key not in self._ended:
                raise RemoteProtocolError("request", f"request {decision.request} is not known here", RESTRICT)
            if not decision.go:
                self._count_wasted(decision.stage, self._ended[key])
                self._ended[key] = min(decision.stage, self._ended[key])
            return []
        if sender != job.context.fuser:
            raise RemoteProtocolError("sender", f"{decision.request}: {sender} does not fuse it", RESTRICT)
        if not decision.go:
            return self._stop(job, decision.stage)
        return self.go_on(job) if job.state == "kept" and not job.context.eager else []

    def go_on(self, job: Job) -> list[Output]:
        """Go on with the features that were kept."""
        self._take(job)
        job.move("go")
        self.counters.of(job).received += 1
        return [job]

    def _stop(self, job: Job, exit_taken: int) -> list[Output]:
        self._count_wasted(exit_taken, job.stage - 1)
        if job.state == "running":
            job.stopped_at = exit_taken
            return []
        if job.state == "kept":
            self._take(job)
        else:
            self._inbox.remove(job)
        job.move("stop")
        return self._end(job, ran=min(exit_taken, job.stage - 1))

    def _count_wasted(self, exit_taken: int, last_run: int) -> None:
        for stage in range(exit_taken + 1, last_run + 1):
            if stage in self._settings.stages:
                self.counters.at(stage).wasted += 1

    # ------------------------------------------------------------ a run is over

    def completed(self, now: float, job: Job, output: SegmentOutput, took_s: float) -> list[Output]:
        """Send the embedding on its way, and keep the features until it is decided what becomes of them."""
        stage, stopped_at = job.stage, job.stopped_at
        counters = self.counters.of(job)
        counters.ran(job.queue_s, took_s)
        counters.forwarded += 1
        if stopped_at is not None:
            job.move("stop")
            counters.wasted += stage > stopped_at
            # Counted to here: a second word to stop finds nothing more to count.
            return self._end(job, "stopped", ran=min(stage, stopped_at))
        hop = Hop(device=self._settings.device, stage=stage, queue_s=job.queue_s, compute_s=took_s)
        # Ahead of the acknowledgement of what it was made from.
        outputs: list[Output] = [self._embedding(now, job, output, hop)]
        if self._settings.ends_group(stage):
            job.move("forward")
            return [*outputs, *self._end(job, ran=stage)]
        assert output.features is not None  # noqa: S101 - a bundle is checked when it is loaded
        if self._settings.starts_group(stage):
            outputs += self._deliveries.end(job)
        # The board that fuses knows from here on what came before.
        job.progress = replace(NOTHING_YET, spent_s=job.progress.spent_s)
        job.move("keep")
        job.stage, job.tensor = stage + 1, tensors.encode(output.features)
        for dropped in self._keep(now, job):
            outputs += self.shed(now, dropped)
        return [*outputs, job] if job.context.eager else outputs

    def _embedding(self, now: float, job: Job, output: SegmentOutput, hop: Hop) -> Send:
        assert output.embedding is not None  # noqa: S101 - a runtime gives one for every branch
        assert self._settings.branch is not None  # noqa: S101 - a board with wide stages has a branch
        progress = job.progress
        message = Embedding(
            context=job.context,
            progress=Progress(
                spent_s=job.spent(now),
                guess=progress.guess,
                memory=progress.memory,
                hops=(*progress.hops, hop),
                trace=progress.trace,
            ),
            stage=job.stage,
            branch=self._settings.branch,
            device=self._settings.device,
            tensor=tensors.encode(output.embedding),
        )
        return Send(message=message, to=job.context.fuser)

    def failed(self, _now: float, job: Job, error: str) -> list[Output]:
        """The segment that the job asked for raised an error."""
        job.move("fail")
        self.counters.of(job).failed += 1
        return self._end(job, error)

    # ------------------------------------------------------------ out of the inbox, or of what is kept

    def shed(self, _now: float, job: Job) -> list[Output]:
        """There was no room for a job, or for its features."""
        job.move("shed")
        self.counters.of(job).shed += 1
        return self._end(job, "shed")

    def expired(self, job: Job) -> list[Output]:
        """A job's budget ran out while it waited."""
        job.move("expire")
        self.counters.of(job).expired += 1
        return self._end(job, "expired")

    def next_due(self) -> float:
        """When `tick` is next worth a call; infinity when nothing is kept."""
        return self._agenda.next_due()

    def tick(self, now: float) -> list[Output]:
        """Forget the features that have outlived their budget."""
        outputs: list[Output] = []
        while (key := self._agenda.pop(now)) is not None:
            job = self._kept[key]
            self._take(job)
            outputs += self.expired(job)
        return outputs

    # ------------------------------------------------------------ books

    def _keep(self, now: float, job: Job) -> list[Job]:
        """Keep a job's features; return the jobs that must be dropped for them, audits before others, oldest first."""
        self._kept[job.delivered] = job
        self._kept_bytes += job.nbytes
        self._agenda.set(job.delivered, now + job.left(now))
        dropped = []
        while len(self._kept) > self._settings.inbox_max_messages or self._kept_bytes > self._settings.inbox_max_bytes:
            oldest = next(iter(self._kept.values()))
            first = next((kept for kept in self._kept.values() if kept.context.audit), oldest)
            self._take(first)
            dropped.append(first)
        return dropped

    def _take(self, job: Job) -> None:
        """Take a job's features out of what is kept."""
        del self._kept[job.delivered]
        self._agenda.drop(job.delivered)
        self._kept_bytes -= job.nbytes

    def _end(self, job: Job, why: str = "", *, ran: int | None = None) -> list[Output]:
        """End of a job. `ran` is the deepest stage it ran; by default the one before its own."""
        self._live.pop(job.delivered, None)
        self._ended[job.delivered] = job.stage - 1 if ran is None else ran
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        outputs: list[Output] = [Drop(request=job.context.request, reason=why)] if why else []
        return [*outputs, *self._deliveries.end(job)]
