"""What `distree orchestrator status` shows, as plain text with aligned columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distree.formatting import ago, counted, percent, table, thresholds_text, why_text
from distree.printable import printable
from orchestrator.coverage import gap_text
from orchestrator.site_view import BoardView, FollowedPlan
from orchestrator.status.view import (
    BoardStatus,
    BranchStatus,
    EventStatus,
    FusionStatus,
    OriginStatus,
    PipelineStatus,
    StageStatus,
    Status,
    Tally,
)
from orchestrator.tuning_view import TuningView

RUNTIME_SHOWN = 40
"""Characters of the runtime that a board names, which are shown."""

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


def render(status: Status) -> str:
    """Return the status as plain text."""
    wanted = {one.pipeline: one.plan_hash for one in status.pipelines}
    parts = [_head(status), _board_table(status.devices, wanted)]
    parts += [_pipeline_text(one) for one in status.pipelines]
    parts.append(_events_text(status.events))
    return "\n\n".join(part for part in parts if part)


def _head(status: Status) -> str:
    lines = [f"site {status.site}, store {status.store}"]
    data = "no data yet" if status.age_s is None else f"newest data {ago(status.age_s)} old"
    if status.running:
        broker = "connected to the broker" if status.online else "WITHOUT a broker"
        lines.append(f"orchestrator running (pid {status.pid}), {broker}; {data}")
    else:
        lines.append(f"orchestrator NOT running on this machine; {data}")
    if status.refused:
        counts = ", ".join(f"{entry.reason} {entry.count}" for entry in status.refused)
        lines.append(f"messages refused: {printable(counts, 1000)}")
    return "\n".join(lines)


def _board_table(devices: Sequence[BoardStatus], wanted: Mapping[str, str]) -> str:
    if not devices:
        return "no board has been heard from yet"
    shared = [one.shared for one in devices if one.shared]
    return "\n".join([table(_DEVICE_HEAD, [_board_cells(one.board, wanted) for one in devices]), *shared])


def _board_cells(board: BoardView, wanted: Mapping[str, str]) -> list[str]:
    return [
        board.device,
        board.state + (" (silent)" if board.is_silent else ""),
        board.serves or "-",
        printable(board.runtime or "-", RUNTIME_SHOWN),
        "-" if board.rss_bytes is None else f"{board.rss_bytes / 1e6:.0f}",
        "-" if board.uptime_s is None else ago(board.uptime_s),
        "-" if board.heard_s is None else ago(board.heard_s),
        " ".join(_follows_text(plan, wanted) for plan in board.follows if plan.pipeline in wanted) or "-",
        str(board.dead_letters),
        str(board.offline_dropped),
    ]


def _events_text(events: Sequence[EventStatus]) -> str:
    """Return the last events, the newest last, as in a log."""
    return "\n".join([f"last events ({len(events)})" if events else "", *map(_event_text, events)]).strip()


def _event_text(event: EventStatus) -> str:
    about = " ".join(name for name in (event.device, event.pipeline) if name)
    mark = "" if event.severity == "info" else f"{event.severity.upper()} "
    said = f"{event.what}; {event.remedy}" if event.remedy else event.what
    return f"  {ago(event.age_s)} ago  {mark}{about and f'{about}: '}{printable(said, 1024)}"


def _follows_text(plan: FollowedPlan, wanted: Mapping[str, str]) -> str:
    is_other = plan.plan_hash != wanted[plan.pipeline]
    return f"{plan.pipeline}:{plan.epoch}{' (other plan)' if is_other else ''}"


def _pipeline_text(line: PipelineStatus) -> str:
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
        parts.append(f"  exits    {_tally_text(line.exits)}")
        parts.append(f"  reasons  {_tally_text(line.reasons)}")
    # A branch that nobody serves has a line of its own that says so.
    listed = [gap for gap in line.gaps if gap.branch is None or gap.revision is not None]
    parts += [f"  members  {gap_text(gap)}" for gap in listed]
    parts += [f"  {_branch_text(branch)}" for branch in line.branches]
    if line.origins:
        parts.append(_indent(_origin_table(line.origins)))
    if line.stages:
        parts.append(_indent(_wide_stage_table(line.stages) if line.branches else _stage_table(line.stages)))
    if line.fusions:
        parts.append(_indent(_fusion_table(line.fusions)))
    if not line.origins and not line.stages:
        parts.append("  no board has reported on it yet")
    return "\n".join(parts)


def _plan_text(line: PipelineStatus) -> str:
    if line.plan is None:
        return f"pipeline {line.pipeline}: no plan yet"
    plan = line.plan
    thresholds = thresholds_text(plan.thresholds)
    wait = f"waiting for {', '.join(line.behind)}" if line.behind else "in force on all ready devices"
    model = f"{printable(plan.model)} {printable(plan.revision)}"
    why = why_text(plan.reason, plan.author)
    text = (
        f"pipeline {line.pipeline}: epoch {plan.epoch} wanted, {wait}\n"
        f"  plan     {plan.criterion} {thresholds} (model {model}), "
        f"{why} {ago(line.set_s or 0.0)} ago"
    )
    if line.standing == "standby":
        text += "\n  STANDBY: another orchestrator plans for this site; this one takes over when that one is gone"
    if line.alarm:
        text += f"\n  {line.alarm}"
    return text


def _tuning_text(tuning: TuningView) -> str:
    if tuning.trouble is not None:
        return f"{tuning.goal.text()}; {tuning.trouble}"
    stands = tuning.explanation
    first, *others = stands.sets
    parts = [
        tuning.goal.text(),
        f"{first.tuner.progress}; {counted(stands.audits, 'audit')} so far",
        counted(stands.alarms, "alarm"),
    ]
    if others:
        parts.append(f"{len(others)} more for missing branches, see 'distree orchestrator explain'")
    return "; ".join(parts)


def _audits_text(line: PipelineStatus) -> str:
    drawn = sum(origin.report.audits_drawn for origin in line.origins)
    lost = sum(origin.report.audits_lost for origin in line.origins)
    if not drawn and not line.audit_runs:
        return ""
    share = line.audit_runs / line.runs if line.runs else 0.0
    return (
        f"{drawn:,} drawn, {lost:,} lost, since the agents started; "
        f"{line.audit_runs:,} of {line.runs:,} segment runs ({percent(share)}) were only for audits"
    )


def _tally_text(tallies: Sequence[Tally]) -> str:
    return "   ".join(f"{one.name}: {one.share:.1%} ({one.count})" for one in tallies)


def _origin_table(origins: Sequence[OriginStatus]) -> str:
    rows = [[line.device, *_cells(line.report, _ORIGIN)] for line in origins]
    audits = [_cells(line.report, _ORIGIN_AUDITS) for line in origins]
    return _with_audits(("ORIGIN", *_heads(_ORIGIN)), rows, _ORIGIN_AUDITS, audits)


def _heads(names: Sequence[str]) -> list[str]:
    """Return the heads of columns: that of `latency_p50_s` is P50_MS."""
    short = [name.removeprefix("latency_").removeprefix("audits_").upper() for name in names]
    return [f"{head[:-2]}_MS" if head.endswith("_S") else head for head in short]


def _cells(report: object, names: Sequence[str]) -> list[str]:
    values = [getattr(report, name) for name in names]
    return [_ms(value) if name.endswith("_s") else str(value) for name, value in zip(names, values, strict=True)]


def _with_audits(
    head: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[str], counts: Sequence[Sequence[str]]
) -> str:
    """Return a table, with columns on audits where there were any."""
    if all(count == "0" for of_row in counts for count in of_row):
        return table(head, rows)
    return table((*head, *_heads(names)), [[*row, *of_row] for row, of_row in zip(rows, counts, strict=True)])


def _branch_text(line: BranchStatus) -> str:
    others = [f"{board} (not ready)" for board in line.boards if board not in line.ready]
    boards = ", ".join([*(line.ready or ["NO READY BOARD"]), *others])
    return f"stage {line.stage} branch {line.branch}: {boards}"


def _stage_table(stages: Sequence[StageStatus]) -> str:
    rows = [[str(line.report.stage), line.device, *_cells(line.report, _STAGE)] for line in stages]
    return _with_audits(("STAGE", "DEVICE", *_heads(_STAGE)), rows, _AUDITED, _audited(stages))


def _wide_stage_table(stages: Sequence[StageStatus]) -> str:
    shown = (*_STAGE, "wasted")
    rows = []
    for line in stages:
        branch = "-" if line.branch is None else str(line.branch)
        rows.append([str(line.report.stage), branch, line.device, *_cells(line.report, shown)])
    return _with_audits(("STAGE", "BRANCH", "DEVICE", *_heads(shown)), rows, _AUDITED, _audited(stages))


def _audited(lines: Sequence[StageStatus | FusionStatus]) -> list[list[str]]:
    return [_cells(line.report, _AUDITED) for line in lines]


def _fusion_table(fusions: Sequence[FusionStatus]) -> str:
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
