"""A simulated board: carries out the effects of its node, as `device_agent.mailbox` does on a real one."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distree.errors import RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.codec import encode
from distree.messages.device import DeviceStatus
from distree.messages.member import Call
from distree.messages.request import Decision, Embedding, Outcome, StageMessage
from distree.messages.result import Result
from distree.node import AcceptedInput, Acknowledge, Announce, Effect, Fuse, Publish, Run, StageNode
from distree.node.custody import MAX_REMEMBERED
from distree.topics import ALL
from orchestrator.simulator.books import Books
from orchestrator.simulator.config import BoardsConfig, BrokerConfig
from orchestrator.simulator.events import Events
from orchestrator.simulator.network import BrokerSession, Link, Message
from orchestrator.simulator.reporting import Reporting
from orchestrator.simulator.roll import Roll, Word
from orchestrator.simulator.service import Host
from orchestrator.simulator.traffic import Traffic

DECISION_EXPIRY_S = 10.0
"""As long as decisions of an agent are valid."""

DRAIN_S = 10.0
"""How long an agent that is stopped may take to finish its work, by default."""

IDLE_CHECK_S = 0.01
"""How often it checks whether that is done."""

MESSAGE_BYTES = 300
"""Approximate size of a message without its tensor, MQTT's part included."""


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What all boards share. `readers` has, per stage, the sessions that read what is for all boards (`topics.ALL`)."""

    events: Events
    traffic: Traffic
    books: Books
    random: random.Random
    readers: list[list[BrokerSession]]
    boards: dict[str, SimulatedBoard]
    roll: Roll
    broker: BrokerConfig
    host: Host | None
    tensor_bytes: tuple[int, ...]
    fuse_s: float
    deadline_s: float
    telemetry_interval_s: float
    receive_maximum: int
    has_spools: bool
    ends_at: float


class SimulatedBoard:
    """One board: its node, its interpreter, which does one thing at a time, and its connection.

    make_node: makes the node of each of its lives, by the id of that run and what its spool held. run_s: mean seconds
    of a run, by stage. needs: the stages for which it chooses boards, if it is an origin.
    """

    __slots__ = (
        "_answered", "_around", "_cut_off_since", "_events", "_goes_on_at", "_has_timers", "_is_awake", "_is_busy",
        "_is_draining", "_jitter", "_make_node", "_needs", "_rate_hz", "_reporting", "_run_s", "_tick_at", "_work",
        "boot", "is_alive", "life", "name", "node", "session",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        around: Surroundings,
        make_node: Callable[[str, Sequence[AcceptedInput], Sequence[str]], StageNode],
        link: Link,
        run_s: dict[int, float],
        kind: BoardsConfig,
        needs: frozenset[int],
    ) -> None:
        self.name = name
        self.session = BrokerSession(around.events, link, around.receive_maximum, self)
        self.life = 0
        self.is_alive = self._is_awake = True
        self._goes_on_at = 0.0
        self._cut_off_since = math.inf
        """Since when the broker has owed acknowledgements, because it is away."""
        self._around = around
        self._events = around.events
        self._make_node = make_node
        self._run_s, self._jitter, self._rate_hz = run_s, float(kind.jitter), kind.rate_hz
        self._needs = needs
        self._answered: deque[str] = deque(maxlen=MAX_REMEMBERED)
        self._reporting = Reporting(self, around)
        self._begin((), ())
        # A board that neither answers for inputs nor runs a branch asks for a tick only where it was called.
        self._has_timers = self.node.settings.origin is not None or self.node.settings.branch is not None

    def _begin(self, restore: Sequence[AcceptedInput], answered: Sequence[str]) -> None:
        self.boot = f"{self.name}.{self.life:04d}"
        self.node = self._make_node(self.boot, restore, answered)
        self._work: deque[Run | Fuse] = deque()
        self._is_busy = self._is_draining = False
        self._tick_at = math.inf
        self._reporting.begin()

    # ------------------------------------------------------------ inputs and reports

    def feed(self) -> None:
        """Take an input now, and the next ones at random moments until the traffic ends."""
        around, now = self._around, self._events.now
        if now >= around.ends_at:
            return
        if self.is_alive and not self._is_awake:
            self._put_off(self.feed)
            return
        ident = around.traffic.draw()
        self._events.at(around.traffic.next_at(now, self._rate_hz), self.feed)
        if not self.is_alive or self._is_draining:
            around.books.missed += 1
            return
        around.books.accepted += 1
        # The id is chosen here, so that the books know the input before its effects are carried out.
        request = f"{self.name}-{around.books.accepted:x}"
        around.books.open[request] = ident
        self._perform(self.node.accept(now, "", around.traffic.tensor(ident), request=request)[1])

    def begin(self) -> None:
        """Have the first input come, if this is an origin."""
        if self.node.settings.origin is not None:
            self._events.at(self._around.traffic.next_at(0.0, self._rate_hz), self.feed)

    def announce(self) -> None:
        """The site has been up for a while: what this board serves is known."""
        for effect in self.node.connected(self._events.now):
            if isinstance(effect, Announce):
                self._reporting.announce(effect.member, effect.stages, at_once=True)

    def introduce(self) -> None:
        """Announce what this board is, and that it is ready."""
        self._reporting.describe()
        self._reporting.set_status(DeviceStatus.READY)

    def report(self) -> None:
        """Send telemetry now, and every `telemetry_interval_s` until the traffic ends."""
        around, now = self._around, self._events.now
        if now + around.telemetry_interval_s < around.ends_at:
            self._events.at(now + around.telemetry_interval_s, self.report)
        if self._is_awake:
            self._reporting.report()

    def take_plan(self, plan: tuple[Message, int]) -> None:
        """The broker has a plan for this board."""
        if self.session.is_online:
            self.session.post(self._events.now, plan[0], math.inf, plan[1], "")

    # ------------------------------------------------------------ life and death

    def join(self) -> None:
        """The broker considers this board connected: an origin hears of others."""
        if self._needs:
            self._around.roll.connected(self, self._needs)

    def die(self, notice_s: float) -> None:
        """Stop at once; the broker notices after `notice_s`."""
        if self.is_alive:
            self._around.books.deaths += 1
            self._end()
            self._events.at(self._events.now + notice_s, self._noticed, self.life)

    def _noticed(self, life: int) -> None:
        """The broker publishes this board's will, and sends nothing more to it."""
        if self.life == life and not self.is_alive:
            self._leave(self._around.broker.session_expiry_s)
            self._reporting.will()

    def _end(self) -> None:
        books = self._around.books
        self.is_alive = self._is_awake = False
        self.close_books()
        if not self._around.has_spools:
            for accepted in self.node.snapshot():
                del books.open[accepted.request]
                books.lost += 1

    def _leave(self, keeps_s: float) -> None:
        self.session.end(keeps_s)
        if self._needs:
            self._around.roll.gone(self, self._needs)

    def stop(self) -> None:
        """Finish the work at hand, accept nothing more, and disconnect cleanly."""
        if not self._is_awake:
            self._put_off(self.stop)
        elif not self._is_draining:
            self._around.books.stops += 1
            self._is_draining = True
            self.node.drain()
            self._reporting.set_status(DeviceStatus.DRAINING)
            self._leave_when_idle(self.life, self._events.now + DRAIN_S)

    def _leave_when_idle(self, life: int, until: float) -> None:
        now = self._events.now
        if not self._is_awake:
            self._put_off(self._leave_when_idle, life, until)
            return
        if life != self.life:
            return
        if not self.node.idle() and now < until:
            self._events.at(now + IDLE_CHECK_S, self._leave_when_idle, life, until)
            return
        self._perform(self.node.give_up_audits(now))
        self._reporting.report()
        self._reporting.set_status(DeviceStatus.DISCONNECTED)
        self._end()
        self._events.at(self.session.link.up(now, 0), self._left, life)

    def _left(self, life: int) -> None:
        if life == self.life:
            self._leave(0.0)

    def cut_off(self, until: float) -> None:
        """The broker has gone; this board reconnects at `until`."""
        self.session.link.hold(until)
        self._cut_off_since = min(self._cut_off_since, self._events.now)
        self._events.at(until, self._reconnect, self.life)

    def _reconnect(self, life: int) -> None:
        self._cut_off_since = math.inf
        if not self._is_awake:
            self._put_off(self._reconnect, life)
        elif life == self.life:
            self.join()
            self._perform(self.node.connected(self._events.now))
            self._reporting.say_again()

    def pause(self, for_s: float) -> None:
        """Do nothing for `for_s` seconds; whatever arrives meanwhile waits."""
        if self.is_alive:
            self._around.books.pauses += 1
            self._is_awake = False
            self._goes_on_at = max(self._goes_on_at, self._events.now + for_s)
            self._events.at(self._goes_on_at, self._go_on, self.life)

    def _go_on(self, life: int) -> None:
        if life == self.life and self.is_alive and self._events.now >= self._goes_on_at:
            self._is_awake = True

    def _put_off(self, call: Callable[..., None], *arguments: Any) -> None:
        """Do what is due once this board continues, if it is paused; a dead board never does it."""
        if self.is_alive:
            self._events.at(self._goes_on_at, call, *arguments)

    def revive(self) -> None:
        """Restart, with what the spool held."""
        if self.is_alive:
            if self._is_draining:
                self._events.at(self._events.now + IDLE_CHECK_S, self.revive)
            return
        around = self._around
        if self.session.is_online:
            # The broker learns by this that the one before is gone.
            self._leave(0.0)
        self.life += 1
        self.is_alive = self._is_awake = True
        left, answered = (self.node.snapshot(), tuple(self._answered)) if around.has_spools else ((), ())
        self._begin(left, answered)
        self.session.begin()
        self.join()
        plan = None if around.host is None else around.host.plan()
        if plan is not None:
            self.take_plan(plan)
        self._perform(self.node.connected(self._events.now))
        self.introduce()

    def close_books(self) -> None:
        """Write down what the node counted: at its end."""
        self._around.books.ended(self.node.telemetry())

    # ------------------------------------------------------------ events in

    def hear(self, delivery: int, message: Message, sender: str) -> None:
        """Take a message from the broker; what breaks the protocol is counted and acknowledged."""
        if not self._is_awake:
            self._put_off(self.hear, delivery, message, sender)
            return
        if not self.session.is_due(delivery):
            return
        try:
            effects = self.node.receive(self._events.now, message, delivery, sender)
        except RemoteProtocolError as error:
            self._around.books.refused[error.reason] += 1
            self.session.acknowledge(delivery)
            return
        self._perform(effects)

    def learn(self, word: Word) -> None:
        """Take in what another board has announced."""
        if not self._is_awake:
            self._put_off(self.learn, word)
            return
        try:
            effects = word(self.node, self._events.now)
        except RemoteProtocolError as error:
            self._around.books.refused[error.reason] += 1
            return
        self._perform(effects)

    def called(self, caller: str) -> None:
        """Boards are asked to announce what they serve."""
        if not self._is_awake:
            self._put_off(self.called, caller)
            return
        self.node.called(self._events.now, caller)
        self._has_timers = True
        self._arm()

    def _unread(self, life: int, message: StageMessage | Embedding, to: str) -> None:
        """The broker has said that nobody reads a message."""
        if not self._is_awake:
            self._put_off(self._unread, life, message, to)
        elif life == self.life:
            self._perform(self.node.no_subscribers(self._events.now, message, to))

    def _published(self, life: int, token: str) -> None:
        """The broker has a result."""
        if not self._is_awake:
            self._put_off(self._published, life, token)
        elif life == self.life:
            self.node.published(token)
            self._answered.append(token)
            self._arm()

    def _tick(self, due_at: float, life: int) -> None:
        if not self._is_awake:
            self._put_off(self._tick, due_at, life)
        elif due_at == self._tick_at and life == self.life:
            self._tick_at = math.inf
            self._perform(self.node.tick(self._events.now, self._cut_off_since))

    def _arm(self) -> None:
        """Have the node ticked when it wants to be, until some time after the end of the traffic."""
        now = self._events.now
        if not self._has_timers or (now >= self._around.ends_at and not any(self.node.books().values())):
            return
        due_at = self.node.notify_at()
        if due_at < self._tick_at:
            self._tick_at = due_at
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
            elif isinstance(effect, Announce):
                self._reporting.announce(effect.member, effect.stages)
                if effect.again:
                    self._reporting.say_again()
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
            nbytes = self._bytes_of(message)
            self.node.sent(message.stage, nbytes, audit=message.context.audit)
            expires_at = now + message.context.budget_s - message.progress.spent_s
            self._send("stage", message, effect.to or "", expires_at, nbytes)
        elif isinstance(message, Embedding):
            self.node.sent(message.stage + 1, MESSAGE_BYTES, audit=message.context.audit)
            expires_at = now + message.context.budget_s - message.progress.spent_s
            # The contents of an embedding are small.
            self._send("exit", message, effect.to or "", expires_at, MESSAGE_BYTES)
        elif isinstance(message, Outcome):
            self._send("outcome", message, effect.to or "", math.inf, MESSAGE_BYTES)
        elif isinstance(message, Decision):
            self._send("decision", message, effect.to or "", now + DECISION_EXPIRY_S, MESSAGE_BYTES)
        elif isinstance(message, AuditRow):
            self._reporting.audited(encode(message))
        elif isinstance(message, Call):
            self._reporting.call(message)

    def _bytes_of(self, message: StageMessage) -> int:
        tensor_bytes = self._around.tensor_bytes
        # A probe's zeros are compressed.
        return MESSAGE_BYTES + (tensor_bytes[message.stage] if tensor_bytes and message.tensor.codec == "raw" else 0)

    def _send(
        self,
        kind: str,
        message: StageMessage | Outcome | Decision | Embedding,
        to: str,
        expires_at: float,
        nbytes: int,
    ) -> None:
        """Send a message to another board, or features to all boards of a stage."""
        around, name = self._around, self.name
        around.books.sent(kind, nbytes)
        at_broker = self.session.link.up(self._events.now, nbytes)
        if to != ALL:
            is_read = around.boards[to].session.post(at_broker, message, expires_at, nbytes, name)
        else:
            sessions = around.readers[message.stage]  # type: ignore[union-attr]
            takers = [session for session in sessions if session.post(at_broker, message, expires_at, nbytes, name)]
            is_read = bool(takers)
        if not is_read and around.broker.reports_no_subscribers and isinstance(message, StageMessage | Embedding):
            around.books.unread += 1
            self._events.at(at_broker + self.session.link.delay_s(), self._unread, self.life, message, to)

    # ------------------------------------------------------------ inference

    def _compute(self) -> None:
        task, around, now = self._work.popleft(), self._around, self._events.now
        self._is_busy = True
        if isinstance(task, Run):
            took_s = self._run_s[task.stage]
            if self._jitter:
                took_s *= math.exp(around.random.gauss(0.0, self._jitter))
        else:
            took_s = around.fuse_s
        self._events.at(now + took_s, self._computed, self.life, task, now)

    def _computed(self, life: int, task: Run | Fuse, began_at: float) -> None:
        if not self._is_awake:
            self._put_off(self._computed, life, task, began_at)
            return
        if life != self.life:
            return
        self._is_busy = False
        now, traffic = self._events.now, self._around.traffic
        took_s = now - began_at
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
