"""Fashion-MNIST with three exits, small enough for a single-board computer.

The features between the stages are 7 x 7 x 32 = 1568 values, one byte each once quantised. Most inputs leave
at the first exit, so stage 0 and its head are kept near 1.4 million multiply-accumulates; the later stages
see the hard inputs only and may cost more.
"""

from __future__ import annotations

from typing import Any

from model_zoo.recipes import Recipe

LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FEATURES = 32  # channels of what travels between stages


def build_network() -> Any:
    """Return the network, freshly initialised from torch's generator. Imports torch."""
    import torch
    from torch import nn

    from model_zoo.training.layers import Residual, Stage, conv_unit

    def head(channels: int) -> Any:
        # The classifier is a 4 x 4 convolution, not flatten and linear: the same arithmetic without the
        # transpose that flattening a channels-last map in channels-first order would put into the segment.
        return nn.Sequential(conv_unit(_FEATURES, channels, 3, stride=2), nn.Conv2d(channels, len(LABELS), 4))

    stem = nn.Sequential(conv_unit(1, 16, 3), conv_unit(16, 24, 3, stride=2), conv_unit(24, _FEATURES, 3, stride=2))
    middle = nn.Sequential(conv_unit(_FEATURES, 48, 3), Residual(48), conv_unit(48, _FEATURES, 1))
    last = nn.Sequential(conv_unit(_FEATURES, 64, 3), conv_unit(64, 80, 3, stride=2), Residual(80))
    stages = [
        Stage(stem, head(48)),
        Stage(middle, head(64)),
        Stage(last, nn.Conv2d(80, len(LABELS), 4), is_last=True),
    ]
    network = nn.Module()
    network.stages = nn.ModuleList(stages)
    return network.to(memory_format=torch.channels_last)


RECIPE = Recipe(
    name="fashion",
    description="Fashion-MNIST clothing, 28 x 28 grey, three exits, int8",
    labels=LABELS,
    input_shape=(28, 28, 1),
    mean=(0.2860,),
    std=(0.3530,),
    data_name="Fashion-MNIST",
    build_network=build_network,
)
