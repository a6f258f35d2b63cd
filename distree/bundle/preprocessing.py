"""From what a source hands over to the first segment's input tensor, as the manifest declares it."""

from __future__ import annotations

import io
import math

import numpy as np

from distree.bundle.manifest import Manifest
from distree.errors import RemoteProtocolError
from distree.printable import printable
from distree.tensors import Array

MAX_IMAGE_BYTES = 64 << 20
"""What an image may take while it is decoded: 16 million pixels in colour, half as many with transparency, and fewer of
a WebP.
"""

IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
"""What peers may send. Pillow supports many more: old ones, little tested, and one that starts Ghostscript."""

_AS_THEY_ARE = ("L", "RGB")
"""Modes of Pillow that are resized first and converted then, which takes less memory."""

_ONE_BYTE = ("1", "L", "P")
"""Modes that take one byte per pixel; others take four."""

_CONVERT = "convert the input to what the bundle takes"


def is_image(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether inputs of this dtype and shape are images: uint8, (height, width, 1 or 3)."""
    return dtype == "uint8" and len(shape) == 3 and shape[2] in (1, 3)


class Preprocessor:
    """Turns raw inputs into the tensor of stage 0.

    For uint8 inputs all arithmetic is done once, in a table of 256 entries per channel; an input then costs one
    look-up per value.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.dtype = np.dtype(manifest.input.dtype)
        self.shape = manifest.input.shape
        self.nbytes = self.dtype.itemsize * math.prod(self.shape)
        self._spec = manifest.stages[0].input
        self._mean = np.asarray(manifest.preprocess.mean, np.float64)
        self._std = np.asarray(manifest.preprocess.std, np.float64)
        self._channels_first = manifest.preprocess.layout == "nchw"
        self._turned = manifest.preprocess.channel_order == "bgr"
        self._tables = self._make_tables() if self.dtype == np.uint8 else None
        self._table = self._one_table()

    def tensor(self, raw: Array) -> Array:
        """Return the C-contiguous tensor (1, …) of stage 0 for an input of the manifest's dtype and shape.

        Raises RemoteProtocolError("dtype" or "shape") for anything else.
        """
        if raw.dtype != self.dtype:
            raise RemoteProtocolError("dtype", f"expected {self.dtype}, received {raw.dtype}", _CONVERT)
        if raw.shape != self.shape:
            raise RemoteProtocolError("shape", f"expected {self.shape}, received {raw.shape}", _CONVERT)
        if self._turned:
            raw = raw[..., ::-1]
        if self._table is not None:
            return np.frombuffer(raw.tobytes().translate(self._table), self._spec.dtype).reshape(self._spec.shape)
        tensor = self._look_up(raw) if self._tables is not None else self._quantise(self._normalise(raw))
        if self._channels_first and tensor.ndim > 1:
            tensor = np.moveaxis(tensor, -1, 0)
        return np.ascontiguousarray(tensor).reshape(self._spec.shape)

    def from_bytes(self, payload: bytes) -> Array:
        """Return the raw input for bytes of exactly the input spec's length, or for an encoded image.

        Raises RemoteProtocolError: "size" for a length that is neither, "image" for what Pillow cannot read.
        """
        if len(payload) == self.nbytes:
            return np.frombuffer(payload, self.dtype).reshape(self.shape)
        return self.from_image(payload)

    def from_image(self, encoded: bytes) -> Array:
        """Decode, convert and resize an image to the input spec (height, width, 1 or 3 channels)."""
        if not is_image(self.dtype.name, self.shape):
            raise RemoteProtocolError(
                "size", f"expected {self.nbytes} bytes ({self.dtype} {self.shape}), received {len(encoded)}", _CONVERT
            )
        try:
            # Pillow is an extra and takes long to import: only boards that receive encoded images pay for it.
            from PIL import Image
        except ImportError:
            raise RemoteProtocolError(
                "image",
                f"{len(encoded)} bytes are not a raw input ({self.nbytes}), and Pillow, which reads images, is missing",
                "run on this board: pip install 'distree[images]'",
            ) from None
        height, width, channels = self.shape
        mode = "L" if channels == 1 else "RGB"
        try:
            with Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS) as image:
                _check_size(image.width, image.height, image.mode, mode, image.format or "")
                # JPEG can be decoded to an eighth of its size, or in grey, for less time and memory.
                image.draft(mode, (2 * width, 2 * height))
                found = image if image.mode in _AS_THEY_ARE else image.convert(mode)
                if found.size != (width, height):
                    found = found.resize((width, height), Image.Resampling.BILINEAR)
                return np.asarray(found.convert(mode), np.uint8).reshape(self.shape)
        except RemoteProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - of damaged images Pillow raises many kinds; none may end a board
            raise RemoteProtocolError(
                "image",
                f"{len(encoded)} bytes are neither a raw input ({self.nbytes}) nor a readable image{_because(error)}",
                f"send a raw input, or one of {', '.join(IMAGE_FORMATS)}",
            ) from None

    def _make_tables(self) -> Array:
        values = np.arange(256, dtype=np.float64)[:, None] / 255.0
        return self._quantise((values - self._mean) / self._std)

    def _one_table(self) -> bytes | None:
        """Return the table of all values if each byte becomes one byte and none changes its place; None otherwise."""
        tables, moves = self._tables, self._channels_first and self.shape[-1] > 1
        if tables is None or tables.shape[1] > 1 or tables.itemsize > 1 or moves:
            return None
        return tables.tobytes()

    def _look_up(self, raw: Array) -> Array:
        tables = self._tables
        assert tables is not None  # noqa: S101
        if tables.shape[1] == 1:
            looked_up: Array = np.take(tables[:, 0], raw)
            return looked_up
        channels: Array = np.stack([tables[:, c][raw[..., c]] for c in range(tables.shape[1])], axis=-1)
        return channels

    def _normalise(self, raw: Array) -> Array:
        centred: Array = (raw.astype(np.float64) - self._mean) / self._std
        return centred

    def _quantise(self, values: Array) -> Array:
        if self._spec.dtype in ("float32", "float16"):
            return values.astype(self._spec.dtype)
        limits = np.iinfo(self._spec.dtype)
        steps = np.rint(values / self._spec.scale) + self._spec.zero_point
        quantised: Array = np.clip(steps, limits.min, limits.max).astype(self._spec.dtype)
        return quantised


def _check_size(width: int, height: int, mode: str, target: str, kind: str = "") -> None:
    """Refuse an image that would take too much memory, before it is decoded; modes are Pillow's."""
    per_pixel = 1 if mode in _ONE_BYTE else 4
    if mode not in _AS_THEY_ARE:
        per_pixel += 1 if target == "L" else 4
    if kind == "WEBP":
        per_pixel += 8  # its decoder keeps two canvases of its own
    if width * height * per_pixel > MAX_IMAGE_BYTES:
        most = MAX_IMAGE_BYTES // per_pixel / 1e6
        raise RemoteProtocolError(
            "image", f"{width}x{height} pixels are too many, at most {most:.0f} million are decoded", "shrink the image"
        )


def _because(error: Exception) -> str:
    """Return what Pillow says, except where it only names the object that it was given to read."""
    said = printable(str(error))
    return "" if not said or " object at 0x" in said else f" ({said})"
