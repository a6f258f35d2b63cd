"""Writes the samples that ship with bundles again: `python -m tools.samples digits|exercises|photographs SOURCE`.

digits: SOURCE is the folder en_US_f_Allison/digits of Debian's asterisk-core-sounds-en-wav; flite has to be installed.
exercises: SOURCE is seglearn/data/watch_dataset.npy of the Python package seglearn 1.2.5.
photographs: SOURCE is the folder skimage/data of the Python package scikit-image 0.26.0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from distree.bundle.inputs.wav import read_wav
from distree.bundle.windows import cut
from distree.tensors import Array
from model_zoo.recipes import spoken_digits, wrist_exercises

SAMPLES = Path(__file__).parents[1] / "model_zoo" / "samples"
VOICES = ("rms", "slt")
OF_EACH_EXERCISE = 14
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
CROPS_OF_EACH = 25
_SEED = 1


def digits(source: Path) -> None:
    """Write ten digits by a voice actor, and ten by each of flite's voices."""
    windows, labels, names = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for label, word in enumerate(spoken_digits.LABELS):
            said = {"allison": source / f"{label}.wav"}
            for voice in VOICES:
                said[voice] = Path(folder, f"{label}_{voice}.wav")
                subprocess.run(["flite", "-voice", voice, "-t", word, "-o", said[voice]], check=True)
            for voice, path in said.items():
                windows.append(_window(path))
                labels.append(label)
                names.append(f"{word}_{voice}.wav")
    _write("spoken-digits", np.stack(windows), labels, names, "digits by three voices that were not in training")


def _window(path: Path) -> Array:
    sound = read_wav(path.read_bytes())
    samples = sound.as_int16()[:, 0]
    if sound.rate_hz == 2 * spoken_digits.RATE_HZ:
        half = len(samples) // 2
        spectrum = np.fft.rfft(samples.astype(np.float64))[: half + 1]
        samples = np.clip(np.rint(np.fft.irfft(spectrum, half) / 2), -32768, 32767).astype(np.int16)
    return cut(samples, spoken_digits.RATE_HZ, spoken_digits.PREPROCESS.window)[0].values


def exercises(source: Path) -> None:
    """Write windows of the test set, as many of each exercise, in turn."""
    test = wrist_exercises.read(source).test
    generator = np.random.default_rng(_SEED)
    of_each = [
        np.sort(generator.permutation(np.flatnonzero(test.labels == label))[:OF_EACH_EXERCISE])
        for label in range(len(wrist_exercises.LABELS))
    ]
    chosen = test.take(np.stack(of_each, axis=1).ravel())
    names, about = list(chosen.files or ()), "windows of the two people of the test set"
    _write("wrist-exercises", chosen.inputs, chosen.labels.tolist(), names, about)


def photographs(source: Path) -> None:
    """Write crops of four photographs. Most show none of the bundle's classes, so they have no labels."""
    from PIL import Image

    generator = np.random.default_rng(_SEED)
    crops, names = [], []
    for name in PHOTOGRAPHS:
        picture = Image.open(source / name).convert("RGB")
        for number in range(CROPS_OF_EACH):
            side = int(generator.integers(96, min(picture.size) + 1))
            x, y = (int(generator.integers(0, size - side + 1)) for size in picture.size)
            crop = picture.crop((x, y, x + side, y + side)).resize((32, 32), Image.Resampling.BILINEAR)
            crops.append(np.asarray(crop))
            names.append(f"{Path(name).stem}-{number}")
    about = (
        "crops of photographs of other things than its classes, without labels: they show how inputs travel, not how "
        "often it is right"
    )
    _write("cifar10-wide", np.stack(crops), None, names, about)


def _write(bundle: str, inputs: Array, labels: list[int] | None, names: list[str], about: str) -> None:
    """Write a sample file that `load_examples` reads; `about` is what the demo says of it."""
    arrays: dict[str, Any] = {"input": inputs, "name": np.asarray(names), "about": np.asarray(about)}
    if labels is not None:
        arrays["label"] = np.asarray(labels, np.int64)
    path = SAMPLES / f"{bundle}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(inputs)} inputs, {path.stat().st_size:,} bytes")


def main(arguments: list[str]) -> None:
    """Write one of the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    writers = {"digits": digits, "exercises": exercises, "photographs": photographs}
    parser.add_argument("what", choices=writers)
    parser.add_argument("source", type=Path)
    given = parser.parse_args(arguments)
    writers[given.what](given.source)


if __name__ == "__main__":
    main(sys.argv[1:])
