"""The live tuners, one per file, and the table of them. `betting.py` and `path.py` are parts of the certified one."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.tuning.live_tuner import LiveTuner
from orchestrator.tuning.tuners.bandit import Bandit
from orchestrator.tuning.tuners.certified import Certified
from orchestrator.tuning.tuners.static import Static

__all__ = ["DEFAULT", "TUNERS", "Bandit", "Certified", "Static"]

TUNERS: Mapping[str, type[LiveTuner]] = {
    Certified.name: Certified,
    Bandit.name: Bandit,
    Static.name: Static,
}
"""Every tuner that a goal may name."""

DEFAULT = Certified.name
