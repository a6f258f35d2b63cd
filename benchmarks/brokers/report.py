"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
"""Between these, docs/brokers.md is written anew."""

Report = dict[str, Any]
"""Of one broker: name, version or trouble, facts, trials, config."""


def text(reports: Sequence[Report], machine: str) -> str:
    """Return all tables, and the configurations that were used."""
    found = [report for report in reports if not report.get("trouble")]
    absent = [f"- {report['name']}: {report['trouble']}" for report in reports if report.get("trouble")]
    parts = [f"Measured on {machine}, which broker, boards and clients share."]
    if absent:
        parts.append("Not measured:\n\n" + "\n".join(absent))
    if any(report.get("facts") for report in found):
        parts.append("### Capabilities\n\n" + _capabilities([report for report in found if report.get("facts")]))
    for trial in ("chain", "wide"):
        played = [report for report in found if trial in report.get("trials", {})]
        if played:
            parts.append(f"### {trial.capitalize()}\n\n" + _trial(played, trial))
    configs = [
        f"`{report['config_name']}`, {report['name']}:\n\n```text\n{report['config'].strip()}\n```"
        for report in found
        if report.get("config")
    ]
    if configs:
        parts.append("### Configuration that was used\n\n" + "\n\n".join(configs))
    return "\n\n".join(parts) + "\n"


def write(page: Path, body: str) -> None:
    """Put `body` between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}", encoding="utf-8")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _capabilities(reports: Sequence[Report]) -> str:
    names = list(dict.fromkeys(name for report in reports for name in report["facts"]))
    rows = [[name, *(report["facts"].get(name, "") for report in reports)] for name in names]
    return _table(["", *(_heading(report) for report in reports)], rows)


def _heading(report: Report) -> str:
    name, comma, rest = report["name"].partition(",")
    return f"{name} {report['version']}{comma}{rest}"


def _trial(reports: Sequence[Report], trial: str) -> str:
    rows = [
        [title, *(show(report["trials"][trial]) for report in reports)]
        for title, show in FIGURES.items()
        if trial == "wide" or title != "a branch missing"
    ]
    return _table(["", *(report["name"] for report in reports)], rows)


def _counts(figures: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in figures.items()) or "-"


FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "answered": lambda f: f"{f['answered']} of {f['inputs']}" + (f"; {f['trouble']}" if f["trouble"] else ""),
    "as evaluated": lambda f: str(f["as_evaluated"]),
    "by exit": lambda f: _counts(f["exits"]),
    "by reason": lambda f: _counts(f["reasons"]),
    "sent again": lambda f: str(f["attempts_above_1"]),
    "a branch missing": lambda f: str(f["missing"]),
    "answered twice": lambda f: str(f["twice"]),
    "runs by board": lambda f: _counts(f["boards"]),
    "latency p50, p95": lambda f: "-" if f["p50_ms"] is None else f"{f['p50_ms']:g}, {f['p95_ms']:g} ms",
    "messages refused": lambda f: _counts(f["dead"]),
    "warnings logged": lambda f: str(sum(f["complaints"].values())),
}
