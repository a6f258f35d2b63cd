"""The exit rule: by which criterion and thresholds the exits of a request are decided.

The rule travels with the request, as its origin wrote it, so all boards decide by the same one. What does not travel
are the thresholds for sets of missing branches, which boards that fuse look up in the plan that the rule came from.
"""

from __future__ import annotations

from collections import OrderedDict

from distree import criteria
from distree.criteria.base import Criterion, ExitEvidence
from distree.errors import RESTRICT, SAME_BUNDLE, ConfigError, RemoteProtocolError
from distree.messages.plan import Plan
from distree.messages.request import Reading, Rule
from distree.node.settings import NodeSettings

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

    Its masked thresholds serve every plan of the same criterion that brings none.
    """

    def __init__(self, settings: NodeSettings, criteria: CriterionCache) -> None:
        self._settings = settings
        self._criteria = criteria
        self._default = self.current = Plan(
            pipeline=settings.pipeline,
            epoch=0,
            model=settings.model,
            revision=settings.revision,
            criterion=settings.criterion,
            thresholds=settings.thresholds,
            masked=settings.masked,
        )
        self._kept: OrderedDict[int, Plan] = OrderedDict()
        self._adopt(self._default)

    def receive(self, plan: Plan) -> None:
        """Put a plan in force if it is newer; RemoteProtocolError for one that does not belong here."""
        settings = self._settings
        if plan.pipeline != settings.pipeline:
            raise RemoteProtocolError("pipeline", f"expected {settings.pipeline}, received {plan.pipeline}", RESTRICT)
        settings.check_revision(plan.revision)
        for row in plan.masked:
            if len(row.thresholds) != settings.last:
                raise RemoteProtocolError(
                    "masked", f"{len(row.thresholds)} thresholds received, {settings.last} expected", SAME_BUNDLE
                )
        rule = _rule(plan)
        if plan.epoch <= self.current.epoch:
            return
        self._criteria.check(rule)
        self._check_usable(plan.criterion)
        self._adopt(plan)

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

    def _adopt(self, plan: Plan) -> None:
        self._criteria.of(plan.criterion)
        self.current = self._kept[plan.epoch] = plan
        self.rule = _rule(plan)
        """What decides the requests that are accepted now."""
        if len(self._kept) > KEPT_PLANS:
            self._kept.popitem(last=False)

    def threshold(self, rule: Rule, stage: int, missing: tuple[int, ...]) -> float:
        """Return the threshold of an exit; without thresholds for these missing branches it is never taken."""
        if not missing:
            return rule.thresholds[stage]
        plan = self._kept.get(rule.epoch)
        rows = plan.masked if plan is not None and _rule(plan) == rule else ()
        if not rows and rule.criterion == self._default.criterion:
            rows = self._default.masked
        return next((row.thresholds[stage] for row in rows if row.missing == missing), criteria.NEVER)


def _rule(plan: Plan) -> Rule:
    return Rule(epoch=plan.epoch, criterion=plan.criterion, thresholds=plan.thresholds, rest_s=plan.rest_s)


DEADLINE_RULE = criteria.make_criterion("deadline")


def too_late(evidence: ExitEvidence) -> bool:
    """Whether going on would take longer than what is left of the budget."""
    return DEADLINE_RULE.score(evidence).value >= 0.0


_SCORE_LIMIT = 1e300  # what a message can hold: some criteria give infinities, where they have nothing to compare


def reading(score: float, class_id: int) -> Reading:
    """Return what an exit said, its score as a finite number: a NaN never exits, so it becomes the least."""
    finite = min(_SCORE_LIMIT, score) if score >= -_SCORE_LIMIT else -_SCORE_LIMIT
    return Reading(score=finite, class_id=class_id)
