"""Training and export, on a small made-up set; these run where the extra `zoo` is installed."""

from __future__ import annotations

import dataclasses
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from model_zoo.data import LabelledExamples
from model_zoo.errors import DataError, ExportError
from model_zoo.recipes import TrainingSettings, get_recipe, recipe_names

RECIPE = get_recipe("fashion")
SETTINGS = TrainingSettings(epochs=2, batch=32, validation=64, seed=3)


def made(count: int, seed: int) -> LabelledExamples:
    """Images whose class is the place of a bright square, with noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, count)
    images = generator.integers(0, 60, (count, 28, 28, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 + 12 * (label // 5), 2 + 5 * (label % 5)
        image[row : row + 6, column : column + 4] = 220
    return LabelledExamples(images, labels, np.arange(count), "made")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def test_recipes_are_found_by_name() -> None:
    assert [get_recipe(name).name for name in recipe_names()] == list(recipe_names())
    with pytest.raises(DataError, match="name one of fashion"):
        get_recipe("zzz")


def trainer(work: Path, settings: TrainingSettings = SETTINGS, lines: list[str] | None = None):
    training = pytest.importorskip("model_zoo.training.chain")
    tell = (lambda _: None) if lines is None else lines.append
    return training.Trainer(RECIPE, settings, made(160, 1), made(64, 2), work, tell)


def weights_of(made_trainer) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in made_trainer.network.state_dict().items()}


def test_a_run_that_was_cut_ends_like_one_that_was_not(tmp_path: Path, monkeypatch) -> None:
    whole = trainer(tmp_path / "whole")
    report = whole.run()
    cut = trainer(tmp_path / "cut")
    loss = cut._loss

    def cut_in_the_second(chosen, generator, epoch: int):
        if epoch == 1:
            raise KeyboardInterrupt
        return loss(chosen, generator, epoch)

    monkeypatch.setattr(cut._loop, "loss", cut_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    lines: list[str] = []
    resumed = trainer(tmp_path / "cut", lines=lines)
    report_resumed = resumed.run()
    assert lines[0].startswith("resuming after epoch 1")
    assert report_resumed.accuracy == report.accuracy
    for name, value in weights_of(whole).items():
        assert np.array_equal(value, weights_of(resumed)[name]), name


def test_a_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    with pytest.raises(DataError, match="another seed"):
        trainer(tmp_path, dataclasses.replace(SETTINGS, seed=4)).run()


def test_augmentation_only_shifts_and_mirrors() -> None:
    training = pytest.importorskip("model_zoo.training.chain")
    import torch

    image = torch.arange(28 * 28, dtype=torch.float32).reshape(1, 28, 28, 1)
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        moved = training.augment(image, SETTINGS, generator)[0, :, :, 0]
        inner = moved[4:24, 4:24]
        steps = inner[:, 1:] - inner[:, :-1]
        assert set(steps.unique().tolist()) <= {1.0, -1.0}
        assert ((inner[1:] - inner[:-1]) == 28).all()
        middle = image[0, 13, 13, 0]
        assert ((moved - middle).abs() <= 2 + 28 * 2 + 1).any()


def test_the_whole_build_on_made_data(tmp_path: Path, monkeypatch) -> None:
    """A bundle that loads, verifies and can be evaluated; nothing of its accuracy is claimed."""
    pytest.importorskip("litert_torch")
    pytest.importorskip("ai_edge_quantizer")
    from distree.bundle.loading import load_bundle
    from model_zoo.build import chain as build
    from model_zoo.verification import check_golden

    for split, count in (("train", 224), ("t10k", 60)):
        images = made(count, 7 if split == "train" else 8)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte.gz", images.inputs[..., 0])
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte.gz", images.labels)
    monkeypatch.setattr(build, "_SAMPLES_PER_CLASS", 1)
    paths = build.BuildPaths(tmp_path, tmp_path / "out", tmp_path / "work", tmp_path / "samples.npz")
    lines: list[str] = []
    bundle = build.build_bundle(RECIPE, SETTINGS, paths, lines.append)
    assert bundle == load_bundle(tmp_path / "out")
    assert check_golden(bundle).worst_steps <= 2
    assert bundle.manifest.measured.data == "Fashion-MNIST test, 60 images"
    assert lines.index("reading the test set, once") > lines.index("choosing thresholds on the validation images")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bundle.yaml",
        "golden.npz",
        "stage0.tflite",
        "stage1.tflite",
        "stage2.tflite",
    ]


def test_segments_that_do_not_meet_are_refused() -> None:
    from distree.bundle.loading import load_bundle
    from model_zoo.build.segments import check_boundaries

    stages = load_bundle("fashion").stages
    moved = dataclasses.replace(
        stages[1], input=dataclasses.replace(stages[1].input, zero_point=stages[1].input.zero_point + 1)
    )
    with pytest.raises(ExportError, match="change their meaning"):
        check_boundaries((stages[0], moved, stages[2]))
    with pytest.raises(ExportError):
        check_boundaries((stages[0], stages[2]))
