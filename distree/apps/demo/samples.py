"""The inputs that the demo streams, and their true labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distree.bundle.loading import Bundle, zoo_folder
from distree.errors import ConfigError
from distree.messages.result import Result
from distree.printable import printable
from distree.tensors import Array

ORDER_SEED = 20
"""Seed of the order in which test images are taken from a file that is sorted by class."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What is streamed: the file, how many inputs, how many per second (None: no limit), and the true labels.

    `places` has, by the name of an input in results, its place in the data that it was taken from; `labels` the true
    class at each place.
    """

    path: Path
    count: int
    rate_hz: float | None
    places: dict[str, int]
    labels: Array

    def place(self, result: Result) -> int:
        """Return the place in the data of the input that was answered."""
        return self.places[result.input]

    def is_right(self, result: Result) -> bool:
        """Whether an answer is the true class."""
        return bool(result.class_id == self.labels[self.place(result)])


def load_samples(bundle: Bundle, data: Path | None, count: int, rate_hz: float, folder: Path) -> Samples:
    """Return `count` inputs from `data`, or the bundle's own samples; what must be converted goes into `folder`.

    Raises ConfigError, naming the option to correct.
    """
    if not 0 <= rate_hz <= 100_000:
        raise ConfigError(f"--rate: {rate_hz:g} is out of range", "choose 0 to 100000")
    zoo = zoo_folder()
    path = data or (zoo.parent / "samples" / f"{bundle.name}.npz" if zoo else None)
    if path is None or not path.exists():
        what = f"--data {data}: does not exist" if data else f"no samples ship with bundle {bundle.name}"
        raise ConfigError(what, "give an .npz file with arrays input and label as --data")
    from model_zoo.data import is_divided

    if is_divided(path):
        return _test_images(path, count, rate_hz, folder)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            labels: Array = arrays["label"]
            names: Array = arrays["name"] if "name" in arrays else np.arange(len(labels))
    except Exception as error:  # noqa: BLE001 - for a file that is not an .npz numpy raises whatever it likes
        what = f"{path}: cannot be used ({printable(str(error))})"
        raise ConfigError(what, "give an .npz file with arrays 'input' and 'label'") from None
    _check_count(count, len(labels), path)
    places = {printable(str(name), 256): place for place, name in enumerate(names[:count])}
    if len(places) < count:
        raise ConfigError(
            f"{path}: two inputs have the same name, so answers cannot be told apart", "rename one of them"
        )
    return Samples(path, count, rate_hz or None, places, labels)


def _test_images(path: Path, count: int, rate_hz: float, folder: Path) -> Samples:
    """Take `count` test images in a fixed random order, since a file may be sorted by class."""
    from model_zoo.data import load_split

    images = load_split(path, "test")
    _check_count(count, len(images), path)
    order = np.random.default_rng(ORDER_SEED).permutation(len(images))[:count]
    np.savez(folder / "inputs.npz", input=images.images[order], label=images.labels[order], name=order)
    places = {str(place): place for place in order.tolist()}
    return Samples(folder / "inputs.npz", count, rate_hz or None, places, images.labels)


def _check_count(count: int, there: int, path: Path) -> None:
    if not 0 < count <= there:
        raise ConfigError(
            f"--inputs: {count} is out of range", f"choose 1 to {there}, the number of samples in {path.name}"
        )
