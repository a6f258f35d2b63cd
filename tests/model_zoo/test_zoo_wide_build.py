"""A wide recipe from images to a bundle and a report, tiny; these run where the extra `zoo` is installed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny_recipe

pytest.importorskip("torch")
pytest.importorskip("litert_torch")
pytest.importorskip("ai_edge_quantizer")

import torch

from distree.bundle.loading import load_bundle
from model_zoo.build.wide import build_wide
from model_zoo.errors import DataError
from model_zoo.recipes import Schedule, cifar10_wide
from model_zoo.report.networks import Workshop
from model_zoo.report.write import Asked, write_report
from model_zoo.training.loop import read_checkpoint
from model_zoo.training.plans import StudentPlan, WideSettings
from model_zoo.training.trained import find_trained
from model_zoo.training.wide import WideTraining
from model_zoo.verification import check_golden

RECIPE = tiny_recipe.RECIPE
TWO_EPOCHS = dataclasses.replace(RECIPE, student=Schedule(epochs=2, batch=50, peak_rate=0.05))


USUAL = WideSettings(2)


def train(work: Path, recipe=RECIPE, settings: WideSettings = USUAL, lines: list[str] | None = None):
    sets = tiny_recipe.image_sets()
    tell = (lambda _: None) if lines is None else lines.append
    return WideTraining(recipe, sets.train, sets.validation, work, tell).train(settings)


def same_weights(one, other) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    """A bundle built from nothing, and the work folder that it leaves."""
    folder = tmp_path_factory.mktemp("wide")
    lines: list[str] = []
    bundle = build_wide(
        RECIPE, WideSettings(2), tiny_recipe.image_sets(), folder / "out", folder / "work", lines.append
    )
    return bundle, folder, lines


def test_the_bundle_is_whole_and_small(built) -> None:
    bundle, folder, lines = built
    assert bundle == load_bundle(folder / "out")
    assert bundle.branch_counts == (2, 2, 2)
    assert check_golden(bundle).worst_steps <= bundle.manifest.golden.tolerance
    assert bundle.manifest.measured.trained.epochs == 1
    assert lines[-1].endswith("bytes in all")
    assert not list((folder / "out").glob("*.float.tflite"))


def test_building_again_trains_nothing_and_gives_the_same_bundle(built) -> None:
    bundle, folder, _ = built
    lines: list[str] = []
    (folder / "again").mkdir()
    (folder / "again" / "stage7.branch9.tflite").write_bytes(b"of an older bundle")
    again = build_wide(
        RECIPE, WideSettings(2), tiny_recipe.image_sets(), folder / "again", folder / "work", lines.append
    )
    assert again.revision == bundle.revision
    assert not any("training" in line and "images" not in line for line in lines)
    assert sorted(path.name for path in (folder / "again").iterdir()) == sorted(
        path.name for path in bundle.path.iterdir()
    )


def test_a_report_of_what_is_there(built, tmp_path: Path) -> None:
    """Its bundle is the one that was built; a second report makes nothing anew and says the same."""
    bundle, folder, _ = built
    written = []
    for attempt in ("first", "second"):
        lines: list[str] = []
        workshop = Workshop(RECIPE, tiny_recipe.image_sets(), "data", folder / "work", progress=lines.append)
        report = write_report(RECIPE, Asked((1,), (2,)), workshop, tmp_path / attempt, lines.append)
        assert any(line.startswith("exporting") for line in lines) == (attempt == "first")
        written.append((tmp_path / attempt / "tiny.json").read_text())
    assert written[0] == written[1]
    (network,) = report.networks
    assert network.exported.revision == bundle.revision
    assert {absent.variant for absent in report.absent} == {"no-dropout", "small"}
    assert network.training.machine is not None
    assert report.teacher is not None


def test_a_run_that_was_cut_ends_like_one_that_was_not(tmp_path: Path, monkeypatch) -> None:
    whole = train(tmp_path / "whole", TWO_EPOCHS)
    from model_zoo.training.distillation import Student

    loss = Student._loss

    def cut_in_the_second(self, chosen, generator, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return loss(self, chosen, generator, epoch)

    with monkeypatch.context() as patched:
        patched.setattr(Student, "_loss", cut_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", TWO_EPOCHS)
    plan = StudentPlan.of(TWO_EPOCHS, WideSettings(2))
    assert find_trained(plan, tmp_path / "cut") == "trained for 1 of 2 epochs"
    lines: list[str] = []
    resumed = train(tmp_path / "cut", TWO_EPOCHS, lines=lines)
    assert any(line.startswith("resuming after epoch 1") for line in lines)
    assert same_weights(whole.network, resumed.network)
    assert whole.student.accuracy == resumed.student.accuracy


def test_a_trained_network_is_found_by_its_checkpoint(tmp_path: Path) -> None:
    trained = train(tmp_path)
    plan = StudentPlan.of(RECIPE, WideSettings(2))
    found = find_trained(plan, tmp_path)
    assert not isinstance(found, str)
    assert same_weights(found.network, trained.network)
    assert found.checkpoint.accuracy == trained.student.accuracy
    assert found.checkpoint.machine is not None
    assert find_trained(StudentPlan.of(RECIPE, WideSettings(2, seed=2)), tmp_path) == "not trained"
    plan.checkpoint(tmp_path).rename(StudentPlan.of(RECIPE, WideSettings(2, seed=2)).checkpoint(tmp_path))
    assert find_trained(StudentPlan.of(RECIPE, WideSettings(2, seed=2)), tmp_path) == "trained with other settings"


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(DataError, match="another seed or other settings; delete it, or give another --work"):
        train(tmp_path, TWO_EPOCHS)


def test_a_checkpoint_of_another_structure_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    wider = dataclasses.replace(tiny_recipe.WIDTHS, stages=(4, 6, 10))
    other = dataclasses.replace(RECIPE, build_network=lambda branches: cifar10_wide.build_network(branches, wider))
    assert find_trained(StudentPlan.of(other, WideSettings(2)), tmp_path) == "trained with another structure"
    with pytest.raises(DataError, match="another structure; delete it, or give another --work"):
        train(tmp_path, other)


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    for content in (b"", b"half a checkpoint", b"PK\x03\x04"):
        broken.write_bytes(content)
        with pytest.raises(DataError, match="not a checkpoint of a training"):
            read_checkpoint(broken)
    torch.save({"identity": {}}, broken)
    with pytest.raises(DataError, match="not a checkpoint of a training"):
        read_checkpoint(broken)


def test_the_small_variant_trains_its_last_exit_alone(tmp_path: Path) -> None:
    trained = train(tmp_path, settings=WideSettings(4, variant="small"))
    assert len(trained.student.accuracy) == 1
    assert len(trained.network.branches) == 4
