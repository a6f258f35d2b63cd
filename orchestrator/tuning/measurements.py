"""What a pipeline's boards did between two looks: latency, traffic and compute per input. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distree.messages.device import DeviceStatus
from distree.messages.telemetry import PipelineTelemetry
from orchestrator.fleet import Device

LONGEST_S = 3600.0
"""Longest time that a plan can tell, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of the inputs answered between two looks. `latency_p95_s` is the worst origin's, None where none reported.

    `macs_per_input` counts audits too, `bytes_per_input` what boards sent to each other for inputs. `shed` counts
    inputs that a full queue cost.
    """

    inputs: int
    latency_p95_s: float | None
    macs_per_input: float
    bytes_per_input: float
    shed: int


@dataclass(slots=True)
class _Counters:
    boot: str
    sequence: int
    answered: int
    macs: float
    nbytes: int
    shed: int


class Load:
    """Looks at the boards of one pipeline. costs: multiply-accumulates of an input that leaves at each exit.

    A board that was started anew, or is seen for the first time, counts from its next report on.
    """

    def __init__(self, pipeline: str, costs: Sequence[float]) -> None:
        self._pipeline = pipeline
        self._costs = tuple(costs)
        self._per_stage = [after - before for before, after in zip((0.0, *costs), costs, strict=False)]
        self._last: dict[str, _Counters] = {}

    def look(self, devices: Iterable[Device]) -> Measured | None:
        """Return what was done since the last look; None if no input was answered."""
        inputs, macs, nbytes, shed = 0, 0.0, 0, 0
        latencies = []
        now: dict[str, _Counters] = {}
        for device in devices:
            part = _part(device, self._pipeline)
            if part is None or device.telemetry is None:
                continue
            before = self._last.get(device.device)
            if before is not None and (before.boot, before.sequence) == (device.boot, device.telemetry.sequence):
                # No news: most boards of a large fleet, at most looks.
                now[device.device] = before
                continue
            counted = now[device.device] = self._count(device.boot, device.telemetry.sequence, part)
            if before is None or before.boot != counted.boot:
                continue
            answered = max(0, counted.answered - before.answered)
            inputs += answered
            macs += max(0.0, counted.macs - before.macs)
            nbytes += max(0, counted.nbytes - before.nbytes)
            shed += max(0, counted.shed - before.shed)
            if answered and part.origin is not None:
                latencies.append(part.origin.latency_p95_s)
        self._last = now
        if not inputs:
            return None
        return Measured(
            inputs=inputs,
            latency_p95_s=max(latencies, default=None),
            macs_per_input=macs / inputs,
            bytes_per_input=nbytes / inputs,
            shed=shed,
        )

    def _count(self, boot: str, sequence: int, part: PipelineTelemetry) -> _Counters:
        exits = part.origin.exits if part.origin is not None else ()
        audited = {stage.stage: stage.audited for stage in part.stages if stage.stage < len(self._per_stage)}
        return _Counters(
            boot=boot,
            sequence=sequence,
            answered=part.origin.answered if part.origin is not None else 0,
            macs=sum(count * cost for count, cost in zip(exits, self._costs, strict=False))
            + sum(count * self._per_stage[k] for k, count in audited.items()),
            nbytes=sum(stage.bytes_out for stage in part.stages),
            shed=sum(stage.shed for stage in part.stages),
        )


def rest_s(devices: Iterable[Device], pipeline: str, exits: int) -> tuple[float, ...]:
    """Return, per exit but the last, the mean time that an input spends at the next stage; () if one is unknown.

    Of boards that are ready, each weighted alike: waiting and computing, as their last reports say.
    """
    seconds: dict[int, list[float]] = {}
    for device in devices:
        part = _part(device, pipeline)
        if part is not None and device.status is DeviceStatus.READY:
            for stage in part.stages:
                if stage.compute_s > 0:
                    seconds.setdefault(stage.stage, []).append(stage.queue_s + stage.compute_s)
    means = [sum(seconds.get(k, ())) / max(1, len(seconds.get(k, ()))) for k in range(1, exits)]
    return tuple(min(mean, LONGEST_S) for mean in means) if all(means) else ()


def _part(device: Device, pipeline: str) -> PipelineTelemetry | None:
    for part in device.telemetry.pipelines if device.telemetry is not None else ():
        if part.pipeline == pipeline:
            return part
    return None
