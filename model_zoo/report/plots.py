"""The plots of a report, as PNG files; needs matplotlib, of the extra `zoo`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from model_zoo.errors import INSTALL_EXTRA, ExportError
from model_zoo.report.results import CriterionSummary, Group, Report
from model_zoo.report.text import criterion_name

_INCHES = (7.0, 4.6)
_DOTS_PER_INCH = 130
_SHOWN_ABOVE_STRICT = 1.06  # what costs more than no early exits at all is not worth the room


def check_matplotlib() -> None:
    """Raise ExportError where matplotlib is missing; it is not imported yet."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ExportError("the report's plots need matplotlib", INSTALL_EXTRA)


def draw(report: Report, folder: Path) -> list[str]:
    """Draw accuracy against multiply-accumulates, one file per number of branches; return their names."""
    names = []
    for group in report.groups:
        if group.criteria:
            names.append(f"{report.recipe}-{group.branches}-branches.png")
            _draw_group(report, group, folder / names[-1])
    return names


def _draw_group(report: Report, group: Group, path: Path) -> None:
    # Without pyplot there is neither a window nor a state to clean up.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in group.curves:
        label = criterion_name(curve.criterion)
        axes.plot(_millions(curve.macs_per_input), _percent(curve.accuracy), marker=".", linewidth=1, label=label)
    for summary in group.criteria:
        _mark(axes, summary, group)
    axes.plot(
        [], [], "o", markerfacecolor="none", markeredgecolor="black", label=f"at {100 * report.max_drop:.1f} points"
    )
    _draw_without_exits(axes, group)
    axes.set_xlabel("million multiply-accumulates per input, heads and fusion counted")
    axes.set_ylabel("accuracy on test images, %")
    seeds = f"{len(group.seeds)} seed{'' if len(group.seeds) == 1 else 's'}"
    axes.set_title(f"{report.recipe}, {group.branches} branches, mean of {seeds}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def _mark(axes: Any, summary: CriterionSummary, group: Group) -> None:
    """Circle the point at the drop that the tables allow."""
    if group.compute is not None:
        macs = (1 - summary.saved_strict.mean) * group.compute.strict
        style = {"facecolors": "none", "edgecolors": "black", "linewidths": 0.6, "s": 40, "zorder": 3}
        axes.scatter(_millions([macs]), _percent([summary.accuracy.mean]), **style)


def _draw_without_exits(axes: Any, group: Group) -> None:
    if group.compute is not None and group.accuracy_no_exits is not None:
        accuracy = 100 * group.accuracy_no_exits.mean
        strict, loose = _millions([group.compute.strict, group.compute.loose])
        axes.plot([strict], [accuracy], "k*", label="no exits, strict")
        axes.plot([loose], [accuracy], "k+", label="no exits, loose")
        axes.set_xlim(right=max(loose, strict * _SHOWN_ABOVE_STRICT))
    if group.small is not None:
        axes.plot(
            _millions([group.small.strict]), _percent([group.small.accuracy.mean]), "ks", label="smaller, no exits"
        )


def _millions(values: Any) -> list[float]:
    return [value / 1e6 for value in values]


def _percent(values: Any) -> list[float]:
    return [100 * value for value in values]
