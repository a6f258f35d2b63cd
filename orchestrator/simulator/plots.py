"""The plots of a simulation, as PNG files; needs matplotlib, of the extra `plots`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distree.errors import ConfigError
from distree.thresholds import NEVER_WORD

_INCHES = (7.0, 3.6)
_DOTS_PER_INCH = 130


def check_matplotlib() -> None:
    """Raise ConfigError where matplotlib is missing; it is not imported yet."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--out needs matplotlib", "run: pip install 'distree[plots]'")


def draw(report: dict[str, Any], folder: Path) -> list[str]:
    """Draw what happened over time into an existing folder; return the names of the files."""
    # Without pyplot there is neither a window nor a state to clean up.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = []
    for name, (title, fill) in _PLOTS.items():
        figure: Any = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        fill(axes, report)
        _mark_events(axes, report)
        axes.set_xlim(0, report["config"]["duration_s"])
        axes.set_xlabel("simulated time, s")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
        names.append(f"{name}.png")
        figure.savefig(folder / names[-1], metadata={"Software": None})
    return names


def _mark_events(axes: Any, report: dict[str, Any]) -> None:
    """Draw a line where a drift or a failure begins, and one for an alarm."""
    config = report["config"]
    begins = {"drift": config["drift"], "failure": config["failures"]}
    moments = [(what, event["at_s"], "--") for what, events in begins.items() for event in events]
    moments += [("alarm", at_s, ":") for at_s in report["alarms_at_s"]]
    named: set[str] = set()
    for what, at_s, style in moments:
        colour = {"drift": "tab:purple", "failure": "tab:red", "alarm": "black"}[what]
        axes.axvline(at_s, color=colour, linestyle=style, linewidth=1, label=None if what in named else what)
        named.add(what)


def _series(report: dict[str, Any], read: Callable[[dict[str, Any]], float | None]) -> tuple[list[float], list[float]]:
    """Return the ends of the periods that have a value, and these values."""
    values = [(period["until_s"], read(period)) for period in report["over_time"]["periods"]]
    known = [(until_s, value) for until_s, value in values if value is not None]
    return [until_s for until_s, _ in known], [value for _, value in known]


def _latency(axes: Any, report: dict[str, Any]) -> None:
    for name in ("p50", "p95", "p99"):
        axes.plot(*_series(report, lambda period, name=name: period["latency_ms"][name]), label=name)  # type: ignore[misc]
    axes.set_ylabel("latency, ms")
    axes.set_ylim(bottom=0)


def _exits(axes: Any, report: dict[str, Any]) -> None:
    periods = [period for period in report["over_time"]["periods"] if period["answers"]]
    shares = [[100 * period["exits"][exit] for period in periods] for exit in range(len(report["exits"]))]
    labels = [f"exit {exit}" for exit in range(len(shares))]
    axes.stackplot([period["until_s"] for period in periods], shares, labels=labels, alpha=0.8)
    axes.set_ylabel("answers, %")
    axes.set_ylim(0, 100)


def _thresholds(axes: Any, report: dict[str, Any]) -> None:
    ends_at, plans = report["config"]["duration_s"], report["plans"]
    given = report["config"]["thresholds"] or []
    for exit in range(len(report["exits"]) - 1):
        # A threshold that disables its exit leaves a gap.
        values = [plan["thresholds"][exit] for plan in plans] or [given[exit]]
        shown = [float("nan") if value == NEVER_WORD else value for value in values]
        at = [plan["at_s"] for plan in plans] or [0.0]
        axes.step([*at, ends_at], [*shown, shown[-1]], where="post", label=f"exit {exit}")
    axes.set_ylabel(f"threshold ({len(plans)} plans)")


def _accuracy(axes: Any, report: dict[str, Any]) -> None:
    for key, label in (("drop", "drop in accuracy"), ("differs_from_last_exit", "answers unlike the last exit's")):
        at, values = _series(report, lambda period, key=key: period[key])  # type: ignore[misc]
        axes.plot(at, [100 * value for value in values], label=label)
    goal = report["config"]["goal"]
    if goal is not None:
        axes.axhline(100 * goal["accuracy_drop"], color="black", linestyle="-.", linewidth=1, label="drop allowed")
    axes.set_ylabel("inputs, %")


def _utilisation(axes: Any, report: dict[str, Any]) -> None:
    for stage in range(len(report["stages"])):
        at, values = _series(report, lambda period, stage=stage: period["utilisation"][stage])  # type: ignore[misc]
        axes.plot(at, [100 * value for value in values], label=f"boards of stage {stage}")
    axes.set_ylabel("busy, %")
    axes.set_ylim(bottom=0)


_PLOTS: dict[str, tuple[str, Callable[[Any, dict[str, Any]], None]]] = {
    "latency": ("Latency of answers", _latency),
    "exits": ("Where inputs leave", _exits),
    "thresholds": ("Thresholds in force", _thresholds),
    "accuracy": ("What early answers cost", _accuracy),
    "utilisation": ("Boards at work", _utilisation),
}
