"""Training images as a network sees them: shifted, mirrored, normalised. Only `build` imports this.

The *view* of an epoch says how each image is shifted and mirrored in it. It depends on the epoch alone, not on
the seed of a training: so what a teacher says of an epoch's images is worked out once and serves every student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_VIEW_SEED = 7_000


@dataclass(frozen=True, slots=True)
class Images:
    """uint8 images (n, height, width, channels) on a device, with what normalises them."""

    pixels: Any
    mean: Any
    std: Any

    @classmethod
    def of(cls, pixels: npt.NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], device: str) -> Images:
        """Move images to a torch device."""
        return cls(
            torch.from_numpy(np.ascontiguousarray(pixels)).to(device),
            torch.tensor(mean, dtype=torch.float32, device=device),
            torch.tensor(std, dtype=torch.float32, device=device),
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def plain(self, part: slice) -> Any:
        """Return float images (n, height, width, channels) as boards see them."""
        return self._normalise(self.pixels[part])

    def viewed(self, chosen: Any, view: View) -> Any:
        """Return float images `chosen` (n,) as an epoch sees them; what a shift leaves empty mirrors the edge."""
        _, height, width, _ = self.pixels.shape
        device = self.pixels.device
        rows = _mirrored(torch.arange(height) + view.down[chosen][:, None], height)
        columns = _mirrored(torch.arange(width) + view.right[chosen][:, None], width)
        columns = torch.where(view.flipped[chosen][:, None], columns.flip(1), columns)
        places = chosen.to(device)[:, None, None], rows.to(device)[:, :, None], columns.to(device)[:, None, :]
        return self._normalise(self.pixels[places])

    def _normalise(self, pixels: Any) -> Any:
        return (pixels.float() / 255 - self.mean) / self.std


@dataclass(frozen=True, slots=True)
class View:
    """Each image's shift in pixels and whether it is mirrored left to right, all (n,)."""

    down: Any
    right: Any
    flipped: Any

    @classmethod
    def of_epoch(cls, epoch: int, count: int, reach: int) -> View:
        """Draw the view of an epoch: shifts of up to `reach` pixels; every image is mirrored every second epoch.

        Mirroring in turns instead of at random shows both sides equally often. Source: K. Jordan, 94% on CIFAR-10
        in 3.29 Seconds on a Single GPU, 2024.
        """
        generator = torch.Generator().manual_seed(_VIEW_SEED + epoch)
        right = torch.randint(-reach, reach + 1, (count,), generator=generator)
        down = torch.randint(-reach, reach + 1, (count,), generator=generator)
        first = torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(_VIEW_SEED))
        return cls(down, right, (first + epoch) % 2 == 1)


def _mirrored(places: Any, size: int) -> Any:
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)
