"""What the store gives and takes, and how it stands in the columns of the store's tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from distree.messages.codec import decode, encode
from distree.messages.device import DeviceMeta, DeviceStatus
from distree.messages.plan import MaskedThresholds, Plan
from distree.messages.telemetry import Telemetry
from orchestrator.fleet import Device
from orchestrator.tuning.pipeline_tuning import Sample
from orchestrator.tuning.tuners import Audit

Row: TypeAlias = "tuple[Any, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """A plan and when its decision was made (Unix seconds).

    The row with the highest `id` of a pipeline holds what is wanted of it; 0 before it is written. `is_reset` says that
    a person wants all that others have published forgotten.
    """

    plan: Plan
    at: float
    id: int = 0
    is_reset: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRow:
    """What the service last said of a pipeline: after which epoch the next is numbered, and where its planner stands.

    `alarm` says what is wrong with that and what to do, "" where all is well. `configured` is the content of
    orchestrator.yaml when it last made a plan, "" before that. `branches` has the number of branches per stage of its
    bundle, 0 for a plain one; () where no service has told.
    """

    name: str
    highest_epoch: int = 0
    standing: str = ""
    alarm: str = ""
    configured: str = ""
    branches: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """How many messages the service refused for one reason since it started."""

    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRow:
    """The service that wrote last: whether it had a broker, and what it refused."""

    pid: int
    started_at: float
    online: bool
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A device and when (Unix seconds) it was noted; `heard_at` is None where it was not heard alive.

    `shared` says that another board uses its name, where that was found, and `shared_at` when it was.
    """

    device: Device
    heard_at: float | None
    seen_at: float
    shared: str | None = None
    shared_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSample:
    """A sample that the tuning of a pipeline learned from, and when (Unix seconds)."""

    pipeline: str
    sample: Sample
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRow:
    """Where the tuning of a pipeline stood, as `Tuning.snapshot` gives it, with all samples up to now."""

    pipeline: str
    state: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the service writes in one transaction; the last reports of `reported` join the history."""

    devices: tuple[Observation, ...] = ()
    reported: tuple[Observation, ...] = ()
    forgotten: tuple[str, ...] = ()
    pipelines: tuple[PipelineRow, ...] = ()
    service: ServiceRow | None = None
    samples: tuple[AuditSample, ...] = ()
    tunings: tuple[TuningRow, ...] = ()


PLAN_COLUMNS = (
    "pipeline", "epoch", "model", "revision", "criterion", "thresholds", "masked", "audit_rate", "rest_s", "reason",
    "author", "at", "is_reset",
)  # fmt: skip
"""Of the table `plan`, after its id."""


def plan_values(row: PlanRow) -> Row:
    """What PLAN_COLUMNS hold of a row."""
    plan = row.plan
    content = plan.model, plan.revision, plan.criterion, json.dumps(plan.thresholds)
    masked = json.dumps([[part.missing, part.thresholds] for part in plan.masked])
    hints = plan.audit_rate, json.dumps(plan.rest_s), plan.reason, plan.author
    return plan.pipeline, plan.epoch, *content, masked, *hints, row.at, row.is_reset


def plan_row(values: Row) -> PlanRow:
    """Read id and PLAN_COLUMNS of a row."""
    number, pipeline, epoch, model, revision, criterion, thresholds, masked, audit_rate, rest_s, *later = values
    reason, author, at, is_reset = later
    plan = Plan(
        pipeline=pipeline,
        epoch=epoch,
        model=model,
        revision=revision,
        criterion=criterion,
        thresholds=tuple(map(float, json.loads(thresholds))),
        masked=tuple(
            MaskedThresholds(missing=tuple(missing), thresholds=tuple(map(float, of_exits)))
            for missing, of_exits in json.loads(masked)
        ),
        audit_rate=audit_rate,
        rest_s=tuple(map(float, json.loads(rest_s))),
        reason=reason,
        author=author,
    )
    return PlanRow(plan=plan, at=at, id=number, is_reset=bool(is_reset))


def sample_values(row: AuditSample) -> Row:
    """Columns of the table `audit`, but for its id."""
    sample, audit = row.sample, row.sample.audit
    of_exits = json.dumps(audit.scores), json.dumps(audit.predictions)
    return row.pipeline, row.at, sample.origin, sample.request, json.dumps(sample.missing), *of_exits, audit.label


def sample_row(values: Row) -> AuditSample:
    """Read a row of the table `audit`."""
    _, pipeline, at, origin, request, missing, scores, predictions, label = values
    guesses = tuple(json.loads(predictions))
    audit = Audit(scores=tuple(json.loads(scores)), predictions=guesses, label=label, lost=not guesses)
    sample = Sample(origin=origin, request=request, missing=tuple(json.loads(missing)), audit=audit)
    return AuditSample(pipeline=pipeline, sample=sample, at=at)


PIPELINE_COLUMNS = ("name", "highest_epoch", "standing", "alarm", "configured", "branches")
"""Of the table `pipeline`."""


def pipeline_values(row: PipelineRow) -> Row:
    """What PIPELINE_COLUMNS hold of a row."""
    return row.name, row.highest_epoch, row.standing, row.alarm, row.configured, json.dumps(row.branches)


def pipeline_row(values: Row) -> PipelineRow:
    """Read PIPELINE_COLUMNS of a row."""
    name, highest_epoch, standing, alarm, configured, branches = values
    return PipelineRow(
        name=name,
        highest_epoch=highest_epoch,
        standing=standing,
        alarm=alarm,
        configured=configured,
        branches=tuple(json.loads(branches)),
    )


def device_values(observation: Observation) -> Row:
    """Columns of the table `device`; description and report stand in their wire form, which has a version."""
    device = observation.device
    return (
        device.device,
        # What came as JSON may hold half a surrogate pair, which SQLite refuses as text.
        device.boot.encode("utf-8", "surrogatepass"),
        device.status.value if device.status else None,
        encode(device.meta) if device.meta else None,
        encode(device.telemetry) if device.telemetry else None,
        observation.heard_at,
        device.period_s,
        observation.seen_at,
        observation.shared,
        observation.shared_at,
    )


def observation(values: Row) -> Observation:
    """Read a row of the table `device`."""
    device_id, boot, status, meta, telemetry, heard_at, period_s, seen_at, shared, shared_at = values
    device = Device(
        device=device_id,
        boot=boot.decode("utf-8", "surrogatepass"),
        status=DeviceStatus(status) if status else None,
        meta=decode(DeviceMeta, meta) if meta else None,
        telemetry=decode(Telemetry, telemetry) if telemetry else None,
        period_s=period_s,
    )
    return Observation(device=device, heard_at=heard_at, seen_at=seen_at, shared=shared, shared_at=shared_at)
