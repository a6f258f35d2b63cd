"""What plans say of why they were made, and by whom."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from orchestrator_samples import plan

from distree.messages.codec import decode, encode
from distree.messages.plan import Plan
from distree.strict_yaml import Share
from orchestrator import plan_reasons
from orchestrator.tuning.goal import Goal

ACCURACY = Goal(accuracy_drop=Share(0.02))
LIMITED = replace(ACCURACY, latency_p95_ms=40.0)
UNPROVED = replace(ACCURACY, tuner="bandit")


@pytest.mark.parametrize(
    ("goal", "alarmed", "thresholds", "reason"),
    [
        (ACCURACY, False, (0.5, 0.5), plan_reasons.PROVED),
        (LIMITED, False, (0.5, 0.5), plan_reasons.GOAL),
        (LIMITED, True, (0.5, 0.5), plan_reasons.DRIFT),
        # Thresholds for missing branches alone.
        (LIMITED, False, (0.9, 0.8), plan_reasons.PROVED),
        (UNPROVED, False, (0.5, 0.5), plan_reasons.TRIED),
    ],
)
def test_plans_say_why_they_were_made(goal, alarmed, thresholds, reason):
    wanted = plan(thresholds=thresholds)
    assert plan_reasons.tuned_reason(plan(), wanted, goal=goal, alarmed=alarmed) == reason


def test_what_they_say_fits_into_a_plan():
    assert re.fullmatch(r"\S+@\S+", plan_reasons.whoever_asks())
    reasons = [value for name, value in vars(plan_reasons).items() if name.isupper() and isinstance(value, str)]
    assert all(decode(Plan, encode(replace(plan(epoch=1), reason=each))).reason == each for each in reasons)
