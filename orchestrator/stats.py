"""What origins did between two of their reports: counters since boot become rates and shares. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator

from distree.messages.site import OriginStats
from distree.messages.telemetry import OriginTelemetry, PipelineTelemetry
from orchestrator.fleet import Device

SHORTEST_S = 1e-3
"""Of less time between two reports no rate is made: what agents send may be anything."""


class Stats:
    """Remembers the last report of every origin. The first report of a run of an agent counts from its start."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], tuple[str, float, OriginTelemetry]] = {}

    def take(self, device: Device) -> Iterator[OriginStats]:
        """Give what the device's newest report says of each pipeline of which it is an origin."""
        for part in device.telemetry.pipelines if device.telemetry is not None else ():
            if part.origin is not None:
                yield self._compare(device, part, part.origin)

    def forget(self, device: str) -> None:
        """Drop a device that is gone."""
        for key in [key for key in self._last if key[0] == device]:
            del self._last[key]

    def _compare(self, device: Device, part: PipelineTelemetry, report: OriginTelemetry) -> OriginStats:
        assert device.telemetry is not None  # noqa: S101 - the caller has looked
        key, uptime_s = (device.device, part.pipeline), device.telemetry.uptime_s
        boot, before_s, before = self._last.get(key, ("", 0.0, report))
        is_later = boot == device.boot
        self._last[key] = (device.boot, uptime_s, report)
        answered = report.answered - (before.answered if is_later else 0)
        early = _early(report) - (_early(before) if is_later else 0)
        period_s = uptime_s - (before_s if is_later else 0.0)
        return OriginStats(
            pipeline=part.pipeline,
            origin=device.device,
            epoch=part.epoch,
            answered=report.answered,
            pending=report.pending,
            rate_hz=max(0, answered) / period_s if period_s >= SHORTEST_S else 0.0,
            early_share=min(max(early / answered, 0.0), 1.0) if answered > 0 else None,
            latency_p50_s=report.latency_p50_s if answered > 0 else None,
            latency_p95_s=report.latency_p95_s if answered > 0 else None,
        )


def _early(report: OriginTelemetry) -> int:
    return sum(report.exits[:-1])
