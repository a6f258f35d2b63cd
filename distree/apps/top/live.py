"""What `distree top` shows, from what boards and orchestrators publish; no store is read.

`Live` listens to a site and gives a `Frame` on request: plain data, ready to be drawn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from distree import topics
from distree.errors import RemoteProtocolError
from distree.formatting import thresholds_text
from distree.messages.codec import decode
from distree.messages.device import DeviceStatus
from distree.messages.events import Event
from distree.messages.limits import MAX_PIPELINES
from distree.messages.plan import Plan, plan_hash
from distree.messages.site import Claim
from distree.topics import DELIVERY, Address, Kind
from distree.transport.base import QuietListener, Received, Transport
from orchestrator.addresses import of_device, of_pipeline
from orchestrator.site_view import BoardRates, BoardView, SiteView, answered_by_exit, reports_on, slowest

EVENTS_KEPT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownBoard:
    """A board, and what it did of late; `rates` is None before its first report."""

    board: BoardView
    rates: BoardRates | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPipeline:
    """A pipeline: its thresholds (None without a plan: the bundle's own apply) and what its origins answered.

    `others` counts the boards that report another plan than the one on its topic. `shares` are those of the exits since
    the origins started; `latency_p95_s` is the slowest origin's.
    """

    pipeline: str
    epochs: tuple[int, ...]
    others: int
    criterion: str | None
    thresholds: str | None
    answers_hz: float
    shares: tuple[float, ...]
    latency_p95_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownEvent:
    """Something that a board or the orchestrator told, `age_s` seconds ago."""

    age_s: float
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A snapshot of a site. `trouble` says why there is no broker; `refused` counts messages that were rejected."""

    site: str
    trouble: str | None
    orchestrator: str | None
    refused: int
    boards: tuple[ShownBoard, ...]
    pipelines: tuple[ShownPipeline, ...]
    events: tuple[ShownEvent, ...] = ()


class Live(QuietListener):
    """Listens to a site; `transport` is opened and polled by the caller. `clock` gives monotonic seconds."""

    def __init__(self, site: str, transport: Transport, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._site = site
        self._transport = transport
        self._clock = clock
        self._view = SiteView(None)
        self._plans: dict[str, Plan] = {}
        self._claim: Claim | None = None
        self._refused = 0
        self._events: deque[tuple[float, Event]] = deque(maxlen=EVENTS_KEPT)

    def subscriptions(self) -> list[tuple[str, int]]:
        """Return what to subscribe to."""
        kinds = (Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.EVENT)
        of_devices = [(topics.device(self._site, "+", kind), kind) for kind in kinds]
        others = [
            (topics.plan(self._site, "+"), Kind.PLAN),
            (topics.orchestrator(self._site), Kind.ORCHESTRATOR),
            (topics.site_event(self._site), Kind.SITE_EVENT),
        ]
        return [(topic, DELIVERY[kind].qos) for topic, kind in of_devices + others]

    def received(self, message: Received) -> None:
        """Take a message in; one that breaks the protocol is counted."""
        self._transport.acknowledge(message.token)
        try:
            self._take_in(topics.parse(message.topic), message)
        except RemoteProtocolError as error:
            # A report that another one overtook is not an error.
            self._refused += error.reason != "old-sequence"

    def _take_in(self, address: Address, message: Received) -> None:
        payload = message.payload
        if address.kind is Kind.ORCHESTRATOR:
            self._claim = decode(Claim, payload) if payload else None
        elif address.kind is Kind.SITE_EVENT:
            self._events.append((self._clock(), decode(Event, payload)))
        elif address.kind is Kind.EVENT and address.device is not None:
            self._events.append((self._clock(), of_device(address.device, decode(Event, payload))))
        elif address.kind is Kind.PLAN and address.pipeline is not None:
            self._take_in_plan(address.pipeline, payload)
        elif address.device is not None and address.kind is Kind.STATE and not payload:
            self._view.forget(address.device)
        elif address.device is not None and payload:
            self._view.take(self._clock(), address.kind, address.device, payload, retained=message.retain)

    def _take_in_plan(self, name: str, payload: bytes) -> None:
        if not payload:
            self._plans.pop(name, None)
        elif name in self._plans or len(self._plans) < MAX_PIPELINES:
            self._plans[name] = of_pipeline(name, decode(Plan, payload))

    def is_complete(self) -> bool:
        """Whether a board is known, and every ready one has reported."""
        fleet = self._view.fleet
        ready = [device for device in fleet if device.status is DeviceStatus.READY]
        return len(fleet) > 0 and all(device.telemetry is not None for device in ready)

    def frame(self) -> Frame:
        """Return what is known now; boards that need attention come first."""
        views = sorted(
            self._view.boards(self._clock()),
            key=lambda view: (view.state == DeviceStatus.READY and not view.is_silent, view.device),
        )
        claim = self._claim
        return Frame(
            site=self._site,
            trouble=None if self._transport.online else str(self._transport.last_error or "connecting"),
            orchestrator=claim.orchestrator if claim is not None and claim.running else None,
            refused=self._refused,
            boards=tuple(ShownBoard(board=view, rates=self._view.rates(view.device)) for view in views),
            pipelines=tuple(self._pipelines()),
            events=tuple(ShownEvent(age_s=self._clock() - at, event=event) for at, event in self._events),
        )

    def _pipelines(self) -> Iterable[ShownPipeline]:
        fleet = self._view.fleet
        names = {part.pipeline for device in fleet if device.telemetry for part in device.telemetry.pipelines}
        for name in sorted(names | self._plans.keys()):
            plan, exits, stats = self._plans.get(name), answered_by_exit(name, fleet), self._view.stats(name)
            reports = [part for _, part in reports_on(name, fleet)]
            wanted, total = "" if plan is None else plan_hash(plan), sum(exits)
            yield ShownPipeline(
                pipeline=name,
                epochs=tuple(sorted({part.epoch for part in reports})),
                others=0 if plan is None else sum(part.plan_hash != wanted for part in reports),
                criterion=None if plan is None else plan.criterion,
                thresholds=None if plan is None else thresholds_text(plan.thresholds),
                answers_hz=sum(one.rate_hz for one in stats),
                shares=tuple(count / total for count in exits) if total else (),
                latency_p95_s=slowest(one.latency_p95_s for one in stats),
            )
