"""Sets that come in a form of their own: idx files, CIFAR-10's binary version, files of JPEG images."""

from __future__ import annotations

import gzip
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model_zoo.data import (
    LabelledExamples,
    first_of_each_class,
    is_divided,
    load_examples,
    load_idx_set,
    load_jpeg_set,
    load_split,
    read_idx,
    split_indices,
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
    with pytest.raises(DataError, match="announces 60 bytes of data, but there are 61"):
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
    assert read.inputs.shape == (3, 4, 5, 1)
    assert read.labels.tolist() == [2, 0, 1]
    assert read.index.tolist() == [0, 1, 2]


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        load_idx_set(tmp_path, "train", "tiny")


def test_images_and_labels_must_agree(tmp_path: Path) -> None:
    write_set(tmp_path, "t10k", IMAGES, np.array([2, 0]))
    with pytest.raises(DataError, match="do not belong together"):
        load_idx_set(tmp_path, "t10k", "tiny")


def made(labels: list[int]) -> LabelledExamples:
    count = len(labels)
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    return LabelledExamples(images, np.array(labels), np.arange(count) + 50, "made")


def test_first_of_each_class_keeps_the_order_of_the_set() -> None:
    chosen = first_of_each_class(made([1, 0, 1, 1, 0, 0]), 2)
    assert chosen.index.tolist() == [50, 51, 52, 54]
    assert chosen.labels.tolist() == [1, 0, 1, 0]
    assert chosen.inputs.ravel().tolist() == [0, 1, 2, 4]


def test_first_of_each_class_needs_enough_of_each() -> None:
    with pytest.raises(DataError, match="class 0 has only 1"):
        first_of_each_class(made([1, 0, 1]), 2)


def test_samples_come_back(tmp_path: Path) -> None:
    written = made([1, 0, 1])
    write_samples(written, tmp_path / "new" / "some.npz")
    read = load_examples(tmp_path / "new" / "some.npz").labelled()
    for name in ("inputs", "labels", "index"):
        assert np.array_equal(getattr(read, name), getattr(written, name))


def test_shipped_samples_are_a_hundred_of_each_class(samples: LabelledExamples) -> None:
    assert samples.inputs.shape == (1000, 28, 28, 1)
    assert np.bincount(samples.labels).tolist() == [100] * 10
    assert (np.diff(samples.index) > 0).all()


# ---------------------------------------------------------------- JPEG images


def jpeg_arrays(count: int = 40, classes: int = 4) -> dict[str, np.ndarray]:
    """Small JPEG images whose grey level is their place; every fifth is of the test split."""
    encoded = []
    for place in range(count):
        file = io.BytesIO()
        Image.new("RGB", (6, 5), (4 * place,) * 3).save(file, "JPEG", quality=95)
        encoded.append(file.getvalue())
    return {
        "jpeg": np.frombuffer(b"".join(encoded), np.uint8),
        "offset": np.cumsum([0, *map(len, encoded)]),
        "label": (np.arange(count) % classes).astype(np.uint8),
        "is_test": np.arange(count) % 5 == 0,
        "classes": np.array(["north", "east", "south", "west"][:classes]),
    }


@pytest.fixture
def jpeg_file(tmp_path: Path) -> Path:
    np.savez(tmp_path / "set.npz", **jpeg_arrays())
    return tmp_path / "set.npz"


def test_the_test_split_is_what_the_file_marks(jpeg_file: Path) -> None:
    read = load_jpeg_set(jpeg_file, "test")
    assert read.index.tolist() == list(range(0, 40, 5))
    assert read.labels.tolist() == [place % 4 for place in range(0, 40, 5)]
    assert read.labels.dtype == np.int64
    assert read.inputs.shape == (8, 5, 6, 3)
    assert np.abs(read.inputs.astype(int).mean(axis=(1, 2, 3)) - 4 * read.index).max() < 2
    assert read.source == "set.npz, test split"


def test_the_other_splits_divide_the_rest(jpeg_file: Path) -> None:
    train = load_jpeg_set(jpeg_file, "train", held_back=8)
    validation = load_jpeg_set(jpeg_file, "validation", held_back=8)
    assert sorted([*train.index, *validation.index]) == [place for place in range(40) if place % 5]
    assert np.bincount(validation.labels).tolist() == [2, 2, 2, 2]
    for read in (train, validation):
        assert (read.labels == read.index % 4).all()
        assert np.abs(read.inputs.astype(int).mean(axis=(1, 2, 3)) - 4 * read.index).max() < 2


def test_the_division_is_fixed() -> None:
    """Bundles are trained on one side of it and thresholds chosen on the other, so it must never change."""
    labels = np.arange(30) % 3
    train, validation = split_indices(labels, held_back=10, seed=0)
    generator = np.random.default_rng(0)
    kept, held = [], []
    for label in range(3):
        places = generator.permutation(np.flatnonzero(labels == label))
        held.append(places[:3])
        kept.append(places[3:])
    assert train.tolist() == generator.permutation(np.concatenate(kept)).tolist()
    assert validation.tolist() == generator.permutation(np.concatenate(held)).tolist()
    assert validation.tolist() == [6, 17, 28, 29, 12, 14, 7, 18, 10]
    assert split_indices(labels, held_back=10, seed=1)[1].tolist() != validation.tolist()


def test_a_class_that_is_all_held_back_is_told(jpeg_file: Path) -> None:
    with pytest.raises(DataError, match="class 0 has 8 images, of which 1250 are held back"):
        load_jpeg_set(jpeg_file, "train")


def without(name: str):
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


def with_(**changes):
    return lambda arrays: arrays | {name: change(arrays[name]) for name, change in changes.items()}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (without("offset"), "not a file of JPEG images"),
        (without("is_test"), "not a file of JPEG images"),
        (with_(label=lambda a: a[:-1]), "do not belong together"),
        (with_(offset=lambda a: a[:-1]), "do not belong together"),
        (with_(is_test=lambda a: a[None]), "do not belong together"),
        (with_(label=lambda a: a.astype(float)), "integers from 0"),
        (with_(label=lambda a: a.astype(np.int64) - 1), "integers from 0"),
        (with_(jpeg=lambda a: a.astype(np.int16)), "jpeg is not uint8"),
        (with_(jpeg=lambda a: a[:-1]), "offset does not divide jpeg into 40 images"),
        (with_(offset=lambda a: a[::-1].copy()), "offset does not divide jpeg"),
        (with_(offset=lambda a: np.where(np.arange(len(a)) == 1, 0, a)), "offset does not divide jpeg"),
        (with_(jpeg=lambda a: np.zeros_like(a)), "image 0 cannot be decoded"),
        (with_(is_test=np.zeros_like), "no image of the split test"),
    ],
)
def test_jpeg_files_that_do_not_hold_together_are_refused(tmp_path: Path, change, why: str) -> None:
    np.savez(tmp_path / "odd.npz", **change(jpeg_arrays()))
    with pytest.raises(DataError, match=why) as caught:
        load_jpeg_set(tmp_path / "odd.npz", "test")
    assert "odd.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    arrays = jpeg_arrays(6)
    file = io.BytesIO()
    Image.new("RGB", (7, 5)).save(file, "JPEG")
    arrays["jpeg"] = np.concatenate([arrays["jpeg"][: arrays["offset"][5]], np.frombuffer(file.getvalue(), np.uint8)])
    arrays["offset"] = np.append(arrays["offset"][:6], len(arrays["jpeg"]))
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(DataError, match=r"image 5 is .* the first one"):
        load_jpeg_set(tmp_path / "odd.npz", "test")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_files_that_are_no_jpeg_set_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.npz").write_bytes(content)
    assert not is_divided(tmp_path / "odd.npz")
    with pytest.raises(
        DataError, match=r"odd\.npz: not a readable \.npz archive \(it is not a zip file, or is cut off\)"
    ):
        load_jpeg_set(tmp_path / "odd.npz", "test")


def test_without_pillow_one_line_says_what_to_install(jpeg_file: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"need Pillow; run: pip install 'distree\[images\]'"):
        load_jpeg_set(jpeg_file, "test")


def test_evaluate_takes_the_splits_of_a_jpeg_file(tmp_path: Path, zoo, capsys) -> None:
    arrays = jpeg_arrays()
    encoded = []
    for place in range(40):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (6 * place, 0, 90)).save(file, "JPEG")
        encoded.append(file.getvalue())
    arrays |= {"jpeg": np.frombuffer(b"".join(encoded), np.uint8), "offset": np.cumsum([0, *map(len, encoded)])}
    np.savez(tmp_path / "set.npz", **arrays)
    bundle = Path(__file__).parents[2] / "data" / "tiny-wide"
    assert zoo("evaluate", bundle, "--data", tmp_path / "set.npz") == 0
    assert "set.npz, test split, 8 inputs" in capsys.readouterr().out
    assert zoo("evaluate", bundle, "--data", tmp_path / "set.npz", "--split", "train") == 2
    assert "held back" in capsys.readouterr().err


@pytest.fixture
def cifar_folder(tmp_path: Path) -> Path:
    """Five training files of 8 records and a test file of 6; image i of a file is filled with 10, 20 and 30 + i."""
    for name in (*[f"data_batch_{number}.bin" for number in range(1, 6)], "test_batch.bin"):
        records = np.empty((6 if name.startswith("test") else 8, 3073), np.uint8)
        for i, record in enumerate(records):
            record[0] = i % 4
            record[1:] = np.repeat([10 + i, 20 + i, 30 + i], 1024)
        records.tofile(tmp_path / name)
    return tmp_path


def test_a_folder_of_binary_cifar_is_divided(cifar_folder: Path) -> None:
    assert is_divided(cifar_folder)
    test = load_split(cifar_folder, "test")
    assert test.inputs.shape == (6, 32, 32, 3)
    assert test.inputs[5, 31, 0].tolist() == [15, 25, 35]
    assert (test.labels.tolist(), test.index.tolist()) == ([0, 1, 2, 3, 0, 1], list(range(6)))
    train, validation = (load_split(cifar_folder, split, held_back=8) for split in ("train", "validation"))
    assert sorted([*train.index, *validation.index]) == list(range(40))
    assert np.bincount(validation.labels).tolist() == [2, 2, 2, 2]
    assert (train.inputs[:, 0, 0, 0] == 10 + train.index % 8).all()


def test_a_folder_of_binary_cifar_with_a_hole_is_told(cifar_folder: Path) -> None:
    (cifar_folder / "data_batch_3.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"data_batch_3\.bin: 5 bytes are not a whole number of records of 3073 bytes"):
        load_split(cifar_folder, "train")
    (cifar_folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match="give a folder with all files of CIFAR-10's binary version"):
        load_split(cifar_folder, "train")
