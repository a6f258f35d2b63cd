"""What an orchestrator wants of a pipeline."""

from __future__ import annotations

from distree.messages.fields import branches, count, declared, durations, ident, number, parts, scores, text
from distree.messages.limits import MAX_MASKED, MAX_STAGES


@declared(as_row=True)
class MaskedThresholds:
    """Thresholds for the exits of wide stages while the branches in `missing` (ascending) are not heard."""

    missing: tuple[int, ...] = branches("Branches that are not heard.", least=1)
    thresholds: tuple[float, ...] = scores("Score at which each exit but the last is then taken.", most=MAX_STAGES)


@declared(kind="plan")
class Plan:
    """What the orchestrator wants of a pipeline. One threshold per exit but the last; retained; epochs only grow.

    `masked` has thresholds for sets of missing branches; with a set that is not in it, only the last exit is taken.
    `audit_rate` is the share of inputs that origins draw for audits. `rest_s` is, per exit but the last, what a
    request takes at least from there to the next exit, as boards reported it, network not counted; () if unknown.
    """

    pipeline: str = ident("Id of the pipeline.")
    epoch: int = count("Number of the plan by which exits are decided; it only grows.")
    model: str = text("Name of the bundle.")
    revision: str = text("Revision of the bundle.")
    criterion: str = text("Exit criterion.")
    thresholds: tuple[float, ...] = scores("Score at which each exit but the last is taken.", most=MAX_STAGES)
    masked: tuple[MaskedThresholds, ...] = parts(
        MaskedThresholds, "Thresholds for sets of missing branches.", most=MAX_MASKED, default=()
    )
    audit_rate: float = number("Share of inputs that origins draw for audits.", most=1.0, default=0.0)
    rest_s: tuple[float, ...] = durations(
        "Least time from each exit but the last to the next.", most=MAX_STAGES, default=()
    )

    def fault(self) -> str:
        """Say what is wrong with the fields together."""
        if len({row.missing for row in self.masked}) != len(self.masked):
            return "masked: expected each set of missing branches once, received one twice"
        return ""
