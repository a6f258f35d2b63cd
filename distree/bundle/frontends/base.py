"""The interface of a front end: it computes features from one window, on the board as in training."""

from __future__ import annotations

from typing import Protocol

from distree.tensors import Array


class Frontend(Protocol):
    """Made once per bundle, from what the manifest declares, the shape of a window and its sampling rate.

    The constructor raises ConfigError, one line, if the declaration cannot work for such windows.
    """

    shape: tuple[int, ...]
    """Shape of the features."""

    def features(self, values: Array) -> Array:
        """Return the features of one window: float64 in, of the window's shape; float64 out, of `shape`."""
