"""What the store knows, for people (`render`) and for programs (`to_json`).

Read from the store alone, so it works whether or not the orchestrator runs; it says which, and how old
the data is.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest

from distree.errors import Problem
from distree.messages.device import DeviceStatus
from distree.messages.plan import Plan
from distree.messages.telemetry import FusionTelemetry, OriginTelemetry, StageTelemetry
from distree.printable import printable
from orchestrator.complaints import NAMESAKE_S
from orchestrator.config import OrchestratorConfig, PipelineConfig
from orchestrator.coverage import Gap, find_gaps, gap_text
from orchestrator.explain import TuningLine, goal_text, progress_text, read_tuning, reports
from orchestrator.fleet import Device, epoch_of, is_behind, is_stale
from orchestrator.formatting import ago, percent, table, thresholds_text
from orchestrator.store.database import Store
from orchestrator.store.lock import is_served
from orchestrator.store.records import Observation, PlanRow, Refused

SCHEMA = "distree.orchestrator-status/1"

_DEVICE_HEAD = (
    "DEVICE", "STATE", "SERVES", "RUNTIME", "RSS_MB", "UPTIME", "HEARD", "EPOCH", "DEAD", "DROPPED",
)  # fmt: skip
_ORIGIN = (
    "accepted", "answered", "pending", "resent", "late", "latency_p50_s", "latency_p95_s", "latency_max_s",
)  # fmt: skip
_ORIGIN_AUDITS = ("audits_drawn", "audits_lost")
_STAGE = (
    "received", "exited", "forwarded", "shed", "expired", "failed", "duplicate", "waiting", "queue_s", "compute_s",
)  # fmt: skip
_FUSION = ("fused", "exited", "forwarded", "failed", "expired", "late")
_AUDITED = ("audited",)
"""What is shown of the reports; the rest is in the JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLine:
    """A device; `heard_s` is the age of its last sign of life in seconds, None if there was none.

    `shared` says that another board uses its name, "" where none was found to of late.
    """

    device: str
    state: str
    stale: bool
    serves: tuple[str, ...]
    runtime: str
    rss_bytes: int | None
    uptime_s: float | None
    heard_s: float | None
    epochs: tuple[str, ...]
    dead_letters: int
    offline_dropped: int
    shared: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLine:
    """One stage on one device: counters since its boot, mean times of its last report.

    `branch` is the one that the device runs of a wide stage, None for a plain one.
    """

    device: str
    branch: int | None
    report: StageTelemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchLine:
    """One branch of a wide stage: the boards that hold it, and those of them that are ready."""

    stage: int
    branch: int
    boards: tuple[str, ...]
    ready: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionLine:
    """The exit of one wide stage on a device that fuses it: counters since its boot."""

    device: str
    report: FusionTelemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginLine:
    """One origin: counters since its boot, latencies of its last report."""

    device: str
    report: OriginTelemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many answered inputs fell to one exit or one reason, and which share of all that is."""

    name: str
    count: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineLine:
    """A pipeline: its plan, who is to follow it yet, how its tuning stands, and what its origins and stages report.

    `runs` are the runs of segments since the boards' boots, `audit_runs` those of them that were for audits alone.
    `gaps` are where inputs cannot go on.
    """

    pipeline: str
    standing: str
    plan: Plan | None
    author: str
    set_s: float | None
    behind: tuple[str, ...]
    exits: tuple[Share, ...]
    reasons: tuple[Share, ...]
    origins: tuple[OriginLine, ...]
    stages: tuple[StageLine, ...]
    branches: tuple[BranchLine, ...]
    gaps: tuple[Gap, ...]
    fusions: tuple[FusionLine, ...]
    tuning: TuningLine | None
    runs: int
    audit_runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """All that `distree orchestrator status` shows. `age_s` is how old the newest data is, in seconds."""

    site: str
    store: str
    running: bool
    pid: int | None
    online: bool
    age_s: float | None
    refused: tuple[Refused, ...]
    devices: tuple[DeviceLine, ...]
    pipelines: tuple[PipelineLine, ...]


def read_status(config: OrchestratorConfig, *, now: float | None = None) -> Status:
    """Read the store of a configuration; `now` is Unix seconds. Raises StoreError."""
    now = time.time() if now is None else now
    path = config.store.path
    with Store(path, read_only=True) as store:
        running, service, devices = is_served(path), store.service(), store.devices()
        pipelines = tuple(_pipeline_line(store, p, devices, now) for p in config.pipelines)
    newest = max((seen.seen_at for seen in devices), default=None)
    return Status(
        site=config.site,
        store=str(path),
        running=running,
        pid=service.pid if service and running else None,
        online=running and service is not None and service.online,
        age_s=_age_s(now, newest),
        refused=service.refused if service else (),
        devices=tuple(_device_line(seen, [p.name for p in config.pipelines], now) for seen in devices),
        pipelines=pipelines,
    )


def _age_s(now: float, then: float | None) -> float | None:
    # A clock that was set back must not show data from the future.
    return None if then is None else max(0.0, now - then)


def _device_line(seen: Observation, pipelines: Sequence[str], now: float) -> DeviceLine:
    device, heard_s = seen.device, _age_s(now, seen.heard_at)
    report, meta = device.telemetry, device.meta
    ready = device.status is DeviceStatus.READY
    epochs = [(name, epoch_of(device, name)) for name in pipelines]
    return DeviceLine(
        device=device.device,
        state=device.status.value if device.status else "unknown",
        stale=ready and (heard_s is None or is_stale(heard_s, device.period_s)),
        serves=tuple(_serves(seen)),
        runtime=printable(meta.runtime) if meta else "",
        rss_bytes=report.rss_bytes if report else None,
        uptime_s=report.uptime_s if report else None,
        heard_s=heard_s,
        epochs=tuple(f"{name}:{epoch}" for name, epoch in epochs if epoch is not None),
        dead_letters=report.dead_letters if report else 0,
        offline_dropped=report.offline_dropped if report else 0,
        shared=_shared(seen, now),
    )


def _shared(seen: Observation, now: float) -> str:
    age_s = _age_s(now, seen.shared_at)
    # While it goes on, it is found about once in NAMESAKE_S.
    return "" if seen.shared is None or age_s is None or age_s > 2 * NAMESAKE_S else seen.shared


def _serves(seen: Observation) -> Iterable[str]:
    meta = seen.device.meta
    if meta is not None:
        for held in meta.stages:
            branch = "" if held.branch is None else f".{held.branch}"
            yield f"{printable(held.pipeline)}/{held.stage}{branch}"
        yield from (f"{printable(name)}/fuser" for name in meta.fusers)
        yield from (f"{printable(name)}/origin" for name in meta.origins)


def _pipeline_line(
    store: Store, configured: PipelineConfig, devices: Sequence[Observation], now: float
) -> PipelineLine:
    name = configured.name
    latest, known = store.latest_plan(name), store.pipeline(name)
    origins, stages = _origin_lines(name, devices), _stage_lines(name, devices)
    audit_runs = sum(line.report.audited for line in stages)
    return PipelineLine(
        pipeline=name,
        standing=known.standing,
        plan=latest.plan if latest else None,
        author=latest.author if latest else "",
        set_s=_age_s(now, latest.at if latest else None),
        behind=_behind(name, devices, latest),
        exits=_exit_shares(origins),
        reasons=_reason_shares(origins),
        origins=origins,
        stages=stages,
        branches=_branch_lines(name, known.branches, devices),
        gaps=find_gaps(name, known.branches, [seen.device for seen in devices]),
        fusions=_fusion_lines(name, devices),
        tuning=read_tuning(store, configured),
        runs=audit_runs + sum(line.report.exited + line.report.forwarded for line in stages),
        audit_runs=audit_runs,
    )


def _behind(name: str, devices: Sequence[Observation], latest: PlanRow | None) -> tuple[str, ...]:
    if latest is None:
        return ()
    return tuple(seen.device.device for seen in devices if is_behind(seen.device, name, latest.plan.epoch))


def _origin_lines(name: str, devices: Sequence[Observation]) -> tuple[OriginLine, ...]:
    return tuple(
        OriginLine(device=device.device, report=part.origin)
        for device, part in reports(name, devices)
        if part.origin is not None
    )


def _held_branches(name: str, device: Device) -> dict[int, int | None]:
    """Return the stages of a pipeline that a device holds, each with its branch."""
    held = device.meta.stages if device.meta is not None else ()
    return {one.stage: one.branch for one in held if one.pipeline == name}


def _stage_lines(name: str, devices: Sequence[Observation]) -> tuple[StageLine, ...]:
    lines = [
        StageLine(device=device.device, branch=_held_branches(name, device).get(stage.stage), report=stage)
        for device, part in reports(name, devices)
        for stage in part.stages
    ]
    return tuple(sorted(lines, key=lambda line: (line.report.stage, line.branch or 0, line.device)))


def _branch_lines(name: str, branches: Sequence[int], devices: Sequence[Observation]) -> tuple[BranchLine, ...]:
    holding = [(seen.device, _held_branches(name, seen.device)) for seen in devices]
    lines = []
    for stage, count in enumerate(branches):
        for branch in range(count):
            boards = [device for device, held in holding if held.get(stage) == branch]
            ready = tuple(board.device for board in boards if board.status is DeviceStatus.READY)
            names = tuple(board.device for board in boards)
            lines.append(BranchLine(stage=stage, branch=branch, boards=names, ready=ready))
    return tuple(lines)


def _fusion_lines(name: str, devices: Sequence[Observation]) -> tuple[FusionLine, ...]:
    lines = [
        FusionLine(device=device.device, report=fusion)
        for device, part in reports(name, devices)
        for fusion in part.fusions
    ]
    return tuple(sorted(lines, key=lambda line: (line.report.stage, line.device)))


def _exit_shares(origins: Sequence[OriginLine]) -> tuple[Share, ...]:
    per_exit = zip_longest(*(line.report.exits for line in origins), fillvalue=0)
    return _shares([(str(k), sum(counts)) for k, counts in enumerate(per_exit)])


def _reason_shares(origins: Sequence[OriginLine]) -> tuple[Share, ...]:
    counts: Counter[str] = Counter()
    for line in origins:
        counts.update(line.report.reasons)
    return _shares(sorted(counts.items()))


def _shares(counts: Sequence[tuple[str, int]]) -> tuple[Share, ...]:
    total = sum(count for _, count in counts)
    return tuple(Share(name=name, count=count, share=count / total if total else 0.0) for name, count in counts)


def to_json(status: Status) -> str:
    """Return the status as JSON of schema SCHEMA; times in seconds, sizes in bytes."""
    return json.dumps({"schema": SCHEMA, **asdict(status)}, indent=2, allow_nan=False)


# ---------------------------------------------------------------- plain text


def render(status: Status) -> str:
    """Return the status as plain text with aligned columns."""
    parts = [_head(status), _device_table(status.devices)]
    parts += [_pipeline_text(line) for line in status.pipelines]
    return "\n\n".join(part for part in parts if part)


def _head(status: Status) -> str:
    lines = [f"site {status.site}, store {status.store}"]
    data = "no data yet" if status.age_s is None else f"newest data {ago(status.age_s)} old"
    if status.running:
        broker = "connected to the broker" if status.online else "WITHOUT a broker"
        lines.append(f"orchestrator runs (pid {status.pid}), {broker}; {data}")
    else:
        lines.append(f"orchestrator does NOT run on this machine; {data}")
    if status.refused:
        counts = ", ".join(f"{entry.reason} {entry.count}" for entry in status.refused)
        lines.append(f"messages refused: {printable(counts)}")
    return "\n".join(lines)


def _device_table(devices: Sequence[DeviceLine]) -> str:
    if not devices:
        return "no device was heard yet"
    shared = [line.shared for line in devices if line.shared]
    return "\n".join([table(_DEVICE_HEAD, [_device_cells(line) for line in devices]), *shared])


def _device_cells(line: DeviceLine) -> list[str]:
    return [
        line.device,
        line.state + (" (silent)" if line.stale else ""),
        ",".join(line.serves) or "-",
        line.runtime or "-",
        "-" if line.rss_bytes is None else f"{line.rss_bytes / 1e6:.0f}",
        "-" if line.uptime_s is None else ago(line.uptime_s),
        "-" if line.heard_s is None else ago(line.heard_s),
        ",".join(line.epochs) or "-",
        str(line.dead_letters),
        str(line.offline_dropped),
    ]


def _pipeline_text(line: PipelineLine) -> str:
    parts = [_plan_text(line)]
    if line.tuning is not None:
        parts.append(f"  tuning   {_tuning_text(line.tuning)}")
    if audits := _audits_text(line):
        parts.append(f"  audits   {audits}")
    if turned_away := [
        f"{origin.device} {report.shed + report.dropped:,}"
        for origin in line.origins
        if (report := origin.report).shed or report.dropped
    ]:
        parts.append(f"  shed     no room for inputs of {', '.join(turned_away)}: send fewer, or add boards")
    if unspooled := [
        f"{origin.device} {origin.report.unspooled:,}" for origin in line.origins if origin.report.unspooled
    ]:
        parts.append(f"  spool    NOT ON DISK: inputs of {', '.join(unspooled)}; see the log there")
    if line.exits:
        parts.append(f"  exits    {_share_text(line.exits)}")
        parts.append(f"  reasons  {_share_text(line.reasons)}")
    # Of a branch that nobody serves its own line says so.
    told = [gap for gap in line.gaps if gap.branch is None or gap.revision is not None]
    parts += [f"  members  {gap_text(gap)}" for gap in told]
    parts += [f"  {_branch_text(branch)}" for branch in line.branches]
    if line.origins:
        parts.append(_indent(_origin_table(line.origins)))
    if line.stages:
        parts.append(_indent(_wide_stage_table(line.stages) if line.branches else _stage_table(line.stages)))
    if line.fusions:
        parts.append(_indent(_fusion_table(line.fusions)))
    if not line.origins and not line.stages:
        parts.append("  no device reported on it yet")
    return "\n".join(parts)


def _plan_text(line: PipelineLine) -> str:
    if line.plan is None:
        return f"pipeline {line.pipeline}: no plan yet"
    plan = line.plan
    thresholds = thresholds_text(plan.thresholds)
    wait = f"waiting for {', '.join(line.behind)}" if line.behind else "in force on all ready devices"
    model = f"{printable(plan.model)} {printable(plan.revision)}"
    text = (
        f"pipeline {line.pipeline}: epoch {plan.epoch} wanted, {wait}\n"
        f"  plan     {plan.criterion} {thresholds} (model {model}), "
        f"by {line.author} {ago(line.set_s or 0.0)} ago"
    )
    if line.standing == "standby":
        text += "\n  STANDBY: another orchestrator plans this site; this one takes over when that is gone"
    if line.standing == "yielded":
        text += "\n  YIELDED: another orchestrator seems to plan this pipeline; see the log"
    return text


def _tuning_text(tuning: TuningLine) -> str:
    if tuning.trouble:
        return f"{goal_text(tuning.goal)}; {Problem(tuning.trouble, tuning.remedy)}"
    first, *others = tuning.tuners
    parts = [
        goal_text(tuning.goal),
        f"{progress_text(first)}; {tuning.audits:,} audits so far",
        f"{tuning.alarms} alarm{'' if tuning.alarms == 1 else 's'}",
    ]
    if others:
        parts.append(f"{len(others)} more for missing branches, see 'distree orchestrator explain'")
    return "; ".join(parts)


def _audits_text(line: PipelineLine) -> str:
    drawn = sum(origin.report.audits_drawn for origin in line.origins)
    lost = sum(origin.report.audits_lost for origin in line.origins)
    if not drawn and not line.audit_runs:
        return ""
    share = line.audit_runs / line.runs if line.runs else 0.0
    return (
        f"{drawn:,} drawn, {lost:,} lost, since the agents started; for them alone "
        f"{line.audit_runs:,} of {line.runs:,} segment runs ({percent(share)})"
    )


def _share_text(shares: Sequence[Share]) -> str:
    return "   ".join(f"{share.name}: {share.share:.1%} ({share.count})" for share in shares)


def _origin_table(origins: Sequence[OriginLine]) -> str:
    rows = [[line.device, *_cells(line.report, _ORIGIN)] for line in origins]
    audits = [_cells(line.report, _ORIGIN_AUDITS) for line in origins]
    return _with_audits(("ORIGIN", *_heads(_ORIGIN)), rows, _ORIGIN_AUDITS, audits)


def _heads(names: Sequence[str]) -> list[str]:
    """Return heads of columns: `latency_p50_s` is P50_MS."""
    short = [name.removeprefix("latency_").removeprefix("audits_").upper() for name in names]
    return [f"{head[:-2]}_MS" if head.endswith("_S") else head for head in short]


def _cells(report: object, names: Sequence[str]) -> list[str]:
    values = [getattr(report, name) for name in names]
    return [_ms(value) if name.endswith("_s") else str(value) for name, value in zip(names, values, strict=True)]


def _with_audits(
    head: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[str], counts: Sequence[Sequence[str]]
) -> str:
    """Return a table, with columns of what was done for audits where there were any."""
    if all(count == "0" for of_row in counts for count in of_row):
        return table(head, rows)
    return table((*head, *_heads(names)), [[*row, *of_row] for row, of_row in zip(rows, counts, strict=True)])


def _branch_text(line: BranchLine) -> str:
    others = [f"{board} (not ready)" for board in line.boards if board not in line.ready]
    boards = ", ".join([*(line.ready or ["NO READY BOARD"]), *others])
    return f"stage {line.stage} branch {line.branch}: {boards}"


def _stage_table(stages: Sequence[StageLine]) -> str:
    rows = [[str(line.report.stage), line.device, *_cells(line.report, _STAGE)] for line in stages]
    return _with_audits(("STAGE", "DEVICE", *_heads(_STAGE)), rows, _AUDITED, _audited(stages))


def _wide_stage_table(stages: Sequence[StageLine]) -> str:
    shown = (*_STAGE, "wasted")
    rows = []
    for line in stages:
        branch = "-" if line.branch is None else str(line.branch)
        rows.append([str(line.report.stage), branch, line.device, *_cells(line.report, shown)])
    return _with_audits(("STAGE", "BRANCH", "DEVICE", *_heads(shown)), rows, _AUDITED, _audited(stages))


def _audited(lines: Sequence[StageLine | FusionLine]) -> list[list[str]]:
    return [_cells(line.report, _AUDITED) for line in lines]


def _fusion_table(fusions: Sequence[FusionLine]) -> str:
    rows = [
        [str(line.report.stage), line.device, *_cells(line.report, _FUSION), _missing_text(line.report.missing)]
        for line in fusions
    ]
    return _with_audits(("FUSION", "DEVICE", *_heads(_FUSION), "MISSING"), rows, _AUDITED, _audited(fusions))


def _missing_text(missing: Sequence[int]) -> str:
    return ", ".join(f"branch {branch}: {count}" for branch, count in enumerate(missing) if count) or "-"


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"
