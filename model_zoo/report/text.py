"""A report as Markdown. Every number and every verdict comes from `results.Report`; nothing is worked out here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from model_zoo.report.measures import Interval, Spread
from model_zoo.report.results import (
    MASK_CRITERION,
    PUBLISHED_CRITERION,
    REQUIRED_RANKING,
    SEEDS_FOR_A_VERDICT,
    BudgetSummary,
    Compute,
    CriterionSummary,
    Group,
    MaskSummary,
    Network,
    OperatingPoint,
    RankingSummary,
    Report,
)

_NONE = "n/a"
_NAMES = {"gate": "learned gate"}


def markdown(report: Report, plots: Sequence[str]) -> str:
    """Return the whole text; `plots` are the names of image files beside it."""
    parts = [
        *_opening(report),
        *_in_short(report),
        *_method(report),
        *(f"![Accuracy against multiply-accumulates]({name})\n" for name in plots),
        *(line for group in report.groups if group.criteria for line in _compute_saved(report, group)),
        *_matched(report),
        *_small(report),
        *_boards(report),
        *_masks(report),
        *_rankings(report),
        *_networks(report),
        *_quantisation(report),
    ]
    return "\n".join(parts).rstrip() + "\n"


# ---------------------------------------------------------------- parts


def _opening(report: Report) -> Iterator[str]:
    yield f"# {report.recipe}: what early exits save\n"
    yield (
        f"Written by `distree zoo report {report.recipe}`; `{report.recipe}.json` holds every figure. "
        "MMACs are millions of multiply-accumulates per input, summed over all boards, including exit heads and "
        "fusion. ± is the standard deviation over seeds; each seed is a network trained from scratch. "
        "*Strict* savings are relative to the same network with only its trunks and last head, *loose* savings to the "
        "network with all exits computed and none taken.\n"
    )


def _in_short(report: Report) -> Iterator[str]:
    yield "## Summary\n"
    for group in report.groups:
        yield from _bullets(f"{group.branches} branches: {line}" for line in _findings(report, group))
    if not any(group.criteria for group in report.groups):
        yield "No network with early exits is there, so nothing can be said about them.\n"
    yield ""


def _findings(report: Report, group: Group) -> Iterator[str]:
    by_name = {summary.criterion: summary for summary in group.criteria}
    ours = by_name.get(PUBLISHED_CRITERION)
    if ours is not None:
        yield (
            f"{criterion_name(ours.criterion)}, DistrEE's criterion, saves {_percent(ours.saved_strict, 1)} % "
            f"strict and {_percent(ours.saved_loose, 1)} % loose at a test drop of {_drop(report, ours)}. "
            f"Strict: {_consistency(report, len(group.seeds), ours.one_more_strict)}. "
            f"Loose: {_consistency(report, len(group.seeds), ours.one_more_loose)}."
        )
    if by_name:
        kept = [one for one in by_name.values() if one.test_drop.mean <= report.max_drop]
        best = max(kept or by_name.values(), key=lambda summary: summary.saved_strict.mean)
        of_these = "among the criteria that kept to the limit, " if kept else ""
        yield (
            f"in hindsight, {of_these}{criterion_name(best.criterion)} saves most: "
            f"{_percent(best.saved_strict, 1)} % strict, {_percent(best.saved_loose, 1)} % loose, "
            f"at a test drop of {_drop(report, best)}."
        )
    if ours is not None and group.small is not None:
        at_small = _at(group.budgets, ours.criterion, group.small.strict)
        yield (
            f"with at most as many MMACs as the smaller network without early exits ({_millions(group.small.strict)} "
            f"MMACs, {_percent(group.small.accuracy)} % accuracy), {criterion_name(ours.criterion)} has "
            f"{_spread(at_small.accuracy)} %."
        )
    if group.suppressed is not None:
        seen = "a sign" if group.suppressed else "no sign"
        yield f"there is {seen} that distillation suppresses the convergence that feature difference needs."


def _drop(report: Report, summary: CriterionSummary) -> str:
    side = "above" if summary.test_drop.mean > report.max_drop else "within"
    return f"{_percent(summary.test_drop)} points, {side} the {100 * report.max_drop:.1f} allowed"


def _consistency(report: Report, seeds: int, one_more: Interval | None) -> str:
    published = f"{100 * report.published_saving:.1f} %"
    if one_more is None or seeds < SEEDS_FOR_A_VERDICT:
        what = "1 seed does" if seeds == 1 else f"{seeds} seeds do"
        return f"{what} not tell whether that is consistent with the published {published}"
    reach = f"one more seed would lie at {_hundredths(one_more.low, 1)} to {_hundredths(one_more.high, 1)} %"
    if one_more.high - one_more.low > report.published_saving:
        return f"{reach}, too wide to tell whether that is consistent with the published {published}"
    inside = one_more.low <= report.published_saving <= one_more.high
    return f"{reach}, {'consistent' if inside else 'not consistent'} with the published {published}"


def _method(report: Report) -> Iterator[str]:
    points = 100 * report.max_drop
    errors = "one standard error" if report.deviations == 1 else f"{report.deviations:g} standard errors"
    yield "## Which images were used for what\n"
    yield from _bullets(
        [
            f"Data: {report.data}"
            + (
                f", {report.train_inputs} training, {report.validation_inputs} validation and "
                f"{report.test_inputs} test images."
                if report.networks
                else "."
            ),
            "Training images: weights, ranges of the int8 segments, class means of feature difference.",
            "Validation images: the epoch, all thresholds, and the learned gate, whose thresholds are chosen on scores "
            "of gates that have not seen the image (five folds).",
            "Test images: nothing was chosen on them. They were run once through each bundle after it was final, by "
            "the code that boards run. All figures below are for test images unless stated otherwise.",
            f"The rule was declared beforehand: among all thresholds whose mean validation drop plus {errors} is at "
            f"most {points:.1f} points, take the cheapest. The margin compensates for the search. The drop on test "
            "images is reported as it came out.",
            "A drop is relative to the last exit of the same int8 segments. Its interval is paired: mean and 1.96 "
            "standard errors of the per-image differences. Over several seeds, the differences of each image are "
            "averaged first, because all seeds see the same images.",
            "The range for one more seed is from the mean and deviation over the seeds (Student's t, 95 %).",
            f"The published {100 * report.published_saving:.1f} % is for another network, another training and an "
            'accuracy called "comparable", and the criterion here is our reconstruction from the paper\'s text. So '
            "agreement with it, or the lack of it, proves little about the paper.",
        ]
    )
    yield ""


def _compute_saved(report: Report, group: Group) -> Iterator[str]:
    compute = group.compute
    assert compute is not None  # noqa: S101 - there are criteria
    yield f"## {group.branches} branches: compute saved at {100 * report.max_drop:.1f} points\n"
    yield (
        f"Without early exits: {_spread(group.accuracy_no_exits)} % accuracy at {_millions(compute.strict)} MMACs "
        f"(strict) or {_millions(compute.loose)} MMACs (loose). An input costs "
        + ", ".join(f"{_millions(macs)} at exit {k}" for k, macs in enumerate(compute.at_exit))
        + f" (in MMACs). The cost of scoring an exit is not included: at most {compute.criterion} "
        f"multiply-accumulates, {100 * compute.criterion / compute.strict:.3f} % of strict.\n"
    )
    yield from _table(
        ["criterion", "test drop, points", "95 % over images", "accuracy %", "saved strict %", "saved loose %"]
        + [f"exit {k} %" for k in range(len(compute.at_exit))],
        [
            [
                criterion_name(summary.criterion),
                _percent(summary.test_drop),
                _interval(summary.test_drop_of_inputs),
                _percent(summary.accuracy),
                _percent(summary.saved_strict, 1),
                _percent(summary.saved_loose, 1),
                *(_hundredths(share, 1) for share in summary.exit_share),
            ]
            for summary in group.criteria
        ],
    )
    yield "Each seed separately:\n"
    yield from _table(
        [
            "criterion",
            "seed",
            "thresholds",
            "validation drop",
            "test drop",
            "95 %",
            "saved strict %",
            "saved loose %",
        ],
        [
            _row_of_seed(network, point)
            for i in range(len(group.criteria))
            for network, point in _points(report, group, i)
        ],
    )


def _points(report: Report, group: Group, i: int) -> Iterator[tuple[Network, OperatingPoint]]:
    for network in report.networks:
        if network.branches == group.branches and network.variant == "full":
            yield network, network.points[i]


def _row_of_seed(network: Network, point: OperatingPoint) -> list[str]:
    return [
        criterion_name(point.criterion),
        str(network.seed),
        ", ".join(f"{value:.6g}" for value in point.thresholds),
        _hundredths(point.validation_drop),
        _hundredths(point.test_drop.mean),
        _interval(point.test_drop),
        _hundredths(point.saved_strict, 1),
        _hundredths(point.saved_loose, 1),
    ]


def _matched(report: Report) -> Iterator[str]:
    groups = [group for group in report.groups if group.budgets]
    if not groups:
        return
    yield "## At the same compute\n"
    yield (
        "Accuracy in %, at the thresholds with the best validation accuracy among those whose mean validation compute "
        "is within the budget. In brackets are the MMACs that the test images needed.\n"
    )
    for group in groups:
        budgets = list(dict.fromkeys(summary.budget_macs for summary in group.budgets))
        yield from _table(
            [f"{group.branches} branches", *(_budget(budget, group.compute) for budget in budgets)],
            [
                [criterion_name(criterion), *(_within(group.budgets, criterion, budget) for budget in budgets)]
                for criterion in dict.fromkeys(summary.criterion for summary in group.budgets)
            ],
        )


def _budget(budget: float, compute: Compute | None) -> str:
    share = "" if compute is None else f" ({100 * budget / compute.strict:.0f} % of strict)"
    return f"{_millions(budget)} MMACs{share}"


def _within(summaries: Sequence[BudgetSummary], criterion: str, budget: float) -> str:
    found = _at(summaries, criterion, budget)
    if found.accuracy is None or found.macs_per_input is None:
        return _NONE
    return f"{_percent(found.accuracy)} ({_millions(found.macs_per_input.mean)})"


def _at(summaries: Sequence[BudgetSummary], criterion: str, budget: float) -> BudgetSummary:
    return next(one for one in summaries if (one.criterion, one.budget_macs) == (criterion, budget))


def _small(report: Report) -> Iterator[str]:
    yield "## Against a smaller network without early exits\n"
    rows = []
    for group in report.groups:
        if group.small is not None:
            seeds = f"seed{'s' if len(group.small.seeds) > 1 else ''} {_numbers(group.small.seeds)}"
            what = f"smaller network, no exits, {seeds}"
            accuracy = _percent(group.small.accuracy)
            rows.append([str(group.branches), what, _millions(group.small.strict), accuracy])
            for summary in group.budgets:
                if summary.budget_macs == group.small.strict:
                    spent = _NONE if summary.macs_per_input is None else _millions(summary.macs_per_input.mean)
                    name = f"early exits, {criterion_name(summary.criterion)}"
                    rows.append([str(group.branches), name, spent, _spread(summary.accuracy)])
    if not rows:
        yield "No such network is there.\n"
        return
    yield "Criteria at no more compute than the smaller network, with thresholds from validation images:\n"
    yield from _table(["branches", "network", "MMACs", "accuracy %"], rows)


def _boards(report: Report) -> Iterator[str]:
    rows = [
        [
            str(group.branches),
            criterion_name(summary.criterion),
            _millions(summary.boards.mean),
            _millions(summary.boards.largest),
            _millions(summary.boards.most),
            f"{summary.boards.fuser / 1e3:.2f}",
            f"{summary.boards.traffic.input_bytes / group.branches:.0f}",
            f"{summary.boards.traffic.embedding_bytes / group.branches:.1f}",
            f"{summary.boards.traffic.messages:.2f}",
            _NONE if summary.boards.traffic.message_bytes is None else f"{summary.boards.traffic.message_bytes:.0f}",
        ]
        for group in report.groups
        for summary in group.criteria
    ]
    if not rows:
        return
    yield "## What each board computes and sends\n"
    yield (
        f"At the thresholds for {100 * report.max_drop:.1f} points, in gated mode, with the origin fusing. Figures are "
        "means per input over the seeds; *largest* is the largest mean of any board, *most* the most that one input "
        "can cost a board. Every board receives the input. Messages are counted without what a criterion remembers "
        "between exits.\n"
    )
    head = ["branches", "criterion", "MMACs per board", "largest", "most", "fuser, thousand MACs"]
    head += ["input bytes per board", "embedding bytes per board", "messages, total", "bytes, total"]
    yield from _table(head, rows)


def _masks(report: Report) -> Iterator[str]:
    groups = [group for group in report.groups if group.masks]
    if not groups:
        return
    yield "## Missing branches\n"
    yield (
        "Accuracy in % of every exit with branches missing. *At thresholds* uses "
        f"{criterion_name(MASK_CRITERION)} with thresholds chosen for that set of missing branches on validation "
        f"images, by the rule of {100 * report.max_drop:.1f} points relative to the last exit with the same branches "
        "missing. *Saved* is relative to the present branches without early exits (strict).\n"
    )
    for group in groups:
        exits = len(group.masks[0].accuracy)
        head = [f"{group.branches} branches, missing", "branch dropout", *(f"exit {k}" for k in range(exits))]
        head += ["at thresholds", "drop, points", "saved %"]
        ordered = sorted(group.masks, key=lambda one: (len(one.missing), one.missing, one.variant))
        yield from _table(head, [_mask_row(summary) for summary in ordered])


def _mask_row(summary: MaskSummary) -> list[str]:
    return [
        _numbers(summary.missing) or "none",
        "with" if summary.variant == "full" else "without",
        *(_percent(accuracy) for accuracy in summary.accuracy),
        _percent(summary.accuracy_at_thresholds),
        _percent(summary.test_drop),
        _percent(summary.saved_strict, 1),
    ]


def _rankings(report: Report) -> Iterator[str]:
    groups = [group for group in report.groups if group.rankings]
    if not groups:
        return
    yield "## Does distillation suppress convergence?\n"
    yield (
        "Distillation that aligns intermediate layers may leave nothing to converge, so that a feature difference "
        "carries no information. The tables give the AUROC of each criterion's score for being as right as the last "
        "exit, over all test images (1 is a perfect ranking, 0.5 is chance). We call convergence suppressed if feature "
        f"difference has less than {REQUIRED_RANKING:.0%} of max softmax's margin over 0.5 at the exits where it "
        "compares two exits; at exit 0 it compares with class means.\n"
    )
    for group in groups:
        exits = len(group.rankings[0].auroc)
        yield from _table(
            [f"{group.branches} branches", *(f"exit {k}" for k in range(exits))],
            [_ranking_row(ranking) for ranking in group.rankings],
        )
        for movement in group.movements:
            yield (
                f"Median distance from exit {movement.exit - 1} to {movement.exit}: "
                f"{_number(movement.as_good, 3)} for images on which exit {movement.exit} is as right as the last "
                f"exit, {_number(movement.worse, 3)} for the others.\n"
            )
        if group.suppressed is not None:
            yield f"{group.branches} branches: convergence is {'' if group.suppressed else 'not '}suppressed.\n"


def _ranking_row(ranking: RankingSummary) -> list[str]:
    return [criterion_name(ranking.criterion), *(_number(value, 3) for value in ranking.auroc)]


def _networks(report: Report) -> Iterator[str]:
    yield "## Networks\n"
    head = ["variant", "branches", "seed", "epochs (kept)", "seconds", "trained on", "bundle", "bytes"]
    head += ["default criterion", "saved strict %", "drop, points"]
    yield from _table(
        head,
        [
            [
                network.variant,
                str(network.branches),
                str(network.seed),
                f"{network.training.epochs} ({network.training.kept_epoch})",
                f"{network.training.seconds:.0f}",
                network.training.machine or "not recorded",
                network.exported.revision,
                str(network.exported.bytes),
                *_defaults(network),
            ]
            for network in report.networks
        ],
    )
    yield f"Seconds are for the student only. Teacher: {_teacher(report)}. Evaluated on {report.machine}.\n"
    if report.absent:
        yield "Requested but not available:\n"
        yield from _bullets(
            f"{absent.variant}, {absent.branches} branches, seed {absent.seed}: {absent.why}"
            for absent in report.absent
        )
    else:
        yield "All requested networks are included."
    yield ""


def _defaults(network: Network) -> list[str]:
    found = network.exported
    if network.variant == "small":
        return [_NONE] * 3
    return [criterion_name(found.criterion), _hundredths(found.saved_strict, 1), _hundredths(found.drop)]


def _teacher(report: Report) -> str:
    teacher = report.teacher
    if teacher is None:
        return "not found"
    machine = teacher.machine or "machine not recorded"
    accuracy = f"{100 * teacher.accuracy:.2f} % on validation images"
    return f"{teacher.epochs} epochs, {teacher.seconds:.0f} s, {machine}, {accuracy}"


def _quantisation(report: Report) -> Iterator[str]:
    rows = []
    for network in report.networks:
        found = network.exported
        last = len(found.int8_test) - 1
        for k in (last,) if network.variant == "small" else range(last + 1):
            row = [network.variant, str(network.branches), str(network.seed), str(k)]
            values = found.float_validation[k], found.int8_validation[k], found.float_test[k], found.int8_test[k]
            rows.append([*row, *(_hundredths(value) for value in values)])
    if not rows:
        return
    yield "## Before and after quantisation\n"
    yield "Accuracy in % of every exit, with no branch missing.\n"
    head = ["variant", "branches", "seed", "exit", "validation, float", "validation, int8", "test, float", "test, int8"]
    yield from _table(head, rows)


# ---------------------------------------------------------------- words and tables


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _bullets(lines: Iterable[str]) -> Iterator[str]:
    yield from (f"* {line}" for line in lines)


def criterion_name(criterion: str) -> str:
    """Return a criterion's name as people read it."""
    return _NAMES.get(criterion, criterion.replace("_", " "))


def _percent(spread: Spread, digits: int = 2) -> str:
    deviation = "" if spread.deviation is None else f" ± {_hundredths(spread.deviation, digits)}"
    return f"{_hundredths(spread.mean, digits)}{deviation}"


def _hundredths(fraction: float, digits: int = 2) -> str:
    # Adding nought turns what is rounded to -0 into 0.
    return f"{round(100 * fraction, digits) + 0.0:.{digits}f}"


def _spread(spread: Spread | None) -> str:
    return _NONE if spread is None else _percent(spread)


def _interval(interval: Interval) -> str:
    return f"{_hundredths(interval.low)} to {_hundredths(interval.high)}"


def _millions(macs: float) -> str:
    return f"{macs / 1e6:.2f}"


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
