from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_zoo.data import (
    LabelledImages,
    first_of_each_class,
    load_idx_set,
    load_samples,
    read_idx,
    write_samples,
)
from model_zoo.errors import DataError


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 0x08, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_set(folder: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))


IMAGES = np.arange(3 * 4 * 5).reshape(3, 4, 5)


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_idx_gives_back_what_was_written(tmp_path: Path, pack) -> None:
    path = tmp_path / "some-idx"
    path.write_bytes(pack(idx_bytes(IMAGES)))
    read = read_idx(path)
    assert read.dtype == np.uint8
    assert np.array_equal(read, IMAGES)


@pytest.mark.parametrize("cut", [1, 3, 8, 15, 16, 40, 75])
def test_idx_cut_short_is_refused_plain(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut"
    path.write_bytes(idx_bytes(IMAGES)[:cut])
    with pytest.raises(DataError, match="cut"):
        read_idx(path)


def test_idx_cut_short_is_refused_gzipped(tmp_path: Path) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(idx_bytes(IMAGES))[:-9])
    with pytest.raises(DataError, match=r"cut\.gz: cannot be read"):
        read_idx(path)


def test_idx_with_bytes_left_over_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(idx_bytes(IMAGES) + b"\0")
    with pytest.raises(DataError, match="promises 60 bytes of data, 61"):
        read_idx(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"PNG nothing", "not an idx file"),
        (struct.pack(">BBBBI", 0, 0, 0x0D, 1, 1) + b"1234", "0x0d"),
        (struct.pack(">BBBB", 0, 0, 0x08, 9) + b"\0" * 99, "9 dimensions"),
        (b"", "not an idx file"),
    ],
)
def test_what_is_not_idx_of_bytes_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(DataError, match=why):
        read_idx(path)


@settings(max_examples=60, deadline=None)
@given(
    content=st.binary(max_size=64),
    magic=st.sampled_from([b"", b"\0\0\x08\x01", b"\x1f\x8b", b"\0\0\x08\x04"]),
)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, magic: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(magic + content)
    try:
        array = read_idx(path)
    except DataError:
        return
    assert array.dtype == np.uint8


def test_a_set_is_images_with_a_channel_and_labels(tmp_path: Path) -> None:
    write_set(tmp_path, "t10k", IMAGES, np.array([2, 0, 1]))
    read = load_idx_set(tmp_path, "t10k", "tiny")
    assert read.images.shape == (3, 4, 5, 1)
    assert read.labels.tolist() == [2, 0, 1]
    assert read.index.tolist() == [0, 1, 2]


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        load_idx_set(tmp_path, "train", "tiny")


def test_images_and_labels_must_agree(tmp_path: Path) -> None:
    write_set(tmp_path, "t10k", IMAGES, np.array([2, 0]))
    with pytest.raises(DataError, match="do not belong together"):
        load_idx_set(tmp_path, "t10k", "tiny")


def made(labels: list[int]) -> LabelledImages:
    count = len(labels)
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    return LabelledImages(images, np.array(labels), np.arange(count) + 50, "made")


def test_first_of_each_class_keeps_the_order_of_the_set() -> None:
    chosen = first_of_each_class(made([1, 0, 1, 1, 0, 0]), 2)
    assert chosen.index.tolist() == [50, 51, 52, 54]
    assert chosen.labels.tolist() == [1, 0, 1, 0]
    assert chosen.images.ravel().tolist() == [0, 1, 2, 4]


def test_first_of_each_class_needs_enough_of_each() -> None:
    with pytest.raises(DataError, match="class 0 has only 1"):
        first_of_each_class(made([1, 0, 1]), 2)


def test_samples_come_back(tmp_path: Path) -> None:
    written = made([1, 0, 1])
    write_samples(written, tmp_path / "new" / "some.npz")
    read = load_samples(tmp_path / "new" / "some.npz")
    for name in ("images", "labels", "index"):
        assert np.array_equal(getattr(read, name), getattr(written, name))


@pytest.mark.parametrize(
    "arrays",
    [
        {"input": np.zeros((2, 2, 2, 1), np.uint8)},
        {"input": np.zeros((2, 2, 2, 1), np.float32), "label": np.zeros(2, np.int64)},
        {"input": np.zeros((2, 2, 2), np.uint8), "label": np.zeros(2, np.int64)},
        {"input": np.zeros((2, 2, 2, 1), np.uint8), "label": np.zeros(3, np.int64)},
        {"input": np.array([{}]), "label": np.zeros(1, np.int64)},
    ],
)
def test_sample_files_that_do_not_hold_together_are_refused(tmp_path: Path, arrays) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(DataError, match=r"odd\.npz"):
        load_samples(tmp_path / "odd.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text", b"\x93NUMPY"])
def test_files_that_are_no_npz_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.npz"):
        load_samples(tmp_path / "odd.npz")


def test_shipped_samples_are_a_hundred_of_each_class(samples: LabelledImages) -> None:
    assert samples.images.shape == (1000, 28, 28, 1)
    assert np.bincount(samples.labels).tolist() == [100] * 10
    assert (np.diff(samples.index) > 0).all()
