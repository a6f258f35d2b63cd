"""No front end: the values themselves are the features, as for images and windows of motion."""

from __future__ import annotations

from typing import Literal

from distree.record import record
from distree.tensors import Array


@record
class Raw:
    """Values are passed on as they are."""

    kind: Literal["raw"] = "raw"
    """Values are passed on as they are."""


class RawFrontend:
    """Passes values on.

    >>> RawFrontend(Raw(), (128, 3), 50.0).shape
    (128, 3)
    """

    def __init__(self, _spec: Raw, shape: tuple[int, ...], _rate_hz: float | None) -> None:
        self.shape = shape

    def features(self, values: Array) -> Array:
        """Return the values."""
        return values
