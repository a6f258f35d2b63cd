"""Small pictures of inputs, as PNG files written with nothing but zlib: boards have no Pillow."""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np

from device_agent.config import ThumbnailConfig
from distree.bundle.manifest import InputSpec
from distree.tensors import Array

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2}
"""PNG's colour type by the number of channels: grey, or red, green and blue."""


def shrink(image: Array, side: int) -> Array:
    """Return a uint8 image (height, width, channels) of at most `side` pixels each way: means of square blocks.

    What does not fill a block at the right and lower edge is left out.
    """
    height, width, channels = image.shape
    step = math.ceil(max(height, width) / side)
    if step == 1:
        return image
    rows, columns = max(1, height // step), max(1, width // step)
    blocks = image[: rows * step, : columns * step]
    # A side shorter than a block is one pixel.
    small: Array = blocks.reshape(rows, blocks.shape[0] // rows, columns, blocks.shape[1] // columns, channels)
    mean: Array = small.mean(axis=(1, 3)).astype(np.uint8)
    return mean


def can_show(spec: InputSpec) -> bool:
    """Whether there are pictures of a bundle's inputs: of images, and of windows of a recording."""
    return spec.is_image or spec.is_window


def waveform(window: Array, side: int) -> Array:
    """Draw a window, (samples,) or (samples, channels), as uint8 (side / 2, at most side, 1 or 3).

    Each column shows the least to the largest value of its part of the window; the picture's height is the range of the
    whole window. Two or three channels are red, green and blue, more of them are drawn in one colour.
    """
    samples = window.reshape(len(window), -1).astype(np.float32)
    columns, rows = min(side, len(samples)), max(2, side // 2)
    block = len(samples) // columns
    parts = samples[: columns * block].reshape(columns, block, -1)
    low, high = float(parts.min()), float(parts.max())
    scale = (rows - 1) / (high - low) if high > low else 0.0
    above, below = (np.rint((high - edge) * scale) for edge in (parts.max(axis=1), parts.min(axis=1)))
    lines = np.arange(rows)[:, None, None]
    drawn = (above <= lines) & (lines <= below)
    picture: Array = np.zeros((rows, columns, 3 if drawn.shape[2] in (2, 3) else 1), np.uint8)
    if picture.shape[2] == 1:
        drawn = drawn.any(axis=2, keepdims=True)
    picture[..., : drawn.shape[2]] = drawn * np.uint8(255)
    return picture


def png(image: Array) -> bytes:
    """Return a uint8 image (height, width, 1 or 3) as a PNG file (ISO/IEC 15948), no filter, fastest compression."""
    height, width, channels = image.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each line begins with its filter, 0: none
    lines[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b"")
    return _SIGNATURE + b"".join(_chunk(name, content) for name, content in parts)


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


class Thumbnails:
    """Makes pictures of inputs, at most `max_rate_hz` per second."""

    def __init__(self, config: ThumbnailConfig) -> None:
        self._side = config.max_side_px
        self._period_s = 1.0 / config.max_rate_hz
        self._due_at = 0.0

    def make(self, now: float, raw: Array) -> bytes | None:
        """Return a PNG file of an input, or None if the last one was made too short a time before `now`, in seconds."""
        if now < self._due_at:
            return None
        self._due_at = now + self._period_s
        return png(shrink(raw, self._side) if raw.dtype == np.uint8 else waveform(raw, self._side))
