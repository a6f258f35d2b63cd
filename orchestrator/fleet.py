"""What is known of the devices: presence, what they serve, their last report. No I/O, no clock.

Boot ids have no order, so the run heard last is the current one, whichever it is: whoever sends a message under another
boot id is believed only until the board is next heard, and can never lock it out. What the few runs before had said is
kept, and holds again when one of them is heard again. That is counted: the will of an old session may come after the
first message of the next one, which the board corrects by itself, but runs that take turns are two boards with one id.

A late report of a run that is over is taken as that run's, and makes it the current one until the next report of the
other, seconds later. That is rare, since nothing repeats a report at QoS 0, and refusing it would be a lockout again:
somebody who forges one would have all true reports refused. It is compared with the last number of its own run, so that
nothing is ever replaced by something older.

Whoever may publish states can make up any number of boards. When there are too many, the one that was silent longest is
forgotten, and before it those that never reported: boards that work are heard every few seconds, and stay.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from distree.errors import RemoteProtocolError
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus
from distree.messages.telemetry import FusionTelemetry, OriginTelemetry, PipelineTelemetry, StageTelemetry, Telemetry

MAX_DEVICES = 10_000
RUNS_REMEMBERED = 4
"""Earlier runs of a device that are remembered; more than two boards rarely share an id."""
DEFAULT_PERIOD_S = 10.0
SHORTEST_PERIOD_S, LONGEST_PERIOD_S = 1.0, 300.0
STALE_PERIODS = 3
"""A device is silent when it has sent no telemetry for this many of its own periods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device as last heard. `heard_at_s` is on the caller's clock, None if only retained messages came.

    `retained_at_s` is when a retained state first told of it, None if none did. `period_s` is the time between two of
    its reports, by its own count. `earlier` has what is known of the runs before the current one, the latest first;
    `returns` counts how often one of them was heard again.
    """

    device: str
    boot: str
    status: DeviceStatus | None = None
    meta: DeviceMeta | None = None
    telemetry: Telemetry | None = None
    heard_at_s: float | None = None
    retained_at_s: float | None = None
    period_s: float = DEFAULT_PERIOD_S
    earlier: tuple[Device, ...] = ()
    returns: int = 0


def report_of(device: Device, pipeline: str) -> PipelineTelemetry | None:
    """Return what the device last reported on the pipeline; None if it reported nothing."""
    for report in device.telemetry.pipelines if device.telemetry else ():
        if report.pipeline == pipeline:
            return report
    return None


def has_reported(device: Device) -> bool:
    """Whether the device has sent a report in any run that is remembered: one that works does, every few seconds."""
    return any(run.telemetry is not None for run in (device, *device.earlier))


def serves(device: Device, pipeline: str) -> bool:
    """Whether the device serves a stage of the pipeline, fuses for it, is an origin of it or reports on it."""
    held = device.meta is not None and (
        pipeline in device.meta.origins
        or pipeline in device.meta.fusers
        or any(stage.pipeline == pipeline for stage in device.meta.stages)
    )
    return held or report_of(device, pipeline) is not None


def origin_boots(device: Device | None, pipeline: str) -> tuple[str, ...]:
    """Return the boot ids of the remembered runs of a device in which it is an origin of the pipeline."""
    # Any message may have made another run the current one for a moment.
    runs = () if device is None else (device, *device.earlier)
    return tuple(run.boot for run in runs if run.meta is not None and pipeline in run.meta.origins)


def is_silent(device: Device, heard_s: float | None, retained_s: float | None = None) -> bool:
    """Whether a ready device was last heard too long ago, `heard_s` seconds; it is then probably gone.

    Of a device that was never heard (None), `retained_s` says how long ago a retained state told of it: as its period
    is unknown, it is given the longest one.
    """
    if device.status is not DeviceStatus.READY:
        return False
    if heard_s is not None:
        return heard_s > STALE_PERIODS * device.period_s
    return retained_s is not None and retained_s > STALE_PERIODS * LONGEST_PERIOD_S


def ages_s(device: Device, now_s: float) -> tuple[float | None, float | None]:
    """Return how long ago a device was last heard, and a retained state first told of it; None where never."""
    return _age_s(now_s, device.heard_at_s), _age_s(now_s, device.retained_at_s)


class Fleet:
    """All devices of a site. Every `now_s` is of one monotonic clock.

    `exits` gives the number of exits per configured pipeline; what reports say of other pipelines or stages is left
    out, which also bounds what one device can make the orchestrator keep. With None everything is kept, for programs
    without a configuration; then only the codec's limits bound it. Of more than `limit` devices some are forgotten, but
    none that is `reserved`. Methods that note something return the device as it now stands, or raise
    RemoteProtocolError (`old-sequence`).

    >>> fleet = Fleet({"fashion": 3})
    >>> fleet.saw_state(0.0, DeviceState(device="a", boot="b1", status=DeviceStatus.READY)).status.value
    'ready'
    """

    def __init__(
        self, exits: Mapping[str, int] | None, *, limit: int = MAX_DEVICES, reserved: Collection[str] = ()
    ) -> None:
        self._exits = None if exits is None else dict(exits)
        self._limit = limit
        self._devices: dict[str, Device] = {}
        self._silent: frozenset[str] = frozenset()
        self._reserved = frozenset(reserved)
        # Those that may be forgotten, the one that was silent longest first.
        self._reporting: OrderedDict[str, None] = OrderedDict()
        self._unproved: OrderedDict[str, None] = OrderedDict()
        self._pushed_out: list[str] = []

    def __len__(self) -> int:
        return len(self._devices)

    def __iter__(self) -> Iterator[Device]:
        return iter(self._devices.values())

    def get(self, device: str) -> Device | None:
        """Return what is known of a device."""
        return self._devices.get(device)

    def last_report(self, device: str, boot: str) -> Telemetry | None:
        """Return the last report of a run of a device, as far as it is remembered."""
        known = self._devices.get(device)
        runs = () if known is None else (known, *known.earlier)
        return next((run.telemetry for run in runs if run.boot == boot), None)

    def saw_state(self, now_s: float, state: DeviceState, *, retained: bool = False) -> Device:
        """Note a device's state; a retained one says nothing about when the device was last alive."""
        device = self._of_boot(state.device, state.boot)
        if not retained:
            return self._keep(replace(device, status=state.status, heard_at_s=now_s))
        retained_at_s = now_s if device.retained_at_s is None else device.retained_at_s
        return self._keep(replace(device, status=state.status, retained_at_s=retained_at_s))

    def saw_meta(self, meta: DeviceMeta) -> Device:
        """Note a device's description."""
        return self._keep(replace(self._of_boot(meta.device, meta.boot), meta=self._trim_meta(meta)))

    def saw_telemetry(self, now_s: float, report: Telemetry) -> Device:
        """Note a device's report; it must be newer than the last one of the same run."""
        device = self._of_boot(report.device, report.boot)
        last = device.telemetry
        if last is not None and report.sequence <= last.sequence:
            raise RemoteProtocolError("old-sequence", f"{report.sequence} after {last.sequence}")
        period_s = device.period_s if last is None else _period_s(last, report)
        telemetry = self._trim_telemetry(report)
        return self._keep(replace(device, telemetry=telemetry, heard_at_s=now_s, period_s=period_s))

    def is_start(self, state: DeviceState) -> bool:
        """Whether this state, which has not been noted yet, makes a run of a device ready for the first time."""
        known = self._devices.get(state.device)
        runs = () if known is None else (known, *known.earlier)
        said = [run.status for run in runs if run.boot == state.boot]
        return state.status is DeviceStatus.READY and all(one in (None, DeviceStatus.INIT) for one in said)

    def forget(self, device: str) -> bool:
        """Drop a device whose retained state was cleared; False if it was not known."""
        self._reporting.pop(device, None)
        self._unproved.pop(device, None)
        return self._devices.pop(device, None) is not None

    def take_pushed_out(self) -> list[str]:
        """Return the devices that were forgotten since the last call because there were too many."""
        pushed_out, self._pushed_out = self._pushed_out, []
        return pushed_out

    def silence(self, now_s: float) -> tuple[frozenset[str], frozenset[str]]:
        """Return which ready devices fell silent and which are heard again since the last call."""
        silent = frozenset(device.device for device in self if is_silent(device, *ages_s(device, now_s)))
        before, self._silent = self._silent, silent
        return silent - before, before - silent

    def _of_boot(self, device_id: str, boot: str) -> Device:
        known = self._devices.get(device_id)
        if known is None:
            return Device(device=device_id, boot=boot)
        if boot == known.boot:
            return known
        runs = (replace(known, earlier=()), *known.earlier)
        earlier = tuple(run for run in runs if run.boot != boot)[:RUNS_REMEMBERED]
        again = next((run for run in known.earlier if run.boot == boot), None)
        if again is not None:
            return replace(again, earlier=earlier, returns=known.returns + 1)
        # A new run: nothing that the one before said holds any longer.
        return Device(device=device_id, boot=boot, earlier=earlier, period_s=known.period_s, returns=known.returns)

    def _keep(self, device: Device) -> Device:
        name = device.device
        self._devices[name] = device
        if name not in self._reserved:
            kept, other = self._unproved, self._reporting
            if device.telemetry is not None or name in self._reporting:
                kept, other = other, kept
            other.pop(name, None)
            kept[name] = None
            kept.move_to_end(name)
            if len(self._reporting) + len(self._unproved) > self._limit:
                self._push_out(name)
        return device

    def _push_out(self, newest: str) -> None:
        """Forget the device that was silent longest; the newest one stays, to be heard of again."""
        others = self._unproved if len(self._unproved) > (newest in self._unproved) else self._reporting
        oldest = next(iter(others))
        self.forget(oldest)
        self._pushed_out.append(oldest)

    def _trim_meta(self, meta: DeviceMeta) -> DeviceMeta:
        if self._exits is None:
            return meta
        held = {
            (stage.pipeline, stage.stage): stage
            for stage in meta.stages
            if stage.stage < self._exits.get(stage.pipeline, 0)
        }
        return replace(
            meta,
            stages=tuple(held.values()),
            origins=_known(meta.origins, self._exits),
            fusers=_known(meta.fusers, self._exits),
            inputs=tuple(one for one in meta.inputs if one.pipeline in self._exits),
        )

    def _trim_telemetry(self, report: Telemetry) -> Telemetry:
        if self._exits is None:
            return report
        kept = {
            part.pipeline: _trim_pipeline(part, self._exits[part.pipeline])
            for part in report.pipelines
            if part.pipeline in self._exits
        }
        return replace(report, pipelines=tuple(kept.values()))


def _known(pipelines: Iterable[str], configured: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(pipelines) if name in configured)


def is_behind(device: Device, pipeline: str, wanted: str) -> bool:
    """Whether a ready device of the pipeline does not report that it follows the plan whose hash is `wanted`."""
    if device.status is not DeviceStatus.READY or not serves(device, pipeline):
        return False
    report = report_of(device, pipeline)
    return report is None or report.plan_hash != wanted


def _age_s(now_s: float, then_s: float | None) -> float | None:
    return None if then_s is None else max(0.0, now_s - then_s)


def _period_s(last: Telemetry, report: Telemetry) -> float:
    period_s = (report.uptime_s - last.uptime_s) / (report.sequence - last.sequence)
    return min(max(period_s, SHORTEST_PERIOD_S), LONGEST_PERIOD_S)


def _trim_pipeline(part: PipelineTelemetry, exits: int) -> PipelineTelemetry:
    stages: dict[int, StageTelemetry] = {report.stage: report for report in part.stages if report.stage < exits}
    fusions: dict[int, FusionTelemetry] = {report.stage: report for report in part.fusions if report.stage < exits}
    return replace(
        part,
        stages=tuple(stages.values()),
        fusions=tuple(fusions.values()),
        origin=_trim_origin(part.origin, exits),
    )


def _trim_origin(origin: OriginTelemetry | None, exits: int) -> OriginTelemetry | None:
    return origin and replace(origin, exits=origin.exits[:exits])
