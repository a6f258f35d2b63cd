"""The bundle `tests/data/tiny-wide` as if a recipe had made it, with images and outputs that can be learned from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from distree.bundle.loading import Bundle, load_bundle
from model_zoo.build.finish import ImageSets
from model_zoo.data import LabelledExamples
from model_zoo.evaluation import Collector
from model_zoo.recipes import WideRecipe, cifar10_wide
from model_zoo.report.networks import Prepared, Source
from model_zoo.report.recording import Recording
from model_zoo.report.results import Teacher
from model_zoo.training.plans import WideSettings

FOLDER = Path(__file__).parents[1] / "data" / "tiny-wide"
COUNTS = {"train": 300, "validation": 240, "test": 200}
MASKS = ((0,), (1,))


def bundle() -> Bundle:
    return load_bundle(FOLDER)


def recipe() -> WideRecipe:
    manifest = bundle().manifest
    return dataclasses.replace(
        cifar10_wide.RECIPE,
        name="tiny-wide",
        description="for tests",
        labels=manifest.labels,
        input_shape=manifest.input.shape,
        mean=manifest.preprocess.mean,
        std=manifest.preprocess.std,
        data_name="noise",
    )


def images(split: str) -> LabelledExamples:
    """Random images that the bundle's last exit is right about four times in five."""
    generator = np.random.default_rng(sorted(COUNTS).index(split))
    count = COUNTS[split]
    pixels = generator.integers(0, 256, (count, *bundle().manifest.input.shape), dtype=np.uint8)
    drawn = LabelledExamples(pixels, np.zeros(count, np.int64), np.arange(count), f"noise, {split}")
    labels = Collector(bundle(), drawn).collect().logits[:, -1].argmax(axis=1)
    wrong = generator.random(count) < 0.2
    labels = np.where(wrong, generator.integers(0, 4, count), labels)
    return dataclasses.replace(drawn, labels=labels)


def image_sets() -> ImageSets:
    return ImageSets(images)


def recording(seed: int, count: int = 400) -> Recording:
    """Made-up outputs: later exits see more, embeddings settle where an input is easy, missing branches cost."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, count)
    easy = generator.gamma(2.0, 1.2, (count, 1))
    noise = generator.normal(0, 1, (count, 4))

    def logits(strength: float, exit: int, salt: float) -> np.ndarray:
        later = generator.normal(0, 1, (count, 4))
        return np.eye(4)[labels] * easy * strength * (1 + 0.3 * exit) + 0.6 * noise + (0.9 - 0.2 * exit) * later + salt

    of_masks = {
        missing: np.stack([logits(strength, k, 0.0) for k in range(3)], axis=1)
        for missing, strength in (((), 1.3), ((0,), 1.0), ((1,), 0.8))
    }
    direction = generator.normal(0, 1, (4, 2, 6))[labels]
    embeddings = [
        [np.maximum(direction[:, b] + generator.normal(0, 1, (count, 6)) / (1 + k + easy), 0) for b in range(2)]
        for k in range(3)
    ]
    return Recording(labels, of_masks, tuple(tuple(of_exit) for of_exit in embeddings))


def prepared(seed: int, variant: str = "full") -> Prepared:
    """A network of made-up outputs, with the costs and parameters of the bundle."""
    made_of = bundle()
    source = Source(
        format=1,
        data_sha256="",
        checkpoint_sha256="",
        identity={},
        revision=made_of.revision,
        train_inputs=300,
        validation_inputs=400,
        test_inputs=400,
        epochs=20,
        kept_epoch=18,
        seconds=100.0 + seed,
        machine=None if seed == 2 else "2 x86-64 cores",
        float_validation=(0.5, 0.6, 0.7),
        float_test=(0.5, 0.6, 0.7),
        teacher=Teacher(14, 14, 1000.0, None, 0.85),
    )
    return Prepared(WideSettings(2, seed, variant), made_of, source, recording(10 * seed), recording(10 * seed + 1))
