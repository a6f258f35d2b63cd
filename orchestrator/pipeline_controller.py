"""One pipeline as the orchestrator runs it: its planner and, where it has a goal, its tuning. No I/O, no clock.

Whatever a tuning learns from is returned, for the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

from distree.messages.audit import AuditRow
from distree.messages.plan import Plan
from distree.messages.site import Label
from distree.messages.telemetry import OriginTelemetry
from orchestrator.config import Pipeline
from orchestrator.coverage import Gap, find_gaps
from orchestrator.fleet import Device, is_behind, serves
from orchestrator.leadership import Role
from orchestrator.plan_resend import Reminder
from orchestrator.planner import Planner, Standing, fingerprint, same_content
from orchestrator.store.records import PipelineRow, PlanRow, TuningRow
from orchestrator.tuning.measurements import rest_s
from orchestrator.tuning.pipeline_tuning import Sample, Tuning

LOOSEN_S = 1.0
"""Least time between two plans by which a tuner lets more inputs leave early; fewer take effect at once."""

SAMPLES_UNSAVED = 500
"""Samples after which a tuning is saved though its plan is the same; a restart learns again from no more."""

Learned: TypeAlias = "tuple[str, Sample]"
"""A sample, after the name of the pipeline whose tuning has learned from it."""


class PlannedPipeline:
    """A pipeline with the plan that is to hold. Every `now_s` is of one monotonic clock.

    `tuning` is None where the pipeline has no goal, and then there are no samples. `author` is who set the plan that
    is wanted; `unsaved` counts the samples that the tuning has learned from since it was last saved.
    """

    def __init__(
        self, configured: Pipeline, planner: Planner, tuning: Tuning | None, *, author: str, unsaved: int = 0
    ) -> None:
        self.name = configured.name
        self.planner = planner
        self.tuning = tuning
        self.author = author
        self.unsaved = unsaved
        self._configured = configured
        self._reminder = Reminder()
        self._loosen_at_s = 0.0
        self._is_overloaded = False

    # ------------------------------------------------------------ what the tuning learns from

    def take_audit(self, now_s: float, row: AuditRow, device: Device | None) -> list[Learned]:
        """Learn from an audit row, and return the samples; RemoteProtocolError if it is not believed."""
        return self._learn(self.tuning.take(now_s, row, device)) if self.tuning is not None else []

    def take_label(self, label: Label) -> list[Learned]:
        """Learn from the sample that waited for this label, and return it; RemoteProtocolError for an unknown one."""
        return self._learn(self.tuning.label(label)) if self.tuning is not None else []

    def take_report(self, device: str, boot: str, origin: OriginTelemetry) -> list[Learned]:
        """Learn from the lost audits that an origin's report reveals, and return them."""
        return self._learn(self.tuning.reported(device, boot, origin)) if self.tuning is not None else []

    def take_overdue(self, now_s: float) -> list[Learned]:
        """Learn from what has waited long enough for labels, from all that waits at infinity; return it."""
        return self._learn(self.tuning.overdue(now_s)) if self.tuning is not None else []

    def _learn(self, samples: list[Sample]) -> list[Learned]:
        assert self.tuning is not None  # noqa: S101 - there are samples of one
        for sample in samples:
            self.tuning.apply(sample)
        self.unsaved += len(samples)
        return [(self.name, sample) for sample in samples]

    # ------------------------------------------------------------ which plan is to hold

    def connected(self, now_s: float) -> None:
        """Wait for the retained plan, then publish."""
        self.planner.connected(now_s)

    def disconnected(self) -> None:
        """Publish nothing, and take no audit for lost, until connected again."""
        self.planner.disconnected()
        if self.tuning is not None:
            self.tuning.intake.away()

    def retune(self, now_s: float) -> None:
        """Want what the tuning wants: less at once, more after a pause."""
        if self.tuning is None:
            return
        before = self.planner.wanted
        wanted = self.tuning.plan(before)
        if same_content(wanted, before):
            return
        if now_s >= self._loosen_at_s or _is_tighter(wanted, before):
            self._loosen_at_s = now_s + LOOSEN_S
            self.author = "tuner"
            self.planner.want(replace(wanted, epoch=0))

    def estimate(self, devices: Iterable[Device]) -> bool:
        """Want boards to know how long stages take, if that is worth another plan; return whether it is."""
        wanted = self.planner.wanted
        estimate = rest_s(devices, self.name, len(wanted.thresholds) + 1)
        if not _is_other(estimate, wanted.rest_s):
            return False
        self.planner.want(replace(wanted, rest_s=estimate, epoch=0))
        return True

    def look(self, devices: Iterable[Device]) -> str | None:
        """Have the tuning choose by what boards did of late; return a line to tell when an overload begins or ends."""
        if self.tuning is None:
            return None
        self.tuning.look(devices)
        before, self._is_overloaded = self._is_overloaded, self.tuning.control.is_overloaded
        return _load_words(self.tuning) if self._is_overloaded != before else None

    def follow(self, row: PlanRow) -> None:
        """Want a plan that somebody wrote to the store, if it is newer."""
        if row.plan.epoch > self.planner.wanted.epoch:
            self.author = row.author
            self.planner.want(row.plan)

    def give_way(self, plan: Plan, newer: Plan) -> None:
        """Leave the epoch of `plan` to `newer`, which has taken it; what a tuning wants then needs the next one."""
        self.planner.want(newer)
        if self.tuning is not None:
            self.planner.want(replace(plan, epoch=0))

    # ------------------------------------------------------------ when it is published

    def started(self, device: Device) -> None:
        """Note that a device has started, which may have been handed no plan; before it says what it does, it may."""
        if device.meta is None or serves(device, self.name):
            self._reminder.started(device.device)

    def reported(self, now_s: float, device: Device) -> None:
        """Note by a device's report whether it follows the plan."""
        behind = is_behind(device, self.name, self.planner.wanted.epoch)
        self._reminder.reported(now_s, device.device, is_behind=behind)

    def forget(self, device: str) -> None:
        """Drop a device that is gone."""
        self._reminder.forget(device)

    def gaps(self, devices: Iterable[Device]) -> tuple[Gap, ...]:
        """Return where inputs of the pipeline cannot go on."""
        plain = (0,) * self._configured.exits
        return find_gaps(self.name, self._configured.branches or plain, devices)

    def again(self, now_s: float) -> Plan | None:
        """Return the plan in force, if it is to be published once more now; ask when the planner has nothing to do.

        It is recorded already, and its planner takes its echo for its own. Who has yielded keeps quiet.
        """
        if self.planner.standing is not Standing.LEADING or not self._reminder.is_due(now_s):
            return None
        self._reminder.published(now_s, self.planner.wanted.epoch)
        return self.planner.wanted

    def published(self, now_s: float, plan: Plan) -> None:
        """Note that the planner's plan was recorded and handed to the transport."""
        self.planner.published(plan)
        self._reminder.published(now_s, plan.epoch)

    # ------------------------------------------------------------ what the store is to have

    @property
    def is_save_due(self) -> bool:
        """Whether the tuning has learned so much that it is to be saved."""
        return self.unsaved >= SAMPLES_UNSAVED

    def row(self, role: Role) -> PipelineRow:
        """Return how the pipeline stands with an orchestrator of this role."""
        return PipelineRow(
            name=self.name,
            floor=self.planner.floor,
            standing=(role if role is Role.STANDBY else self.planner.standing).value,
            configured=fingerprint(self._configured.plan),
            branches=self._configured.branches,
        )

    def tuning_row(self) -> TuningRow:
        """Return where the tuning stands; there has to be one."""
        assert self.tuning is not None  # noqa: S101 - asked for where samples are unsaved
        return TuningRow(pipeline=self.name, state=self.tuning.snapshot())


def _is_tighter(wanted: Plan, before: Plan) -> bool:
    """Whether somebody who left early by one plan does not by the other."""
    raised = any(new > old for new, old in zip(wanted.thresholds, before.thresholds, strict=True))
    return raised or wanted.masked != before.masked


def _is_other(estimate: Sequence[float], before: Sequence[float]) -> bool:
    """Whether an estimate is worth a new plan: none was known, or one is off by a factor of two."""
    if not estimate or not before:
        return bool(estimate)
    return any(not 0.5 <= new / old <= 2.0 for new, old in zip(estimate, before, strict=True))


def _load_words(tuning: Tuning) -> str:
    if not tuning.control.is_overloaded:
        return "no longer overloaded"
    measured = tuning.measured
    shed = 0 if measured is None else measured.shed
    goals = ", ".join(f"{name} {goal:g}" for name, goal in tuning.goal.limits().items())
    return (
        f"overloaded: inputs leave as early as is proved safe and a goal is still missed ({goals}); boards shed {shed} "
        "inputs in the last period; add boards, lower the rate of inputs, or allow more accuracy_drop"
    )
