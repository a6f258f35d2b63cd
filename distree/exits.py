"""The exit rule: by which criterion and thresholds the exits of a request are decided.

A request is decided by the plan under which it was accepted, so a board keeps the last few.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from distree import policies
from distree.errors import ConfigError, RemoteProtocolError
from distree.protocols import Evidence, ExitPolicy, PolicyParameters
from distree.types import MaskedThresholds, Plan, Reading

KEPT_EPOCHS = 8
"""Plans kept, so that a request is decided by the thresholds under which it was accepted."""


@dataclass(frozen=True, slots=True)
class ExitRule:
    """The exit rule of one epoch: `masked` has the thresholds for sets of missing branches."""

    plan: Plan
    policy: ExitPolicy
    masked: dict[tuple[int, ...], tuple[float, ...]]

    def threshold(self, stage: int, missing: tuple[int, ...] = ()) -> float:
        """Return the threshold of an exit; without thresholds for these missing branches it is never taken."""
        if not missing:
            return self.plan.thresholds[stage]
        thresholds = self.masked.get(missing)
        return policies.NEVER if thresholds is None else thresholds[stage]


@dataclass(slots=True)
class Epochs:
    """The plan in force and those before it.

    `default` is the bundle's own plan, epoch 0, whose masked thresholds serve every plan of the same criterion that
    brings none. Raises RemoteProtocolError("criterion") for a plan whose criterion cannot be had.
    """

    default: Plan
    parameters: PolicyParameters = field(default_factory=PolicyParameters)
    kept: OrderedDict[int, ExitRule] = field(default_factory=OrderedDict)
    current: ExitRule = field(init=False)

    def __post_init__(self) -> None:
        self.adopt(self.default)

    def adopt(self, plan: Plan) -> None:
        """Put a plan in force."""
        try:
            policy = policies.make_policy(plan.criterion, self.parameters)
        except ConfigError as error:
            raise RemoteProtocolError("criterion", str(error)) from None
        self.current = self.kept[plan.epoch] = ExitRule(plan, policy, self._masked(plan))
        if len(self.kept) > KEPT_EPOCHS:
            self.kept.popitem(last=False)

    def of(self, epoch: int) -> ExitRule:
        """Return the rule of an epoch, or the one in force if that epoch is not known here."""
        return self.kept.get(epoch, self.current)

    def _masked(self, plan: Plan) -> dict[tuple[int, ...], tuple[float, ...]]:
        rows: tuple[MaskedThresholds, ...] = plan.masked
        if not rows and plan.criterion == self.default.criterion:
            rows = self.default.masked
        return {row.missing: row.thresholds for row in rows}


DEADLINE_RULE = policies.make_policy("deadline")


def too_late(evidence: Evidence) -> bool:
    """Whether going on would take longer than what is left of the budget."""
    return DEADLINE_RULE.score(evidence).value >= 0.0


_SCORE_LIMIT = 1e300  # what a message can hold: some criteria give infinities, where they have nothing to compare


def reading(score: float, class_id: int) -> Reading:
    """Return what an exit said, its score as a finite number: a NaN never exits, so it becomes the least."""
    finite = min(_SCORE_LIMIT, score) if score >= -_SCORE_LIMIT else -_SCORE_LIMIT
    return Reading(score=finite, class_id=class_id)
