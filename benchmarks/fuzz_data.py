"""Damaged data files at the reader of data: `python -m benchmarks.fuzz_data [--files N] [--seed N]`.

Good files of every form that `load_examples` reads are spoilt: bytes flipped, cut out, put in, exchanged, numbers in
text changed. Whatever comes, the reader returns examples, or raises DataError with one line that names the file; for
anything else the file is kept and named, and 1 is returned. Time and memory of the worst are printed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import random
import resource
import struct
import sys
import tempfile
import time
import wave
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distree.bundle.manifest import InputSpec, Preprocess, WindowRule
from model_zoo.data import load_examples
from model_zoo.errors import DataError

IMAGE = InputSpec(dtype="uint8", shape=(12, 10, 3))
GREY = InputSpec(dtype="uint8", shape=(12, 10, 1))
SOUND = InputSpec(dtype="int16", shape=(400,), rate_hz=8000.0)
MOTION = InputSpec(dtype="float32", shape=(20, 3), rate_hz=50.0)
RULES = Preprocess(layout="nhwc", window=WindowRule(hop=10, short="pad"))
NAMES = ("left", "right", "still")
_RNG = np.random.default_rng(1)
_IMAGES = _RNG.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
_LABELS = np.arange(6) % 3


@dataclass(frozen=True, slots=True)
class Form:
    """A good file: where it lies in a folder, what is read as which input."""

    name: str
    spec: InputSpec
    content: bytes
    beside: tuple[tuple[str, bytes], ...] = ()
    at: str = ""
    """What is read: the file itself, or "." for the folder."""


def _npz(*, compressed: bool = False, **arrays: object) -> bytes:
    file = io.BytesIO()
    given = {key: np.asarray(array) for key, array in arrays.items()}
    (np.savez_compressed if compressed else np.savez)(file, **given)  # type: ignore[arg-type]
    return file.getvalue()


def _npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def _wav(width: int, channels: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(8000)
        writer.writeframes(_RNG.integers(0, 256, 500 * width * channels, dtype=np.uint8).tobytes())
    return file.getvalue()


def _csv(separator: str) -> bytes:
    rows = [separator.join(("time (ms)", "ax", "ay", "az", "label"))]
    rows += [separator.join((str(20 * k), str(k), "0.5", "-1e-3", NAMES[k // 30])) for k in range(90)]
    return "\n".join(rows).encode()


def _image(kind: str, mode: str = "RGB") -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.tile(_IMAGES[0], (3, 3, 1))).convert(mode).save(file, kind)
    return file.getvalue()


def _idx(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    return gzip.compress(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def _jpeg_set() -> bytes:
    encoded = [_image("JPEG") for _ in range(6)]
    return _npz(
        jpeg=np.frombuffer(b"".join(encoded), np.uint8), offset=np.cumsum([0, *map(len, encoded)]), label=_LABELS,
        is_test=np.arange(6) % 2 == 0, classes=np.array(NAMES),
    )  # fmt: skip


def forms() -> list[Form]:
    """Return a good file of each form."""
    motion = _RNG.normal(size=(6, 20, 3)).astype(np.float32)
    one_hot, names = np.eye(3)[_LABELS], np.array(NAMES)
    idx_labels = (("t10k-labels-idx1-ubyte.gz", _idx(_LABELS.astype(np.uint8))),)
    made = [
        Form("a.npz", IMAGE, _npz(x=_IMAGES, y=_LABELS, classes=names)),
        Form("b.npz", IMAGE, _npz(compressed=True, x_test=_IMAGES, y_test=one_hot)),
        Form("c.npz", MOTION, _npz(windows=motion, labels=names[_LABELS])),
        Form("x.npy", MOTION, _npy(motion), (("y.npy", _npy(_LABELS)),)),
        Form("y.npy", MOTION, _npy(_LABELS), (("x.npy", _npy(motion)),), "x.npy"),
        Form("y.txt", MOTION, "\n".join(NAMES[k] for k in _LABELS).encode(), (("x.npy", _npy(motion)),), "x.npy"),
        Form("left/a.npy", MOTION, _npy(motion), (("right/b.npy", _npy(motion[0])),), "."),
        Form("set.csv", MOTION, _csv(",")),
        Form("log.tsv", MOTION, _csv("\t").replace(b"\tlabel", b"\tclass"), (), "."),
        Form("t10k-images-idx3-ubyte.gz", GREY, _idx(_IMAGES[..., 0]), idx_labels, "."),
        Form("jpeg.npz", InputSpec(dtype="uint8", shape=(36, 30, 3)), _jpeg_set()),
    ]
    made += [
        Form(f"left/{width}{channels}.wav", SOUND, _wav(width, channels), (), ".")
        for width in (1, 2, 3, 4)
        for channels in (1, 2)
    ]
    made += [
        Form(f"left/a.{kind.lower()}", IMAGE, _image(kind), (), ".")
        for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM")
    ]
    made += [
        Form("left/alpha.png", IMAGE, _image("PNG", "RGBA"), (), "."),
        Form("left/cmyk.jpg", GREY, _image("JPEG", "CMYK"), (), "."),
    ]
    return made


class Spoiler:
    """Spoils files."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.ways: tuple[Callable[[bytes], bytes], ...] = (
            self.flipped, self.flipped, self.header, self.cut, self.left_out, self.spliced, self.digits, self.swapped,
        )  # fmt: skip

    def spoil(self, content: bytes) -> bytes:
        """Spoil a file in one way, or in two."""
        for _ in range(self.rng.choice((1, 1, 2))):
            content = self.rng.choice(self.ways)(content) if content else content
        return content

    def flipped(self, content: bytes) -> bytes:
        """Change some bytes anywhere."""
        changed = bytearray(content)
        for _ in range(self.rng.choice((1, 1, 2, 8, 64))):
            changed[self.rng.randrange(len(changed))] = self.rng.randrange(256)
        return bytes(changed)

    def header(self, content: bytes) -> bytes:
        """Change some bytes at the beginning, or at the end, where archives have their directory."""
        changed = bytearray(content)
        for _ in range(self.rng.choice((1, 2, 4))):
            near = self.rng.randrange(min(160, len(changed)))
            changed[near if self.rng.random() < 0.6 else -1 - near] = self.rng.choice(
                (0, 1, 0x7F, 0x80, 0xFF, self.rng.randrange(256))
            )
        return bytes(changed)

    def cut(self, content: bytes) -> bytes:
        """Keep only the beginning."""
        return content[: self.rng.randrange(len(content))]

    def left_out(self, content: bytes) -> bytes:
        """Leave some bytes out."""
        start = self.rng.randrange(len(content))
        return content[:start] + content[start + self.rng.randint(1, 200) :]

    def spliced(self, content: bytes) -> bytes:
        """Put bytes in."""
        start = self.rng.randrange(len(content) + 1)
        more = self.rng.choice(
            (self.rng.randbytes(20), content[:200], b"\xff" * 8, b"," * 50, b"\n" * 20, b'"', b"(" * 999)
        )
        return content[:start] + more + content[start:]

    def digits(self, content: bytes) -> bytes:
        """Exchange a digit, as of a shape in a header, by several."""
        places = [at for at, byte in enumerate(content[:4000]) if 0x30 <= byte <= 0x39]
        if not places:
            return self.flipped(content)
        at = self.rng.choice(places)
        return (
            content[:at]
            + self.rng.choice((b"999999999", b"-1", b"0", b"1e99", b"nan", b"18446744073709551616"))
            + content[at + 1 :]
        )

    def swapped(self, content: bytes) -> bytes:
        """Exchange two parts."""
        a, b = sorted((self.rng.randrange(len(content)), self.rng.randrange(len(content))))
        return content[b:] + content[a:b] + content[:a]


@dataclass(slots=True)
class Tally:
    """What came of the files."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""
    grown_mb: float = 0.0


def run(files: int, seed: int, folder: Path) -> Tally:
    """Read so many spoilt files, each in a folder of its own below `folder`."""
    spoiler, tally, good = Spoiler(random.Random(seed)), Tally(), forms()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(files):
        form = good[number % len(good)]
        place = folder / f"{number}"
        content = spoiler.spoil(form.content)
        _write(place, form, content)
        started = time.perf_counter()
        problem = _read(place, form, tally)
        took = time.perf_counter() - started
        if took > tally.slowest_s:
            tally.slowest_s, tally.slowest = took, form.name
        if problem is not None:
            tally.failures.append(f"{place} ({form.name}): {problem}")
        else:
            _remove(place)
    tally.grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return tally


def _write(place: Path, form: Form, content: bytes) -> None:
    for name, given in ((form.name, content), *form.beside):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(given)


def _remove(place: Path) -> None:
    for path in sorted(place.rglob("*"), reverse=True):
        (path.rmdir if path.is_dir() else path.unlink)()
    place.rmdir()


def _read(place: Path, form: Form, tally: Tally) -> str | None:
    """Read one; return what is wrong with what came of it."""
    path = place if form.at == "." else place / (form.at or form.name)
    try:
        found = load_examples(path, spec=form.spec, preprocess=RULES, labels=NAMES)
    except DataError as error:
        tally.counts["refused"] += 1
        told = str(error)
        is_line = "\n" not in told and told.isprintable() and str(place) in told and len(told) < 700
        return None if is_line else f"not a line that names the file: {told!r}"
    except BaseException as error:  # noqa: BLE001 - which is what is looked for
        return f"{type(error).__name__}: {error}"
    tally.counts["read"] += 1
    is_fit = found.inputs.shape[1:] == form.spec.shape and found.inputs.dtype == form.spec.dtype
    ids = found.labels
    has_labels = ids is None or (len(ids) == len(found) and ids.min() >= 0 and ids.max() < len(NAMES))
    return None if is_fit and has_labels else f"{found.inputs.dtype} {found.inputs.shape}, labels {ids}"


def main() -> int:
    """Run it, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_data", description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="distree-fuzz-"))
    started = time.perf_counter()
    tally = run(args.files, args.seed, folder)
    told = ", ".join(f"{count:,} {what}" for what, count in tally.counts.most_common())
    print(f"{args.files:,} files in {time.perf_counter() - started:.0f} s: {told}, {len(tally.failures)} failures")
    print(f"slowest: {tally.slowest_s:.2f} s ({tally.slowest}); memory grew by {tally.grown_mb:.0f} MiB")
    for line in tally.failures[:20]:
        print(f"  {line[:400]}")
    if not tally.failures:
        folder.rmdir()
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
