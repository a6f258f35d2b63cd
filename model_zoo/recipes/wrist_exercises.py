"""Seven exercises of the shoulder, from a watch's accelerometer and gyroscope: windows of 2.56 s at 50 Hz.

Data: ten people, both arms, some twenty repetitions each; D. Burns et al., Shoulder physiotherapy exercise recognition,
2018, arXiv:1802.01489; BSD, in the Python package seglearn. It is divided by people, since windows of one person are
alike: two are the test set, two validate and choose thresholds, six train.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from distree.bundle.manifest import InputSpec, Preprocess, WindowRule
from distree.regular_files import open_regular
from distree.tensors import Array
from model_zoo.data import LabelledExamples
from model_zoo.errors import DataError
from model_zoo.recipes import Divided, Schedule, WholeRecipe

LABELS = (
    "pendulum",
    "abduction",
    "forward elevation",
    "internal rotation",
    "external rotation",
    "trapezius extension",
    "upright row",
)
_WINDOW = 128
_TRAINING_HOP = 16
_TRAIN, _VALIDATION, _TEST = (1, 2, 3, 4, 5, 6), (7, 8), (9, 10)
_HINT = "give seglearn/data/watch_dataset.npy of the Python package seglearn 1.2.5"

INPUT = InputSpec(
    dtype="float32", shape=(_WINDOW, 6), rate_hz=50.0, channels=("ax", "ay", "az", "wx", "wy", "wz")
)  # in g and radians per second
PREPROCESS = Preprocess(
    mean=(0.0, 0.38, -0.15, 0.0, 0.0, 0.0),
    std=(0.9, 0.5, 0.54, 1.0, 2.5, 1.05),
    layout="nhwc",
    window=WindowRule(hop=_WINDOW // 2),
)


# ---------------------------------------------------------------- data


class _ArraysAlone(pickle.Unpickler):
    """Reads lists and arrays, and runs nothing that a file may name beside them."""

    _OF_NUMPY = frozenset({"_reconstruct", "ndarray", "dtype", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        """Return what numpy's arrays are pickled by; UnpicklingError for anything else."""
        of_numpy = module.split(".")[0] == "numpy" and name in self._OF_NUMPY
        if of_numpy or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"names {module}.{name}")


def read(path: Path) -> Divided:
    """Read the data set out of seglearn's file."""
    try:
        with open_regular(path) as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            content = _ArraysAlone(file).load().item()
        recordings, classes, people = content["X"], content["y"].tolist(), content["subject"].tolist()
    except (OSError, ValueError, KeyError, AttributeError, EOFError, ImportError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: is not the data set ({error})", _HINT) from None

    def part(wanted: tuple[int, ...], hop: int) -> LabelledExamples:
        windows, labels, files = [], [], []
        for k, (recording, label, person) in enumerate(zip(recordings, classes, people, strict=True)):
            if person not in wanted:
                continue
            for start in range(0, len(recording) - _WINDOW + 1, hop):
                windows.append(recording[start : start + _WINDOW].astype(np.float32))
                labels.append(label)
                files.append(f"person{person}-{LABELS[label].replace(' ', '-')}-{k}@{start / 50:g}s")
        if not windows:
            raise DataError(f"{path}: has no recordings of the people {wanted}", _HINT)
        inputs, ids = np.stack(windows), np.asarray(labels, np.int64)
        return LabelledExamples(inputs, ids, np.arange(len(ids)), path.name, LABELS, tuple(files))

    # Windows that overlap are no new inputs to measure on; for training they are other phases of the movement.
    return Divided(part(_TRAIN, _TRAINING_HOP), part(_VALIDATION, _WINDOW), part(_TEST, _WINDOW))


# ---------------------------------------------------------------- augmentation


def vary(raw: Array, generator: np.random.Generator) -> Array:
    """Wear the watch a little askew, move a little faster, slower, wider or narrower, and with a noisier sensor."""
    turn = _rotation(generator.normal(0.0, 0.2, 3))
    places = np.linspace(0, len(raw) - 1, len(raw))
    middle = places.mean()
    stretched = np.clip(middle + (places - middle) * generator.uniform(0.8, 1.0), 0, len(raw) - 1)
    made = np.stack([np.interp(stretched, places, channel) for channel in raw.T], axis=1)
    made = np.concatenate([made[:, :3] @ turn, made[:, 3:] @ turn * generator.uniform(0.8, 1.25)], axis=1)
    made += generator.normal(0.0, 0.05, made.shape)
    return made.astype(raw.dtype)


def _rotation(angles: Array) -> Array:
    """Return the matrix (3, 3) that turns by so many radians about x, y and z, one after the other."""
    turned = np.eye(3)
    for axis, angle in enumerate(angles.tolist()):
        one, other = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[one, one] = step[other, other] = np.cos(angle)
        step[one, other], step[other, one] = -np.sin(angle), np.sin(angle)
        turned = turned @ step
    return turned


# ---------------------------------------------------------------- network


def build_network() -> Any:
    """Return the network, freshly initialised from torch's generator. Imports torch."""
    import torch
    from torch import nn

    from model_zoo.training.layers import Stage

    def unit(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> Any:
        return nn.Sequential(
            nn.Conv2d(channels_in, channels_out, (kernel, 1), (stride, 1), (kernel // 2, 0), bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        )

    trunk = nn.Sequential(
        unit(6, 32, 7, stride=2),
        unit(32, 48, 5, stride=2),
        unit(48, 48, 5),
        unit(48, 64, 5, stride=2),
        unit(64, 64, 5),
        unit(64, 96, 5, stride=2),
        unit(96, 96, 5),
        nn.Dropout(0.4),
    )
    network = Stage(trunk, nn.Conv2d(96, len(LABELS), (8, 1)), is_last=True)
    return network.to(memory_format=torch.channels_last)


RECIPE = WholeRecipe(
    name="wrist-exercises",
    description="seven exercises of the shoulder, 2.56 s windows of a watch's motion at 50 Hz",
    labels=LABELS,
    licence="BSD-3-Clause",
    input=INPUT,
    preprocess=PREPROCESS,
    input_shape=(_WINDOW, 1, 6),
    read=read,
    build_network=build_network,
    vary=vary,
    schedule=Schedule(epochs=20, batch=64, peak_rate=0.05),
    after=(3, 6),
    data_hint=_HINT.removeprefix("give "),
)
