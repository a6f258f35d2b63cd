"""The thresholds of one pipeline, tuned for its goal: from audit rows to the plan that is to hold. No I/O, no clock.

One `Certified` tuner for the inputs that all branches heard, and one for each set of missing branches that rows tell
of, each with the whole confidence of the goal: what is promised holds for each set by itself. Until a set's own
thresholds are proved, nobody leaves early while these branches are missing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distree.errors import RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.plan import MaskedThresholds, Plan
from distree.messages.site import Truth
from distree.messages.telemetry import OriginTelemetry
from orchestrator.config import NEVER_SENT, GoalConfig, Pipeline
from orchestrator.fleet import Device
from orchestrator.tuning.audit_intake import Intake
from orchestrator.tuning.goal_control import Control, outlook
from orchestrator.tuning.measurements import Load, Measured
from orchestrator.tuning.tuners import Audit, Certified, Vector

MOST_WAITING = 10_000
"""Samples that wait for their labels, and labels that came before their samples."""

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
    """The tuners of one pipeline, which has a goal. `take` checks what comes in, `apply` learns from it.

    Where labels are waited for, `take` keeps what it is told until `label` or `overdue` give it out. A sample that gets
    none counts as without labels, as a loss if an early exit disagrees with the last one: that is never less than what
    a label would make of it, so it does no harm if only some inputs, or only strange ones, are labelled.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        assert pipeline.goal is not None  # noqa: S101 - made for pipelines that have one
        self._pipeline = pipeline
        self.goal: GoalConfig = pipeline.goal
        self.intake = Intake(pipeline)
        self.tuners: dict[tuple[int, ...], Certified] = {(): self._new()}
        self.audits = self.lost = 0
        self.control = Control(self.goal.limits())
        self.load = Load(pipeline.name, pipeline.costs)
        self.measured: Measured | None = None
        self._positions: dict[tuple[int, ...], int] = {}
        self._waiting: OrderedDict[str, tuple[float, Sample]] = OrderedDict()
        self._labels: OrderedDict[str, int] = OrderedDict()

    def _new(self) -> Certified:
        return Certified(self._pipeline.costs, self.goal.accuracy_drop, 1.0 - self.goal.confidence)

    # ------------------------------------------------------------ what comes in

    def take(self, now_s: float, row: AuditRow, device: Device | None) -> list[Sample]:
        """Return what a row tells, lost audits before it included; RemoteProtocolError if it is not believed."""
        if row.missing not in self.tuners and len(self.tuners) > MOST_SETS:
            raise RemoteProtocolError("missing", f"{MOST_SETS} sets of missing branches are tuned for already")
        lost = self.intake.take(row, device)
        audit = Audit(lost=True) if row.lost else Audit(scores=row.scores, predictions=row.predictions)
        told = Sample(origin=row.origin, request=row.request, missing=row.missing, audit=audit)
        return [*_lost(row.origin, lost), *self._wait(now_s, told)]

    def _wait(self, now_s: float, told: Sample) -> list[Sample]:
        wait_s = self.goal.labels_wait_s
        if wait_s is None or told.audit.lost:
            return [told]
        label = self._labels.pop(told.request, None)
        if label is not None:
            return [_labelled(told, label)]
        before = self._waiting.pop(told.request, None)
        self._waiting[told.request] = now_s + wait_s, told
        full = self._waiting.popitem(last=False)[1] if len(self._waiting) > MOST_WAITING else None
        return [sample for _, sample in filter(None, (before, full))]

    def label(self, truth: Truth) -> list[Sample]:
        """Return the sample that a label was waited for, if there is one; RemoteProtocolError for an unknown label."""
        if truth.label not in self._pipeline.labels:
            raise RemoteProtocolError(
                "label", f"{truth.label!r} is not a label of {self._pipeline.plan.model}", "publish one of its labels"
            )
        label = self._pipeline.labels.index(truth.label)
        waiting = self._waiting.pop(truth.request, None)
        if waiting is not None:
            return [_labelled(waiting[1], label)]
        # Most inputs are not audited; a few labels are there before their rows.
        self._labels[truth.request] = label
        if len(self._labels) > MOST_WAITING:
            self._labels.popitem(last=False)
        return []

    def overdue(self, now_s: float) -> list[Sample]:
        """Return the samples that have waited long enough for their labels; all of them at infinity."""
        samples = []
        while self._waiting and next(iter(self._waiting.values()))[0] <= now_s:
            samples.append(self._waiting.popitem(last=False)[1][1])
        return samples

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

    def look(self, devices: Iterable[Device]) -> None:
        """Measure what the boards did since the last call, and choose among the certified thresholds anew."""
        measured = self.load.look(devices)
        if measured is None:
            return
        self.measured = measured
        if not self.goal.limits():
            return
        self.control.measured(self._values(measured))
        for missing, tuner in self.tuners.items():
            losses, shares = outlook(tuner.certified, tuner.recent, self._pipeline.costs)
            self._positions[missing] = self.control.choose(losses, shares, self.goal.accuracy_drop)

    def _values(self, measured: Measured) -> dict[str, float]:
        goal, values = self.goal, {"bytes_per_input": measured.bytes_per_input}
        if measured.latency_p95_s is not None:
            values["latency_p95_ms"] = measured.latency_p95_s * 1e3
        if goal.mj_per_mmac is not None:
            compute_mj = measured.macs_per_input / 1e6 * goal.mj_per_mmac
            values["energy_mj"] = compute_mj + measured.bytes_per_input / 1e3 * goal.mj_per_kb
        return values

    # ------------------------------------------------------------ what comes out

    def thresholds(self, missing: tuple[int, ...] = ()) -> Vector:
        """Return the thresholds that are to hold while these branches are missing: always certified ones."""
        tuner = self.tuners[missing]
        if not self.goal.limits():
            return tuner.thresholds
        # After an alarm there are fewer than when the choice was made.
        return tuner.certified[min(self._positions.get(missing, 0), len(tuner.certified) - 1)]

    def plan(self, plan: Plan) -> Plan:
        """Return the plan as audits and goals want it to be; the epoch stays."""
        thresholds = _sent(self.thresholds())
        is_shut = all(threshold >= NEVER_SENT for threshold in thresholds)
        return replace(
            plan,
            thresholds=thresholds,
            masked=tuple(
                MaskedThresholds(missing=missing, thresholds=_sent(self.thresholds(missing)))
                for missing in sorted(self.tuners)
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
            "queues": self.control.queues,
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
        # Of goals that the configuration still has; they hurt nobody if they are wrong for a while.
        self.control.queues |= {name: data["queues"][name] for name in self.control.queues if name in data["queues"]}

    def _identity(self) -> list[object]:
        plan = self._pipeline.plan
        return [plan.revision, plan.criterion, float(self.goal.accuracy_drop), float(self.goal.confidence)]


def _labelled(sample: Sample, label: int) -> Sample:
    return replace(sample, audit=replace(sample.audit, label=label))


def _lost(origin: str, count: int) -> list[Sample]:
    return [Sample(origin=origin, request="", missing=(), audit=Audit(lost=True))] * count


def _sent(thresholds: Sequence[float]) -> Vector:
    return tuple(min(threshold, NEVER_SENT) for threshold in thresholds)
