"""Examples in folders of files: one folder per class, one file per class, or files named after their class.

Images, WAV files, CSV files and .npy arrays, read by the reader that boards use. The classes take turns, so that the
first examples are balanced, however many are read.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from distree.bundle.inputs import RawInput
from distree.errors import CHECK_PATH, RemoteProtocolError
from distree.regular_files import read_regular
from model_zoo.data.arrays import INPUTS, labels_beside, load_array, read_array_file
from model_zoo.data.examples import MAX_BYTES, SPLIT_NAMES, Array, Examples, too_much
from model_zoo.data.tables import TABLES, load_table
from model_zoo.data.wanted import Wanted, are_classes, inputs_of, labels_by_name
from model_zoo.errors import DataError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
READ = (*IMAGES, ".wav", ".npy", *TABLES)
LEFT_OUT = (".md", ".txt", ".json", ".yaml", ".yml", ".html", ".pdf", ".db", ".ini", ".xml", ".zip")
"""Files that lie next to data but are not data; the source's name says how many were left out."""

MAX_FILE_BYTES = 64 << 20
MAX_FILES = 1_000_000
_DEPTH = 3
_ANY_NUMBER = 1 << 31


@dataclass(slots=True)
class _Found:
    """The files of a folder, in the order of their names, by class; "" is the class of files without one."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    left_out: int = 0
    count: int = 0

    def add(self, label: str, path: Path) -> None:
        if path.suffix.lower() in LEFT_OUT or path.stem.upper() in ("README", "LICENSE"):
            self.left_out += 1
            return
        if path.suffix.lower() not in READ:
            raise DataError(
                f"{path}: {path.suffix or 'no ending'} is not supported",
                f"move it away, or convert it to one of {', '.join(READ)}",
            )
        self.files.setdefault(label, []).append(path)
        self.count += 1
        if self.count > MAX_FILES:
            raise DataError(f"{path.parent}: more than {MAX_FILES:,} files", "check that this is the right folder")


def load_folder(path: Path, wanted: Wanted) -> Examples:
    """Read a folder of files. Raises DataError, naming the file, if one is damaged or not what the bundle expects."""
    folder, split = _split_of(path, wanted)
    wanted = replace(wanted, split=None)
    pair = _array_of(folder)
    if pair is not None:
        return load_array(pair, wanted)
    found = _files(folder)
    if not found.files:
        raise DataError(
            f"{folder}: contains no file that can be read ({', '.join(READ)}, *-ubyte.gz)",
            "check that this is the right folder",
        )
    examples = _read(folder, _by_class(found, wanted), wanted)
    source = path.name if split is None else f"{path.name}, {split} split"
    if found.left_out:
        source += f" ({found.left_out} other files left out)"
    labels = None
    if "" not in examples.classes:
        labels = labels_by_name(examples.classes, wanted, str(folder))
    elif any(examples.classes):
        raise DataError(
            f"{folder}: some files have a class and some have none", "put every file into the folder of its class"
        )
    return Examples(
        inputs=np.stack(examples.inputs),
        labels=None if labels is None else labels.ids,
        index=np.arange(len(examples.inputs)),
        source=source,
        names=None if labels is None else labels.names,
        files=tuple(examples.files),
    )


def _split_of(path: Path, wanted: Wanted) -> tuple[Path, str | None]:
    """Return the folder of the wanted split, if data are divided into folders; by default the test set."""
    present = {
        split: entry
        for entry in _entries(path)
        for split, names in SPLIT_NAMES.items()
        if entry.is_dir() and entry.name.lower() in names
    }
    if not {"train", "test"} <= present.keys():
        wanted.no_split(path)
        return path, None
    split = wanted.split or "test"
    if split not in present:
        raise DataError(f"{path}: has no split {split!r}, only {', '.join(sorted(present))}", "choose one of these")
    return present[split], split


def _entries(folder: Path) -> list[Path]:
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})", CHECK_PATH) from None
    return sorted(entries, key=lambda entry: entry.name)


def _array_of(folder: Path) -> Path | None:
    """Return the file of inputs if a folder contains one, such as x.npy, with its labels next to it."""
    for entry in _entries(folder):
        if entry.suffix == ".npy" and entry.stem.lower() in INPUTS and labels_beside(entry) is not None:
            return entry
    return None


def _files(folder: Path) -> _Found:
    found = _Found()
    for entry in _entries(folder):
        if entry.is_dir():
            for path in _below(entry, _DEPTH):
                found.add(entry.name, path)
        elif entry.is_file():
            found.add("", entry)
    return found


def _below(folder: Path, depth: int) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.is_dir():
            if depth == 0:
                raise DataError(f"{entry}: folders are nested too deeply", "check that this is the right folder")
            yield from _below(entry, depth - 1)
        elif entry.is_file():
            yield entry


def _by_class(found: _Found, wanted: Wanted) -> dict[str, list[Path]]:
    """Sort files that are not in a folder of a class by the class in their names, if every name has one.

    If there is one .npy file per class, it has the class's name; otherwise the class is the part before the first full
    stop, as Edge Impulse writes it: `walk.3s2b.wav`.
    """
    loose = found.files.get("", [])
    if not loose or len(found.files) > 1:
        return found.files
    if all(path.suffix == ".npy" for path in loose) and len(loose) > 1 and _are_stacks(loose, wanted):
        return {path.stem: [path] for path in loose}
    by_class: dict[str, list[Path]] = {}
    for path in loose:
        by_class.setdefault(path.stem.partition(".")[0], []).append(path)
    are_named = all(path.stem.partition(".")[2] for path in loose)
    return by_class if are_named and are_classes(list(by_class), wanted.labels) else found.files


def _are_stacks(paths: Sequence[Path], wanted: Wanted) -> bool:
    """Whether every array contains many inputs; without a spec, windows of one channel cannot be told from one."""
    rank = 2 if wanted.spec is None else len(wanted.spec.shape) + 1
    return all(read_array_file(path, 1).ndim >= rank for path in paths)


@dataclass(slots=True)
class _Examples:
    inputs: list[Array] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def _read(folder: Path, by_class: dict[str, list[Path]], wanted: Wanted) -> _Examples:
    """Read examples of the classes in turn, until there are enough."""
    made, nbytes = _Examples(), 0
    streams = [_of_class(folder, label, paths, wanted) for label, paths in by_class.items()]
    for turn in itertools.zip_longest(*streams):
        for item in turn:
            if item is None or (wanted.limit is not None and len(made.inputs) >= wanted.limit):
                continue
            label, name, raw = item
            if made.inputs and raw.shape != made.inputs[0].shape:
                raise DataError(
                    f"{folder / name}: is {raw.dtype} {raw.shape}, but others are {made.inputs[0].shape}",
                    "give inputs of one size",
                )
            nbytes += raw.nbytes
            if nbytes > MAX_BYTES:
                raise too_much(folder, len(made.inputs), nbytes)
            made.inputs.append(raw)
            made.classes.append(label)
            made.files.append(name)
        if wanted.limit is not None and len(made.inputs) >= wanted.limit:
            break
    return made


def _of_class(folder: Path, label: str, paths: Sequence[Path], wanted: Wanted) -> Iterator[tuple[str, str, Array]]:
    """Yield the examples in the files of a class: label, name, raw input."""
    for path in paths:
        name = str(path.relative_to(folder))
        if path.suffix.lower() in TABLES:
            table = load_table(path, wanted)
            for k, raw in enumerate(table.inputs):
                called = name if table.files is None else str(Path(name).with_name(table.files[k]))
                yield _label_of(path, label, table, k), called, raw
        elif path.suffix.lower() == ".npy":
            array = read_array_file(path)
            is_one = len(paths) > 1 if wanted.spec is None else array.ndim == len(wanted.spec.shape)
            stack = inputs_of(array[None] if is_one else array, wanted, str(path))
            for k, raw in enumerate(stack):
                yield label, name if len(stack) == 1 else f"{name}@{k}", raw
        else:
            for item in read_one(path, wanted):
                yield label, item.named(name), item.raw


def _label_of(path: Path, label: str, table: Examples, k: int) -> str:
    """Return the class of an input in a table, from its folder or from a column of labels."""
    if table.labels is None or table.names is None:
        return label
    told = table.names[int(table.labels[k])]
    if label and told.casefold() != label.casefold():
        raise DataError(
            f"{path}: is in the folder of {label!r}, but its column of labels says {told!r}", "correct one of them"
        )
    return label or told


def read_one(path: Path, wanted: Wanted) -> list[RawInput]:
    """Read the inputs in one file, as a board does; DataError if it is not what the bundle expects."""
    try:
        return wanted.reader(path).read_all(_content(path), most=_ANY_NUMBER)
    except RemoteProtocolError as error:
        raise DataError(f"{path}: {error.detail}", error.remedy) from None


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        remedy = "split it into several files" if error.errno == errno.EFBIG else CHECK_PATH
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", remedy) from None
