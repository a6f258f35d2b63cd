"""A recipe from data to a finished bundle. Imports torch: nothing but `build` reaches this module.

The order keeps the test set out of every decision: the last images of the training set choose the epoch and
the thresholds, and the test set is opened once, after both are fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from distree.bundle.loading import Bundle, load_bundle
from distree.bundle.manifest import Exits, Trained
from model_zoo.build.draft import draft_bundle, measured_figures
from model_zoo.build.export import export_stages
from model_zoo.build.manifest import GOLDEN_INPUTS, write_golden, write_manifest
from model_zoo.data import LabelledExamples, first_of_each_class, load_idx_set, write_samples
from model_zoo.errors import DataError
from model_zoo.evaluation import Evaluation, collect_logits, costs_of, score_exits, summarise
from model_zoo.recipes import Recipe, TrainingSettings
from model_zoo.thresholds import choose_thresholds
from model_zoo.training.chain import Trainer, normalise
from model_zoo.training.loop import TrainingReport

_CALIBRATION_IMAGES = 1000  # of the training images, evenly spread; more did not move the ranges
_SAMPLES_PER_CLASS = 100

CRITERION = "max_softmax"
"""What the thresholds of a chain are chosen for."""


@dataclass(frozen=True, slots=True)
class BuildPaths:
    """Where to read and write.

    data: folder of idx files. out: the bundle's folder. work: for the checkpoint. samples: a file, or None.
    """

    data: Path
    out: Path
    work: Path
    samples: Path | None


def build_bundle(
    recipe: Recipe,
    settings: TrainingSettings,
    paths: BuildPaths,
    progress: Callable[[str], None],
    step: Callable[[int, int, int], None] = lambda *_: None,
) -> Bundle:
    """Train, export, choose thresholds, measure, and write the bundle; return it as `load_bundle` reads it.

    progress and step: see `model_zoo.training.loop.Loop`. Raises DataError for the data or a foreign checkpoint,
    ExportError where the segments do not come out sound.
    """
    train, validation = split_training_set(load_idx_set(paths.data, "train", recipe.data_name), settings.validation)
    trainer = Trainer(recipe, settings, train, validation, paths.work, progress, step)
    report = trainer.run()
    progress(f"epoch {report.kept_epoch} kept; exporting {len(settings.exit_weights)} segments")
    every = max(1, len(train) // _CALIBRATION_IMAGES)
    calibration = normalise(train.inputs[::every][:_CALIBRATION_IMAGES], recipe)
    stages = export_stages(trainer.network, calibration, paths.out)
    draft = draft_bundle(recipe, stages, paths.out)
    golden = write_golden(draft, train.inputs[:GOLDEN_INPUTS])
    exits, on_validation = _choose(draft, validation, progress)
    on_test = _measure(draft, recipe, exits, paths, progress)
    manifest = replace(
        draft.manifest,
        exits=exits,
        golden=golden,
        measured=measured_figures(
            f"{recipe.data_name} test, {on_test.inputs} images", on_test, on_validation, trained_of(report)
        ),
    )
    write_manifest(manifest, paths.out)
    return load_bundle(paths.out)


def trained_of(report: TrainingReport) -> Trained:
    """Say how the weights came to be as a manifest does."""
    return Trained(epochs=report.epochs, seed=report.seed, seconds=round(report.seconds, 1), torch=report.torch_version)


def split_training_set(images: LabelledExamples, held_back: int) -> tuple[LabelledExamples, LabelledExamples]:
    """Split into training images and the last `held_back`, for validation; DataError where none are left."""
    if len(images) <= held_back:
        what = f"{images.source}: has only {len(images)} training images"
        raise DataError(what, f"give more than {held_back}, which are held back for validation")
    kept = len(images) - held_back
    return images.slice(0, kept), images.slice(kept, len(images))


def _choose(draft: Bundle, validation: LabelledExamples, progress: Callable[[str], None]) -> tuple[Exits, Evaluation]:
    progress("choosing thresholds on the validation images")
    scored = score_exits(collect_logits(draft, validation, progress), CRITERION)
    costs = costs_of(draft.stages)
    choice = choose_thresholds(scored, costs)
    exits = Exits(criterion=CRITERION, thresholds=choice.thresholds)
    drop, bound = 100 * choice.drop, 100 * choice.drop_bound
    progress(f"thresholds {choice.thresholds}: validation drop {drop:.2f} points, bound {bound:.2f}")
    return exits, summarise(scored, costs, CRITERION, choice.thresholds)


def _measure(
    draft: Bundle, recipe: Recipe, exits: Exits, paths: BuildPaths, progress: Callable[[str], None]
) -> Evaluation:
    progress("reading the test set, once")
    test = load_idx_set(paths.data, "t10k", f"{recipe.data_name} test")
    if paths.samples is not None:
        write_samples(first_of_each_class(test, _SAMPLES_PER_CLASS), paths.samples)
    scored = score_exits(collect_logits(draft, test, progress), exits.criterion)
    return summarise(scored, costs_of(draft.stages), exits.criterion, exits.thresholds)
