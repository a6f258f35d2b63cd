"""Intervals, ranks and spreads of reports."""

from __future__ import annotations

import numpy as np
import pytest

from model_zoo.report.measures import Spread, auroc, paired_interval


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, 80).astype(float)
    scores[3] = -np.inf
    positive = generator.random(80) < 0.3
    above = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(above))


def test_auroc_needs_both_kinds() -> None:
    assert auroc(np.array([1.0, 2.0]), np.array([True, True])) is None
    assert auroc(np.array([1.0, 2.0]), np.array([False, False])) is None


def test_the_interval_of_paired_differences_holds_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        found = paired_interval(generator.choice([-1.0, 0.0, 1.0], size=2000, p=[0.01, 0.97, 0.02]))
        held += found.low <= 0.01 <= found.high
    assert 0.92 <= held / 400 <= 0.98
    assert paired_interval(np.zeros(10)) == paired_interval(np.zeros(20))


def test_spread_is_mean_and_sample_deviation() -> None:
    spread = Spread.of([1.0, 2.0, 4.0])
    assert spread.mean == pytest.approx(7 / 3)
    assert spread.deviation == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert Spread.of([3.0]).deviation is None


def test_one_more_seed_lies_where_student_says() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        *three, one_more = generator.normal(5.0, 2.0, 4)
        interval = Spread.of(three).of_one_more()
        assert interval is not None
        held += interval.low <= one_more <= interval.high
    assert 0.93 <= held / 1000 <= 0.97
    assert Spread.of([1.0]).of_one_more() is None
    wide, narrow = Spread.of([0.0, 1.0] * 20).of_one_more(), Spread.of([0.0, 1.0]).of_one_more()
    assert wide is not None
    assert narrow is not None
    assert wide.high - wide.low < narrow.high - narrow.low
