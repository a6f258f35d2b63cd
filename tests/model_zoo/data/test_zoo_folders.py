"""Folders of files, as people sort them: classes by folder, by file, by name; splits; what lies about; what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from data_forms import AS_IT_IS, HALVES, IMAGE, MOTION, SOUND, csv, npy, png, wav, write

from distree.bundle.inputs import InputReader
from distree.bundle.manifest import Preprocess, WindowRule
from model_zoo.data import load_examples
from model_zoo.errors import DataError

pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'distree[images]'")


def test_a_folder_for_each_class_of_images(tmp_path: Path) -> None:
    write(tmp_path, {"dog/b.png": png(2), "dog/a.jpg": png(1), "cat/deep/c.png": png(3), "cat/d.PNG": png(4)})
    found = load_examples(tmp_path, spec=IMAGE).labelled()
    assert found.names == ("cat", "dog")
    assert found.files == ("cat/d.PNG", "dog/a.jpg", "cat/deep/c.png", "dog/b.png")
    assert (found.inputs[:, 0, 0, 0].tolist(), found.labels.tolist()) == ([4, 1, 3, 2], [0, 1, 0, 1])
    assert (found.inputs.shape, found.inputs.dtype, found.source) == ((4, 6, 5, 3), np.uint8, tmp_path.name)


def test_classes_take_turns_so_that_the_first_are_balanced(tmp_path: Path) -> None:
    write(tmp_path, {f"{name}/{k}.png": png(k) for name in "abc" for k in range(4 if name != "c" else 1)})
    assert load_examples(tmp_path, spec=IMAGE).labelled().labels.tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 1]
    assert load_examples(tmp_path, spec=IMAGE, limit=4).labelled().labels.tolist() == [0, 1, 2, 0]


def test_folders_are_matched_with_the_bundles_classes_by_name(tmp_path: Path) -> None:
    write(tmp_path, {"t-shirt_TOP/a.png": png(1), "Ankle boot/b.png": png(2)})
    found = load_examples(tmp_path, spec=IMAGE, labels=("Ankle boot", "Bag", "T-shirt/top")).labelled()
    assert sorted(zip(found.inputs[:, 0, 0, 0].tolist(), found.labels.tolist(), strict=True)) == [(1, 2), (2, 0)]
    with pytest.raises(DataError, match="the bundle has no class 'Ankle boot'"):
        load_examples(tmp_path, spec=IMAGE, labels=("Bag", "T-shirt/top"))


def test_folders_that_are_numbers_are_ids_in_their_order(tmp_path: Path) -> None:
    write(tmp_path, {f"{k}/a.png": png(k) for k in (10, 9, 2)})
    assert load_examples(tmp_path, spec=IMAGE).names == ("2", "9", "10")
    names = tuple("abcdefghijk")
    found = load_examples(tmp_path, spec=IMAGE, labels=names).labelled()
    assert sorted(found.labels.tolist()) == [2, 9, 10]


def test_images_are_read_as_a_board_reads_them(tmp_path: Path) -> None:
    from PIL import Image

    picture = Image.linear_gradient("L").resize((90, 40)).convert("RGB")
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "wide.png")
    for resize in ("crop", "pad", "stretch"):
        rules = Preprocess(layout="nhwc", resize=resize, background="white")
        found = load_examples(tmp_path, spec=IMAGE, preprocess=rules)
        board = InputReader(IMAGE, rules).read((tmp_path / "a" / "wide.png").read_bytes())
        np.testing.assert_array_equal(found.inputs[0], board)


def test_recordings_are_cut_into_windows(tmp_path: Path) -> None:
    write(tmp_path, {"yes/a.wav": wav(range(80)), "no/b.wav": wav(range(100, 140))})
    found = load_examples(tmp_path, spec=SOUND, preprocess=HALVES).labelled()
    assert found.files == ("no/b.wav", "yes/a.wav@0s", "yes/a.wav@0.0025s", "yes/a.wav@0.005s")
    assert found.inputs[:, 0].tolist() == [100, 0, 20, 40]
    assert found.labels.tolist() == [0, 1, 1, 1]
    with pytest.raises(
        DataError, match=r"a\.wav: the recording has 80 samples, more than a window, which has 40; cut it"
    ):
        load_examples(tmp_path, spec=SOUND, preprocess=AS_IT_IS)


def test_csv_recordings_and_npy_windows_in_folders_of_classes(tmp_path: Path) -> None:
    stack = np.arange(60, dtype=np.float32).reshape(2, 10, 3)
    write(
        tmp_path,
        {"walk/a.csv": csv(10), "run/b.csv": csv(10, 500), "run/c.npy": npy(stack), "walk/d.npy": npy(stack[0])},
    )
    found = load_examples(tmp_path, spec=MOTION).labelled()
    assert found.files == ("run/b.csv", "walk/a.csv", "run/c.npy@0", "walk/d.npy", "run/c.npy@1")
    assert found.inputs[:, 0, 0].tolist() == [500, 0, 0, 0, 30]
    assert found.names == ("run", "walk")


def test_a_file_for_each_class(tmp_path: Path) -> None:
    stack = np.arange(60, dtype=np.float32).reshape(2, 10, 3)
    write(tmp_path, {"walk.npy": npy(stack), "run.npy": npy(stack[:1])})
    found = load_examples(tmp_path, spec=MOTION).labelled()
    assert (found.names, found.labels.tolist()) == (("run", "walk"), [0, 1, 1])
    np.testing.assert_array_equal(load_examples(tmp_path).inputs, found.inputs)


def test_files_named_by_their_class_as_edge_impulse_does(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"yes.3s2b.wav": wav(range(40)), "no.88d1.wav": wav(range(40)), "no.99aa.ingestion.wav": wav(range(40))},
    )
    found = load_examples(tmp_path, spec=SOUND).labelled()
    assert (found.names, found.labels.tolist()) == (("no", "yes"), [0, 1, 0])
    # Dots in names that are no classes make none.
    assert load_examples(tmp_path, spec=SOUND, labels=("up", "down")).labels is None


def test_files_without_classes_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(1), "b.png": png(2)})
    found = load_examples(tmp_path, spec=IMAGE)
    assert (found.labels, found.names, found.files) == (None, None, ("a.png", "b.png"))
    write(tmp_path, {"cat/c.png": png(3)})
    with pytest.raises(
        DataError, match="some files have a class and some have none; put every file into the folder of its class"
    ):
        load_examples(tmp_path, spec=IMAGE)


def test_one_file_is_an_input_without_label(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(7), "b.wav": wav(range(80))})
    found = load_examples(tmp_path / "a.png", spec=IMAGE)
    assert (len(found), found.labels, found.files) == (1, None, ("a.png",))
    assert load_examples(tmp_path / "b.wav", spec=SOUND, preprocess=HALVES).files == (
        "b.wav@0s",
        "b.wav@0.0025s",
        "b.wav@0.005s",
    )


def test_folders_of_splits(tmp_path: Path) -> None:
    write(tmp_path, {"train/a/1.png": png(1), "train/b/2.png": png(2), "test/a/3.png": png(3), "testing.md": "x"})
    test, train = load_examples(tmp_path, spec=IMAGE), load_examples(tmp_path, spec=IMAGE, split="train")
    assert (test.files, test.source) == (("a/3.png",), f"{tmp_path.name}, test split")
    assert train.files == ("a/1.png", "b/2.png")
    with pytest.raises(DataError, match="has no split 'validation', only test, train"):
        load_examples(tmp_path, spec=IMAGE, split="validation")
    with pytest.raises(DataError, match="is not divided, so it has no split 'test'"):
        load_examples(tmp_path / "train", spec=IMAGE, split="test")


def test_what_lies_about_is_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": png(1), "a/.DS_Store": b"x", "a/Thumbs.db": b"x", "README": "x", "a/info.json": "{}"})
    found = load_examples(tmp_path, spec=IMAGE)
    assert found.source == f"{tmp_path.name} (3 other files left out)"
    write(tmp_path, {"a/sound.flac": b"x"})
    with pytest.raises(
        DataError, match=r"a/sound\.flac: \.flac is not supported; move it away, or convert it to one of \.jpg"
    ):
        load_examples(tmp_path, spec=IMAGE)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a/1.png", b"\x89PNG\r\n\x1a\n and no more", "are not a readable image"),
        ("a/1.png", b"", r"expected an image file, .* received nothing \(0 bytes\)"),
        ("a/1.png", b"hello", "expected an image file, .* received text of 5 bytes, 'hello'"),
        ("a/1.wav", wav(range(40)), "expected an image file, .* received a WAV file"),
        ("a/1.npy", npy(np.zeros((2, 2))), "inputs are 2, but must be 6 x 5 x 3"),
        ("a/1.npy", npy(np.zeros((3, 6, 5))), "inputs are 3 x 6 x 5, but must be 6 x 5 x 3; channels are first"),
        ("a/1.npy", b"\x93NUMPY", "not an .npy array"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_input_is_named(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    write(tmp_path, {"b/good.png": png(1), name: content})
    with pytest.raises(DataError, match=why) as caught:
        load_examples(tmp_path, spec=IMAGE)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (wav(range(40), rate=44100), "sampled at 44,100 Hz, but the bundle expects 8,000 Hz; convert it: ffmpeg -i IN -ar 8000 OUT.wav"),
        (wav(range(30)), "the recording has 30 samples, fewer than a window, which has 40; record more, or declare window: {short: pad}"),
        (wav(range(40))[:-5], "it is cut off"),
        (b"fLaC" + bytes(50), "received a FLAC file of 54 bytes"),
    ],
)  # fmt: skip
def test_a_recording_that_is_no_input_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    write(tmp_path, {"a/1.wav": content})
    with pytest.raises(DataError, match=why):
        load_examples(tmp_path, spec=SOUND)


def test_short_recordings_are_padded_where_that_is_declared(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.wav": wav(range(1, 31))})
    found = load_examples(tmp_path, spec=SOUND, preprocess=Preprocess(layout="nhwc", window=WindowRule(short="pad")))
    assert found.inputs[0].tolist() == [*range(1, 31), *[0] * 10]


def test_a_table_in_the_folder_of_another_class_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"walk/a.csv": csv(label="run")})
    with pytest.raises(DataError, match="is in the folder of 'walk', but its column of labels says 'run'"):
        load_examples(tmp_path, spec=MOTION)
    write(tmp_path, {"walk/a.csv": csv(label="Walk")})
    assert load_examples(tmp_path, spec=MOTION).names == ("walk",)


def test_folders_that_hold_nothing_or_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"contains no file that can be read \(\.jpg"):
        load_examples(tmp_path, spec=IMAGE)
    write(tmp_path, {"a/b/c/d/e/1.png": png(1)})
    with pytest.raises(DataError, match="folders are nested too deeply"):
        load_examples(tmp_path, spec=IMAGE)
    other = write(tmp_path / "other", {f"a/{k}.png": png(k) for k in range(5)})
    monkeypatch.setattr("model_zoo.data.folders.MAX_BYTES", 300)
    with pytest.raises(DataError, match="read fewer of them"):
        load_examples(other, spec=IMAGE)
    assert len(load_examples(other, spec=IMAGE, limit=3)) == 3
    monkeypatch.setattr("model_zoo.data.folders.MAX_FILES", 4)
    with pytest.raises(DataError, match="more than 4 files; check that this is the right folder"):
        load_examples(other, spec=IMAGE)


def test_files_need_a_bundles_input(tmp_path: Path) -> None:
    write(tmp_path, {"a/1.png": png(1)})
    with pytest.raises(DataError, match="files cannot be read without an input spec"):
        load_examples(tmp_path)


def test_paths_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; check the path"):
        load_examples(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is neither a file nor a folder"):
        load_examples(tmp_path / "pipe")
    with pytest.raises(DataError, match="/dev/zero: is neither a file nor a folder"):
        load_examples("/dev/zero")
    write(tmp_path, {"a/1.png": png(1)})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert len(load_examples(tmp_path, spec=IMAGE)) == 1


def test_without_pillow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    write(tmp_path, {"a/1.png": png(1)})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"1\.png: image files need Pillow; run: pip install 'distree\[images\]'"):
        load_examples(tmp_path, spec=IMAGE)
