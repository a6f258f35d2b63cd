"""A bundle on its way: able to run before it has thresholds, golden vectors and figures."""

from __future__ import annotations

from pathlib import Path

from distree.bundle.loading import Bundle
from distree.bundle.manifest import (
    Exits,
    Golden,
    InputSpec,
    Macs,
    Manifest,
    MeasuredFigures,
    Preprocess,
    SplitFigures,
    StageSpec,
    TensorSpec,
    Trained,
)
from distree.thresholds import NEVER
from model_zoo.build.manifest import GOLDEN_FILE, GOLDEN_TOLERANCE
from model_zoo.evaluation import Evaluation
from model_zoo.recipes import Recipe, WholeRecipe, WideRecipe

CRITERION = "max_softmax"
"""A draft's; no exit is ever taken by it."""

_WEIGHTS_LICENSE = "Apache-2.0"


def draft_bundle(
    recipe: Recipe | WideRecipe,
    stages: tuple[StageSpec, ...],
    folder: Path,
    name: str | None = None,
    description: str | None = None,
) -> Bundle:
    """Make a bundle in memory of the segments in `folder`; name and description are the recipe's if not given."""
    nothing = SplitFigures(accuracy=(), accuracy_at_thresholds=0.0, exit_share=())
    manifest = Manifest(
        format=1,
        name=name or recipe.name,
        description=description or recipe.description,
        license=_WEIGHTS_LICENSE,
        labels=recipe.labels,
        input=InputSpec(dtype="uint8", shape=recipe.input_shape),
        preprocess=Preprocess(mean=recipe.mean, std=recipe.std, layout="nhwc"),
        stages=stages,
        exits=Exits(criterion=CRITERION, thresholds=(NEVER,) * (len(stages) - 1)),
        golden=Golden(file=GOLDEN_FILE, sha256="", tolerance=GOLDEN_TOLERANCE),
        measured=MeasuredFigures(
            data="",
            accuracy=(),
            accuracy_at_thresholds=0.0,
            exit_share=(),
            macs_per_input=0.0,
            macs_no_early_exit_strict=0,
            macs_no_early_exit_loose=0,
            feature_bytes_per_input=0.0,
            validation=nothing,
            trained=Trained(epochs=0, seed=0, seconds=0.0, torch=""),
        ),
    )
    return Bundle(path=folder, revision="draft", manifest=manifest)


def draft_whole(recipe: WholeRecipe, stage: StageSpec | None = None, folder: Path = Path()) -> Bundle:
    """Make a bundle in memory whose one stage is a whole network.

    Without `stage` it is one that takes floats and is not there yet: enough to prepare inputs by.
    """
    if stage is None:
        tensor = TensorSpec(name="input", dtype="float32", shape=(1, *recipe.input_shape))
        stage = StageSpec(segment="", sha256="", bytes=0, input=tensor, logits=tensor, macs=Macs(trunk=0, exit=0))
    manifest = Manifest(
        format=1,
        name=recipe.name,
        description=recipe.description,
        license=recipe.licence,
        labels=recipe.labels,
        input=recipe.input,
        preprocess=recipe.preprocess,
        stages=(stage,),
        exits=Exits(criterion=CRITERION, thresholds=()),
        golden=Golden(file=GOLDEN_FILE, sha256="", tolerance=GOLDEN_TOLERANCE),
    )
    return Bundle(path=folder, revision="draft", manifest=manifest)


def measured_figures(data: str, on_test: Evaluation, on_validation: Evaluation, trained: Trained) -> MeasuredFigures:
    """Lay the figures of both sets out as a manifest has them; `data` says what the test set is."""
    return MeasuredFigures(
        data=data,
        accuracy=on_test.accuracy,
        accuracy_at_thresholds=on_test.accuracy_at_thresholds,
        exit_share=on_test.exit_share,
        macs_per_input=round(on_test.macs_per_input, 1),
        macs_no_early_exit_strict=on_test.macs_no_early_exit_strict,
        macs_no_early_exit_loose=on_test.macs_no_early_exit_loose,
        feature_bytes_per_input=round(on_test.feature_bytes_per_input, 1),
        validation=SplitFigures(
            accuracy=on_validation.accuracy,
            accuracy_at_thresholds=on_validation.accuracy_at_thresholds,
            exit_share=on_validation.exit_share,
        ),
        trained=trained,
    )
