"""What the thresholds of a pipeline are tuned for: `goal:` in orchestrator.yaml and fleet.yaml."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from distree.errors import ConfigError
from distree.formatting import percent
from distree.strict_yaml import Share
from orchestrator.tuning.live_tuner import LiveTuner
from orchestrator.tuning.tuners import DEFAULT, TUNERS

CONFIDENCE = Share(0.95)
AUDIT_RATE = Share(0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a pipeline's thresholds are tuned for.

    `latency_p95_ms`, `bytes_per_input` and `energy_mj` apply to what boards measure. With any of them, inputs leave as
    early as these goals need and no earlier; without, as early as the tuner allows.
    """

    accuracy_drop: Share
    """How much accuracy early exits may cost compared with the last exit."""
    confidence: Share = CONFIDENCE
    """How sure the orchestrator must be of that before it lets inputs leave early."""
    tuner: str = DEFAULT
    """What chooses the thresholds. `certified` keeps `accuracy_drop` with `confidence`. `bandit` tries thresholds and
    `static` keeps the given ones and measures them: neither has a guarantee."""
    audit_rate: Share = AUDIT_RATE
    """Share of inputs that are run to the last exit; 1 while early exits are disabled, when it costs nothing."""
    labels_wait_s: float | None = None
    """How long audits wait for labels from users; if left out, losses are counted against the last exit."""
    latency_p95_ms: float | None = None
    """Goal for the slowest origin's 95th percentile of latency."""
    bytes_per_input: float | None = None
    """Goal for the bytes that boards send to each other."""
    energy_mj: float | None = None
    """Goal for the mean energy per input, in millijoules; needs `mj_per_mmac`."""
    mj_per_mmac: float | None = None
    """Millijoules that your boards need for a million multiply-accumulates."""
    mj_per_kb: float = 0.0
    """Millijoules that it takes to send a thousand bytes."""

    def __post_init__(self) -> None:
        for name in ("accuracy_drop", "confidence"):
            if not 0 < getattr(self, name) < 1:
                what = f"{name}: {percent(getattr(self, name))} is out of range"
                raise ConfigError(what, "choose a share above 0% and below 100%")
        if self.audit_rate <= 0:
            raise ConfigError("audit_rate: nothing is learned without audits", "choose a share above 0%")
        for name in ("labels_wait_s", "latency_p95_ms", "bytes_per_input", "energy_mj", "mj_per_mmac"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}: {value:g} is out of range", "choose a finite value above 0")
        if not 0 <= self.mj_per_kb < math.inf:
            raise ConfigError(f"mj_per_kb: {self.mj_per_kb:g} is out of range", "choose 0 or more")
        if self.energy_mj is not None and self.mj_per_mmac is None:
            remedy = "give the energy of a million multiply-accumulates of a board"
            raise ConfigError("energy_mj: also needs mj_per_mmac", remedy)
        if self.tuner not in TUNERS:
            nearest = difflib.get_close_matches(self.tuner, TUNERS, n=1, cutoff=0.0)[0]
            what = f"tuner: expected one of {', '.join(TUNERS)}, received {self.tuner!r}"
            raise ConfigError(what, f"write {nearest}")
        if (limits := self.limits()) and not self.tuner_class.offers_choice:
            fitting = ", ".join(name for name, tuner in TUNERS.items() if tuner.offers_choice)
            what = f"{next(iter(limits))}: tuner {self.tuner} cannot weigh it"
            raise ConfigError(what, f"remove it, or use tuner {fitting}")

    @property
    def tuner_class(self) -> type[LiveTuner]:
        """The class of the tuner."""
        return TUNERS[self.tuner]

    def limits(self) -> dict[str, float]:
        """Return the goals for what boards measure, by name."""
        names = ("latency_p95_ms", "bytes_per_input", "energy_mj")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def text(self) -> str:
        """Say in one line what is aimed for, and whether it is guaranteed."""
        sure = f"with {percent(self.confidence)} confidence"
        if not self.tuner_class.has_guarantee:
            sure = f"aimed for without a guarantee (tuner {self.tuner})"
        limits = [f"{name} of at most {limit:g}" for name, limit in self.limits().items()]
        return " and ".join([f"accuracy drop of at most {percent(self.accuracy_drop)} {sure}", *limits])
