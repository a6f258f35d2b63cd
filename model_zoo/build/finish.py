"""From the segments of a wide network to its finished bundle: criteria, thresholds, golden vectors and figures.

The order keeps the test set out of every decision. Training images give the class means, validation images the gate,
the criterion and the thresholds; the test set is opened once, after all of them are fixed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distree.bundle.loading import Bundle, load_bundle
from distree.bundle.manifest import Exits, StageSpec, Trained
from distree.messages.plan import MaskedThresholds
from model_zoo.build.draft import draft_bundle, measured_figures
from model_zoo.build.manifest import GOLDEN_INPUTS, write_golden, write_manifest, write_parameters
from model_zoo.costs import costs_of
from model_zoo.criteria import usable_criteria, validation_scores
from model_zoo.data import LabelledExamples, Split
from model_zoo.errors import ExportError
from model_zoo.evaluation import Collector, Evaluation, class_means, collect_logits, score_exits, summarise
from model_zoo.gate import fit_gate
from model_zoo.recipes import WideRecipe
from model_zoo.thresholds import Choice, choose_masked, choose_thresholds, masks_of

MAX_BYTES = 2_000_000
_CLASS_MEAN_IMAGES = 2_000  # of the training images; two hundred of each of ten classes settle a mean
_GOLDEN_SEED = 20_240_607
_GOLDEN_GRID = 5  # of random colours, from which a smooth image is drawn


class ImageSets:
    """Images by what they are for, each split read when it is first asked for."""

    def __init__(self, read: Callable[[Split], LabelledExamples]) -> None:
        self._read = functools.cache(read)

    @property
    def train(self) -> LabelledExamples:
        """To train on, and to measure ranges and means on."""
        return self._read("train")

    @property
    def validation(self) -> LabelledExamples:
        """To choose everything on."""
        return self._read("validation")

    @property
    def test(self) -> LabelledExamples:
        """To measure on what is settled."""
        return self._read("test")


@dataclass(frozen=True, slots=True)
class Finished:
    """A bundle as `load_bundle` reads it, and what its segments gave on validation and test images."""

    bundle: Bundle
    validation: Collector
    test: Collector


def finish_bundle(
    recipe: WideRecipe,
    stages: tuple[StageSpec, ...],
    folder: Path,
    images: ImageSets,
    trained: Trained,
    progress: Callable[[str], None],
    name: str,
) -> Finished:
    """Write criteria.npz, golden.npz and bundle.yaml beside the segments in `folder`.

    Raises ExportError where the bundle is larger than `MAX_BYTES`.
    """
    description = f"{recipe.description}; {len(stages[0].branches)} branches"
    draft = draft_bundle(recipe, stages, folder, name, description)
    progress("running the segments on validation and training images")
    validation = Collector(draft, images.validation)
    draft = _with_parameters(draft, validation, images.train)
    exits, on_validation = _choose(draft, validation, progress)
    golden = write_golden(draft, smooth_images(GOLDEN_INPUTS, recipe.input_shape, _GOLDEN_SEED))
    progress("reading the test set, once")
    test = Collector(draft, images.test)
    scored = score_exits(test.collect(), exits.criterion, draft.criterion_parameters())
    on_test = summarise(scored, costs_of(stages), exits.criterion, exits.thresholds)
    data = f"{recipe.data_name} test, {on_test.inputs} images"
    measured = measured_figures(data, on_test, on_validation, trained)
    write_manifest(replace(draft.manifest, exits=exits, golden=golden, measured=measured), folder)
    bundle = load_bundle(folder)
    check_size(bundle)
    return Finished(bundle, validation, test)


def check_size(bundle: Bundle) -> int:
    """Return the bytes of all files in the bundle's folder; ExportError if they are more than `MAX_BYTES`."""
    size = sum(path.stat().st_size for path in bundle.path.iterdir())
    if size > MAX_BYTES:
        raise ExportError(f"{bundle.path}: {size} bytes exceed the limit of {MAX_BYTES}", "use fewer channels")
    return size


def _with_parameters(draft: Bundle, validation: Collector, train: LabelledExamples) -> Bundle:
    """Write what criteria need to know, and return the draft that names the file."""
    on_train = collect_logits(draft, spread(train, _CLASS_MEAN_IMAGES))
    means = class_means(on_train, len(draft.labels))
    parameters = write_parameters(draft.path, means, fit_gate(validation.collect()))
    exits = replace(draft.manifest.exits, parameters=parameters)
    return replace(draft, manifest=replace(draft.manifest, exits=exits))


def _choose(draft: Bundle, validation: Collector, progress: Callable[[str], None]) -> tuple[Exits, Evaluation]:
    """Take the criterion that computes least on validation under the rule of `thresholds`, and its thresholds."""
    progress("choosing criterion and thresholds on the validation images")
    parameters, costs = draft.criterion_parameters(), costs_of(draft.stages)
    collected = validation.collect()
    scored = {name: validation_scores(collected, name, parameters) for name in usable_criteria(draft, parameters)}
    choices = {name: choose_thresholds(of_name, costs) for name, of_name in scored.items()}
    for name, choice in choices.items():
        progress(_line(name, choice, costs.strict))
    criterion = min(choices, key=lambda name: choices[name].macs_per_input)
    progress(f"default criterion: {criterion}, which computes least")
    thresholds = choices[criterion].thresholds
    masked: tuple[MaskedThresholds, ...] = choose_masked(validation, criterion, thresholds, masks_of(draft), parameters)
    exits = replace(draft.manifest.exits, criterion=criterion, thresholds=thresholds, masked=masked)
    return exits, summarise(scored[criterion], costs, criterion, thresholds)


def _line(criterion: str, choice: Choice, strict: int) -> str:
    drop, bound = 100 * choice.drop, 100 * choice.drop_bound
    saved = 100 * (1 - choice.macs_per_input / strict)
    return f"  {criterion}: saves {saved:.1f} % at a validation drop of {drop:.2f} points, bound {bound:.2f}"


def spread(images: LabelledExamples, count: int) -> LabelledExamples:
    """Return about `count` images, evenly spread over the set; all of them if there are no more."""
    chosen = np.arange(0, len(images), max(1, len(images) // count))
    return images.take(chosen).head(count)


def smooth_images(count: int, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.uint8]:
    """Draw random smooth colour images, uint8 (count, *shape), to be passed on where recordings may not be.

    shape: height, width, channels. A coarse grid of random colours is interpolated linearly, so that neighbouring
    pixels are alike, as in a photograph, and convolutions see edges and ranges of the usual size.
    """
    height, width, channels = shape
    coarse = np.random.default_rng(seed).uniform(0.0, 255.0, (count, _GOLDEN_GRID, _GOLDEN_GRID, channels))
    rows, columns = _interpolation(height), _interpolation(width)
    images: npt.NDArray[np.uint8] = np.rint(np.einsum("hi,wj,nijc->nhwc", rows, columns, coarse)).astype(np.uint8)
    return images


def _interpolation(size: int) -> npt.NDArray[np.float64]:
    """Return the matrix (size, grid) that interpolates a grid's values linearly to `size` places."""
    grid = np.arange(_GOLDEN_GRID)
    places = np.linspace(0.0, _GOLDEN_GRID - 1, size)
    weights: npt.NDArray[np.float64] = np.maximum(0.0, 1.0 - np.abs(places[:, None] - grid[None, :]))
    return weights
