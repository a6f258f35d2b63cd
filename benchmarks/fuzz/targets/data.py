"""Data of `distree zoo`, `distree tune` and the source `replay`: archives, arrays, tables and folders of files."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.fuzz.target import Form, Target, constant, from_file
from benchmarks.fuzz.targets.inputs import GREY, IMAGE, RULES, npy, picture, sound, table
from device_agent.sources.replay import ReplaySource, ReplaySourceConfig
from distree.bundle.loading import load_bundle
from distree.bundle.manifest import InputSpec
from distree.bundle.preprocessing import Preprocessor
from model_zoo.data import load_examples
from model_zoo.errors import DataError
from orchestrator.tuning.replay import load_recording

NAMES = ("left", "right", "still")
_SOUND = InputSpec(dtype="int16", shape=(400,), rate_hz=8000.0)
_MOTION = InputSpec(dtype="float32", shape=(20, 3), rate_hz=50.0)
_RNG = np.random.default_rng(1)
_IMAGES = _RNG.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
_LABELS = np.arange(6) % 3


@dataclass(frozen=True, slots=True)
class DataFile:
    """A good file: where it is in a folder, what is read as which input, and what else is there."""

    name: str
    spec: InputSpec
    content: bytes
    beside: tuple[tuple[str, bytes], ...] = ()
    at: str = ""
    """What is read: the file itself, or "." for the folder."""

    def place(self, folder: Path) -> Path:
        """Write all of it into a folder; return what is to be read."""
        for name, content in ((self.name, self.content), *self.beside):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder if self.at == "." else folder / (self.at or self.name)


def _npz(*, compressed: bool = False, **arrays: object) -> bytes:
    file = io.BytesIO()
    given = {key: np.asarray(array) for key, array in arrays.items()}
    (np.savez_compressed if compressed else np.savez)(file, **given)  # type: ignore[arg-type]
    return file.getvalue()


def _idx(array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    return gzip.compress(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def _jpeg_set() -> bytes:
    encoded = [picture("JPEG") for _ in range(6)]
    return _npz(
        jpeg=np.frombuffer(b"".join(encoded), np.uint8), offset=np.cumsum([0, *map(len, encoded)]), label=_LABELS,
        is_test=np.arange(6) % 2 == 0, classes=np.array(NAMES),
    )  # fmt: skip


def data_files() -> list[DataFile]:
    """Return a good file of each form that `load_examples` reads."""
    motion = _RNG.normal(size=(6, 20, 3)).astype(np.float32)
    one_hot, names = np.eye(3)[_LABELS], np.array(NAMES)
    idx_labels = (("t10k-labels-idx1-ubyte.gz", _idx(_LABELS.astype(np.uint8))),)
    made = [
        DataFile("a.npz", IMAGE, _npz(x=_IMAGES, y=_LABELS, classes=names)),
        DataFile("b.npz", IMAGE, _npz(compressed=True, x_test=_IMAGES, y_test=one_hot)),
        DataFile("c.npz", _MOTION, _npz(windows=motion, labels=names[_LABELS])),
        DataFile("x.npy", _MOTION, npy(motion), (("y.npy", npy(_LABELS)),)),
        DataFile("y.npy", _MOTION, npy(_LABELS), (("x.npy", npy(motion)),), "x.npy"),
        DataFile("y.txt", _MOTION, "\n".join(NAMES[k] for k in _LABELS).encode(), (("x.npy", npy(motion)),), "x.npy"),
        DataFile("left/a.npy", _MOTION, npy(motion), (("right/b.npy", npy(motion[0])),), "."),
        DataFile("set.csv", _MOTION, table(",", 90)),
        DataFile("log.tsv", _MOTION, table("\t", 90).replace(b"\tlabel", b"\tclass"), (), "."),
        DataFile("t10k-images-idx3-ubyte.gz", GREY, _idx(_IMAGES[..., 0]), idx_labels, "."),
        DataFile("jpeg.npz", InputSpec(dtype="uint8", shape=(36, 30, 3)), _jpeg_set()),
        DataFile("left/alpha.png", IMAGE, picture("PNG", "RGBA"), (), "."),
        DataFile("left/cmyk.jpg", GREY, picture("JPEG", "CMYK"), (), "."),
    ]
    made += [
        DataFile(f"left/{width}{channels}.wav", _SOUND, sound(width, channels), (), ".")
        for width in (1, 2, 3, 4)
        for channels in (1, 2)
    ]
    made += [
        DataFile(f"left/a.{kind.lower()}", IMAGE, picture(kind), (), ".")
        for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM")
    ]
    return made


def _reader(path: Path, folder: Path, spec: InputSpec) -> Callable[[], object]:
    def read() -> object:
        try:
            found = load_examples(path, spec=spec, preprocess=RULES, labels=NAMES)
        except DataError as error:
            if str(folder) not in str(error):
                raise AssertionError("the file is not named") from error
            raise
        assert found.inputs.shape[1:] == spec.shape
        assert found.inputs.dtype == spec.dtype
        ids = found.labels
        assert ids is None or (len(ids) == len(found) and ids.min() >= 0 and ids.max() < len(NAMES))
        return found

    return read


def _data(folder: Path) -> Sequence[Form]:
    forms = []
    for number, file in enumerate(data_files()):
        place = folder / str(number)
        path = place / file.name
        read = _reader(file.place(place), place, file.spec)
        damage = "text" if path.suffix in (".txt", ".csv", ".tsv") else "bytes"
        forms.append(Form(file.name, constant(file.content), from_file(path, read), damage))  # type: ignore[arg-type]
    return forms


def _archives(folder: Path) -> Sequence[Form]:
    bundle = load_bundle("fashion", verify=())
    audits, inputs = folder / "audits.npz", folder / "inputs.npz"
    recording = _npz(
        score=_RNG.random((30, 3)), prediction=_RNG.integers(0, 9, (30, 3)), mac=np.array([1.0, 2.0, 3.0]),
        label=_RNG.integers(0, 9, 30), criterion=np.array("max_softmax"),
    )  # fmt: skip
    pictures = _RNG.integers(0, 256, (6, *bundle.manifest.input.shape), dtype=np.uint8)
    replayed = _npz(input=pictures, name=np.array([f"picture {k}" for k in range(6)]))
    config = ReplaySourceConfig(kind="replay", path=inputs)
    preprocessor = Preprocessor(bundle.manifest)

    def replay() -> object:
        source = ReplaySource(config, preprocessor)
        source.start(0.0)
        name, array = source.next_input(0.0)
        assert name.isprintable()
        assert array.shape == bundle.manifest.input.shape
        return source

    return [
        Form("audits", constant(recording), from_file(audits, lambda: load_recording(audits))),
        Form("inputs to replay", constant(replayed), from_file(inputs, replay)),
    ]


DATA = Target("data", "files", 20, _data, 64)
ARCHIVES = Target("archives", "files", 4, _archives, 64)
