"""Bundles for other inputs than images: the segments of `fashion` behind a front end, or fed with a window of motion.

What they answer means nothing, but it is an answer for each input, and another one for another input.
"""

from __future__ import annotations

import dataclasses
import io
import shutil
import wave
from pathlib import Path

import numpy as np

from distree.bundle.frontends import LogMel
from distree.bundle.loading import Bundle, find_bundle, load_bundle
from distree.bundle.manifest import InputSpec, Preprocess, WindowRule
from model_zoo.build.manifest import write_manifest

RATE_HZ = 16_000
SAMPLES = 480
HOP = 240


def _written(folder: Path, name: str, spec: InputSpec, preprocess: Preprocess) -> Bundle:
    shutil.copytree(find_bundle("fashion"), folder)
    manifest = load_bundle(folder).manifest
    write_manifest(dataclasses.replace(manifest, name=name, input=spec, preprocess=preprocess), folder)
    return load_bundle(folder)


def sound_bundle(folder: Path) -> Bundle:
    """Windows of 30 ms of sound at 16 kHz, every 15 ms, as 28 x 28 log-mel values."""
    return _written(
        folder,
        "sound",
        InputSpec(dtype="int16", shape=(SAMPLES,), rate_hz=float(RATE_HZ)),
        Preprocess(
            mean=(-3.0,),
            std=(4.0,),
            layout="nhwc",
            window=WindowRule(hop=HOP),
            frontend=LogMel(frame=48, step=16, bands=28, low_hz=0.0, high_hz=8000.0, power=2, mel="slaney"),
        ),
    )


def motion_bundle(folder: Path) -> Bundle:
    """Windows of 196 samples of four channels at 100 Hz, as they are."""
    return _written(
        folder,
        "motion",
        InputSpec(dtype="float32", shape=(196, 4), rate_hz=100.0, channels=("ax", "ay", "az", "gx")),
        Preprocess(layout="nhwc", window=WindowRule(hop=98)),
    )


def wav(samples: np.ndarray, rate_hz: int = RATE_HZ) -> bytes:
    """A WAV file of one channel, int16."""
    with io.BytesIO() as file:
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(rate_hz)
            writer.writeframes(samples.astype("<i2").tobytes())
        return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    """An .npy file."""
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def csv(window: np.ndarray, order: str = "ax,ay,az,gx") -> bytes:
    """A CSV file of a window of motion at 100 Hz, its columns in some order."""
    places = {name: at for at, name in enumerate(("ax", "ay", "az", "gx"))}
    columns = window[:, [places[name] for name in order.split(",")]]
    rows = [f"{10 * k}," + ",".join(map(repr, row)) for k, row in enumerate(columns.tolist())]
    return (f"time (ms),{order}\n" + "\n".join(rows) + "\n").encode()


def sounds(count: int, seed: int = 1) -> np.ndarray:
    """Windows of tones and noise, int16 (count, SAMPLES)."""
    rng = np.random.default_rng(seed)
    t = np.arange(SAMPLES) / RATE_HZ
    tones = np.sin(2 * np.pi * rng.uniform(100, 6000, (count, 1)) * t)
    made = rng.uniform(500, 20_000, (count, 1)) * tones + rng.normal(0, 300, (count, SAMPLES))
    return np.clip(np.rint(made), -32768, 32767).astype(np.int16)


def motions(count: int, seed: int = 1) -> np.ndarray:
    """Windows of motion, float32 (count, 196, 4)."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(0, 0.3, (count, 196, 4)), axis=1).astype(np.float32)
