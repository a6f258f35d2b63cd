"""What a bundle answers with no network between its stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.chaos.site import PIPELINE, Answer, Images
from distree.bundle.loading import load_bundle
from distree.exits_taken import exits_taken
from model_zoo.data import LabelledExamples
from model_zoo.evaluation import Collector, ExitScores, score_exits

Plans = dict[int, tuple[str, tuple[float, ...]]]
"""Criterion and thresholds, by epoch."""


class WholeNetwork:
    """A bundle on images, all in one process; what some branches miss is computed when it is first asked for."""

    def __init__(self, images: Images, bundle: str | Path = PIPELINE) -> None:
        self.bundle = load_bundle(bundle)
        labelled = LabelledExamples(images, np.zeros(len(images), np.int64), np.arange(len(images)), "chaos")
        self._count = len(images)
        self._collector = Collector(self.bundle, labelled)
        self._scored: dict[tuple[int, ...], ExitScores] = {}
        self._taken: dict[tuple[float, ...], list[int]] = {}

    def __len__(self) -> int:
        return self._count

    def answers(self, thresholds: tuple[float, ...] | None = None) -> list[tuple[int, int]]:
        """Class id and exit of each image, at the bundle's thresholds if none are given."""
        classes = self.scored().classes
        return [
            (int(classes[index, k]), k) for index, k in enumerate(self._exits(thresholds or self.bundle.thresholds))
        ]

    def scored(self, missing: tuple[int, ...] = ()) -> ExitScores:
        """Return scores and classes of all exits, with these branches missing."""
        if missing not in self._scored:
            logits = self._collector.collect(missing)
            self._scored[missing] = score_exits(logits, self.bundle.criterion, self.bundle.criterion_parameters())
        return self._scored[missing]

    def fault(self, index: int, answer: Answer, plans: Plans) -> str:
        """Say what is wrong with a labelled answer to image `index`; "" if the network explains it.

        The class must be the network's own at that exit, with the same branches missing. The exit must be the one that
        the plan of the answer's epoch takes, unless it was a substitute or a branch was missing. In a wide network it
        may be a later one that reaches its threshold too: a result does not tell of branches missing at earlier exits.
        """
        classes = self.scored(answer.missing).classes[index]
        if answer.exit is None or answer.class_id != classes[answer.exit]:
            return f"class {answer.class_id} at exit {answer.exit}, the whole network has {classes.tolist()}"
        if answer.missing or answer.reason not in ("confident", "last"):
            return ""
        if answer.epoch and answer.epoch not in plans:
            return f"decided by plan {answer.epoch}, which nobody published"
        thresholds = plans[answer.epoch][1] if answer.epoch else self.bundle.thresholds
        wanted = self._exits(thresholds)[index]
        if answer.exit == wanted or (any(self.bundle.branch_counts) and self._reached(index, answer.exit, thresholds)):
            return ""
        return f"left at exit {answer.exit}, plan {answer.epoch} takes exit {wanted}"

    def _reached(self, index: int, exit: int, thresholds: tuple[float, ...]) -> bool:
        return exit == len(thresholds) or bool(self.scored().scores[index, exit] >= thresholds[exit])

    def _exits(self, thresholds: tuple[float, ...]) -> list[int]:
        if thresholds not in self._taken:
            self._taken[thresholds] = [int(k) for k in exits_taken(self.scored().scores, thresholds)]
        return self._taken[thresholds]


def answers(
    images: Images, bundle: str | Path = PIPELINE, thresholds: tuple[float, ...] | None = None
) -> list[tuple[int, int]]:
    """Class id and exit of each image, at the bundle's thresholds if none are given."""
    return WholeNetwork(images, bundle).answers(thresholds)
