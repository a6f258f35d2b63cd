"""A simulated board: carries out the effects of its node, as `device_agent.mailbox` does on a real one."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.codec import encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus, HeldStage
from distree.messages.request import Decision, Embedding, Outcome, StageMessage
from distree.messages.result import Result
from distree.messages.telemetry import Telemetry
from distree.node import Accepted, Acknowledge, Effect, Fuse, Publish, Run, StageNode
from distree.node.custody import REMEMBERED
from distree.topics import DELIVERY, Kind
from orchestrator.simulator.books import Books
from orchestrator.simulator.events import Events
from orchestrator.simulator.network import Link, Message, Session, Shared
from orchestrator.simulator.service import SITE, Host
from orchestrator.simulator.traffic import Traffic

DECISION_EXPIRY_S = 10.0
"""As an agent publishes decisions."""

MESSAGE_BYTES = 300
"""About what a message takes besides its tensor, MQTT's part included."""


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What boards have in common. `stages` has the shared subscriptions of each stage, one of every branch."""

    events: Events
    traffic: Traffic
    books: Books
    random: random.Random
    stages: list[list[Shared]]
    boards: dict[str, Board]
    host: Host | None
    tensor_bytes: tuple[int, ...]
    fuse_s: float
    deadline_s: float
    telemetry_s: float
    receive_maximum: int
    has_spools: bool
    ends_at: float


class Board:
    """One board: its node, its interpreter, which does one thing at a time, and its connection.

    make_node: makes the node of each of its lives, by the id of that run and what its spool held. run_s: mean seconds
    of a run, by stage; `jitter` is their deviation.
    """

    __slots__ = (
        "_answered", "_around", "_events", "_has_timers", "_is_busy", "_jitter", "_make_node", "_run_s", "_sequence",
        "_subscriptions", "_tick_at", "_work", "boot", "is_alive", "life", "name", "node", "session",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        around: Surroundings,
        make_node: Callable[[str, Sequence[Accepted], Sequence[str]], StageNode],
        link: Link,
        run_s: dict[int, float],
        jitter: float,
    ) -> None:
        self.name = name
        self.session = Session(around.events, link, around.receive_maximum, self)
        self.life = 0
        self.is_alive = True
        self._around = around
        self._events = around.events
        self._make_node = make_node
        self._run_s, self._jitter = run_s, jitter
        self._subscriptions: list[Shared] = []
        self._answered: deque[str] = deque(maxlen=REMEMBERED)
        self._begin((), ())
        # A board that neither answers for inputs nor runs a branch never asks for a tick.
        self._has_timers = self.node.settings.origin is not None or self.node.settings.branch is not None

    def _begin(self, restore: Sequence[Accepted], answered: Sequence[str]) -> None:
        self.boot = f"{self.name}.{self.life:04d}"
        self.node = self._make_node(self.boot, restore, answered)
        self._work: deque[Run | Fuse] = deque()
        self._is_busy = False
        self._tick_at = math.inf
        self._sequence = 0

    def subscribe(self, subscription: Shared) -> None:
        """Take part in a shared subscription."""
        self._subscriptions.append(subscription)

    # ------------------------------------------------------------ inputs and reports

    def feed(self) -> None:
        """Take an input now, and the next ones at random moments until the traffic ends."""
        around, now = self._around, self._events.now
        if now >= around.ends_at:
            return
        ident = around.traffic.draw()
        self._events.at(around.traffic.next_at(now), self.feed)
        if not self.is_alive:
            around.books.missed += 1
            return
        around.books.accepted += 1
        # The id is chosen here, so that the books know the input before its effects are carried out.
        request = f"{self.name}-{around.books.accepted:x}"
        around.books.open[request] = ident
        self._perform(self.node.accept(now, "", around.traffic.tensor(ident), request=request)[1])

    def introduce(self) -> None:
        """Tell the orchestrator what this board is, and that it is ready."""
        settings = self.node.settings
        held = [
            HeldStage(
                pipeline=settings.pipeline,
                stage=stage,
                model=settings.model,
                revision=settings.revision,
                branch=settings.branch,
            )
            for stage in settings.stages
        ]
        meta = DeviceMeta(
            device=self.name,
            boot=self.boot,
            version="",
            python="",
            runtime="simulated",
            machine="simulated",
            memory_mb=0,
            stages=tuple(held),
            origins=(settings.pipeline,) if settings.origin is not None else (),
        )
        self._tell_host(Kind.STATE, self._state(DeviceStatus.READY))
        self._tell_host(Kind.META, encode(meta))

    def _state(self, status: DeviceStatus) -> bytes:
        return encode(DeviceState(device=self.name, boot=self.boot, status=status))

    def report(self) -> None:
        """Send telemetry now, and every `telemetry_s` until the traffic ends."""
        around, now = self._around, self._events.now
        if now + around.telemetry_s < around.ends_at:
            self._events.at(now + around.telemetry_s, self.report)
        if not self.is_alive:
            return
        self._sequence += 1
        report = Telemetry(
            device=self.name,
            boot=self.boot,
            sequence=self._sequence,
            uptime_s=now,
            rss_bytes=0,
            dead_letters=0,
            offline_dropped=0,
            pipelines=(self.node.telemetry(),),
        )
        self._tell_host(Kind.TELEMETRY, encode(report))

    def _tell_host(self, kind: Kind, payload: bytes) -> None:
        host, books, settings = self._around.host, self._around.books, self.node.settings
        if host is None:
            return
        books.sent(kind.value, len(payload))
        if kind is Kind.AUDIT:
            topic = topics.of_origin(SITE, settings.pipeline, kind, self.name)
        else:
            topic = topics.device(SITE, self.name, kind)
        at_broker = self.session.link.up(self._events.now, len(payload))
        self._events.at(at_broker, host.arrive, topic, payload, DELIVERY[kind].retain)

    def take_plan(self, plan: tuple[Message, int]) -> None:
        """The broker has a plan for this board."""
        if self.is_alive:
            self.session.post(self._events.now, plan[0], math.inf, plan[1])

    # ------------------------------------------------------------ life and death

    def die(self, notice_s: float) -> None:
        """Stop at once; the broker notices after `notice_s`."""
        if not self.is_alive:
            return
        books = self._around.books
        self.is_alive = False
        self.close_books()
        books.deaths += 1
        if not self._around.has_spools:
            for accepted in self.node.snapshot():
                del books.open[accepted.request]
                books.lost += 1
        self._events.at(self._events.now + notice_s, self._noticed, self.life)

    def _noticed(self, life: int) -> None:
        """The broker publishes this board's will, and sends nothing more to it."""
        if self.life == life and not self.is_alive:
            self.session.is_online = False
            if self._around.host is not None:
                topic = topics.device(SITE, self.name, Kind.STATE)
                self._around.host.arrive(topic, self._state(DeviceStatus.LOST), True)

    def revive(self) -> None:
        """Start anew, with what the spool held."""
        if self.is_alive:
            return
        around = self._around
        self.life += 1
        self.is_alive = True
        left, answered = (self.node.snapshot(), tuple(self._answered)) if around.has_spools else ((), ())
        self._begin(left, answered)
        if around.host is not None:
            self.introduce()
            plan = around.host.plan()
            if plan is not None:
                self.take_plan(plan)
        self.session.resume()
        for subscription in self._subscriptions:
            subscription.resume(self._events.now)
        self._arm()

    def close_books(self) -> None:
        """Write down what the node counted: at its end."""
        books, report = self._around.books, self.node.telemetry()
        for part in report.stages:
            books.audit_runs += part.audited
            books.wasted_runs += part.wasted
        if report.origin is not None:
            books.audits_drawn += report.origin.audits_drawn
            books.audits_lost += report.origin.audits_lost
            books.resent += report.origin.resent

    # ------------------------------------------------------------ events in

    def hear(self, delivery: int, message: Message) -> None:
        """Take a message from the broker; what breaks the protocol is counted and acknowledged."""
        if not (self.is_alive and self.session.is_due(delivery)):
            return
        try:
            effects = self.node.receive(self._events.now, message, delivery)
        except RemoteProtocolError as error:
            self._around.books.refused[error.reason] += 1
            self.session.acknowledge(delivery)
            return
        self._perform(effects)

    def _published(self, life: int, token: str) -> None:
        """The broker has a result."""
        if self.is_alive and life == self.life:
            self.node.published(token)
            self._answered.append(token)
            self._arm()

    def _tick(self, due_at: float, life: int) -> None:
        if due_at == self._tick_at and life == self.life and self.is_alive:
            self._tick_at = math.inf
            self._perform(self.node.tick(self._events.now))

    def _arm(self) -> None:
        """Have the node ticked when it wants to be."""
        if self._has_timers and (due_at := self.node.notify_at()) < self._tick_at:
            self._tick_at = due_at
            now = self._events.now
            self._events.at(due_at if due_at > now else now, self._tick, due_at, self.life)

    # ------------------------------------------------------------ effects out

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                self._publish(effect)
            elif isinstance(effect, Run | Fuse):
                self._work.append(effect)
                if not self._is_busy:
                    self._compute()
            elif isinstance(effect, Acknowledge):
                self.session.acknowledge(effect.delivery)
        self._arm()

    def _publish(self, effect: Publish) -> None:
        around, message, now = self._around, effect.message, self._events.now
        if isinstance(message, Result):
            around.books.answered(now, message, around.deadline_s)
            around.books.sent("result", MESSAGE_BYTES)
            if effect.turned_away:
                self.node.turned_away(told=True)
            at_broker = self.session.link.up(now, MESSAGE_BYTES)
            if effect.settles is not None:
                self._events.at(at_broker + self.session.link.delay_s(), self._published, self.life, effect.settles)
        elif isinstance(message, StageMessage):
            nbytes = self._bytes_to(message.stage)
            self.node.sent(message.stage, nbytes, audit=message.context.audit)
            around.books.sent("stage", nbytes)
            at_broker = self.session.link.up(now, nbytes)
            expires_at = now + message.context.budget_s - message.progress.spent_s
            for branch in around.stages[message.stage]:
                branch.post(at_broker, message, expires_at, nbytes)
        elif isinstance(message, AuditRow):
            self._tell_host(Kind.AUDIT, encode(message))
        else:
            self._send(effect.to or "", message)

    def _bytes_to(self, stage: int) -> int:
        tensor_bytes = self._around.tensor_bytes
        return MESSAGE_BYTES + (tensor_bytes[stage] if tensor_bytes else 0)

    def _send(self, device: str, message: Outcome | Decision | Embedding) -> None:
        """Send a message to another board; what an embedding holds is counted as small."""
        around, now = self._around, self._events.now
        if isinstance(message, Outcome):
            kind, expires_at = "outcome", math.inf
        elif isinstance(message, Decision):
            kind, expires_at = "decision", now + DECISION_EXPIRY_S
        else:
            kind, expires_at = "exit", now + message.context.budget_s - message.progress.spent_s
            self.node.sent(message.stage + 1, MESSAGE_BYTES, audit=message.context.audit)
        around.books.sent(kind, MESSAGE_BYTES)
        at_broker = self.session.link.up(now, MESSAGE_BYTES)
        around.boards[device].session.post(at_broker, message, expires_at, MESSAGE_BYTES)

    # ------------------------------------------------------------ inference

    def _compute(self) -> None:
        task, around = self._work.popleft(), self._around
        self._is_busy = True
        if isinstance(task, Run):
            took_s = self._run_s[task.stage]
            if self._jitter:
                took_s *= math.exp(around.random.gauss(0.0, self._jitter))
        else:
            took_s = around.fuse_s
        self._events.at(self._events.now + took_s, self._computed, self.life, task, took_s)

    def _computed(self, life: int, task: Run | Fuse, took_s: float) -> None:
        if life != self.life or not self.is_alive:
            return
        self._is_busy = False
        now, traffic = self._events.now, self._around.traffic
        if isinstance(task, Fuse):
            output = traffic.ran(task.stage, next(part for part in task.embeddings if part is not None))
        else:
            self._around.books.ran(now, task.stage, took_s)
            run = traffic.ran if self.node.settings.branch is None else traffic.branch_ran
            output = run(task.stage, task.tensor)
        effects = self.node.completed(now, task.key, output, took_s)
        if self._work:
            self._compute()
        self._perform(effects)
