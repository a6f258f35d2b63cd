"""Static: keep the thresholds that were configured or calibrated, and measure what they lose."""

from __future__ import annotations

from typing import Any

import numpy as np

from distree.formatting import percent, thresholds_text
from orchestrator.tuning.live_tuner import Figure, LiveTuner, Remark, TunerExplanation, TunerSetup
from orchestrator.tuning.samples import AuditedInput, Vector, losses_of


class Static(LiveTuner):
    """Keeps `thresholds` whatever the audits say.

    >>> tuner = Static((0.9, 0.8))
    >>> tuner.observe(AuditedInput(scores=(1.0, 1.0), predictions=(1, 2, 2)))
    >>> tuner.thresholds, tuner.mean_loss
    ((0.9, 0.8), 1.0)
    """

    name = "static"
    has_guarantee = False
    uses_given_thresholds = True

    def __init__(self, thresholds: Vector) -> None:
        self._thresholds = thresholds
        self._audits = 0
        self._losses = 0.0

    @classmethod
    def create(cls, setup: TunerSetup) -> Static:
        """Make a tuner of the given thresholds."""
        return cls(setup.thresholds)

    @property
    def choices(self) -> tuple[Vector, ...]:
        """The given thresholds, and nothing else."""
        return (self._thresholds,)

    @property
    def mean_loss(self) -> float:
        """Mean loss of the given thresholds so far, 0 before the first audit."""
        return self._losses / max(1, self._audits)

    def observe(self, audit: AuditedInput) -> None:
        """Count what the thresholds lose on one audit."""
        self._audits += 1
        self._losses += float(losses_of(audit, np.array([self._thresholds]))[0])

    def explain(self) -> TunerExplanation:
        """Return what the thresholds have lost so far."""
        measured = (
            f"mean loss {percent(self.mean_loss)} on {self._audits:,} audits" if self._audits else "no audits yet"
        )
        return TunerExplanation(
            thresholds=self._thresholds,
            audits=self._audits,
            gathering=0,
            alarms=0,
            progress=f"keeps the thresholds that were given; {measured}",
            remarks=(Remark(label="given", text=thresholds_text(self._thresholds)),),
            figures=(Figure(name="mean_loss", value=self.mean_loss, meaning="Mean loss of the given thresholds."),),
        )

    def snapshot(self) -> dict[str, Any]:
        """Return plain data, for `restore`."""
        return {"thresholds": list(self._thresholds), "audits": self._audits, "losses": self._losses}

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where another one with the same thresholds stood; see `LiveTuner.restore`."""
        audits, losses = int(data["audits"]), float(data["losses"])
        if data["thresholds"] != list(self._thresholds):
            raise ValueError(f"its losses are those of {data['thresholds']}, not of {list(self._thresholds)}")
        self._audits, self._losses = audits, losses
