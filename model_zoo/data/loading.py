"""One function to read examples in any form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from distree.bundle.manifest import InputSpec, Preprocess
from distree.errors import CHECK_PATH
from distree.printable import printable
from model_zoo.data.archives import is_archive
from model_zoo.data.arrays import is_array, load_archive, load_array
from model_zoo.data.examples import Examples, LabelledExamples, Split
from model_zoo.data.folders import load_folder, read_one
from model_zoo.data.idx import is_idx_folder, load_idx_set
from model_zoo.data.splits import class_names, is_divided, load_split
from model_zoo.data.tables import is_table, load_table
from model_zoo.data.wanted import Wanted, inputs_of, labels_of
from model_zoo.errors import DataError

_BY_ENDING = {".npz": load_archive, ".npy": load_array, ".csv": load_table, ".tsv": load_table}

MAX_TEXT = 600
"""The most characters of an error's text."""


def load_examples(
    path: Path | str,
    *,
    spec: InputSpec | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    split: Split | None = None,
    limit: int | None = None,
) -> Examples:
    """Read inputs, with labels if there are any, from a file or a folder in any of the forms in docs/howto/data.md.

    spec: what a bundle expects; files are read as such inputs, as on a board, and arrays are checked against it.
    Without it arrays are read as they are, and files are refused. preprocess: how files are read (`resize`,
    `background`, `window`). labels: the bundle's classes in order; if the data have class names, labels are matched by
    name, whatever the data's order. split: a part of divided data, by default the test set. limit: the most inputs to
    read; folders of classes take turns.

    Raises DataError: one line with the file, the row or line if there is one, and what to do.
    """
    path = Path(path)
    wanted = Wanted(spec, preprocess, tuple(labels), split, limit)
    if not path.exists():
        raise DataError(f"{path}: does not exist", CHECK_PATH)
    if not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: is neither a file nor a folder", CHECK_PATH)
    if limit is not None and limit < 1:
        raise DataError(f"{path}: a limit of {limit} inputs is out of range", "choose at least 1")
    try:
        return _reader_of(path)(path, wanted)
    except DataError as error:
        # Names of files, columns and classes can contain anything.
        raise DataError(printable(error.what, MAX_TEXT), printable(error.remedy, MAX_TEXT)) from None


def is_of_arrays(path: Path) -> bool:
    """Whether data are arrays, whose shape and dtype say what an input is; other files need a spec."""
    return is_divided(path) or (is_idx_folder(path) if path.is_dir() else is_archive(path) or is_array(path))


def _reader_of(path: Path) -> Callable[[Path, Wanted], Examples]:
    if is_divided(path):
        return _load_divided
    if path.is_dir():
        return _load_idx if is_idx_folder(path) else load_folder
    forms = ((is_archive, load_archive), (is_array, load_array), (is_table, load_table))
    by_content = next((load for fits, load in forms if fits(path)), None)
    # A file that is damaged at its beginning is read as what its name says, and reported as such.
    return by_content or _BY_ENDING.get(path.suffix.lower(), _load_file)


def _load_idx(path: Path, wanted: Wanted) -> Examples:
    name = "train" if wanted.split == "train" else "t10k"
    if wanted.split == "validation":
        raise DataError(f"{path}: has no split 'validation', only train and test", "choose one of these")
    found = load_idx_set(path, name, f"the {'training' if name == 'train' else 'test'} set in {path}")
    return _checked(path, found.head(wanted.limit), None, wanted)


def _load_divided(path: Path, wanted: Wanted) -> Examples:
    found = load_split(path, wanted.split or "test")
    return _checked(path, found.head(wanted.limit), class_names(path), wanted)


def _checked(path: Path, found: LabelledExamples, names: Sequence[str] | None, wanted: Wanted) -> Examples:
    labels = labels_of(found.labels, names, wanted, str(path))
    return Examples(inputs_of(found.inputs, wanted, str(path)), labels.ids, found.index, found.source, labels.names)


def _load_file(path: Path, wanted: Wanted) -> Examples:
    """Read one image, recording or window: examples without labels."""
    wanted.no_split(path)
    items = read_one(path, wanted)[: wanted.limit]
    return Examples(
        inputs=np.stack([item.raw for item in items]),
        labels=None,
        index=np.arange(len(items)),
        source=path.name,
        files=tuple(item.named(path.name) for item in items),
    )
