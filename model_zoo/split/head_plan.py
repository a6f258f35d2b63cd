"""The shape of an exit head: pool to a coarse grid, one hidden layer, classes.

The grid preserves where things are: at ResNet-8's first cut, a linear layer on it is right for 61 % of CIFAR-10; on one
mean per channel, for 30 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model_zoo.split.graph import TensorInfo

MAX_CELLS = 64
MAX_SHARE = 0.02
"""Share of the whole network's multiply-accumulates that one head may cost before its grid is made coarser."""


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """A head on the tensor `boundary`, seen as `height` x `width` places of `channels` values.

    window: height and width of the area averaged into one cell; the last row and column of cells may average less.
    """

    boundary: TensorInfo
    height: int
    width: int
    channels: int
    window: tuple[int, int]
    hidden: int
    classes: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return math.ceil(self.height / self.window[0]), math.ceil(self.width / self.window[1])

    @property
    def pools(self) -> bool:
        """Whether anything is averaged."""
        return self.window != (1, 1)

    @property
    def inputs(self) -> int:
        """The number of values that the hidden layer reads."""
        return math.prod(self.grid) * self.channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates of both layers."""
        return self.inputs * self.hidden + self.hidden * self.classes

    def __str__(self) -> str:
        rows, columns = self.grid
        return f"{rows}x{columns} cells of {self.channels} values, {self.hidden} hidden"


def plan_head(boundary: TensorInfo, classes: int, hidden: int, network_macs: int) -> HeadPlan:
    """Plan the head on a boundary (1, …, channels): the finest grid within `MAX_CELLS` and `MAX_SHARE`."""
    height, width, channels = _places(boundary.shape)
    for side in range(1, max(height, width) + 1):
        window = (min(side, height), min(side, width))
        plan = HeadPlan(boundary, height, width, channels, window, hidden, classes)
        if math.prod(plan.grid) <= MAX_CELLS and plan.macs <= MAX_SHARE * network_macs:
            return plan
    return plan


def _places(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return height, width and channels of a tensor; a sequence is one column, a vector one place."""
    if len(shape) == 4:
        return shape[1], shape[2], shape[3]
    if len(shape) < 2:
        return 1, 1, math.prod(shape)
    return math.prod(shape[1:-1]), 1, shape[-1]
