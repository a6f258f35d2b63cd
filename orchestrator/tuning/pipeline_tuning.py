"""The thresholds of one pipeline, tuned for its goal: from audit rows to the plan that should hold. No I/O, no clock.

There is one tuner for inputs without missing branches, and one for each set of missing branches that rows mention,
each with the full confidence of the goal: the promise holds for each set separately. Until a set has thresholds of its
own, early exits are disabled while those branches are missing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from distree.errors import RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.plan import MaskedThresholds, Plan
from distree.messages.site import Label
from distree.messages.telemetry import OriginTelemetry, Telemetry
from distree.record import record
from distree.thresholds import NEVER
from orchestrator.tuning.audit_intake import AuditIntake
from orchestrator.tuning.audit_shares import HOLD_S, AuditShares, Unexplained
from orchestrator.tuning.goal_control import GoalControl, outlook
from orchestrator.tuning.live_tuner import LiveTuner, TunerExplanation, TunerSetup
from orchestrator.tuning.measurements import LoadMeter, Measurement
from orchestrator.tuning.samples import AuditedInput, Sample, Vector
from orchestrator.tuning.tuned_pipeline import TunedPipeline

MAX_WAITING = 10_000
"""Samples that wait for their labels, and labels that came before their samples."""

MAX_SETS = 16
"""Sets of missing branches that are tuned for; rows of others are refused."""


@record
class SetExplanation:
    """What the tuner for one set of missing branches says, and what it allows to be in force, safest first."""

    missing: tuple[int, ...]
    tuner: TunerExplanation
    choices: tuple[Vector, ...]


@record
class GoalQueue:
    """The virtual queue of a goal for what boards measure: 0 while it is met, FULL_QUEUE when long missed."""

    goal: str
    length: float


@record
class TuningExplanation:
    """Where the tuning of a pipeline stands; of the `audits` so far, `lost` were lost."""

    audits: int
    lost: int
    queues: tuple[GoalQueue, ...]
    sets: tuple[SetExplanation, ...]

    @property
    def alarms(self) -> int:
        """How often thresholds of any set were withdrawn."""
        return sum(one.tuner.alarms for one in self.sets)


class PipelineTuning:
    """The tuners of one pipeline. `take` checks what comes in, `apply` learns from it.

    Where labels are waited for, `take` holds samples back until `label` or `overdue` give them out. A sample that gets
    none counts as one without a label: as a loss if an early exit disagrees with the last one. That is never less than
    what a label would make of it, so it does no harm if only some inputs, or only unusual ones, are labelled.
    """

    def __init__(self, pipeline: TunedPipeline) -> None:
        self._pipeline = pipeline
        self.goal = pipeline.goal
        self.intake = AuditIntake(pipeline)
        self._shares = AuditShares(pipeline.largest_share)
        self.tuners: dict[tuple[int, ...], LiveTuner] = self._first_tuners()
        self.audits = self.lost = 0
        self.control = GoalControl(self.goal.limits())
        self.measured: Measurement | None = None
        self._meter = LoadMeter(pipeline.name, pipeline.costs)
        self._positions: dict[tuple[int, ...], int] = {}
        self._waiting: OrderedDict[str, tuple[float, Sample]] = OrderedDict()
        self._labels: OrderedDict[str, int] = OrderedDict()

    def _first_tuners(self) -> dict[tuple[int, ...], LiveTuner]:
        given = self._pipeline.masked if self.goal.tuner_class.uses_given_thresholds else ()
        return {missing: self._new(missing) for missing in ((), *(row.missing for row in given))}

    def _new(self, missing: tuple[int, ...]) -> LiveTuner:
        pipeline = self._pipeline
        given = {(): pipeline.thresholds, **{row.missing: row.thresholds for row in pipeline.masked}}
        setup = TunerSetup(
            costs=pipeline.costs,
            accuracy_drop=float(self.goal.accuracy_drop),
            confidence=float(self.goal.confidence),
            thresholds=given.get(missing, (NEVER,) * (pipeline.exits - 1)),
        )
        return self.goal.tuner_class.create(setup)

    # ------------------------------------------------------------ what comes in

    def take(self, now_s: float, row: AuditRow, boots: Sequence[str], *, hold_s: float = HOLD_S) -> list[Sample]:
        """Return the samples that count now: those of a row, lost audits before it included, once they are covered.

        `boots` are the known runs of its sender in which it is an origin of the pipeline; `hold_s` is how long the row
        may wait for the reports that cover it. Raises RemoteProtocolError for a row that is refused.
        """
        if row.missing not in self.tuners and len(self.tuners) > MAX_SETS:
            raise RemoteProtocolError("missing", f"{MAX_SETS} sets of missing branches are tuned for already")
        lost = self.intake.take(row, boots)
        audit = AuditedInput(lost=True) if row.lost else AuditedInput(scores=row.scores, predictions=row.predictions)
        sample = Sample(origin=row.origin, request=row.request, missing=row.missing, audit=audit)
        self._shares.hold(row.origin, [*_lost(row.origin, lost), sample], now_s + hold_s)
        return self._release(now_s, row.origin)

    def _release(self, now_s: float, origin: str) -> list[Sample]:
        return [given for sample in self._shares.release(origin) for given in self._wait(now_s, sample)]

    def _wait(self, now_s: float, sample: Sample) -> list[Sample]:
        wait_s = self.goal.labels_wait_s
        if wait_s is None or sample.audit.lost:
            return [sample]
        label = self._labels.pop(sample.request, None)
        if label is not None:
            return [_labelled(sample, label)]
        before = self._waiting.pop(sample.request, None)
        self._waiting[sample.request] = now_s + wait_s, sample
        full = self._waiting.popitem(last=False)[1] if len(self._waiting) > MAX_WAITING else None
        return [one for _, one in filter(None, (before, full))]

    def label(self, truth: Label) -> list[Sample]:
        """Return the sample that waited for this label, if there is one; RemoteProtocolError for an unknown label."""
        if truth.label not in self._pipeline.labels:
            raise RemoteProtocolError(
                "label", f"{truth.label!r} is not a label of {self._pipeline.model}", "publish one of its labels"
            )
        label = self._pipeline.labels.index(truth.label)
        waiting = self._waiting.pop(truth.request, None)
        if waiting is not None:
            return [_labelled(waiting[1], label)]
        # Most inputs are not audited, and a label may come before its row.
        self._labels[truth.request] = label
        if len(self._labels) > MAX_WAITING:
            self._labels.popitem(last=False)
        return []

    def overdue(self, now_s: float) -> list[Sample]:
        """Return the samples that have waited long enough for their labels; at infinity, all of them."""
        samples = []
        while self._waiting and next(iter(self._waiting.values()))[0] <= now_s:
            samples.append(self._waiting.popitem(last=False)[1][1])
        return samples

    def reported(
        self, now_s: float, device: str, boot: str, origin: OriginTelemetry, *, is_behind: bool = False
    ) -> list[Sample]:
        """Return the samples that count by an origin's report, lost audits that it reveals included.

        `is_behind` says that it does not follow the wanted plan yet, and may draw as many as an earlier one says.
        """
        if self._pipeline.origins and device not in self._pipeline.origins:
            return []
        self._shares.reported(device, boot, origin, 1.0 if is_behind else self.audit_rate)
        lost = self.intake.reported(device, boot, origin)
        self._shares.hold(device, _lost(device, lost), now_s + HOLD_S)
        return self._release(now_s, device)

    def unexplained(self, now_s: float) -> list[Unexplained]:
        """Refuse audits that no report has covered in time; return all that were refused since the last call."""
        return self._shares.overdue(now_s)

    def apply(self, sample: Sample) -> None:
        """Learn from a sample that one of the methods above returned, now or before a restart."""
        self.audits += 1
        if sample.audit.lost:
            # Nobody knows which branches it would have heard.
            self.lost += 1
            for tuner in self.tuners.values():
                tuner.observe(sample.audit)
            return
        if sample.missing not in self.tuners:
            self.tuners[sample.missing] = self._new(sample.missing)
        self.tuners[sample.missing].observe(sample.audit)

    def measure(self, reports: Iterable[Telemetry]) -> None:
        """Measure what the boards did since the last call, and choose among the tuners' thresholds again."""
        measured = self._meter.measure(reports)
        if measured is None:
            return
        self.measured = measured
        if not self.goal.limits():
            return
        self.control.measured(self._values(measured))
        for missing, tuner in self.tuners.items():
            losses, shares = outlook(tuner.choices, tuner.recent, self._pipeline.costs)
            self._positions[missing] = self.control.choose(losses, shares, self.goal.accuracy_drop)

    def _values(self, measured: Measurement) -> dict[str, float]:
        goal, values = self.goal, {"bytes_per_input": measured.bytes_per_input}
        if measured.latency_p95_s is not None:
            values["latency_p95_ms"] = measured.latency_p95_s * 1e3
        if goal.mj_per_mmac is not None:
            compute_mj = measured.macs_per_input / 1e6 * goal.mj_per_mmac
            values["energy_mj"] = compute_mj + measured.bytes_per_input / 1e3 * goal.mj_per_kb
        return values

    # ------------------------------------------------------------ what comes out

    def thresholds(self, missing: tuple[int, ...] = ()) -> Vector:
        """Return the thresholds that should hold while these branches are missing: always a choice of the tuner."""
        tuner = self.tuners[missing]
        if not self.goal.limits():
            return tuner.thresholds
        # After an alarm there are fewer choices than when this one was made.
        choices = tuner.choices
        return choices[min(self._positions.get(missing, 0), len(choices) - 1)]

    def plan(self, plan: Plan) -> Plan:
        """Return the plan as audits and goals want it; its epoch is unchanged."""
        return replace(
            plan,
            thresholds=self.thresholds(),
            masked=tuple(
                MaskedThresholds(missing=missing, thresholds=self.thresholds(missing))
                for missing in sorted(self.tuners)
                if missing
            ),
            audit_rate=self.audit_rate,
        )

    @property
    def audit_rate(self) -> float:
        """The share of inputs that origins should draw."""
        # An input that goes to the last exit anyway is audited at no cost.
        is_shut = all(threshold >= NEVER for threshold in self.thresholds())
        return 1.0 if is_shut else float(self.goal.audit_rate)

    @property
    def alarms(self) -> int:
        """How often thresholds of any set were withdrawn because inputs had changed."""
        return sum(tuner.alarms for tuner in self.tuners.values())

    def explain(self) -> TuningExplanation:
        """Return where the tuning stands and why."""
        return TuningExplanation(
            audits=self.audits,
            lost=self.lost,
            queues=tuple(GoalQueue(goal=goal, length=length) for goal, length in self.control.queues.items()),
            sets=tuple(
                SetExplanation(missing=missing, tuner=tuner.explain(), choices=tuple(tuner.choices))
                for missing, tuner in sorted(self.tuners.items())
            ),
        )

    # ------------------------------------------------------------ restarts

    def snapshot(self) -> dict[str, Any]:
        """Return plain data, for `restore`."""
        return {
            "of": self._identity(),
            "audits": self.audits,
            "lost": self.lost,
            "intake": self.intake.snapshot(),
            "shares": self._shares.snapshot(),
            "queues": self.control.queues,
            "tuners": [[list(missing), tuner.snapshot()] for missing, tuner in self.tuners.items()],
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where another one stood.

        Raises ValueError, LookupError or TypeError for data of another bundle, criterion, goal or tuner, or of none, or
        for what was learned from boards that are not among the origins.
        """
        if data.get("of") != self._identity():
            raise ValueError(f"it was tuned for {data.get('of')}, not for {self._identity()}")
        tuners = self._first_tuners()
        for missing, state in data["tuners"]:
            tuners[tuple(missing)] = tuner = self._new(tuple(missing))
            tuner.restore(state)
        audits, lost = int(data["audits"]), int(data["lost"])
        self.intake.restore(data["intake"])
        self._shares.restore(data["shares"])
        for origin in self._shares.counted_origins():
            self.check_origin(origin)
        self.tuners, self.audits, self.lost = tuners, audits, lost
        # Those of goals that are still configured; to be wrong for a while does no harm.
        queues = data["queues"]
        self.control.queues |= {name: float(queues[name]) for name in self.control.queues if name in queues}

    def check_origin(self, origin: str) -> None:
        """Raise ValueError for an origin of which nothing should have been learned."""
        if self._pipeline.origins and origin not in self._pipeline.origins:
            raise ValueError(f"it was tuned on audits of {origin}, which is not among the origins")

    def _identity(self) -> list[object]:
        pipeline, goal = self._pipeline, self.goal
        drop, confidence = float(goal.accuracy_drop), float(goal.confidence)
        return [pipeline.revision, pipeline.criterion, drop, confidence, goal.tuner]


def _labelled(sample: Sample, label: int) -> Sample:
    return replace(sample, audit=replace(sample.audit, label=label))


def _lost(origin: str, count: int) -> list[Sample]:
    return [Sample(origin=origin, request="", missing=(), audit=AuditedInput(lost=True))] * count
