"""What an agent does with a message on the topic of a plan: obey it, or say why not."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from device_agent.pipeline import AgentPipeline
from device_agent.plan_seals import PlanSeals
from device_agent.reporting import BURST, Reporting
from distree.errors import RemoteProtocolError
from distree.formatting import thresholds_text, why_text
from distree.log_throttle import LogThrottle
from distree.messages.codec import decode
from distree.messages.events import EventKind
from distree.messages.plan import Plan, same_decision
from distree.node import Effect
from distree.transport.base import Received

log = logging.getLogger(__name__)

REFUSED_PLAN_INTERVAL_S = 60.0
"""Shortest time between two events about refused plans of a pipeline, in seconds."""


class PlanHandler:
    """Takes what comes on the topic of a pipeline's plan, an empty payload included.

    With `seals` it obeys only plans that these accept.
    """

    def __init__(self, pipeline: AgentPipeline, reporting: Reporting, seals: PlanSeals | None = None) -> None:
        self._node = pipeline.node
        self._name = pipeline.config.name
        self._reporting = reporting
        self._seals = seals
        self._throttle = LogThrottle(interval_s=REFUSED_PLAN_INTERVAL_S)
        self._told = LogThrottle(burst=BURST)

    def take(self, message: Received) -> list[Effect]:
        """Put a plan in force and return what follows; RemoteProtocolError for one that is not obeyed.

        An empty payload says that there is no plan any more, and the bundle's own thresholds hold again.
        """
        before = self._node.plan
        try:
            effects = self._take(message)
        except RemoteProtocolError as error:
            held = f"plan {before.epoch}" if before.epoch else "the bundle's own thresholds"
            if self._throttle.unsaid_before(time.monotonic(), self._name) is not None:
                what = f"refused a plan: {error.reason}: {error.detail}; {held} still in force"
                self._reporting.tell(EventKind.PLAN, what, error.remedy, pipeline=self._name)
            # By the next report whoever published it sees that it is not followed.
            self._reporting.report_soon()
            raise
        plan = self._node.plan
        if plan != before:
            is_other = plan.epoch != before.epoch or not same_decision(plan, before)
            self._log(logging.INFO if is_other else logging.DEBUG, before, plan)
            # The acknowledgement of a plan is its hash in the next report; it need not wait.
            self._reporting.report_soon()
        return effects

    def _log(self, level: int, before: Plan, plan: Plan) -> None:
        """Log which plan is in force: whoever may publish plans may do so thousands of times a second."""
        text = _plan_text(plan)
        line = self._told.line(time.monotonic(), text, f"{before.epoch} {text}")
        if line is not None:
            log.log(level, "%s: %s", self._name, line)

    def _take(self, message: Received) -> list[Effect]:
        seal = None if self._seals is None else self._seals.check(message.topic, message.payload)
        if not message.payload:
            return self._node.withdraw_plan(message.token)
        plan = replace(decode(Plan, message.payload), signed=None)
        effects = self._node.receive(time.monotonic(), plan, message.token)
        if self._seals is not None and seal is not None:
            self._seals.obeyed(seal)
        return effects


def _plan_text(plan: Plan) -> str:
    which = f"plan {plan.epoch}" if plan.epoch else "plan withdrawn: the bundle's own thresholds are"
    why = why_text(plan.reason, plan.author)
    return f"{which} in force: {plan.criterion} {thresholds_text(plan.thresholds)}{why and f' ({why})'}"
