"""What certificates and alarms promise."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import often

from orchestrator.tuning.tuners import betting
from orchestrator.tuning.tuners.betting import Alarm, Certificate


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


@settings(max_examples=often(30))
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
    page = Path(__file__).parents[4] / "docs" / "explanation" / "guarantee.md"
    said = re.search(r"at 1 % are proved by (\d+) audits, and at 0\.5 % by (\d+)", page.read_text(encoding="utf-8"))
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
