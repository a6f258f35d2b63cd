"""Building blocks of the recipes' networks. Imports torch: only `build` reaches this module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def conv_unit(channels_in: int, channels_out: int, kernel: int, stride: int = 1, activate: bool = True) -> Any:
    """Chain convolution, batch normalisation and, if `activate`, ReLU; only the stride changes the size."""
    layers: list[Any] = [
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if activate else nn.Sequential(*layers)


class Residual(nn.Module):  # type: ignore[misc, unused-ignore]
    """Two 3 x 3 convolutions and a shortcut around them; shape (n, channels, height, width) is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_unit(channels, channels, 3), conv_unit(channels, channels, 3, activate=False))
        self.relu = nn.ReLU()

    def forward(self, x: Any) -> Any:
        """Take and return (n, channels, height, width)."""
        return self.relu(x + self.body(x))


class Stage(nn.Module):  # type: ignore[misc, unused-ignore]
    """A trunk and its exit, channels last at both ends.

    The permutations at the ends meet those that the converter adds around its channels-last convolutions and
    cancel, so that the segment holds none.
    """

    def __init__(self, trunk: Any, exit_head: Any, is_last: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.exit = exit_head
        self.is_last = is_last

    def forward(self, x: Any) -> dict[str, Any]:
        """Take (n, height, width, channels); return `logits` and, but at the last stage, `features` alike."""
        features = self.trunk(x.permute(0, 3, 1, 2))
        logits = torch.flatten(self.exit(features), 1)
        if self.is_last:
            return {"logits": logits}
        return {"features": features.permute(0, 2, 3, 1), "logits": logits}
