"""Tuners, one a file: from audits to thresholds. Learners keep bounded memory and may be stored and restored."""

from __future__ import annotations

from typing import Any, Protocol

from orchestrator.tuning.tuners.audits import Audit, Vector
from orchestrator.tuning.tuners.bandit import Bandit
from orchestrator.tuning.tuners.certified import Certified
from orchestrator.tuning.tuners.static import Static

__all__ = ["Audit", "Bandit", "Certified", "Static", "Tuner", "Vector"]


class Tuner(Protocol):
    """Learns thresholds of all exits but the last from audits."""

    name: str

    @property
    def thresholds(self) -> Vector:
        """The thresholds to be in force now."""

    def observe(self, audit: Audit) -> None:
        """Take in one audit."""

    def snapshot(self) -> dict[str, Any]:
        """Return plain data (numbers, strings, lists, dicts) from which `restore` goes on exactly."""

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where a tuner of the same parameters stood; ValueError if it was of others."""
