"""The exit rule: by which criterion and thresholds the exits of a request are decided.

The rule travels with the request, as its origin wrote it, so all boards decide by the same one. What does not travel
are the thresholds for sets of missing branches, which boards that fuse look up in the plan that the rule came from.
"""

from __future__ import annotations

from collections import OrderedDict

from distree import criteria
from distree.criteria.base import Criterion, ExitEvidence
from distree.errors import RESTRICT, SAME_BUNDLE, ConfigError, RemoteProtocolError
from distree.messages.limits import EPOCH_STEP, MAX_FINITE
from distree.messages.plan import Plan, plan_hash
from distree.messages.request import Reading, Rule
from distree.node.settings import NodeSettings
from distree.thresholds import NEVER

KEPT_PLANS = 8
"""Plans kept, so that a request is decided by the thresholds under which it was accepted."""


class CriterionCache:
    """The criteria by which this board can decide, made when first asked for."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._last = settings.last
        self._made: dict[str, Criterion] = {}

    def of(self, name: str) -> Criterion:
        """Return the criterion called `name`; RemoteProtocolError("criterion") where it cannot be had."""
        made = self._made.get(name)
        if made is None:
            try:
                made = criteria.make_criterion(name, self._settings.parameters)
            except ConfigError as error:
                raise RemoteProtocolError("criterion", *error.problem) from None
            self._made[name] = made
        return made

    def check(self, rule: Rule) -> None:
        """Raise RemoteProtocolError for a rule that does not fit the exits of this board's bundle."""
        last = self._last
        if len(rule.thresholds) != last:
            raise RemoteProtocolError(
                "thresholds",
                f"{len(rule.thresholds)} received, {last} expected, one per exit but the last",
                SAME_BUNDLE,
            )
        if rule.rest_s and len(rule.rest_s) != last:
            raise RemoteProtocolError("rest_s", f"{len(rule.rest_s)} received, {last} expected", SAME_BUNDLE)
        if rule.criterion not in self._made:
            self.of(rule.criterion)


class Plans:
    """The plan in force and those before it. The first is the bundle's own, epoch 0.

    In force is the plan that came last, because that is what its topic holds, and what a board that starts now obeys.
    Epochs put plans into no order: no number can keep a later plan out. The bundle's masked thresholds serve every plan
    of the same criterion that brings none.
    """

    def __init__(self, settings: NodeSettings, criteria: CriterionCache) -> None:
        self._settings = settings
        self._criteria = criteria
        self._default = Plan(
            pipeline=settings.pipeline,
            epoch=0,
            model=settings.model,
            revision=settings.revision,
            criterion=settings.criterion,
            thresholds=settings.thresholds,
            masked=settings.masked,
        )
        self._kept: OrderedDict[Rule, Plan] = OrderedDict()
        self._adopt(self._default)

    @property
    def hash(self) -> str:
        """The hash of the plan in force."""
        return plan_hash(self.current)

    def receive(self, plan: Plan) -> None:
        """Put a plan in force; RemoteProtocolError, and nothing changes, for one that does not belong here."""
        if plan == self.current:
            return
        settings, held = self._settings, self.current.epoch
        if plan.pipeline != settings.pipeline:
            raise RemoteProtocolError("pipeline", f"expected {settings.pipeline}, received {plan.pipeline}", RESTRICT)
        settings.check_revision(plan.revision)
        if held and plan.epoch > held + EPOCH_STEP:
            raise RemoteProtocolError(
                "epoch",
                f"{plan.epoch} is more than {EPOCH_STEP} above {held}, the one in force, so the plan is not followed",
                "run: distree orchestrator reset-plan",
            )
        self._criteria.check(_rule(plan))
        self._check_usable(plan.criterion)
        self._check_thresholds(plan)
        self._adopt(plan)

    def withdraw(self) -> None:
        """Have the bundle's own thresholds hold again: the plan's topic is empty."""
        if self.current != self._default:
            self._adopt(self._default)

    def _check_usable(self, criterion: str) -> None:
        """Raise RemoteProtocolError for a criterion by which this board could not decide."""
        settings = self._settings
        if not settings.decides:
            # It has no parameters of criteria and needs none.
            return
        exits, classes, wide = len(settings.inputs), len(settings.labels), any(settings.embeddings)
        problem = criteria.problem(criterion, settings.parameters, wide, exits=exits, classes=classes)
        if problem is not None:
            raise RemoteProtocolError("criterion", *problem)

    def _check_thresholds(self, plan: Plan) -> None:
        """Raise RemoteProtocolError for too few thresholds, or one that is out of the criterion's range."""
        last = self._settings.last
        for row in plan.masked:
            if len(row.thresholds) != last:
                raise RemoteProtocolError(
                    "masked", f"{len(row.thresholds)} thresholds received, {last} expected", SAME_BUNDLE
                )
        for thresholds in (plan.thresholds, *(row.thresholds for row in plan.masked)):
            problem = criteria.threshold_problem(plan.criterion, thresholds)
            if problem is not None:
                raise RemoteProtocolError("thresholds", *problem)

    def _adopt(self, plan: Plan) -> None:
        self._criteria.of(plan.criterion)
        self.current = plan
        self.rule = rule = _rule(plan)
        """What decides the requests that are accepted now."""
        self._kept[rule] = plan
        self._kept.move_to_end(rule)
        if len(self._kept) > KEPT_PLANS:
            self._kept.popitem(last=False)

    def threshold(self, rule: Rule, stage: int, missing: tuple[int, ...]) -> float:
        """Return the threshold of an exit; without thresholds for these missing branches it is never taken."""
        if not missing:
            return rule.thresholds[stage]
        plan = self._kept.get(rule)
        rows = plan.masked if plan is not None else ()
        if not rows and rule.criterion == self._default.criterion:
            rows = self._default.masked
        return next((row.thresholds[stage] for row in rows if row.missing == missing), NEVER)


def _rule(plan: Plan) -> Rule:
    return Rule(epoch=plan.epoch, criterion=plan.criterion, thresholds=plan.thresholds, rest_s=plan.rest_s)


DEADLINE_RULE = criteria.make_criterion("deadline")


def too_late(evidence: ExitEvidence) -> bool:
    """Whether going on would take longer than what is left of the budget."""
    return DEADLINE_RULE.score(evidence).value >= 0.0


def reading(score: float, class_id: int) -> Reading:
    """Return what an exit said, its score as a finite number: a NaN never exits, so it becomes the least.

    Some criteria give infinities, where they have nothing to compare.
    """
    finite = min(MAX_FINITE, score) if score >= -MAX_FINITE else -MAX_FINITE
    return Reading(score=finite, class_id=class_id)
