"""What a bundle answers with no network between its stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.chaos.site import PIPELINE, Images
from distree.bundle.loading import load_bundle
from distree.exits_taken import exits_taken
from model_zoo.data import LabelledExamples
from model_zoo.evaluation import collect_logits, score_exits


def answers(
    images: Images, bundle: str | Path = PIPELINE, thresholds: tuple[float, ...] | None = None
) -> list[tuple[int, int]]:
    """Class id and exit of each image, at the bundle's thresholds if none are given."""
    loaded = load_bundle(bundle)
    labelled = LabelledExamples(images, np.zeros(len(images), np.int64), np.arange(len(images)), "chaos")
    scored = score_exits(collect_logits(loaded, labelled), loaded.criterion, loaded.criterion_parameters())
    taken = exits_taken(scored.scores, thresholds or loaded.thresholds)
    return [(int(classes[k]), int(k)) for classes, k in zip(scored.classes, taken, strict=True)]
