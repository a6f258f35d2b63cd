"""What the store gives and takes, and how it is laid out in the columns of its tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from distree.messages.codec import decode, encode
from distree.messages.device import DeviceMeta, DeviceStatus
from distree.messages.events import Event
from distree.messages.plan import MaskedThresholds, Plan
from distree.messages.telemetry import Telemetry
from orchestrator.store.connection import Row
from orchestrator.tuning.samples import AuditedInput, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """A plan and when its decision was made (Unix seconds).

    The row of a pipeline with the highest `id` holds the plan that is wanted; `id` is 0 before the row is written.
    `is_reset` says that somebody wants everything forgotten that others have published.
    """

    plan: Plan
    at: float
    id: int = 0
    is_reset: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRow:
    """What the service last wrote about a pipeline: the epoch after which it numbers, and where its planner stands.

    `alarm` says what is wrong with the plan and what to do, "" where nothing is. `configured` is the content of
    orchestrator.yaml when it last made a plan, "" before that. `branches` has the number of branches per stage of its
    bundle, 0 for a plain one; () before any service has written it.
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
class DeviceRow:
    """What a device last said of itself, and when (Unix seconds): `heard_at` is None where it was not heard alive.

    `seen_at` is when the row was noted, `period_s` the time between two of the device's reports. `shared` says that
    another board uses its id, if that was found, and `shared_at` when it was.
    """

    device: str
    boot: str
    seen_at: float
    heard_at: float | None = None
    period_s: float
    status: DeviceStatus | None = None
    meta: DeviceMeta | None = None
    telemetry: Telemetry | None = None
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
    """The state of a pipeline's tuning, as `PipelineTuning.snapshot` gives it, with all samples up to now."""

    pipeline: str
    state: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """An event and when it was heard (Unix seconds); `sender` is the board that told it, "" for the orchestrator."""

    at: float
    sender: str
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the service writes in one transaction; the reports of the rows in `reported` join the history."""

    devices: tuple[DeviceRow, ...] = ()
    reported: tuple[DeviceRow, ...] = ()
    forgotten: tuple[str, ...] = ()
    pipelines: tuple[PipelineRow, ...] = ()
    service: ServiceRow | None = None
    samples: tuple[AuditSample, ...] = ()
    tunings: tuple[TuningRow, ...] = ()
    events: tuple[EventRow, ...] = ()
    sequences: tuple[tuple[str, int], ...] = ()
    """Whose signed messages were heard, and the number of the last one."""


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
    audit = AuditedInput(scores=tuple(json.loads(scores)), predictions=guesses, label=label, lost=not guesses)
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


def device_values(row: DeviceRow) -> Row:
    """Columns of the table `device`; description and report are in their wire form, which has a version."""
    return (
        row.device,
        # Text that came as JSON may hold half a surrogate pair, which SQLite refuses.
        row.boot.encode("utf-8", "surrogatepass"),
        row.status.value if row.status else None,
        encode(row.meta) if row.meta else None,
        encode(row.telemetry) if row.telemetry else None,
        row.heard_at,
        row.period_s,
        row.seen_at,
        row.shared,
        row.shared_at,
    )


def device_row(values: Row) -> DeviceRow:
    """Read a row of the table `device`."""
    device, boot, status, meta, telemetry, heard_at, period_s, seen_at, shared, shared_at = values
    return DeviceRow(
        device=device,
        boot=boot.decode("utf-8", "surrogatepass"),
        seen_at=seen_at,
        heard_at=heard_at,
        period_s=period_s,
        status=DeviceStatus(status) if status else None,
        meta=decode(DeviceMeta, meta) if meta else None,
        telemetry=decode(Telemetry, telemetry) if telemetry else None,
        shared=shared,
        shared_at=shared_at,
    )


def service_values(row: ServiceRow) -> Row:
    """Columns of the table `service`, but for its id."""
    refused = json.dumps({entry.reason: entry.count for entry in row.refused})
    return row.pid, row.started_at, row.online, refused


def service_row(values: Row) -> ServiceRow:
    """Read a row of the table `service`, without its id."""
    pid, started_at, online, refused = values
    counts = tuple(Refused(reason=reason, count=count) for reason, count in json.loads(refused).items())
    return ServiceRow(pid=pid, started_at=started_at, online=bool(online), refused=counts)


def event_values(row: EventRow) -> Row:
    """Columns of the table `event`, but for its id; the event is in its wire form, which has a version."""
    return row.at, row.sender, encode(row.event)


def event_row(values: Row) -> EventRow:
    """Read a row of the table `event`, without its id."""
    at, sender, event = values
    return EventRow(at=at, sender=sender, event=decode(Event, event))
