"""The learned gate's fit."""

from __future__ import annotations

import numpy as np
import pytest

from distree.criteria import LEAST_SURE
from distree.criteria.base import CriterionParameters, ExitEvidence
from distree.criteria.gate import Gate
from model_zoo.evaluation import ExitLogits
from model_zoo.gate import FOLDS, cross_fitted_scores, fit_gate, gate_scores
from model_zoo.report.measures import auroc

CLASSES, EXITS = 4, 3


def made(count: int, seed: int) -> ExitLogits:
    """Three exits on noisy logits of the true class, the later the clearer."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    easy = generator.normal(1.5, 1.5, (count, 1))
    clear = np.eye(CLASSES)[labels]
    logits = [clear * (easy + k) + generator.normal(0, 1, (count, CLASSES)) for k in range(EXITS)]
    return ExitLogits(np.stack(logits, axis=1), labels)


def parameters(gate) -> CriterionParameters:
    return CriterionParameters(gate=tuple(tuple(float(value) for value in weights) for weights in gate))


def test_vectorised_scores_are_those_of_the_criterion() -> None:
    collected = made(300, 1)
    gate = fit_gate(collected)
    assert [len(weights) for weights in gate] == [CLASSES + 3, CLASSES + 4]
    criterion = Gate(parameters(gate))
    scores = gate_scores(collected.logits, gate)
    for row, logits in enumerate(collected.logits.tolist()):
        memory = ()
        for k in range(EXITS - 1):
            score = criterion.score(ExitEvidence(logits=logits[k], exit=k, memory=memory))
            memory = score.memory
            assert score.value == pytest.approx(scores[row, k], abs=1e-9)


def test_a_known_gate_is_recovered() -> None:
    """Whether an exit is as good is drawn from a known linear score; the fit must find that score."""
    generator = np.random.default_rng(2)
    count = 40_000
    logits = generator.normal(0, 1.5, (count, 2, CLASSES))
    odds = np.exp(logits[:, 0])
    softmax = odds / odds.sum(axis=1, keepdims=True)
    truth = 6 * softmax.max(axis=1) - 2 * softmax[:, 1] + softmax[:, 3] - 3.5
    as_good = generator.random(count) < 1 / (1 + np.exp(-truth))
    # The last exit is always right; the first one exactly where it is as good.
    first, labels = logits[:, 0].argmax(axis=1), logits[:, 1].argmax(axis=1)
    labels = np.where(as_good, first, (first + 1) % CLASSES)
    logits[:, 1] = 5 * np.eye(CLASSES)[labels]
    (weights,) = fit_gate(ExitLogits(logits, labels))
    found = gate_scores(logits, [weights])[:, 0]
    assert np.abs(found - truth).mean() < 0.06
    assert np.corrcoef(found, truth)[0, 1] > 0.995


def test_it_ranks_inputs_it_has_not_seen_as_well_as_max_softmax() -> None:
    gate, fresh = fit_gate(made(4000, 3)), made(4000, 4)
    right = fresh.logits.argmax(axis=2) == fresh.labels[:, None]
    for k in range(EXITS - 1):
        as_good = right[:, k] | ~right[:, -1]
        odds = np.exp(fresh.logits[:, k])
        max_softmax = (odds / odds.sum(axis=1, keepdims=True)).max(axis=1)
        assert auroc(gate_scores(fresh.logits, gate)[:, k], as_good) >= auroc(max_softmax, as_good) - 0.01


def test_an_input_is_scored_by_gates_that_have_not_seen_it() -> None:
    """Whether one input's exit is as good changes the scores of the other folds, and none of its own fold's."""
    collected = made(100, 5)
    guesses, labels = collected.logits.argmax(axis=2), collected.labels.copy()
    changed = int(np.flatnonzero(guesses[:, 0] != guesses[:, -1])[0])
    scores = []
    for exit_that_is_right in (0, -1):
        labels[changed] = guesses[changed, exit_that_is_right]
        scores.append(cross_fitted_scores(ExitLogits(collected.logits, labels.copy())).scores)
    before, after = scores
    unmoved = np.flatnonzero(before[:, 0] == after[:, 0])
    assert changed in unmoved
    assert len(unmoved) == 100 // FOLDS
    assert (before[:, -1] == LEAST_SURE).all()


@pytest.mark.parametrize("last_is", ["right", "wrong"])
def test_weights_are_finite_where_every_input_is_of_one_kind(last_is: str) -> None:
    collected = made(50, 6)
    guess = collected.logits[:, 0].argmax(axis=1)
    logits = np.repeat(collected.logits[:, :1], EXITS, axis=1)
    labels = guess if last_is == "right" else (guess + 1) % CLASSES
    gate = fit_gate(ExitLogits(logits, labels))
    assert all(np.isfinite(weights).all() for weights in gate)
    assert (gate_scores(logits, gate) > 0).all(), "every exit is as good as the last one"
