"""Building blocks of the recipes' networks. Imports torch: only `build` reaches this module."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


class Whitening(nn.Module):  # type: ignore[misc, unused-ignore]
    """A first layer that is not learned: 2 x 2 patches along their principal axes, each axis of variance one.

    Every axis is there twice, the second time negated, so that nothing is lost in an activation. What follows learns
    sooner, and a fixed layer costs training no gradients. `fit` has to be called before training.
    Source: K. Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024; T. Page, How to Train Your ResNet, 2018.
    """

    _SIDE = 2
    _LEAST_VARIANCE = 5e-4

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, self.outputs(channels), self._SIDE, bias=False)
        self.conv.weight.requires_grad = False

    @classmethod
    def outputs(cls, channels: int) -> int:
        """Channels that come out for this many that go in."""
        return 2 * channels * cls._SIDE**2

    def fit(self, images: Any) -> None:
        """Set the axes and their scales from images (n, channels, height, width)."""
        side = self._SIDE
        patches = images.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        values, axes = torch.linalg.eigh((patches.T @ patches / len(patches)).double().cpu())
        filters = (axes / torch.sqrt(values + self._LEAST_VARIANCE)).T.flip(0).reshape(-1, images.shape[1], side, side)
        with torch.no_grad():
            self.conv.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Any) -> Any:
        """Take (n, channels, height, width), return (n, outputs, height - 1, width - 1)."""
        return self.conv(x)


class PoolUnit(nn.Module):  # type: ignore[misc, unused-ignore]
    """Convolution, the largest of 2 x 2 places, batch normalisation without a scale, ReLU.

    Looking at every place and keeping the largest learns better than a stride, at four times its cost. While it is
    trained, the maximum comes first, so that the rest works on a quarter of the values. Otherwise it comes last, where
    it gives the same, since normalisation without a scale and ReLU never decrease: so that a converter can fold the
    normalisation into the convolution.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm = shift_norm(channels_out)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Any) -> Any:
        """Take (n, channels, height, width); return (n, channels, height // 2, width // 2)."""
        x = self.conv(x)
        return self.relu(self.norm(self.pool(x))) if self.training else self.pool(self.relu(self.norm(x)))


def fit_whitening(network: Any, images: Any) -> None:
    """Fit every `Whitening` of a network to images (n, channels, height, width)."""
    for module in network.modules():
        if isinstance(module, Whitening):
            module.fit(images)


def start_as_identity(network: Any) -> None:
    """Have every learned convolution pass its inputs through at first, as far as it has as many outputs.

    Source: see `Whitening`.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            nn.init.dirac_(module.weight[: module.in_channels])


def shift_norm(channels: int, momentum: float = 0.1) -> Any:
    """Return batch normalisation that learns shifts and no scales; momentum: of its running statistics."""
    norm = nn.BatchNorm2d(channels, momentum=momentum)
    norm.weight.requires_grad = False
    return norm


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


class EmbeddingExit(nn.Module):  # type: ignore[misc, unused-ignore]
    """From a branch's features to its embedding: `body`, the mean over all places, one linear layer, ReLU.

    ReLU, because what a missing branch is replaced by, nought, should be a value like any other.
    """

    def __init__(self, body: Any, channels: int, values: int) -> None:
        super().__init__()
        self.body = body
        self.project = nn.Linear(channels, values)

    def forward(self, x: Any) -> Any:
        """Take (n, channels, height, width); return (n, values)."""
        return torch.relu(self.project(self.body(x).mean((2, 3))))


class BranchStage(nn.Module):  # type: ignore[misc, unused-ignore]
    """A branch's part of a wide stage: a trunk and the embedding for the exit, channels last at both ends."""

    def __init__(self, trunk: Any, exit_head: Any, is_last: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.exit = exit_head
        self.is_last = is_last

    def forward(self, x: Any) -> dict[str, Any]:
        """Take (n, height, width, channels); return `embedding` (n, values) and, but at the last, `features`."""
        features = self.trunk(x.permute(0, 3, 1, 2))
        embedding = self.exit(features)
        if self.is_last:
            return {"embedding": embedding}
        return {"features": features.permute(0, 2, 3, 1), "embedding": embedding}


class Branch(nn.Module):  # type: ignore[misc, unused-ignore]
    """One of several parallel sub-networks: `stages` in depth order, independent of the other branches."""

    def __init__(self, stages: Sequence[BranchStage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)


class Fusion(nn.Module):  # type: ignore[misc, unused-ignore]
    """The exit of a wide stage: one embedding per branch in, nought for a missing one; logits out."""

    def __init__(self, values: int, branches: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(values * branches, classes)

    def forward(self, *embeddings: Any) -> dict[str, Any]:
        """Take one (n, values) per branch; return `logits` (n, classes)."""
        return {"logits": self.classify(torch.cat(embeddings, dim=1))}


class WideNetwork(nn.Module):  # type: ignore[misc, unused-ignore]
    """Branches side by side, and one fusion per exit."""

    def __init__(self, branches: Sequence[Branch], fusions: Sequence[Fusion]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.fusions = nn.ModuleList(fusions)

    def embeddings(self, images: Any, exits: Collection[int] | None = None) -> list[list[Any] | None]:
        """Return, per exit, every branch's embedding (n, values) of images (n, height, width, channels).

        Exits that are not in `exits` (all by default) are not computed and give None.
        """
        wanted = range(len(self.fusions)) if exits is None else exits
        of_exit: list[list[Any] | None] = [[] if k in wanted else None for k in range(len(self.fusions))]
        for branch in self.branches:
            x = images.permute(0, 3, 1, 2)
            for stage, found in zip(branch.stages, of_exit, strict=True):
                x = stage.trunk(x)
                if found is not None:
                    found.append(stage.exit(x))
        return of_exit


class Teacher(nn.Module):  # type: ignore[misc, unused-ignore]
    """A network to learn from: a trunk whose last layer ends in ReLU, the largest over all places, one linear layer.

    logit_scale: by what the logits are multiplied; a small one lets the trunk learn at a high rate.
    """

    def __init__(self, trunk: Any, filters: int, classes: int, logit_scale: float = 1.0) -> None:
        super().__init__()
        self.trunk = trunk
        self.classify = nn.Linear(filters, classes)
        self._logit_scale = logit_scale

    def forward(self, x: Any) -> tuple[Any, Any]:
        """Take (n, height, width, channels); return features (n, filters) and logits (n, classes)."""
        features = self.trunk(x.permute(0, 3, 1, 2)).amax((2, 3))
        return features, self.classify(features) * self._logit_scale
