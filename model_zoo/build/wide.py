"""A wide recipe from data to a finished bundle: train, export, finish. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distree.bundle.loading import Bundle
from distree.bundle.manifest import MANIFEST
from model_zoo.build.export import export_wide
from model_zoo.build.finish import Finished, ImageSets, check_size, finish_bundle, spread
from model_zoo.errors import ExportError
from model_zoo.recipes import WideRecipe
from model_zoo.training.plans import StudentPlan, WideSettings
from model_zoo.training.trained import TrainedNetwork, find_trained
from model_zoo.training.views import Images
from model_zoo.training.wide import WideTraining

_CALIBRATION_IMAGES = 1000  # of the training images, evenly spread; more did not move the ranges


def build_wide(
    recipe: WideRecipe,
    settings: WideSettings,
    images: ImageSets,
    out: Path,
    work: Path,
    progress: Callable[[str], None],
    step: Callable[[int, int, int], None] = lambda *_: None,
) -> Bundle:
    """Train what is left to train, export and finish; return the bundle in `out` as `load_bundle` reads it.

    work: folder of checkpoints. progress and step: see `model_zoo.training.loop.Loop`. Raises DataError for the data,
    the number of branches or a foreign checkpoint, ExportError where the segments do not come out sound or are too
    large.
    """
    plan = StudentPlan.of(recipe, settings)
    found = find_trained(plan, work)
    if isinstance(found, str):
        WideTraining(recipe, images.train, images.validation, work, progress, step).train(settings)
        found = find_trained(plan, work)
    if isinstance(found, str):
        what = f"{plan.checkpoint(work)}: {found}, although training has ended"
        raise ExportError(what, "make sure that no other training uses this folder")
    progress(f"{plan.name}: epoch {found.checkpoint.kept_epoch} kept")
    bundle = export_trained(recipe, settings, found, images, out, progress).bundle
    progress(f"{check_size(bundle)} bytes in all")
    return bundle


def export_trained(
    recipe: WideRecipe,
    settings: WideSettings,
    found: TrainedNetwork,
    images: ImageSets,
    out: Path,
    progress: Callable[[str], None],
) -> Finished:
    """Turn a trained network into the bundle in `out`, in place of one that is there; errors as in `build_wide`."""
    _clear(out)
    progress(f"exporting {settings.branches} branches to int8 segments")
    some = spread(images.train, _CALIBRATION_IMAGES)
    calibration = Images.of(some.inputs, recipe.mean, recipe.std, "cpu").plain(slice(None))
    stages = export_wide(found.network, calibration, out)
    return finish_bundle(recipe, stages, out, images, found.trained, progress, settings.bundle_name(recipe))


def _clear(folder: Path) -> None:
    """Remove a bundle's manifest, so that none stands beside segments of another, and its segments."""
    for pattern in (MANIFEST, "stage*.tflite"):
        for path in folder.glob(pattern):
            path.unlink()
