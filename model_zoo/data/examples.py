"""Examples: inputs of one set, with labels where there are any; and the sample files that ship with a bundle."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from model_zoo.errors import DataError

Array: TypeAlias = "npt.NDArray[Any]"
Split = Literal["train", "validation", "test"]
E = TypeVar("E", bound="Examples")

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
"""Common names of splits, in lower case."""

MAX_BYTES = 2 << 30
"""The most bytes of inputs that are read at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Inputs of one set, in order.

    inputs: (n, …) uint8, int8, int16, float16 or float32. labels: int64 (n,), None if there are none. index: int64
    (n,), each input's index in the set that it was taken from. source: the set's name in reports. names: the classes'
    names, by label, if they are known. files: each input's name, if it is a file or a part of one.
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    index: npt.NDArray[np.int64]
    source: str
    names: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return int(self.inputs.shape[0])

    def head(self: E, count: int | None) -> E:
        """Return the first `count`, or all of them for None."""
        return self.slice(0, len(self) if count is None else count)

    def slice(self: E, start: int, stop: int) -> E:
        """Return those from `start` up to, but not including, `stop`."""
        return self.take(np.arange(len(self))[start:stop])

    def take(self: E, places: npt.NDArray[np.int64]) -> E:
        """Return those at `places`, in that order."""
        return dataclasses.replace(
            self,
            inputs=self.inputs[places],
            labels=None if self.labels is None else self.labels[places],
            index=self.index[places],
            files=None if self.files is None else tuple(self.files[place] for place in places.tolist()),
        )

    def labelled(self) -> LabelledExamples:
        """Return them as examples that have labels; DataError if they have none."""
        if self.labels is None:
            raise DataError(
                f"{self.source}: has no labels",
                "give an .npz file with x and y, one folder per class, or a column of labels",
            )
        return LabelledExamples(self.inputs, self.labels, self.index, self.source, self.names, self.files)


@dataclass(frozen=True, slots=True, eq=False)
class LabelledExamples(Examples):
    """Examples that have labels, as training and evaluation need them."""

    labels: npt.NDArray[np.int64]


def too_much(where: Path | str, count: int, nbytes: int) -> DataError:
    """Make the error for inputs that would take more than `MAX_BYTES`."""
    return DataError(
        f"{where}: {count:,} inputs of {nbytes / max(1, count):,.0f} bytes are more than {MAX_BYTES >> 30} GiB",
        "read fewer of them with --limit",
    )


def first_of_each_class(images: LabelledExamples, count: int) -> LabelledExamples:
    """Return the first `count` images of each class, kept in the order of the set.

    Raises DataError if a class has fewer.
    """
    kept: list[npt.NDArray[np.int64]] = []
    for label in np.unique(images.labels):
        places = np.flatnonzero(images.labels == label)[:count]
        if len(places) < count:
            raise DataError(
                f"{images.source}: class {label} has only {len(places)} images", f"give at least {count} of each class"
            )
        kept.append(places)
    order = np.sort(np.concatenate(kept))
    return images.take(order)


def write_samples(images: LabelledExamples, path: Path) -> None:
    """Write a sample file, which `load_examples` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, input=images.inputs, label=images.labels, index=images.index)
