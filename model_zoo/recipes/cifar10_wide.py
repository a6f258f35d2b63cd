"""CIFAR-10 split over several branches, with three exits whose embeddings are fused.

A branch's board spends little on the first exit and most on the last stage: an input that leaves early saves what
it does not run, so what all inputs run must be light. Heads work on maps of 4 x 4 and 8 x 8 for the same reason.
Every exit's embedding has the values of the branch's group of the teacher's filters, so embeddings of different
exits can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model_zoo.recipes import Distillation, Schedule, WideRecipe

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TEACHER_FILTERS = 128
"""Filters of the teacher's last layer, divided among the branches."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Channels of one branch: of the stem, of the three stages and of the heads of the first two exits."""

    stem: int
    first: tuple[int, int]
    second: int
    third: tuple[int, int]
    heads: tuple[int, int]


WIDTHS = {
    2: Widths(stem=16, first=(24, 40), second=48, third=(80, 128), heads=(56, 64)),
    4: Widths(stem=12, first=(16, 28), second=36, third=(56, 88), heads=(40, 48)),
}
"""By number of branches; all branches together cost about the same, 25 million multiply-accumulates."""

SMALL_WIDTHS = {
    2: Widths(stem=12, first=(20, 32), second=36, third=(60, 96), heads=(56, 64)),
    4: Widths(stem=8, first=(12, 20), second=28, third=(44, 66), heads=(40, 48)),
}
"""Of the networks without early exits that cost about what the others do with them."""


def build_network(branches: int, widths: Widths) -> Any:
    """Return branches and fusions of these widths, freshly initialised from torch's generator. Imports torch."""
    import torch

    from model_zoo.training.layers import Branch, Fusion, WideNetwork

    values = TEACHER_FILTERS // branches
    network = WideNetwork(
        [Branch(_stages(widths, values)) for _ in range(branches)],
        [Fusion(values, branches, len(LABELS)) for _ in range(3)],
    )
    return network.to(memory_format=torch.channels_last)


def _stages(widths: Widths, values: int) -> list[Any]:
    from torch import nn

    from model_zoo.training.layers import BranchStage, EmbeddingExit, Residual, Shortcut, conv_unit

    wide, narrow = widths.first, widths.third
    first = nn.Sequential(
        conv_unit(3, widths.stem, 3),
        conv_unit(widths.stem, wide[0], 3, stride=2),
        conv_unit(wide[0], wide[1], 3, stride=2),
    )
    second = nn.Sequential(conv_unit(wide[1], widths.second, 3), Shortcut(widths.second))
    third = nn.Sequential(
        conv_unit(widths.second, narrow[0], 3),
        conv_unit(narrow[0], narrow[1], 3, stride=2),
        Residual(narrow[1]),
    )
    heads = [
        EmbeddingExit(conv_unit(wide[1], widths.heads[0], 3, stride=2), widths.heads[0], values),
        EmbeddingExit(conv_unit(widths.second, widths.heads[1], 3, stride=2), widths.heads[1], values),
        EmbeddingExit(nn.Identity(), narrow[1], values),
    ]
    parts = zip((first, second, third), heads, strict=True)
    return [BranchStage(trunk, head, is_last=k == 2) for k, (trunk, head) in enumerate(parts)]


def build_teacher() -> Any:
    """Return the teacher, freshly initialised: images (n, height, width, channels) to (features, logits)."""
    import torch
    from torch import nn

    from model_zoo.training.layers import Shortcut, Teacher, conv_unit

    trunk = nn.Sequential(
        conv_unit(3, 32, 3),
        nn.MaxPool2d(2),
        conv_unit(32, 64, 3),
        Shortcut(64),
        nn.MaxPool2d(2),
        conv_unit(64, 128, 3),
        Shortcut(128),
        nn.MaxPool2d(2),
        conv_unit(128, 224, 3),
        Shortcut(224),
        conv_unit(224, TEACHER_FILTERS, 1),
    )
    return Teacher(trunk, TEACHER_FILTERS, len(LABELS)).to(memory_format=torch.channels_last)


RECIPE = WideRecipe(
    name="cifar10-wide",
    description="CIFAR-10, 32 x 32 colour, branches on boards of their own, three fused exits, int8",
    labels=LABELS,
    input_shape=(32, 32, 3),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    data_name="CIFAR-10",
    branch_counts=tuple(WIDTHS),
    build_network=lambda branches: build_network(branches, WIDTHS[branches]),
    build_small=lambda branches: build_network(branches, SMALL_WIDTHS[branches]),
    build_teacher=build_teacher,
    teacher=Schedule(epochs=14, batch=128, peak_rate=0.1, anneal="linear"),
    student=Schedule(epochs=20, batch=128, peak_rate=0.06, anneal="linear"),
    distillation=Distillation(),
    data_hint=(
        "an npz with jpeg (all images as JPEG files, end to end), offset (n + 1), label and is_test, made from "
        "https://www.cs.toronto.edu/~kriz/cifar.html"
    ),
)
