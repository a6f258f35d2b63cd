"""The figures of a report, as the .json file holds them; the text shows these and no others.

Accuracies, drops, shares and savings are fractions; drops are against the last exit of the same segments.
Multiply-accumulates and bytes are means per input over all boards where nothing else is said.
"""

from __future__ import annotations

from dataclasses import dataclass

from model_zoo.evaluation import TrafficPerInput
from model_zoo.report.measures import Interval, Spread
from model_zoo.training.plans import Variant

MAX_DROP = 0.002
"""What the tables allow: 0.2 points."""

DEVIATIONS = 1.0
"""Standard errors that the validation drop must stay below `MAX_DROP`.

A search over ten thousand vectors finds some that look better on the validation images than they are. On made-up exits
of such accuracy (`tests/model_zoo/test_zoo_report_rule.py`), vectors chosen without a margin dropped 0.3 points on new
images for the 0.2 that they were chosen for; with one standard error, 0.2.
"""

ALLOWED_DROPS = (0.0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2)
"""Of the curves, under the same rule."""

BUDGETS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Mean multiply-accumulates at which criteria are compared, as shares of those without early exits (strict)."""

PUBLISHED_SAVING = 0.276
"""DistrEE's, CIFAR-10 and WideResNets, on average, at an accuracy "comparable" to no early exit."""

PUBLISHED_CRITERION = "feature_difference"
MASK_CRITERION = "max_softmax"
"""Of the table of missing branches: the same for all networks, so that only the branches differ."""

SEEDS_FOR_A_VERDICT = 3
"""Fewer do not tell how much seeds differ, so nothing is said of the published figure."""

REQUIRED_RANKING = 0.5
"""Convergence counts as suppressed where feature difference has less than this share of max softmax's edge over a
coin, AUROC − 1/2, at the exits where it compares two exits."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a network was trained. machine: in words; None where the checkpoint does not say."""

    epochs: int
    kept_epoch: int
    seconds: float
    machine: str | None


@dataclass(frozen=True, slots=True)
class Teacher:
    """How the teacher was trained, and its accuracy on validation images."""

    epochs: int
    kept_epoch: int
    seconds: float
    machine: str | None
    accuracy: float


@dataclass(frozen=True, slots=True)
class Exported:
    """The int8 bundle and the accuracy of each exit before and after quantisation.

    criterion, thresholds, drop and saved_strict are the bundle's own defaults, under the stricter rule of
    `model_zoo.thresholds`, and what they do on test images.
    """

    revision: str
    bytes: int
    criterion: str
    thresholds: tuple[float, ...]
    drop: float
    saved_strict: float
    float_validation: tuple[float, ...]
    float_test: tuple[float, ...]
    int8_validation: tuple[float, ...]
    int8_test: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Compute:
    """Multiply-accumulates of an input that leaves at each exit; strict and loose as in `model_zoo.costs.Costs`.

    criterion: at most, of scoring one exit, which the others leave out.
    """

    at_exit: tuple[int, ...]
    strict: int
    loose: int
    criterion: int


@dataclass(frozen=True, slots=True)
class BoardFigures:
    """What boards compute and are sent per input, in the gated mode.

    mean and largest: of the means of the boards that run branches; most: that one input can cost one of them. fuser:
    mean of the board that fuses.
    """

    mean: float
    largest: float
    most: int
    fuser: float
    traffic: TrafficPerInput


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A criterion at the thresholds that the rule gives: what validation showed, and what test images then did."""

    criterion: str
    thresholds: tuple[float, ...]
    validation_drop: float
    validation_bound: float
    test_drop: Interval
    accuracy: float
    exit_share: tuple[float, ...]
    macs_per_input: float
    saved_strict: float
    saved_loose: float
    boards: BoardFigures


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A criterion at the thresholds for one allowed drop, on test images."""

    allowed_drop: float
    thresholds: tuple[float, ...]
    macs_per_input: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A criterion's points, by allowed drop."""

    criterion: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class BudgetPoint:
    """The thresholds of the best validation accuracy within a mean of `budget_macs`, and what test images then did.

    All but the budget are None where no thresholds are cheap enough.
    """

    criterion: str
    budget_macs: float
    thresholds: tuple[float, ...] | None
    macs_per_input: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Ranking:
    """How well a criterion's scores rank test inputs on which an exit is as right as the last one above the others.

    auroc: of each exit but the last; None where all inputs are of one kind.
    """

    criterion: str
    auroc: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Movement:
    """Median distance of unit-normalised embeddings between an exit and the one before, over test inputs.

    Of those on which the exit is as right as the last one, and of the others; None where there are none.
    """

    exit: int
    as_good: float | None
    worse: float | None


@dataclass(frozen=True, slots=True)
class MaskPoint:
    """A network with some branches missing: every exit, and thresholds of that set chosen by the rule."""

    missing: tuple[int, ...]
    accuracy: tuple[float, ...]
    thresholds: tuple[float, ...]
    accuracy_at_thresholds: float
    test_drop: Interval
    saved_strict: float


@dataclass(frozen=True, slots=True)
class Network:
    """One trained network. Of the variant small, the last exit alone counts; of no-dropout, only masks are judged."""

    variant: Variant
    branches: int
    seed: int
    training: Training
    exported: Exported
    compute: Compute
    points: tuple[OperatingPoint, ...] = ()
    curves: tuple[Curve, ...] = ()
    budgets: tuple[BudgetPoint, ...] = ()
    rankings: tuple[Ranking, ...] = ()
    movements: tuple[Movement, ...] = ()
    masks: tuple[MaskPoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Absent:
    """A network that was asked for and is not there."""

    variant: Variant
    branches: int
    seed: int
    why: str


@dataclass(frozen=True, slots=True)
class CriterionSummary:
    """A criterion's operating points over the seeds.

    test_drop_of_inputs: the mean over the seeds' networks, with an interval for the drawing of the test inputs.
    one_more: where the saving of one more seed would lie, strict and loose; None after a single seed.
    """

    criterion: str
    test_drop: Spread
    test_drop_of_inputs: Interval
    accuracy: Spread
    saved_strict: Spread
    saved_loose: Spread
    one_more_strict: Interval | None
    one_more_loose: Interval | None
    exit_share: tuple[float, ...]
    boards: BoardFigures


@dataclass(frozen=True, slots=True)
class BudgetSummary:
    """A criterion within a budget, over the seeds; None where a seed has no thresholds that cheap."""

    criterion: str
    budget_macs: float
    macs_per_input: Spread | None
    accuracy: Spread | None


@dataclass(frozen=True, slots=True)
class RankingSummary:
    """Mean AUROC over the seeds, of each exit but the last; None where a seed has none."""

    criterion: str
    auroc: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class MovementSummary:
    """Means of `Movement` over the seeds."""

    exit: int
    as_good: float | None
    worse: float | None


@dataclass(frozen=True, slots=True)
class MaskSummary:
    """Networks of one variant with some branches missing, over the seeds."""

    variant: Variant
    missing: tuple[int, ...]
    accuracy: tuple[Spread, ...]
    accuracy_at_thresholds: Spread
    test_drop: Spread
    saved_strict: Spread


@dataclass(frozen=True, slots=True)
class CurveSummary:
    """Means over the seeds of a criterion's points, by allowed drop."""

    criterion: str
    allowed_drops: tuple[float, ...]
    macs_per_input: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SmallSummary:
    """The smaller network without early exits."""

    seeds: tuple[int, ...]
    strict: int
    accuracy: Spread


@dataclass(frozen=True, slots=True)
class Group:
    """All networks of one number of branches, over the seeds that are there.

    seeds: of the variant full, of which all is but `small` and some of `masks`; without any, compute and
    accuracy_no_exits are None. small: None where no smaller network is there. suppressed: whether convergence is, see
    `REQUIRED_RANKING`; None where it cannot be said.
    """

    branches: int
    seeds: tuple[int, ...]
    compute: Compute | None
    accuracy_no_exits: Spread | None
    criteria: tuple[CriterionSummary, ...]
    curves: tuple[CurveSummary, ...]
    budgets: tuple[BudgetSummary, ...]
    small: SmallSummary | None
    rankings: tuple[RankingSummary, ...]
    movements: tuple[MovementSummary, ...]
    suppressed: bool | None
    masks: tuple[MaskSummary, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything. machine: where the report was made, in words. teacher: None where it is not in the work folder."""

    recipe: str
    data: str
    train_inputs: int
    validation_inputs: int
    test_inputs: int
    machine: str
    max_drop: float
    deviations: float
    published_saving: float
    seeds: tuple[int, ...]
    branches: tuple[int, ...]
    teacher: Teacher | None
    networks: tuple[Network, ...]
    absent: tuple[Absent, ...]
    groups: tuple[Group, ...]
