"""One view of a site: what each board is and serves, whether it is silent, which plans it follows, how fast it works.

`SiteView` follows a live site by its boards' messages; `stored_boards` reads what a store knows of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

from distree.messages.codec import decode
from distree.messages.device import DeviceMeta, DeviceState
from distree.messages.site import OriginStats
from distree.messages.telemetry import PipelineTelemetry, Telemetry
from distree.printable import printable
from distree.record import record
from distree.topics import Kind
from orchestrator.addresses import of_device
from orchestrator.fleet import Device, Fleet, ages_s, is_silent
from orchestrator.origin_stats import origin_stats
from orchestrator.store.database import Store
from orchestrator.store.lock import is_served
from orchestrator.store.records import DeviceRow

# ---------------------------------------------------------------- what a board is and does


@record
class FollowedPlan:
    """The plan that a board reports to follow for a pipeline; its epoch is 0 for the bundle's own thresholds."""

    pipeline: str
    epoch: int
    plan_hash: str


@record
class BoardView:
    """A board as it is shown. `heard_s` is how many seconds ago it was heard, None if it never was.

    `serves` is as `serves_text` writes it. What the board has not reported is None.
    """

    device: str
    state: str
    is_silent: bool
    serves: str
    runtime: str
    heard_s: float | None
    follows: tuple[FollowedPlan, ...]
    uptime_s: float | None
    rss_bytes: int | None
    waiting: int | None
    dead_letters: int
    offline_dropped: int


@record
class BoardRates:
    """What a board did between its last two reports, or since it started if it has sent one only.

    `runs_hz` counts runs of segments. The others are about its own inputs, None where it is no origin or answered none:
    `pending` counts those in progress, `early_share` is the share that left before the last exit, and latencies are
    those of its slowest pipeline.
    """

    runs_hz: float
    answers_hz: float | None
    pending: int | None
    early_share: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None


def state_of(device: Device) -> str:
    """Return a device's state in one word; `unknown` before it has said."""
    return device.status.value if device.status is not None else "unknown"


def serves_text(meta: DeviceMeta | None) -> str:
    """Say in short what a board serves, by pipeline; a stage's branch follows its number. "" if it serves nothing.

    >>> from distree.messages.device import HeldStage
    >>> held = [HeldStage(pipeline="p", stage=k, model="m", revision="r", branch=b) for k, b in ((0, None), (1, 2))]
    >>> about = dict(device="a", boot="b", version="", python="", runtime="", machine="", memory_mb=0)
    >>> serves_text(DeviceMeta(**about, stages=tuple(held), origins=("p", "q"), fusers=("q",)))
    'p:0,1.2,origin q:fuser,origin'
    """
    if meta is None:
        return ""
    roles: dict[str, list[str]] = {}
    for held in meta.stages:
        branch = "" if held.branch is None else f".{held.branch}"
        roles.setdefault(held.pipeline, []).append(f"{held.stage}{branch}")
    for name in meta.fusers:
        roles.setdefault(name, []).append("fuser")
    for name in meta.origins:
        roles.setdefault(name, []).append("origin")
    return " ".join(f"{printable(name)}:{','.join(of_pipeline)}" for name, of_pipeline in roles.items())


def board_view(device: Device, heard_s: float | None, retained_s: float | None = None) -> BoardView:
    """Return a board as it is shown; `heard_s` and `retained_s` are its ages as `fleet.is_silent` takes them."""
    report, meta = device.telemetry, device.meta
    stages = [stage for part in report.pipelines for stage in part.stages] if report is not None else []
    return BoardView(
        device=device.device,
        state=state_of(device),
        is_silent=is_silent(device, heard_s, retained_s),
        serves=serves_text(meta),
        runtime=printable(meta.runtime) if meta is not None else "",
        heard_s=heard_s,
        follows=tuple(
            FollowedPlan(pipeline=part.pipeline, epoch=part.epoch, plan_hash=part.plan_hash)
            for part in (report.pipelines if report else ())
        ),
        uptime_s=report.uptime_s if report is not None else None,
        rss_bytes=report.rss_bytes if report is not None else None,
        waiting=sum(stage.waiting for stage in stages) if report is not None else None,
        dead_letters=report.dead_letters if report is not None else 0,
        offline_dropped=report.offline_dropped if report is not None else 0,
    )


# ---------------------------------------------------------------- what several boards do together


def reports_on(pipeline: str, devices: Iterable[Device]) -> Iterator[tuple[Device, PipelineTelemetry]]:
    """Give each device that has reported on a pipeline, with its report."""
    for device in devices:
        for part in device.telemetry.pipelines if device.telemetry is not None else ():
            if part.pipeline == pipeline:
                yield device, part


def answered_by_exit(pipeline: str, devices: Iterable[Device]) -> tuple[int, ...]:
    """Return how many inputs all origins of a pipeline answered at each exit since they started; () without any."""
    of_origins = [part.origin.exits for _, part in reports_on(pipeline, devices) if part.origin is not None]
    return tuple(sum(counts) for counts in zip_longest(*of_origins, fillvalue=0))


# ---------------------------------------------------------------- a live site


@record
class Heard:
    """What a board's message has changed: the `device` as it now stands, and whether the message says it has started.

    For a report, `report` is all of it and `stats` has what the board did as an origin since the one before.
    `pushed_out` are the boards that were forgotten to make room for it.
    """

    device: Device
    has_started: bool = False
    report: Telemetry | None = None
    stats: tuple[OriginStats, ...] = ()
    pushed_out: tuple[str, ...] = ()


class SiteView:
    """A site as its boards' messages show it. Every `now_s` is of one monotonic clock.

    `exits` gives the number of exits per configured pipeline, None for a program without a configuration. Boards that
    are `reserved` are never forgotten because there are too many.
    """

    def __init__(self, exits: Mapping[str, int] | None, reserved: Collection[str] = ()) -> None:
        self.fleet = Fleet(exits, reserved=reserved)
        self._rates: dict[str, BoardRates] = {}
        self._stats: dict[str, tuple[OriginStats, ...]] = {}

    def take(self, now_s: float, kind: Kind, device: str, payload: bytes, *, retained: bool) -> Heard | None:
        """Take in a message from the topics of a device; None if its kind is not about the device itself.

        Raises RemoteProtocolError for a message that is refused.
        """
        heard = self._take(now_s, kind, device, payload, retained=retained)
        pushed_out = self.fleet.take_pushed_out()
        for gone in pushed_out:
            self.forget(gone)
        return heard if heard is None or not pushed_out else replace(heard, pushed_out=tuple(pushed_out))

    def _take(self, now_s: float, kind: Kind, device: str, payload: bytes, *, retained: bool) -> Heard | None:
        match kind:
            case Kind.STATE:
                state = of_device(device, decode(DeviceState, payload))
                has_started = not retained and self.fleet.is_start(state)
                known = self.fleet.saw_state(now_s, state, retained=retained)
                return Heard(device=known, has_started=has_started)
            case Kind.META:
                return Heard(device=self.fleet.saw_meta(of_device(device, decode(DeviceMeta, payload))))
            case Kind.TELEMETRY:
                return self._take_report(now_s, of_device(device, decode(Telemetry, payload)))
        return None

    def _take_report(self, now_s: float, report: Telemetry) -> Heard:
        before = self.fleet.last_report(report.device, report.boot)
        device = self.fleet.saw_telemetry(now_s, report)
        kept = device.telemetry or report
        stats = tuple(origin_stats(before, kept))
        self._rates[report.device], self._stats[report.device] = _rates(before, kept, stats), stats
        return Heard(device=device, report=report, stats=stats)

    def forget(self, device: str) -> None:
        """Drop a device that is gone."""
        self.fleet.forget(device)
        self._rates.pop(device, None)
        self._stats.pop(device, None)

    def boards(self, now_s: float) -> tuple[BoardView, ...]:
        """Return all boards as they are now."""
        return tuple(board_view(device, *ages_s(device, now_s)) for device in self.fleet)

    def rates(self, device: str) -> BoardRates | None:
        """Return what a board did recently; None before its first report."""
        return self._rates.get(device)

    def stats(self, pipeline: str) -> tuple[OriginStats, ...]:
        """Return what each origin of a pipeline did between its last two reports."""
        return tuple(one for of_device in self._stats.values() for one in of_device if one.pipeline == pipeline)


def _rates(before: Telemetry | None, report: Telemetry, stats: Sequence[OriginStats]) -> BoardRates:
    period_s = report.uptime_s - (before.uptime_s if before is not None else 0.0)
    runs = _runs(report) - (_runs(before) if before is not None else 0)
    answered = [one for one in stats if one.early_share is not None]
    answers_hz = sum(one.rate_hz for one in answered)
    early_hz = sum(one.rate_hz * (one.early_share or 0.0) for one in answered)
    return BoardRates(
        runs_hz=max(0, runs) / period_s if period_s > 0 else 0.0,
        answers_hz=sum(one.rate_hz for one in stats) if stats else None,
        pending=sum(one.pending for one in stats) if stats else None,
        early_share=early_hz / answers_hz if answers_hz > 0 else None,
        latency_p50_s=slowest(one.latency_p50_s for one in answered),
        latency_p95_s=slowest(one.latency_p95_s for one in answered),
    )


def _runs(report: Telemetry) -> int:
    stages = [stage for part in report.pipelines for stage in part.stages]
    return sum(stage.exited + stage.forwarded + stage.audited for stage in stages)


def slowest(seconds: Iterable[float | None]) -> float | None:
    """Return the longest of some times, of which some may be unknown; None if all are."""
    return max((value for value in seconds if value is not None), default=None)


# ---------------------------------------------------------------- a site in a store


@record
class StoredDevice:
    """A device as a store has it; times are Unix seconds, as in `DeviceRow`."""

    device: Device
    seen_at: float
    heard_at: float | None
    shared: str | None
    shared_at: float | None


def standing_alarm(store: Store, pipeline: str) -> str:
    """Return what a running orchestrator says is wrong with a pipeline's plan; "" where nothing is, or none runs."""
    return store.pipeline(pipeline).alarm if is_served(store.path) else ""


def stored_devices(store: Store) -> tuple[StoredDevice, ...]:
    """Return all devices that a store knows, by id. Raises StoreError."""
    return tuple(map(_stored, store.devices()))


def _stored(row: DeviceRow) -> StoredDevice:
    device = Device(
        device=row.device,
        boot=row.boot,
        status=row.status,
        meta=row.meta,
        telemetry=row.telemetry,
        period_s=row.period_s,
    )
    return StoredDevice(
        device=device, seen_at=row.seen_at, heard_at=row.heard_at, shared=row.shared, shared_at=row.shared_at
    )


def device_row(
    device: Device,
    *,
    seen_at: float,
    heard_at: float | None,
    shared: str | None = None,
    shared_at: float | None = None,
) -> DeviceRow:
    """Return a device as the store keeps it; times are Unix seconds, as in `DeviceRow`."""
    return DeviceRow(
        device=device.device,
        boot=device.boot,
        seen_at=seen_at,
        heard_at=heard_at,
        period_s=device.period_s,
        status=device.status,
        meta=device.meta,
        telemetry=device.telemetry,
        shared=shared,
        shared_at=shared_at,
    )
