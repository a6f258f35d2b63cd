"""Arrays as people save them: how they are called, divided, typed and shaped, and what is refused with what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_forms import GREY, IMAGE, MOTION, npy, write

from distree.bundle.manifest import InputSpec
from model_zoo.data import examples, load_examples
from model_zoo.errors import DataError

COUNT = 6
IMAGES = np.random.default_rng(1).integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2])
NAMES = ("cat", "dog", "eel")


def saved(tmp_path: Path, **arrays: object) -> Path:
    np.savez(tmp_path / "set.npz", **{key: np.asarray(array) for key, array in arrays.items()})
    return tmp_path / "set.npz"


@pytest.mark.parametrize(
    ("x", "y"),
    [("x", "y"), ("X", "Y"), ("input", "label"), ("images", "labels"), ("data", "target"), ("features", "targets"), ("image", "class_id")],
)  # fmt: skip
def test_spellings_of_the_field(tmp_path: Path, x: str, y: str) -> None:
    found = load_examples(saved(tmp_path, **{x: IMAGES, y: LABELS}), spec=IMAGE)
    np.testing.assert_array_equal(found.inputs, IMAGES)
    assert found.labels is not None
    assert found.labels.tolist() == LABELS.tolist()
    assert found.labels.dtype == np.int64
    assert (found.source, found.names, found.index.tolist()) == ("set.npz", None, list(range(COUNT)))


def test_compressed_archives_and_capital_endings_are_the_same(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.NPZ.npz", x=IMAGES, y=LABELS)
    np.testing.assert_array_equal(load_examples(tmp_path / "a.NPZ.npz").inputs, IMAGES)


def test_labels_are_none_where_there_are_none(tmp_path: Path) -> None:
    found = load_examples(saved(tmp_path, x=IMAGES), spec=IMAGE)
    assert found.labels is None
    with pytest.raises(
        DataError, match=r"set\.npz: has no labels; give an \.npz file with x and y, one folder per class"
    ):
        found.labelled()


@pytest.mark.parametrize(
    ("labels", "ids"),
    [
        (LABELS.astype(np.uint8), LABELS), (LABELS[:, None], LABELS), (LABELS.astype(np.float32), LABELS),
        (np.eye(3)[LABELS], LABELS), (np.array(["dog", "cat", "cat", "dog", "eel", "cat"]), [1, 0, 0, 1, 2, 0]),
        (np.array([b"dog", b"cat", b"cat", b"dog", b"eel", b"cat"]), [1, 0, 0, 1, 2, 0]),
    ],
)  # fmt: skip
def test_labels_are_ids_one_hot_rows_or_names(tmp_path: Path, labels: np.ndarray, ids: object) -> None:
    found = load_examples(saved(tmp_path, x=IMAGES, y=labels)).labelled()
    assert found.labels.tolist() == list(ids)  # type: ignore[call-overload]
    assert found.names == (None if labels.dtype.kind not in "US" else NAMES)


def test_labels_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path, x=IMAGES, y=LABELS, classes=np.array(["Eel", "cat", "DOG"]))
    found = load_examples(path, labels=NAMES).labelled()
    assert [NAMES[label] for label in found.labels] == [["eel", "cat", "dog"][label] for label in LABELS]
    assert found.names == NAMES
    assert load_examples(path).names == ("Eel", "cat", "DOG")


def test_divided_arrays_have_their_splits(tmp_path: Path) -> None:
    path = saved(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:2], y_test=LABELS[:2])
    test, train = load_examples(path), load_examples(path, split="train")
    assert (len(test), test.source, len(train), train.source) == (2, "set.npz, test split", 6, "set.npz, train split")
    assert train.labelled().labels.tolist() == LABELS.tolist()
    with pytest.raises(DataError, match=r"no array of inputs of the split validation \(found: x_train, y_train"):
        load_examples(path, split="validation")
    other = saved(
        tmp_path, train_images=IMAGES, train_labels=LABELS[:, None], val_images=IMAGES[:3], val_labels=LABELS[:3]
    )
    assert len(load_examples(other, split="validation")) == 3
    with pytest.raises(DataError, match="is not divided, so it has no split 'test'; leave --split out"):
        load_examples(saved(tmp_path, x=IMAGES), split="test")


def test_what_is_called_so_and_is_not_of_each_input_is_left(tmp_path: Path) -> None:
    found = load_examples(saved(tmp_path, x=IMAGES, name="mine", index=np.arange(3), classes=np.arange(4)))
    assert (found.files, found.index.tolist(), found.names) == (None, list(range(6)), None)


def test_a_limit_below_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set\.npz: a limit of 0 inputs is out of range; choose at least 1"):
        load_examples(saved(tmp_path, x=IMAGES), limit=0)


def test_names_and_places_of_inputs_are_kept(tmp_path: Path) -> None:
    found = load_examples(saved(tmp_path, x=IMAGES, name=list("abcdef"), index=np.arange(6) * 10))
    assert (found.files, found.index.tolist()) == (tuple("abcdef"), [0, 10, 20, 30, 40, 50])
    taken = found.take(np.array([4, 0]))
    assert (taken.files, taken.index.tolist(), len(found.head(2)), len(found.head(None))) == (("e", "a"), [40, 0], 2, 6)


# ---------------------------------------------------------------- types and shapes


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16", "float64", "float32"])
def test_types_that_hold_the_same_values_are_taken(tmp_path: Path, dtype: str) -> None:
    found = load_examples(saved(tmp_path, x=IMAGES.astype(dtype)), spec=IMAGE)
    assert found.inputs.dtype == np.uint8
    np.testing.assert_array_equal(found.inputs, IMAGES)


def test_without_a_spec_types_are_the_usual_ones(tmp_path: Path) -> None:
    for given, dtype in (
        (IMAGES.astype(np.int64), "uint8"), (IMAGES.astype(np.int32) - 200, "int16"), (IMAGES * 1000.0, "float32"),
        (IMAGES.astype(np.int64) * 1000, "float32"), (IMAGES.astype(np.int8), "int8"), (IMAGES > 9, "uint8"),
    ):  # fmt: skip
        assert load_examples(saved(tmp_path, x=given)).inputs.dtype == dtype


def test_an_axis_of_one_may_be_missing_or_elsewhere(tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (COUNT, 8, 8), dtype=np.uint8)
    for given in (grey, grey[..., None], grey[:, None], grey[:, None, :, :, None]):
        np.testing.assert_array_equal(load_examples(saved(tmp_path, x=given), spec=GREY).inputs[..., 0], grey)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (IMAGES.transpose(0, 3, 1, 2), r"inputs are 3 x 6 x 5, but must be 6 x 5 x 3; channels are first: save it as x\.transpose\(0, 2, 3, 1\)"),
        (IMAGES.reshape(COUNT, 90), r"inputs are 90, but must be 6 x 5 x 3; save it as x\.reshape\(-1, 6, 5, 3\), if its values"),
        (IMAGES[:, :5], "inputs are 5 x 5 x 3, but must be 6 x 5 x 3; convert it"),
        (IMAGES / 255.0, r"inputs are float64 from 0.* to .*, but must be uint8; save them as x \* 255 as uint8, rounded"),
        (IMAGES - 128.5, "inputs are float64 from .*, but must be uint8; save them as uint8"),
        (IMAGES.astype(np.int16) + 1, "inputs are int16 from .* to 256, but must be uint8"),
        (np.zeros((0, 6, 5, 3), np.uint8), "contains no inputs"),
        (np.zeros((2, 6, 5, 3), np.complex64), "not an .npy array: it contains complex64"),
        (np.array(["a", "b"]), "contains <U1 values instead of numbers"),
        (np.float32(3), "is a single number"),
        (np.where(np.arange(90).reshape(1, 6, 5, 3) == 7, np.nan, IMAGES.astype(float)), "input 0 contains values that are not finite"),
    ],
)  # fmt: skip
def test_what_is_not_the_bundles_is_refused_with_what_to_do(tmp_path: Path, array: np.ndarray, why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        load_examples(saved(tmp_path, x=array, y=LABELS[: len(np.atleast_1d(array))]), spec=IMAGE)
    assert str(caught.value).startswith(f"{tmp_path / 'set.npz'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"y": LABELS[:5]}, "y has 5 rows, but there are 6 inputs"),
        ({"y": LABELS[None]}, "y has 1 rows, but there are 6 inputs"),
        ({"y": np.uint8(1)}, "y is a single value, but there are 6 inputs; save one row per input"),
        ({"y": LABELS - 1}, "labels go from -1 to 1; number the classes from 0"),
        ({"y": LABELS + 0.5}, "labels are float64 values that are not whole numbers; give whole numbers from 0, or names"),
        ({"y": np.ones((6, 3))}, "labels are 6 x 3 and not one-hot"),
        ({"y": LABELS + 1}, r"label 3 of input 0 is outside 0 to 2 \(classes: cat, dog, eel\); number the classes"),
        ({"y": LABELS, "classes": ["cat", "dog"]}, r"label 2 has no name \(2 names: cat, dog\)"),
        ({"y": LABELS, "classes": ["cat", "dog", "eal"]}, r"the bundle has no class 'eal', only cat, dog, eel; nearest: eel"),
        ({"y": LABELS, "classes": ["cat", "Cat", "eel"]}, "'cat' and 'Cat' are the same class 'cat'"),
        ({"y": ["cat", "dog", "eel", "owl", "cat", "dog"]}, "the bundle has no class 'owl'"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, object], why: str) -> None:
    with pytest.raises(DataError, match=why):
        load_examples(saved(tmp_path, x=IMAGES, **arrays), spec=IMAGE, labels=NAMES)


def test_names_that_are_numbers_are_ids_and_numbers_that_are_names_are_names(tmp_path: Path) -> None:
    path = saved(tmp_path, x=IMAGES[:3], y=["2", "0", "1"])
    assert load_examples(path, labels=NAMES).labelled().labels.tolist() == [2, 0, 1]
    assert load_examples(path, labels=("2", "1", "0")).labelled().labels.tolist() == [0, 2, 1]


def test_an_archive_of_something_else_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no array of inputs \(found: weights, bias\); save it with numpy\.savez\(path, x=…, y=…\)"
    ):
        load_examples(saved(tmp_path, weights=IMAGES, bias=LABELS))


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.npz", b"", r"not a readable \.npz archive \(it is not a zip file, or is cut off\); save it again with numpy\.savez"),
        ("a.npz", b"PK\x03\x04 cut", r"not a readable \.npz archive"),
        ("a.npz", b"text", r"not a readable \.npz archive"),
        ("a.npy", b"", r"not an \.npy array: its first bytes are not those of the format"),
        ("a.csv", b"", "line 1: there are no rows"),
        ("a.bin", b"text", "expected an image file, 90 raw bytes .* received text of 4 bytes, 'text'"),
    ],
)  # fmt: skip
def test_damaged_files_are_told_as_what_they_are_called(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=why) as caught:
        load_examples(tmp_path / name, spec=IMAGE)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


# ---------------------------------------------------------------- how much is read


def test_no_more_is_read_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, x=IMAGES, y=LABELS)
    monkeypatch.setattr("model_zoo.data.wanted.MAX_BYTES", 300)
    found = load_examples(path, limit=3).labelled()
    assert (len(found), found.labels.tolist()) == (3, [2, 0, 1])
    with pytest.raises(DataError, match=r"6 inputs of 90 bytes are more than .* read fewer of them"):
        load_examples(path)


def test_a_promise_of_terabytes_is_refused_unread(tmp_path: Path) -> None:
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 6, 5, 3), }"
    lie = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(90)
    (tmp_path / "x.npy").write_bytes(lie)
    with pytest.raises(DataError, match=r"x\.npy: has 90 bytes of data, but .* needs \d+"):
        load_examples(tmp_path / "x.npy")
    import zipfile

    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("x.npy", lie)
    with pytest.raises(DataError, match=f"more than {examples.MAX_BYTES >> 30} GiB; read fewer of them"):
        load_examples(tmp_path / "set.npz")
    with pytest.raises(DataError, match=r"it is cut off: it has 90 bytes of data, but .* needs 180"):
        load_examples(tmp_path / "set.npz", limit=2)


# ---------------------------------------------------------------- .npy files


@pytest.mark.parametrize(
    ("name", "labels"),
    [("x.npy", "y.npy"), ("X_test.npy", "y_test.npy"), ("set.npy", "set_labels.npy"), ("data.npy", "labels.npy"), ("test_images.npy", "test_labels.npy")],
)  # fmt: skip
def test_labels_lie_beside_an_npy_file(tmp_path: Path, name: str, labels: str) -> None:
    write(tmp_path, {name: npy(IMAGES), labels: npy(LABELS)})
    found = load_examples(tmp_path / name, spec=IMAGE).labelled()
    assert found.labels.tolist() == LABELS.tolist()
    assert load_examples(tmp_path / name, spec=IMAGE, limit=2).labelled().labels.tolist() == [2, 0]


def test_labels_may_be_text_one_a_line(tmp_path: Path) -> None:
    write(tmp_path, {"x.npy": npy(IMAGES), "y.txt": "label\neel\ncat\ndog\ndog\n cat \neel\n"})
    found = load_examples(tmp_path / "x.npy", labels=NAMES).labelled()
    assert found.labels.tolist() == LABELS.tolist()
    write(tmp_path, {"y.txt": "2\n0\n1\n1\n0\n2\n"})
    assert load_examples(tmp_path / "x.npy").labelled().labels.tolist() == LABELS.tolist()
    write(tmp_path, {"y.txt": "2\n0\n"})
    with pytest.raises(DataError, match=r"y\.txt: 2 labels for 6 inputs in x\.npy"):
        load_examples(tmp_path / "x.npy")


def test_a_folder_with_inputs_and_labels_is_such_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"x.npy": npy(IMAGES), "y.npy": npy(LABELS), "README.md": "mine"})
    assert load_examples(tmp_path, spec=IMAGE).labelled().labels.tolist() == LABELS.tolist()


def test_one_window_by_itself_is_one_input(tmp_path: Path) -> None:
    window = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    write(tmp_path, {"w.npy": npy(window)})
    found = load_examples(tmp_path / "w.npy", spec=MOTION)
    np.testing.assert_array_equal(found.inputs, window[None])


def test_arrays_in_the_other_order_and_byte_order(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(4, 10, 3)).astype(">f4")
    write(tmp_path, {"a.npy": npy(np.asfortranarray(values)), "b.npy": npy(values)})
    for name in ("a.npy", "b.npy"):
        found = load_examples(tmp_path / name, spec=MOTION, limit=3)
        np.testing.assert_array_equal(found.inputs, values[:3].astype(np.float32))
        assert found.inputs.dtype == np.float32


def test_int8_features_are_taken_as_they_are(tmp_path: Path) -> None:
    features = np.random.default_rng(1).integers(-128, 128, (5, 49, 10, 1)).astype(np.int8)
    found = load_examples(saved(tmp_path, x=features, y=[0] * 5), spec=InputSpec(dtype="int8", shape=(49, 10, 1)))
    np.testing.assert_array_equal(found.inputs, features)
