"""Inputs of any kind with or without labels, from an .npz file."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distree.errors import CHECK_PATH
from model_zoo.errors import DataError

DTYPES = ("uint8", "int8", "int16", "float32")
MAX_BYTES = 4 << 30
_INPUTS, _LABELS, _NAMES = ("x", "input"), ("y", "label", "labels"), ("classes", "names")


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Inputs in order.

    inputs: (n, …) uint8, int8, int16 or float32. labels: int64 (n,), None without any. names: the classes' names by
    label, where they are known. source: what to call the set in a report.
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64] | None
    names: tuple[str, ...] | None
    source: str

    def __len__(self) -> int:
        return int(self.inputs.shape[0])


def load_examples(path: Path) -> Examples:
    """Read an .npz file with `x` (or `input`), and perhaps `y` (or `label`, `labels`) and `classes` (or `names`).

    Raises DataError for what is none, is larger than `MAX_BYTES`, or does not fit together.
    """
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as archive:
            inputs = _first_of(archive, _INPUTS)
            labels = _first_of(archive, _LABELS)
            names = _first_of(archive, _NAMES)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - of a damaged file numpy raises whatever its bytes lead to
        reason = " ".join(str(error).split())[:200]
        kind = type(error).__name__
        raise DataError(
            f"{path}: not an .npz file of inputs ({kind}: {reason})", "save it by numpy.savez(FILE, x=…, y=…)"
        ) from None
    if inputs is None:
        raise DataError(f"{path}: has no array x", "save it by numpy.savez(FILE, x=…, y=…)")
    given = _usual(path, inputs)
    return Examples(
        inputs=given,
        labels=None if labels is None else _class_ids(path, labels, len(given)),
        names=None if names is None else tuple(str(name) for name in names.tolist()),
        source=path.name,
    )


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file", CHECK_PATH)
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_BYTES:
        raise DataError(f"{path}: {size} bytes of arrays, at most {MAX_BYTES} are read", "give fewer inputs")


def _first_of(archive: Any, keys: tuple[str, ...]) -> npt.NDArray[Any] | None:
    found = next((key for key in keys if key in archive), None)
    return None if found is None else np.asarray(archive[found])


def _usual(path: Path, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if inputs.dtype == np.float64:
        inputs = inputs.astype(np.float32)
    if inputs.dtype.name not in DTYPES or inputs.ndim < 2:
        raise DataError(f"{path}: x is {inputs.dtype} {inputs.shape}", f"(n, …) of {', '.join(DTYPES)} is needed")
    if len(inputs) == 0:
        raise DataError(f"{path}: contains no inputs", "give some")
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        row = int(np.argmin(np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)))
        raise DataError(f"{path}: input {row} holds values that are not finite (NaN or infinite)", "leave it out")
    return inputs


def _class_ids(path: Path, labels: npt.NDArray[Any], inputs: int) -> npt.NDArray[np.int64]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != inputs:
        raise DataError(
            f"{path}: y is {labels.dtype} {labels.shape}", f"one class number for each of {inputs} inputs is needed"
        )
    ids = labels.astype(np.int64)
    if ids.min() < 0:
        raise DataError(f"{path}: y has negative class numbers", "classes are numbered from 0")
    return ids
