"""Certified: the riskiest thresholds that audits have proved to lose at most ε, with confidence 1 − δ.

1. A path of threshold vectors, from safe to risky, is made from audits that prove nothing afterwards (`path.py`), or is
   given.
2. Fresh audits bet on every vector of the path at once (`betting.py`). A vector is certified when its own wealth and
   that of every safer one have reached 1/δ: testing in a fixed order costs no share of δ, and it stops at the first
   vector that is not proved, so that a lucky one further on is not taken.
3. An alarm watches the losses of the riskiest certified vector, whichever it is when an audit comes. When it goes off,
   all certificates are withdrawn: the first vector, which disables every early exit, is in force, and a new *trial*
   with a new path begins, from the audits since the change. Trial k has δ·6/(π²k²), which over all trials adds up to
   no more than δ.

Promise: as long as inputs keep their distribution, the probability that any vector in `choices` has a mean loss above
ε, at any moment of any trial, is at most δ. The mean loss bounds the accuracy drop against the last exit.

Sources: A. Angelopoulos et al., "Learn then Test", 2021, for testing in a fixed order; M. Jazbec et al., "Fast yet
Safe: Early-Exiting with Risk Control", NeurIPS 2024, for exits; the rest in `betting.py`.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from distree.formatting import counted, percent, thresholds_text
from distree.thresholds import NEVER
from orchestrator.tuning.live_tuner import Figure, LiveTuner, Remark, TunerExplanation, TunerSetup
from orchestrator.tuning.samples import AuditedInput, Vector, losses_of
from orchestrator.tuning.tuners.betting import Alarm, Certificate
from orchestrator.tuning.tuners.path import safe_to_risky

PATH_AUDITS = 400
"""Audits from which a path is made."""

ALARM_HEIGHT = 1e4
"""At the bound itself, a false alarm comes at most once in this many audits on average; below it, far more rarely."""

REMEMBERED = 2000
"""Audits kept to make a new path from."""


class Certified(LiveTuner):
    """Certifies threshold vectors on audits; `thresholds` are the riskiest certified ones.

    costs: of leaving at each exit, the last included, in any unit. epsilon: the greatest mean loss allowed. delta: the
    probability of being wrong. path: vectors from safe to risky to start with; without one, the first `path_audits`
    audits make it.

    >>> tuner = Certified(costs=(1.0, 3.0), epsilon=0.05, delta=0.05, path=[(float("inf"),), (0.9,), (0.5,)])
    >>> for _ in range(300):
    ...     tuner.observe(AuditedInput(scores=(0.95,), predictions=(4, 4)))
    ...     tuner.observe(AuditedInput(scores=(0.6,), predictions=(1, 2)))
    >>> tuner.thresholds
    (0.9,)
    """

    name = "certified"
    has_guarantee = True
    offers_choice = True

    def __init__(
        self,
        costs: Sequence[float],
        epsilon: float,
        delta: float,
        *,
        path: Sequence[Vector] | None = None,
        path_audits: int = PATH_AUDITS,
        alarm_height: float = ALARM_HEIGHT,
    ) -> None:
        _check(costs, epsilon, delta)
        self._costs, self._epsilon, self._delta = tuple(costs), epsilon, delta
        self._path_audits, self._log_height = path_audits, math.log(alarm_height)
        self._recent: deque[AuditedInput] = deque(maxlen=max(REMEMBERED, path_audits))
        self._gathered = 0
        self.trial = 1
        self._alarms = 0
        self._begin(path)

    @classmethod
    def create(cls, setup: TunerSetup) -> Certified:
        """Make a tuner for a goal; earlier audits make its path."""
        path = safe_to_risky(setup.earlier, setup.costs) if setup.earlier else None
        return cls(setup.costs, setup.accuracy_drop, 1.0 - setup.confidence, path=path)

    # ------------------------------------------------------------ what it wants, and why

    @property
    def choices(self) -> tuple[Vector, ...]:
        """The certified vectors, safe to risky; the first, which disables every early exit, always is."""
        return self._path[: self._position + 1]

    @property
    def thresholds(self) -> Vector:
        """The riskiest certified vector."""
        return self._path[self._position]

    @property
    def path(self) -> tuple[Vector, ...]:
        """The vectors on trial; only the first one while audits are gathered for a path."""
        return self._path

    @property
    def recent(self) -> tuple[AuditedInput, ...]:
        """The audits that are remembered, the oldest first; those before an alarm are among them."""
        return tuple(self._recent)

    @property
    def alarms(self) -> int:
        """How often the certificates were withdrawn."""
        return self._alarms

    @property
    def audits(self) -> int:
        """Audits that this trial's certificates rest on."""
        return self._certificate.count

    @property
    def gathering(self) -> int:
        """How many audits are still needed for a path, 0 when there is one."""
        return max(0, self._path_audits - self._gathered) if len(self._path) == 1 else 0

    def to_next(self) -> int | None:
        """How many audits without a loss the next vector on the path needs; None where there is none."""
        if self._position + 1 >= len(self._path):
            return None
        return self._certificate.to_pass(self._position + 1)

    def explain(self) -> TunerExplanation:
        """Return how far certification has come, and what the next step takes."""
        return TunerExplanation(
            thresholds=self.thresholds,
            audits=self.audits,
            gathering=self.gathering,
            alarms=self.alarms,
            progress=self._progress(),
            remarks=tuple(self._remarks()),
            figures=tuple(self._figures()),
        )

    def _progress(self) -> str:
        if self.gathering:
            return f"trial {self.trial}: gathering audits for a path, {self.gathering:,} more needed"
        to_next = self.to_next()
        further = "the path ends there"
        if to_next is not None:
            further = f"the next needs about {counted(to_next, 'more audit')} without a loss"
        steps = f"{self._position} of {counted(len(self._path) - 1, 'step')} certified"
        return f"trial {self.trial}: {steps} on {counted(self.audits, 'audit')}, {further}"

    def _remarks(self) -> Iterator[Remark]:
        if self.gathering:
            yield Remark(
                label="until then", text="every input goes to the last exit, and auditing all of them costs nothing"
            )
            return
        means, here = self._certificate.mean_losses(), self._position
        allowed = f"{percent(self._epsilon)} is allowed"
        vector = thresholds_text(self.thresholds)
        yield Remark(label="certified", text=f"{vector}: mean loss {percent(float(means[here]))} so far, {allowed}")
        if here + 1 < len(self._path):
            mean = float(means[here + 1])
            over = " (more than is allowed)" if mean > self._epsilon else ""
            yield Remark(
                label="next",
                text=f"{thresholds_text(self._path[here + 1])}: mean loss {percent(mean)} so far{over}, "
                f"wealth {self._next_wealth():.3g} of the {1.0 / self._level:.3g} needed",
            )

    def _figures(self) -> Iterator[Figure]:
        yield Figure(name="trial", value=self.trial, meaning="Number of the trial, from 1.")
        yield Figure(name="steps", value=len(self._path) - 1, meaning="Steps of the path on trial.")
        yield Figure(name="certified", value=self._position, meaning="Steps of the path that are certified.")
        if self.gathering:
            return
        means, here = self._certificate.mean_losses(), self._position
        yield Figure(name="mean_loss", value=float(means[here]), meaning="Mean loss of the certified thresholds.")
        yield Figure(name="wealth_needed", value=1.0 / self._level, meaning="Wealth by which a step is certified.")
        to_next = self.to_next()
        if to_next is not None:
            mean = float(means[here + 1])
            yield Figure(name="next_mean_loss", value=mean, meaning="Mean loss of the next step of the path.")
            yield Figure(name="next_wealth", value=self._next_wealth(), meaning="Wealth of the next step of the path.")
            yield Figure(
                name="next_audits", value=to_next, meaning="Audits without a loss that the next step still needs."
            )

    def _next_wealth(self) -> float:
        return math.exp(float(self._certificate.log_wealth()[self._position + 1]))

    # ------------------------------------------------------------ what it learns

    def observe(self, audit: AuditedInput) -> None:
        """Learn from one audit."""
        self._recent.append(audit)
        if len(self._path) == 1:
            self._gather()
            return
        losses = losses_of(audit, self._vectors)
        self._certificate.observe(losses)
        self._alarm.observe(float(losses[self._position]))
        if self._alarm.reached(self._log_height):
            self._revoke(self._alarm.since())
        else:
            self._advance()

    def _gather(self) -> None:
        self._gathered += 1
        if self._gathered >= self._path_audits:
            self._begin(safe_to_risky(list(self._recent)[-self._gathered :], self._costs))
            if len(self._path) == 1:  # No exit can be told apart by its scores: try again with other audits.
                self._gathered = 0

    def _revoke(self, since: int) -> None:
        """Withdraw every certificate; audits since the change count towards the next path."""
        self._alarms += 1
        self.trial += 1
        self._begin(None)
        self._gathered = min(since, len(self._recent), self._path_audits - 1)

    def _begin(self, path: Sequence[Vector] | None) -> None:
        """Begin a trial on a path, or begin to gather audits for one."""
        self._position = 0
        self._gathered = 0
        safest: Vector = (NEVER,) * (len(self._costs) - 1)
        riskier = (tuple(map(float, vector)) for vector in path or ())
        self._path = (safest, *(vector for vector in riskier if vector != safest))
        self._vectors = np.array(self._path, np.float64).reshape(len(self._path), len(safest))
        self._certificate = Certificate(len(self._path), self._epsilon, self._level)
        self._alarm = Alarm(self._epsilon)

    @property
    def _level(self) -> float:
        return self._delta * 6.0 / (math.pi * self.trial) ** 2

    def _advance(self) -> None:
        passed = self._certificate.passed
        while self._position + 1 < len(self._path) and passed[self._position + 1]:
            self._position += 1

    # ------------------------------------------------------------ restarts

    def snapshot(self) -> dict[str, Any]:
        """Return plain data, for `restore`."""
        return {
            "epsilon": self._epsilon,
            "delta": self._delta,
            "costs": list(self._costs),
            "trial": self.trial,
            "alarms": self._alarms,
            "path": [list(vector) for vector in self._path],
            "position": self._position,
            "gathered": self._gathered,
            "recent": [[audit.scores, audit.predictions, audit.label, audit.lost] for audit in self._recent],
            "certificate": self._certificate.snapshot(),
            "alarm": self._alarm.snapshot(),
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where another one with the same goal and costs stood; see `LiveTuner.restore`."""
        ours = {"epsilon": self._epsilon, "delta": self._delta, "costs": list(self._costs)}
        theirs = {name: data.get(name) for name in ours}
        if theirs != ours:
            raise ValueError(f"its certificates are for {theirs}, not for {ours}")
        other = copy.copy(self)
        other.trial, other._alarms = int(data["trial"]), int(data["alarms"])
        other._begin(data["path"])
        other._certificate.restore(data["certificate"])
        other._alarm.restore(data["alarm"])
        recent = (AuditedInput(tuple(scores), tuple(classes), *rest) for scores, classes, *rest in data["recent"])
        other._recent = deque(recent, maxlen=self._recent.maxlen)
        other._position, other._gathered = int(data["position"]), int(data["gathered"])
        if not 0 <= other._position < len(other._path):
            raise ValueError(f"position {other._position} is not on the path of {len(other._path)}")
        vars(self).update(vars(other))


def _check(costs: Sequence[float], epsilon: float, delta: float) -> None:
    if len(costs) < 2 or any(after <= before for before, after in pairwise(costs)):
        raise ValueError(f"costs: two or more are needed, growing from exit to exit; received {costs}")
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name}: must be above 0 and below 1, not {value}")
