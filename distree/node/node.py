"""StageNode: one pipeline on one board, as a state machine without clock, socket, thread or sleep.

Events come in as method calls with the time `now` (monotonic seconds); each returns the effects that the driver is
to carry out, in order. The same code runs on a board over MQTT, in tests over a fake link, and under a simulated
clock.

The node is made of parts, each with its own state: the origin, the inbox, the workers for plain stages and for a
branch, the fuser. A part knows no other; it returns what is to be done and what is to be sent, and the node alone
delivers what is for another part of the same board.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from distree.errors import ConfigError, RemoteProtocolError
from distree.messages.plan import Plan
from distree.messages.request import Decision, Embedding, Outcome, StageMessage, Tensor
from distree.messages.telemetry import PipelineTelemetry
from distree.node.branch import BranchWorker
from distree.node.effects import Acknowledge, Drop, Effect, Learned, Output, Publish, Send, Settled
from distree.node.exits import Criteria, Plans
from distree.node.fuser import Fuser
from distree.node.inbox import Inbox
from distree.node.job import Job
from distree.node.origin import Accepted, Origin
from distree.node.settings import NodeSettings
from distree.node.worker import StageWorker
from distree.protocols import SegmentOutput

_NEVER = float("inf")


class StageNode:
    """One pipeline on one board: stages it serves, and the inputs for which it is the origin.

    `restore` takes what `snapshot` of an earlier run returned: those inputs are run again and answered. `answered`
    names requests that an earlier run answered, so that the same again is dropped.
    """

    def __init__(self, settings: NodeSettings, restore: Sequence[Accepted] = (), answered: Sequence[str] = ()) -> None:
        self.settings = settings
        keys = itertools.count(1)
        criteria = Criteria(settings)
        self._plans = Plans(settings, criteria)
        self._inbox = Inbox(settings.inbox_items, settings.inbox_bytes)
        self._worker = StageWorker(settings, criteria, keys)
        self._branch = BranchWorker(settings, self._inbox, keys)
        self._fuser = Fuser(settings, criteria, self._plans, keys) if settings.gathers else None
        self._origin: Origin | None = None
        if settings.origin is not None:
            self._origin = Origin(settings, settings.origin, self._plans, answered)
        self._workers: dict[int, StageWorker | BranchWorker] = {
            k: self._branch if settings.width(k) else self._worker for k in settings.stages
        }
        self._restore = list(restore)
        self._deliveries: dict[type, Callable[[float, Any], Sequence[Effect]]] = {
            Send: self._deliver,
            Job: self._queue,
            Learned: self._learn,
            Settled: self._settle,
        }

    # ------------------------------------------------------------ inputs of this origin

    @property
    def pending(self) -> int:
        """Inputs in custody: accepted, and their result not yet acknowledged by the broker."""
        return 0 if self._origin is None else self._origin.pending

    def holds(self, request: str) -> bool:
        """Whether `request` is in custody."""
        return self._origin is not None and self._origin.holds(request)

    def room(self) -> int:
        """How many more inputs `accept` takes before it sheds; sources that can wait look here first."""
        if self._origin is None:
            return 0
        return min(self._origin.room(), self.settings.inbox_items - len(self._inbox))

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
        if self._origin is None:
            raise ConfigError(f"{self.settings.device} is no origin of pipeline {self.settings.pipeline}")
        request, outputs = self._origin.accept(
            now, name, tensor, deadline_s=deadline_s, request=request, attempt=attempt
        )
        return request, self._carry(now, outputs)

    def turned_away(self, *, told: bool) -> None:
        """Count an input that was turned away: its result is with the broker, or was dropped."""
        if self._origin is not None:
            self._origin.turned_away(told=told)

    # ------------------------------------------------------------ messages

    def receive(
        self, now: float, message: StageMessage | Embedding | Decision | Outcome | Plan, delivery: object
    ) -> list[Effect]:
        """Take a decoded message; raise RemoteProtocolError for one that does not belong here.

        `delivery` comes back in an Acknowledge, at once or when the work on it is handed over.
        """
        if isinstance(message, StageMessage):
            return self._carry(now, self._receive_stage(now, message, delivery))
        outputs: Sequence[Output] = ()
        if isinstance(message, Plan):
            self._plans.receive(message)
        else:
            outputs = self._receive(now, message)
        effects = self._carry(now, outputs)
        effects.append(Acknowledge(delivery=delivery))
        return effects

    def _receive_stage(self, now: float, message: StageMessage, delivery: object) -> list[Output]:
        worker = self._workers.get(message.stage)
        if worker is None:
            raise RemoteProtocolError("stage", f"stage {message.stage} is not served here")
        return worker.receive(now, message, delivery)

    def _receive(self, now: float, message: Embedding | Decision | Outcome) -> list[Output]:
        if isinstance(message, Outcome):
            if self._origin is None:
                raise RemoteProtocolError("origin", f"this board does not answer for {message.request}")
            return self._origin.receive(now, message)
        if isinstance(message, Decision):
            return self._branch.decided(message)
        if self._fuser is None:
            raise RemoteProtocolError("fuser", f"this board does not fuse for {message.context.origin}")
        is_wanted: bool | None = True
        if message.context.origin == self.settings.device:
            is_wanted = None if self._origin is None else self._origin.is_wanted(message.context.request)
        return self._fuser.receive(now, message, is_wanted=is_wanted)

    # ------------------------------------------------------------ inference done

    def completed(self, now: float, key: int, output: SegmentOutput, took_s: float) -> list[Effect]:
        """The segment that Run(key) or Fuse(key) asked for gave `output` after `took_s` seconds of computing."""
        if self._fuser is not None and self._fuser.is_fusing(key):
            return self._carry(now, self._fuser.completed(now, key, output, took_s))
        job = self._inbox.finish(key)
        effects = self._carry(now, self._workers[job.stage].completed(now, job, output, took_s))
        return effects + self._start_next(now) if self._inbox.has_waiting else effects

    def failed(self, now: float, key: int, error: str) -> list[Effect]:
        """The segment that Run(key) or Fuse(key) asked for raised an error."""
        if self._fuser is not None and self._fuser.is_fusing(key):
            return self._carry(now, self._fuser.failed(now, key, error))
        job = self._inbox.finish(key)
        return self._carry(now, self._workers[job.stage].failed(now, job, error)) + self._start_next(now)

    def refused(self, now: float, message: StageMessage) -> list[Effect]:
        """The transport will never deliver `message` (too large for the broker, say): answer with what there is."""
        context, progress = message.context, message.progress
        if self._origin is not None and context.origin == self.settings.device and not context.audit:
            return self._carry(now, self._origin.refused(now, message))
        outcome = Outcome(
            request=context.request,
            token=context.token,
            reason="fallback",
            guess=progress.guess,
            spent_s=progress.spent_s,
            hops=progress.hops,
        )
        return self._carry(now, [Send(message=outcome, to=context.origin)])

    # ------------------------------------------------------------ delivery on this board

    def _carry(self, now: float, outputs: Sequence[Output]) -> list[Effect]:
        """Deliver what is for parts of this board, and return the effects for the driver, in order."""
        effects: list[Effect] = []
        for output in outputs:
            deliver = self._deliveries.get(type(output))
            if deliver is None:
                effects.append(output)  # type: ignore[arg-type]
            else:
                effects += deliver(now, output)
        return effects

    def _deliver(self, now: float, send: Send) -> Sequence[Effect]:
        message, to = send.message, send.to
        if isinstance(message, StageMessage):
            return self._deliver_stage(now, message)
        if to != self.settings.device:
            return [Publish(message=message, to=to)]
        if isinstance(message, Outcome) and self._origin is not None and not self._origin.is_wanted(message.request):
            return [Drop(request=message.request, reason="answered")]
        try:
            outputs = self._receive(now, message)
        except RemoteProtocolError as error:
            # An origin that was started anew does not know the requests of its earlier life.
            request = message.context.request if isinstance(message, Embedding) else message.request
            return [Drop(request=request, reason=str(error))]
        return self._carry(now, outputs)

    def _deliver_stage(self, now: float, message: StageMessage) -> Sequence[Effect]:
        """Take features on to a plain stage of this board; branches get theirs from the broker, wherever they are."""
        if message.stage in self._worker.stages:
            return self._queue(now, self._worker.take(now, message))
        if self._origin is None or message.context.origin != self.settings.device:
            return [Publish(message=message)]
        is_on_its_way, outputs = self._origin.send(now, message)
        if not is_on_its_way:
            self._worker.answered_here(message)
        return self._carry(now, outputs)

    def _queue(self, now: float, job: Job) -> Sequence[Effect]:
        """Give a job to the inbox: a new one, one that has run and goes on, or one whose branch is eager."""
        if job.state == "running":
            run = self._inbox.go_on(job)
            return [] if run is None else [run]
        if job.state == "kept":
            return self._carry(now, self._branch.go_on(job))
        if job.state != "waiting":
            return []  # what was sent before it has stopped it
        run, overflow = self._inbox.put(now, job)
        if run is not None:
            return [run]
        return [effect for shed in overflow for effect in self._carry(now, self._workers[shed.stage].shed(now, shed))]

    def _start_next(self, now: float) -> list[Effect]:
        """Start the oldest job that is still worth it."""
        run, expired = self._inbox.start_next(now)
        effects: list[Effect] = []
        for job in expired:
            effects += self._carry(now, self._workers[job.stage].expired(job))
        return effects if run is None else [*effects, run]

    def _learn(self, _now: float, learned: Learned) -> Sequence[Effect]:
        if self._origin is not None:
            self._origin.learned(learned.request, learned.progress)
        return ()

    def _settle(self, now: float, settled: Settled) -> Sequence[Effect]:
        return () if self._fuser is None else self._carry(now, self._fuser.settled(settled.request))

    # ------------------------------------------------------------ the connection

    def reconnected(self) -> None:
        """This board is connected again: what went unanswered may have been its own connection's fault."""
        if self._origin is not None:
            self._origin.reconnected()

    def published(self, request: str) -> bool:
        """The broker has the result of `request`; True if its entry was closed by this."""
        return self._origin is not None and self._origin.published(request)

    # ------------------------------------------------------------ time

    def notify_at(self) -> float:
        """When the node next wants a tick; infinity if never."""
        if self._restore and self.room() > 0:
            return 0.0
        due = self._branch.next_due()
        if self._origin is not None:
            due = min(due, self._origin.next_due())
        return due if self._fuser is None else min(due, self._fuser.next_due())

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: deadlines, silent hops and branches, features to forget, inputs to restore."""
        effects: list[Effect] = []
        while self._restore and self.room() > 0:
            accepted = self._restore.pop()
            effects += self.accept(now, accepted.name, accepted.tensor, request=accepted.request, attempt=2)[1]
        for part in (self._origin, self._fuser, self._branch):
            if part is not None:
                effects += self._carry(now, part.tick(now))
        return effects

    def give_up_audits(self, now: float) -> list[Effect]:
        """End all audits under way as lost: this board is about to stop."""
        return [] if self._origin is None else self._carry(now, self._origin.give_up_audits())

    def snapshot(self) -> tuple[Accepted, ...]:
        """Return the inputs that are not yet answered, as plain data for `restore`."""
        return () if self._origin is None else (*self._origin.snapshot(), *self._restore)

    def books(self) -> dict[str, int]:
        """How much is in each book that is empty when nothing is at work: not in the bounded memories of what ended."""
        books = {"restore": len(self._restore)}
        for part in (self._inbox, self._worker, self._branch, self._fuser, self._origin):
            if part is not None:
                books |= part.books()
        return books

    def idle(self) -> bool:
        """Whether nothing is at work, waiting or in custody."""
        fuses = self._fuser is not None and self._fuser.has_work
        return not (self._inbox.has_work or self._branch.has_work or fuses or self.pending or self._restore)

    # ------------------------------------------------------------ telemetry

    @property
    def plan(self) -> Plan:
        """The plan in force; epoch 0 is the bundle's calibrated defaults."""
        return self._plans.current

    def sent(self, stage: int, nbytes: int, *, audit: bool) -> None:
        """Count the bytes of a message that the driver published for stage `stage`."""
        worker = self._workers.get(stage - 1)
        if worker is not None:
            worker.counters.at(stage - 1, audit=audit).bytes_out += nbytes

    def telemetry(self) -> PipelineTelemetry:
        """Report the counters since boot and the means since the last report."""
        return PipelineTelemetry(
            pipeline=self.settings.pipeline,
            epoch=self._plans.current.epoch,
            revision=self.settings.revision,
            stages=tuple(worker.counters.report(k, self._inbox.waiting_at(k)) for k, worker in self._workers.items()),
            origin=None if self._origin is None else self._origin.telemetry(),
            fusions=() if self._fuser is None else self._fuser.telemetry(),
        )
