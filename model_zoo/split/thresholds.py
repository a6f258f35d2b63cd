"""Thresholds, chosen from the answers of heads on inputs that they were not trained on.

With few inputs, each is used both to train and to choose: they are divided into folds, and each fold is scored by heads
trained on the others. The heads of a bundle are trained on all of them, and are a little better than the heads from
whose answers the thresholds were chosen. If there are as many other inputs, the heads are trained on those alone.

A threshold's drop in accuracy is a mean over the few inputs whose answers differ. The *bound* rule keeps its upper 99 %
bound within what is allowed; the *mean* rule only the drop itself, which new inputs exceed half of the time; see
`model_zoo.thresholds`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from model_zoo.costs import Costs
from model_zoo.evaluation import ExitLogits, ExitScores, score_exits
from model_zoo.split.cuts import Cut
from model_zoo.split.head_plan import HeadPlan
from model_zoo.thresholds import DEVIATIONS, Choice, choose_thresholds

CRITERION = "max_softmax"
FOLDS = 5
ALLOWED = (0.002, 0.005, 0.01, 0.02)
"""The drops in accuracy of the table that a split prints."""

Rule = Literal["bound", "mean"]
RULES: tuple[Rule, ...] = ("bound", "mean")


@dataclass(frozen=True, slots=True)
class Row:
    """The thresholds that each rule finds for one allowed drop."""

    max_drop: float
    bound: Choice
    mean: Choice

    def of(self, rule: Rule) -> Choice:
        """Return what one of the rules found."""
        return self.bound if rule == "bound" else self.mean


def folds(count: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Divide `count` inputs at random, as files are often sorted by class."""
    order = np.random.default_rng([seed, FOLDS]).permutation(count)
    return [np.sort(fold) for fold in np.array_split(order, min(FOLDS, count))]


def score(exits: Sequence[npt.NDArray[np.float64]], labels: npt.NDArray[np.int64] | None) -> ExitScores:
    """Score the logits (n, classes) of all exits; without labels the last exit's answers count as correct."""
    logits = np.stack(exits, axis=1)
    truth = logits[:, -1].argmax(axis=1) if labels is None else labels
    return score_exits(ExitLogits(logits=logits, labels=truth), CRITERION)


def split_costs(cuts: Sequence[Cut], plans: Sequence[HeadPlan], whole: int) -> Costs:
    """Costs up to each exit, including the heads passed on the way; `whole`: multiply-accumulates without heads."""
    heads = list(itertools.accumulate(plan.macs for plan in plans))
    trunks = [*(cut.macs for cut in cuts), whole]
    sent = [0, *itertools.accumulate(cut.boundary.bytes for cut in cuts)]
    passed = [*heads, heads[-1]]
    return Costs(
        macs=tuple(trunk + head for trunk, head in zip(trunks, passed, strict=True)),
        feature_bytes=tuple(sent),
        strict=whole,
        loose=whole + heads[-1],
    )


def choose(scored: ExitScores, costs: Costs, max_drop: float) -> Row:
    """Choose thresholds by both rules."""
    return Row(
        max_drop=max_drop,
        bound=choose_thresholds(scored, costs, max_drop, DEVIATIONS),
        mean=choose_thresholds(scored, costs, max_drop, 0.0),
    )


def table(scored: ExitScores, costs: Costs) -> Iterator[Row]:
    """Yield what the rules find for all drops in the table."""
    yield from (choose(scored, costs, allowed) for allowed in ALLOWED)


def saved(choice: Choice, costs: Costs) -> float:
    """Return the share of the whole network's multiply-accumulates that a choice saves, net of its heads."""
    return 1.0 - choice.macs_per_input / costs.strict


def margin(share_differing: float, inputs: int) -> float:
    """Return how far the bound is above the mean, if exits change the answers of this share of the inputs."""
    return DEVIATIONS * math.sqrt(share_differing / inputs)
