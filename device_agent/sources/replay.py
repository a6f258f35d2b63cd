"""Inputs from an .npz file, as fast as they are answered or at a fixed rate."""

from __future__ import annotations

import logging
import threading
import time
import zipfile

import numpy as np

from device_agent.config import ReplaySource
from device_agent.sources.base import Inlet
from distree.errors import ConfigError
from distree.protocols import Array

log = logging.getLogger(__name__)


class Replay:
    """Replays array `input` of an .npz file; an input's name is its index. Reads the file when it is made."""

    def __init__(self, config: ReplaySource, inlet: Inlet) -> None:
        self._inlet = inlet
        self._inputs = _read(config, inlet)
        self._repeat = config.repeat
        self._period_s = 0.0 if config.rate_hz is None else 1.0 / config.rate_hz

    def run(self, stop: threading.Event) -> None:
        """Hand over each input once there is room for it, then end (or start again)."""
        due_at = time.monotonic()
        while not stop.is_set():
            for index, raw in enumerate(self._inputs):
                while not self._inlet.wait_for_room(0.5):
                    if stop.is_set():
                        return
                if self._period_s:
                    due_at = max(due_at + self._period_s, time.monotonic() - 1.0)
                    stop.wait(max(0.0, due_at - time.monotonic()))
                if stop.is_set():
                    return
                self._inlet.submit(str(index), raw)
            if not self._repeat:
                log.info("replay is over: %d inputs", len(self._inputs))
                return

    def answered(self, request: str) -> None:
        """Nothing to do: the file stays as it is."""


def _read(config: ReplaySource, inlet: Inlet) -> Array:
    expected = inlet.preprocessor
    try:
        with np.load(config.path, allow_pickle=False) as arrays:
            if "input" not in arrays:
                raise ConfigError(f"{config.path}: has no array 'input' (it has {', '.join(arrays) or 'none'})")
            inputs: Array = arrays["input"][: config.limit]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{config.path}: cannot be replayed: {error}; an .npz file with an array 'input' is needed"
        ) from None
    if inputs.dtype != expected.dtype or inputs.shape[1:] != expected.shape:
        raise ConfigError(
            f"{config.path}: input is {inputs.dtype} {inputs.shape}, the bundle takes {expected.dtype} (n, "
            f"{', '.join(map(str, expected.shape))})"
        )
    return inputs
