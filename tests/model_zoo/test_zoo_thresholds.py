from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distree.errors import ConfigError
from distree.exits_taken import exits_taken
from model_zoo.evaluation import Costs, ExitScores
from model_zoo.thresholds import choose_thresholds

COSTS = Costs(macs=(1, 4, 10), feature_bytes=(0, 5, 10), strict=9, loose=10)


def scored(scores, correct) -> ExitScores:
    scores, correct = np.asarray(scores, float), np.asarray(correct, bool)
    return ExitScores(scores, np.zeros(scores.shape, np.int64), correct)


def noisy(seed: int, inputs: int, exits: int) -> ExitScores:
    """Scores that tell something of correctness, deeper exits being right more often."""
    generator = np.random.default_rng(seed)
    ease = generator.random((inputs, 1))
    correct = generator.random((inputs, exits)) < 0.6 + 0.35 * ease + 0.04 * np.arange(exits)
    return scored(np.clip(ease + generator.normal(0, 0.15, (inputs, exits)), 0, 1), correct)


def drops_of(given: ExitScores, thresholds) -> np.ndarray:
    """Per input: 1 where leaving early lost a right answer, -1 where it won one."""
    taken = exits_taken(given.scores, thresholds)
    return given.correct[:, -1].astype(float) - given.correct[np.arange(len(taken)), taken]


def test_all_leave_at_once_where_the_first_exit_is_as_good() -> None:
    choice = choose_thresholds(scored([[0.2, 0.3, 0.4], [0.9, 0.9, 0.9]], np.ones((2, 3))), COSTS)
    assert choice.macs_per_input == 1
    assert choice.drop == 0


def test_nobody_leaves_early_where_early_exits_are_never_right() -> None:
    given = scored([[0.2, 0.3, 0.4], [0.9, 0.9, 0.9]], [[0, 0, 1], [0, 0, 1]])
    choice = choose_thresholds(given, COSTS)
    assert choice.macs_per_input == 10
    assert all(np.isfinite(choice.thresholds))
    assert exits_taken(given.scores, choice.thresholds).tolist() == [2, 2]


def test_the_sure_leave_where_scores_tell_right_from_wrong() -> None:
    given = scored([[0.9, 0.9, 0.9], [0.3, 0.8, 0.9], [0.2, 0.1, 0.5]], [[1, 1, 1], [0, 1, 1], [0, 0, 1]])
    choice = choose_thresholds(given, COSTS)
    assert exits_taken(given.scores, choice.thresholds).tolist() == [0, 1, 2]
    assert choice.macs_per_input == pytest.approx(5.0)


@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    max_drop=st.sampled_from([0.0, 0.005, 0.05]),
    deviations=st.sampled_from([0.0, 2.0]),
)
def test_the_bound_on_the_drop_is_kept(seed: int, max_drop: float, deviations: float) -> None:
    given = noisy(seed, 300, 3)
    choice = choose_thresholds(given, COSTS, max_drop, deviations)
    drops = drops_of(given, choice.thresholds)
    assert choice.drop == pytest.approx(drops.mean())
    assert choice.drop_bound == pytest.approx(drops.mean() + deviations * drops.std() / 300**0.5)
    assert choice.drop_bound <= max_drop + 1e-9


def test_nothing_cheaper_on_few_inputs_was_missed() -> None:
    given = noisy(7, 60, 3)  # fewer inputs than the grid has levels: the grid is exhaustive
    choice = choose_thresholds(given, COSTS, 0.02, 0.0)
    candidates = itertools.product(*([*given.scores[:, k], 9.0] for k in range(2)))
    allowed = [t for t in candidates if drops_of(given, t).mean() <= 0.02 + 1e-9]
    cheapest = min(np.asarray(COSTS.macs)[exits_taken(given.scores, t)].mean() for t in allowed)
    assert choice.macs_per_input == pytest.approx(cheapest)


def test_more_allowed_never_costs_more_and_more_certainty_never_less() -> None:
    given = noisy(3, 200, 3)
    by_drop = [choose_thresholds(given, COSTS, drop).macs_per_input for drop in (0.0, 0.005, 0.02, 0.1)]
    assert by_drop == sorted(by_drop, reverse=True)
    by_certainty = [choose_thresholds(given, COSTS, 0.02, z).macs_per_input for z in (0.0, 1.0, 2.0, 4.0)]
    assert by_certainty == sorted(by_certainty)


def test_the_promise_holds_on_inputs_not_seen() -> None:
    """Chosen on 5,000, judged on 20,000 others, twenty times over: the promise is kept nearly always."""
    broken = 0
    for seed in range(20):
        both = noisy(seed, 25_000, 2)
        seen = ExitScores(both.scores[:5000], both.classes[:5000], both.correct[:5000])
        unseen = ExitScores(both.scores[5000:], both.classes[5000:], both.correct[5000:])
        choice = choose_thresholds(seen, Costs((1, 4), (0, 5), 4, 5), 0.01)
        broken += drops_of(unseen, choice.thresholds).mean() > 0.01
    assert broken <= 2


def test_two_and_four_exits_work() -> None:
    for exits in (2, 4):
        costs = Costs(tuple(range(1, exits + 1)), tuple(range(exits)), exits, exits)
        choice = choose_thresholds(noisy(1, 200, exits), costs, 0.01)
        assert len(choice.thresholds) == exits - 1
        assert choice.drop_bound <= 0.01 + 1e-9


def test_scores_that_are_not_finite_never_leave() -> None:
    given = scored([[-np.inf, -np.inf, -np.inf]] * 4, [[0, 0, 1]] * 4)
    choice = choose_thresholds(given, COSTS)
    assert exits_taken(given.scores, choice.thresholds).tolist() == [2] * 4


def test_an_exit_is_taken_at_its_threshold_not_only_above() -> None:
    assert exits_taken(np.array([[0.5, 0.9, 0.1], [0.49, 0.2, 0.1]]), (0.5, 0.9)).tolist() == [0, 2]


def one_by_one(given: ExitScores, grids, max_drop: float, deviations: float) -> float:
    """The least mean cost of the allowed vectors, each judged by itself."""
    costs = np.asarray(COSTS.macs)
    allowed = []
    for thresholds in itertools.product(*grids):
        drops = drops_of(given, thresholds)
        if drops.mean() + deviations * drops.std() / len(drops) ** 0.5 <= max_drop + 1e-12:
            allowed.append(costs[exits_taken(given.scores, thresholds)].mean())
    return min(allowed)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    levels=st.integers(1, 5),
    low=st.sampled_from([-3, 0, 1]),
    max_drop=st.sampled_from([0.0, 0.02, 0.1]),
    deviations=st.sampled_from([0.0, 1.0]),
)
def test_judging_all_vectors_at_once_is_judging_each(seed, levels, low, max_drop, deviations) -> None:
    """Scores as those of patience or of feature difference: few values, negative ones among them, and -inf."""
    generator = np.random.default_rng(seed)
    whole = noisy(seed, 40, 3)
    scores = np.where(generator.random((40, 3)) < 0.1, -np.inf, low + generator.integers(0, levels, (40, 3)))
    given = scored(scores, whole.correct)
    choice = choose_thresholds(given, COSTS, max_drop, deviations)
    grid = [*range(low, low + levels), low + 99]
    assert choice.macs_per_input == pytest.approx(one_by_one(given, [grid, grid], max_drop, deviations))
    taken = exits_taken(given.scores, choice.thresholds)
    assert choice.macs_per_input == pytest.approx(np.asarray(COSTS.macs)[taken].mean())
    assert choice.drop == pytest.approx(drops_of(given, choice.thresholds).mean())


def test_fixed_thresholds_stay() -> None:
    given = noisy(5, 300, 3)
    free = choose_thresholds(given, COSTS, 0.05)
    held = choose_thresholds(given, COSTS, 0.05, fixed={0: 0.97})
    assert held.thresholds[0] == 0.97
    assert held.drop_bound <= 0.05 + 1e-9
    assert free.macs_per_input <= held.macs_per_input
    assert choose_thresholds(given, COSTS, 0.05, fixed=dict(enumerate(free.thresholds))).drop == free.drop


def test_fixed_thresholds_that_break_the_promise_are_told() -> None:
    given = scored([[0.9, 0.9, 0.9]] * 9, [[0, 1, 1]] * 9)
    with pytest.raises(ConfigError, match="cost more accuracy than is allowed"):
        choose_thresholds(given, COSTS, fixed={0: 0.5})


def test_more_exits_than_can_be_searched_are_told() -> None:
    exits = 18
    costs = Costs(tuple(range(1, exits + 1)), tuple(range(exits)), exits, exits)
    with pytest.raises(ConfigError, match="17 are too many to search"):
        choose_thresholds(noisy(1, 20, exits), costs)
