"""Inputs as boards receive them: in messages, in a folder, and out of the pipe of a stream."""

from __future__ import annotations

import base64
import io
import json
import random
import wave
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.fuzz.target import Form, Target, constant
from device_agent.sources.directory import identity
from device_agent.sources.samples import samples_of
from distree.bundle.inputs import InputReader
from distree.bundle.inputs.images import MAX_IMAGE_BYTES, shrink_image
from distree.bundle.manifest import InputSpec, Preprocess, WindowRule

IMAGE = InputSpec(dtype="uint8", shape=(12, 10, 3))
GREY = InputSpec(dtype="uint8", shape=(12, 10, 1))
SOUND = InputSpec(dtype="int16", shape=(400,), rate_hz=8000.0)
STEREO = InputSpec(dtype="float32", shape=(200, 2), rate_hz=8000.0)
MOTION = InputSpec(dtype="float32", shape=(20, 3), rate_hz=50.0, channels=("ax", "ay", "az"))
_UNNAMED = InputSpec(dtype="float32", shape=(20, 3))
RULES = Preprocess(layout="nhwc", window=WindowRule(hop=10, short="pad"))

_RNG = np.random.default_rng(1)
PIXELS = _RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
_MOST_BYTES = 16 << 20
_IMAGE_MIB = MAX_IMAGE_BYTES >> 20


def picture(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """Return a small picture in a format of Pillow."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.tile(PIXELS, (3, 3, 1))).convert(mode).save(file, kind, **options)
    return file.getvalue()


def sound(width: int, channels: int, samples: int = 500) -> bytes:
    """Return a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(8000)
        writer.writeframes(_RNG.integers(0, 256, samples * width * channels, dtype=np.uint8).tobytes())
    return file.getvalue()


def npy(array: object) -> bytes:
    """Return an .npy file."""
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def table(separator: str, rows: int = 60) -> bytes:
    """Return a CSV file of samples of MOTION, with times and labels."""
    head = separator.join(("time (ms)", "ax", "ay", "az", "label"))
    lines = [separator.join((str(20 * k), str(k), "0.5", "-1e-3", "left" if k < 30 else "right")) for k in range(rows)]
    return "\n".join([head, *lines]).encode()


def _pictures() -> list[tuple[str, bytes]]:
    made = [(f"{kind} {mode}", picture(kind, mode)) for kind, mode in (
        ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "LA"), ("JPEG", "RGB"),
        ("JPEG", "CMYK"), ("JPEG", "L"), ("GIF", "P"), ("BMP", "RGB"), ("BMP", "P"), ("WEBP", "RGBA"), ("PPM", "RGB"),
    )]  # fmt: skip
    turned = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    return [
        *made,
        ("JPEG turned", picture("JPEG", exif=turned)),
        ("JPEG progressive", picture("JPEG", progressive=True)),
        ("GIF of two", picture("GIF", "P", save_all=True, append_images=[])),
        ("WEBP lossless", picture("WEBP", lossless=True)),
    ]


def _checked(reader: InputReader, read: Callable[[bytes], list[object]]) -> Callable[[bytes], object]:
    """Return a reader of what `read` gives, which must be what the bundle expects."""

    def check(content: bytes) -> object:
        found = read(content)
        assert found
        for item in found:
            raw = item.raw  # type: ignore[attr-defined]
            assert raw.shape == reader.shape, raw.shape
            assert raw.dtype == reader.dtype, raw.dtype
        return found

    return check


def _wrapped(_folder: Path) -> Sequence[Form]:
    png, wav, array = picture("PNG"), sound(2, 1), npy(np.zeros((20, 3), np.float32))
    text = base64.b64encode(png).decode()
    rows = [{"ax": k, "ay": 0.5, "az": -1e-3} for k in range(20)]
    given = [
        ("JSON with base64", IMAGE, json.dumps({"image": text, "name": "a.png", "request": "r1"}).encode(), None),
        ("JSON, deeper", IMAGE, json.dumps({"a": [{"b": {"c": text}}]}).encode(), "a.0.b.c"),
        ("JSON with a data URL", IMAGE, json.dumps({"photo": "data:image/png;base64," + text}).encode(), None),
        ("base64", IMAGE, base64.encodebytes(png), None),
        ("data URL", IMAGE, b"data:image/png;base64," + text.encode(), None),
        ("JSON of numbers", SOUND, json.dumps([*range(400)]).encode(), None),
        ("JSON of rows", _UNNAMED, json.dumps({"values": [[1, 2.5, 3]] * 20}).encode(), "values"),
        ("JSON of objects", MOTION, json.dumps(rows).encode(), None),
        ("WAV in JSON", SOUND, json.dumps({"audio": base64.b64encode(wav).decode()}).encode(), None),
        ("picture", IMAGE, png, None),
        ("WAV", SOUND, wav, None),
        (".npy", MOTION, array, None),
        ("CSV", MOTION, table(","), None),
        ("raw", GREY, PIXELS[..., 0].tobytes(), None),
    ]
    forms = []
    for name, spec, content, field in given:
        reader = InputReader(spec, RULES)

        def read(payload: bytes, reader: InputReader = reader, field: str | None = field) -> list[object]:
            return list(reader.read_named(payload, field).inputs)

        damage = "json" if "JSON" in name else "text" if name in ("base64", "data URL", "CSV") else "bytes"
        forms.append(Form(name, constant(content), _checked(reader, read), damage))  # type: ignore[arg-type]
    return forms


def _streams(_folder: Path) -> Sequence[Form]:
    lines = b"ax,ay,az\n" + b"".join(b"%d,0.5,-1e-3\n" % k for k in range(12))
    given = (
        ("lines of CSV", MOTION, "csv", lines, "text"),
        ("lines without a header", _UNNAMED, "csv", lines[9:], "text"),
        ("PCM of 16 bits", SOUND, "s16le", _RNG.bytes(101), "bytes"),
        ("PCM for floats", STEREO, "s16le", _RNG.bytes(101), "bytes"),
        ("floats", STEREO, "f32le", _RNG.bytes(101), "bytes"),
    )
    forms = []
    for name, spec, kind, content, damage in given:
        reader = InputReader(spec, RULES)

        def read(piece: bytes, kind: str = kind, reader: InputReader = reader) -> object:
            told: list[str] = []
            samples = samples_of(kind, reader, lambda what, remedy: told.append(what + remedy))  # type: ignore[arg-type]
            half = len(piece) // 2
            found = [samples.push(piece[:half]), samples.push(piece[half:]), samples.end()]
            assert all(part.dtype == reader.dtype and part.shape[1:] == reader.shape[1:] for part in found)
            assert all(len(text) < 700 and text.isprintable() for text in told), told
            return found

        forms.append(Form(name, constant(content), read, damage))  # type: ignore[arg-type]
    return forms


def _from_folder(path: Path, reader: InputReader) -> Callable[[bytes], list[object]]:
    """Return what a source `directory` does with a file."""

    def read(content: bytes) -> list[object]:
        path.write_bytes(content)
        found = identity.read(path, path.name, _MOST_BYTES)
        return list(reader.read_all(found.content))

    return read


def _pictures_in_a_folder(folder: Path) -> Sequence[Form]:
    forms = []
    for number, (name, content) in enumerate(_pictures()):
        reader = InputReader((IMAGE, GREY)[number % 2], RULES)
        read = _checked(reader, _from_folder(folder / "picture", reader))
        forms.append(Form(name, constant(content), read))

        def shrink(content: bytes) -> object:
            shrunk, _ = shrink_image(content, 4096)
            assert len(shrunk) <= 4096
            return shrunk

        if number % 4 == 0:
            forms.append(Form(f"{name}, sent smaller", constant(content), shrink))
    return forms


def _recordings_in_a_folder(folder: Path) -> Sequence[Form]:
    forms = []
    for width in (1, 2, 3, 4):
        for channels in (1, 2):
            reader = InputReader(STEREO if channels == 2 else SOUND, RULES)
            read = _checked(reader, _from_folder(folder / "sound", reader))
            forms.append(Form(f"WAV, {8 * width} bits, {channels}", constant(sound(width, channels)), read))
    reader = InputReader(MOTION, RULES)
    read = _checked(reader, _from_folder(folder / "table", reader))
    utf16 = table(",").decode().encode("utf-16")
    forms += [
        Form("CSV", _varied(b","), read, "text"),
        Form("TSV", _varied(b"\t"), read, "text"),
        Form("CSV in UTF-16", constant(utf16), read),
        Form(".npy", constant(npy(np.zeros((20, 3), np.float32))), read),
        Form(".npy in Fortran's order", constant(npy(np.asfortranarray(np.zeros((20, 3), np.float32)))), read),
    ]
    return forms


def _varied(separator: bytes) -> Callable[[random.Random], bytes]:
    short, long = table(separator.decode(), 30), table(separator.decode(), 90)
    return lambda rng: rng.choice((short, long))


WRAPPED = Target("inputs", "messages", 12, _wrapped, _IMAGE_MIB)
STREAMS = Target("streams", "messages", 7, _streams, 8)
PICTURES = Target("pictures", "files", 22, _pictures_in_a_folder, _IMAGE_MIB)
RECORDINGS = Target("recordings", "files", 18, _recordings_in_a_folder, 16)
