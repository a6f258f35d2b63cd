"""A recipe from data to a whole int8 network, and all that `distree zoo split` then takes. Imports torch.

The test set is written where it lies ready for `--test`, and not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distree.bundle.manifest import StageSpec
from distree.bundle.preprocessing import Preprocessor
from distree.tensors import Array
from model_zoo.build.draft import draft_whole
from model_zoo.build.export import export_whole
from model_zoo.build.manifest import write_declared
from model_zoo.data import LabelledExamples
from model_zoo.evaluation import collect_logits
from model_zoo.recipes import Schedule, WholeRecipe
from model_zoo.training.whole import WholeTrainer

WHOLE, DECLARED = "whole.tflite", "input.yaml"
_CALIBRATION_INPUTS = 1000  # of the training inputs, evenly spread, each varied as in training
_HEAD_INPUTS = 9000
"""How many inputs exit heads learn from: the training inputs, and variations of them.

Without these, heads know only the voices or people of the training set, while the network was made to know others too.
"""


@dataclass(frozen=True, slots=True)
class Whole:
    """What came out: the network as a stage, and the share of validation inputs that it is right on, once quantised."""

    stage: StageSpec
    accuracy: float


def train_whole(
    recipe: WholeRecipe,
    schedule: Schedule,
    data: Path,
    out: Path,
    work: Path,
    progress: Callable[[str], None],
    step: Callable[[int, int, int], None] = lambda *_: None,
) -> Whole:
    """Train, quantise and write whole.tflite, input.yaml, heads.npz, validation.npz and test.npz into `out`.

    work, progress and step: see `model_zoo.training.whole.WholeTrainer`. Raises DataError for the data or a foreign
    checkpoint, ExportError where the network does not come out sound.
    """
    parts = recipe.read(data)
    trainer = WholeTrainer(recipe, schedule, parts, Preprocessor(draft_whole(recipe).manifest), work, progress, step)
    report = trainer.run()
    progress(f"epoch {report.kept_epoch} kept; quantising")
    stage = export_whole(trainer.network, _calibration(recipe, parts.train, trainer), out / WHOLE)
    write_declared(recipe.input, recipe.preprocess, out / DECLARED)
    np.savez_compressed(out / "heads.npz", x=_for_heads(recipe, parts.train))
    for name, examples in (("validation", parts.validation), ("test", parts.test)):
        _write_examples(examples, recipe.labels, out / f"{name}.npz")
    logits = collect_logits(draft_whole(recipe, stage, out), parts.validation).logits
    return Whole(stage, float((logits[:, 0].argmax(axis=1) == parts.validation.labels).mean()))


def _calibration(recipe: WholeRecipe, train: LabelledExamples, trainer: WholeTrainer) -> Any:
    every = max(1, len(train) // _CALIBRATION_INPUTS)
    draws = np.random.default_rng(0)
    return trainer.prepared(np.stack([recipe.vary(one, draws) for one in train.inputs[::every]]))


def _for_heads(recipe: WholeRecipe, train: LabelledExamples) -> Array:
    draws = np.random.default_rng(1)
    places = np.arange(max(0, _HEAD_INPUTS - len(train))) % len(train)
    varied = [recipe.vary(train.inputs[place], draws) for place in places]
    made: Array = np.concatenate([train.inputs, np.stack(varied)]) if varied else train.inputs
    return made


def _write_examples(examples: LabelledExamples, labels: tuple[str, ...], path: Path) -> None:
    """Write examples in a form that `load_examples` reads."""
    np.savez_compressed(path, x=examples.inputs, y=examples.labels, classes=labels, files=examples.files or ())
