"""Recipes of whole networks: what they read, how they vary inputs, and what `distree zoo train` leaves behind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from input_bundles import wav

from distree import strict_yaml
from distree.bundle.preprocessing import Preprocessor
from model_zoo.build.draft import draft_whole
from model_zoo.build.manifest import write_declared
from model_zoo.data import load_examples
from model_zoo.errors import DataError
from model_zoo.recipes import get_whole_recipe, spoken_digits, whole_recipe_names
from model_zoo.split.declared import DeclaredInput

DIGITS, EXERCISES = get_whole_recipe("spoken-digits"), get_whole_recipe("wrist-exercises")
PEOPLE = range(1, 11)


def tone(digit: int, index: int) -> np.ndarray:
    """A tone as long as a digit is, higher for every class; int16."""
    count = 2000 + 100 * index
    wave = np.sin(2 * np.pi * (300 + 300 * digit) * np.arange(count) / spoken_digits.RATE_HZ)
    return np.rint(8000 * wave).astype(np.int16)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A data set of tones, in the form of the Free Spoken Digit Dataset."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for digit in range(10):
        for index in (0, 4, 5, 24, 25, 30):
            (folder / f"{digit}_ann_{index}.wav").write_bytes(wav(tone(digit, index), spoken_digits.RATE_HZ))
    return folder


@pytest.fixture
def watch(tmp_path: Path) -> Path:
    """A data set of ten people, in the form of seglearn's."""
    generator = np.random.default_rng(1)
    content = {
        "X": [generator.normal(0.3 * (k % 7), 0.3, (300, 6)) for k in range(7 * len(PEOPLE))],
        "y": np.arange(7 * len(PEOPLE)) % 7,
        "subject": np.repeat(PEOPLE, 7),
    }
    path = tmp_path / "watch.npy"
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def test_recipes_are_found_by_name():
    assert [get_whole_recipe(name).name for name in whole_recipe_names()] == list(whole_recipe_names())
    with pytest.raises(DataError, match="name one of spoken-digits, wrist-exercises"):
        get_whole_recipe("zzz")


@pytest.mark.parametrize("recipe", [DIGITS, EXERCISES], ids=lambda recipe: recipe.name)
def test_what_a_recipe_declares_fits_its_network(recipe):
    raw = np.zeros(recipe.input.shape, recipe.input.dtype)
    assert Preprocessor(draft_whole(recipe).manifest).tensor(raw).shape == (1, *recipe.input_shape)


def test_digits_are_divided_by_their_number_and_padded_at_the_end(recordings):
    parts = DIGITS.read(recordings)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [20, 20, 20]
    assert parts.test.files[:2] == ("0_ann_0.wav", "0_ann_4.wav")
    assert np.array_equal(np.unique(parts.train.labels), np.arange(10))
    spoken = tone(7, 4)
    window = parts.test.inputs[parts.test.files.index("7_ann_4.wav")]
    assert np.array_equal(window[: len(spoken)], spoken)
    assert not window[len(spoken) :].any()


def test_digits_of_an_archive_are_those_of_the_folder(recordings, tmp_path):
    given = [re.fullmatch(r"(\d)_([a-z]+)_(\d+)", path.stem).groups() for path in sorted(recordings.glob("*.wav"))]
    pieces = [tone(int(digit), int(index)) for digit, _, index in given]
    np.savez(
        tmp_path / "digits.npz",
        samples=np.concatenate(pieces),
        offset=np.cumsum([0, *map(len, pieces)]),
        label=np.array([int(digit) for digit, _, _ in given], np.uint8),
        speaker=np.array([speaker for _, speaker, _ in given]),
        index=np.array([int(index) for _, _, index in given], np.uint8),
    )
    one, other = DIGITS.read(recordings), DIGITS.read(tmp_path / "digits.npz")
    for name in ("train", "validation", "test"):
        assert np.array_equal(getattr(one, name).inputs, getattr(other, name).inputs)
        assert getattr(one, name).files == getattr(other, name).files


def test_exercises_are_divided_by_people_and_only_training_windows_overlap(watch):
    parts = EXERCISES.read(watch)
    people = [{name.split("-")[0] for name in part.files} for part in (parts.train, parts.validation, parts.test)]
    assert not people[0] & people[1]
    assert not people[0] & people[2]
    assert not people[1] & people[2]
    assert sum(map(len, people)) == len(PEOPLE)
    assert [len(parts.test), len(parts.validation)] == [2 * 7 * 2] * 2
    assert len(parts.train) == 6 * 7 * 11
    assert parts.train.inputs.dtype == np.float32


class _Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("kind", ["code", "array", "text", "nothing"])
def test_what_is_no_data_set_is_refused_and_never_run(kind, tmp_path, capsys):
    path = tmp_path / "watch.npy"
    if kind == "code":
        np.save(path, np.array(_Evil(), dtype=object), allow_pickle=True)
        assert b"print" in path.read_bytes()
    elif kind == "array":
        np.save(path, np.zeros(3))
    elif kind == "text":
        path.write_text("no array")
    with pytest.raises(DataError, match=r"is not the data set .*; give seglearn"):
        EXERCISES.read(path)
    assert "run" not in capsys.readouterr().out


def test_recordings_with_other_names_are_refused(tmp_path):
    (tmp_path / "seven.wav").write_bytes(wav(tone(7, 0), spoken_digits.RATE_HZ))
    with pytest.raises(DataError, match=r"is not named DIGIT_SPEAKER_INDEX\.wav"):
        DIGITS.read(tmp_path)
    (tmp_path / "seven.wav").rename(tmp_path / "7_ann_0.wav")
    with pytest.raises(DataError, match="no recordings numbered from 25 on"):
        DIGITS.read(tmp_path)


def test_a_varied_digit_is_still_a_sound_of_one_second():
    raw = np.zeros(8000, np.int16)
    raw[:3000] = tone(3, 10)
    made = [DIGITS.vary(raw, np.random.default_rng(seed)) for seed in range(20)]
    assert {(one.dtype, one.shape) for one in made} == {(np.dtype(np.int16), (8000,))}
    assert len({one.tobytes() for one in made}) == 20
    assert all(np.abs(one).max() > 500 for one in made)
    assert np.array_equal(made[0], DIGITS.vary(raw, np.random.default_rng(0)))
    silent = DIGITS.vary(np.zeros(8000, np.int16), np.random.default_rng(1))
    assert silent.shape == (8000,)


def test_a_watch_worn_askew_feels_the_same_weight():
    raw = np.zeros((128, 6), np.float32)
    raw[:, 2] = 1.0
    for seed in range(5):
        made = EXERCISES.vary(raw, np.random.default_rng(seed))
        assert np.linalg.norm(made[:, :3], axis=1).mean() == pytest.approx(1.0, abs=0.05)
        assert made.dtype == np.float32


@pytest.mark.parametrize("recipe", [DIGITS, EXERCISES], ids=lambda recipe: recipe.name)
def test_what_is_declared_comes_back(recipe, tmp_path):
    write_declared(recipe.input, recipe.preprocess, tmp_path / "input.yaml")
    declared = strict_yaml.load(tmp_path / "input.yaml", DeclaredInput)
    assert (declared.input, declared.preprocess) == (recipe.input, recipe.preprocess)


def test_a_data_set_that_is_not_there_is_said_with_where_to_get_it(zoo, tmp_path, capsys):
    assert zoo("train", "wrist-exercises", "--data", tmp_path / "none.npy", "--out", tmp_path / "out") == 2
    assert "does not exist; give seglearn/data/watch_dataset.npy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_trained_network_is_written_with_all_that_split_takes(zoo, watch, tmp_path, capsys):
    pytest.importorskip("torch")
    out = tmp_path / "out"
    assert zoo("train", "wrist-exercises", "--data", watch, "--out", out, "--epochs", 2) == 0
    told = capsys.readouterr().out
    assert "right on" in told
    files = {"whole.tflite", "input.yaml", "heads.npz", "validation.npz", "test.npz"}
    assert {path.name for path in out.iterdir()} == files
    command = told.splitlines()[-1]
    assert {name for name in files if f"{out}/{name}" in command} == files
    found = load_examples(out / "test.npz", spec=EXERCISES.input, labels=EXERCISES.labels).labelled()
    assert np.array_equal(found.inputs, EXERCISES.read(watch).test.inputs)
    assert np.array_equal(found.labels, EXERCISES.read(watch).test.labels)
    assert found.names == EXERCISES.labels
