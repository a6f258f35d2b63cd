"""Images in idx files, the format of the MNIST family."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distree.regular_files import open_regular, read_bounded, read_regular
from model_zoo.data.examples import LabelledExamples
from model_zoo.errors import DataError

DEFAULT_FASHION_DIR = Path("/usr/share/datasets/fashion-mnist")
FASHION_HINT = (
    "install Debian's package 'dataset-fashion-mnist', or put the four *-ubyte.gz files of "
    "https://github.com/zalandoresearch/fashion-mnist into a folder and give it as --data DIR"
)
_UNSIGNED_BYTE = 0x08
_MAX_DIMENSIONS = 4
_MAX_BYTES = 1 << 30


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
            "download the file again",
        )
    return np.frombuffer(content, dtype=np.uint8, offset=offset).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            if file.read(2) != b"\x1f\x8b":
                return read_regular(path, _MAX_BYTES)
            file.seek(0)
            with gzip.open(file, "rb") as packed:
                return read_bounded(packed, _MAX_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read as an idx file ({why})", "download the file again") from error


def _idx_header(path: Path, content: bytes) -> tuple[tuple[int, ...], int]:
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(f"{path}: not an idx file (its first two bytes are not zero)", "give an idx file")
    element, dimensions = content[2], content[3]
    if element != _UNSIGNED_BYTE or not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise DataError(
            f"{path}: idx element type 0x{element:02x} with {dimensions} dimensions",
            f"convert it to unsigned bytes (0x08) with 1 to {_MAX_DIMENSIONS} dimensions",
        )
    offset = 4 + 4 * dimensions
    if len(content) < offset:
        raise DataError(f"{path}: the idx header is truncated", "download the file again")
    return struct.unpack(f">{dimensions}I", content[4:offset]), offset


def is_idx_folder(folder: Path) -> bool:
    """Whether a folder contains images in idx files."""
    return any(folder.glob("*-images-idx3-ubyte*"))


def load_idx_set(folder: Path, split: str, source: str) -> LabelledExamples:
    """Read the images and labels of one split, "train" or "t10k", from a folder of idx files.

    Raises DataError if a file is missing or the two files have different counts.
    """
    images = read_idx(_find_idx(folder, f"{split}-images-idx3-ubyte"))
    labels = read_idx(_find_idx(folder, f"{split}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{folder}: {split} images {images.shape} and labels {labels.shape} do not belong together",
            "download both files again",
        )
    return LabelledExamples(images[..., None], labels.astype(np.int64), np.arange(len(labels)), source)


def _find_idx(folder: Path, stem: str) -> Path:
    for name in (f"{stem}.gz", stem):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: contains no {stem}.gz", FASHION_HINT)
