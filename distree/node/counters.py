"""What a board counts of the stages that it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from distree.messages.telemetry import StageTelemetry
from distree.node.job import Job


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
        """Report on a stage, of which `waiting` jobs wait; the period of the means begins anew."""
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
