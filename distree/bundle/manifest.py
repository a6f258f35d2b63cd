"""bundle.yaml, declared: the attributes of these records are its keys."""

from __future__ import annotations

from typing import Literal

from distree.bundle.frontends import FrontendSpec, Raw
from distree.bundle.runtimes import DEFAULT_RUNTIME
from distree.messages.plan import MaskedThresholds
from distree.messages.request import DType
from distree.record import record
from distree.thresholds import Threshold

MANIFEST = "bundle.yaml"


InputDType = Literal["uint8", "int8", "int16", "float16", "float32"]


@record
class InputSpec:
    """What a source delivers: one array per input, before any preprocessing.

    Images are uint8 (height, width, 1 or 3 channels). A window of a recording is (samples,) or (samples, channels).
    """

    dtype: InputDType
    """Type of its elements; images are uint8, samples of sound int16."""
    shape: tuple[int, ...]
    """Its shape, without a batch axis."""
    rate_hz: float | None = None
    """Sampling rate of a window. Recordings at another rate are refused. Needed by front ends and for WAV files."""
    channels: tuple[str, ...] = ()
    """Names of a window's channels, to find the columns of CSV files by name; without them, columns count in order."""

    @property
    def is_image(self) -> bool:
        """Whether inputs are images."""
        return self.dtype == "uint8" and len(self.shape) == 3 and self.shape[2] in (1, 3)

    @property
    def is_window(self) -> bool:
        """Whether inputs are windows of a recording, with time along the first axis."""
        return self.dtype in ("int16", "float16", "float32") and len(self.shape) in (1, 2)


@record
class WindowRule:
    """How a recording that is not exactly one window is cut; see `distree.bundle.windows`."""

    hop: int | None = None
    """Samples from the start of one window to the start of the next. Without it, longer recordings are refused."""
    short: Literal["refuse", "pad"] = "refuse"
    """What happens to a recording shorter than a window: it is refused, or padded with zeros."""


@record
class Preprocess:
    """From a raw input to the first segment's tensor, in this order.

    An image file is turned upright (EXIF), put on `background` where it is transparent, fitted by `resize`, and becomes
    an array of the input spec. A recording is cut into windows by `window`. Colours are put into `channel_order`.
    Values are scaled: uint8 to 0…1, int16 to −1…1, others stay as they are. Then the front end, `(value − mean) / std`,
    quantisation, and `layout`.
    """

    range: Literal["0..1", "-1..1", "0..255", "quantised"] | None = None
    """Instead of mean and std: the range in which the network expects uint8 inputs; or `quantised` for inputs that
    already are the first segment's tensor.
    """
    mean: tuple[float, ...] = ()
    """Subtracted from values: one number, or one per channel (last axis). Without mean and std, values are kept."""
    std: tuple[float, ...] = ()
    """Divisor of what remains: one number, or one per channel."""
    layout: Literal["nchw", "nhwc"]
    """`nchw` moves the last axis (channels) to the front, `nhwc` keeps the order. A batch axis of 1 comes first."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """The order of colours that the network expects; sources always deliver red, green, blue."""
    resize: Literal["crop", "pad", "stretch"] = "crop"
    """How an image with another aspect ratio is fitted: by cutting out its middle, adding bars of `background`, or
    stretching it.
    """
    background: Literal["black", "white"] = "black"
    """Colour of bars, and of what shows through transparent parts of an image."""
    window: WindowRule = WindowRule()
    """How recordings are cut."""
    frontend: FrontendSpec = Raw()
    """What computes features from a window; `raw` passes its values on."""


@record
class TensorSpec:
    """A segment's input or output. For int8 and uint8, real value = scale · (q − zero_point); others have no scale."""

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

    `features` is None if the next stage is not wide, or there is none. `macs.exit` are the embedding's.
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

    A stage with `branches` is *wide*: every branch reads `input` (between two wide stages each its own, which never
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
    """Inputs and outputs of every segment for the self-test; `tolerance` in steps of `distree.bundle.golden`.

    `stage_tolerances`, one per stage, replace it if they were measured.
    """

    file: str
    sha256: str
    tolerance: int
    stage_tolerances: tuple[int, ...] = ()

    def allowed(self, stage: int) -> int:
        """Return by how many steps the segments of a stage may be off."""
        return self.stage_tolerances[stage] if self.stage_tolerances else self.tolerance


@record
class SplitFigures:
    """Accuracies (fractions) of each exit on every input, and with early exits; shares of inputs per exit."""

    accuracy: tuple[float, ...]
    accuracy_at_thresholds: float
    exit_share: tuple[float, ...]


@record
class Trained:
    """How the weights were trained."""

    epochs: int
    seed: int
    seconds: float
    torch: str


@record
class MeasuredFigures:
    """Figures of the segments on inputs that were not used in training; `data` names these inputs.

    `validation` are those of the inputs that thresholds were chosen on, `trained` says how the weights were trained;
    bundles made by a recipe have both.
    """

    data: str
    accuracy: tuple[float, ...]
    accuracy_at_thresholds: float
    exit_share: tuple[float, ...]
    macs_per_input: float
    macs_no_early_exit_strict: int
    macs_no_early_exit_loose: int
    feature_bytes_per_input: float
    validation: SplitFigures | None = None
    trained: Trained | None = None


@record
class DataUse:
    """A file of inputs, and what is known about them: class labels, and whether the network was trained on them."""

    data: str
    inputs: int
    labelled: bool
    seen: bool = False


@record
class Promise:
    """What thresholds were chosen for: the most that accuracy may drop (a fraction), on average or by its upper bound.

    drop, drop_bound and saved are the results on the inputs that the thresholds were chosen on. saved: share of the
    whole network's multiply-accumulates without exits, minus what the heads cost.
    """

    max_drop: float
    rule: Literal["bound", "mean"]
    drop: float
    drop_bound: float
    saved: float


@record
class SplitFrom:
    """The network that `distree zoo split` cut a bundle from, and what its exits were made from.

    file and sha256: of the whole network. after: the operators after which it was cut. heads: their shapes.
    heads_from: inputs that the heads learned from. thresholds_from: inputs that thresholds were chosen on. tested_on:
    inputs that were opened once, after everything was decided.
    """

    file: str
    sha256: str
    after: tuple[int, ...]
    heads: tuple[str, ...]
    seed: int
    heads_from: tuple[DataUse, ...]
    thresholds_from: DataUse
    promise: Promise
    tested_on: DataUse | None = None


@record
class Manifest:
    """bundle.yaml, format 1. `runtime` says what runs its segments: see `distree.bundle.runtimes`.

    `measured` is missing if nothing was measured; bundles cut from a whole network have `split_from`.
    """

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
    measured: MeasuredFigures | None = None
    split_from: SplitFrom | None = None
