"""A bundle: one model as shipped. Reads the manifest bundle.yaml strictly and verifies every file by SHA-256.

A bundle's *revision* is the first 12 hexadecimal digits of the SHA-256 of its manifest. The manifest names the
SHA-256 of every other file, so two boards with the same revision hold the same model, down to the last bit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import itertools
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from distree import config
from distree.errors import BundleError, ConfigError
from distree.messages.plan import MaskedThresholds
from distree.messages.request import DType
from distree.policies import POLICIES, problem
from distree.protocols import Array, PolicyParameters
from distree.record import record
from distree.runtimes import DEFAULT_RUNTIME, RUNTIMES

MANIFEST = "bundle.yaml"
MAX_SEGMENT_BYTES = 64 << 20
MAX_BRANCHES = 64


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
class BranchSpec:
    """One branch of a wide stage: features in; features for the branch's own next stage and an embedding out.

    `features` is None where the next stage is not wide, or there is none. `macs.exit` are the embedding's.
    """

    segment: str
    sha256: str
    bytes: int
    input: TensorSpec
    features: TensorSpec | None = None
    embedding: TensorSpec
    macs: Macs


@record
class StageSpec:
    """One stage: its segment file and the tensors that go in and come out (`features` is None at the last).

    A stage with `branches` is *wide*: every branch takes `input` (between two wide stages each its own, which never
    travels, and `input` is that of branch 0), and `segment` is the fusion head, with inputs named `embedding0`,
    `embedding1`, … of the shapes and scales of the branches' embeddings; a missing one is all zero points. `features`
    come out of the fusion head, and only where the next stage is not wide. `macs` are of the whole stage: all
    branches' trunks; all branches' embeddings and the fusion head.
    """

    segment: str
    sha256: str
    bytes: int
    input: TensorSpec
    features: TensorSpec | None = None
    logits: TensorSpec
    macs: Macs
    branches: tuple[BranchSpec, ...] = ()


@record
class PolicyFile:
    """Learned or measured parameters of criteria: an .npz file, see `Bundle.policy_parameters`."""

    file: str
    sha256: str


@record
class Exits:
    """The calibrated defaults: a criterion and one threshold per exit but the last.

    `masked` are the thresholds for sets of missing branches, of the same criterion.
    """

    criterion: str
    thresholds: tuple[float, ...]
    masked: tuple[MaskedThresholds, ...] = ()
    parameters: PolicyFile | None = None


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
    """bundle.yaml, format 1. `runtime` says what its segments are made for: see `distree.runtimes`."""

    format: Literal[1]
    name: str
    description: str
    license: str
    runtime: str = DEFAULT_RUNTIME
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

    @property
    def branch_counts(self) -> tuple[int, ...]:
        """The number of branches of every stage, 0 for a plain one."""
        return tuple(len(stage.branches) for stage in self.stages)

    @property
    def wide_groups(self) -> list[list[int]]:
        """The numbers of the wide stages, those in a row together."""
        groups: list[list[int]] = []
        for k, count in enumerate(self.branch_counts):
            if count and groups and groups[-1][-1] == k - 1:
                groups[-1].append(k)
            elif count:
                groups.append([k])
        return groups

    @property
    def is_wide(self) -> bool:
        """Whether any stage is wide."""
        return any(self.branch_counts)

    def branch(self, k: int, branch: int | None) -> BranchSpec:
        """Return what the manifest says of a branch of wide stage `k`; BundleError if it has no such branch."""
        branches = self.stages[k].branches
        if not branches:
            raise BundleError(f"bundle {self.name}: stage {k} is not wide, it has no branches")
        if branch is None or not 0 <= branch < len(branches):
            which = "none was named" if branch is None else f"not {branch}"
            raise BundleError(f"bundle {self.name}: stage {k} has the branches 0 to {len(branches) - 1}, {which}")
        return branches[branch]

    def segment(self, k: int) -> bytes:
        """Read the segment of stage `k`, the fusion head of a wide one; BundleError if it is missing or was changed."""
        spec = self.stages[k]
        return read_verified(self.path / spec.segment, spec.sha256)

    def branch_segment(self, k: int, branch: int | None) -> bytes:
        """Read the segment of a branch of wide stage `k`; BundleError as for `segment` and `branch`."""
        spec = self.branch(k, branch)
        return read_verified(self.path / spec.segment, spec.sha256)

    def policy_parameters(self) -> PolicyParameters:
        """Read what the criteria have learned or measured; `PolicyParameters()` where the bundle has nothing of it.

        The file holds float32 arrays: `class_means0`, `class_means1`, … (classes, values), one per branch of the
        first wide stage, and `gate0`, `gate1`, … (weights and bias,), one per exit, or per exit but the last; either
        may be left out. Raises BundleError where it is missing, was changed, or holds anything else.
        """
        spec = self.manifest.exits.parameters
        if spec is None:
            return PolicyParameters()
        path = self.path / spec.file
        arrays = _read_arrays(path, read_verified(path, spec.sha256))
        for fault in _parameter_problems(arrays, self.stages, len(self.labels)):
            raise BundleError(f"{path}: {fault}; build the bundle again")
        means = [of_branch.tolist() for of_branch in _numbered(arrays, "class_means")]
        return PolicyParameters(
            class_means=tuple(tuple(map(tuple, of_class)) for of_class in zip(*means, strict=True)),
            gate=tuple(tuple(weights.tolist()) for weights in _numbered(arrays, "gate")),
        )

    def check_criterion(self, criterion: str) -> None:
        """Raise BundleError unless the exits can be decided by this criterion, for which it may have to be learned."""
        why = problem(
            criterion, self.policy_parameters(), self.is_wide, exits=len(self.stages), classes=len(self.labels)
        )
        if why is not None:
            raise BundleError(f"bundle {self.name}: {why}")

    def verify(self, stages: Iterable[int] | None = None, *, branch: int | None = None, fuse: bool = False) -> None:
        """Verify the golden vectors, the criteria's parameters, and all segments, or those of one board alone.

        A board names the `stages` that it serves, the `branch` that it runs of those that are wide, and whether it
        fuses (`fuse`, for the fusion heads of all wide stages), as it does for its runtime.
        """
        golden, parameters = self.manifest.golden, self.manifest.exits.parameters
        read_verified(self.path / golden.file, golden.sha256)
        if parameters is not None:
            read_verified(self.path / parameters.file, parameters.sha256)
        for spec in self.held(stages, branch, fuse):
            read_verified(self.path / spec.segment, spec.sha256)

    def held(
        self, stages: Iterable[int] | None, branch: int | None = None, fuse: bool = False
    ) -> Iterator[StageSpec | BranchSpec]:
        """Give what a board holds of this bundle, or with `stages` None all segments; arguments as for `verify`."""
        if stages is None:
            yield from self.stages
            yield from itertools.chain.from_iterable(stage.branches for stage in self.stages)
            return
        for k in stages:
            yield self.branch(k, branch) if self.stages[k].branches else self.stages[k]
        if fuse:
            yield from (stage for stage in self.stages if stage.branches)


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
        f"({', '.join(known) or 'which is not installed'}); correct the name, or give the folder's path"
    )


def zoo_folder() -> Path | None:
    """Return the folder of the shipped bundles, without importing the model zoo; None where it is not installed."""
    spec = importlib.util.find_spec("model_zoo")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "bundles"


def load_bundle(
    name_or_path: str | Path, *, verify: Iterable[int] | None = None, branch: int | None = None, fuse: bool = False
) -> Bundle:
    """Load a bundle and verify all its files, or those that a board needs for the stages in `verify`.

    `branch` and `fuse` are as for `Bundle.verify`. Raises BundleError: not found, a manifest that does not hold
    together, a missing or changed file.
    """
    path = find_bundle(name_or_path)
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = config.load(path / MANIFEST, Manifest)
        _check(manifest)
    except (ConfigError, OSError) as error:
        raise BundleError(str(error)) from None
    bundle = Bundle(path=path, revision=hashlib.sha256(content).hexdigest()[:12], manifest=manifest)
    bundle.verify(verify, branch=branch, fuse=fuse)
    bundle.check_criterion(bundle.criterion)
    return bundle


def _check(manifest: Manifest) -> None:
    """Check what single values cannot show: that the parts fit each other."""
    for fault in _problems(manifest):
        raise ConfigError(f"{manifest.name}/{MANIFEST}: {fault}")


def _problems(manifest: Manifest) -> Iterable[str]:
    stages = manifest.stages
    if manifest.runtime not in RUNTIMES:
        yield f"runtime: unknown {manifest.runtime!r}; known: {', '.join(RUNTIMES)}"
    if not stages:
        yield "stages: at least one is needed"
    if len(manifest.labels) < 2:
        yield "labels: at least two are needed"
    if len(manifest.preprocess.mean) != len(manifest.preprocess.std) or 0 in manifest.preprocess.std:
        yield "preprocess: mean and std need one value per channel each, std not 0"
    yield from _exit_problems(manifest.exits, stages)
    for k, stage in enumerate(stages):
        before, after = stages[k - 1] if k else None, stages[k + 1] if k + 1 < len(stages) else None
        yield from _stage_problems(k, stage, after, len(manifest.labels))
        if stage.branches:
            yield from _wide_problems(k, stage, before, after)


def _exit_problems(exits: Exits, stages: tuple[StageSpec, ...]) -> Iterable[str]:
    if exits.criterion not in POLICIES:
        yield f"exits.criterion: unknown {exits.criterion!r}; known: {', '.join(POLICIES)}"
    yield from _threshold_problems("exits.thresholds", exits.thresholds, len(stages) - 1)
    if exits.parameters is not None:
        yield from _file_problems("exits.parameters.file", exits.parameters.file)
    widest = max((len(stage.branches) for stage in stages), default=0)
    seen: set[tuple[int, ...]] = set()
    for i, masked in enumerate(exits.masked):
        where = f"exits.masked[{i}]"
        yield from _threshold_problems(f"{where}.thresholds", masked.thresholds, len(stages) - 1)
        yield from (f"{where}.missing: {fault}" for fault in _mask_problems(masked.missing, widest))
        if masked.missing in seen:
            yield f"{where}.missing: {list(masked.missing)} is given twice"
        seen.add(masked.missing)


def _threshold_problems(where: str, thresholds: tuple[float, ...], needed: int) -> Iterable[str]:
    if len(thresholds) != needed:
        yield f"{where}: {len(thresholds)} given, one per exit but the last needed ({needed})"
    if not all(map(math.isfinite, thresholds)):
        yield f"{where}: must be finite"


def _mask_problems(missing: tuple[int, ...], widest: int) -> Iterable[str]:
    if not widest:
        yield "no stage is wide, so no branch can be missing"
    elif not missing or any(one >= next_one for one, next_one in itertools.pairwise(missing)):
        yield f"{list(missing)}: needs at least one branch, and each once, ascending"
    elif missing[0] < 0 or missing[-1] >= widest:
        yield f"{list(missing)}: there are the branches 0 to {widest - 1}"
    elif len(missing) == widest:
        yield f"{list(missing)}: these are all branches, one must be left"


def _file_problems(where: str, name: str) -> Iterable[str]:
    if Path(name).name != name:
        yield f"{where}: must be a file name, without a folder"


def _stage_problems(k: int, stage: StageSpec, after: StageSpec | None, classes: int) -> Iterable[str]:
    where = f"stages[{k}]"
    yield from _file_problems(f"{where}.segment", stage.segment)
    if math.prod(stage.logits.shape) != classes:
        yield f"{where}.logits.shape: {classes} labels need as many logits"
    if after is None:
        if stage.features is not None:
            yield f"{where}.features: the last stage has none"
    elif stage.branches and after.branches:
        if stage.features is not None:
            yield f"{where}.features: to another wide stage go the branches' features, not the fusion head's"
    elif stage.features is None:
        yield f"{where}.features: missing"
    else:
        for name, taken in _inputs(k + 1, after):
            if not _fits(stage.features, taken):
                yield f"{where}.features: not what {name} takes"


def _inputs(k: int, stage: StageSpec) -> Iterator[tuple[str, TensorSpec]]:
    if not stage.branches:
        yield f"stages[{k}].input", stage.input
    for b, branch in enumerate(stage.branches):
        yield f"stages[{k}].branches[{b}].input", branch.input


def _wide_problems(k: int, stage: StageSpec, before: StageSpec | None, after: StageSpec | None) -> Iterable[str]:
    where, branches = f"stages[{k}]", stage.branches
    if not 2 <= len(branches) <= MAX_BRANCHES:
        yield f"{where}.branches: {len(branches)} given, 2 to {MAX_BRANCHES} are needed"
    if stage.input != branches[0].input:
        yield f"{where}.input: must be that of branches[0]"
    if before is None or not before.branches:
        for name, taken in _inputs(k, stage):
            if not _fits(branches[0].input, taken):
                yield f"{name}: not that of branches[0], but one tensor reaches all branches"
    elif len(before.branches) != len(branches):
        yield f"{where}.branches: {len(branches)} given, {len(before.branches)} at stages[{k - 1}]; must be as many"
    for b, branch in enumerate(branches):
        yield from _branch_problems(f"{where}.branches[{b}]", branch)
    takers = after.branches if after is not None else ()
    if takers and len(takers) != len(branches):
        return  # Told at that stage.
    for b, (branch, taker) in enumerate(itertools.zip_longest(branches, takers)):
        yield from _handover_problems(f"{where}.branches[{b}]", branch, f"stages[{k + 1}].branches[{b}]", taker)


def _branch_problems(where: str, branch: BranchSpec) -> Iterable[str]:
    yield from _file_problems(f"{where}.segment", branch.segment)
    embedding = branch.embedding
    if len(embedding.shape) != 2 or embedding.shape[0] != 1 or embedding.shape[1] < 1:
        yield f"{where}.embedding.shape: {list(embedding.shape)}, must be [1, number of values]"
    if embedding.dtype == "float16":
        yield f"{where}.embedding.dtype: float16, must be int8, uint8 or float32"
    elif embedding.dtype != "float32":
        # A missing embedding is filled with the zero point, so that must be one of its values.
        bounds = np.iinfo(embedding.dtype)
        if not bounds.min <= embedding.zero_point <= bounds.max:
            yield f"{where}.embedding.zero_point: {embedding.zero_point}, must be {bounds.min} to {bounds.max}"
        if not 0 < embedding.scale < math.inf:
            yield f"{where}.embedding.scale: {embedding.scale:g}, must be above 0 and finite"


def _handover_problems(where: str, branch: BranchSpec, next_where: str, taker: BranchSpec | None) -> Iterable[str]:
    if taker is None:
        if branch.features is not None:
            yield f"{where}.features: the last wide stage in a row has none"
    elif branch.features is None:
        yield f"{where}.features: missing"
    elif not _fits(branch.features, taker.input):
        yield f"{where}.features: not what {next_where}.input takes"


def _fits(features: TensorSpec, taken: TensorSpec) -> bool:
    # Scales of neighbouring segments may differ in the last digits: converters compute them separately.
    return (features.dtype, features.shape, features.zero_point) == (
        taken.dtype,
        taken.shape,
        taken.zero_point,
    ) and math.isclose(features.scale, taken.scale, rel_tol=1e-5)


def _read_arrays(path: Path, content: bytes) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        arrays = np.load(io.BytesIO(content), allow_pickle=False)
        return {name: np.asarray(arrays[name]) for name in names}
    except _NOT_ARRAYS as error:
        raise BundleError(f"{path}: not an npz file of arrays ({error}); build the bundle again") from None


_NOT_ARRAYS = (OSError, EOFError, KeyError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error)


def _numbered(arrays: Mapping[str, Array], name: str) -> list[Array]:
    """Return the arrays `{name}0`, `{name}1`, … up to the first that is not there."""
    return [arrays[f"{name}{i}"] for i in itertools.takewhile(lambda i: f"{name}{i}" in arrays, itertools.count())]


def _parameter_problems(arrays: Mapping[str, Array], stages: tuple[StageSpec, ...], classes: int) -> Iterable[str]:
    means, gates = _numbered(arrays, "class_means"), _numbered(arrays, "gate")
    if len(means) + len(gates) != len(arrays):
        yield f"holds {', '.join(sorted(arrays))[:100]}; only class_means0, class_means1, … and gate0, gate1, … belong"
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            yield f"{name}: must be finite float32"
    wide = next((stage.branches for stage in stages if stage.branches), ())
    wanted = [(classes, *branch.embedding.shape[1:]) for branch in wide]
    if means and [array.shape for array in means] != wanted:
        shapes = ", ".join(str(array.shape) for array in means)
        yield f"class_means: {shapes[:100]}; needs (classes, values) for each of the {len(wide)} branches"
    if gates and (len(gates) not in (len(stages) - 1, len(stages)) or any(array.ndim != 1 for array in gates)):
        yield f"gate: needs (weights,), its bias last, for each of the {len(stages)} exits, or for all but the last"
