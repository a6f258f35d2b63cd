"""bundle.yaml, declared: the attributes of these records are its keys."""

from __future__ import annotations

from typing import Literal

from distree.bundle.runtimes import DEFAULT_RUNTIME
from distree.messages.plan import MaskedThresholds
from distree.messages.request import DType
from distree.record import record
from distree.thresholds import Threshold

MANIFEST = "bundle.yaml"


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
class ParametersFile:
    """Learned or measured parameters of criteria: an .npz file, see `Bundle.criterion_parameters`."""

    file: str
    sha256: str


@record
class Exits:
    """The calibrated defaults: a criterion and one threshold per exit but the last.

    `masked` are the thresholds for sets of missing branches, of the same criterion.
    """

    criterion: str
    thresholds: tuple[Threshold, ...]
    masked: tuple[MaskedThresholds, ...] = ()
    parameters: ParametersFile | None = None


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
class MeasuredFigures:
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
    """bundle.yaml, format 1. `runtime` says what its segments are made for: see `distree.bundle.runtimes`."""

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
    measured: MeasuredFigures
