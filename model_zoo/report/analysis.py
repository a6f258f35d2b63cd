"""From what bundles gave on validation and test images to the figures of a report.

Every threshold is chosen on validation images, by `model_zoo.thresholds`; test images are only measured on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distree.bundle.loading import Bundle
from distree.criteria.base import CriterionParameters
from distree.criteria.feature_difference import FeatureDifference
from distree.criteria.max_softmax import MaxSoftmax
from distree.errors import ConfigError
from distree.exits_taken import exits_taken
from model_zoo.costs import FUSER, Costs, costs_of
from model_zoo.criteria import usable_criteria, validation_scores
from model_zoo.errors import DataError
from model_zoo.evaluation import Evaluation, ExitScores, TrafficPerInput, score_exits, summarise
from model_zoo.report.measures import Spread, auroc, paired_interval
from model_zoo.report.networks import Prepared
from model_zoo.report.recording import Recording
from model_zoo.report.results import (
    ALLOWED_DROPS,
    BUDGETS,
    DEVIATIONS,
    MASK_CRITERION,
    MAX_DROP,
    REQUIRED_RANKING,
    BoardFigures,
    BudgetPoint,
    BudgetSummary,
    Compute,
    CriterionSummary,
    Curve,
    CurvePoint,
    CurveSummary,
    Exported,
    Group,
    MaskPoint,
    MaskSummary,
    Movement,
    MovementSummary,
    Network,
    OperatingPoint,
    Ranking,
    RankingSummary,
    SmallSummary,
    Training,
)
from model_zoo.thresholds import choose_thresholds
from model_zoo.training.plans import Variant

Floats = npt.NDArray[np.float64]
_MASKED_VARIANTS: tuple[Variant, ...] = ("full", "no-dropout")


@dataclass(frozen=True, slots=True)
class Judged:
    """A network's figures, and per criterion the differences (inputs,) in accuracy of its operating point on test."""

    network: Network
    differences: dict[str, Floats]


# ---------------------------------------------------------------- one network


def judge(prepared: Prepared, other_budgets: Iterable[int] = ()) -> Judged:
    """Work out a network's figures. other_budgets: multiply-accumulates to compare criteria at, beside `BUDGETS`."""
    bundle, variant = prepared.bundle, prepared.settings.variant
    costs = costs_of(bundle.stages)
    parameters = bundle.criterion_parameters()
    network = Network(
        variant=variant,
        branches=prepared.settings.branches,
        seed=prepared.settings.seed,
        training=_training(prepared),
        exported=_exported(prepared),
        compute=Compute(costs.macs, costs.strict, costs.loose, _criterion_macs(bundle)),
        masks=() if variant == "small" else tuple(_mask_points(prepared, parameters)),
    )
    if variant != "full":
        return Judged(network, {})
    return _with_criteria(network, prepared, costs, parameters, other_budgets)


def _training(prepared: Prepared) -> Training:
    source = prepared.source
    return Training(source.epochs, source.kept_epoch, source.seconds, source.machine)


def _exported(prepared: Prepared) -> Exported:
    bundle, source = prepared.bundle, prepared.source
    measured = bundle.manifest.measured
    if measured is None:
        raise DataError(
            f"{bundle.path}: its manifest has no measured figures", "remove the folder, so that it is exported again"
        )
    return Exported(
        revision=bundle.revision,
        bytes=sum(path.stat().st_size for path in bundle.path.iterdir()),
        criterion=bundle.criterion,
        thresholds=bundle.thresholds,
        drop=measured.accuracy[-1] - measured.accuracy_at_thresholds,
        saved_strict=1 - measured.macs_per_input / measured.macs_no_early_exit_strict,
        float_validation=source.float_validation,
        float_test=source.float_test,
        int8_validation=_accuracy(prepared.validation),
        int8_test=_accuracy(prepared.test),
    )


def _accuracy(recording: Recording) -> tuple[float, ...]:
    right = recording.logits[()].argmax(axis=2) == recording.labels[:, None]
    return tuple(float(value) for value in right.mean(axis=0))


def _criterion_macs(bundle: Bundle) -> int:
    """Most multiply-accumulates of scoring an exit: feature difference, at the first exit, with all class means."""
    values = sum(math.prod(branch.embedding.shape) for branch in bundle.stages[0].branches)
    return (len(bundle.labels) + 1) * values


def _with_criteria(
    network: Network, prepared: Prepared, costs: Costs, parameters: CriterionParameters, other_budgets: Iterable[int]
) -> Judged:
    on_validation, on_test = prepared.validation.collect(), prepared.test.collect()
    budgets = (*(share * costs.strict for share in BUDGETS), *other_budgets)
    points, curves, points_at_budgets, rankings = [], [], [], []
    movements: tuple[Movement, ...] = ()
    differences: dict[str, Floats] = {}
    for criterion in usable_criteria(prepared.bundle, parameters):
        chosen_on = validation_scores(on_validation, criterion, parameters)
        measured_on = score_exits(on_test, criterion, parameters)
        points.append(_operating_point(criterion, chosen_on, measured_on, costs))
        differences[criterion] = _differences(measured_on, points[-1].thresholds)
        curves.append(Curve(criterion, tuple(_curve_point(chosen_on, measured_on, costs, at) for at in ALLOWED_DROPS)))
        points_at_budgets += [_budget_point(criterion, chosen_on, measured_on, costs, at) for at in budgets]
        rankings.append(Ranking(criterion, _rankings(measured_on)))
        if criterion == FeatureDifference.name:
            movements = _movements(measured_on)
    judged = dataclasses.replace(
        network,
        points=tuple(points),
        curves=tuple(curves),
        budgets=tuple(points_at_budgets),
        rankings=tuple(rankings),
        movements=movements,
    )
    return Judged(judged, differences)


def _operating_point(criterion: str, chosen_on: ExitScores, measured_on: ExitScores, costs: Costs) -> OperatingPoint:
    choice = choose_thresholds(chosen_on, costs, MAX_DROP, DEVIATIONS)
    found = summarise(measured_on, costs, criterion, choice.thresholds)
    return OperatingPoint(
        criterion=criterion,
        thresholds=choice.thresholds,
        validation_drop=choice.drop,
        validation_bound=choice.drop_bound,
        test_drop=paired_interval(_differences(measured_on, choice.thresholds)),
        accuracy=found.accuracy_at_thresholds,
        exit_share=found.exit_share,
        macs_per_input=found.macs_per_input,
        saved_strict=1 - found.macs_per_input / costs.strict,
        saved_loose=1 - found.macs_per_input / costs.loose,
        boards=_board_figures(found),
    )


def _differences(scored: ExitScores, thresholds: Sequence[float]) -> Floats:
    """Return, per input, 1 where leaving early lost a right answer, -1 where it won one, else 0."""
    taken = exits_taken(scored.scores, thresholds)
    at_exit = scored.correct[np.arange(len(taken)), taken]
    return scored.correct[:, -1].astype(np.float64) - at_exit


def _board_figures(found: Evaluation) -> BoardFigures:
    computing = [board for board in found.boards if board.board != FUSER]
    assert found.traffic is not None  # noqa: S101 - costs_of gives it
    return BoardFigures(
        mean=found.board_macs_mean,
        largest=found.board_macs_max,
        most=max(board.loose for board in computing),
        fuser=sum(board.macs_per_input for board in found.boards if board.board == FUSER),
        traffic=found.traffic,
    )


def _curve_point(chosen_on: ExitScores, measured_on: ExitScores, costs: Costs, allowed: float) -> CurvePoint:
    thresholds = choose_thresholds(chosen_on, costs, allowed, DEVIATIONS).thresholds
    found = summarise(measured_on, costs, "", thresholds)
    return CurvePoint(allowed, thresholds, found.macs_per_input, found.accuracy_at_thresholds)


def _budget_point(
    criterion: str, chosen_on: ExitScores, measured_on: ExitScores, costs: Costs, budget: float
) -> BudgetPoint:
    thresholds = best_within(chosen_on, costs, budget)
    if thresholds is None:
        return BudgetPoint(criterion, budget, None, None, None)
    found = summarise(measured_on, costs, criterion, thresholds)
    return BudgetPoint(criterion, budget, thresholds, found.macs_per_input, found.accuracy_at_thresholds)


def best_within(scored: ExitScores, costs: Costs, budget: float) -> tuple[float, ...] | None:
    """Return the thresholds of the best accuracy whose mean multiply-accumulates are at most `budget`.

    None if there are none that cheap. It is the least drop, of k inputs in n, that allows them: the more is allowed,
    the cheaper the rule's choice, so halving finds it.
    """
    inputs = len(scored.scores)

    def within(lost: int) -> tuple[float, ...] | None:
        try:
            choice = choose_thresholds(scored, costs, lost / inputs, 0.0)
        except ConfigError:  # nothing loses that little
            return None
        return choice.thresholds if choice.macs_per_input <= budget else None

    low, high, best = -inputs, inputs, within(inputs)
    while best is not None and low < high:
        middle = (low + high) // 2
        found = within(middle)
        low, high, best = (middle + 1, high, best) if found is None else (low, middle, found)
    return best


def _rankings(scored: ExitScores) -> tuple[float | None, ...]:
    as_good = _as_good(scored)
    return tuple(auroc(scored.scores[:, k], as_good[:, k]) for k in range(as_good.shape[1]))


def _as_good(scored: ExitScores) -> npt.NDArray[np.bool_]:
    """Whether each exit but the last is as right as the last one, (inputs, exits − 1)."""
    result: npt.NDArray[np.bool_] = scored.correct[:, :-1] | ~scored.correct[:, -1:]
    return result


def _movements(scored: ExitScores) -> tuple[Movement, ...]:
    """Undo the sign of feature difference at the exits where it compares two exits, so not at the first."""
    as_good = _as_good(scored)
    return tuple(
        Movement(
            exit=k,
            as_good=_median(-scored.scores[as_good[:, k], k]),
            worse=_median(-scored.scores[~as_good[:, k], k]),
        )
        for k in range(1, as_good.shape[1])
    )


def _median(distances: Floats) -> float | None:
    known = distances[np.isfinite(distances)]
    return float(np.median(known)) if len(known) else None


def _mask_points(prepared: Prepared, parameters: CriterionParameters) -> Iterable[MaskPoint]:
    for missing in ((), *prepared.validation.masks):
        costs = costs_of(prepared.bundle.stages, missing)
        chosen_on = validation_scores(prepared.validation.collect(missing), MASK_CRITERION, parameters)
        measured_on = score_exits(prepared.test.collect(missing), MASK_CRITERION, parameters)
        thresholds = choose_thresholds(chosen_on, costs, MAX_DROP, DEVIATIONS).thresholds
        found = summarise(measured_on, costs, MASK_CRITERION, thresholds)
        yield MaskPoint(
            missing=missing,
            accuracy=found.accuracy,
            thresholds=thresholds,
            accuracy_at_thresholds=found.accuracy_at_thresholds,
            test_drop=paired_interval(_differences(measured_on, thresholds)),
            saved_strict=1 - found.macs_per_input / costs.strict,
        )


# ---------------------------------------------------------------- over the seeds


def group(branches: int, judged: Sequence[Judged]) -> Group:
    """Summarise the networks of one number of branches; at least one is needed."""
    full = [one for one in judged if one.network.variant == "full"]
    small = [one.network for one in judged if one.network.variant == "small"]
    networks = [one.network for one in full]
    rankings = _ranking_summaries(networks)
    return Group(
        branches=branches,
        seeds=tuple(network.seed for network in networks),
        compute=networks[0].compute if networks else None,
        accuracy_no_exits=Spread.of(network.exported.int8_test[-1] for network in networks) if networks else None,
        criteria=tuple(_criterion_summary(full, i) for i in range(len(networks[0].points) if networks else 0)),
        curves=tuple(_curve_summary(networks, i) for i in range(len(networks[0].curves) if networks else 0)),
        budgets=tuple(_budget_summary(networks, i) for i in range(len(networks[0].budgets) if networks else 0)),
        small=_small_summary(small),
        rankings=rankings,
        movements=_movement_summaries(networks),
        suppressed=is_suppressed(rankings),
        masks=tuple(_mask_summaries([one.network for one in judged])),
    )


def _small_summary(networks: Sequence[Network]) -> SmallSummary | None:
    if not networks:
        return None
    return SmallSummary(
        seeds=tuple(network.seed for network in networks),
        strict=networks[0].compute.strict,
        accuracy=Spread.of(network.exported.int8_test[-1] for network in networks),
    )


def _criterion_summary(judged: Sequence[Judged], i: int) -> CriterionSummary:
    points = [one.network.points[i] for one in judged]
    criterion = points[0].criterion
    strict = Spread.of(point.saved_strict for point in points)
    loose = Spread.of(point.saved_loose for point in points)
    return CriterionSummary(
        criterion=criterion,
        test_drop=Spread.of(point.test_drop.mean for point in points),
        # One set of test inputs serves all seeds, so an input's differences are averaged before they are compared.
        test_drop_of_inputs=paired_interval(np.mean([one.differences[criterion] for one in judged], axis=0)),
        accuracy=Spread.of(point.accuracy for point in points),
        saved_strict=strict,
        saved_loose=loose,
        one_more_strict=strict.of_one_more(),
        one_more_loose=loose.of_one_more(),
        exit_share=_means(point.exit_share for point in points),
        boards=_mean_boards([point.boards for point in points]),
    )


def _means(rows: Iterable[Sequence[float]]) -> tuple[float, ...]:
    return tuple(math.fsum(column) / len(column) for column in zip(*rows, strict=True))


def _mean_boards(boards: Sequence[BoardFigures]) -> BoardFigures:
    mean, largest, fuser = _means((one.mean, one.largest, one.fuser) for one in boards)
    return BoardFigures(mean, largest, boards[0].most, fuser, _mean_traffic([one.traffic for one in boards]))


def _mean_traffic(traffic: Sequence[TrafficPerInput]) -> TrafficPerInput:
    sizes = [one.message_bytes for one in traffic if one.message_bytes is not None]
    rows = ((one.input_bytes, one.feature_bytes, one.embedding_bytes, one.decisions, one.messages) for one in traffic)
    inputs, features, embeddings, decisions, messages = _means(rows)
    whole = math.fsum(sizes) / len(sizes) if len(sizes) == len(traffic) else None
    return TrafficPerInput(inputs, features, embeddings, decisions, messages, whole)


def _curve_summary(networks: Sequence[Network], i: int) -> CurveSummary:
    curves = [network.curves[i] for network in networks]
    return CurveSummary(
        criterion=curves[0].criterion,
        allowed_drops=tuple(point.allowed_drop for point in curves[0].points),
        macs_per_input=_means([point.macs_per_input for point in curve.points] for curve in curves),
        accuracy=_means([point.accuracy for point in curve.points] for curve in curves),
    )


def _budget_summary(networks: Sequence[Network], i: int) -> BudgetSummary:
    points = [network.budgets[i] for network in networks]
    macs = [point.macs_per_input for point in points if point.macs_per_input is not None]
    accuracy = [point.accuracy for point in points if point.accuracy is not None]
    everywhere = len(accuracy) == len(points)
    return BudgetSummary(
        criterion=points[0].criterion,
        budget_macs=points[0].budget_macs,
        macs_per_input=Spread.of(macs) if everywhere else None,
        accuracy=Spread.of(accuracy) if everywhere else None,
    )


def _ranking_summaries(networks: Sequence[Network]) -> tuple[RankingSummary, ...]:
    rows = zip(*(network.rankings for network in networks), strict=True)
    return tuple(
        RankingSummary(
            of_seeds[0].criterion, tuple(_mean(at) for at in zip(*(one.auroc for one in of_seeds), strict=True))
        )
        for of_seeds in rows
    )


def _movement_summaries(networks: Sequence[Network]) -> tuple[MovementSummary, ...]:
    rows = zip(*(network.movements for network in networks), strict=True)
    return tuple(
        MovementSummary(row[0].exit, _mean([one.as_good for one in row]), _mean([one.worse for one in row]))
        for row in rows
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) and known else None


def is_suppressed(rankings: Sequence[RankingSummary]) -> bool | None:
    """Apply `REQUIRED_RANKING`; None without both criteria, or with fewer than two early exits."""
    auroc_of = {ranking.criterion: ranking.auroc[1:] for ranking in rankings}
    moved, sure = auroc_of.get(FeatureDifference.name, ()), auroc_of.get(MaxSoftmax.name, ())
    pairs = [(a, b) for a, b in zip(moved, sure, strict=False) if a is not None and b is not None]
    if not pairs:
        return None
    return any(a - 0.5 < REQUIRED_RANKING * (b - 0.5) for a, b in pairs)


def _mask_summaries(networks: Sequence[Network]) -> Iterable[MaskSummary]:
    for variant in _MASKED_VARIANTS:
        of_variant = [network.masks for network in networks if network.variant == variant]
        for points in zip(*of_variant, strict=True):
            yield MaskSummary(
                variant=variant,
                missing=points[0].missing,
                accuracy=tuple(Spread.of(at) for at in zip(*(point.accuracy for point in points), strict=True)),
                accuracy_at_thresholds=Spread.of(point.accuracy_at_thresholds for point in points),
                test_drop=Spread.of(point.test_drop.mean for point in points),
                saved_strict=Spread.of(point.saved_strict for point in points),
            )
