"""From inputs to trained heads, and to the answers from which thresholds are chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distree.bundle.preprocessing import Preprocessor
from distree.tensors import Array
from model_zoo.split.features import Answers, Probe, together
from model_zoo.split.head_plan import HeadPlan
from model_zoo.split.heads import HeadTraining, train_heads
from model_zoo.split.quantised import ServedHead
from model_zoo.split.supervision import Teller
from model_zoo.split.thresholds import folds
from model_zoo.split.variations import draw_variations, sources_of

VARIED_TO = 20_000
"""Variations are added to a set until it has at least this many inputs."""

MOST_VARIATIONS = 50_000
"""A large set gets as many variations as it has inputs, up to this many."""


@dataclass(frozen=True, slots=True)
class Learned:
    """The heads of a bundle, and per exit the logits (n, classes) that thresholds are chosen by.

    They come from heads that were not trained on the input, except the last exit's, which are the network's own.
    apart: whether the heads were trained on other inputs only.
    """

    heads: tuple[ServedHead, ...]
    logits: tuple[npt.NDArray[np.float64], ...]
    apart: bool


class Learner:
    """Runs the network on inputs and variations of them, and trains heads on its answers."""

    def __init__(
        self,
        probe: Probe,
        preprocessor: Preprocessor,
        plans: Sequence[HeadPlan],
        training: HeadTraining,
        tell: Teller,
    ) -> None:
        self._probe = probe
        self._preprocessor = preprocessor
        self._plans = tuple(plans)
        self._training = training
        self._tell = tell

    def answers(self, inputs: Array, what: str) -> Answers:
        """Run the network on raw inputs (n, …)."""
        return self._run((self._preprocessor.tensor(one) for one in inputs), len(inputs), what)

    def _run(self, tensors: Iterable[Array], count: int, what: str) -> Answers:
        self._tell.phase(f"running the network on {count:,} {what}", _limit_s(count))
        return self._probe.answers(tensors, count, self._tell)

    def learn(self, inputs: Array, given: Answers, others: Array | None) -> Learned:
        """Train heads.

        inputs and given are the data; others are inputs for the heads alone. If there are at least as many of these
        as of the data, heads learn only from them, and the data is new to them. Otherwise each fold of the data is
        scored by heads that learned from the rest.
        """
        if others is not None and len(others) >= len(inputs):
            learned = self._varied(others, self.answers(others, "unlabelled inputs"))
            heads = self._train(learned.answers, "heads")
            return Learned(tuple(heads), self._scored(heads, given), apart=True)
        varied = self._varied(inputs, given)
        if others is not None:
            more = self.answers(others, "unlabelled inputs")
            varied = _Varied(
                together([varied.answers, more]), np.concatenate([varied.sources, np.full((len(more), 2), -1)])
            )
        logits = [np.zeros(given.logits.shape) for _ in self._plans]
        parts = folds(len(inputs), self._training.seed)
        for number, fold in enumerate(parts, start=1):
            kept = np.flatnonzero(~np.isin(varied.sources, fold).any(axis=1))
            heads = self._train(varied.answers.select(kept), f"heads for fold {number} of {len(parts)}")
            for into, scored in zip(logits, self._scored(heads, given.select(fold)), strict=False):
                into[fold] = scored
        heads = self._train(varied.answers, "heads")
        return Learned(tuple(heads), (*logits, given.logits.astype(np.float64)), apart=False)

    def _varied(self, inputs: Array, given: Answers) -> _Varied:
        """Add variations to a set: see `VARIED_TO` and `MOST_VARIATIONS`."""
        own = np.repeat(np.arange(len(inputs))[:, None], 2, axis=1)
        count = max(VARIED_TO - len(inputs), min(len(inputs), MOST_VARIATIONS))
        drawn = draw_variations(inputs, count, np.random.default_rng([self._training.seed, count]))
        tensors = (self._preprocessor.tensor(one.make(inputs)) for one in drawn)
        more = self._run(tensors, count, "variations of these inputs")
        return _Varied(together([given, more]), np.concatenate([own, sources_of(drawn)]))

    def _train(self, answers: Answers, what: str) -> list[ServedHead]:
        self._tell.phase(f"training {what}")
        return train_heads(self._plans, answers, self._training, self._tell)

    def _scored(self, heads: Sequence[ServedHead], given: Answers) -> tuple[npt.NDArray[np.float64], ...]:
        of_heads = (head.logits(pooled) for head, pooled in zip(heads, given.pooled, strict=True))
        return (*of_heads, given.logits.astype(np.float64))


@dataclass(frozen=True, slots=True)
class _Varied:
    """Answers on inputs and variations of them; sources (n, 2): the indices of the inputs that each is made from."""

    answers: Answers
    sources: npt.NDArray[np.int64]


def _limit_s(count: int) -> float:
    """Return the seconds after which running this many inputs counts as hanging: a second each is more than enough."""
    return 60.0 + 1.0 * count
