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
import random
from collections.abc import Callable, Sequence
from typing import Any

from distree.errors import RESTRICT, ConfigError, RemoteProtocolError
from distree.messages.device import DeviceState
from distree.messages.member import Member
from distree.messages.plan import Plan
from distree.messages.request import Decision, Embedding, Outcome, StageMessage, Tensor
from distree.messages.telemetry import PipelineTelemetry
from distree.node.announcer import Announcer
from distree.node.answers import turned_back
from distree.node.branch import BranchWorker
from distree.node.effects import Acknowledge, Drop, Effect, GuessUpdate, Output, Publish, RequestClosed, Send, forward
from distree.node.exits import CriterionCache, Plans
from distree.node.fuser import SET_FUSE, Fuser
from distree.node.inbox import Inbox
from distree.node.job import Job
from distree.node.members import MemberChange, Members
from distree.node.origin import AcceptedInput, OriginWorker
from distree.node.settings import NodeSettings
from distree.node.worker import StageWorker
from distree.segments import SegmentOutput
from distree.topics import ALL

_NEVER = float("inf")


class StageNode:
    """One pipeline on one board: stages it serves, and the inputs for which it is the origin.

    `restore` takes what `snapshot` of an earlier run returned: those inputs are run again and answered. `answered`
    names requests that an earlier run answered, so that the same again is dropped. `chance` is where all that is left
    to chance comes from. `members` is for drivers of many nodes, that keep one book on boards for all of them.
    """

    def __init__(
        self,
        settings: NodeSettings,
        restore: Sequence[AcceptedInput] = (),
        answered: Sequence[str] = (),
        *,
        chance: random.Random | None = None,
        members: Members | None = None,
    ) -> None:
        self.settings = settings
        chance = chance or random.Random()  # noqa: S311 - routes are no secret
        keys = itertools.count(1)
        criteria = CriterionCache(settings)
        self._plans = Plans(settings, criteria)
        self._inbox = Inbox(settings.inbox_max_messages, settings.inbox_max_bytes)
        self._worker = StageWorker(settings, criteria, keys)
        self._branch = BranchWorker(settings, self._inbox, keys)
        self._fuser = Fuser(settings, criteria, self._plans, keys) if settings.gathers else None
        self._origin: OriginWorker | None = None
        if settings.origin is not None:
            known = Members(settings.revision) if members is None else members
            self._origin = OriginWorker(settings, settings.origin, self._plans, known, chance, answered)
        self._announcer = Announcer(settings, chance, wants=self._origin is not None)
        self._is_draining = False
        self._workers: dict[int, StageWorker | BranchWorker] = {
            k: self._branch if settings.width(k) else self._worker for k in settings.stages
        }
        self._restore = list(restore)
        parts = (self._origin, self._fuser, None if settings.branch is None else self._branch)
        self._timed = [part for part in parts if part is not None]
        self._deliveries: dict[type, Callable[[float, Any], Sequence[Effect]]] = {
            Send: self._deliver,
            Job: self._queue,
            GuessUpdate: self._learn,
            RequestClosed: self._settle,
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
        return min(self._origin.room(), self.settings.inbox_max_messages - len(self._inbox))

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
        kept in them: the driver tells `turned_away` what became of that one. `request` is the input's own id, if it
        has one: while that id is remembered, the same again is dropped.
        """
        if self._origin is None:
            raise ConfigError(
                f"{self.settings.device} is not an origin of pipeline {self.settings.pipeline}",
                "give the pipeline an origin",
            )
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
        self,
        now: float,
        message: StageMessage | Embedding | Decision | Outcome | Plan,
        delivery: object,
        sender: str = "",
    ) -> list[Effect]:
        """Take a decoded message; raise RemoteProtocolError for one that does not belong here.

        `delivery` comes back in an Acknowledge, at once or when the work on it is handed over. `sender` is the board
        that sent it, as its topic says.
        """
        if isinstance(message, StageMessage):
            return self._carry(now, self._receive_stage(now, message, delivery))
        effects = self._carry(now, self._receive(now, message, sender))
        effects.append(Acknowledge(delivery=delivery))
        return effects

    def _receive_stage(self, now: float, message: StageMessage, delivery: object) -> list[Output]:
        worker = self._workers.get(message.stage)
        if worker is None:
            raise RemoteProtocolError("stage", f"stage {message.stage} is not served here", RESTRICT)
        context, me = message.context, self.settings.device
        stop = context.stop_at(message.stage)
        if stop is None or me not in stop.boards:
            if stop is None or not stop.together:
                raise RemoteProtocolError("route", f"{context.request}: its route does not name {me}", RESTRICT)
            return [Drop(request=context.request, reason="for others"), Acknowledge(delivery=delivery)]
        if self._is_draining and context.origin != me and not worker.knows(message):
            return [turned_back(message, "moved"), Acknowledge(delivery=delivery)]
        return worker.receive(now, message, delivery)

    def _receive(self, now: float, message: Embedding | Decision | Outcome | Plan, sender: str) -> list[Output]:
        if isinstance(message, Plan):
            self._plans.receive(message)
            return []
        if isinstance(message, Outcome):
            if self._origin is None:
                raise RemoteProtocolError("origin", f"this board does not answer for {message.request}", RESTRICT)
            return self._origin.receive(now, message, sender)
        if isinstance(message, Decision):
            answer = None if self._origin is None else self._origin.decided(now, message, sender)
            return self._branch.decided(message, sender) if answer is None else answer
        return self._receive_embedding(now, message)

    def _receive_embedding(self, now: float, message: Embedding) -> list[Output]:
        fuser, context = self._fuser, message.context
        if fuser is None:
            raise RemoteProtocolError("fuser", f"this board does not fuse for {context.origin}", SET_FUSE)
        if self._origin is None or context.origin != self.settings.device:
            if self._is_draining and not fuser.knows(message):
                return [turned_back(message, "moved")]
            return fuser.receive(now, message, is_wanted=True)
        is_answer, outputs = self._origin.embedded(now, message)
        if is_answer:
            return outputs
        return [*outputs, *fuser.receive(now, message, is_wanted=self._origin.is_wanted(context.request))]

    def withdraw_plan(self, delivery: object) -> list[Effect]:
        """Decide by the bundle's own thresholds again: the plan was taken off its topic, as `delivery` says."""
        self._plans.withdraw()
        return [Acknowledge(delivery=delivery)]

    # ------------------------------------------------------------ other boards

    def announced(self, now: float, member: Member, stage: int, *, is_live: bool) -> list[Effect]:
        """Take what a board says that it serves, on the topic of a stage; `is_live` where it was not retained."""
        self._announcer.heard(is_live=is_live)
        if self._origin is None or member.device == self.settings.device:
            return []
        return self._carry(now, self._origin.announced(now, member, stage, is_live=is_live))

    def withdrawn(self, now: float, device: str, stage: int) -> list[Effect]:
        """Take it that a board serves a stage no longer."""
        return [] if self._origin is None else self._carry(now, self._origin.withdrawn(now, device, stage))

    def state_changed(self, now: float, state: DeviceState) -> list[Effect]:
        """Take the state of a board that has announced itself."""
        return [] if self._origin is None else self._carry(now, self._origin.state_changed(now, state))

    def depends_on(self, device: str) -> bool:
        """Whether `changed` may have consequences: this origin has to do with a board, or waits for any."""
        return self._origin is not None and self._origin.depends_on(device)

    def changed(self, now: float, change: MemberChange) -> list[Effect]:
        """Take what became of a board, where the driver keeps the books on members."""
        return [] if self._origin is None else self._carry(now, self._origin.changed(now, change))

    def called(self, now: float, caller: str) -> None:
        """Boards are asked to say what they serve."""
        if not self._is_draining:
            self._announcer.called(now, caller)

    def announce(self) -> list[Effect]:
        """Say what this board serves: it is ready, or connected again."""
        return [] if self._is_draining else self._announcer.announce()

    @property
    def served(self) -> tuple[int, ...]:
        """The stages at which requests may come to this board."""
        return self._announcer.stages

    def no_subscribers(self, now: float, message: StageMessage | Embedding, to: str) -> list[Effect]:
        """The broker says that nobody reads what this board has sent to another: the origin is to choose again."""
        boards = [to]
        if to == ALL and (stop := message.context.stop_at(message.stage)) is not None:
            boards = [device for device in stop.boards if device]
        if self._origin is not None and message.context.origin == self.settings.device:
            return self._carry(now, self._origin.unreachable(now, message, boards))
        return self._carry(now, [turned_back(message, "unreachable", boards[0])])

    def drain(self) -> None:
        """Finish what is under way, and turn back what comes from here on."""
        self._is_draining = True

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
        context = message.context
        if self._origin is not None and context.origin == self.settings.device and not context.audit:
            return self._carry(now, self._origin.refused(now, message))
        return self._carry(now, [turned_back(message, "fallback")])

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
            outputs = self._receive(now, message, self.settings.device)
        except RemoteProtocolError as error:
            # An origin that was restarted does not know the requests of its earlier run.
            request = message.context.request if isinstance(message, Embedding) else message.request
            return [Drop(request=request, reason=str(error))]
        return self._carry(now, outputs)

    def _deliver_stage(self, now: float, message: StageMessage) -> Sequence[Effect]:
        """Take features on to a plain stage of this board, or to the boards on their route.

        Branches get theirs from the broker, wherever they are.
        """
        context, me = message.context, self.settings.device
        stop = context.stop_at(message.stage)
        if message.stage in self._worker.stages and (stop is None or stop.boards == (me,)):
            return self._queue(now, self._worker.receive_local(now, message))
        if self._origin is not None and context.origin == me:
            is_on_its_way, outputs = self._origin.send(now, message)
            if not is_on_its_way:
                self._worker.answered_here(message)
            return self._carry(now, outputs)
        if stop is None:
            return self._carry(now, [turned_back(message, "fallback")])  # its route ends here
        return self._carry(now, forward(message))

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

    def _learn(self, _now: float, learned: GuessUpdate) -> Sequence[Effect]:
        if self._origin is not None:
            self._origin.update_guess(learned.request, learned.progress)
        return ()

    def _settle(self, now: float, settled: RequestClosed) -> Sequence[Effect]:
        return () if self._fuser is None else self._carry(now, self._fuser.request_closed(settled.request))

    # ------------------------------------------------------------ the connection

    def connected(self, now: float) -> list[Effect]:
        """This board has connected, for the first time or again."""
        self._announcer.connected(now)
        if self._origin is not None:
            self._origin.connected(now)
        return self.announce()

    def published(self, request: str) -> bool:
        """The broker has the result of `request`; True if its entry was closed by this."""
        return self._origin is not None and self._origin.published(request)

    # ------------------------------------------------------------ time

    def notify_at(self) -> float:
        """When the node next wants a tick; infinity if never."""
        if self._restore and self.room() > 0:
            return 0.0
        due = self._announcer.due_at
        for part in self._timed:
            due = min(due, part.next_due())
        return due

    def tick(self, now: float, owed_since: float = _NEVER) -> list[Effect]:
        """Do what is due: deadlines, silent hops and branches, features to forget, inputs to restore, probes, calls.

        `owed_since` is since when the broker has owed this board an acknowledgement; infinity if it owes none.
        """
        effects: list[Effect] = []
        while self._restore and self.room() > 0:
            accepted = self._restore.pop()
            effects += self.accept(now, accepted.name, accepted.tensor, request=accepted.request, attempt=2)[1]
        if self._origin is not None:
            effects += self._carry(now, self._origin.tick(now, owed_since))
        for part in (self._fuser, self._branch):
            if part is not None:
                effects += self._carry(now, part.tick(now))
        if self._announcer.due_at <= now:
            lacks_boards = self._origin is not None and self._origin.lacks_boards
            effects += self._carry(now, self._announcer.tick(now, lacks_boards=lacks_boards))
        return effects

    def give_up_audits(self, now: float) -> list[Effect]:
        """End all audits under way as lost: this board is about to stop."""
        return [] if self._origin is None else self._carry(now, self._origin.give_up_audits())

    def snapshot(self) -> tuple[AcceptedInput, ...]:
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
            plan_hash=self._plans.hash,
            revision=self.settings.revision,
            stages=tuple(worker.counters.report(k, self._inbox.waiting_at(k)) for k, worker in self._workers.items()),
            origin=None if self._origin is None else self._origin.telemetry(),
            fusions=() if self._fuser is None else self._fuser.telemetry(),
        )
