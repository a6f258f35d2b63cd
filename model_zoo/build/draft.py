"""A bundle on its way: able to run before it has thresholds, golden vectors and figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from distree.bundle.loading import Bundle
from distree.bundle.manifest import (
    InputSpec,
    Macs,
    MeasuredFigures,
    Preprocess,
    SplitFigures,
    StageSpec,
    TensorSpec,
    Trained,
)
from model_zoo.build.manifest import draft_manifest, measured_on
from model_zoo.evaluation import Evaluation
from model_zoo.recipes import Recipe, WholeRecipe, WideRecipe

_WEIGHTS_LICENSE = "Apache-2.0"


def draft_bundle(
    recipe: Recipe | WideRecipe,
    stages: tuple[StageSpec, ...],
    folder: Path,
    name: str | None = None,
    description: str | None = None,
) -> Bundle:
    """Make a bundle in memory of the segments in `folder`; name and description are the recipe's if not given."""
    manifest = draft_manifest(
        name=name or recipe.name,
        description=description or recipe.description,
        licence=_WEIGHTS_LICENSE,
        labels=recipe.labels,
        spec=InputSpec(dtype="uint8", shape=recipe.input_shape),
        preprocess=Preprocess(mean=recipe.mean, std=recipe.std, layout="nhwc"),
        stages=stages,
    )
    return Bundle(path=folder, revision="draft", manifest=manifest)


def draft_whole(recipe: WholeRecipe, stage: StageSpec | None = None, folder: Path = Path()) -> Bundle:
    """Make a bundle in memory whose one stage is a whole network.

    Without `stage` it is one that takes floats and is not there yet: enough to prepare inputs by.
    """
    if stage is None:
        tensor = TensorSpec(name="input", dtype="float32", shape=(1, *recipe.input_shape))
        stage = StageSpec(segment="", sha256="", bytes=0, input=tensor, logits=tensor, macs=Macs(trunk=0, exit=0))
    manifest = draft_manifest(
        name=recipe.name,
        description=recipe.description,
        licence=recipe.licence,
        labels=recipe.labels,
        spec=recipe.input,
        preprocess=recipe.preprocess,
        stages=(stage,),
    )
    return Bundle(path=folder, revision="draft", manifest=manifest)


def measured_figures(data: str, on_test: Evaluation, on_validation: Evaluation, trained: Trained) -> MeasuredFigures:
    """Lay the figures of both sets out as a manifest has them; `data` says what the test set is."""
    return replace(
        measured_on(data, on_test),
        validation=SplitFigures(
            accuracy=on_validation.accuracy,
            accuracy_at_thresholds=on_validation.accuracy_at_thresholds,
            exit_share=on_validation.exit_share,
        ),
        trained=trained,
    )
