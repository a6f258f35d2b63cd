"""Inputs from an .npz file, as fast as they are answered or at a fixed rate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

from device_agent.sources.base import BaseSourceConfig, InputSink
from distree.bundle.npy import MAGIC
from distree.bundle.npz import names_in_npz, read_npz
from distree.bundle.preprocessing import Preprocessor
from distree.errors import ConfigError, RemoteProtocolError
from distree.formatting import counted
from distree.printable import printable
from distree.record import record
from distree.regular_files import open_regular
from distree.strict_yaml import check_positive
from distree.tensors import Array
from distree.transport.base import Transport

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30
"""Most memory that the inputs may take, which all are read at once."""

_NEVER = float("inf")


@record
class ReplaySourceConfig(BaseSourceConfig):
    """Inputs from an .npz file with an array `input` (n, …) of the manifest's dtype and shape.

    Results name an input by the array `name` (n,) if the file has one, else by its index.
    """

    kind: Literal["replay"]
    """Inputs from an .npz file."""
    path: Path
    """The .npz file."""
    rate_hz: float | None = None
    """Inputs per second; if left out, as fast as they are answered."""
    max_inputs: int | None = None
    """Stop after this many inputs; if left out, after the last."""
    repeat: bool = False
    """Start again from the first input after the last."""

    path_is: ClassVar[str] = ".npz file of inputs"

    def __post_init__(self) -> None:
        given = {"rate_hz": self.rate_hz, "max_inputs": self.max_inputs}
        check_positive(**{name: value for name, value in given.items() if value is not None})

    def make(self, sink: InputSink, topic: str, connection: Callable[[], Transport]) -> ReplaySource:  # noqa: ARG002
        """Read the file."""
        return ReplaySource(self, sink.preprocessor)

    def read_files(self) -> tuple[Path, ...]:
        """Return the .npz file."""
        return (self.path,)


class ReplaySource:
    """Replays the array `input` of an .npz file, which is read in the constructor.

    An input's name is its index, or its entry in the file's array `name`, if there is one.
    """

    def __init__(self, config: ReplaySourceConfig, preprocessor: Preprocessor) -> None:
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
                log.info("replay finished: %s", counted(len(self._inputs), "input"))
        name = index if self._names is None else self._names[index]
        return printable(str(name), 256), self._inputs[index]


def _read(config: ReplaySourceConfig, expected: Preprocessor) -> tuple[Array, Array | None]:
    try:
        with open_regular(config.path) as file:
            if file.read(len(MAGIC)) == MAGIC:
                raise ConfigError(
                    f"{config.path}: contains a single array without a name", "save it as np.savez(path, input=…)"
                )
            arrays = read_npz(file, MAX_BYTES, ("input", "name"), rows=config.max_inputs)
            there = () if "input" in arrays else names_in_npz(file)
    except (OSError, RemoteProtocolError) as error:
        why = error.strerror if isinstance(error, OSError) else error.detail
        raise ConfigError(
            f"{config.path}: cannot be replayed ({why})", "give an .npz file with an array 'input'"
        ) from None
    inputs, names = arrays.get("input"), arrays.get("name")
    if inputs is None:
        raise ConfigError(
            f"{config.path}: has no array 'input', only {printable(', '.join(there)) or 'nothing'}",
            "save the inputs under that name",
        )
    if inputs.dtype != expected.dtype or inputs.shape[1:] != expected.shape or not len(inputs):
        raise ConfigError(
            f"{config.path}: input is {inputs.dtype} {inputs.shape}, but the bundle expects {expected.dtype} (n, "
            f"{', '.join(map(str, expected.shape))})",
            "convert it, or name another bundle",
        )
    if names is not None and names.shape != (len(inputs),):
        raise ConfigError(
            f"{config.path}: name is {names.shape} for {counted(len(inputs), 'input')}", "give one name per input"
        )
    return inputs, names
