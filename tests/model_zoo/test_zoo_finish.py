"""From segments to a finished bundle, on the segments of `tests/data/tiny-wide`."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import tiny_wide

from distree.bundle.loading import load_bundle
from distree.bundle.manifest import Trained
from distree.criteria import CRITERIA
from distree.exits_taken import exits_taken
from model_zoo.build import finish
from model_zoo.costs import costs_of
from model_zoo.criteria import usable_criteria
from model_zoo.errors import ExportError
from model_zoo.evaluation import score_exits
from model_zoo.thresholds import masks_of
from model_zoo.verification import check_golden

TRAINED = Trained(epochs=2, seed=7, seconds=1.5, torch="2.13.0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[finish.Finished, list[str]]:
    folder = tmp_path_factory.mktemp("finish") / "bundle"
    folder.mkdir()
    for segment in tiny_wide.FOLDER.glob("*.tflite"):
        shutil.copy(segment, folder)
    lines: list[str] = []
    done = finish.finish_bundle(
        tiny_wide.recipe(),
        tiny_wide.bundle().stages,
        folder,
        tiny_wide.image_sets(),
        TRAINED,
        lines.append,
        "tiny-wide-2",
    )
    return done, lines


def test_the_bundle_is_whole(made) -> None:
    done, _ = made
    bundle = done.bundle
    assert bundle == load_bundle(bundle.path)
    assert check_golden(bundle).worst_steps <= bundle.manifest.golden.tolerance
    assert (bundle.name, bundle.manifest.license) == ("tiny-wide-2", "Apache-2.0")
    assert bundle.manifest.description == "for tests; 2 branches"
    assert bundle.manifest.measured.trained == TRAINED
    assert [masked.missing for masked in bundle.manifest.exits.masked] == list(masks_of(bundle))


def test_it_can_use_every_criterion(made) -> None:
    done, lines = made
    usable = usable_criteria(done.bundle, done.bundle.criterion_parameters())
    assert set(usable) == set(CRITERIA) - {"deadline"}
    assert all(any(line.startswith(f"  {name}: saves") for line in lines) for name in usable)


def test_the_default_is_the_criterion_that_saves_most_on_validation(made) -> None:
    done, lines = made
    saved = {
        line.split(":")[0].strip(): float(line.split("saves ")[1].split(" %")[0]) for line in lines if "saves" in line
    }
    assert saved[done.bundle.criterion] == max(saved.values())
    assert f"default criterion: {done.bundle.criterion}, which computes least" in lines


def test_the_test_set_is_read_after_everything_is_settled(made) -> None:
    _, lines = made
    assert lines[-1] == "reading the test set, once"


def test_figures_are_those_of_the_segments(made) -> None:
    done, _ = made
    bundle, measured = done.bundle, done.bundle.manifest.measured
    scored = score_exits(done.test.collect(), bundle.criterion, bundle.criterion_parameters())
    taken = exits_taken(scored.scores, bundle.thresholds)
    costs = costs_of(bundle.stages)
    assert measured.macs_per_input == pytest.approx(np.asarray(costs.macs)[taken].mean(), abs=0.1)
    assert measured.accuracy_at_thresholds == pytest.approx(scored.correct[np.arange(len(taken)), taken].mean())
    assert measured.data == "noise test, 200 images"


def test_class_means_are_of_training_images(made) -> None:
    done, _ = made
    parameters = done.bundle.criterion_parameters()
    assert len(parameters.class_means) == 4
    assert len(parameters.gate) == len(done.bundle.stages) - 1


def test_a_bundle_that_is_too_large_is_refused(made, monkeypatch) -> None:
    done, _ = made
    monkeypatch.setattr(finish, "MAX_BYTES", 1000)
    with pytest.raises(ExportError, match="bytes exceed the limit of 1000; use fewer channels"):
        finish.check_size(done.bundle)


def test_each_split_is_read_once_and_only_when_asked_for() -> None:
    asked: list[str] = []

    def read(split):
        asked.append(split)
        return tiny_wide.images(split)

    sets = finish.ImageSets(read)
    assert asked == []
    assert len(sets.validation) == len(sets.validation) == 240
    assert sets.test is sets.test
    assert asked == ["validation", "test"]


def test_spread_takes_images_from_the_whole_set() -> None:
    images = tiny_wide.images("train")
    some = finish.spread(images, 50)
    assert len(some) == 50
    assert some.index[-1] >= 290
    assert (some.inputs == images.inputs[some.index]).all()
    assert len(finish.spread(images, 1000)) == 300


def test_golden_images_are_smooth_and_the_same_every_time() -> None:
    shape = (32, 24, 3)
    images = finish.smooth_images(4, shape, 5)
    assert images.shape == (4, *shape)
    assert images.dtype == np.uint8
    assert (images == finish.smooth_images(4, shape, 5)).all()
    assert (images != finish.smooth_images(4, shape, 6)).any()
    steps = np.abs(np.diff(images.astype(int), axis=1))
    assert steps.max() <= np.ceil(255 / ((32 - 1) / 4))
    assert images.std() > 30, "an even grey would exercise nothing"
