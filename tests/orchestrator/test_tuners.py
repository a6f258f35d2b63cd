"""What every tuner promises, and what the certified one claims: paths, certificates, alarms, restarts."""

from __future__ import annotations

import doctest
import importlib
import itertools
import json
import math
import pkgutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import orchestrator.tuners
from distree.policies import NEVER
from orchestrator.tuners import Audit, Bandit, Certified, Static
from orchestrator.tuners.audits import exits_taken, losses_of
from orchestrator.tuners.betting import Alarm, Certificate
from orchestrator.tuners.path import safe_to_risky

COSTS = (1.0, 2.0, 4.0)
LOST = Audit(lost=True)


def stream(count: int, seed: int = 0, confusion: float = 0.02) -> list[Audit]:
    """Audits of a network whose exits are surer when they are right; `confusion`: how often a sure exit is wrong."""
    random = np.random.default_rng(seed)
    audits = []
    for _ in range(count):
        ease, last = random.random(), int(random.integers(10))
        scores, predictions = [], []
        for skill in (0.6, 0.8):
            sure = ease < skill
            scores.append(float(np.clip((0.75 if sure else 0.35) + 0.2 * random.standard_normal(), 0, 1)))
            wrong = random.random() < (confusion if sure else 0.5)
            predictions.append((last + 1) % 10 if wrong else last)
        audits.append(Audit(scores=tuple(scores), predictions=(*predictions, last)))
    return audits


def made(name: str):
    match name:
        case "static":
            return Static((0.9, 0.8))
        case "certified":
            return Certified(COSTS, epsilon=0.05, delta=0.05, path_audits=100)
    levels = [(0.2, 0.5, 0.8, NEVER)] * 2
    return Bandit(COSTS, levels, price=0.2, seed=3)


NAMES = ("static", "certified", "bandit")
AUDITS = stream(900)


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(orchestrator.tuners.__path__)])
def test_examples_in_documentation(module: str) -> None:
    found = importlib.import_module(f"orchestrator.tuners.{module}")
    assert doctest.testmod(found).failed == 0


# ---------------------------------------------------------------- every tuner


@pytest.mark.parametrize("name", NAMES)
def test_thresholds_are_for_all_exits_but_the_last_at_any_time(name: str) -> None:
    tuner = made(name)
    assert tuner.name == name
    for audit in [*AUDITS[:300], LOST, *AUDITS[300:400]]:
        assert len(tuner.thresholds) == len(COSTS) - 1
        assert not any(math.isnan(threshold) for threshold in tuner.thresholds)
        tuner.observe(audit)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("at", [0, 30, 100, 101, 650])
def test_a_restored_tuner_goes_on_as_if_nothing_had_been(name: str, at: int) -> None:
    whole, first = made(name), made(name)
    for audit in AUDITS[:at]:
        whole.observe(audit)
        first.observe(audit)
    second = made(name)
    second.restore(json.loads(json.dumps(first.snapshot())))
    assert json.dumps(second.snapshot()) == json.dumps(first.snapshot())
    for audit in AUDITS[at:]:
        whole.observe(audit)
        second.observe(audit)
        assert whole.thresholds == second.thresholds
    assert json.dumps(second.snapshot()) == json.dumps(whole.snapshot())


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_bounded(name: str) -> None:
    tuner = made(name)
    for audit in stream(3000):
        tuner.observe(audit)
    size = len(json.dumps(tuner.snapshot()))
    for audit in stream(3000, seed=1):
        tuner.observe(audit)
    assert len(json.dumps(tuner.snapshot())) < 1.2 * size


# ---------------------------------------------------------------- audits and paths


def test_loss_is_disagreement_with_the_last_exit_or_with_a_truth_that_the_last_exit_knew() -> None:
    guesses = (1, 2, 2)
    assert Audit(scores=(0.5, 0.5), predictions=guesses).losses() == (1.0, 0.0, 0.0)
    assert Audit(scores=(0.5, 0.5), predictions=guesses, label=2).losses() == (1.0, 0.0, 0.0)
    assert Audit(scores=(0.5, 0.5), predictions=guesses, label=1).losses() == (0.0, 0.0, 0.0)
    assert Audit(scores=(0.5, 0.5), predictions=guesses, label=7).losses() == (0.0, 0.0, 0.0)


def test_a_lost_audit_is_a_loss_wherever_somebody_could_leave_early() -> None:
    vectors = np.array([(NEVER, NEVER), (NEVER, 0.9), (0.1, 0.1)])
    assert losses_of(LOST, vectors).tolist() == [0.0, 1.0, 1.0]


vectors_of_two = st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0, NEVER])] * 2)


@given(
    scores=st.tuples(*[st.sampled_from([-math.inf, 0.0, 0.3, 0.6, 0.9])] * 2),
    predictions=st.tuples(*[st.integers(0, 2)] * 3),
    label=st.none() | st.integers(0, 2),
    vectors=st.lists(vectors_of_two, min_size=1, max_size=4),
)
def test_losses_of_many_vectors_are_those_of_each(scores, predictions, label, vectors) -> None:
    audit = Audit(scores=scores, predictions=predictions, label=label)
    expected = [audit.losses()[exits_taken(scores, vector)] for vector in vectors]
    assert losses_of(audit, np.array(vectors)).tolist() == expected


def test_a_path_lowers_one_threshold_a_step_and_ends_where_everybody_leaves_first() -> None:
    path = safe_to_risky([*AUDITS, LOST], COSTS)
    assert path[0] == (NEVER, NEVER)
    for before, after in itertools.pairwise(path):
        changed = [a < b for a, b in zip(after, before, strict=True)]
        assert sum(changed) == 1
        assert all(a <= b for a, b in zip(after, before, strict=True))
    assert path[-1][0] <= min(audit.scores[0] for audit in AUDITS)


def test_a_path_takes_safe_exits_before_risky_ones() -> None:
    vectors = np.array(safe_to_risky(AUDITS, COSTS))
    fresh = np.mean([losses_of(audit, vectors) for audit in stream(2000, seed=9)], axis=0)
    taken = [[exits_taken(audit.scores, tuple(v)) for audit in AUDITS] for v in vectors]
    cost = np.array([np.mean([COSTS[exit] for exit in of_vector]) for of_vector in taken])
    half = int((cost > cost.mean()).sum())
    assert fresh[half] < 0.5 * fresh[-1]


def test_a_path_of_nothing() -> None:
    assert safe_to_risky([], COSTS) == ((NEVER, NEVER),)
    assert safe_to_risky([LOST], COSTS) == ((NEVER, NEVER),)
    ignorant = Audit(scores=(-math.inf, -math.inf), predictions=(0, 0, 0))
    assert safe_to_risky([ignorant] * 5, COSTS) == ((NEVER, NEVER),)


# ---------------------------------------------------------------- betting


@pytest.mark.parametrize("rate", [0.01, 0.012, 0.03])
def test_a_mean_loss_at_or_above_the_bound_is_seldom_certified(rate: float) -> None:
    """Hypotheses are independent here, so one certificate holds 4,000 experiments of 3,000 losses each."""
    random, runs, delta = np.random.default_rng(1), 4000, 0.05
    certificate = Certificate(runs, bound=0.01)
    for _ in range(3000):
        certificate.observe((random.random(runs) < rate).astype(float))
    wrong = int(certificate.passed(delta).sum())
    # Three standard deviations above what is promised.
    assert wrong <= delta * runs + 3 * math.sqrt(delta * (1 - delta) * runs)


@pytest.mark.parametrize(("rate", "most"), [(0.0, 420), (0.002, 720), (0.005, 2300)])
def test_a_small_mean_loss_is_certified_soon(rate: float, most: int) -> None:
    random, runs = np.random.default_rng(2), 400
    certificate = Certificate(runs, bound=0.01)
    for _ in range(most):
        certificate.observe((random.random(runs) < rate).astype(float))
    assert certificate.passed(0.05).mean() > 0.5


def test_an_alarm_is_rare_at_the_bound_and_comes_soon_above_it() -> None:
    random, runs, height = np.random.default_rng(3), 400, math.log(1000.0)
    calm, loud = Alarm(runs, bound=0.01), Alarm(runs, bound=0.01)
    early, heard = np.zeros(runs, bool), np.zeros(runs, bool)
    for _ in range(500):
        calm.observe((random.random(runs) < 0.01).astype(float))
        early |= calm.log_level() >= height
        loud.observe((random.random(runs) < 0.05).astype(float))
        heard |= loud.log_level() >= height
    assert early.mean() <= 0.5
    assert heard.mean() >= 0.9


def test_an_alarm_knows_about_when_things_changed() -> None:
    alarm = Alarm(1, bound=0.01)
    for _ in range(1000):
        alarm.observe(np.array([0.0]))
    assert alarm.since(0) == 1
    for _ in range(40):
        alarm.observe(np.array([1.0]))
    assert 40 <= alarm.since(0) <= 41


@pytest.mark.parametrize("bound", [0.0, 1.0, -1.0, math.nan])
def test_a_bound_that_makes_no_sense(bound: float) -> None:
    with pytest.raises(ValueError, match="bound"):
        Certificate(1, bound)
    with pytest.raises(ValueError, match="bound"):
        Alarm(1, bound)


# ---------------------------------------------------------------- certified


def test_what_is_certified_is_safe_and_of_use() -> None:
    tuner = Certified(COSTS, epsilon=0.05, delta=0.05, path_audits=200)
    for audit in stream(3000, seed=5):
        tuner.observe(audit)
    assert (tuner.trial, tuner.alarms) == (1, 0)
    assert tuner.certified[-1] == tuner.thresholds
    fresh = stream(4000, seed=6)
    losses = np.mean([losses_of(audit, np.array(tuner.certified)) for audit in fresh], axis=0)
    assert losses.max() < 0.05
    taken = [exits_taken(audit.scores, tuner.thresholds) for audit in fresh]
    assert np.mean([COSTS[exit] for exit in taken]) < 0.8 * COSTS[-1]


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
    assert (tuner.trial, tuner.certified) == (2, ((NEVER, NEVER),))
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
    stored = made("certified")
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


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_what_is_certified_only_grows_within_a_trial(seed: int) -> None:
    tuner, before = Certified(COSTS, epsilon=0.1, delta=0.1, path_audits=50), 1
    for audit in stream(300, seed=seed):
        trial = tuner.trial
        tuner.observe(audit)
        if tuner.trial == trial:
            assert len(tuner.certified) >= before
        before = len(tuner.certified)
