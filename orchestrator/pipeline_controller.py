"""One pipeline as the orchestrator runs it: its planner, its tuning, its timers and its epochs. No I/O, no clock.

Controllers know nothing of each other, so that a pipeline whose boards misbehave delays no other one. What is to be
published, written and logged is returned to the service.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from distree.errors import Problem
from distree.formatting import counted, percent
from distree.messages.audit import AuditRow
from distree.messages.device import DeviceStatus
from distree.messages.plan import Plan, plan_hash, same_decision
from distree.messages.site import Label
from distree.messages.telemetry import Telemetry
from distree.record import record
from orchestrator import plan_reasons
from orchestrator.coverage import find_gaps, gap_text
from orchestrator.fleet import STALE_PERIODS, Device, is_behind, origin_boots, report_of, serves
from orchestrator.leadership import Role
from orchestrator.metrics import PipelineSnapshot
from orchestrator.pipeline_spec import PipelineSpec
from orchestrator.plan_resend import Reminder
from orchestrator.planner import Planner, Standing, fingerprint, same_content
from orchestrator.problems import PersistentProblems
from orchestrator.store.records import PipelineRow, PlanRow, TuningRow
from orchestrator.timers import Periodic
from orchestrator.tuning.audit_shares import HOLD_S, Unexplained
from orchestrator.tuning.measurements import rest_s
from orchestrator.tuning.pipeline_tuning import PipelineTuning
from orchestrator.tuning.samples import Sample

LOOSEN_S = 1.0
"""Least time between two plans by which a tuner lets more inputs leave early; fewer take effect at once."""

MEASURE_S = 2.0
"""How often boards are measured, for goals and for the times of stages, in seconds."""

ESTIMATE_S = 30.0
"""Least time between two plans that differ only in the times of stages."""

RETRY_S = 1.0
"""How long to wait after a plan could not be recorded, in seconds."""

SAMPLES_UNSAVED = 500
"""Samples after which a tuning is saved though its plan is the same; a restart learns from no more of them again."""


@record
class DuePlan:
    """A plan to publish now. One that `is_new` must be recorded in the store first.

    `is_other_decision` says whether it decides otherwise than the one before, which is worth a line in the log.
    """

    plan: Plan
    is_new: bool
    is_other_decision: bool


class PipelineController:
    """Plans for one pipeline. Every `now_s` is of one monotonic clock.

    `tuning` is None where the pipeline has no goal. `row_id` is the id of the newest plan of the store that is known
    here; `is_unread` says that the store may have a newer one. `unsaved` counts the samples that the tuning has learned
    from since it was last saved. Methods that return samples have learned from them already.
    """

    def __init__(
        self, spec: PipelineSpec, planner: Planner, tuning: PipelineTuning | None, *, row_id: int = 0, unsaved: int = 0
    ) -> None:
        self.name = spec.name
        self.planner = planner
        self.tuning = tuning
        self.row_id = row_id
        self.unsaved = unsaved
        self.is_unread = False
        self._spec = spec
        self._reminder = Reminder()
        self._published: Plan | None = None
        self._alarms = 0 if tuning is None else tuning.alarms
        self._gaps = PersistentProblems()
        self._measuring = Periodic(MEASURE_S)
        self._loosen_at_s = self._estimate_at_s = self._retry_at_s = float("-inf")
        self._is_overloaded = False

    def warnings(self) -> Iterator[str]:
        """Give warnings to log when the orchestrator starts."""
        goal = self._spec.goal
        if goal is not None and not goal.tuner_class.has_guarantee:
            yield (
                f"tuner {goal.tuner} has no guarantee: nothing keeps the accuracy drop within "
                f"{percent(goal.accuracy_drop)}; tuner certified does"
            )
        if goal is not None and not self._spec.origins:
            yield (
                "no origins are listed: the audits of any board that says that it is one count for the goal; list them "
                "as origins: [...] in orchestrator.yaml"
            )

    # ------------------------------------------------------------ the connection

    def connected(self, now_s: float) -> None:
        """Wait for the retained plan, then publish."""
        self.planner.connected(now_s)

    def disconnected(self) -> None:
        """Publish nothing, and count no audit as lost, until connected again."""
        self.planner.disconnected()
        if self.tuning is not None:
            self.tuning.intake.away()

    # ------------------------------------------------------------ what boards say

    def started(self, device: Device) -> None:
        """Note that a device has started: the broker may not have given it the plan."""
        # Before it has described itself, it may be of this pipeline.
        if device.meta is None or serves(device, self.name):
            self._reminder.started(device.device)

    def reported(self, now_s: float, device: Device, report: Telemetry) -> list[Sample]:
        """Note which plan a device follows; return the samples that count by its report."""
        followed = report_of(device, self.name)
        if followed is not None:
            self.planner.reported(followed.epoch, followed.plan_hash)
        behind = is_behind(device, self.name, plan_hash(self.planner.wanted))
        self._reminder.reported(now_s, device.device, is_behind=behind)
        return self._take_origin_report(now_s, report, is_behind=behind)

    def _take_origin_report(self, now_s: float, report: Telemetry, *, is_behind: bool) -> list[Sample]:
        if self.tuning is None:
            return []
        origins = [part.origin for part in report.pipelines if part.pipeline == self.name and part.origin is not None]
        # One part per pipeline; of a message that has more, each is counted.
        return [
            sample
            for origin in origins
            for sample in self._learn(
                self.tuning.reported(now_s, report.device, report.boot, origin, is_behind=is_behind)
            )
        ]

    def forget(self, device: str) -> None:
        """Drop a device that is gone."""
        self._reminder.forget(device)

    # ------------------------------------------------------------ what the tuning learns from

    def take_audit(self, now_s: float, row: AuditRow, device: Device | None) -> list[Sample]:
        """Take an audit row in and return the samples that count now; RemoteProtocolError if it is refused."""
        if self.tuning is None:
            return []
        # Reports that cover a row come within a few periods of its origin.
        hold_s = HOLD_S if device is None else max(HOLD_S, STALE_PERIODS * device.period_s)
        return self._learn(self.tuning.take(now_s, row, origin_boots(device, self.name), hold_s=hold_s))

    def unexplained(self, now_s: float) -> list[Unexplained]:
        """Refuse audits that no report has covered in time; return all that were refused since the last call."""
        return self.tuning.unexplained(now_s) if self.tuning is not None else []

    def take_label(self, truth: Label) -> list[Sample]:
        """Learn from the sample that waited for this label and return it; RemoteProtocolError for an unknown label."""
        return self._learn(self.tuning.label(truth)) if self.tuning is not None else []

    def take_overdue(self, now_s: float) -> list[Sample]:
        """Learn from samples that have waited long enough for labels, at infinity from all that wait; return them."""
        return self._learn(self.tuning.overdue(now_s)) if self.tuning is not None else []

    def _learn(self, samples: list[Sample]) -> list[Sample]:
        assert self.tuning is not None  # noqa: S101 - the samples are its own
        for sample in samples:
            self.tuning.apply(sample)
        self.unsaved += len(samples)
        return samples

    # ------------------------------------------------------------ which plan should hold

    def adjust(self, now_s: float, devices: Iterable[Device]) -> str | None:
        """Want the plan that audits and measurements ask for; return a line to log when an overload begins or ends."""
        self._retune(now_s)
        if not self._measuring.is_due(now_s):
            return None
        reported = [(device, device.telemetry) for device in devices if device.telemetry is not None]
        if now_s >= self._estimate_at_s:
            self._estimate(now_s, [report for device, report in reported if device.status is DeviceStatus.READY])
        return self._measure([report for _, report in reported])

    def _retune(self, now_s: float) -> None:
        """Want what the tuning wants: earlier exits after a pause, later ones at once."""
        if self.tuning is None:
            return
        before = self.planner.wanted
        wanted = self.tuning.plan(before)
        if same_content(wanted, before):
            return
        if now_s >= self._loosen_at_s or _is_tighter(wanted, before):
            self._loosen_at_s = now_s + LOOSEN_S
            self.planner.want(replace(self._with_reason(before, wanted), epoch=0))

    def _with_reason(self, before: Plan, wanted: Plan) -> Plan:
        assert self.tuning is not None  # noqa: S101 - it wants the plan
        goal, alarms_before, self._alarms = self.tuning.goal, self._alarms, self.tuning.alarms
        if goal.tuner_class.uses_given_thresholds:
            return wanted
        reason = plan_reasons.tuned_reason(before, wanted, goal=goal, alarmed=self._alarms > alarms_before)
        return replace(wanted, reason=reason, author=plan_reasons.TUNER)

    def _estimate(self, now_s: float, reports: Iterable[Telemetry]) -> None:
        """Want boards to know how long stages take, if that has changed enough to be worth another plan."""
        wanted = self.planner.wanted
        estimate = rest_s(reports, self.name, len(wanted.thresholds) + 1)
        if _differs_much(estimate, wanted.rest_s):
            self._estimate_at_s = now_s + ESTIMATE_S
            self.planner.want(replace(wanted, rest_s=estimate))

    def _measure(self, reports: Iterable[Telemetry]) -> str | None:
        if self.tuning is None:
            return None
        self.tuning.measure(reports)
        before, self._is_overloaded = self._is_overloaded, self.tuning.control.is_overloaded
        return _load_text(self.tuning) if self._is_overloaded != before else None

    def follow(self, row: PlanRow | None) -> None:
        """Want the latest plan of the store if somebody has written it since the newest one that is known here."""
        self.is_unread = False
        if row is None or row.id <= self.row_id:
            return
        self.row_id = row.id
        if row.is_reset:
            self.planner.reset(row.plan)
        else:
            self.planner.want(row.plan)

    # ------------------------------------------------------------ when it is published

    def due(self, now_s: float) -> DuePlan | None:
        """Return the plan to publish now: a new one, or the one in force again for boards that lack it.

        The latter is recorded already, and the planner takes its echo as its own; a preempted planner publishes nothing
        for such boards. Call `published` or `failed` next.
        """
        if now_s < self._retry_at_s:
            return None
        plan = self.planner.step(now_s)
        if plan is not None:
            before = self._published
            is_other = before is None or before.epoch != plan.epoch or not same_decision(before, plan)
            return DuePlan(plan=plan, is_new=True, is_other_decision=is_other)
        if self.planner.standing is Standing.LEADING and self._reminder.is_due(now_s):
            return DuePlan(plan=self.planner.wanted, is_new=False, is_other_decision=False)
        return None

    def published(self, now_s: float, due: DuePlan) -> None:
        """Note that the plan that was due was recorded and handed to the transport."""
        if due.is_new:
            self.planner.published(due.plan)
            self._published = due.plan
        else:
            self.planner.repeated()
        self._reminder.published(now_s, plan_hash(due.plan))

    def failed(self, now_s: float) -> None:
        """Note that the plan that was due could not be recorded; it is due again after a pause."""
        self._retry_at_s = now_s + RETRY_S

    # ------------------------------------------------------------ what is logged and stored

    def check_coverage(self, devices: Iterable[Device]) -> list[str]:
        """Return lines to log on stages that inputs cannot reach, each once and only if it lasts to the next check."""
        plain = (0,) * self._spec.exits
        gaps = find_gaps(self.name, self._spec.branches or plain, devices)
        return self._gaps.note({gap.what: gap_text(gap) for gap in gaps})

    @property
    def is_save_due(self) -> bool:
        """Whether the tuning has learned so much that it should be saved."""
        return self.unsaved >= SAMPLES_UNSAVED

    def row(self, role: Role) -> PipelineRow:
        """Return where the pipeline stands, under an orchestrator of this role."""
        return PipelineRow(
            name=self.name,
            highest_epoch=self.planner.highest_epoch,
            standing=(role if role is Role.STANDBY else self.planner.standing).value,
            alarm="" if role is Role.STANDBY else self.planner.alarm,
            configured=fingerprint(self._spec.plan),
            branches=self._spec.branches,
        )

    def snapshot(self) -> PipelineSnapshot:
        """Return how the pipeline stands, for metrics."""
        return PipelineSnapshot(
            plan=self.planner.wanted,
            is_preempted=bool(self.planner.alarm),
            tuning=self.tuning.explain() if self.tuning is not None else None,
        )

    def tuning_row(self) -> TuningRow:
        """Return where the tuning stands; there has to be one."""
        assert self.tuning is not None  # noqa: S101 - asked for where samples are unsaved
        return TuningRow(pipeline=self.name, state=self.tuning.snapshot())


def _is_tighter(wanted: Plan, before: Plan) -> bool:
    """Whether an input that leaves early by one plan may no longer do so by the other."""
    raised = any(new > old for new, old in zip(wanted.thresholds, before.thresholds, strict=True))
    return raised or wanted.masked != before.masked


def _differs_much(estimate: Sequence[float], before: Sequence[float]) -> bool:
    """Whether an estimate is worth a new plan: there was none, or one is off by a factor of two."""
    if not estimate or not before:
        return bool(estimate)
    return any(not 0.5 <= new / old <= 2.0 for new, old in zip(estimate, before, strict=True))


def _load_text(tuning: PipelineTuning) -> str:
    if not tuning.control.is_overloaded:
        return "no longer overloaded"
    measured = tuning.measured
    shed = 0 if measured is None else measured.shed
    goals = ", ".join(f"{name} {goal:g}" for name, goal in tuning.goal.limits().items())
    what = (
        f"overloaded: a goal is still missed ({goals}) though inputs leave as early as has been proved safe, and "
        f"boards shed {counted(shed, 'input')} in the last period"
    )
    return str(Problem(what, "add boards, send fewer inputs, or allow a larger accuracy_drop"))
