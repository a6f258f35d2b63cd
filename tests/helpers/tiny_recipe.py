"""A wide recipe small enough to train in a test, and images to train it on."""

from __future__ import annotations

import dataclasses

import numpy as np

from model_zoo.build.finish import ImageSets
from model_zoo.data import LabelledExamples
from model_zoo.recipes import Schedule, cifar10_wide

SIZE = 16
COUNTS = {"train": 200, "validation": 60, "test": 50}
WIDTHS = cifar10_wide.Widths(stages=(4, 6, 8), heads=(4, 4))


def build_teacher():
    from torch import nn

    from model_zoo.training.layers import Teacher, conv_unit

    trunk = nn.Sequential(conv_unit(3, 8, 3, stride=4), conv_unit(8, cifar10_wide.TEACHER_FILTERS, 1))
    return Teacher(trunk, cifar10_wide.TEACHER_FILTERS, len(cifar10_wide.LABELS))


RECIPE = dataclasses.replace(
    cifar10_wide.RECIPE,
    name="tiny",
    input_shape=(SIZE, SIZE, 3),
    build_network=lambda branches: cifar10_wide.build_network(branches, WIDTHS),
    build_small=lambda branches: cifar10_wide.build_network(branches, WIDTHS),
    build_teacher=build_teacher,
    teacher=Schedule(epochs=1, batch=50, peak_rate=0.05),
    student=Schedule(epochs=1, batch=50, peak_rate=0.05),
)


def made_images(split: str) -> LabelledExamples:
    """Noise with a brighter square whose place is the class."""
    generator = np.random.default_rng(sorted(COUNTS).index(split))
    count = COUNTS[split]
    labels = np.arange(count) % 10
    images = generator.integers(0, 120, (count, SIZE, SIZE, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 8 * (label // 5), 3 * (label % 5)
        image[row : row + 8, column : column + 4] += 110
    return LabelledExamples(images, labels, np.arange(count), f"made, {split}")


def image_sets() -> ImageSets:
    return ImageSets(made_images)
