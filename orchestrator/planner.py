"""Which plan of one pipeline to publish, and when. No I/O, no clock.

Boards obey the plan that is on its topic, whoever put it there and whatever its epoch (`distree/node/exits.py`). So an
orchestrator has to see to it that its own plan is there, and can always bring that about by publishing it.

Epochs are for people: they number decisions, one after the other, from 1 again after MAX_EPOCH. Numbers that others use
are passed over, so that no two decisions that follow each other share one, but only those within EPOCH_STEP: nobody can
use them up. What boards report moves no number up. A board that holds a plan refuses one that is further ahead than
EPOCH_STEP; for the sake of such a board, numbers begin at 1 again, which every board takes.

An orchestrator whose plan is replaced publishes it again at once, a few times. If that goes on it is *preempted*: it
raises an alarm, and publishes its plan once in REASSERT_S until nobody has replaced it for CALM_S.
"""

from __future__ import annotations

import enum
import json
from collections import deque
from dataclasses import replace

from distree.errors import RemoteProtocolError
from distree.formatting import thresholds_text
from distree.messages.limits import EPOCH_STEP
from distree.messages.plan import Plan, next_epoch, plan_hash, same_decision

SETTLE_S = 0.5
"""How long after a connect the retained plan is waited for, in seconds."""

MAX_REASSERTIONS = 3
"""How often a plan that was replaced is published again at once."""

REASSERT_S = 60.0
"""How often a preempted orchestrator publishes its plan, in seconds."""

CALM_S = 600.0
"""After this many seconds in which nobody replaced the plan all is well again."""

ALARM_S = 300.0
"""How often a preempted orchestrator says so, in seconds."""

_NOT_OBEYED = {"signature": "a plan without this orchestrator's signature", "replay": "an earlier plan of its own"}
"""What a plan is that is refused for a reason, as alarms say it."""

ECHOES = 16
"""Most plans whose coming back is waited for."""


class Standing(str, enum.Enum):
    """Where the planner stands towards its plan topic."""

    OFFLINE = "offline"
    SETTLING = "settling"
    LEADING = "leading"
    PREEMPTED = "preempted"


def same_content(one: Plan, other: Plan) -> bool:
    """Whether boards do the same by two plans."""
    return plan_hash(one) == plan_hash(other)


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

    `wanted` is the plan from the store, or one of epoch 0 that has no epoch yet; `highest_epoch` the highest one
    that is passed over. Call `step` after every event and from time to time; record the plan it returns, publish it,
    then call `published`.

    >>> wanted = Plan(pipeline="p", epoch=0, model="m", revision="r", criterion="margin", thresholds=())
    >>> planner = Planner(wanted, highest_epoch=4)
    >>> planner.connected(0.0)
    >>> planner.step(0.1) is None, planner.step(0.5).epoch
    (True, 5)
    """

    def __init__(self, wanted: Plan, *, highest_epoch: int = 0) -> None:
        self._wanted = wanted
        self._highest = max(highest_epoch, wanted.epoch)
        self._is_online = self._is_settling = self._is_preempted = False
        self._settle_at_s = 0.0
        self._topic: Plan | None = None
        self._echoes: deque[Plan] = deque(maxlen=ECHOES)
        self._is_due = self._is_new = True
        self._rival = ""
        self._reassertions = 0
        self._contested_at_s = self._told_at_s = self._asserted_at_s = float("-inf")

    @property
    def standing(self) -> Standing:
        """Where it stands towards its topic."""
        if not self._is_online:
            return Standing.OFFLINE
        if self._is_settling:
            return Standing.SETTLING
        return Standing.PREEMPTED if self._is_preempted else Standing.LEADING

    @property
    def wanted(self) -> Plan:
        """The plan that is to hold; its epoch is 0 before it has one."""
        return self._wanted

    @property
    def highest_epoch(self) -> int:
        """The number after which the next decision is numbered."""
        return self._highest

    @property
    def alarm(self) -> str:
        """What is wrong and what to do, while other plans take the place of this one; "" while none do."""
        if not self._is_preempted:
            return ""
        return (
            f"PREEMPTED: this plan was replaced on its topic {self._reassertions} times, last by {self._rival}; it is "
            f"published again every {REASSERT_S:g} s. Find out who publishes there and stop that, then: "
            f"distree orchestrator reset-plan --pipeline {self._wanted.pipeline}"
        )

    # ------------------------------------------------------------ what is wanted

    def want(self, plan: Plan) -> None:
        """Want another plan. One of epoch 0 gets a number: the same where the decision is, and else a new one."""
        if plan == self._wanted:
            return
        if not same_decision(plan, self._wanted):
            self._is_new = True
        elif not plan.epoch:
            of = self._wanted
            plan = replace(plan, epoch=of.epoch, reason=of.reason, author=of.author)
        self._is_due = self._is_due or plan != self._wanted
        self._wanted = plan
        self._highest = max(self._highest, plan.epoch)

    def reset(self, plan: Plan) -> None:
        """Want a plan, forget what others have published, and number decisions from this one's epoch on."""
        self._wanted, self._highest, self._topic = plan, plan.epoch, None
        self._is_due = self._is_new = True
        self._echoes.clear()
        self._calm_down()

    # ------------------------------------------------------------ what is heard

    def connected(self, now_s: float) -> None:
        """Wait for the retained plan, then publish: a broker without persistence may have lost it."""
        self._is_online = self._is_settling = self._is_due = True
        self._topic = None
        self._echoes.clear()
        self._settle_at_s = now_s + SETTLE_S

    def disconnected(self) -> None:
        """Publish nothing until connected again."""
        self._is_online = False

    def saw(self, now_s: float, plan: Plan, *, retained: bool = False) -> str | None:
        """Note a plan on the topic, own echoes included; return a line to warn with, if any is due."""
        if self._is_echo(plan):
            self._topic = plan
            return None
        self._topic = plan
        if same_content(plan, self._wanted):
            return None  # Its number is adopted by the next step, if it is higher: nothing is contradicted.
        if self._is_near(plan.epoch):
            self._highest = max(self._highest, plan.epoch)
        self._note_held(plan.epoch)
        by = f" by {plan.author}" if plan.author else ""
        what = f"a foreign plan{by} (epoch {plan.epoch}: {plan.criterion} {thresholds_text(plan.thresholds)})"
        return self._contested(now_s, what, retained)

    def saw_garbage(
        self, now_s: float, payload: bytes, error: RemoteProtocolError, *, retained: bool = False
    ) -> str | None:
        """Note that something that no board should obey took the plan's place; return a line to warn with."""
        self._topic = None
        what = _NOT_OBEYED.get(error.reason, "something that is no plan") if payload else "an empty message"
        return self._contested(now_s, what, retained)

    def reported(self, epoch: int, held: str) -> None:
        """Note what a device follows: the epoch and the hash of its plan."""
        if epoch and held != plan_hash(self._wanted):
            self._note_held(epoch)

    def remind(self, now_s: float) -> str | None:
        """Return the alarm, if it is time to tell it again."""
        if not self._is_preempted or now_s < self._told_at_s + ALARM_S:
            return None
        self._told_at_s = now_s
        return self.alarm

    # ------------------------------------------------------------ what is published

    def step(self, now_s: float) -> Plan | None:
        """Return the plan to publish now, with its epoch; None if there is nothing to do."""
        if self._is_settling and (now_s >= self._settle_at_s or self._topic is not None):
            self._is_settling = False
        if self._is_preempted and now_s >= self._contested_at_s + CALM_S:
            self._calm_down()
        if not self._is_online or self._is_settling:
            return None
        target = self._target()
        if not self._is_due and target == self._wanted:
            return None
        if self._is_preempted and not self._is_new and now_s < self._asserted_at_s + REASSERT_S:
            return None
        self._asserted_at_s = now_s
        return target

    def published(self, plan: Plan) -> None:
        """Note that the plan `step` returned was recorded and handed to the transport."""
        self._highest = max(self._highest, plan.epoch) if self._wanted.epoch else plan.epoch
        self._wanted = self._topic = plan
        self._echoes.append(plan)
        self._is_due = self._is_new = False

    def repeated(self) -> None:
        """Note that the wanted plan was published once more, without being asked for by `step`."""
        self._echoes.append(self._wanted)

    def _target(self) -> Plan:
        seen, wanted = self._topic, self._wanted
        is_same = seen is not None and same_decision(seen, wanted) and self._is_near(seen.epoch)
        if seen is not None and is_same and seen.epoch >= max(self._highest, 1):
            return replace(wanted, epoch=seen.epoch)
        return wanted if wanted.epoch else replace(wanted, epoch=next_epoch(self._highest))

    def _is_near(self, epoch: int) -> bool:
        """Whether boards that hold the wanted plan would obey the number after this one."""
        return epoch < (self._wanted.epoch or self._highest) + EPOCH_STEP

    def _is_echo(self, plan: Plan) -> bool:
        """Whether a plan is one that was published from here and has not come back yet: older ones are replays."""
        if plan not in self._echoes:
            return plan == self._wanted
        while self._echoes.popleft() != plan:
            pass
        return True

    def _note_held(self, epoch: int) -> None:
        """Number anew from 1 if boards that hold this epoch, of another plan, would refuse the wanted one."""
        if self._wanted.epoch > epoch + EPOCH_STEP:
            self._wanted, self._highest = replace(self._wanted, epoch=0), 0
            self._is_due = self._is_new = True

    def _calm_down(self) -> None:
        self._is_preempted = False
        self._reassertions, self._contested_at_s = 0, float("-inf")

    def _contested(self, now_s: float, what: str, retained: bool) -> str | None:
        self._is_due = True
        if retained or self.standing not in (Standing.LEADING, Standing.PREEMPTED):
            return None  # What lay there before, or while away, is history and no contradiction.
        if now_s - self._contested_at_s > CALM_S:
            self._reassertions = 0
        self._contested_at_s, self._rival = now_s, what
        self._reassertions += 1
        if self._is_preempted:
            return None
        if self._reassertions <= MAX_REASSERTIONS:
            return f"{what} replaced this one, which is published again" if self._reassertions == 1 else None
        self._is_preempted, self._told_at_s = True, now_s
        return self.alarm
