"""Which plan of one pipeline to publish, and when. No I/O, no clock.

Epochs only grow, and one epoch never names two contents: agents take a plan with a higher epoch and
ignore others, so a plan that reused an epoch would be obeyed by some boards and not by others. Two
orchestrators on one pipeline would outbid each other for ever; so one that is contradicted re-asserts its
plan a few times, then yields and says so.
"""

from __future__ import annotations

import enum
import json
from collections import deque
from dataclasses import replace

from distree.messages.plan import Plan

SETTLE_S = 0.5
"""How long after a connect the retained plan is waited for, in seconds."""

MAX_REASSERTIONS = 3
CALM_S = 600.0
"""After this many seconds without contradiction, the re-assertions are counted from 0 again."""

REPORT_PAUSE_S = 30.0
"""An epoch from a device's report moves the plan at most once in this many seconds."""

MAX_EPOCH = 1 << 52
"""Epochs of others above this are not believed: they would use up the numbers that a message can carry."""

ECHOES = 16


class Standing(str, enum.Enum):
    """Where the planner stands towards its plan topic."""

    OFFLINE = "offline"
    SETTLING = "settling"
    LEADING = "leading"
    YIELDED = "yielded"


def same_content(one: Plan, other: Plan) -> bool:
    """Whether two plans ask for the same, whatever their epochs."""
    return replace(one, epoch=0) == replace(other, epoch=0)


def fingerprint(plan: Plan) -> str:
    """Return the content of a plan as one line, to tell later whether a configuration changed.

    Thresholds for missing branches are not in it: they follow from the model and the criterion.
    """
    return json.dumps([plan.model, plan.revision, plan.criterion, plan.thresholds])


def starting_plan(configured: Plan, last: Plan | None, last_configured: str) -> Plan:
    """Return the plan to begin with: the last one, unless the configuration or the bundle changed since.

    `configured` has epoch 0; `last_configured` is the fingerprint of the configuration before, "" if unknown.
    So thresholds that were set by command survive a restart, and an edited file takes effect at the next.
    """
    if last is None or same_content(last, configured):
        return configured if last is None else last
    edited = last_configured not in ("", fingerprint(configured))
    other_model = (last.model, last.revision) != (configured.model, configured.revision)
    return configured if edited or other_model else last


class Planner:
    """Decides for one pipeline. Every `now_s` is of one monotonic clock.

    `wanted` is the plan from the store, or one of epoch 0 that has no epoch yet; `floor` the highest
    epoch that was ever seen. Call `step` after every event and from time to time; record the plan it
    returns, publish it, then call `published`.

    >>> wanted = Plan(pipeline="p", epoch=0, model="m", revision="r", criterion="c", thresholds=())
    >>> planner = Planner(wanted, floor=4)
    >>> planner.connected(0.0)
    >>> planner.step(0.1) is None, planner.step(0.5).epoch
    (True, 5)
    """

    def __init__(self, wanted: Plan, *, floor: int = 0) -> None:
        self.standing = Standing.OFFLINE
        self._wanted = wanted
        self._others = floor if floor > wanted.epoch else 0
        self._online = False
        self._topic: Plan | None = None
        self._due = True
        self._settle_at_s = 0.0
        self._reassertions = 0
        self._contested_at_s = float("-inf")
        self._report_after_s = float("-inf")
        self._own: deque[Plan] = deque(maxlen=ECHOES)

    @property
    def wanted(self) -> Plan:
        """The plan that is to hold; its epoch is 0 before it has one."""
        return self._wanted

    @property
    def floor(self) -> int:
        """The highest epoch known: of the plan wanted, of plans seen and of devices' reports."""
        return max(self._others, self._wanted.epoch)

    def want(self, plan: Plan) -> None:
        """Want another plan, as a person or a tuner set it; that also ends a yielding."""
        if plan == self._wanted:
            return
        if not same_content(plan, self._wanted):
            self._others = max(self._others, self._wanted.epoch)
            self._wanted = plan
        elif plan.epoch > self._wanted.epoch:
            self._wanted = plan
        self._due = True
        self._reassertions = 0
        if self.standing is Standing.YIELDED:
            self.standing = Standing.LEADING if self._online else Standing.OFFLINE

    def connected(self, now_s: float) -> None:
        """Wait for the retained plan, then publish: a broker without persistence may have lost it."""
        self._online = True
        self._topic = None
        self._due = True
        self._settle_at_s = now_s + SETTLE_S
        if self.standing is not Standing.YIELDED:
            self.standing = Standing.SETTLING

    def disconnected(self) -> None:
        """Publish nothing until connected again."""
        self._online = False
        if self.standing is not Standing.YIELDED:
            self.standing = Standing.OFFLINE

    def saw(self, now_s: float, plan: Plan, *, retained: bool = False) -> str | None:
        """Note a plan on the topic, own echoes included; return a line to warn with, if any is due."""
        if plan in self._own or plan == self._wanted:
            self._topic = plan
            return None
        if plan.epoch > MAX_EPOCH:
            return self._contested(now_s, f"a plan with an unbelievable epoch, {plan.epoch},", retained)
        self._topic = plan
        if same_content(plan, self._wanted) and plan.epoch > self.floor:
            return None  # Adopted by the next step: nothing is contradicted.
        if not same_content(plan, self._wanted):
            self._others = max(self._others, plan.epoch)
        return self._contested(now_s, f"a foreign plan with epoch {plan.epoch}", retained)

    def saw_garbage(self, now_s: float, *, retained: bool = False) -> str | None:
        """Note that something else took the plan's place on its topic; return a line to warn with."""
        self._topic = None
        return self._contested(now_s, "something that is no plan", retained)

    def reported(self, now_s: float, epoch: int) -> None:
        """Note an epoch that a device reports; one above the plan's own makes the device deaf to the plan."""
        if self._wanted.epoch < epoch <= MAX_EPOCH and epoch > self._others and now_s >= self._report_after_s:
            self._report_after_s = now_s + REPORT_PAUSE_S
            self._others = epoch

    def step(self, now_s: float) -> Plan | None:
        """Return the plan to publish now, with its epoch; None if there is nothing to do."""
        if self.standing is Standing.SETTLING and (now_s >= self._settle_at_s or self._topic is not None):
            self.standing = Standing.LEADING
        if self.standing is not Standing.LEADING:
            return None
        target = self._target()
        return target if self._due or target != self._wanted else None

    def published(self, plan: Plan) -> None:
        """Note that the plan `step` returned was recorded and handed to the transport."""
        self._wanted = plan
        self._own.append(plan)
        self._due = False

    def _target(self) -> Plan:
        seen = self._topic
        if seen is not None and same_content(seen, self._wanted) and seen.epoch >= max(self.floor, 1):
            return seen
        if self._wanted.epoch > self._others:
            return self._wanted
        return replace(self._wanted, epoch=self.floor + 1)

    def _contested(self, now_s: float, what: str, retained: bool) -> str | None:
        self._due = True
        if retained or self.standing is not Standing.LEADING:
            return None  # What lay there before, or while away, is history and no contradiction.
        if now_s - self._contested_at_s > CALM_S:
            self._reassertions = 0
        self._contested_at_s = now_s
        self._reassertions += 1
        if self._reassertions > MAX_REASSERTIONS:
            self.standing = Standing.YIELDED
            return (
                f"{what} came again: another orchestrator seems to run; this one stops publishing the plan "
                "until it is restarted or thresholds are set"
            )
        return f"{what} came; the plan is asserted again" if self._reassertions == 1 else None
