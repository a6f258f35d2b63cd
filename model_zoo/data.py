"""Images with labels: idx files of the MNIST family, files of JPEG images, and the samples that ship with a bundle."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from distree.printable import printable
from model_zoo.errors import DataError

DEFAULT_FASHION_DIR = Path("/usr/share/datasets/fashion-mnist")
FASHION_HINT = (
    "install Debian's package 'dataset-fashion-mnist', or put the four *-ubyte.gz files of "
    "https://github.com/zalandoresearch/fashion-mnist into a folder and give it as --data DIR"
)
Split = Literal["train", "validation", "test"]
HELD_BACK = 5000
_UNSIGNED_BYTE = 0x08
_MAX_DIMENSIONS = 4
_MAX_BYTES = 1 << 30
_UNREADABLE = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_CIFAR_SIDE = 32
_CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_TEST = "test_batch.bin"
_DOWNLOAD = "download the file again"


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images of one set, in order.

    images: uint8, (n, height, width, channels). labels: int64, (n,). index: int64, (n,), each image's place
    in the set that it was taken from. source: what to call the set in a report.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    index: npt.NDArray[np.int64]
    source: str

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def head(self, count: int | None) -> LabelledImages:
        """Return the first `count` images; all of them for None."""
        return self.slice(0, len(self) if count is None else count)

    def slice(self, start: int, stop: int) -> LabelledImages:
        """Return the images from `start` up to, not including, `stop`."""
        part = slice(start, stop)
        return LabelledImages(self.images[part], self.labels[part], self.index[part], self.source)


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read one idx file of unsigned bytes, gzipped or plain.

    Returns a uint8 array of the shape that the file states. Raises DataError for a file that is missing, not
    idx, of another element type, shorter or longer than its header says.
    """
    content = _read_bytes(path)
    shape, offset = _idx_header(path, content)
    expected = math.prod(shape)
    if len(content) - offset != expected:
        raise DataError(
            f"{path}: the idx header announces {expected} bytes of data, but there are {len(content) - offset}",
            _DOWNLOAD,
        )
    return np.frombuffer(content, dtype=np.uint8, offset=offset).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as plain:
            if plain.read(2) != b"\x1f\x8b":
                plain.seek(0)
                return plain.read(_MAX_BYTES)
        with gzip.open(path, "rb") as packed:
            return packed.read(_MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an idx file ({error})", _DOWNLOAD) from error


def _idx_header(path: Path, content: bytes) -> tuple[tuple[int, ...], int]:
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{path}: not an idx file (its first two bytes are not zero)", "name an idx file")
    element, dimensions = content[2], content[3]
    if element != _UNSIGNED_BYTE or not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise DataError(
            f"{path}: has idx element type 0x{element:02x} and {dimensions} dimensions",
            f"convert it to unsigned bytes (0x08) with 1 to {_MAX_DIMENSIONS} dimensions",
        )
    offset = 4 + 4 * dimensions
    if len(content) < offset:
        raise DataError(f"{path}: the idx header is truncated", _DOWNLOAD)
    return struct.unpack(f">{dimensions}I", content[4:offset]), offset


def load_idx_set(folder: Path, split: str, source: str) -> LabelledImages:
    """Read the images and labels of one split, "train" or "t10k", from a folder of idx files.

    Raises DataError where a file is missing or the two files disagree on their count.
    """
    images = read_idx(_find_idx(folder, f"{split}-images-idx3-ubyte"))
    labels = read_idx(_find_idx(folder, f"{split}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        what = f"{folder}: {split} images {images.shape} and labels {labels.shape} do not belong together"
        raise DataError(what, "download both files again")
    return LabelledImages(images[..., None], labels.astype(np.int64), np.arange(len(labels)), source)


def _find_idx(folder: Path, stem: str) -> Path:
    for name in (f"{stem}.gz", stem):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: contains no {stem}.gz", FASHION_HINT)


def load_samples(path: Path) -> LabelledImages:
    """Read a sample file: npz with `input` uint8 (n, h, w, c), `label` (n,) and, optionally, `index` (n,).

    Raises DataError where the file is missing, not such an npz, or its arrays disagree.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["input"], archive["label"]
            index = archive["index"] if "index" in archive else np.arange(len(labels))
    except _UNREADABLE as error:
        what = f"{path}: not a sample file ({error})"
        raise DataError(what, "give an .npz file with arrays input and label") from error
    if images.dtype != np.uint8 or images.ndim != 4 or labels.ndim != 1:
        what = f"{path}: input is {images.dtype} {images.shape}"
        raise DataError(what, "convert it to uint8 (n, height, width, channels)")
    if not len(images) == len(labels) == len(index):
        what = f"{path}: has {len(images)} inputs, {len(labels)} labels and {len(index)} indexes"
        raise DataError(what, "give one label, and one index if any, for each input")
    return LabelledImages(images, labels.astype(np.int64), index.astype(np.int64), path.name)


def is_divided(path: Path) -> bool:
    """Whether data is divided into splits, and so read by `load_split` rather than by `load_samples` and the like."""
    return _is_jpeg_set(path) or (path / _CIFAR_TEST).is_file()


def load_split(path: Path, split: Split, held_back: int = HELD_BACK, seed: int = 0) -> LabelledImages:
    """Read one split of a file as `load_jpeg_set` does, or of a folder of CIFAR-10's binary version.

    Raises DataError for what is neither, and where a split is empty or cannot be read.
    """
    if path.is_dir():
        return _load_cifar_folder(path, split, held_back, seed)
    return load_jpeg_set(path, split, held_back, seed)


def _load_cifar_folder(folder: Path, split: Split, held_back: int, seed: int) -> LabelledImages:
    names = (_CIFAR_TEST,) if split == "test" else _CIFAR_TRAIN
    records = np.concatenate([_cifar_records(folder / name) for name in names])
    labels = records[:, 0].astype(np.int64)
    chosen = np.arange(len(labels)) if split == "test" else _train_or_validation(labels, split, held_back, seed)
    planes = records[chosen, 1:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return LabelledImages(images, labels[chosen], chosen, f"{folder.name}, {split} split")


def _cifar_records(path: Path) -> npt.NDArray[np.uint8]:
    """Read records of one label and three planes of 32 x 32 values: uint8 (n, 3073)."""
    size = 1 + 3 * _CIFAR_SIDE**2
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        remedy = "give a folder with all files of CIFAR-10's binary version"
        raise DataError(f"{path}: {error.strerror}", remedy) from None
    if len(content) == 0 or len(content) % size:
        raise DataError(f"{path}: {len(content)} bytes are not a whole number of records of {size} bytes", _DOWNLOAD)
    return content.reshape(-1, size)


def _train_or_validation(
    labels: npt.NDArray[np.int64], split: Split, held_back: int, seed: int
) -> npt.NDArray[np.int64]:
    train, validation = split_indices(labels, held_back, seed)
    return train if split == "train" else validation


def _is_jpeg_set(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "jpeg.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def load_jpeg_set(path: Path, split: Split, held_back: int = HELD_BACK, seed: int = 0) -> LabelledImages:
    """Read one split of a file of JPEG images; `index` is each image's place in the file.

    The file is an npz with `jpeg` uint8, all images end to end, `offset` (n + 1,), where they begin and end, `label`
    (n,) and `is_test` (n,). The split `test` are the images that `is_test` marks, in order; the others are divided
    by `split_indices`. Raises DataError where Pillow is missing, or the file, or something in it.
    """
    arrays = _jpeg_arrays(path)
    is_test, labels = arrays["is_test"].astype(np.bool_), arrays["label"].astype(np.int64)
    if split == "test":
        chosen = np.flatnonzero(is_test)
    else:
        rest = np.flatnonzero(~is_test)
        chosen = rest[_train_or_validation(labels[rest], split, held_back, seed)]
    if len(chosen) == 0:
        raise DataError(f"{path}: contains no image of the split {split}", "choose another split, or another file")
    images = _decoded(path, arrays["jpeg"], arrays["offset"], chosen)
    return LabelledImages(images, labels[chosen], chosen, f"{path.name}, {split} split")


def split_indices(
    labels: npt.NDArray[np.int64], held_back: int = HELD_BACK, seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Divide training images into those to train on and `held_back` for validation, as many of each class.

    Returns their places in `labels`, shuffled. Raises DataError where a class has no image left to train on.
    """
    generator = np.random.default_rng(seed)
    classes = int(labels.max()) + 1 if len(labels) else 1
    per_class = held_back // classes
    kept: list[npt.NDArray[np.int64]] = []
    held: list[npt.NDArray[np.int64]] = []
    for label in range(classes):
        places = generator.permutation(np.flatnonzero(labels == label))
        if len(places) <= per_class:
            what = f"class {label} has {len(places)} images, of which {per_class} are held back for validation"
            raise DataError(what, f"give more than {per_class} images of each class")
        held.append(places[:per_class])
        kept.append(places[per_class:])
    train = generator.permutation(np.concatenate(kept))
    return train, generator.permutation(np.concatenate(held))


def _jpeg_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: np.asarray(archive[name]) for name in ("jpeg", "offset", "label", "is_test")}
    except _UNREADABLE as error:
        what = f"{path}: not a file of JPEG images ({error})"
        raise DataError(what, "give an .npz file with arrays jpeg, offset, label and is_test") from error
    jpeg, offset, label = arrays["jpeg"], arrays["offset"], arrays["label"]
    if any(array.ndim != 1 for array in arrays.values()) or not len(offset) - 1 == len(label) == len(arrays["is_test"]):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DataError(f"{path}: {shapes} do not belong together", _DOWNLOAD)
    numbers = all(arrays[name].dtype.kind in "iub" for name in ("offset", "label", "is_test"))
    if jpeg.dtype != np.uint8 or not numbers or (label.astype(np.int64) < 0).any():
        what = f"{path}: jpeg is not uint8, or offset, label or is_test are not integers from 0"
        raise DataError(what, _DOWNLOAD)
    if offset[0] != 0 or offset[-1] != len(jpeg) or (np.diff(offset.astype(np.int64)) <= 0).any():
        raise DataError(f"{path}: offset does not divide jpeg into {len(label)} images", _DOWNLOAD)
    return arrays


def _decoded(
    path: Path, jpeg: npt.NDArray[np.uint8], offset: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Decode the chosen images: uint8 (n, height, width, 3)."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DataError(f"{path}: JPEG images need Pillow", "run: pip install 'distree[images]'") from None
    images: list[npt.NDArray[np.uint8]] = []
    for i in chosen.tolist():
        try:
            encoded = io.BytesIO(jpeg[int(offset[i]) : int(offset[i + 1])].tobytes())
            image = np.asarray(Image.open(encoded, formats=("JPEG",)).convert("RGB"))
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: image {i} cannot be decoded ({printable(str(error))})", _DOWNLOAD) from None
        if images and image.shape != images[0].shape:
            what = f"{path}: image {i} is {image.shape}, the first one {images[0].shape}"
            raise DataError(what, "give images of one size")
        images.append(image)
    return np.stack(images)


def first_of_each_class(images: LabelledImages, count: int) -> LabelledImages:
    """Return the first `count` images of each class, kept in the order of the set.

    Raises DataError where a class has fewer.
    """
    kept: list[npt.NDArray[np.int64]] = []
    for label in np.unique(images.labels):
        places = np.flatnonzero(images.labels == label)[:count]
        if len(places) < count:
            what = f"{images.source}: class {label} has only {len(places)} images"
            raise DataError(what, f"give at least {count} of each class")
        kept.append(places)
    order = np.sort(np.concatenate(kept))
    return LabelledImages(images.images[order], images.labels[order], images.index[order], images.source)


def write_samples(images: LabelledImages, path: Path) -> None:
    """Write a sample file that `load_samples` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, input=images.images, label=images.labels, index=images.index)
