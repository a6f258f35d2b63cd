"""What origins did between two of their reports: counters since boot become rates and shares. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator

from distree.messages.site import OriginStats
from distree.messages.telemetry import OriginTelemetry, PipelineTelemetry, Telemetry

SHORTEST_S = 1e-3
"""No rate is computed over less time between two reports: what agents send may be anything."""


def origin_stats(before: Telemetry | None, report: Telemetry) -> Iterator[OriginStats]:
    """Give what a board did as an origin of each of its pipelines, between two reports of one run of its agent.

    Without a report before it, what it did since it started.
    """
    earlier = {part.pipeline: part.origin for part in before.pipelines if part.origin} if before is not None else {}
    for part in report.pipelines:
        if part.origin is not None:
            last = earlier.get(part.pipeline)
            since_s = before.uptime_s if before is not None and last is not None else 0.0
            yield _compare(report.device, part, part.origin, last, report.uptime_s - since_s)


def _compare(
    device: str, part: PipelineTelemetry, now: OriginTelemetry, before: OriginTelemetry | None, period_s: float
) -> OriginStats:
    answered = now.answered - (before.answered if before is not None else 0)
    early = _early(now) - (_early(before) if before is not None else 0)
    return OriginStats(
        pipeline=part.pipeline,
        origin=device,
        epoch=part.epoch,
        answered=now.answered,
        pending=now.pending,
        rate_hz=max(0, answered) / period_s if period_s >= SHORTEST_S else 0.0,
        early_share=min(max(early / answered, 0.0), 1.0) if answered > 0 else None,
        latency_p50_s=now.latency_p50_s if answered > 0 else None,
        latency_p95_s=now.latency_p95_s if answered > 0 else None,
    )


def _early(report: OriginTelemetry) -> int:
    return sum(report.exits[:-1])
