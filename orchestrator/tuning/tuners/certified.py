"""Certified: the riskiest thresholds of which audits have proved that they cost at most ε, with confidence 1 − δ.

1. A path of threshold vectors, safe to risky, comes from audits that prove nothing afterwards (`path.py`), or is given.
2. Fresh audits bet on every vector of the path at once (`betting.py`). A vector is certified when its own wealth and
   those of all safer ones have reached 1/δ: testing in a fixed order costs no share of δ, and stops at the first
   vector that is not proved, so that no lucky one further on is taken.
3. An alarm watches the losses of the riskiest certified vector, whichever that is as an audit comes. When it goes off,
   everything is given up: the first vector, by which nobody leaves early, is in force; a new *trial* with a new path
   begins, from the audits since the change. Trial k has δ·6/(π²k²), of which all trials together do not add up to more
   than δ.

Promise: as long as inputs keep their distribution, the probability that any vector in `certified` has a mean loss above
ε, at any moment of any trial, is at most δ. The mean loss bounds the accuracy drop against the last exit.

Sources: A. Angelopoulos et al., "Learn then Test", 2021, for testing in a fixed order; M. Jazbec et al., "Fast yet
Safe: Early-Exiting with Risk Control", NeurIPS 2024, for exits; the rest in `betting.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from distree.thresholds import NEVER
from orchestrator.tuning.tuners.audits import Audit, Vector, losses_of
from orchestrator.tuning.tuners.betting import Alarm, Certificate
from orchestrator.tuning.tuners.path import safe_to_risky

PATH_AUDITS = 400
"""Audits from which a path is made."""

ALARM_HEIGHT = 1e4
"""At the bound itself, a false alarm comes at most once in this many audits on average; below it, far more rarely."""

REMEMBERED = 2000
"""Audits kept to make a new path from."""


class Certified:
    """Certify threshold vectors on audits; `thresholds` are the riskiest certified ones.

    costs: of leaving at each exit, the last included, in any unit. epsilon: greatest mean loss. delta: chance to be
    wrong. path: vectors from safe to risky to begin with; without one, the first `path_audits` audits make it.

    >>> tuner = Certified(costs=(1.0, 3.0), epsilon=0.05, delta=0.05, path=[(float("inf"),), (0.9,), (0.5,)])
    >>> for _ in range(300):
    ...     tuner.observe(Audit(scores=(0.95,), predictions=(4, 4)))
    ...     tuner.observe(Audit(scores=(0.6,), predictions=(1, 2)))
    >>> tuner.thresholds
    (0.9,)
    """

    name = "certified"

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
        self._recent: deque[Audit] = deque(maxlen=max(REMEMBERED, path_audits))
        self._gathered = 0
        self.trial = 1
        self.alarms = 0
        self._begin(path)

    # ------------------------------------------------------------ what it says

    @property
    def certified(self) -> tuple[Vector, ...]:
        """The certified vectors, safe to risky; the first one, by which nobody leaves early, always is."""
        return self._path[: self._position + 1]

    @property
    def thresholds(self) -> Vector:
        """The riskiest certified vector."""
        return self._path[self._position]

    @property
    def path(self) -> tuple[Vector, ...]:
        """The vectors on trial; the first one alone while audits are gathered for a path."""
        return self._path

    @property
    def recent(self) -> tuple[Audit, ...]:
        """The audits that are remembered, the oldest first; those before an alarm are among them."""
        return tuple(self._recent)

    @property
    def audits(self) -> int:
        """Audits that this trial's certificates rest on."""
        return self._certificate.count

    @property
    def gathering(self) -> int:
        """How many audits are still wanted for a path, 0 when there is one."""
        return max(0, self._path_audits - self._gathered) if len(self._path) == 1 else 0

    def to_next(self) -> int | None:
        """How many audits without a loss the next vector on the path is away; None where there is none."""
        if self._position + 1 >= len(self._path):
            return None
        return self._certificate.to_pass(self._position + 1)

    # ------------------------------------------------------------ what it hears

    def observe(self, audit: Audit) -> None:
        """Take in one audit."""
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
            if len(self._path) == 1:  # nothing to exit by: look again with other audits
                self._gathered = 0

    def _revoke(self, since: int) -> None:
        """Give up every certificate; audits since the change count towards the next path."""
        self.alarms += 1
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
            "alarms": self.alarms,
            "path": [list(vector) for vector in self._path],
            "position": self._position,
            "gathered": self._gathered,
            "recent": [[audit.scores, audit.predictions, audit.label, audit.lost] for audit in self._recent],
            "certificate": self._certificate.snapshot(),
            "alarm": self._alarm.snapshot(),
        }

    def restore(self, data: dict[str, Any]) -> None:
        """Go on where another one stood, with the same goal and costs.

        Raises ValueError for data of another goal or other costs.
        """
        ours = {"epsilon": self._epsilon, "delta": self._delta, "costs": list(self._costs)}
        theirs = {name: data.get(name) for name in ours}
        if theirs != ours:
            raise ValueError(f"is of {theirs}, {ours} is wanted")
        other = Certified(self._costs, self._epsilon, self._delta)
        other.trial = data["trial"]
        other._begin(data["path"])
        other._certificate.restore(data["certificate"])
        other._alarm.restore(data["alarm"])
        other._recent.extend(
            Audit(tuple(scores), tuple(predictions), label, lost) for scores, predictions, label, lost in data["recent"]
        )
        if not 0 <= data["position"] < len(other._path):
            raise ValueError(f"position {data['position']} is not on the path of {len(other._path)}")
        self._path, self._vectors = other._path, other._vectors
        self._certificate, self._alarm = other._certificate, other._alarm
        self._recent.clear()
        self._recent.extend(other._recent)
        self._position, self._gathered = data["position"], data["gathered"]
        self.trial, self.alarms = data["trial"], data["alarms"]


def _check(costs: Sequence[float], epsilon: float, delta: float) -> None:
    if len(costs) < 2 or any(after <= before for before, after in pairwise(costs)):
        raise ValueError(f"costs: must grow from exit to exit, of which there are two or more; received {costs}")
    for name, value in (("epsilon", epsilon), ("delta", delta)):
        if not 0.0 < value < 1.0:
            raise ValueError(f"{name}: must be above 0 and below 1, not {value}")
