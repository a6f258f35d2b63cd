"""Networks of a report in a work folder: what is used again, what is made, what is missing. Without torch."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_wide

from model_zoo.errors import DataError, ExportError
from model_zoo.evaluation import Collector
from model_zoo.report import networks
from model_zoo.report.networks import Workshop, file_sha256
from model_zoo.report.recording import Recording
from model_zoo.training.plans import NOT_TRAINED, StudentPlan, WideSettings

SETTINGS = WideSettings(2, 1)


def workshop(work: Path, data: str = "data", train: bool = False) -> Workshop:
    return Workshop(tiny_wide.recipe(), tiny_wide.image_sets(), data, work, train)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder in which one network has been made before."""
    plan = StudentPlan.of(tiny_wide.recipe(), SETTINGS)
    checkpoint = plan.checkpoint(tmp_path)
    checkpoint.write_bytes(b"stands for a checkpoint")
    folder = tmp_path / "report" / f"tiny-wide-{plan.name}"
    shutil.copytree(tiny_wide.FOLDER, folder / "bundle")
    prepared = tiny_wide.prepared(1)
    prepared.validation.save(folder / "validation.npz")
    prepared.test.save(folder / "test.npz")
    source = dataclasses.replace(
        prepared.source, data_sha256="data", checkpoint_sha256=file_sha256(checkpoint), identity=plan.identity()
    )
    networks._write_source(source, folder / "source.json")
    return tmp_path


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the extra `zoo`."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [
        name for name in sys.modules if name.startswith(("model_zoo.training.trained", "model_zoo.build.wide"))
    ]:
        monkeypatch.delitem(sys.modules, name)


def folder_of(work: Path) -> Path:
    (folder,) = (work / "report").iterdir()
    return folder


def test_what_was_made_before_is_used_again_without_torch(work: Path, no_torch: None) -> None:
    found = workshop(work).prepare(SETTINGS)
    expected = tiny_wide.prepared(1)
    assert not isinstance(found, str)
    assert found.bundle.revision == expected.bundle.revision
    assert found.source.teacher == expected.source.teacher
    assert found.source.float_test == expected.source.float_test
    for one, other in ((found.validation, expected.validation), (found.test, expected.test)):
        assert (one.labels == other.labels).all()
        assert all((one.logits[missing] == other.logits[missing]).all() for missing in ((), *other.masks))
        pairs = zip(one.embeddings, other.embeddings, strict=True)
        assert all((a == b).all() for of_exits in pairs for a, b in zip(*of_exits, strict=True))


def other_checkpoint(work: Path) -> None:
    next(work.glob("*.checkpoint.pt")).write_bytes(b"trained anew")


def lost_recording(work: Path) -> None:
    (folder_of(work) / "test.npz").write_bytes(b"PK half a recording")


def damaged_bundle(work: Path) -> None:
    (folder_of(work) / "bundle" / "stage0.fusion.tflite").write_bytes(b"")


def cut_while_made(work: Path) -> None:
    (folder_of(work) / "source.json").unlink()


@pytest.mark.parametrize("change", [other_checkpoint, lost_recording, damaged_bundle, cut_while_made])
def test_what_does_not_fit_any_more_is_made_again(work: Path, no_torch: None, change) -> None:
    change(work)
    with pytest.raises(ExportError, match="exporting a network needs torch"):
        workshop(work).prepare(SETTINGS)


def test_another_data_file_makes_everything_again(work: Path, no_torch: None) -> None:
    with pytest.raises(ExportError, match="needs torch"):
        workshop(work, "other data").prepare(SETTINGS)


def test_what_is_not_trained_is_said_to_be(work: Path, no_torch: None) -> None:
    assert workshop(work).prepare(WideSettings(2, 2)) == NOT_TRAINED
    assert workshop(work).prepare(WideSettings(2, 1, "small")) == NOT_TRAINED
    with pytest.raises(DataError, match="does not support 5 branches; choose one of 2, 4"):
        workshop(work).prepare(WideSettings(5, 1))


def test_training_needs_torch(work: Path, no_torch: None) -> None:
    with pytest.raises(ExportError, match="pip install torch"):
        workshop(work, train=True).prepare(WideSettings(2, 2))


def test_a_recording_gives_what_the_collector_gave(tmp_path: Path) -> None:
    images = tiny_wide.images("test").head(20)
    collector = Collector(tiny_wide.bundle(), images)
    Recording.of(collector, tiny_wide.MASKS).save(tmp_path / "kept.npz")
    kept = Recording.load(tmp_path / "kept.npz")
    assert kept.masks == tiny_wide.MASKS
    for missing in ((), *tiny_wide.MASKS):
        one, other = kept.collect(missing), collector.collect(missing)
        assert (one.logits == other.logits).all()
        assert one.missing == other.missing
        assert (one.labels == other.labels).all()
        for of_one, of_other in zip(one.embeddings, other.embeddings, strict=True):
            for a, b in zip(of_one, of_other, strict=True):
                assert (a is None) == (b is None)
                assert a is None or np.array_equal(a, b)


def test_a_file_that_is_no_recording(tmp_path: Path) -> None:
    np.savez(tmp_path / "else.npz", input=np.zeros(3))
    with pytest.raises(DataError, match="not a recording"):
        Recording.load(tmp_path / "else.npz")
