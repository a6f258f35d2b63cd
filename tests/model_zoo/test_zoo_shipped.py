"""The bundles that ship, and the samples that ship with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distree.bundle.loading import load_bundle, zoo_folder
from model_zoo.data import about_samples, load_examples, shipped_samples
from model_zoo.recipes import get_whole_recipe, whole_recipe_names
from model_zoo.verification import check_golden

SHIPPED = sorted(path.name for path in zoo_folder().iterdir() if path.is_dir())
WHOLE = whole_recipe_names()
MAX_SAMPLE_BYTES = 500_000


def test_all_recipes_of_whole_networks_have_a_bundle():
    assert set(WHOLE) < set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_bundle_passes_its_own_test(name):
    report = check_golden(load_bundle(name))
    assert report.worst_steps <= report.tolerance


@pytest.mark.parametrize("name", WHOLE)
def test_a_split_bundle_takes_what_its_recipe_declares_and_is_small(name):
    bundle, recipe = load_bundle(name), get_whole_recipe(name)
    assert (bundle.manifest.input, bundle.manifest.preprocess) == (recipe.input, recipe.preprocess)
    assert (bundle.labels, bundle.manifest.license) == (recipe.labels, recipe.licence)
    assert sum(path.stat().st_size for path in bundle.path.iterdir()) < 1_000_000


@pytest.mark.parametrize("name", WHOLE)
def test_the_figures_of_a_split_bundle_are_of_a_test_set_that_was_opened_once(name):
    manifest = load_bundle(name).manifest
    assert manifest.measured.data.startswith("test.npz, ")
    assert manifest.measured.data.endswith("opened once")
    assert manifest.split_from.tested_on.labelled
    assert not manifest.split_from.thresholds_from.seen
    assert manifest.split_from.promise.drop_bound <= manifest.split_from.promise.max_drop


@pytest.mark.parametrize("name", SHIPPED)
def test_every_bundle_has_samples_that_it_takes(name):
    bundle, path = load_bundle(name), shipped_samples(name)
    samples = load_examples(path, spec=bundle.manifest.input, labels=bundle.labels)
    assert path.stat().st_size < MAX_SAMPLE_BYTES
    assert about_samples(path)
    assert len({one.tobytes() for one in samples.inputs}) > len(samples) * 0.99
    if samples.labels is not None:
        counts = np.bincount(samples.labels, minlength=len(bundle.labels))
        assert counts.min() == counts.max()


def test_samples_are_named_in_their_readme():
    folder = shipped_samples("fashion").parent
    told = (folder / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted(folder.glob("*.npz")) if f"| `{path.name}` |" not in told] == []
    assert {path.stem for path in folder.glob("*.npz")} == set(SHIPPED)


def test_an_evaluation_on_the_samples_says_what_they_are(zoo, capsys):
    assert zoo("evaluate", "spoken-digits") == 0
    assert (
        "the shipped samples (digits by three voices that were not in training), 30 inputs" in capsys.readouterr().out
    )
    assert zoo("evaluate", "cifar10-wide") == 2
    assert "the samples that ship with 'cifar10-wide' have no labels; give --data" in capsys.readouterr().err


def test_a_bundle_without_samples_asks_for_data(zoo, copied, capsys):
    manifest = Path(copied, "bundle.yaml")
    manifest.write_text(manifest.read_text().replace("name: fashion", "name: other", 1))
    assert zoo("evaluate", copied) == 2
    assert "no samples ship with 'other'; give --data" in capsys.readouterr().err
