"""What tests of data share: small files of each form, written as people write them."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np

from distree.bundle.manifest import InputSpec, Preprocess, WindowRule

IMAGE = InputSpec(dtype="uint8", shape=(6, 5, 3))
GREY = InputSpec(dtype="uint8", shape=(8, 8, 1))
SOUND = InputSpec(dtype="int16", shape=(40,), rate_hz=8000.0)
MOTION = InputSpec(dtype="float32", shape=(10, 3), rate_hz=50.0)
AS_IT_IS = Preprocess(layout="nhwc")
HALVES = Preprocess(layout="nhwc", window=WindowRule(hop=20))


def png(value: int, size: tuple[int, int] = (5, 6)) -> bytes:
    from PIL import Image

    with io.BytesIO() as file:
        Image.new("RGB", size, (value,) * 3).save(file, "PNG")
        return file.getvalue()


def wav(samples: object, rate: int = 8000, channels: int = 1) -> bytes:
    with io.BytesIO() as file:
        with wave.open(file, "wb") as writer:
            writer.setnchannels(channels)
            writer.setsampwidth(2)
            writer.setframerate(rate)
            writer.writeframes(np.asarray(samples, "<i2").tobytes())
        return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def csv(rows: int = 10, start: int = 0, label: str | None = None, header: bool = True) -> str:
    """Rows of three channels at 50 Hz; the first channel counts from `start`."""
    head = "time (ms),ax,ay,az" + ("" if label is None else ",label") + "\n" if header else ""
    tail = "" if label is None else f",{label}"
    return head + "".join(f"{20 * (start + k)},{start + k},0.5,-1{tail}\n" for k in range(rows))


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder
