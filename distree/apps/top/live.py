"""What `distree top` shows, from what boards and orchestrators publish; the store is not used.

`Live` listens to a site and gives a `Frame` on request: plain data, ready to be drawn.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from distree import topics
from distree.errors import RESTRICT, Problem, RemoteProtocolError
from distree.messages.codec import decode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus
from distree.messages.limits import MAX_PIPELINES
from distree.messages.plan import Plan
from distree.messages.site import Claim, OriginStats
from distree.messages.telemetry import Telemetry
from distree.printable import printable
from distree.topics import DELIVERY, Address, Kind
from distree.transport.base import Received, Transport
from orchestrator.fleet import Device, Fleet, is_stale
from orchestrator.formatting import thresholds_text
from orchestrator.stats import Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardRow:
    """A board. Rates are per second, since its report before or, for the first one, since it started.

    What a board has not reported, or does not do, is None. `waiting` counts work in its queues, `pending` inputs of
    its own that are under way.
    """

    device: str
    state: str
    is_silent: bool
    serves: tuple[str, ...]
    runs_hz: float | None
    waiting: int | None
    answers_hz: float | None
    pending: int | None
    early_share: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    rss_bytes: int | None
    heard_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRow:
    """A pipeline: its thresholds (None without a plan: the bundle's own apply) and what its origins answered.

    `shares` are those of the exits, since the origins started; `latency_p95_s` is the slowest origin's.
    """

    pipeline: str
    epochs: tuple[int, ...]
    criterion: str | None
    thresholds: str | None
    answers_hz: float
    shares: tuple[float, ...]
    latency_p95_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A snapshot of a site. `trouble` says why there is no broker; `refused` counts messages that were rejected."""

    site: str
    trouble: str | None
    orchestrator: str | None
    refused: int
    boards: tuple[BoardRow, ...]
    pipelines: tuple[PipelineRow, ...]


class Live:
    """Listens to a site; `transport` is opened and polled by the caller. `clock` gives monotonic seconds."""

    def __init__(self, site: str, transport: Transport, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._site = site
        self._transport = transport
        self._clock = clock
        self._fleet = Fleet(None)
        self._before: dict[str, Telemetry] = {}
        self._stats = Stats()
        self._figures: dict[str, dict[str, OriginStats]] = {}
        self._plans: dict[str, Plan] = {}
        self._claim: Claim | None = None
        self._refused = 0

    def subscriptions(self) -> list[tuple[str, int]]:
        """Return what to subscribe to."""
        of_devices = [(topics.device(self._site, "+", kind), kind) for kind in (Kind.STATE, Kind.META, Kind.TELEMETRY)]
        others = [(topics.plan(self._site, "+"), Kind.PLAN), (topics.orchestrator(self._site), Kind.ORCHESTRATOR)]
        return [(topic, DELIVERY[kind].qos) for topic, kind in of_devices + others]

    def connected(self) -> None:
        """Nothing is done about it: retained messages follow."""

    def disconnected(self, why: Problem) -> None:
        """The frame says why; the transport reconnects by itself."""

    def published(self, token: str) -> None:
        """Nothing is published here."""

    def given_up(self, token: str) -> None:
        """Nothing is done about it."""

    def unread(self, topic: str, payload: bytes) -> None:
        """No work is sent from here."""

    def received(self, message: Received) -> None:
        """Take a message in; one that breaks the protocol is counted."""
        self._transport.acknowledge(message.token)
        try:
            self._take_in(topics.parse(message.topic), message)
        except RemoteProtocolError as error:
            # A report that another one overtook is not an error.
            self._refused += error.reason != "old-sequence"

    def _take_in(self, address: Address, message: Received) -> None:
        name, payload = address.device or address.pipeline, message.payload
        match address.kind:
            case Kind.ORCHESTRATOR:
                self._claim = decode(Claim, payload) if payload else None
            case Kind.PLAN if name is not None:
                self._take_in_plan(name, payload)
            case Kind.STATE if name is not None and not payload:
                self._forget(name)
            case Kind.STATE | Kind.META | Kind.TELEMETRY if name is not None and payload:
                self._take_in_device(address.kind, name, message)

    def _take_in_plan(self, name: str, payload: bytes) -> None:
        if not payload:
            self._plans.pop(name, None)
        elif name in self._plans or len(self._plans) < MAX_PIPELINES:
            plan = decode(Plan, payload)
            _check_name(name, plan.pipeline)
            self._plans[name] = plan

    def _forget(self, device: str) -> None:
        self._fleet.forget(device)
        self._stats.forget(device)
        self._before.pop(device, None)
        self._figures.pop(device, None)

    def _take_in_device(self, kind: Kind, name: str, message: Received) -> None:
        match kind:
            case Kind.STATE:
                state = decode(DeviceState, message.payload)
                _check_name(name, state.device)
                self._fleet.saw_state(self._clock(), state, retained=message.retain)
            case Kind.META:
                meta = decode(DeviceMeta, message.payload)
                _check_name(name, meta.device)
                self._fleet.saw_meta(meta)
            case _:
                report = decode(Telemetry, message.payload)
                _check_name(name, report.device)
                known = self._fleet.get(name)
                device = self._fleet.saw_telemetry(self._clock(), report)
                if known is not None and known.telemetry is not None and known.boot == report.boot:
                    self._before[name] = known.telemetry
                else:
                    self._before.pop(name, None)
                self._figures[name] = {figures.pipeline: figures for figures in self._stats.take(device)}

    def is_complete(self) -> bool:
        """Whether a board is known, and every ready one has reported."""
        ready = [device for device in self._fleet if device.status is DeviceStatus.READY]
        return len(self._fleet) > 0 and all(device.telemetry is not None for device in ready)

    def frame(self) -> Frame:
        """Return what is known now; boards that need a look come first."""
        boards = [self._board(device) for device in self._fleet]
        boards.sort(key=lambda row: (row.state == DeviceStatus.READY and not row.is_silent, row.device))
        claim = self._claim
        return Frame(
            site=self._site,
            trouble=None if self._transport.online else str(self._transport.last_error or "connecting"),
            orchestrator=claim.orchestrator if claim is not None and claim.running else None,
            refused=self._refused,
            boards=tuple(boards),
            pipelines=tuple(self._pipelines()),
        )

    def _board(self, device: Device) -> BoardRow:
        report, figures = device.telemetry, list(self._figures.get(device.device, {}).values())
        heard_s = None if device.heard_at_s is None else max(0.0, self._clock() - device.heard_at_s)
        is_ready = device.status is DeviceStatus.READY
        answered = [one for one in figures if one.early_share is not None]
        return BoardRow(
            device=device.device,
            state=device.status.value if device.status is not None else "unknown",
            is_silent=is_ready and heard_s is not None and is_stale(heard_s, device.period_s),
            serves=tuple(_serves(device)),
            runs_hz=None if report is None else self._runs_hz(report),
            waiting=None if report is None else sum(s.waiting for part in report.pipelines for s in part.stages),
            answers_hz=sum(one.rate_hz for one in figures) if figures else None,
            pending=sum(one.pending for one in figures) if figures else None,
            early_share=_weighted(answered),
            latency_p50_s=_worst(one.latency_p50_s for one in answered),
            latency_p95_s=_worst(one.latency_p95_s for one in answered),
            rss_bytes=None if report is None else report.rss_bytes,
            heard_s=heard_s,
        )

    def _runs_hz(self, report: Telemetry) -> float:
        before = self._before.get(report.device)
        period_s = report.uptime_s - (before.uptime_s if before is not None else 0.0)
        runs = _runs(report) - (_runs(before) if before is not None else 0)
        return max(0, runs) / period_s if period_s > 0 else 0.0

    def _pipelines(self) -> Iterable[PipelineRow]:
        names = {part.pipeline for device in self._fleet if device.telemetry for part in device.telemetry.pipelines}
        for name in sorted(names | self._plans.keys()):
            epochs: set[int] = set()
            exits: Counter[int] = Counter()
            for device in self._fleet:
                for part in device.telemetry.pipelines if device.telemetry is not None else ():
                    if part.pipeline == name:
                        epochs.add(part.epoch)
                        exits.update(dict(enumerate(part.origin.exits)) if part.origin is not None else {})
            figures = [
                one for of_device in self._figures.values() for one in of_device.values() if one.pipeline == name
            ]
            plan, total = self._plans.get(name), exits.total()
            yield PipelineRow(
                pipeline=name,
                epochs=tuple(sorted(epochs)),
                criterion=None if plan is None else plan.criterion,
                thresholds=None if plan is None else thresholds_text(plan.thresholds),
                answers_hz=sum(one.rate_hz for one in figures),
                shares=tuple(exits[k] / total for k in sorted(exits)) if total else (),
                latency_p95_s=_worst(one.latency_p95_s for one in figures),
            )


def _check_name(of_topic: str, said: str) -> None:
    if of_topic != said:
        raise RemoteProtocolError("device", f"{said!r} on the topic of {of_topic!r}", RESTRICT)


def _serves(device: Device) -> Iterable[str]:
    """Give what a board does, by pipeline: `fashion:0,1,origin`; a branch of a wide stage is `0.1`."""
    parts: dict[str, list[str]] = {}
    if device.meta is not None:
        for held in device.meta.stages:
            branch = "" if held.branch is None else f".{held.branch}"
            parts.setdefault(held.pipeline, []).append(f"{held.stage}{branch}")
        for name in device.meta.fusers:
            parts.setdefault(printable(name), []).append("fuser")
        for name in device.meta.origins:
            parts.setdefault(printable(name), []).append("origin")
    for name, roles in parts.items():
        yield f"{name}:{','.join(roles)}"


def _runs(report: Telemetry) -> int:
    stages = [stage for part in report.pipelines for stage in part.stages]
    return sum(stage.exited + stage.forwarded + stage.audited for stage in stages)


def _weighted(figures: Sequence[OriginStats]) -> float | None:
    answers = sum(one.rate_hz for one in figures)
    return sum(one.rate_hz * (one.early_share or 0.0) for one in figures) / answers if answers > 0 else None


def _worst(seconds: Iterable[float | None]) -> float | None:
    return max((value for value in seconds if value is not None), default=None)
