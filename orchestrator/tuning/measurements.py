"""What a pipeline's boards did between two measurements: latency, traffic and compute per input. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distree.messages.telemetry import PipelineTelemetry, Telemetry

LONGEST_S = 3600.0
"""Longest time that a plan can carry, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Figures of the `inputs` answered in one period. `latency_p95_s` is the slowest origin's, None if none reported.

    `macs_per_input` includes audits, `bytes_per_input` is what boards sent to each other for inputs. `shed` counts
    inputs that full queues turned away.
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


class LoadMeter:
    """Measures the boards of one pipeline. costs: multiply-accumulates of an input that leaves at each exit.

    A board that has restarted, or is seen for the first time, counts from its next report on.
    """

    def __init__(self, pipeline: str, costs: Sequence[float]) -> None:
        self._pipeline = pipeline
        self._costs = tuple(costs)
        self._per_stage = [after - before for before, after in zip((0.0, *costs), costs, strict=False)]
        self._last: dict[str, _Counters] = {}

    def measure(self, reports: Iterable[Telemetry]) -> Measurement | None:
        """Return what was done since the last call, given each board's latest report; None if no input was answered."""
        inputs, macs, nbytes, shed = 0, 0.0, 0, 0
        latencies = []
        now: dict[str, _Counters] = {}
        for report in reports:
            part = _part(report, self._pipeline)
            if part is None:
                continue
            before = self._last.get(report.device)
            if before is not None and (before.boot, before.sequence) == (report.boot, report.sequence):
                # Nothing new, as with most boards of a large fleet at most times.
                now[report.device] = before
                continue
            counted = now[report.device] = self._count(report, part)
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
        return Measurement(
            inputs=inputs,
            latency_p95_s=max(latencies, default=None),
            macs_per_input=macs / inputs,
            bytes_per_input=nbytes / inputs,
            shed=shed,
        )

    def _count(self, report: Telemetry, part: PipelineTelemetry) -> _Counters:
        exits = part.origin.exits if part.origin is not None else ()
        audited = {stage.stage: stage.audited for stage in part.stages if stage.stage < len(self._per_stage)}
        return _Counters(
            boot=report.boot,
            sequence=report.sequence,
            answered=part.origin.answered if part.origin is not None else 0,
            macs=sum(count * cost for count, cost in zip(exits, self._costs, strict=False))
            + sum(count * self._per_stage[k] for k, count in audited.items()),
            nbytes=sum(stage.bytes_out for stage in part.stages),
            shed=sum(stage.shed for stage in part.stages),
        )


def rest_s(reports: Iterable[Telemetry], pipeline: str, exits: int) -> tuple[float, ...]:
    """Return, per exit but the last, the mean seconds that an input spends at the next stage; () if one is unknown.

    It is the time for waiting and computing in each board's latest report; boards are weighted equally.
    """
    seconds: dict[int, list[float]] = {}
    for report in reports:
        part = _part(report, pipeline)
        for stage in part.stages if part is not None else ():
            if stage.compute_s > 0:
                seconds.setdefault(stage.stage, []).append(stage.queue_s + stage.compute_s)
    means = [sum(seconds.get(k, ())) / max(1, len(seconds.get(k, ()))) for k in range(1, exits)]
    return tuple(min(mean, LONGEST_S) for mean in means) if all(means) else ()


def _part(report: Telemetry, pipeline: str) -> PipelineTelemetry | None:
    return next((part for part in report.pipelines if part.pipeline == pipeline), None)
