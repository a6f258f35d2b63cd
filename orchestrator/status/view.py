"""What `distree orchestrator status` shows, as data; read from the store, whether or not a service is running."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from distree.formatting import plain
from distree.messages.device import DeviceStatus
from distree.messages.plan import Plan, plan_hash
from distree.messages.telemetry import FusionTelemetry, OriginTelemetry, StageTelemetry
from distree.record import record
from orchestrator.config import OrchestratorConfig, PipelineConfig
from orchestrator.coverage import Gap, find_gaps
from orchestrator.fleet import Device, is_behind
from orchestrator.problems import SHARED_ID_S
from orchestrator.site_view import (
    BoardView,
    StoredDevice,
    answered_by_exit,
    board_view,
    reports_on,
    standing_alarm,
    stored_devices,
)
from orchestrator.store.database import Store
from orchestrator.store.lock import is_served
from orchestrator.store.records import EventRow, Refused
from orchestrator.tuning_view import TuningView, read_tuning, tuner_json, tuning_json

EVENTS_SHOWN = 10
SCHEMA = "distree.orchestrator-status/1"


@record
class StageStatus:
    """One stage on one board: counters since it started, mean times of its latest report.

    `branch` is the one that the board runs of a wide stage, None for a plain one.
    """

    device: str
    branch: int | None
    report: StageTelemetry


@record
class BranchStatus:
    """One branch of a wide stage: the boards that serve it, and those of them that are ready."""

    stage: int
    branch: int
    boards: tuple[str, ...]
    ready: tuple[str, ...]


@record
class FusionStatus:
    """The exit of one wide stage on a board that fuses it: counters since the board started."""

    device: str
    report: FusionTelemetry


@record
class OriginStatus:
    """One origin: counters since it started, latencies of its latest report."""

    device: str
    report: OriginTelemetry


@record
class Tally:
    """How many answered inputs had one exit or one reason, and which share of all that is."""

    name: str
    count: int
    share: float


@record
class PipelineStatus:
    """A pipeline: its plan, the boards that do not follow it yet, its tuning, and what origins and stages report.

    `alarm` says what is wrong with the plan and what to do, "" where nothing is. `plan_hash` is what boards report that
    follow the plan, "" without one. `runs` counts runs of segments since the boards started, `audit_runs` those that
    were only for audits. `gaps` are stages that inputs cannot reach.
    """

    pipeline: str
    standing: str
    alarm: str
    plan: Plan | None
    plan_hash: str
    set_s: float | None
    behind: tuple[str, ...]
    exits: tuple[Tally, ...]
    reasons: tuple[Tally, ...]
    origins: tuple[OriginStatus, ...]
    stages: tuple[StageStatus, ...]
    branches: tuple[BranchStatus, ...]
    gaps: tuple[Gap, ...]
    fusions: tuple[FusionStatus, ...]
    tuning: TuningView | None
    runs: int
    audit_runs: int


@record
class BoardStatus:
    """A board, and the warning that another board uses its id, "" if none was found to lately."""

    board: BoardView
    shared: str


@record
class EventStatus:
    """Something that happened: `age_s` is how long ago it was heard of, `by` who said so, "" for the orchestrator."""

    age_s: float
    by: str
    device: str | None
    pipeline: str | None
    kind: str
    severity: str
    what: str
    remedy: str


@record
class Status:
    """Everything that `distree orchestrator status` shows. `age_s` is how old the newest data is, in seconds."""

    site: str
    store: str
    running: bool
    pid: int | None
    online: bool
    age_s: float | None
    refused: tuple[Refused, ...]
    devices: tuple[BoardStatus, ...]
    pipelines: tuple[PipelineStatus, ...]
    events: tuple[EventStatus, ...]


def read_status(config: OrchestratorConfig, *, now: float | None = None) -> Status:
    """Read the store of a configuration; `now` is Unix seconds. Raises StoreError."""
    now = time.time() if now is None else now
    path = config.store.path
    with Store(path, read_only=True) as store:
        running, service, stored = is_served(path), store.service(), stored_devices(store)
        devices = [one.device for one in stored]
        events = store.events(EVENTS_SHOWN)
        pipelines = tuple(_pipeline_status(store, configured, devices, now) for configured in config.pipelines)
    newest = max((one.seen_at for one in stored), default=None)
    return Status(
        site=config.site,
        store=str(path),
        running=running,
        pid=service.pid if service and running else None,
        online=running and service is not None and service.online,
        age_s=_age_s(now, newest),
        refused=service.refused if service else (),
        devices=tuple(_device_status(one, now) for one in stored),
        pipelines=pipelines,
        events=tuple(_event_status(row, now) for row in events),
    )


def to_json(status: Status) -> str:
    """Return the status as JSON of schema SCHEMA: times in seconds, sizes in bytes, thresholds a number or `never`."""
    document = asdict(status)
    document["devices"] = [{**asdict(one.board), "shared": one.shared} for one in status.devices]
    document["pipelines"] = [{**asdict(one), "tuning": _tuning_json(one.tuning)} for one in status.pipelines]
    return json.dumps({"schema": SCHEMA, **plain(document)}, indent=2, allow_nan=False)


def _tuning_json(view: TuningView | None) -> dict[str, Any] | None:
    document = tuning_json(view)
    if document is None or view is None:
        return None
    sets = [{"missing": one.missing, "tuner": tuner_json(one.tuner)} for one in view.explanation.sets]
    return {**document, "sets": sets}


def _age_s(now: float, then: float | None) -> float | None:
    # A clock that was set back must not show data from the future.
    return None if then is None else max(0.0, now - then)


# ---------------------------------------------------------------- boards


def _device_status(stored: StoredDevice, now: float) -> BoardStatus:
    view = board_view(stored.device, _age_s(now, stored.heard_at), _age_s(now, stored.seen_at))
    return BoardStatus(board=view, shared=_shared(stored, now))


def _shared(stored: StoredDevice, now: float) -> str:
    age_s = _age_s(now, stored.shared_at)
    # While it goes on, it is found about once in SHARED_ID_S.
    return "" if stored.shared is None or age_s is None or age_s > 2 * SHARED_ID_S else stored.shared


def _event_status(row: EventRow, now: float) -> EventStatus:
    event = row.event
    return EventStatus(
        age_s=_age_s(now, row.at) or 0.0,
        by=row.sender,
        device=event.device,
        pipeline=event.pipeline,
        kind=event.kind.value,
        severity=event.severity.value,
        what=event.what,
        remedy=event.remedy,
    )


# ---------------------------------------------------------------- pipelines


def _pipeline_status(store: Store, configured: PipelineConfig, devices: Sequence[Device], now: float) -> PipelineStatus:
    name = configured.name
    latest, known = store.latest_plan(name), store.pipeline(name)
    wanted = plan_hash(latest.plan) if latest else ""
    origins, stages = _origins(name, devices), _stages(name, devices)
    audit_runs = sum(one.report.audited for one in stages)
    return PipelineStatus(
        pipeline=name,
        standing=known.standing,
        alarm=standing_alarm(store, name),
        plan=latest.plan if latest else None,
        plan_hash=wanted,
        set_s=_age_s(now, latest.at if latest else None),
        behind=tuple(device.device for device in devices if latest and is_behind(device, name, wanted)),
        exits=_tallies((str(k), count) for k, count in enumerate(answered_by_exit(name, devices))),
        reasons=_tallies(sorted(_reasons(origins).items())),
        origins=origins,
        stages=stages,
        branches=_branches(name, known.branches, devices),
        gaps=find_gaps(name, known.branches, devices),
        fusions=_fusions(name, devices),
        tuning=read_tuning(store, configured),
        runs=audit_runs + sum(one.report.exited + one.report.forwarded for one in stages),
        audit_runs=audit_runs,
    )


def _origins(name: str, devices: Sequence[Device]) -> tuple[OriginStatus, ...]:
    return tuple(
        OriginStatus(device=device.device, report=part.origin)
        for device, part in reports_on(name, devices)
        if part.origin is not None
    )


def _served_branches(name: str, device: Device) -> dict[int, int | None]:
    """Return the stages of a pipeline that a board serves, each with its branch."""
    held = device.meta.stages if device.meta is not None else ()
    return {one.stage: one.branch for one in held if one.pipeline == name}


def _stages(name: str, devices: Sequence[Device]) -> tuple[StageStatus, ...]:
    found = [
        StageStatus(device=device.device, branch=_served_branches(name, device).get(stage.stage), report=stage)
        for device, part in reports_on(name, devices)
        for stage in part.stages
    ]
    return tuple(sorted(found, key=lambda one: (one.report.stage, one.branch or 0, one.device)))


def _branches(name: str, branches: Sequence[int], devices: Sequence[Device]) -> tuple[BranchStatus, ...]:
    served = [(device, _served_branches(name, device)) for device in devices]
    found = []
    for stage, count in enumerate(branches):
        for branch in range(count):
            boards = [device for device, of_board in served if of_board.get(stage) == branch]
            ready = tuple(board.device for board in boards if board.status is DeviceStatus.READY)
            names = tuple(board.device for board in boards)
            found.append(BranchStatus(stage=stage, branch=branch, boards=names, ready=ready))
    return tuple(found)


def _fusions(name: str, devices: Sequence[Device]) -> tuple[FusionStatus, ...]:
    found = [
        FusionStatus(device=device.device, report=fusion)
        for device, part in reports_on(name, devices)
        for fusion in part.fusions
    ]
    return tuple(sorted(found, key=lambda one: (one.report.stage, one.device)))


def _reasons(origins: Sequence[OriginStatus]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for one in origins:
        counts.update(one.report.reasons)
    return counts


def _tallies(counts: Iterable[tuple[str, int]]) -> tuple[Tally, ...]:
    counted = list(counts)
    total = sum(count for _, count in counted)
    return tuple(Tally(name=name, count=count, share=count / total if total else 0.0) for name, count in counted)
