"""The thresholds of one pipeline, tuned for its goal: from audit rows to the plan that is to hold. No I/O, no clock.

One `Certified` tuner for the inputs that all branches heard, and one for each set of missing branches that rows tell
of, each with the whole confidence of the goal: what is promised holds for each set by itself. Until a set's own
thresholds are proved, nobody leaves early while these branches are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from distree.errors import RemoteProtocolError
from distree.types import AuditRow, MaskedThresholds, OriginTelemetry, Plan
from orchestrator.config import NEVER_SENT, GoalConfig, Pipeline
from orchestrator.fleet import Device
from orchestrator.intake import Intake
from orchestrator.tuners import Audit, Certified, Vector

MOST_SETS = 16
"""Sets of missing branches that are tuned for; rows of others are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one audit said, and which branches it did without; `origin` and `request` say whose it was."""

    origin: str
    request: str
    missing: tuple[int, ...]
    audit: Audit


class Tuning:
    """The tuners of one pipeline, which has a goal. `take` checks what comes in, `apply` learns from it."""

    def __init__(self, pipeline: Pipeline) -> None:
        assert pipeline.goal is not None  # noqa: S101 - made for pipelines that have one
        self._pipeline = pipeline
        self.goal: GoalConfig = pipeline.goal
        self.intake = Intake(pipeline)
        self.tuners: dict[tuple[int, ...], Certified] = {(): self._new()}
        self.audits = self.lost = 0

    def _new(self) -> Certified:
        return Certified(self._pipeline.costs, self.goal.accuracy_drop, 1.0 - self.goal.confidence)

    # ------------------------------------------------------------ what comes in

    def take(self, row: AuditRow, device: Device | None) -> list[Sample]:
        """Return what a row tells, lost audits before it included; RemoteProtocolError if it is not believed."""
        if row.missing not in self.tuners and len(self.tuners) > MOST_SETS:
            raise RemoteProtocolError("missing", f"{MOST_SETS} sets of missing branches are tuned for already")
        lost = self.intake.take(row, device)
        audit = Audit(lost=True) if row.lost else Audit(scores=row.scores, predictions=row.predictions)
        told = Sample(origin=row.origin, request=row.request, missing=row.missing, audit=audit)
        return [*_lost(row.origin, lost), told]

    def reported(self, device: str, boot: str, origin: OriginTelemetry) -> list[Sample]:
        """Return the lost audits that an origin's report reveals."""
        return _lost(device, self.intake.reported(device, boot, origin))

    def apply(self, sample: Sample) -> None:
        """Learn from a sample: one that `take` or `reported` returned, now or before a restart."""
        self.audits += 1
        if sample.audit.lost:
            # Nobody knows which branches it would have heard.
            self.lost += 1
            for tuner in self.tuners.values():
                tuner.observe(sample.audit)
            return
        self.tuners.setdefault(sample.missing, self._new()).observe(sample.audit)

    # ------------------------------------------------------------ what comes out

    def plan(self, plan: Plan) -> Plan:
        """Return the plan as the audits want it to be; the epoch stays."""
        thresholds = _sent(self.tuners[()].thresholds)
        is_shut = all(threshold >= NEVER_SENT for threshold in thresholds)
        return replace(
            plan,
            thresholds=thresholds,
            masked=tuple(
                MaskedThresholds(missing=missing, thresholds=_sent(tuner.thresholds))
                for missing, tuner in sorted(self.tuners.items())
                if missing
            ),
            # An input that goes to the last exit anyway brings its audit home for nothing.
            audit_rate=1.0 if is_shut else float(self.goal.audit_rate),
        )

    # ------------------------------------------------------------ restarts

    def snapshot(self) -> dict[str, Any]:
        """Return plain data, for `restore`."""
        return {
            "of": self._identity(),
            "audits": self.audits,
            "lost": self.lost,
            "intake": self.intake.snapshot(),
            "tuners": [[list(missing), tuner.snapshot()] for missing, tuner in self.tuners.items()],
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where another one stood. Raises ValueError if that was of another bundle, criterion or goal."""
        if data.get("of") != self._identity():
            raise ValueError(f"was of {data.get('of')}, {self._identity()} is wanted")
        tuners = {}
        for missing, state in data["tuners"]:
            tuners[tuple(missing)] = tuner = self._new()
            tuner.restore(state)
        self.intake.restore(data["intake"])
        self.tuners, self.audits, self.lost = tuners, data["audits"], data["lost"]

    def _identity(self) -> list[object]:
        plan = self._pipeline.plan
        return [plan.revision, plan.criterion, float(self.goal.accuracy_drop), float(self.goal.confidence)]


def _lost(origin: str, count: int) -> list[Sample]:
    return [Sample(origin=origin, request="", missing=(), audit=Audit(lost=True))] * count


def _sent(thresholds: Sequence[float]) -> Vector:
    return tuple(min(threshold, NEVER_SENT) for threshold in thresholds)
