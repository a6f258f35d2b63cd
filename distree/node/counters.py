"""What a board counts: of the stages that it runs, and of its inputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from distree.messages.request import Reason
from distree.messages.telemetry import OriginTelemetry, StageTelemetry
from distree.node.job import Job

MAX_LATENCIES = 1024
"""Latencies kept per telemetry period; older ones of a busy period are left out."""


@dataclass(slots=True)
class StageCounters:
    """Counters of one stage since boot, and times of the runs since the last report."""

    received: int = 0
    exited: int = 0
    forwarded: int = 0
    shed: int = 0
    expired: int = 0
    failed: int = 0
    duplicate: int = 0
    wasted: int = 0
    bytes_out: int = 0
    runs: int = 0
    period_runs: int = 0
    period_queue_s: float = 0.0
    period_compute_s: float = 0.0
    compute_s: float = 0.0
    """Estimate of what a run takes: a mean of the last few."""

    def ran(self, queue_s: float, compute_s: float) -> None:
        """Count one run."""
        self.runs += 1
        self.period_runs += 1
        self.period_queue_s += queue_s
        self.period_compute_s += compute_s
        self.compute_s += (compute_s - self.compute_s) / min(8, self.period_runs)


class Counters:
    """Counters by stage. Audits have their own: they are not to be mistaken for traffic."""

    def __init__(self, stages: Iterable[int]) -> None:
        self._live = {k: StageCounters() for k in stages}
        self._audits = {k: StageCounters() for k in self._live}

    def of(self, job: Job) -> StageCounters:
        """Return the counters of the job's stage."""
        return (self._audits if job.context.audit else self._live)[job.stage]

    def at(self, stage: int, *, audit: bool = False) -> StageCounters:
        """Return the counters of a stage; KeyError for one that is not counted here."""
        return (self._audits if audit else self._live)[stage]

    def report(self, stage: int, waiting: int) -> StageTelemetry:
        """Report on a stage, of which `waiting` jobs wait; the period of the means starts again."""
        counters = self._live[stage]
        runs = max(1, counters.period_runs)
        report = StageTelemetry(
            stage=stage,
            received=counters.received,
            exited=counters.exited,
            forwarded=counters.forwarded,
            shed=counters.shed,
            expired=counters.expired,
            failed=counters.failed,
            duplicate=counters.duplicate,
            waiting=waiting,
            bytes_out=counters.bytes_out,
            queue_s=counters.period_queue_s / runs,
            compute_s=counters.period_compute_s / runs,
            wasted=counters.wasted,
            audited=self._audits[stage].runs,
        )
        counters.period_runs, counters.period_queue_s, counters.period_compute_s = 0, 0.0, 0.0
        return report


class OriginCounters:
    """Counters of an origin since boot, and latencies since the last report."""

    def __init__(self, exits: int) -> None:
        self.accepted = self.answered = self.shed = self.dropped = self.late = 0
        self._exits = [0] * exits
        self._reasons: dict[str, int] = {}
        self._latencies: deque[float] = deque(maxlen=MAX_LATENCIES)

    def answer(self, latency_s: float, reason: Reason, exit_taken: int | None) -> None:
        """Count an answer."""
        self.answered += 1
        self._latencies.append(latency_s)
        self._reasons[reason] = self._reasons.get(reason, 0) + 1
        if exit_taken is not None:
            self._exits[exit_taken] += 1

    def report(self) -> OriginTelemetry:
        """Report what is counted here; latencies start again."""
        ordered = sorted(self._latencies)
        self._latencies.clear()
        return OriginTelemetry(
            accepted=self.accepted,
            answered=self.answered,
            resent=0,
            late=self.late,
            pending=0,
            exits=tuple(self._exits),
            reasons=dict(self._reasons),
            latency_p50_s=_quantile(ordered, 0.50),
            latency_p95_s=_quantile(ordered, 0.95),
            latency_max_s=_quantile(ordered, 1.0),
            shed=self.shed,
            dropped=self.dropped,
        )


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
