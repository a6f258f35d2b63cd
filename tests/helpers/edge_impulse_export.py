"""Stands in for what Edge Impulse lets one download of a project of sounds: writes the like into this folder.

The network is laid out as theirs: int8, one row of features as its input, a softmax at its end. Its convolutions are
random and its last layer is trained, which is enough to tell a hum, a whine and a rattle apart.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import whole_networks as whole

from distree.bundle.frontends import EdgeImpulseMfe, make_frontend
from model_zoo.split.quantised import Layer, append_layer
from model_zoo.split.running import Runner

CLASSES = ("hum", "rattle", "whine")
RATE_HZ = 16_000
FRAMES, BANDS = 99, 40
BLOCK = EdgeImpulseMfe(frame=320, step=160, fft=256, bands=BANDS, low_hz=0.0, high_hz=8000.0)
_SCALE, _ZERO = 1 / 256, -128  # of features, which are 0 to 255/256, and of probabilities


def sounds(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make windows of a second, int16 (count, RATE_HZ), and the class of each."""
    generator = np.random.default_rng(seed)
    time = np.arange(RATE_HZ) / RATE_HZ
    labels = generator.integers(0, len(CLASSES), count)
    made = []
    for label in labels:
        loudness = 10 ** generator.uniform(-1.5, -0.3)
        noise = generator.normal(0.0, 0.15, RATE_HZ)
        if label == 0:
            pitch = generator.uniform(80, 200)
            tone = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 6))
        elif label == 1:
            tone = generator.normal(0.0, 1.0, RATE_HZ) * (np.sin(2 * np.pi * generator.uniform(4, 12) * time) > 0.6)
        else:
            tone = np.sin(2 * np.pi * (generator.uniform(2500, 4500) + generator.uniform(-400, 400) * time) * time)
        made.append(np.clip((tone + noise) * loudness * 8000, -32768, 32767).astype(np.int16))
    return np.stack(made), labels


def trunk() -> tuple[whole.Net, int]:
    """Make the network up to its mean: features (1, 3960), as one row, are laid out as frames and bands first."""
    net = whole.Net("int8", (1, FRAMES * BANDS), seed=3)
    given = net.tensor("features", (1, FRAMES * BANDS), _SCALE, _ZERO)
    net.input = given
    at = net.reshape(given, (1, FRAMES, BANDS, 1))
    at = net.conv(at, 12, stride=2)
    at = net.conv(at, 24, stride=2)
    at = net.conv(at, 32)
    at = net.conv(at, 32)
    return net, net.mean(at)


def network(features: np.ndarray, labels: np.ndarray) -> bytes:
    """Train the last layer on features (n, 3960) and return the whole file."""
    net, mean = trunk()
    scale = net.scales[mean]
    runner = Runner(net.finish(mean))
    quantised = np.clip(np.rint(features / _SCALE) + _ZERO, -128, 127).astype(np.int8)
    values = np.stack([runner(row[None])[0][0] for row in quantised]).astype(np.float64)
    inputs = (values - _ZERO) * scale
    wanted = np.eye(len(CLASSES))[labels] * 6 - 2
    padded = np.hstack([inputs, np.ones((len(inputs), 1))])
    found = np.linalg.solve(padded.T @ padded + 1e-3 * np.eye(padded.shape[1]), padded.T @ wanted)
    weights, bias = found[:-1].T, found[-1]
    step = float(np.abs(weights).max()) / 127
    last = Layer(
        np.rint(weights / step).astype(np.int8), np.rint(bias / (scale * step)).astype(np.int32),
        step, scale, _ZERO, 0.1, 0, relu=False,
    )  # fmt: skip
    net, mean = trunk()
    logits = append_layer(net.editor, last, mean, "logits")
    net.shapes[logits], net.scales[logits] = (1, len(CLASSES)), 0.1
    return net.finish(net.softmax(logits))


def write(folder: Path) -> None:
    """Write the network, its training data and a folder of recordings, named as Edge Impulse names them."""
    block = make_frontend(BLOCK, (RATE_HZ,), RATE_HZ)
    windows, labels = sounds(250, 1)
    features = np.stack([block.features(window / 32768).ravel() for window in windows]).astype(np.float32)
    name = "ei-machine-room-classifier-tensorflow-lite-int8-quantized-model.3.lite"
    (folder / name).write_bytes(network(features, labels))
    np.save(folder / "X.npy", features)
    # Classes are numbered from 1; behind them are the sample's id, and where in it the window begins and ends.
    ends = np.zeros_like(labels)
    np.save(folder / "y.npy", np.stack([labels + 1, np.arange(len(labels)), ends, ends + 1000], axis=1))
    (folder / "testing").mkdir()
    for number, (window, label) in enumerate(zip(*sounds(60, 2), strict=True)):
        with wave.open(str(folder / "testing" / f"{CLASSES[label]}.{number:04x}.wav"), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(RATE_HZ)
            out.writeframes(window.tobytes())


if __name__ == "__main__":
    write(Path())
