"""What the certified tuner claims: certificates, alarms, trials."""

from __future__ import annotations

import math

import numpy as np
import pytest
from audit_samples import COSTS, LOST, stream
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import often

from distree.criteria import NEVER
from distree.exits_taken import exits_taken
from orchestrator.tuning.samples import AuditedInput, losses_of
from orchestrator.tuning.tuners import Certified
from orchestrator.tuning.tuners.path import safe_to_risky

AUDITS = stream(900)


def test_what_is_certified_is_safe_and_of_use() -> None:
    tuner = Certified(COSTS, epsilon=0.05, delta=0.05, path_audits=200)
    for audit in stream(3000, seed=5):
        tuner.observe(audit)
    assert (tuner.trial, tuner.alarms) == (1, 0)
    assert tuner.choices[-1] == tuner.thresholds
    fresh = stream(4000, seed=6)
    losses = np.mean([losses_of(audit, np.array(tuner.choices)) for audit in fresh], axis=0)
    assert losses.max() < 0.05
    taken = [exits_taken(audit.scores, tuner.thresholds) for audit in fresh]
    assert np.mean([COSTS[exit] for exit in taken]) < 0.8 * COSTS[-1]


def test_thresholds_that_cost_the_bound_itself_are_seldom_certified_in_any_trial() -> None:
    """Every score is the same, so that there is one vector to try, with a loss of the bound at every moment."""
    random, runs, delta, wrong = np.random.default_rng(4), 150, 0.1, 0
    for _ in range(runs):
        tuner = Certified((1.0, 2.0), epsilon=0.1, delta=delta, path_audits=20, alarm_height=100.0)
        claimed = False
        for draw in random.random(300):
            tuner.observe(AuditedInput(scores=(0.9,), predictions=(int(draw < 0.1), 0)))
            claimed |= tuner.thresholds != (NEVER,)
        wrong += claimed
    assert 0 < wrong <= delta * runs + 3 * math.sqrt(delta * (1 - delta) * runs)


def test_nobody_leaves_early_before_audits_have_proved_it() -> None:
    tuner = Certified(COSTS, epsilon=0.05, delta=0.05, path_audits=200)
    assert tuner.gathering == 200
    for audit in AUDITS[:200]:
        assert tuner.thresholds == (NEVER, NEVER)
        tuner.observe(audit)
    assert (tuner.gathering, tuner.audits) == (0, 0)
    # 1 / 0.95 a win, so fewer audits than this cannot prove anything.
    for audit in AUDITS[200:250]:
        assert tuner.thresholds == (NEVER, NEVER)
        tuner.observe(audit)
    assert tuner.to_next() is not None


def test_a_shift_takes_every_certificate_away_and_a_new_trial_follows() -> None:
    tuner = Certified(COSTS, epsilon=0.05, delta=0.05, path_audits=200)
    for audit in stream(2000, seed=7):
        tuner.observe(audit)
    assert tuner.thresholds != (NEVER, NEVER)
    shifted = iter(stream(300, seed=8, confusion=0.5))
    while not tuner.alarms:
        tuner.observe(next(shifted))
    assert (tuner.trial, tuner.choices) == (2, ((NEVER, NEVER),))
    # The audits since the change are worth something for the new path.
    assert 0 < tuner.gathering < 200
    for audit in stream(6000, seed=9):
        tuner.observe(audit)
    assert tuner.thresholds != (NEVER, NEVER)


def test_lost_audits_certify_nothing() -> None:
    tuner = Certified(COSTS, epsilon=0.05, delta=0.05, path=safe_to_risky(AUDITS, COSTS))
    for k, audit in enumerate(stream(2000, seed=5)):
        tuner.observe(LOST if k % 10 == 0 else audit)
    assert tuner.thresholds == (NEVER, NEVER)


def test_later_trials_are_stricter_so_that_all_together_keep_the_promise() -> None:
    levels = []
    tuner = Certified(COSTS, epsilon=0.05, delta=0.05)
    for trial in range(1, 2000):
        tuner.trial = trial
        levels.append(tuner._level)
    assert sum(levels) < 0.05
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epsilon": 0.02}, "epsilon"),
        ({"delta": 0.01}, "delta"),
        ({"costs": (1.0, 2.0, 5.0)}, "costs"),
    ],
)
def test_a_certificate_of_another_goal_is_not_taken_over(change, named: str) -> None:
    stored = Certified(COSTS, epsilon=0.05, delta=0.05, path_audits=100)
    for audit in AUDITS:
        stored.observe(audit)
    usual = {"costs": COSTS, "epsilon": 0.05, "delta": 0.05}
    other = Certified(**{**usual, **change})
    with pytest.raises(ValueError, match=named):
        other.restore(stored.snapshot())
    assert other.thresholds == (NEVER, NEVER)


@pytest.mark.parametrize("costs", [(1.0,), (2.0, 1.0), (1.0, 1.0)])
def test_costs_that_do_not_grow(costs) -> None:
    with pytest.raises(ValueError, match="costs"):
        Certified(costs, epsilon=0.01, delta=0.05)


@settings(max_examples=often(20))
@given(st.integers(0, 10_000))
def test_what_is_certified_only_grows_within_a_trial(seed: int) -> None:
    tuner, before = Certified(COSTS, epsilon=0.1, delta=0.1, path_audits=50), 1
    for audit in stream(300, seed=seed):
        trial = tuner.trial
        tuner.observe(audit)
        if tuner.trial == trial:
            assert len(tuner.choices) >= before
        before = len(tuner.choices)
