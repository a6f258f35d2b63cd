"""The orchestrator of a simulated fleet: the service itself, on a transport and a clock that are simulated.

What it kept in memory dies with it; its store lives on, and the broker keeps what is retained. It stands beside the
broker: its own messages take no time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from distree.errors import Problem
from distree.lanes import Lane
from distree.messages.codec import decode
from distree.messages.plan import Plan, same_decision
from distree.topics import Kind, parse
from distree.transport.base import Listener, Received
from orchestrator.addresses import will_of
from orchestrator.config import StoreConfig
from orchestrator.pipeline_spec import PipelineSpec
from orchestrator.service import POLL_S, Service
from orchestrator.simulator.books import Books
from orchestrator.simulator.events import Events
from orchestrator.store.database import Store

SITE = "simulated"
IDENTITY = "orchestrator"

BATCH_S = 0.01
"""Messages that arrive within so many seconds are handled together, as by one poll of a real transport."""

BEGAN_AT = 1_600_000_000.0
"""Unix time at which a simulation begins, for the store."""

_STORE = StoreConfig(telemetry_days=1000.0, max_mb=64)


class Audience(Protocol):
    """Whoever receives plans."""

    def take_plan(self, plan: Plan, nbytes: int) -> None:
        """A plan is on its topic."""


class Transport:
    """The orchestrator's connection to the simulated broker: `inbox` has what has arrived, `send` publishes."""

    def __init__(self, inbox: deque[Received], send: Callable[[str, bytes, bool], None]) -> None:
        self.lock = threading.RLock()
        self.online = False
        self.last_error: Problem | None = None
        self.offline_dropped = 0
        self.notices: deque[Problem] = deque()
        self.diagnosing = False
        self.retains = self.reports_no_subscribers = True
        self._inbox, self._send = inbox, send
        self._listener: Listener | None = None

    def open(self, listener: Listener, subscriptions: Sequence[tuple[str, int]]) -> None:  # noqa: ARG002
        """Remember the listener; the broker delivers exactly what this client subscribes to."""
        self._listener = listener

    def poll(self, timeout_s: float) -> None:  # noqa: ARG002
        """Deliver what has arrived; the simulated clock does the waiting."""
        assert self._listener is not None  # noqa: S101 - opened before
        if not self.online:
            self.online = True
            self._listener.connected()
        while self._inbox:
            self._listener.received(self._inbox.popleft())

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,  # noqa: ARG002
        retain: bool = False,
        content_type: str | None = None,  # noqa: ARG002
        expiry_s: float | None = None,  # noqa: ARG002
        token: str | None = None,  # noqa: ARG002
        lane: Lane = Lane.WORK,  # noqa: ARG002
    ) -> None:
        """Hand a message to the broker."""
        self._send(topic, payload, retain)

    def acknowledge(self, token: object) -> None:
        """Nothing waits for it."""

    def subscribe(self, subscriptions: Sequence[tuple[str, int]]) -> None:
        """The broker delivers exactly what this client subscribes to."""

    def acknowledge_at_once(self) -> None:
        """Nothing is held back."""

    def unacknowledged_since(self) -> float:
        """Nothing is owed."""
        return float("inf")

    def unsubscribe(self, names: Sequence[str]) -> None:
        """The broker delivers exactly what this client subscribes to."""

    def pause(self, *, paused: bool) -> None:
        """Nothing is read ahead."""

    def cork(self) -> None:
        """Nothing is gathered."""

    def uncork(self) -> None:
        """Nothing was gathered."""

    def connect_now(self, timeout_s: float, *, patient: bool = False) -> None:
        """`poll` connects."""

    def wake(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Be offline."""
        self.online = False


class Host:
    """Runs the orchestrator of one pipeline until `ends_at`; the broker of what goes to it and comes from it."""

    def __init__(self, events: Events, spec: PipelineSpec, books: Books, audience: Audience, ends_at: float) -> None:
        self.service: Service | None = None
        self.deaths = 0
        self._events, self._books, self._audience, self._ends_at = events, books, audience, ends_at
        self._spec = spec
        self._store = Store(Path(":memory:"))
        self._inbox: deque[Received] = deque()
        self._retained: dict[str, bytes] = {}
        self._turn_at = float("inf")
        self._alarms = 0

    # ------------------------------------------------------------ life and death

    def open(self) -> None:
        """Open the store, which outlives every orchestrator."""
        self._store.open()

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def start(self) -> None:
        """Start an orchestrator with what the store has and the broker retains."""
        if self.service is not None:
            return
        self._inbox = deque(_received(topic, payload, retain=True) for topic, payload in self._retained.items())
        self.service = Service(
            SITE,
            (self._spec,),
            store=self._store,
            transport=Transport(self._inbox, self._send),
            identity=IDENTITY,
            retention=_STORE,
            clock=lambda: self._events.now,
            wall=lambda: BEGAN_AT + self._events.now,
        )
        self.service.open()
        self._turn_by(self._events.now)

    def die(self) -> None:
        """Kill it; the broker publishes its will."""
        if self.service is None:
            return
        self.service, self._turn_at = None, float("inf")
        self.deaths += 1
        topic, payload = will_of(SITE, IDENTITY)
        self._retained[topic] = payload

    # ------------------------------------------------------------ messages

    def arrive(self, topic: str, payload: bytes, retain: bool) -> None:
        """A message of a board has reached the broker."""
        if retain:
            self._retained[topic] = payload
        if self.service is not None:
            self._inbox.append(_received(topic, payload, retain=False))
            self._turn_by(self._events.now + BATCH_S)

    def plan(self) -> tuple[Plan, int] | None:
        """Return the retained plan and its bytes, for a board that subscribes to it."""
        for topic, payload in self._retained.items():
            if parse(topic).kind is Kind.PLAN:
                return decode(Plan, payload), len(payload)
        return None

    def _send(self, topic: str, payload: bytes, retain: bool) -> None:
        kind = parse(topic).kind
        self._books.sent(kind.value, len(payload))
        self.arrive(topic, payload, retain)
        if kind is Kind.PLAN:
            plan = decode(Plan, payload)
            plans = self._books.plans
            if not plans or not same_decision(plans[-1][1], plan):
                plans.append((self._events.now, plan))
            self._audience.take_plan(plan, len(payload))

    # ------------------------------------------------------------ turns

    def _turn_by(self, at_s: float) -> None:
        if at_s < min(self._turn_at, self._ends_at):
            self._turn_at = at_s
            self._events.at(at_s, self._turn, at_s)

    def _turn(self, at_s: float) -> None:
        if self.service is None or at_s != self._turn_at:
            return
        self._turn_at = float("inf")
        self.service.turn(0.0)
        self._note_alarms(self.service)
        self._turn_by(self._events.now + POLL_S)

    def _note_alarms(self, service: Service) -> None:
        tuning = service.controllers.of(self._spec.name).tuning
        alarms = tuning.alarms if tuning is not None else 0
        self._books.alarms += [self._events.now] * (alarms - self._alarms)
        self._alarms = max(alarms, self._alarms)


def _received(topic: str, payload: bytes, *, retain: bool) -> Received:
    return Received(topic=topic, payload=payload, retain=retain, token=None)
