"""From a raw input to the first segment's input tensor, as the manifest declares it."""

from __future__ import annotations

import math

import numpy as np

from distree.bundle.frontends import make_frontend
from distree.bundle.manifest import Manifest, Preprocess
from distree.errors import RemoteProtocolError
from distree.tensors import Array

FULL_SCALE = {"uint8": 255.0, "int16": 32768.0}
"""What integers are divided by; values of other dtypes stay as they are."""

_RANGES = {"0..1": (0.0, 1.0), "-1..1": (0.5, 0.5), "0..255": (0.0, 1.0 / 255.0)}
"""Mean and standard deviation, of values from 0 to 1, that bring them to a range."""

_CONVERT = "convert the input to what the bundle expects"


def mean_and_std(preprocess: Preprocess) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what is subtracted from scaled values or features, and what they are divided by then.

    >>> mean_and_std(Preprocess(layout="nhwc", range="-1..1"))
    ((0.5,), (0.5,))
    """
    if preprocess.range in _RANGES:
        mean, std = _RANGES[preprocess.range]
        return (mean,), (std,)
    return preprocess.mean or (0.0,), preprocess.std or (1.0,)


class Preprocessor:
    """Turns raw inputs into the tensor of stage 0.

    For uint8 inputs without a front end all arithmetic is done once, in a table of 256 entries per channel; an input
    then costs one look-up per value.
    """

    def __init__(self, manifest: Manifest) -> None:
        preprocess = manifest.preprocess
        self.dtype = np.dtype(manifest.input.dtype)
        self.shape = manifest.input.shape
        self.nbytes = self.dtype.itemsize * math.prod(self.shape)
        self._frontend = make_frontend(preprocess.frontend, self.shape, manifest.input.rate_hz)
        self._spec = manifest.stages[0].input
        mean, std = mean_and_std(preprocess)
        self._mean, self._std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        self._is_quantised = preprocess.range == "quantised"
        self._channels_first = preprocess.layout == "nchw"
        self._turned = preprocess.channel_order == "bgr"
        has_tables = self.dtype == np.uint8 and preprocess.frontend.kind == "raw" and not self._is_quantised
        self._tables = self._make_tables() if has_tables else None
        self._table = self._one_table()

    def tensor(self, raw: Array) -> Array:
        """Return the C-contiguous tensor (1, …) of stage 0 for an input of the manifest's dtype and shape.

        Raises RemoteProtocolError("dtype" or "shape") for anything else, and "value" where it is not finite.
        """
        raw = self._checked(raw)
        if self._table is not None:
            return np.frombuffer(raw.tobytes().translate(self._table), self._spec.dtype).reshape(self._spec.shape)
        if self._is_quantised:
            tensor = raw
        else:
            tensor = self._look_up(raw) if self._tables is not None else self._quantise(self._normalise(raw))
        if self._channels_first and tensor.ndim > 1:
            tensor = np.moveaxis(tensor, -1, 0)
        return np.ascontiguousarray(tensor).reshape(self._spec.shape)

    def values(self, raw: Array) -> Array:
        """Return what the network is to see of an input before it is quantised: float64, of the front end's shape.

        It is what a network is trained on. Channels are last; errors as for `tensor`.
        """
        raw = self._checked(raw)
        if self._is_quantised:
            return (raw.astype(np.float64) - self._spec.zero_point) * self._spec.scale
        return self._normalise(raw)

    def _checked(self, raw: Array) -> Array:
        """Return an input with its colours in the network's order; RemoteProtocolError if it is not one."""
        if raw.dtype != self.dtype:
            raise RemoteProtocolError("dtype", f"expected {self.dtype}, received {raw.dtype}", _CONVERT)
        if raw.shape != self.shape:
            raise RemoteProtocolError("shape", f"expected {self.shape}, received {raw.shape}", _CONVERT)
        if self.dtype.kind == "f" and not np.isfinite(raw).all():
            place = tuple(int(at) for at in np.argwhere(~np.isfinite(raw))[0])
            raise RemoteProtocolError(
                "value", f"expected finite numbers, received {raw[place]} at {list(place)}", "fix what produced it"
            )
        return raw[..., ::-1] if self._turned else raw

    def _make_tables(self) -> Array:
        values = np.arange(256, dtype=np.float64)[:, None] / FULL_SCALE["uint8"]
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
        scaled = raw.astype(np.float64) / FULL_SCALE.get(self.dtype.name, 1.0)
        centred: Array = (self._frontend.features(scaled) - self._mean) / self._std
        return centred

    def _quantise(self, values: Array) -> Array:
        if self._spec.dtype in ("float32", "float16"):
            return values.astype(self._spec.dtype)
        limits = np.iinfo(self._spec.dtype)
        steps = np.rint(values / self._spec.scale) + self._spec.zero_point
        quantised: Array = np.clip(steps, limits.min, limits.max).astype(self._spec.dtype)
        return quantised
