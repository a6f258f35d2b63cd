"""What a scenario measured, and what fell short."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Report:
    """Figures of one run of a scenario, in the order in which they were measured; no `short` is a pass."""

    scenario: str
    figures: dict[str, Any] = field(default_factory=dict)
    short: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, **figures: Any) -> None:
        """Add figures."""
        self.figures |= figures

    def check(self, holds: bool, otherwise: str) -> None:
        """Say what fell short unless something holds."""
        if not holds:
            self.short.append(otherwise)

    @property
    def passed(self) -> bool:
        return not self.short

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def table(reports: Iterable[Report], width: int = 110) -> str:
    """Return one paragraph per report: scenario, verdict, figures, what fell short."""
    lines = []
    for report in reports:
        verdict = "pass" if report.passed else "FELL SHORT"
        lines.append(f"{report.scenario:<24} {verdict} ({report.seconds:.0f} s)")
        figures = "  ".join(f"{name.replace('_', ' ')} {_shown(value)}" for name, value in report.figures.items())
        lines += textwrap.wrap(figures, width, initial_indent="    ", subsequent_indent="    ")
        for fault in report.short:
            lines += textwrap.wrap(fault, width, initial_indent="  ! ", subsequent_indent="    ")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_shown(part)}" for name, part in value.items()) + ")"
    return str(value)
