"""Trains exit heads with numpy alone, on the whole network's answers.

A head learns the network's own answers (distillation: Hinton, Vinyals, Dean 2015, arXiv:1503.02531), so inputs need
no labels; if there are labels, they can be given a weight. Heads are trained one after another, and inputs on which
earlier heads are confident count less: few of them get that far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_zoo.split.features import Answers
from model_zoo.split.head_plan import HeadPlan
from model_zoo.split.quantised import ServedHead, Weights, pooled_scale, served_head
from model_zoo.split.supervision import Teller

Floats = npt.NDArray[np.float32]

_STEPS = 4.0
_AVERAGED = 0.4  # share of the steps, the last ones, whose layers are averaged
_LEAST_SHARE = 0.25  # of the peak rate


@dataclass(frozen=True, slots=True)
class HeadTraining:
    """How heads are trained.

    samples: the number of inputs processed in all, however few there are; more only if each would otherwise be seen
    less than `fewest_passes` times. least_weight: the weight of an input on which the earlier heads are certain.
    """

    seed: int = 1
    samples: int = 300_000
    fewest_passes: int = 15
    batch: int = 128
    peak_rate: float = 3e-3
    weight_decay: float = 0.1
    temperature: float = 2.0
    least_weight: float = 0.3


def train_heads(
    plans: Sequence[HeadPlan],
    answers: Answers,
    training: HeadTraining,
    tell: Teller,
) -> list[ServedHead]:
    """Train one head per cut on the network's own answers, and quantise it."""
    heads: list[ServedHead] = []
    weight = np.ones(len(answers), np.float32)
    for k, (plan, pooled) in enumerate(zip(plans, answers.pooled, strict=True)):
        scale, zero = pooled_scale(plan)
        real = (pooled.astype(np.float32) - zero) * np.float32(scale) if scale else pooled.astype(np.float32)
        target = softmax(answers.logits / np.float32(training.temperature))
        weights = _train(
            real, target, weight / weight.mean(), plan, scale, training, np.random.default_rng([training.seed, k]), tell
        )
        heads.append(served_head(plan, weights, pooled))
        sure = softmax(heads[-1].logits(pooled).astype(np.float32)).max(axis=1)
        weight *= training.least_weight + (1.0 - training.least_weight) * (1.0 - sure)
    return heads


def softmax(logits: Floats) -> Floats:
    """Return softmax probabilities along the last axis."""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Floats = odds / odds.sum(axis=-1, keepdims=True)
    return found


def _train(
    values: Floats,
    target: Floats,
    weight: Floats,
    plan: HeadPlan,
    quantum: float,
    training: HeadTraining,
    generator: np.random.Generator,
    tell: Teller,
) -> Weights:
    """Adam with decoupled weight decay on standardised values; the layers are the mean of those of the last steps.

    The rate falls along a cosine to a quarter of its peak, so that the steps whose layers are averaged still differ
    (Izmailov et al. 2018, arXiv:1803.05407). That saved one point more, with less spread between seeds.

    quantum: the step of quantised values, 0 for others. Runtimes may round one step apart, so a value that varies by
    less than `_STEPS` is not amplified: with heads that did, logits differed by 35 steps between XNNPACK and the other
    kernels, and nothing more was saved.
    """
    mean, spread = values.mean(axis=0), values.std(axis=0)
    # A value that is the same for all inputs says nothing, and its weights are set to 0 at the end.
    tells = spread > 1e-6 * max(float(np.abs(values).max(initial=0.0)), 1e-6)
    least = max(_STEPS * quantum, 1e-3 * float(spread.max(initial=0.0)))
    spread = np.where(tells, np.maximum(spread, least), 1.0).astype(np.float32)
    standard = (values - mean) / spread
    layers = _first_weights(plan, generator)
    optimiser = _Adam(layers, training.weight_decay)
    averages = [np.zeros(layer.shape) for layer in layers]
    passes = max(training.fewest_passes, round(training.samples / len(values)))
    batch = min(training.batch, len(values))
    per_pass = len(values) // batch
    steps = passes * per_pass
    for number in range(passes):
        order = generator.permutation(len(values))
        for i in range(per_pass):
            chosen = order[i * batch : (i + 1) * batch]
            gradients = _gradients(layers, standard[chosen], target[chosen], weight[chosen], training.temperature)
            step = number * per_pass + i
            optimiser.step(gradients, training.peak_rate * _share(step, steps))
            if step >= (1.0 - _AVERAGED) * steps:
                for average, layer in zip(averages, layers, strict=True):
                    average += layer
        tell.step(number + 1, passes)
    averaged = steps - int(np.ceil((1.0 - _AVERAGED) * steps))
    hidden, hidden_bias, classes, classes_bias = [(one / averaged).astype(np.float32) for one in averages]
    hidden = np.where(tells[:, None], hidden / spread[:, None], np.float32(0.0))
    return Weights(hidden, hidden_bias - mean @ hidden, classes, classes_bias)


def _share(step: int, steps: int) -> float:
    """Return the share of the peak rate: a short rise, then down a cosine to `_LEAST_SHARE`."""
    rise = min(1.0, (step + 1) / (0.05 * steps + 1.0))
    return rise * max(_LEAST_SHARE, 0.5 * (1.0 + float(np.cos(np.pi * step / steps))))


def _first_weights(plan: HeadPlan, generator: np.random.Generator) -> list[Floats]:
    shapes = ((plan.inputs, plan.hidden, 2.0), (plan.hidden, plan.classes, 1.0))
    layers: list[Floats] = []
    for taken, given, gain in shapes:
        layers.append(generator.normal(0.0, (gain / taken) ** 0.5, (taken, given)).astype(np.float32))
        layers.append(np.zeros(given, np.float32))
    return layers


def _gradients(
    layers: list[Floats], values: Floats, target: Floats, weight: Floats, temperature: float
) -> list[Floats]:
    """Gradients of the weighted mean of T² · KL(target ‖ softmax(logits / T))."""
    hidden, hidden_bias, classes, classes_bias = layers
    activations = np.maximum(values @ hidden + hidden_bias, 0.0)
    logits = activations @ classes + classes_bias
    scale = (np.float32(temperature) * weight / np.float32(len(values)))[:, None]
    of_logits = (softmax(logits / np.float32(temperature)) - target) * scale
    of_activations = (of_logits @ classes.T) * (activations > 0.0)
    return [values.T @ of_activations, of_activations.sum(axis=0), activations.T @ of_logits, of_logits.sum(axis=0)]


class _Adam:
    """Adam (Kingma, Ba 2015, arXiv:1412.6980) with decoupled weight decay of matrices (arXiv:1711.05101)."""

    _FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, layers: list[Floats], weight_decay: float) -> None:
        self._layers = layers
        self._decay = weight_decay
        self._means = [np.zeros_like(layer) for layer in layers]
        self._squares = [np.zeros_like(layer) for layer in layers]
        self._steps = 0

    def step(self, gradients: list[Floats], rate: float) -> None:
        """Change the layers in place."""
        self._steps += 1
        unbiased = 1.0 - self._FIRST**self._steps
        root = (1.0 - self._SECOND**self._steps) ** 0.5
        for layer, gradient, mean, square in zip(self._layers, gradients, self._means, self._squares, strict=True):
            mean += (1.0 - self._FIRST) * (gradient - mean)
            square += (1.0 - self._SECOND) * (gradient * gradient - square)
            if layer.ndim > 1:
                layer -= np.float32(rate * self._decay) * layer
            layer -= (
                np.float32(rate / unbiased) * mean / (np.sqrt(square) / np.float32(root) + np.float32(self._EPSILON))
            )
