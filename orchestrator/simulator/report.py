"""The results of a simulation, as plain data and as text. The same configuration gives the same bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from distree.formatting import counted, percent, table
from distree.thresholds import NEVER, NEVER_WORD
from orchestrator.simulator.books import REASONS, Books
from orchestrator.simulator.site import SimulatedSite

SCHEMA = "distree.simulation/1"
BINS = 60
"""Number of periods for which the report says what happened."""

_SHOWN_PLANS = 12
_LATENCIES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 100.0}

Floats = npt.NDArray[np.float64]


def report(site: SimulatedSite) -> dict[str, Any]:
    """Return what happened on a site that has run, as plain data."""
    books, config = site.books, site.config
    return {
        "schema": SCHEMA,
        "config": _plain(asdict(config)),
        "boards": sum(boards.count for boards in config.boards),
        "inputs": _inputs(books),
        "latency_ms": _latency_ms(np.array(books.latency_s)),
        "exits": _shares(np.array(books.exits), range(site.traffic.exits)),
        "reasons": {reason: books.reasons.count(number) for number, reason in enumerate(REASONS)},
        "accuracy": _accuracy(site),
        "stages": _stages(site),
        "compute_saved": _compute_saved(site),
        "audits": {"drawn": books.audits_drawn, "lost": books.audits_lost, "runs": books.audit_runs},
        "wasted_runs": books.wasted_runs,
        "failures": _failures(site),
        "messages": dict(sorted(books.messages.items())),
        "message_bytes": books.message_bytes,
        "unread": books.unread,
        "members": {
            "deliveries": dict(sorted(books.deliveries.items())),
            "delivery_bytes": books.delivery_bytes,
            "subscriptions": books.subscriptions,
        },
        "refused": dict(sorted(books.refused.items())),
        "events": site.events.count,
        "plans": [
            {"at_s": at_s, "epoch": plan.epoch, "thresholds": _plain(plan.thresholds), "audit_rate": plan.audit_rate}
            for at_s, plan in books.plans
        ],
        "alarms_at_s": list(books.alarms),
        "over_time": _over_time(site),
    }


def to_json(report: dict[str, Any]) -> str:
    """Return a report as JSON."""
    return json.dumps(report, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Return what JSON can hold: null for times that never end, `never` for disabled exits, names for paths."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case tuple() | list():
            return [_plain(item) for item in value]
        case PurePath():
            return value.name
        case float():
            return None if math.isinf(value) else NEVER_WORD if value >= NEVER else float(value)
    return value


# ------------------------------------------------------------ of the whole run


def _inputs(books: Books) -> dict[str, int]:
    return {
        "accepted": books.accepted,
        "answered": len(books.exits),
        "answered_twice": books.twice,
        "in_time": books.in_time,
        "lost_with_their_origin": books.lost,
        "in_spools": len(books.open),
        "came_to_dead_origins": books.missed,
        "late_duplicates": books.late,
        "sent_once_more": books.resent,
        "answered_without_a_branch": books.without_branches,
    }


def _failures(site: SimulatedSite) -> dict[str, int]:
    books, host = site.books, site.host
    return {
        "boards": books.deaths,
        "stopped": books.stops,
        "paused": books.pauses,
        "orchestrator": 0 if host is None else host.deaths,
    }


def _latency_ms(latency_s: Floats) -> dict[str, float | None]:
    if not len(latency_s):
        return dict.fromkeys(_LATENCIES)
    return {name: float(np.percentile(1e3 * latency_s, share)) for name, share in _LATENCIES.items()}


def _shares(values: npt.NDArray[np.int64], options: Sequence[int]) -> list[float]:
    return [float((values == option).mean()) if len(values) else 0.0 for option in options]


def _mean(values: Sequence[int]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _accuracy(site: SimulatedSite) -> dict[str, Any]:
    books = site.books
    answers, last = _mean(books.right), _mean(books.last_right)
    return {
        "against": "the truth" if site.table.labels is not None else "the last exit",
        "answers": answers,
        "last_exit": last,
        "drop": None if answers is None or last is None else last - answers,
        "differs_from_last_exit": _mean(books.differs),
    }


@dataclass(frozen=True, slots=True)
class _Runs:
    """at_s, took_s: (n,) float64; stage: (n,) integers. boards: those that have each stage."""

    at_s: Floats
    took_s: Floats
    stage: npt.NDArray[np.int64]
    boards: list[int]

    @staticmethod
    def of(site: SimulatedSite) -> _Runs:
        """Return the runs of a site."""
        books, every = site.books, site.config.boards
        boards = [sum(b.count for b in every if stage in b.stages) for stage in range(site.traffic.exits)]
        return _Runs(np.array(books.run_at), np.array(books.run_s), np.array(books.run_stage, np.int64), boards)


def _stages(site: SimulatedSite) -> list[dict[str, Any]]:
    runs = _Runs.of(site)
    stages = []
    for stage, boards in enumerate(runs.boards):
        # Runs that ended after the traffic did not take its time.
        of_stage = runs.stage == stage
        busy_s = float(runs.took_s[of_stage & (runs.at_s <= site.config.duration_s)].sum())
        share = busy_s / (boards * site.config.duration_s)
        stages.append({"stage": stage, "boards": boards, "runs": int(of_stage.sum()), "utilisation": share})
    return stages


def _compute_saved(site: SimulatedSite) -> float | None:
    """Return the compute saved, as a share of running all inputs to the last exit; audits count as used."""
    costs, width = site.traffic.costs, site.config.branches or 1
    runs = np.bincount(np.array(site.books.run_stage, np.int64), minlength=len(costs))
    whole = site.books.accepted * costs[-1]
    return 1.0 - float(runs @ np.diff(costs, prepend=0.0)) / width / whole if whole else None


# ------------------------------------------------------------ over time


def _over_time(site: SimulatedSite) -> dict[str, Any]:
    """Return what happened in each of `BINS` periods; the last includes what ended after the traffic."""
    books, period_s = site.books, site.config.duration_s / BINS
    runs, exits = _Runs.of(site), np.array(books.exits)
    latency_s, differs = np.array(books.latency_s), np.array(books.differs, np.float64)
    drop = np.array(books.last_right, np.float64) - np.array(books.right, np.float64)
    answer_bin, run_bin = _bins(np.array(books.answered_at), period_s), _bins(runs.at_s, period_s)
    periods = []
    for number in range(BINS):
        of, ran = answer_bin == number, run_bin == number
        busy_s = np.bincount(runs.stage[ran], weights=runs.took_s[ran], minlength=site.traffic.exits)
        periods.append(
            {
                "until_s": (number + 1) * period_s,
                "answers": int(of.sum()),
                "exits": _shares(exits[of], range(site.traffic.exits)),
                "latency_ms": _latency_ms(latency_s[of]),
                "differs_from_last_exit": float(differs[of].mean()) if of.any() else None,
                "drop": float(drop[of].mean()) if of.any() else None,
                "utilisation": (busy_s / (np.array(runs.boards) * period_s)).tolist(),
            }
        )
    return {"period_s": period_s, "periods": periods}


def _bins(at_s: Floats, period_s: float) -> npt.NDArray[np.int64]:
    return np.minimum(at_s / period_s, BINS - 1).astype(np.int64)


# ------------------------------------------------------------ as text


def to_text(report: dict[str, Any]) -> str:
    """Return a report as lines for people."""
    inputs, accuracy, messages = report["inputs"], report["accuracy"], report["messages"]
    latency, audits, members = report["latency_ms"], report["audits"], report["members"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["reasons"].items() if count)
    exits = ", ".join(f"{percent(share)} at exit {exit}" for exit, share in enumerate(report["exits"]))
    lines = [
        f"{counted(report['boards'], 'board')} for {report['config']['duration_s']:g} s: "
        f"{counted(inputs['accepted'], 'input')}, "
        f"{counted(sum(messages.values()), 'message')}, {report['message_bytes'] / 1e6:.1f} MB",
        f"answered: {inputs['answered']:,} once, {inputs['answered_twice']:,} twice, {inputs['in_time']:,} by the "
        f"deadline; {reasons or 'none'}",
        *_trouble(report),
        "latency ms: " + ", ".join(f"{name} {_shown(value)}" for name, value in latency.items()),
        f"exits: {exits}; {_percent(report['compute_saved'])} of the compute saved, audits included",
        f"accuracy: {_percent(accuracy['answers'])} against {accuracy['against']}, the last exit "
        f"{_percent(accuracy['last_exit'])}: drop {_points(accuracy['drop'])}; "
        f"{_percent(accuracy['differs_from_last_exit'])} of the answers differ from the last exit's",
        f"members: origins received {counted(sum(members['deliveries'].values()), 'message')} about boards, "
        f"{members['delivery_bytes'] / 1e6:.1f} MB; {counted(members['subscriptions'], 'subscription')} to states",
        f"audits: {audits['drawn']:,} drawn, {audits['lost']:,} lost; "
        f"{counted(audits['runs'], 'additional run')}, including probes",
        "",
        table(
            ["STAGE", "BOARDS", "RUNS", "BUSY %"],
            [
                [str(row["stage"]), str(row["boards"]), str(row["runs"]), f"{100 * row['utilisation']:.1f}"]
                for row in report["stages"]
            ],
        ),
    ]
    return "\n".join(lines + _plan_lines(report))


def _trouble(report: dict[str, Any]) -> list[str]:
    inputs, failures = report["inputs"], report["failures"]
    words = {
        "lost_with_their_origin": ("input", "lost with their origin"),
        "in_spools": ("input", "left in spools of dead origins"),
        "came_to_dead_origins": ("input", "for dead origins"),
        "late_duplicates": ("late answer", ""),
        "sent_once_more": ("input", "sent again"),
        "answered_without_a_branch": ("input", "answered without a branch (as if all branches had answered)"),
    }
    parts = [f"{counted(inputs[key], noun)} {what}".rstrip() for key, (noun, what) in words.items() if inputs[key]]
    failed = {
        "boards": ("board", "killed"),
        "stopped": ("board", "stopped"),
        "paused": ("board", "paused"),
    }
    parts += [f"{counted(failures[key], noun)} {what}" for key, (noun, what) in failed.items() if failures[key]]
    times = counted(failures["orchestrator"], "time")
    parts += [f"orchestrator killed {times}"] if failures["orchestrator"] else []
    parts += [f"{counted(report['unread'], 'message')} that nobody read"] if report["unread"] else []
    parts += [f"{counted(count, 'message')} refused ({reason})" for reason, count in report["refused"].items()]
    return [f"trouble: {'; '.join(parts)}"] if parts else []


def _plan_lines(report: dict[str, Any]) -> list[str]:
    plans, alarms = report["plans"], report["alarms_at_s"]
    if not plans:
        return []
    rows = [
        [f"{plan['at_s']:.2f}", str(plan["epoch"]), _thresholds(plan["thresholds"]), percent(plan["audit_rate"])]
        for plan in plans
    ]
    left_out = len(rows) - _SHOWN_PLANS
    if left_out > 0:
        rows = [rows[0], ["...", "", f"{left_out} more", ""], *rows[len(rows) - _SHOWN_PLANS + 1 :]]
    moments = ", ".join(f"{at_s:.1f} s" for at_s in alarms) or "none"
    return ["", table(["AT S", "EPOCH", "THRESHOLDS", "AUDITED"], rows), f"alarms: {moments}"]


def _thresholds(values: Sequence[float | str]) -> str:
    return " ".join(value if isinstance(value, str) else f"{value:g}" for value in values)


def _shown(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} points"
