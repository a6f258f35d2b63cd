"""What a reader of examples is asked for, and what all readers check: types, shapes and labels."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distree.bundle.inputs import InputReader
from distree.bundle.manifest import InputSpec, Preprocess
from model_zoo.data.examples import MAX_BYTES, Array, Split, too_much
from model_zoo.errors import DataError

_USUAL = ("uint8", "int8", "int16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted from a data set.

    spec: what a bundle expects; None leaves arrays as they are. preprocess: how files are read as such inputs. labels:
    the bundle's classes, with which labels are matched. split: a part of divided data. limit: the most inputs.
    """

    spec: InputSpec | None = None
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    split: Split | None = None
    limit: int | None = None

    def reader(self, where: Path) -> InputReader:
        """Return a reader of files; DataError if there is no spec of the inputs."""
        if self.spec is None:
            raise DataError(
                f"{where}: files cannot be read without an input spec, which says what they become",
                "give spec=, a bundle's input",
            )
        return InputReader(self.spec, self.preprocess or Preprocess(layout="nhwc"))

    def no_split(self, where: Path) -> None:
        """Raise DataError if a split is wanted, for data that is not divided."""
        if self.split is not None:
            raise DataError(
                f"{where}: is not divided, so it has no split {self.split!r}",
                "leave --split out, or divide the data: folders train and test, or arrays x_train, y_train, x_test and "
                "y_test",
            )


def inputs_of(array: Array, wanted: Wanted, where: str) -> Array:
    """Return inputs (n, …) as the spec declares them, if that loses nothing; without a spec, in a usual dtype.

    Raises DataError that says what was found, what is wanted and, if possible, how to convert one to the other.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: contains {array.dtype} values instead of numbers", "save numbers")
    if len(array) == 0:
        raise DataError(f"{where}: contains no inputs", "give at least one")
    if array.dtype.kind == "f":
        _check_finite(array, where)
    spec = wanted.spec
    if spec is None:
        return _as_dtype(array, np.dtype(_usual_dtype(array)), where)
    return _as_dtype(_as_shape(array, spec.shape, where), np.dtype(spec.dtype), where)


def _check_finite(array: Array, where: str) -> None:
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{where}: input {row} contains values that are not finite", "remove it, or fix what wrote it")


def _usual_dtype(array: Array) -> str:
    name: str = array.dtype.name
    if name in _USUAL:
        return name
    if array.dtype.kind == "f":
        return "float32"
    low, high = int(array.min()), int(array.max())
    return next((kind for kind in ("uint8", "int16") if _holds(kind, low, high)), "float32")


def _holds(dtype: str, low: int, high: int) -> bool:
    limits = np.iinfo(dtype)
    return bool(limits.min <= low and high <= limits.max)


def _as_shape(array: Array, shape: tuple[int, ...], where: str) -> Array:
    given = array.shape[1:]
    if given == shape:
        return array
    if [size for size in given if size != 1] == [size for size in shape if size != 1]:
        return array.reshape(len(array), *shape)
    if given == (shape[-1], *shape[:-1]):
        axes = ", ".join(map(str, (0, *range(2, len(shape) + 1), 1)))
        advice = f"channels are first: save it as x.transpose({axes})"
    elif math.prod(given) == math.prod(shape):
        advice = f"save it as x.reshape(-1, {', '.join(map(str, shape))}), if its values are in that order"
    else:
        advice = "convert it, or use a bundle for such inputs"
    raise DataError(f"{where}: inputs are {_size(given)}, but must be {_size(shape)}", advice)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "single numbers"


def _as_dtype(array: Array, dtype: np.dtype[Any], where: str) -> Array:
    if array.dtype == dtype:
        return array.astype(dtype, copy=False)
    low, high = float(array.min()), float(array.max())
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype.name)
    is_whole = dtype.kind == "f" or array.dtype.kind != "f" or bool((np.rint(array) == array).all())
    if is_whole and limits.min <= low and high <= limits.max:
        return array.astype(dtype)
    advice = "x * 255 as uint8, rounded" if dtype == np.uint8 and low >= 0 and high <= 1 else f"{dtype}"
    raise DataError(
        f"{where}: inputs are {array.dtype} from {low:.6g} to {high:.6g}, but must be {dtype}", f"save them as {advice}"
    )


def check_amount(count: int, row_bytes: int, wanted: Wanted, where: Path | str) -> int:
    """Return how many of `count` inputs to read; DataError if they are too large."""
    kept = count if wanted.limit is None else min(count, wanted.limit)
    if kept * row_bytes > MAX_BYTES:
        raise too_much(where, kept, kept * row_bytes)
    return kept


# ---------------------------------------------------------------- labels


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of a set: ids int64 (n,), and the classes' names by id, where they are known."""

    ids: npt.NDArray[np.int64]
    names: tuple[str, ...] | None


def labels_of(array: Array, names: Sequence[str] | None, wanted: Wanted, where: str) -> Labels:
    """Return labels as the bundle numbers its classes.

    The array contains class ids, (n,) or (n, 1), one-hot rows (n, classes), or class names. Ids are matched by name
    if `names` says what they stand for, in whatever order. Raises DataError for anything else.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and array.dtype.kind in "biuf":
        array = _from_one_hot(array, where)
    if array.ndim != 1:
        raise DataError(f"{where}: labels are {_size(array.shape)}", "give one label per input")
    if array.dtype.kind in "US":
        return labels_by_name([text_of(name) for name in array.tolist()], wanted, where)
    ids = _ids(array, where)
    if names is not None:
        if len(ids) and int(ids.max()) >= len(names):
            raise DataError(
                f"{where}: label {int(ids.max())} has no name ({len(names)} names: {_listed(names)})",
                "name all classes, numbered from 0",
            )
        if wanted.labels:
            places = match_names(names, wanted.labels, where)
            return Labels(np.asarray([places[name] for name in names], np.int64)[ids], wanted.labels)
        return Labels(ids, tuple(names))
    if wanted.labels and len(ids) and int(ids.max()) >= len(wanted.labels):
        row = int(np.argmax(ids >= len(wanted.labels)))
        raise DataError(
            f"{where}: label {int(ids[row])} of input {row} is outside 0 to {len(wanted.labels) - 1} "
            f"(classes: {_listed(wanted.labels)})",
            "number the classes in this order, or use their names as labels",
        )
    return Labels(ids, wanted.labels or None)


def _from_one_hot(array: Array, where: str) -> Array:
    is_one_hot = ((array == 0) | (array == 1)).all() and (array.sum(axis=1) == 1).all()
    if not is_one_hot:
        raise DataError(f"{where}: labels are {_size(array.shape)} and not one-hot", "give one class per input")
    places: Array = array.argmax(axis=1)
    return places


def _ids(array: Array, where: str) -> npt.NDArray[np.int64]:
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and not (np.rint(array) == array).all()):
        raise DataError(
            f"{where}: labels are {array.dtype} values that are not whole numbers",
            "give whole numbers from 0, or names",
        )
    if len(array) and not 0 <= float(array.min()) <= float(array.max()) < 1 << 31:
        raise DataError(f"{where}: labels go from {array.min()} to {array.max()}", "number the classes from 0")
    return array.astype(np.int64)


def text_of(name: str | bytes) -> str:
    """Return a name from an array of text or of bytes."""
    return name.decode("utf-8", errors="replace") if isinstance(name, bytes) else name


def labels_by_name(given: Sequence[str], wanted: Wanted, where: str) -> Labels:
    """Return labels that are given as names; without a bundle's classes, names are numbered in their sorted order."""
    found = sorted(set(given), key=_natural)
    places = match_names(found, wanted.labels, where) if wanted.labels else {name: k for k, name in enumerate(found)}
    ids = np.asarray([places[name] for name in given], np.int64)
    return Labels(ids, wanted.labels or tuple(found))


def match_names(found: Sequence[str], wanted: Sequence[str], where: str) -> dict[str, int]:
    """Return the class id of each name, ignoring case and whether spaces, "-", "_" or "/" separate its words.

    If all names are valid class numbers, they are ids. Raises DataError for a name that the bundle does not have.
    """
    exact = {name: k for k, name in enumerate(wanted)}
    plain = {_plain(name): k for k, name in enumerate(wanted)}
    places: dict[str, int] = {}
    strangers = [name for name in found if name not in exact and _plain(name) not in plain]
    if strangers and all(name.isdecimal() and len(name) < 10 and int(name) < len(wanted) for name in found):
        return {name: int(name) for name in found}
    if strangers:
        nearest = difflib.get_close_matches(_plain(strangers[0]), plain, n=1, cutoff=0.6)
        advice = f"; nearest: {wanted[plain[nearest[0]]]}" if nearest else ""
        raise DataError(
            f"{where}: the bundle has no class {strangers[0][:40]!r}, only {_listed(wanted)}{advice}",
            "rename it, or leave it out",
        )
    for name in found:
        place = exact.get(name, plain.get(_plain(name), -1))
        if place in places.values():
            twin = next(other for other, k in places.items() if k == place)
            raise DataError(
                f"{where}: {twin[:40]!r} and {name[:40]!r} are the same class {wanted[place]!r}", "merge them"
            )
        places[name] = place
    return places


def are_classes(found: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether names are names of classes: all of them the bundle's, or, without a bundle, at least two."""
    plain = {_plain(name) for name in wanted}
    return all(_plain(name) in plain for name in found) if wanted else len(found) > 1


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def _natural(name: str) -> tuple[int, int, str]:
    """Sort numbers by their value, before names."""
    return (0, int(name), name) if name.isdecimal() and len(name) < 19 else (1, 0, name)


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 100 else f"{text[:97]}…"
