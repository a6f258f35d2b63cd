"""What `distree orchestrator explain` shows, as data; read from the store, whether or not a service is running."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from distree.exits_taken import exits_taken
from distree.formatting import plain
from distree.messages.plan import MaskedThresholds, Plan, same_decision
from distree.record import record
from orchestrator.config import OrchestratorConfig, PipelineConfig
from orchestrator.fleet import Device
from orchestrator.pipeline_spec import load_spec
from orchestrator.site_view import answered_by_exit, stored_devices
from orchestrator.store.database import Store
from orchestrator.store.lock import is_served
from orchestrator.store.records import PlanRow
from orchestrator.tuning.live_tuner import TunerExplanation
from orchestrator.tuning.pipeline_tuning import SetExplanation, TuningExplanation
from orchestrator.tuning.samples import AuditedInput, Sample, Vector
from orchestrator.tuning_view import TuningView, kept_samples, read_tuning, tuner_json, tuning_json

SCHEMA = "distree.orchestrator-explain/1"

PLANS_SHOWN = 10


@record
class ThresholdEffect:
    """What thresholds in force do to the audits that are kept: in-sample, because these audits chose them.

    `saved` is the share of the multiply-accumulates of the last exit. `loss` is the share of answers that differ from
    the last exit's; of the `labelled` audits, whose true class is known, those that are wrong where the last exit's are
    right. `leave` is the share that leaves at each exit.
    """

    audits: int
    labelled: int
    saved: float
    loss: float
    leave: tuple[float, ...]


@record
class SetReasons:
    """One set of missing branches: its thresholds in force, None where early exits are disabled, and their reasons.

    `choice` is the place of those in force among the `choices` of the tuner, from 0 for the safest, None where they are
    not among them (any more). `lost` counts lost audits among those that the tuner's thresholds rest on.
    """

    missing: tuple[int, ...]
    in_force: Vector | None
    tuner: TunerExplanation | None = None
    choice: int | None = None
    choices: int = 0
    lost: int = 0
    effect: ThresholdEffect | None = None


@record
class OriginAudits:
    """The audits of one origin that are kept, and how many of them were lost."""

    origin: str
    kept: int
    lost: int


@record
class PastPlan:
    """A decision of the past: who made it, why, and how long ago. If it had several epochs, `epoch` is the latest."""

    epoch: int
    age_s: float
    author: str
    reason: str
    criterion: str
    thresholds: Vector
    masked: tuple[MaskedThresholds, ...]
    audit_rate: float


@record
class StageFlow:
    """Shares of all inputs answered since the agents started: those that reached a stage, and those that left there."""

    stage: int
    reach: float
    leave: float


@record
class PipelineReasons:
    """Everything that explains the thresholds of one pipeline; `plans` are the latest decisions, the newest first."""

    pipeline: str
    tuning: TuningView | None
    sets: tuple[SetReasons, ...]
    origins: tuple[OriginAudits, ...]
    plans: tuple[PastPlan, ...]
    flow: tuple[StageFlow, ...]


@record
class Explanation:
    """Everything that `distree orchestrator explain` shows; `running` says whether a service uses the store."""

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
        running, devices = is_served(path), [stored.device for stored in stored_devices(store)]
        reasons = tuple(_reasons(store, configured, devices, now) for configured in pipelines)
    return Explanation(site=config.site, store=str(path), running=running, pipelines=reasons)


def to_json(explanation: Explanation) -> str:
    """Return the explanation as JSON of schema SCHEMA; a threshold that disables its exit is `never`."""
    document = asdict(explanation)
    document["pipelines"] = [
        {
            **asdict(reasons),
            "tuning": tuning_json(reasons.tuning),
            "sets": [{**asdict(one), "tuner": tuner_json(one.tuner)} for one in reasons.sets],
        }
        for reasons in explanation.pipelines
    ]
    return json.dumps({"schema": SCHEMA, **plain(document)}, indent=2, allow_nan=False)


def _reasons(store: Store, configured: PipelineConfig, devices: Sequence[Device], now: float) -> PipelineReasons:
    name = configured.name
    plans = store.plans(name)
    plan = plans[0].plan if plans else None
    view = read_tuning(store, configured)
    sets = _untuned_sets(plan)
    origins: tuple[OriginAudits, ...] = ()
    if view is not None and view.trouble is None:
        samples = kept_samples(store, name, view.explanation.audits)
        sets = _tuned_sets(plan, view.explanation, load_spec(configured).costs, samples)
        origins = _origin_audits(samples)
    return PipelineReasons(
        pipeline=name,
        tuning=view,
        sets=sets,
        origins=origins,
        plans=tuple(itertools.islice(_past_plans(plans, now), PLANS_SHOWN)),
        flow=_flow(answered_by_exit(name, devices)),
    )


def _in_force(plan: Plan | None) -> dict[tuple[int, ...], Vector]:
    if plan is None:
        return {}
    return {(): plan.thresholds, **{part.missing: part.thresholds for part in plan.masked}}


def _untuned_sets(plan: Plan | None) -> tuple[SetReasons, ...]:
    return tuple(SetReasons(missing=missing, in_force=vector) for missing, vector in sorted(_in_force(plan).items()))


def _tuned_sets(
    plan: Plan | None, tuning: TuningExplanation, costs: Vector, samples: Sequence[Sample]
) -> tuple[SetReasons, ...]:
    in_force = _in_force(plan)
    return tuple(_set_reasons(one, in_force.get(one.missing), costs, samples) for one in tuning.sets)


def _set_reasons(
    of_set: SetExplanation, in_force: Vector | None, costs: Vector, samples: Sequence[Sample]
) -> SetReasons:
    tuner, choices = of_set.tuner, of_set.choices
    # Nobody knows which branches a lost audit would have heard.
    heard = [sample for sample in samples if sample.audit.lost or sample.missing == of_set.missing]
    complete = [sample.audit for sample in heard if not sample.audit.lost]
    return SetReasons(
        missing=of_set.missing,
        in_force=in_force,
        tuner=tuner,
        choice=choices.index(in_force) if in_force in choices else None,
        choices=len(choices),
        lost=sum(sample.audit.lost for sample in heard[max(0, len(heard) - tuner.audits) :]),
        effect=_effect(complete, in_force, costs) if in_force is not None and complete else None,
    )


def _effect(audits: Sequence[AuditedInput], thresholds: Vector, costs: Vector) -> ThresholdEffect:
    taken = exits_taken([audit.scores for audit in audits], thresholds)
    losses = np.array([audit.losses() for audit in audits])
    return ThresholdEffect(
        audits=len(audits),
        labelled=sum(audit.label is not None for audit in audits),
        saved=float(1.0 - np.asarray(costs)[taken].mean() / costs[-1]),
        loss=float(losses[np.arange(len(taken)), taken].mean()),
        leave=tuple((np.bincount(taken, minlength=len(costs)) / len(taken)).tolist()),
    )


def _origin_audits(samples: Sequence[Sample]) -> tuple[OriginAudits, ...]:
    kept = Counter(sample.origin for sample in samples)
    lost = Counter(sample.origin for sample in samples if sample.audit.lost)
    found = (OriginAudits(origin=origin, kept=count, lost=lost[origin]) for origin, count in kept.items())
    return tuple(sorted(found, key=lambda one: (-one.lost, one.origin)))


def _past_plans(rows: Sequence[PlanRow], now: float) -> Iterator[PastPlan]:
    """Give the decisions behind plans, the newest first: a plan that was only numbered anew is none."""
    decisions: list[list[PlanRow]] = []
    for row in rows:
        if decisions and same_decision(decisions[-1][0].plan, row.plan):
            decisions[-1].append(row)
        else:
            decisions.append([row])
    return (_past_plan(of_one[0].plan, of_one[-1], now) for of_one in decisions)


def _past_plan(plan: Plan, made: PlanRow, now: float) -> PastPlan:
    return PastPlan(
        epoch=plan.epoch,
        age_s=max(0.0, now - made.at),
        author=made.plan.author,
        reason=made.plan.reason,
        criterion=plan.criterion,
        thresholds=plan.thresholds,
        masked=plan.masked,
        audit_rate=plan.audit_rate,
    )


def _flow(counts: Sequence[int]) -> tuple[StageFlow, ...]:
    total = sum(counts)
    if not total:
        return ()
    return tuple(
        StageFlow(stage=k, reach=sum(counts[k:]) / total, leave=count / total) for k, count in enumerate(counts)
    )
