"""Fits the learned gate: of each exit, a linear score of whether its answer is as good as the last exit's.

For exit l, features are those of `distree.criteria.gate`: the softmax p₁ … p_K, max p, the certainty of the entropy
criterion, and the gate's own scores at the exits before. The target is 1 where going on would not help: unless the
last exit is right and this one wrong. That is the very loss that thresholds are held to. (Mere disagreement would also
count inputs that both exits get wrong, which cost nothing.) Weights are those of a ridge logistic regression by
Newton's method, exit after exit, so that the scores of earlier exits are features of later ones.

EENet fits its exits jointly with their thresholds under a budget, by gradient descent. Here thresholds follow by the
same rule as for every other criterion, so that the criteria differ in their scores alone. An increasing function of a
score changes no decision, so the logistic function is left out of the score.

Which images to fit on: not the training images. The network has seen them; on them its early exits agree with the
last one far more often than on new ones, and a gate that learned from that would be sure of the wrong inputs. So it is
fitted on the validation images, and so that thresholds are not chosen on scores of a gate that has seen the same
images, they are chosen on *cross-fitted* scores: each fifth of the images is scored by a gate that was fitted on the
other four. The gate that a bundle gets is fitted on all of them, so it differs a little from the five. Thresholds for
sets of missing branches are chosen on its own scores: it was fitted on other logits of these images, nobody missing.
The test set has no part in this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from distree.criteria import LEAST_SURE
from model_zoo.evaluation import ExitLogits, ExitScores

FOLDS = 5
_RIDGE = 1.0  # of standardised weights, against a sum over the images: it settles what p₁ + … + p_K = 1 leaves open
_MAX_STEPS = 50
_CONVERGED = 1e-8

Floats = npt.NDArray[np.float64]
Gate = Sequence[npt.NDArray[np.float32]]


def fit_gate(collected: ExitLogits) -> list[npt.NDArray[np.float32]]:
    """Fit a gate for all exits but the last: of exit l the classes + 2 + l weights and, last, the bias, float32.

    `collected` is of images that the network was not trained on.
    """
    return _fit(collected.logits, collected.labels)


def gate_scores(logits: Floats, gate: Gate) -> Floats:
    """Score the first exits of every input as `distree.criteria.gate` does.

    logits: (inputs, exits, classes). Returns (inputs, exits of the gate).
    """
    scores = np.empty((len(logits), len(gate)))
    for k, weights in enumerate(gate):
        scores[:, k] = _features(logits[:, k], scores[:, :k]) @ weights.astype(np.float64)
    return scores


def cross_fitted_scores(collected: ExitLogits, seed: int = 0) -> ExitScores:
    """Score every input by a gate that was fitted on the other folds; see this module for why.

    The last exit, which has no gate, scores `LEAST_SURE`, as it does with a bundle's gate.
    """
    logits, labels = collected.logits, collected.labels
    scores = np.full(logits.shape[:2], LEAST_SURE)
    for held_out in _folds(len(labels), seed):
        rest = np.ones(len(labels), np.bool_)
        rest[held_out] = False
        scores[held_out, :-1] = gate_scores(logits[held_out], _fit(logits[rest], labels[rest]))
    classes = logits.argmax(axis=2)
    return ExitScores(scores, classes, classes == labels[:, None])


def _folds(inputs: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(inputs)
    yield from (fold for fold in np.array_split(order, FOLDS) if len(fold))


def _fit(logits: Floats, labels: npt.NDArray[np.int64]) -> list[npt.NDArray[np.float32]]:
    right = logits.argmax(axis=2) == labels[:, None]
    gate: list[npt.NDArray[np.float32]] = []
    for k in range(logits.shape[1] - 1):
        as_good = right[:, k] | ~right[:, -1]
        # Earlier scores come from the rounded weights, as they do on boards.
        features = _features(logits[:, k], gate_scores(logits, gate))
        gate.append(_logistic_weights(features[:, :-1], as_good).astype(np.float32))
    return gate


def _features(logits: Floats, earlier: Floats) -> Floats:
    """Return (inputs, classes + 3 + earlier exits): softmax, its maximum, certainty, earlier scores, 1 for the bias."""
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = odds / odds.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(softmax > 0.0, softmax * np.log(softmax), 0.0)
    certainty = np.clip(1.0 + terms.sum(axis=1) / np.log(logits.shape[1]), 0.0, 1.0)
    return np.column_stack([softmax, softmax.max(axis=1), certainty, earlier, np.ones(len(logits))])


def _logistic_weights(features: Floats, target: npt.NDArray[np.bool_]) -> Floats:
    """Ridge logistic regression: returns (features + 1,), the bias last.

    The ridge is on standardised features and, so that one target alone gives finite weights too, on the bias.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    # A feature that is the same everywhere tells nothing and gets no weight.
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    standard = np.column_stack([(features - mean) * scale, np.ones(len(features))])
    weights = _newton(standard, target.astype(np.float64))
    plain = weights[:-1] * scale
    return np.append(plain, weights[-1] - plain @ mean)


def _newton(features: Floats, target: Floats) -> Floats:
    weights = np.zeros(features.shape[1])
    for _ in range(_MAX_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(features @ weights, -500.0, 500.0)))
        gradient = features.T @ (chance - target) + _RIDGE * weights
        curvature = (features * (chance * (1.0 - chance))[:, None]).T @ features
        step = np.linalg.solve(curvature + _RIDGE * np.eye(len(weights)), gradient)
        step *= _damping(features, target, weights, step, float(gradient @ step))
        weights = weights - step
        if float(np.abs(step).max()) < _CONVERGED:
            break
    return weights


def _damping(features: Floats, target: Floats, weights: Floats, step: Floats, slope: float) -> float:
    """Return the largest of 1, 1/2, 1/4, … of a step that lowers the loss by a fair share of what its slope says."""
    before, share = _loss(features, target, weights), 1.0
    while share > _CONVERGED and _loss(features, target, weights - share * step) > before - 1e-4 * share * slope + 1e-9:
        share /= 2
    return share


def _loss(features: Floats, target: Floats, weights: Floats) -> float:
    score = features @ weights
    return float(np.logaddexp(0.0, np.where(target > 0, -score, score)).sum() + _RIDGE / 2 * weights @ weights)
