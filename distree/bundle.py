"""A bundle: one model as shipped. Reads the manifest bundle.yaml strictly and verifies every file by SHA-256.

A bundle's *revision* is the first 12 hexadecimal digits of the SHA-256 of its manifest. The manifest names the
SHA-256 of every other file, so two boards with the same revision hold the same model, down to the last bit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from distree import config
from distree.errors import BundleError, ConfigError
from distree.policies import POLICIES
from distree.record import record
from distree.types import DType

MANIFEST = "bundle.yaml"
MAX_SEGMENT_BYTES = 64 << 20


@record
class InputSpec:
    """What a source hands over: an array of `shape`; for images height, width, channels as uint8."""

    dtype: DType
    shape: tuple[int, ...]


@record
class Preprocess:
    """From there to the first segment's tensor: `(value − mean) / std` per channel, then quantise, then lay out.

    For uint8 inputs, values are scaled to 0…1 first. `nchw` moves the last axis (channels) to the front; `nhwc`
    keeps the order. A batch axis of 1 is added either way.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: Literal["nchw", "nhwc"]


@record
class TensorSpec:
    """A segment's input or output. For int8 and uint8, real value = scale · (q − zero_point)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    scale: float = 1.0
    zero_point: int = 0


@record
class Macs:
    """Multiply-accumulates of a stage: of its trunk, and of its exit head."""

    trunk: int
    exit: int


@record
class StageSpec:
    """One stage: its segment file and the tensors that go in and come out (`features` is None at the last)."""

    segment: str
    sha256: str
    bytes: int
    input: TensorSpec
    features: TensorSpec | None = None
    logits: TensorSpec
    macs: Macs


@record
class Exits:
    """The calibrated defaults: a criterion and one threshold per exit but the last."""

    criterion: str
    thresholds: tuple[float, ...]


@record
class Golden:
    """Inputs and outputs of every segment for the self-test; `tolerance` in quantisation steps."""

    file: str
    sha256: str
    tolerance: int


@record
class SplitFigures:
    """Accuracies (fractions) of each exit on every input, and with early exits; shares of inputs per exit."""

    accuracy: tuple[float, ...]
    accuracy_at_thresholds: float
    exit_share: tuple[float, ...]


@record
class Trained:
    """How the weights came to be."""

    epochs: int
    seed: int
    seconds: float
    torch: str


@record
class Measured:
    """Figures of the int8 segments on the test set, read once, and on the validation split."""

    data: str
    accuracy: tuple[float, ...]
    accuracy_at_thresholds: float
    exit_share: tuple[float, ...]
    macs_per_input: float
    macs_no_early_exit_strict: int
    macs_no_early_exit_loose: int
    feature_bytes_per_input: float
    validation: SplitFigures
    trained: Trained


@record
class Manifest:
    """bundle.yaml, format 1."""

    format: Literal[1]
    name: str
    description: str
    license: str
    labels: tuple[str, ...]
    input: InputSpec
    preprocess: Preprocess
    stages: tuple[StageSpec, ...]
    exits: Exits
    golden: Golden
    measured: Measured


@record
class Bundle:
    """A manifest with its place on disk and its revision."""

    path: Path
    revision: str
    manifest: Manifest

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.manifest.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, by class id."""
        return self.manifest.labels

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """The stages, from 0."""
        return self.manifest.stages

    @property
    def criterion(self) -> str:
        """The criterion for which the default thresholds were calibrated."""
        return self.manifest.exits.criterion

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The calibrated default thresholds, one per exit but the last."""
        return self.manifest.exits.thresholds

    def segment(self, k: int) -> bytes:
        """Read the segment of stage `k` and verify it; BundleError if it is missing or was changed."""
        spec = self.stages[k]
        return read_verified(self.path / spec.segment, spec.sha256)

    def verify(self, stages: Iterable[int] | None = None) -> None:
        """Verify the golden vectors and the segments of `stages` (all by default)."""
        golden = self.manifest.golden
        read_verified(self.path / golden.file, golden.sha256)
        for k in range(len(self.stages)) if stages is None else stages:
            self.segment(k)


def read_verified(path: Path, sha256: str) -> bytes:
    """Read a file of a bundle; BundleError, with the remedy, if it is missing, too long or not what it should be."""
    try:
        if path.stat().st_size > MAX_SEGMENT_BYTES:
            raise BundleError(f"{path}: longer than {MAX_SEGMENT_BYTES} bytes; build the bundle again")
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; copy the whole bundle to this board again") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise BundleError(
            f"{path}: its SHA-256 is not the manifest's; the file is damaged or of another revision: "
            "copy the whole bundle to this board again"
        )
    return content


def find_bundle(name_or_path: str | Path) -> Path:
    """Return the folder of a bundle: a path that holds a manifest, or the name of one in the model zoo."""
    path = Path(name_or_path)
    if (path / MANIFEST).is_file():
        return path
    shipped = zoo_folder()
    if shipped is not None and (shipped / str(name_or_path) / MANIFEST).is_file():
        return shipped / str(name_or_path)
    known = sorted(found.parent.name for found in shipped.glob(f"*/{MANIFEST}")) if shipped else []
    raise BundleError(
        f"bundle {str(name_or_path)!r} not found: neither a folder with a {MANIFEST} nor one of the model zoo "
        f"({', '.join(known) or 'which is not installed'})"
    )


def zoo_folder() -> Path | None:
    """Return the folder of the shipped bundles, without importing the model zoo; None where it is not installed."""
    spec = importlib.util.find_spec("model_zoo")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "bundles"


def load_bundle(name_or_path: str | Path, *, verify: Iterable[int] | None = None) -> Bundle:
    """Load a bundle and verify the segments of the stages in `verify` (default: all of them).

    Raises BundleError: not found, a manifest that does not hold together, a missing or changed file.
    """
    path = find_bundle(name_or_path)
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = config.load(path / MANIFEST, Manifest)
        _check(manifest)
    except (ConfigError, OSError) as error:
        raise BundleError(str(error)) from None
    bundle = Bundle(path=path, revision=hashlib.sha256(content).hexdigest()[:12], manifest=manifest)
    bundle.verify(verify)
    return bundle


def _check(manifest: Manifest) -> None:
    """Check what single values cannot show: that the parts fit each other."""
    for problem in _problems(manifest):
        raise ConfigError(f"{manifest.name}/{MANIFEST}: {problem}")


def _problems(manifest: Manifest) -> Iterable[str]:
    stages, thresholds = manifest.stages, manifest.exits.thresholds
    if not stages:
        yield "stages: at least one is needed"
    if manifest.exits.criterion not in POLICIES:
        yield f"exits.criterion: unknown {manifest.exits.criterion!r}; known: {', '.join(POLICIES)}"
    if len(manifest.labels) < 2:
        yield "labels: at least two are needed"
    if len(thresholds) != len(stages) - 1:
        yield f"exits.thresholds: {len(thresholds)} given, one per exit but the last needed ({len(stages) - 1})"
    if not all(map(math.isfinite, thresholds)):
        yield "exits.thresholds: must be finite"
    if len(manifest.preprocess.mean) != len(manifest.preprocess.std) or 0 in manifest.preprocess.std:
        yield "preprocess: mean and std need one value per channel each, std not 0"
    for k, stage in enumerate(stages):
        yield from _stage_problems(k, stage, stages[k + 1] if k + 1 < len(stages) else None, len(manifest.labels))


def _stage_problems(k: int, stage: StageSpec, following: StageSpec | None, classes: int) -> Iterable[str]:
    if Path(stage.segment).name != stage.segment:
        yield f"stages[{k}].segment: must be a file name, without a folder"
    if math.prod(stage.logits.shape) != classes:
        yield f"stages[{k}].logits.shape: {classes} labels need as many logits"
    if following is None:
        if stage.features is not None:
            yield f"stages[{k}].features: the last stage has none"
    elif stage.features is None:
        yield f"stages[{k}].features: missing"
    elif not _fits(stage.features, following.input):
        yield f"stages[{k}].features: not what stages[{k + 1}].input takes"


def _fits(features: TensorSpec, taken: TensorSpec) -> bool:
    # Scales of neighbouring segments may differ in the last digits: converters compute them separately.
    return (features.dtype, features.shape, features.zero_point) == (
        taken.dtype,
        taken.shape,
        taken.zero_point,
    ) and math.isclose(features.scale, taken.scale, rel_tol=1e-5)
