"""Paths of threshold vectors, from safe to risky."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from audit_samples import COSTS, LOST, stream

from distree.criteria import NEVER
from distree.exits_taken import exits_taken
from orchestrator.tuning.samples import AuditedInput, losses_of
from orchestrator.tuning.tuners.path import loss_curve, safe_to_risky

AUDITS = stream(900)


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
    ignorant = AuditedInput(scores=(-math.inf, -math.inf), predictions=(0, 0, 0))
    assert safe_to_risky([ignorant] * 5, COSTS) == ((NEVER, NEVER),)
