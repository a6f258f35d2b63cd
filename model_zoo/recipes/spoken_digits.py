"""Spoken digits, zero to nine, in windows of one second at 8 kHz: log-mel features and a plain convolutional network.

Data: the Free Spoken Digit Dataset, six speakers, CC BY-SA 4.0. Of each speaker's 50 recordings of a digit the first
five are the test set, as its authors have it, the next 20 validate and choose thresholds, the others train.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distree.bundle.frontends import LogMel
from distree.bundle.inputs.wav import read_wav
from distree.bundle.manifest import InputSpec, Preprocess, WindowRule
from distree.bundle.npz import read_npz
from distree.bundle.windows import cut
from distree.errors import RemoteProtocolError
from distree.regular_files import open_regular, read_regular
from distree.tensors import Array
from model_zoo.data import LabelledExamples
from model_zoo.data.examples import MAX_BYTES
from model_zoo.data.folders import MAX_FILE_BYTES
from model_zoo.errors import DataError
from model_zoo.recipes import Divided, Schedule, WholeRecipe

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RATE_HZ = 8000
_HINT = "give the folder recordings/ of https://github.com/Jakobovski/free-spoken-digit-dataset"
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav")
_TEST, _VALIDATION = range(5), range(5, 25)

INPUT = InputSpec(dtype="int16", shape=(RATE_HZ,), rate_hz=float(RATE_HZ))
PREPROCESS = Preprocess(
    mean=(-5.2,),
    std=(2.5,),
    layout="nhwc",
    window=WindowRule(hop=RATE_HZ // 2, short="pad"),
    # What is quieter than the offset does not count: noise of a sound card, and the zeros that fill up a window.
    frontend=LogMel(frame=256, step=128, bands=32, low_hz=60.0, high_hz=3800.0, power=2, offset=1e-3),
)


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class _Recording:
    digit: int
    speaker: str
    index: int
    samples: Array  # int16

    @property
    def name(self) -> str:
        return f"{self.digit}_{self.speaker}_{self.index}.wav"


def read(path: Path) -> Divided:
    """Read the data set: its folder of WAV files, or an .npz of all samples end to end."""
    recordings = _from_folder(path) if path.is_dir() else _from_archive(path)
    rest = range(_VALIDATION.stop, 1 << 30)
    parts = (_examples(path, recordings, indices) for indices in (rest, _VALIDATION, _TEST))
    return Divided(*parts)


def _from_folder(path: Path) -> list[_Recording]:
    found = []
    for file in sorted(path.glob("*.wav")):
        named = _NAME.fullmatch(file.name)
        if named is None:
            raise DataError(f"{file}: is not named DIGIT_SPEAKER_INDEX.wav", _HINT)
        try:
            sound = read_wav(read_regular(file, MAX_FILE_BYTES))
        except (OSError, RemoteProtocolError) as error:
            raise DataError(f"{file}: {error}", "download it again") from None
        if sound.rate_hz != RATE_HZ:
            raise DataError(f"{file}: sampled at {sound.rate_hz} Hz, not {RATE_HZ}", _HINT)
        found.append(_Recording(int(named[1]), named[2], int(named[3]), sound.as_int16()[:, 0]))
    return found


def _from_archive(path: Path) -> list[_Recording]:
    try:
        with open_regular(path) as file:
            archive = read_npz(file, MAX_BYTES)
        samples, offset = archive["samples"], archive["offset"]
        columns = zip(archive["label"], archive["speaker"], archive["index"], strict=True)
        return [
            _Recording(int(label), str(speaker), int(index), samples[offset[k] : offset[k + 1]])
            for k, (label, speaker, index) in enumerate(columns)
        ]
    except (OSError, KeyError, ValueError, TypeError, IndexError, RemoteProtocolError) as error:
        raise DataError(f"{path}: has no recordings ({error})", _HINT) from None


def _examples(path: Path, recordings: list[_Recording], indices: range) -> LabelledExamples:
    chosen = [one for one in recordings if one.index in indices]
    if not chosen:
        raise DataError(f"{path}: has no recordings numbered from {indices.start} on", _HINT)
    windows = [cut(one.samples, RATE_HZ, PREPROCESS.window)[0].values for one in chosen]
    return LabelledExamples(
        inputs=np.stack(windows).astype(np.int16),
        labels=np.asarray([one.digit for one in chosen], np.int64),
        index=np.arange(len(chosen)),
        source=path.name,
        names=LABELS,
        files=tuple(one.name for one in chosen),
    )


# ---------------------------------------------------------------- augmentation


def vary(raw: Array, generator: np.random.Generator) -> Array:
    """Say it faster or slower, higher or lower, louder or softer, somewhere else in the window, and in noise."""
    spoken = np.flatnonzero(raw)
    voice = raw[: spoken[-1] + 1 if len(spoken) else 1].astype(np.float64)
    length = min(len(raw), max(1, round(len(voice) / generator.uniform(0.75, 1.3))))
    voice = np.interp(np.linspace(0, len(voice) - 1, length), np.arange(len(voice)), voice)
    voice *= np.exp(generator.uniform(-1.5, 0.5))
    # A third stays where recordings begin: at the start, as in files that hold one digit.
    start = 0 if generator.uniform() < 1 / 3 else int(generator.integers(0, len(raw) - length + 1))
    made = np.zeros(len(raw))
    made[start : start + length] = voice
    if generator.uniform() < 2 / 3:
        made += _noise(len(raw), generator) * np.sqrt((voice**2).mean()) * 10 ** (-generator.uniform(0.25, 2.5))
    limits = np.iinfo(raw.dtype)
    return np.clip(np.rint(made), limits.min, limits.max).astype(raw.dtype)


def _noise(length: int, generator: np.random.Generator) -> Array:
    """Draw noise of variance one between white and red: its power falls with a random power of the frequency."""
    spectrum = np.fft.rfft(generator.normal(0.0, 1.0, length))
    spectrum *= np.maximum(np.arange(len(spectrum)), 50.0) ** (-generator.uniform(0.0, 1.0))
    noise = np.fft.irfft(spectrum, length)
    made: Array = noise / noise.std()
    return made


# ---------------------------------------------------------------- network


def build_network() -> Any:
    """Return the network, freshly initialised from torch's generator. Imports torch."""
    import torch
    from torch import nn

    from model_zoo.training.layers import Stage, conv_unit

    trunk = nn.Sequential(
        conv_unit(1, 16, 5, stride=2),
        conv_unit(16, 32, 3, stride=2),
        conv_unit(32, 32, 3),
        conv_unit(32, 64, 3, stride=2),
        conv_unit(64, 64, 3),
        conv_unit(64, 96, 3, stride=2),
        conv_unit(96, 96, 3),
        nn.Dropout(0.3),
    )
    # A convolution over all places, not flatten and linear, as in `fashion`.
    network = Stage(trunk, nn.Conv2d(96, len(LABELS), (4, 2)), is_last=True)
    return network.to(memory_format=torch.channels_last)


RECIPE = WholeRecipe(
    name="spoken-digits",
    description="spoken digits, 1 s windows of sound at 8 kHz, log-mel",
    labels=LABELS,
    licence="CC-BY-SA-4.0",
    input=INPUT,
    preprocess=PREPROCESS,
    input_shape=(61, 32, 1),
    read=read,
    build_network=build_network,
    vary=vary,
    schedule=Schedule(epochs=100, batch=64, peak_rate=0.1),
    after=(3, 6),
    data_hint=_HINT.removeprefix("give "),
)
