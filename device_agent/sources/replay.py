"""Inputs from an .npz file, as fast as they are answered or at a fixed rate."""

from __future__ import annotations

import logging

import numpy as np

from device_agent.config import ReplaySource
from distree.bundle.preprocessing import Preprocessor
from distree.errors import ConfigError
from distree.printable import printable
from distree.tensors import Array

log = logging.getLogger(__name__)

_NEVER = float("inf")


class Replay:
    """Replays the array `input` of an .npz file, which is read in the constructor.

    An input's name is its index, or its entry in the file's array `name`, if there is one.
    """

    def __init__(self, config: ReplaySource, preprocessor: Preprocessor) -> None:
        self._inputs, self._names = _read(config, preprocessor)
        self._repeat = config.repeat
        self._period_s = 0.0 if config.rate_hz is None else 1.0 / config.rate_hz
        self._index = 0
        self._due_at = _NEVER

    def start(self, now: float) -> None:
        """Begin: the first input is due at `now` (monotonic seconds)."""
        self._due_at = now

    def due_at(self) -> float:
        """When the next input is due; infinity before the start and after the last."""
        return self._due_at

    def next_input(self, now: float) -> tuple[str, Array]:
        """Return the name and the raw array of the input that is due, and move on."""
        index = self._index
        # A board that falls behind by more than a second does not catch up in one burst.
        self._due_at = max(self._due_at + self._period_s, now - 1.0)
        self._index += 1
        if self._index == len(self._inputs):
            self._index = 0
            if not self._repeat:
                self._due_at = _NEVER
                log.info("replay finished: %d inputs", len(self._inputs))
        name = index if self._names is None else self._names[index]
        return printable(str(name), 256), self._inputs[index]


def _read(config: ReplaySource, expected: Preprocessor) -> tuple[Array, Array | None]:
    try:
        arrays = np.load(config.path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise ConfigError(
                f"{config.path}: contains a single array without a name", "save it as np.savez(path, input=…)"
            )
        with arrays:
            if "input" not in arrays:
                raise ConfigError(
                    f"{config.path}: has no array 'input', only {printable(', '.join(arrays)) or 'nothing'}",
                    "save the inputs under that name",
                )
            inputs: Array = arrays["input"][: config.limit]
            names: Array | None = arrays["name"][: config.limit] if "name" in arrays else None
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - for a file that is not an .npz numpy raises whatever it likes
        # What numpy says about such a file may be an advice to load it unsafely.
        why = getattr(error, "strerror", None) or "not an .npz file, or damaged"
        raise ConfigError(
            f"{config.path}: cannot be replayed ({why})", "give an .npz file with an array 'input'"
        ) from None
    if inputs.dtype != expected.dtype or inputs.shape[1:] != expected.shape or not len(inputs):
        raise ConfigError(
            f"{config.path}: input is {inputs.dtype} {inputs.shape}, the bundle takes {expected.dtype} (n, "
            f"{', '.join(map(str, expected.shape))})",
            "convert it, or name another bundle",
        )
    if names is not None and names.shape != (len(inputs),):
        raise ConfigError(f"{config.path}: name is {names.shape} for {len(inputs)} inputs", "give one name per input")
    return inputs, names
