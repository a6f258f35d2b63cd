"""The inputs that the demo streams, and their true labels where they are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distree.bundle.loading import Bundle
from distree.errors import CHECK_PATH, ConfigError
from distree.messages.result import Result
from distree.printable import printable
from distree.tensors import Array

if TYPE_CHECKING:
    from model_zoo.data import Examples

USUAL_COUNT = 1000

ORDER_SEED = 20
"""Seed of the order in which test images are taken from a set that is sorted by class."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What is streamed: the file, how many inputs, how many per second (None: no limit), and the true labels.

    `about` says what they are if they ship with the bundle, else it is "". `places` has, by the name of an input in
    results, its place in the data that it was taken from; `labels` the true class at each place, or None where nobody
    knows them.
    """

    path: Path
    about: str
    count: int
    rate_hz: float | None
    places: dict[str, int]
    labels: Array | None

    def place(self, result: Result) -> int:
        """Return the place in the data of the input that was answered."""
        return self.places[result.input]

    def is_right(self, result: Result) -> bool:
        """Whether an answer is the true class; False where that is not known."""
        return self.labels is not None and bool(result.class_id == self.labels[self.place(result)])


def load_samples(bundle: Bundle, data: Path | None, count: int | None, rate_hz: float, folder: Path) -> Samples:
    """Return `count` inputs from `data`, or the bundle's own samples, written into `folder` as an origin replays them.

    Without `count` all of them, at most `USUAL_COUNT`. Raises ConfigError, naming the option to correct.
    """
    # The model zoo is no part of what a board needs.
    from model_zoo.data import about_samples, is_divided, load_examples, shipped_samples
    from model_zoo.errors import DataError

    if not 0 <= rate_hz <= 100_000:
        raise ConfigError(f"--rate: {rate_hz:g} is out of range", "choose 0 to 100000")
    if data is not None and not data.exists():
        raise ConfigError(f"--data {data}: does not exist", CHECK_PATH)
    path = data or shipped_samples(bundle.name)
    if path is None:
        raise ConfigError(
            f"no samples ship with bundle {bundle.name}",
            "give --data: an .npz file with x and y, a folder per class, or another form of docs/howto/data.md",
        )
    manifest, wanted = bundle.manifest, USUAL_COUNT if count is None else count
    # Sets that are sorted by class are read whole, and inputs drawn from all of it.
    is_sorted = is_divided(path)
    try:
        found = load_examples(
            path,
            spec=manifest.input,
            preprocess=manifest.preprocess,
            labels=manifest.labels,
            limit=None if is_sorted or wanted < 1 else wanted,
        )
    except DataError as error:
        raise ConfigError(f"--data {error.what}", error.remedy) from None
    if count is None:
        wanted = min(wanted, len(found))
    if not 0 < wanted <= len(found):
        raise ConfigError(
            f"--inputs: {wanted} is out of range", f"choose 1 to {len(found)}, the number of samples in {path.name}"
        )
    order = np.random.default_rng(ORDER_SEED).permutation(len(found)) if is_sorted else np.arange(len(found))
    about = about_samples(path) if data is None else ""
    return _written(found, order[:wanted], about, rate_hz, folder / "inputs.npz", path)


def _written(found: Examples, order: Array, about: str, rate_hz: float, to: Path, path: Path) -> Samples:
    names = [
        printable(str(place) if found.files is None else found.files[place], 4096)[-256:] for place in order.tolist()
    ]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"{path}: two inputs have the same name, so answers cannot be told apart", "rename one of them"
        )
    np.savez(to, input=found.inputs[order], name=np.asarray(names))
    return Samples(to, about, len(order), rate_hz or None, dict(zip(names, order.tolist(), strict=True)), found.labels)
