"""What every tuner promises, and what the certified one claims: paths, certificates, alarms, restarts."""

from __future__ import annotations

import doctest
import importlib
import itertools
import json
import math
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
from audit_samples import COSTS, LOST, stream
from hypothesis import given, settings
from hypothesis import strategies as st

import orchestrator.tuning.tuners
from distree.criteria import NEVER
from orchestrator.tuning.tuners import Audit, Bandit, Certified, Static, betting
from orchestrator.tuning.tuners.audits import exits_taken, losses_of
from orchestrator.tuning.tuners.betting import Alarm, Certificate
from orchestrator.tuning.tuners.path import loss_curve, safe_to_risky


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


@pytest.mark.parametrize("module", [m.name for m in pkgutil.iter_modules(orchestrator.tuning.tuners.__path__)])
def test_examples_in_documentation(module: str) -> None:
    found = importlib.import_module(f"orchestrator.tuning.tuners.{module}")
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
    taken = exits_taken([audit.scores for audit in AUDITS], vectors[:, None])
    cost = np.asarray(COSTS)[taken].mean(axis=1)
    half = int((cost > cost.mean()).sum())
    assert fresh[half] < 0.5 * fresh[-1]


@pytest.mark.parametrize("lost", [0, 1, 5, 200])
@pytest.mark.parametrize("steepness", [0.5, 3.0, 50.0])
def test_the_chance_of_a_loss_never_rises_with_the_score(lost: int, steepness: float) -> None:
    random = np.random.default_rng(lost)
    scores = np.round(random.random(200), 2)
    weights = np.exp(-steepness * scores)
    losses = np.zeros(200)
    losses[random.choice(200, lost, replace=False, p=weights / weights.sum())] = 1.0
    curve = loss_curve(scores, losses)
    order = np.argsort(-scores, kind="stable")
    assert ((curve >= 0) & (curve <= 1)).all()
    assert (np.diff(curve[order]) >= 0).all()
    assert curve.sum() == pytest.approx(lost, abs=1.0)


def test_the_curve_of_many_audits_is_near_the_truth() -> None:
    random = np.random.default_rng(1)
    scores = random.random(20_000)
    truth = 0.4 * (1 - scores) ** 2
    curve = loss_curve(scores, (random.random(20_000) < truth).astype(float))
    surest = scores > 0.05
    assert np.abs(curve - truth)[surest].max() < 0.02
    assert np.abs(curve - truth).mean() < 0.01


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
    certificate = Certificate(runs, bound=0.01, delta=delta)
    for _ in range(3000):
        certificate.observe((random.random(runs) < rate).astype(float))
    wrong = int(certificate.passed.sum())
    # Three standard deviations above what is promised.
    assert wrong <= delta * runs + 3 * math.sqrt(delta * (1 - delta) * runs)


@pytest.mark.parametrize(("rate", "most"), [(0.0, 420), (0.002, 720), (0.005, 2300)])
def test_a_small_mean_loss_is_certified_soon(rate: float, most: int) -> None:
    random, runs = np.random.default_rng(2), 400
    certificate = Certificate(runs, bound=0.01, delta=0.05)
    for _ in range(most):
        certificate.observe((random.random(runs) < rate).astype(float))
    assert certificate.passed.mean() > 0.5


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rate=st.sampled_from([0.0, 0.01, 0.03, 0.1]),
    bound=st.sampled_from([0.02, 0.05, 0.3]),
    delta=st.sampled_from([0.01, 0.1]),
)
def test_wealth_is_what_bets_placed_one_by_one_come_to(seed, rate, bound, delta) -> None:
    random, certificate = np.random.default_rng(seed), Certificate(3, bound, delta)
    hoped, shares = betting._HOPED, betting._SHARES
    bets = (1 - hoped) / (1 - bound)
    parts, ever = np.tile(shares, (3, 1)), np.zeros(3, bool)
    for count in range(300):
        losses = (random.random(3) < rate).astype(float)
        certificate.observe(losses)
        parts *= 1 + bets * (bound - losses[:, None])
        ever |= parts.sum(axis=1) >= 1 / delta
        assert certificate.passed.tolist() == ever.tolist()
        if count % 50 == 0:
            assert np.exp(certificate.log_wealth()) == pytest.approx(parts.sum(axis=1))


@given(st.lists(st.floats(0, 1), max_size=60), st.sampled_from([0.02, 0.3]))
def test_of_losses_between_0_and_1_no_more_is_claimed_than_bets_win(losses, bound) -> None:
    certificate = Certificate(1, bound, delta=0.1)
    parts = betting._SHARES.copy()
    for loss in losses:
        certificate.observe(np.array([loss]))
        parts *= 1 + (1 - betting._HOPED) / (1 - bound) * (bound - loss)
    assert math.exp(certificate.log_wealth()[0]) <= parts.sum() * (1 + 1e-9)


def test_no_bettor_has_more_than_its_share() -> None:
    assert math.fsum(betting._SHARES) == pytest.approx(1.0)
    assert len(betting._SHARES) == len(betting._HOPED)
    # A bet above 1 / (1 − bound) could leave less than nothing.
    assert ((betting._HOPED > 0) & (betting._HOPED < 1)).all()


def test_the_page_on_the_guarantee_says_how_many_audits_without_a_loss_it_takes() -> None:
    page = Path(__file__).parents[3] / "docs" / "explanation" / "guarantee.md"
    said = re.search(r"at 1 % are proved by (\d+) more, at 0\.5 % by (\d+)", page.read_text(encoding="utf-8"))
    assert said is not None
    level = 0.05 * 6 / math.pi**2  # of the first trial
    assert [Certificate(1, bound, level).to_pass(0) for bound in (0.01, 0.005)] == [int(said[1]), int(said[2])]


@given(st.integers(0, 40), st.integers(0, 3))
def test_it_is_known_how_many_audits_are_missing(count, lost) -> None:
    certificate = Certificate(2, bound=0.1, delta=0.05)
    for k in range(count + lost):
        certificate.observe(np.array([0.0, float(k < lost)]))
    if certificate.passed[1]:
        return
    missing = certificate.to_pass(1)
    for _ in range(missing):
        assert not certificate.passed[1]
        certificate.observe(np.zeros(2))
    assert certificate.passed[1]


def test_an_alarm_is_rare_at_the_bound_and_comes_soon_above_it() -> None:
    random, runs, height = np.random.default_rng(3), 200, math.log(1000.0)
    early = heard = 0
    for _ in range(runs):
        calm, loud = Alarm(bound=0.01), Alarm(bound=0.01)
        was_early = was_heard = False
        for draw in random.random(500):
            calm.observe(float(draw < 0.01))
            was_early |= calm.reached(height)
            loud.observe(float(draw < 0.05))
            was_heard |= loud.reached(height)
        early, heard = early + was_early, heard + was_heard
    assert early <= 0.5 * runs
    assert heard >= 0.9 * runs


@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.4, 1.0]), max_size=80), st.floats(0.1, 12.0))
def test_an_alarm_is_the_mean_of_its_statistics(losses, log_height) -> None:
    alarm, statistics = Alarm(bound=0.02), np.ones(len(betting._ALARM_RATES))
    for loss in losses:
        alarm.observe(loss)
        statistics = np.maximum(statistics, 1.0) * (1 + np.array(betting._ALARM_RATES) * (loss - 0.02))
    assert math.exp(alarm.log_level()) == pytest.approx(statistics.mean())
    assert alarm.reached(log_height) == (alarm.log_level() >= log_height)


def test_an_alarm_knows_about_when_things_changed() -> None:
    alarm = Alarm(bound=0.01)
    for _ in range(1000):
        alarm.observe(0.0)
    assert alarm.since() == 1
    for _ in range(40):
        alarm.observe(1.0)
    assert 40 <= alarm.since() <= 41


@pytest.mark.parametrize("bound", [0.0, 1.0, -1.0, math.nan])
def test_a_bound_that_makes_no_sense(bound: float) -> None:
    with pytest.raises(ValueError, match="bound"):
        Certificate(1, bound)
    with pytest.raises(ValueError, match="bound"):
        Alarm(bound)


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


def test_thresholds_that_cost_the_bound_itself_are_seldom_certified_in_any_trial() -> None:
    """Every score is the same, so that there is one vector to try, with a loss of the bound at every moment."""
    random, runs, delta, wrong = np.random.default_rng(4), 150, 0.1, 0
    for _ in range(runs):
        tuner = Certified((1.0, 2.0), epsilon=0.1, delta=delta, path_audits=20, alarm_height=100.0)
        claimed = False
        for draw in random.random(300):
            tuner.observe(Audit(scores=(0.9,), predictions=(int(draw < 0.1), 0)))
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
