"""Data that is divided into splits: the folder of CIFAR-10's binary version, and files of JPEG images."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distree.bundle.inputs.images import check_size
from distree.errors import RemoteProtocolError
from distree.regular_files import read_regular
from model_zoo.data.archives import is_archive, open_archive
from model_zoo.data.examples import MAX_BYTES, Array, LabelledExamples, Split, too_much
from model_zoo.errors import DataError

HELD_BACK = 5000
_MAX_NAMES = 1 << 16
_CIFAR_SIDE = 32
_CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_TEST = "test_batch.bin"


def is_divided(path: Path) -> bool:
    """Whether data is in a form that is divided into splits, which `load_split` reads."""
    return _is_jpeg_set(path) or (path / _CIFAR_TEST).is_file()


def class_names(path: Path) -> tuple[str, ...] | None:
    """Return the classes' names of divided data, by label; None if they are not given."""
    if path.is_dir():
        meta = path / "batches.meta.txt"
        return tuple(_content(meta, _MAX_NAMES).decode(errors="replace").split()) if meta.is_file() else None
    with open_archive(path) as archive:
        names = archive.read(archive.names["classes"]) if "classes" in archive.names else np.empty(0)
    return tuple(map(str, names.tolist())) if names.dtype.kind == "U" else None


def load_split(path: Path, split: Split, held_back: int = HELD_BACK, seed: int = 0) -> LabelledExamples:
    """Read one split of a file as `load_jpeg_set` does, or of a folder of CIFAR-10's binary version.

    Raises DataError for anything else, and if a split is empty or cannot be read.
    """
    if path.is_dir():
        return _load_cifar_folder(path, split, held_back, seed)
    return load_jpeg_set(path, split, held_back, seed)


def _load_cifar_folder(folder: Path, split: Split, held_back: int, seed: int) -> LabelledExamples:
    names = (_CIFAR_TEST,) if split == "test" else _CIFAR_TRAIN
    records = np.concatenate([_cifar_records(folder / name) for name in names])
    labels = records[:, 0].astype(np.int64)
    chosen = np.arange(len(labels)) if split == "test" else _train_or_validation(labels, split, held_back, seed)
    planes = records[chosen, 1:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return LabelledExamples(images, labels[chosen], chosen, f"{folder.name}, {split} split")


def _cifar_records(path: Path) -> npt.NDArray[np.uint8]:
    """Read records of one label and three planes of 32 x 32 values: uint8 (n, 3073)."""
    size = 1 + 3 * _CIFAR_SIDE**2
    content = np.frombuffer(_content(path, MAX_BYTES), np.uint8)
    if len(content) == 0 or len(content) % size:
        raise DataError(
            f"{path}: {len(content)} bytes are not a whole number of records of {size} bytes", "download the file again"
        )
    return content.reshape(-1, size)


def _content(path: Path, most_bytes: int) -> bytes:
    try:
        return read_regular(path, most_bytes)
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}", "give a folder with all files of CIFAR-10's binary version"
        ) from None


def _train_or_validation(
    labels: npt.NDArray[np.int64], split: Split, held_back: int, seed: int
) -> npt.NDArray[np.int64]:
    train, validation = split_indices(labels, held_back, seed)
    return train if split == "train" else validation


def _is_jpeg_set(path: Path) -> bool:
    if path.is_dir() or not is_archive(path):
        return False
    with contextlib.suppress(DataError), open_archive(path) as archive:
        return "jpeg" in archive.names
    return False


def load_jpeg_set(path: Path, split: Split, held_back: int = HELD_BACK, seed: int = 0) -> LabelledExamples:
    """Read one split of a file of JPEG images; `index` is each image's place in the file.

    The file is an npz with `jpeg` uint8, all images end to end, `offset` (n + 1,), where they begin and end, `label`
    (n,) and `is_test` (n,). The split `test` are the images that `is_test` marks, in order; the others are divided
    by `split_indices`. Raises DataError if Pillow, the file, or any of its arrays is missing.
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
    return LabelledExamples(images, labels[chosen], chosen, f"{path.name}, {split} split")


def split_indices(
    labels: npt.NDArray[np.int64], held_back: int = HELD_BACK, seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Divide training images into those to train on and `held_back` for validation, as many of each class.

    Returns their indices in `labels`, shuffled. Raises DataError if a class has no image left to train on.
    """
    generator = np.random.default_rng(seed)
    classes = int(labels.max()) + 1 if len(labels) else 1
    per_class = held_back // classes
    kept: list[npt.NDArray[np.int64]] = []
    held: list[npt.NDArray[np.int64]] = []
    for label in range(classes):
        places = generator.permutation(np.flatnonzero(labels == label))
        if len(places) <= per_class:
            raise DataError(
                f"class {label} has {len(places)} images, of which {per_class} are held back",
                f"give more than {per_class} images of every class",
            )
        held.append(places[:per_class])
        kept.append(places[per_class:])
    train = generator.permutation(np.concatenate(kept))
    return train, generator.permutation(np.concatenate(held))


def _jpeg_arrays(path: Path) -> dict[str, Array]:
    wanted = ("jpeg", "offset", "label", "is_test")
    with open_archive(path) as archive:
        missing = [name for name in wanted if name not in archive.names]
        if missing:
            raise DataError(
                f"{path}: is not a file of JPEG images: it has no {', '.join(missing)}", "download the file again"
            )
        arrays = {name: archive.read(archive.names[name]) for name in wanted}
    jpeg, offset, label = arrays["jpeg"], arrays["offset"], arrays["label"]
    if any(array.ndim != 1 for array in arrays.values()) or not len(offset) - 1 == len(label) == len(arrays["is_test"]):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DataError(f"{path}: {shapes} do not belong together", "download the file again")
    numbers = all(arrays[name].dtype.kind in "iub" for name in ("offset", "label", "is_test"))
    if jpeg.dtype != np.uint8 or not numbers or (label.astype(np.int64) < 0).any():
        raise DataError(
            f"{path}: jpeg is not uint8, or offset, label or is_test are not integers from 0", "download the file again"
        )
    if offset[0] != 0 or offset[-1] != len(jpeg) or (np.diff(offset.astype(np.int64)) <= 0).any():
        raise DataError(f"{path}: offset does not divide jpeg into {len(label)} images", "download the file again")
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
            with Image.open(encoded, formats=("JPEG",)) as opened:
                check_size(opened.size, opened.mode, "RGB", "JPEG")
                if not images and 3 * math.prod(opened.size) * len(chosen) > MAX_BYTES:
                    raise too_much(path, len(chosen), 3 * math.prod(opened.size) * len(chosen))
                image = np.asarray(opened.convert("RGB"))
        except RemoteProtocolError as error:
            raise DataError(f"{path}: image {i}: {error.detail}", error.remedy) from None
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: image {i} cannot be decoded ({error})", "download the file again") from None
        if images and image.shape != images[0].shape:
            raise DataError(
                f"{path}: image {i} is {image.shape}, but the first one is {images[0].shape}", "give images of one size"
            )
        images.append(image)
    return np.stack(images)
