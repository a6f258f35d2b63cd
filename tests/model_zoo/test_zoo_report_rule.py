"""The argument for the margin of the report's rule, on made-up exits, where the true drop can be known."""

from __future__ import annotations

import numpy as np

from distree.exits_taken import exits_taken
from model_zoo.costs import Costs
from model_zoo.evaluation import ExitScores
from model_zoo.report.results import DEVIATIONS, MAX_DROP
from model_zoo.thresholds import choose_thresholds

COSTS = Costs(macs=(10, 18, 27), feature_bytes=(0, 0, 0), strict=25, loose=27)


def made(count: int, generator: np.random.Generator) -> ExitScores:
    """Exits of about 78, 83 and 87 % whose score is the true log-odds of being right."""
    ability = generator.normal(0, 2.2, count)
    shift, luck = generator.normal(0, 1, count), generator.logistic(0, 1, count)
    scores, right = [], []
    for k in range(3):
        shift = 0.93 * shift + 0.37 * generator.normal(0, 1, count)
        luck = np.where(generator.random(count) < 0.3, generator.logistic(0, 1, count), luck)
        scores.append(2.3 + 0.5 * k + ability + shift)
        right.append(luck < scores[-1])
    correct = np.stack(right, axis=1)
    return ExitScores(np.stack(scores, axis=1), np.zeros(correct.shape, np.int64), correct)


def true_drop(everything: ExitScores, deviations: float) -> float:
    """Mean true drop, over draws of 5,000 validation inputs, of what the rule chooses on them."""
    last, rows = everything.correct[:, -1].astype(float), np.arange(len(everything.scores))
    drops = []
    for seed in range(25):
        choice = choose_thresholds(made(5000, np.random.default_rng(seed)), COSTS, MAX_DROP, deviations)
        taken = exits_taken(everything.scores, choice.thresholds)
        drops.append(float((last - everything.correct[rows, taken]).mean()))
    return float(np.mean(drops))


def test_the_margin_makes_up_for_the_search() -> None:
    everything = made(200_000, np.random.default_rng(1000))
    accuracy = everything.correct.mean(axis=0)
    assert 0.74 < accuracy[0] < accuracy[1] < accuracy[2] < 0.9
    without, with_margin = true_drop(everything, 0.0), true_drop(everything, DEVIATIONS)
    assert without > 1.3 * MAX_DROP, "a search without a margin promises more than it keeps"
    assert 0.6 * MAX_DROP < with_margin < 1.25 * MAX_DROP
