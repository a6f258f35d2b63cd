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
    """Channels of one branch: of the three stages, at 16, 8 and 4 pixels a side, and of the first two exits' heads."""

    stages: tuple[int, int, int]
    heads: tuple[int, int]


WIDTHS = {
    2: Widths(stages=(18, 72, 192), heads=(48, 64)),
    4: Widths(stages=(10, 44, 128), heads=(32, 40)),
}
"""By number of branches; all branches together cost 37 and 32 million multiply-accumulates."""

SMALL_WIDTHS = {
    2: Widths(stages=(16, 48, 112), heads=(40, 40)),
    4: Widths(stages=(7, 32, 88), heads=(32, 32)),
}
"""Of the networks without early exits that cost about what the others do with them: 20 and 18 million."""


def build_network(branches: int, widths: Widths) -> Any:
    """Return branches and fusions of these widths, freshly initialised from torch's generator. Imports torch."""
    import torch

    from model_zoo.training.layers import Branch, Fusion, WideNetwork, start_as_identity

    values = TEACHER_FILTERS // branches
    network = WideNetwork(
        [Branch(_stages(widths, values)) for _ in range(branches)],
        [Fusion(values, branches, len(LABELS)) for _ in range(3)],
    )
    start_as_identity(network)
    return network.to(memory_format=torch.channels_last)


def _stages(widths: Widths, values: int) -> list[Any]:
    from torch import nn

    from model_zoo.training.layers import BranchStage, EmbeddingExit, PoolUnit, Whitening, conv_unit

    one, two, three = widths.stages
    bounded = nn.ReLU6()  # rare large values would leave the others few of int8's steps
    trunks = [
        nn.Sequential(Whitening(3), bounded, PoolUnit(Whitening.outputs(3), one), conv_unit(one, one, 3)),
        nn.Sequential(PoolUnit(one, two), conv_unit(two, two, 3)),
        nn.Sequential(PoolUnit(two, three), conv_unit(three, three, 3)),
    ]
    early, late = widths.heads
    heads = [
        EmbeddingExit(nn.Sequential(nn.MaxPool2d(2), conv_unit(one, early, 3)), early, values),
        EmbeddingExit(conv_unit(two, late, 3, stride=2), late, values),
        EmbeddingExit(nn.Identity(), three, values),
    ]
    parts = zip(trunks, heads, strict=True)
    return [BranchStage(trunk, head, is_last=k == 2) for k, (trunk, head) in enumerate(parts)]


def build_teacher() -> Any:
    """Return the teacher, freshly initialised: images (n, height, width, channels) to (features, logits).

    Built to learn quickly rather than to be small. Source: see `model_zoo.training.layers.Whitening`.
    """
    import torch
    from torch import nn

    from model_zoo.training.layers import Teacher, Whitening, shift_norm, start_as_identity

    def block(channels_in: int, channels: int, channels_out: int, last: Any) -> list[Any]:
        return [
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
            nn.MaxPool2d(2),
            shift_norm(channels, momentum=0.4),
            nn.GELU(),
            nn.Conv2d(channels, channels_out, 3, padding=1, bias=False),
            shift_norm(channels_out, momentum=0.4),
            last,
        ]

    stem = Whitening.outputs(3)
    trunk = nn.Sequential(
        Whitening(3),
        nn.GELU(),
        *block(stem, 48, 48, nn.GELU()),
        *block(48, 128, 128, nn.GELU()),
        *block(128, 192, TEACHER_FILTERS, nn.ReLU()),
    )
    start_as_identity(trunk)
    teacher = Teacher(trunk, TEACHER_FILTERS, len(LABELS), logit_scale=1 / 9)
    return teacher.to(memory_format=torch.channels_last)


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
    teacher=Schedule(
        epochs=10,
        batch=512,
        peak_rate=0.75,
        warm_up=0.23,
        anneal="linear",
        momentum=0.85,
        weight_decay=1.3e-3,
        shift_rate=64,
    ),
    student=Schedule(
        epochs=16,
        batch=256,
        peak_rate=0.3,
        warm_up=0.2,
        anneal="linear",
        momentum=0.85,
        weight_decay=1.3e-3,
        shift_rate=16,
    ),
    distillation=Distillation(),
    data_hint=(
        "an npz with jpeg (all images as JPEG files, end to end), offset (n + 1), label and is_test, made from "
        "https://www.cs.toronto.edu/~kriz/cifar.html"
    ),
)
