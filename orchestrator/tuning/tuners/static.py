"""Static: thresholds chosen by hand, or by the bundle's maker, once. What the other tuners are compared with."""

from __future__ import annotations

from typing import Any

from orchestrator.tuning.tuners.audits import Audit, Vector


class Static:
    """Keep `thresholds` whatever the audits say.

    >>> tuner = Static((0.9, 0.8))
    >>> tuner.observe(Audit(scores=(1.0, 1.0), predictions=(1, 2, 2)))
    >>> tuner.thresholds
    (0.9, 0.8)
    """

    name = "static"

    def __init__(self, thresholds: Vector) -> None:
        self._thresholds = thresholds

    @property
    def thresholds(self) -> Vector:
        """The thresholds to be in force."""
        return self._thresholds

    def observe(self, audit: Audit) -> None:
        """Take in one audit, to no effect."""

    def snapshot(self) -> dict[str, Any]:
        """Return plain data, for `restore`."""
        return {"thresholds": list(self._thresholds)}

    def restore(self, data: dict[str, Any]) -> None:
        """Do nothing: the thresholds are the configuration's."""
