"""Why the thresholds in force are what they are: `distree orchestrator explain`, for people and as JSON.

Read from the store alone. The tuning of a pipeline is restored as a starting service restores it, so that what is
shown is what the service knows, up to the second or so that it has not written yet.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest

import numpy as np

from distree.errors import DistreeError, Problem
from distree.messages.plan import MaskedThresholds, Plan
from distree.messages.telemetry import PipelineTelemetry
from orchestrator.config import NEVER_SENT, GoalConfig, OrchestratorConfig, Pipeline, PipelineConfig, load_pipeline
from orchestrator.fleet import Device
from orchestrator.formatting import ago, bar, branches_text, percent, table, thresholds_text
from orchestrator.restore import restored_tuning
from orchestrator.store.database import Store
from orchestrator.store.lock import is_served
from orchestrator.store.records import Observation, PlanRow
from orchestrator.tuning.goal_control import MOST
from orchestrator.tuning.pipeline_tuning import Sample, Tuning
from orchestrator.tuning.tuners import Audit, Certified, Vector
from orchestrator.tuning.tuners.audits import exits_taken
from orchestrator.tuning.tuners.betting import Certificate

SCHEMA = "distree.orchestrator-explain/1"

PLANS_SHOWN = 10
_ORIGINS_SHOWN = 10

_PLAN_HEAD = ("EPOCH", "AGE", "AUTHOR", "THRESHOLDS", "AUDITED")
_ORIGIN_HEAD = ("ORIGIN", "KEPT", "LOST")
_FLOW_HEAD = ("STAGE", "REACH", "LEAVE", "", "EXPECTED")


# ---------------------------------------------------------------- where a tuning stands


@dataclass(frozen=True, slots=True, kw_only=True)
class TunerLine:
    """Where the tuner for one set of missing branches stands: `certified` of `steps` steps of its path are proved.

    `audits` are those of this trial; `gathering` is how many more are wanted for a path, 0 when there is one; `to_next`
    is about how many without a loss the next step is away, None where there is none.
    """

    missing: tuple[int, ...]
    thresholds: Vector
    trial: int
    alarms: int
    gathering: int
    certified: int
    steps: int
    audits: int
    to_next: int | None


def tuner_lines(tuning: Tuning) -> tuple[TunerLine, ...]:
    """Return where each tuner of a pipeline stands, by the set of missing branches."""
    return tuple(_tuner_line(missing, tuner) for missing, tuner in sorted(tuning.tuners.items()))


def _tuner_line(missing: tuple[int, ...], tuner: Certified) -> TunerLine:
    return TunerLine(
        missing=missing,
        thresholds=_sendable(tuner.thresholds),
        trial=tuner.trial,
        alarms=tuner.alarms,
        gathering=tuner.gathering,
        certified=len(tuner.certified) - 1,
        steps=len(tuner.path) - 1,
        audits=tuner.audits,
        to_next=tuner.to_next(),
    )


def _sendable(thresholds: Vector) -> Vector:
    # As plans have it: JSON knows no infinity.
    return tuple(min(threshold, NEVER_SENT) for threshold in thresholds)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningLine:
    """What a pipeline is tuned for and how far that is. `lost` of the `audits` so far were lost.

    `queues` are the virtual queues of the goals for what boards measure, as they were last saved: 0 where a goal holds,
    `control.MOST` where it has been missed for long. `trouble` says why nothing is known of it, "" where something is,
    and `remedy` how to fix that.
    """

    goal: GoalConfig
    trouble: str = ""
    remedy: str = ""
    audits: int = 0
    lost: int = 0
    queues: dict[str, float] = field(default_factory=dict)
    tuners: tuple[TunerLine, ...] = ()

    @property
    def alarms(self) -> int:
        """How often the thresholds of any set were given up."""
        return sum(line.alarms for line in self.tuners)


def read_tuning(store: Store, configured: PipelineConfig) -> TuningLine | None:
    """Return where the tuning of a pipeline stands; None if it has no goal. Trouble of any kind is told in it."""
    if configured.goal is None:
        return None
    try:
        tuning = restored_tuning(store, load_pipeline(configured))
    except DistreeError as error:
        return TuningLine(goal=configured.goal, trouble=error.what, remedy=error.remedy)
    return _tuning_line(tuning)


def _tuning_line(tuning: Tuning) -> TuningLine:
    return TuningLine(
        goal=tuning.goal,
        audits=tuning.audits,
        lost=tuning.lost,
        queues=dict(tuning.control.queues),
        tuners=tuner_lines(tuning),
    )


def kept_samples(store: Store, tuning: Tuning, pipeline: str) -> tuple[Sample, ...]:
    """Return the samples that a tuning has learned from and the store still keeps, the oldest first."""
    # Older ones may be of another bundle or criterion: they say nothing about this one.
    rows = store.samples(pipeline)
    return tuple(row.sample for row in rows[max(0, len(rows) - tuning.audits) :])


# ---------------------------------------------------------------- what is explained


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What bets on a tuner's path have come to: of the certified step, and of the `next` one, where there is one.

    Losses are means over the audits of the trial, of which `lost` were lost. The next step is certified when its wealth
    reaches `wealth_needed`.
    """

    lost: int
    mean_loss: float
    next: Vector | None = None
    next_mean_loss: float | None = None
    next_wealth: float | None = None
    wealth_needed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What thresholds in force do to the audits that are kept: in-sample, for these audits chose them.

    `saved` is the share of the multiply-accumulates of the last exit, `loss` the share of the answers that are not the
    last exit's (of the `labelled` audits, of which the truth is known: that are wrong where the last exit's is right),
    `leave` the share that leaves at each exit.
    """

    audits: int
    labelled: int
    saved: float
    loss: float
    leave: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLine:
    """One set of missing branches: the thresholds in force, None where nobody leaves early, and what led to them.

    `step` is where those in force stand on the tuner's path, None where they are not on it (any more).
    """

    missing: tuple[int, ...]
    in_force: Vector | None
    step: int | None = None
    tuner: TunerLine | None = None
    evidence: Evidence | None = None
    kept: Kept | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginLine:
    """The audits of one origin that are kept, and how many of them were lost."""

    origin: str
    kept: int
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLine:
    """One plan of the past: who wrote it and how long ago."""

    epoch: int
    age_s: float
    author: str
    criterion: str
    thresholds: Vector
    masked: tuple[MaskedThresholds, ...]
    audit_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFlow:
    """Shares of all answered inputs since the agents started: who reached a stage, and who left there."""

    stage: int
    reach: float
    leave: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineReasons:
    """Everything that explains the thresholds of one pipeline; `plans` are the last ones, the newest first."""

    pipeline: str
    tuning: TuningLine | None
    sets: tuple[SetLine, ...]
    origins: tuple[OriginLine, ...]
    plans: tuple[PlanLine, ...]
    flow: tuple[StageFlow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All that `distree orchestrator explain` shows."""

    site: str
    store: str
    running: bool
    pipelines: tuple[PipelineReasons, ...]


def read_explanation(
    config: OrchestratorConfig, pipelines: Sequence[PipelineConfig], *, now: float | None = None
) -> Explanation:
    """Read the store of a configuration for some of its pipelines; `now` is Unix seconds. Raises StoreError."""
    now = time.time() if now is None else now
    path = config.store.path
    with Store(path, read_only=True) as store:
        running, devices = is_served(path), store.devices()
        reasons = tuple(_reasons(store, configured, devices, now) for configured in pipelines)
    return Explanation(site=config.site, store=str(path), running=running, pipelines=reasons)


def _reasons(store: Store, configured: PipelineConfig, devices: Sequence[Observation], now: float) -> PipelineReasons:
    name = configured.name
    plans = store.plans(name)
    plan = plans[0].plan if plans else None
    line, sets = None, _untuned_sets(plan)
    origins: tuple[OriginLine, ...] = ()
    if configured.goal is not None:
        try:
            pipeline = load_pipeline(configured)
            tuning = restored_tuning(store, pipeline)
            samples = kept_samples(store, tuning, name)
        except DistreeError as error:
            line = TuningLine(goal=configured.goal, trouble=error.what, remedy=error.remedy)
        else:
            line = _tuning_line(tuning)
            sets = _tuned_sets(plan, pipeline, tuning, samples)
            origins = _origin_lines(samples)
    return PipelineReasons(
        pipeline=name,
        tuning=line,
        sets=sets,
        origins=origins,
        plans=tuple(_plan_line(row, now) for row in plans[:PLANS_SHOWN]),
        flow=_flow(part.origin.exits for _, part in reports(name, devices) if part.origin is not None),
    )


def reports(name: str, devices: Sequence[Observation]) -> Iterable[tuple[Device, PipelineTelemetry]]:
    """Give each device's report on a pipeline."""
    for seen in devices:
        report = seen.device.telemetry
        for part in report.pipelines if report is not None else ():
            if part.pipeline == name:
                yield seen.device, part


def _in_force(plan: Plan | None) -> dict[tuple[int, ...], Vector]:
    if plan is None:
        return {}
    return {(): plan.thresholds, **{part.missing: part.thresholds for part in plan.masked}}


def _untuned_sets(plan: Plan | None) -> tuple[SetLine, ...]:
    return tuple(SetLine(missing=missing, in_force=vector) for missing, vector in sorted(_in_force(plan).items()))


def _tuned_sets(
    plan: Plan | None, pipeline: Pipeline, tuning: Tuning, samples: Sequence[Sample]
) -> tuple[SetLine, ...]:
    in_force, lines = _in_force(plan), []
    for line in tuner_lines(tuning):
        vector = in_force.get(line.missing)
        path = [_sendable(step) for step in tuning.tuners[line.missing].path]
        # Of a lost audit nobody knows which branches it would have heard.
        heard = [sample for sample in samples if sample.audit.lost or sample.missing == line.missing]
        told = [sample.audit for sample in heard if not sample.audit.lost]
        lost = sum(sample.audit.lost for sample in heard[max(0, len(heard) - line.audits) :])
        lines.append(
            SetLine(
                missing=line.missing,
                in_force=vector,
                step=path.index(vector) if vector in path else None,
                tuner=line,
                evidence=_evidence(tuning.tuners[line.missing], tuning.goal, line, lost),
                kept=_kept(told, vector, pipeline.costs) if vector is not None and told else None,
            )
        )
    return tuple(lines)


def _evidence(tuner: Certified, goal: GoalConfig, line: TunerLine, lost: int) -> Evidence | None:
    if line.gathering:
        return None
    certificate = Certificate(len(tuner.path), float(goal.accuracy_drop))
    certificate.restore(tuner.snapshot()["certificate"])
    losses, here = certificate.mean_losses(), line.certified
    # Trial k has a share of 6/(π²k²) of what the confidence leaves; see orchestrator/tuning/tuners/certified.py.
    needed = (math.pi * line.trial) ** 2 / 6.0 / (1.0 - goal.confidence)
    if here == line.steps:
        return Evidence(lost=lost, mean_loss=float(losses[here]), wealth_needed=needed)
    return Evidence(
        lost=lost,
        mean_loss=float(losses[here]),
        next=_sendable(tuner.path[here + 1]),
        next_mean_loss=float(losses[here + 1]),
        next_wealth=math.exp(certificate.log_wealth()[here + 1]),
        wealth_needed=needed,
    )


def _kept(audits: Sequence[Audit], thresholds: Vector, costs: Vector) -> Kept:
    taken = exits_taken([audit.scores for audit in audits], thresholds)
    losses = np.array([audit.losses() for audit in audits])
    return Kept(
        audits=len(audits),
        labelled=sum(audit.label is not None for audit in audits),
        saved=float(1.0 - np.asarray(costs)[taken].mean() / costs[-1]),
        loss=float(losses[np.arange(len(taken)), taken].mean()),
        leave=tuple((np.bincount(taken, minlength=len(costs)) / len(taken)).tolist()),
    )


def _origin_lines(samples: Sequence[Sample]) -> tuple[OriginLine, ...]:
    kept = Counter(sample.origin for sample in samples)
    lost = Counter(sample.origin for sample in samples if sample.audit.lost)
    lines = (OriginLine(origin=origin, kept=count, lost=lost[origin]) for origin, count in kept.items())
    return tuple(sorted(lines, key=lambda line: (-line.lost, line.origin)))


def _plan_line(row: PlanRow, now: float) -> PlanLine:
    plan = row.plan
    return PlanLine(
        epoch=plan.epoch,
        age_s=max(0.0, now - row.at),
        author=row.author,
        criterion=plan.criterion,
        thresholds=plan.thresholds,
        masked=plan.masked,
        audit_rate=plan.audit_rate,
    )


def _flow(exits: Iterable[Sequence[int]]) -> tuple[StageFlow, ...]:
    counts = [sum(of_exit) for of_exit in zip_longest(*exits, fillvalue=0)]
    if not sum(counts):
        return ()
    total = sum(counts)
    return tuple(
        StageFlow(stage=k, reach=sum(counts[k:]) / total, leave=count / total) for k, count in enumerate(counts)
    )


def to_json(explanation: Explanation) -> str:
    """Return the explanation as JSON of schema SCHEMA; a threshold of 1e300 is one by which nobody leaves."""
    return json.dumps({"schema": SCHEMA, **asdict(explanation)}, indent=2, allow_nan=False)


# ---------------------------------------------------------------- plain text


def render(explanation: Explanation) -> str:
    """Return the explanation as plain text."""
    runs = "orchestrator runs" if explanation.running else "orchestrator does NOT run on this machine"
    parts = [f"site {explanation.site}, store {explanation.store}; {runs}"]
    return "\n\n".join([*parts, *map(_pipeline_text, explanation.pipelines)])


def _pipeline_text(reasons: PipelineReasons) -> str:
    if not reasons.plans:
        return f"pipeline {reasons.pipeline}: no plan yet"
    newest, tuning = reasons.plans[0], reasons.tuning
    since = f"by {newest.author} {ago(newest.age_s)} ago"
    head = f"pipeline {reasons.pipeline}: {newest.criterion}, epoch {newest.epoch}, {since}"
    blocks = [[head, *(_goal_lines(tuning) if tuning is not None else [_UNTUNED])]]
    # Where no branch was ever missing, or there are none, there is nothing to tell apart.
    is_only = all(not line.missing for line in reasons.sets)
    heads = ["thresholds in force" if is_only else branches_text(line.missing) for line in reasons.sets]
    blocks += [_set_lines(head, line, tuning) for head, line in zip(heads, reasons.sets, strict=True)]
    if any(line.lost for line in reasons.origins):
        blocks.append(_lost_lines(reasons.origins))
    if reasons.flow:
        blocks.append(_flow_lines(reasons.flow, reasons.sets))
    blocks.append(_plan_lines(reasons.plans))
    return "\n\n".join("\n".join([first, *(f"  {line}" for line in rest)]) for first, *rest in blocks)


_UNTUNED = "thresholds are not tuned: the pipeline has no goal"


def goal_text(goal: GoalConfig) -> str:
    """Say what is promised."""
    limits = [f"{name} of at most {limit:g}" for name, limit in goal.limits().items()]
    drop = f"accuracy drop of at most {percent(goal.accuracy_drop)} with {percent(goal.confidence)} confidence"
    return " and ".join([drop, *limits])


def progress_text(line: TunerLine) -> str:
    """Say how far a tuner is."""
    if line.gathering:
        return f"trial {line.trial}: gathers audits for a path, {line.gathering:,} more are wanted"
    further = "the path ends there"
    if line.to_next is not None:
        further = f"the next is about {line.to_next:,} audits without a loss away"
    return f"trial {line.trial}: {line.certified} of {line.steps} steps certified by {line.audits:,} audits, {further}"


def _goal_lines(tuning: TuningLine) -> list[str]:
    lines = [f"goal     {goal_text(tuning.goal)}"]
    if tuning.trouble:
        return [*lines, f"tuning   {Problem(tuning.trouble, tuning.remedy)}"]
    share = tuning.lost / tuning.audits if tuning.audits else 0.0
    lost = f", {tuning.lost:,} of them lost ({percent(share)}); each of these counts as a loss" if tuning.lost else ""
    lines.append(f"audits   {tuning.audits:,} so far{lost}")
    if tuning.alarms:
        lines.append(
            f"alarms   {tuning.alarms}: so often losses had grown, all exits were closed and a new trial began"
        )
    for name, queue in tuning.queues.items():
        lines.append(f"pressure {name} {queue:.3g} of {MOST:g} when last saved (0: the goal holds)")
    return lines


def _set_lines(head: str, line: SetLine, tuning: TuningLine | None) -> list[str]:
    vector = "nobody leaves early" if line.in_force is None else thresholds_text(line.in_force)
    lines = [f"{head}: {vector}"]
    if line.tuner is not None and tuning is not None:
        lines += _tuner_lines(line.tuner, line.evidence, tuning.goal)
        if line.step is not None and line.step < line.tuner.certified:
            lines.append(f"in force  step {line.step} of those certified: {_why_not_further(tuning.goal)}")
    if line.kept is not None and line.kept.leave[-1] < 1.0:
        kept = line.kept
        labelled = f", {kept.labelled:,} of them with labels" if kept.labelled else ""
        lines.append(
            f"in force  saves {percent(kept.saved)} of the multiply-accumulates and loses {percent(kept.loss)} on the "
            f"{kept.audits:,} audits kept{labelled} (in-sample: among them are those that chose it)"
        )
    return lines


def _why_not_further(goal: GoalConfig) -> str:
    names = ", ".join(goal.limits())
    return f"earlier exits are not needed for {names}" if names else "the next plan goes further"


def _tuner_lines(tuner: TunerLine, evidence: Evidence | None, goal: GoalConfig) -> list[str]:
    lines = [f"progress  {progress_text(tuner)}"]
    if evidence is None:
        return [*lines, "          until there is one, all inputs go to the last exit, and auditing each costs nothing"]
    vector = thresholds_text(tuner.thresholds)
    lines.append(
        f"certified {vector}: mean loss {percent(evidence.mean_loss)} so far, {percent(goal.accuracy_drop)} is allowed"
    )
    share = evidence.lost / tuner.audits if tuner.audits else 0.0
    if evidence.lost:
        lines.append(
            f"lost      {evidence.lost:,} of these {tuner.audits:,} audits ({percent(share)}), each of them a loss"
        )
    if share >= goal.accuracy_drop:
        lines.append(
            "          TOO MANY ARE LOST: more than the goal allows losses, so that nothing more can be proved"
        )
    if evidence.next is not None and evidence.next_wealth is not None and evidence.next_mean_loss is not None:
        over = " (above what is allowed)" if evidence.next_mean_loss > goal.accuracy_drop else ""
        lines.append(
            f"next      {thresholds_text(evidence.next)}: mean loss {percent(evidence.next_mean_loss)} so far{over}, "
            f"wealth {evidence.next_wealth:.3g} of {evidence.wealth_needed:.3g} needed"
        )
    return lines


def _lost_lines(origins: Sequence[OriginLine]) -> list[str]:
    shown = [line for line in origins if line.lost][:_ORIGINS_SHOWN]
    rows = [[line.origin, str(line.kept), str(line.lost)] for line in shown]
    return [
        "lost audits, of those kept (never came, or a board could not run them)",
        *table(_ORIGIN_HEAD, rows).splitlines(),
    ]


def _flow_lines(flow: Sequence[StageFlow], sets: Sequence[SetLine]) -> list[str]:
    expected = next((line.kept.leave for line in sets if line.kept is not None and not line.missing), ())
    rows = []
    for k, stage in enumerate(flow):
        would = f"{100 * expected[k]:.1f}" if k < len(expected) else "-"
        rows.append([str(stage.stage), f"{100 * stage.reach:.1f}", f"{100 * stage.leave:.1f}", bar(stage.leave), would])
    return [
        "of 100 inputs answered since the agents started; EXPECTED to leave by what is in force, on the audits kept",
        *table(_FLOW_HEAD, rows).splitlines(),
    ]


def _plan_lines(plans: Sequence[PlanLine]) -> list[str]:
    rows = [
        [str(plan.epoch), ago(plan.age_s), plan.author, thresholds_text(plan.thresholds), percent(plan.audit_rate)]
        for plan in plans
    ]
    return [f"the last plans, at most {PLANS_SHOWN}", *table(_PLAN_HEAD, rows).splitlines()]
