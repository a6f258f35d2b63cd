"""Examples in arrays: .npz archives with inputs and labels, and .npy files with labels next to them.

No more is read than is asked for: the header of an array says in advance how large it is, and its first rows can be
read without the rest.
"""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np

from distree.bundle.npy import MAGIC, in_native_order, read_header, read_rows
from distree.errors import CHECK_PATH, RemoteProtocolError
from distree.regular_files import open_regular, read_regular
from model_zoo.data.archives import Archive, begins, open_archive
from model_zoo.data.examples import MAX_BYTES, Array, Examples, Split, too_much
from model_zoo.data.wanted import Wanted, check_amount, inputs_of, labels_of, text_of
from model_zoo.errors import DataError

INPUTS = ("input", "inputs", "x", "image", "images", "data", "features", "samples", "windows", "signals")
LABELS = ("label", "labels", "y", "target", "targets", "class", "class_id", "class_ids")
CLASS_NAMES = ("classes", "class_names", "label_names", "target_names", "names", "categories")
FILE_NAMES = ("name", "file", "files", "filenames", "paths")
"""Common names of arrays, in lower case; with `_train`, `train_` and the like if they are divided."""

_MAX_LABELS = 50_000_000
_TEXT_LABELS = (".txt", ".csv")


def is_array(path: Path) -> bool:
    """Whether a file begins as an .npy array does."""
    return begins(path, MAGIC)


# ---------------------------------------------------------------- archives


def load_archive(path: Path, wanted: Wanted) -> Examples:
    """Read an .npz archive. Raises DataError if it is damaged, or its arrays are not inputs and labels."""
    with open_archive(path) as archive:
        return _from_archive(archive, wanted)


def _from_archive(archive: Archive, wanted: Wanted) -> Examples:
    path = archive.path
    split = wanted.split
    name = archive.find(INPUTS, None)
    if name is None:
        split = split or "test"
        name = archive.find(INPUTS, split)
    else:
        wanted.no_split(path)
    if name is None:
        there = ", ".join(archive.names) or "nothing"
        what = "" if wanted.split is None else f" of the split {wanted.split}"
        raise DataError(
            f"{path}: contains no array of inputs{what} (found: {there[:200]})",
            "save it with numpy.savez(path, x=…, y=…)",
        )
    header = archive.header(name)
    if not header.shape:
        raise DataError(f"{path}: {name.removesuffix('.npy')} is a single number", "save an array of inputs (n, …)")
    kept = check_amount(header.shape[0], header.row_bytes, wanted, path)
    where = f"{path}: {name.removesuffix('.npy')}"
    inputs = inputs_of(archive.read(name, kept), wanted, where)
    label_name = archive.find(LABELS, split) or archive.find(LABELS, None)
    class_names, found = _class_names(archive), None
    if label_name is not None:
        label_where = f"{path}: {label_name.removesuffix('.npy')}"
        given = _of_each(archive, label_name, header.shape[0])
        found = labels_of(given[:kept], class_names, wanted, label_where)
    return Examples(
        inputs=inputs,
        labels=None if found is None else found.ids,
        index=_index(archive, header.shape[0])[:kept],
        source=path.name if split is None else f"{path.name}, {split} split",
        names=None if found is None else found.names,
        files=_files(archive, split, header.shape[0], kept),
    )


def _index(archive: Archive, count: int) -> Array:
    """Return the indices of inputs in the data that they were taken from, if the archive has them."""
    name = archive.find(("index",), None)
    if name is None or archive.header(name).dtype.kind not in "iu" or archive.header(name).shape != (count,):
        return np.arange(count)
    places: Array = archive.read(name).astype(np.int64)
    return places


def _files(archive: Archive, split: Split | None, count: int, kept: int) -> tuple[str, ...] | None:
    """Return the names of the inputs, if the archive has one for each."""
    name = archive.find(FILE_NAMES, split) or archive.find(FILE_NAMES, None)
    if name is None or archive.header(name).shape != (count,):
        return None
    return tuple(
        text_of(given) if isinstance(given, bytes) else str(given) for given in archive.read(name)[:kept].tolist()
    )


def _of_each(archive: Archive, name: str, count: int) -> Array:
    """Read an array that has a row for each input."""
    header = archive.header(name)
    if not header.shape or header.shape[0] != count:
        rows = f"has {header.shape[0]} rows" if header.shape else "is a single value"
        raise DataError(
            f"{archive.path}: {name.removesuffix('.npy')} {rows}, but there are {count} inputs",
            "save one row per input",
        )
    return archive.read(name)


def _class_names(archive: Archive) -> tuple[str, ...] | None:
    name = archive.find(CLASS_NAMES, None)
    if name is None or archive.header(name).dtype.kind not in "US":
        return None
    return tuple(text_of(given) for given in archive.read(name).ravel().tolist())


# ---------------------------------------------------------------- single arrays


def read_array_file(path: Path, limit: int | None = None) -> Array:
    """Read an .npy file, or its first rows; DataError if it is damaged, cut off, or too large."""
    try:
        with open_regular(path) as file:
            header = read_header(file)
            left = path.stat().st_size - file.tell()
            if left != header.nbytes:
                raise DataError(
                    f"{path}: has {left} bytes of data, but {header} needs {header.nbytes}", "save it again"
                )
            rows = limit if header.shape else None
            read_bytes = header.nbytes if rows is None or header.is_fortran else rows * header.row_bytes
            if min(read_bytes, header.nbytes) > MAX_BYTES:
                raise too_much(path, header.shape[0], header.nbytes)
            return in_native_order(read_rows(file, header, rows))
    except RemoteProtocolError as error:
        raise DataError(f"{path}: {error.detail}", error.remedy) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", CHECK_PATH) from None


def load_array(path: Path, wanted: Wanted) -> Examples:
    """Read windows or images from an .npy file, and their labels from a file next to it, if there is one.

    Labels of `x.npy` are in `y.npy`, `x_labels.npy`, `labels.npy` or a text file of such a name, one per line. The
    rest of the name must agree, as in `X_test.npy` and `y_test.npy`.
    """
    wanted.no_split(path)
    array = read_array_file(path, wanted.limit)
    if wanted.spec is not None and array.ndim == len(wanted.spec.shape):
        array = array[None]  # one window by itself
    if array.ndim == 0:
        raise DataError(f"{path}: contains a single number", "save an array of inputs (n, …)")
    inputs = inputs_of(array, wanted, str(path))
    beside = labels_beside(path)
    found = None
    if beside is not None:
        found = labels_of(_label_file(beside)[: len(inputs)], None, wanted, str(beside))
        if len(found.ids) != len(inputs):
            raise DataError(
                f"{beside}: {len(found.ids)} labels for {len(inputs)} inputs in {path.name}", "give one label per input"
            )
    return Examples(
        inputs=inputs,
        labels=None if found is None else found.ids,
        index=np.arange(len(inputs)),
        source=path.name,
        names=None if found is None else found.names,
    )


def labels_beside(path: Path) -> Path | None:
    """Return the file of labels that belongs to a file of inputs; None if there is none."""
    stems = [f"{path.stem}_labels", f"{path.stem}-labels", f"{path.stem}.labels"]
    lower = path.stem.lower()
    for name in INPUTS:
        if lower == name or lower.startswith(f"{name}_"):
            rest = path.stem[len(name) :]
            stems += [f"{label}{rest}" for label in (*LABELS, "Y")]
        if lower.endswith(f"_{name}"):
            stems += [f"{path.stem[: -len(name)]}{label}" for label in LABELS]
    stems.append("labels")
    candidates = (path.with_name(f"{stem}{suffix}") for stem in stems for suffix in (".npy", *_TEXT_LABELS))
    return next((beside for beside in candidates if beside != path and beside.is_file()), None)


def _label_file(path: Path) -> Array:
    return read_array_file(path) if path.suffix == ".npy" else _text_labels(path)


def _text_labels(path: Path) -> Array:
    try:
        content = read_regular(path, _MAX_LABELS)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise DataError(
                f"{path}: is too large for a file of labels ({error.strerror})", "give one label per line"
            ) from None
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", CHECK_PATH) from None
    lines = (line.strip() for line in content.decode("utf-8-sig", errors="replace").splitlines())
    labels = [line for line in lines if line]
    if labels and labels[0].lower() in LABELS:
        labels = labels[1:]
    if all(label.isdecimal() and len(label) < 10 for label in labels):
        return np.asarray([int(label) for label in labels], np.int64)
    return np.asarray(labels)
