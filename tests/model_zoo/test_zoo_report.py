"""Reports on wide recipes, from made-up outputs of the bundle `tests/data/tiny-wide`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_wide

from distree.exits_taken import exits_taken
from model_zoo.costs import costs_of
from model_zoo.criteria import usable_criteria
from model_zoo.evaluation import score_exits
from model_zoo.report import analysis, results, text
from model_zoo.report.analysis import best_within, group, judge
from model_zoo.report.measures import Interval, Spread
from model_zoo.report.results import RankingSummary
from model_zoo.report.write import Asked, as_json, write_report
from model_zoo.training.plans import NOT_TRAINED, VARIANTS, WideSettings

SEEDS = (1, 2, 3)


class FakeWorkshop:
    """Gives made-up networks, but for those that are not trained."""

    def __init__(self, untrained: set[tuple[str, int]] = frozenset()) -> None:
        self.untrained = untrained
        self.asked: list[WideSettings] = []

    def prepare(self, settings: WideSettings):
        self.asked.append(settings)
        if (settings.variant, settings.seed) in self.untrained:
            return NOT_TRAINED
        return tiny_wide.prepared(settings.seed, settings.variant)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("results")
    workshop = FakeWorkshop({("small", 3), ("no-dropout", 2)})
    lines: list[str] = []
    report = write_report(tiny_wide.recipe(), Asked(SEEDS, (2,), "a borrowed machine"), workshop, folder, lines.append)
    return report, folder


@pytest.fixture(scope="module")
def one():
    return judge(tiny_wide.prepared(1))


# ---------------------------------------------------------------- one network


def test_an_operating_point_is_what_its_thresholds_do(one) -> None:
    prepared = tiny_wide.prepared(1)
    costs, collected = costs_of(prepared.bundle.stages), prepared.test.collect()
    parameters = prepared.bundle.criterion_parameters()
    assert [point.criterion for point in one.network.points] == list(usable_criteria(prepared.bundle, parameters))
    for point in one.network.points:
        scored = score_exits(collected, point.criterion, parameters)
        taken = exits_taken(scored.scores, point.thresholds)
        at_exit = scored.correct[np.arange(len(taken)), taken]
        difference = scored.correct[:, -1].astype(float) - at_exit
        macs = np.asarray(costs.macs)[taken].mean()
        error = difference.std() / np.sqrt(len(taken))
        assert point.accuracy == pytest.approx(at_exit.mean())
        assert point.test_drop.mean == pytest.approx(difference.mean())
        assert point.test_drop.high - point.test_drop.mean == pytest.approx(1.96 * error)
        assert point.saved_strict == pytest.approx(1 - macs / costs.strict)
        assert point.saved_loose == pytest.approx(1 - macs / costs.loose)
        assert point.exit_share == pytest.approx(np.bincount(taken, minlength=3) / len(taken))
        assert point.boards.mean * 2 + point.boards.fuser == pytest.approx(macs)
        assert (one.differences[point.criterion] == difference).all()


def test_thresholds_keep_the_rule_on_validation(one) -> None:
    for point in one.network.points:
        assert point.validation_bound <= results.MAX_DROP + 1e-12
        assert point.validation_bound >= point.validation_drop


def test_what_is_chosen_does_not_look_at_test_images(one) -> None:
    """With other test images, all thresholds are the same."""
    prepared = tiny_wide.prepared(1)
    other = judge(dataclasses.replace(prepared, test=tiny_wide.recording(99))).network
    for point, changed in zip(one.network.points, other.points, strict=True):
        assert point.thresholds == changed.thresholds
        assert point.accuracy != changed.accuracy or point.criterion == "patience"
    assert [point.thresholds for point in one.network.budgets] == [point.thresholds for point in other.budgets]
    assert [point.thresholds for point in one.network.masks] == [point.thresholds for point in other.masks]


def test_curves_spend_less_the_more_may_be_lost(one) -> None:
    for curve in one.network.curves:
        on_validation = [point.thresholds for point in curve.points]
        assert [point.allowed_drop for point in curve.points] == list(results.ALLOWED_DROPS)
        assert curve.points[-1].macs_per_input <= curve.points[0].macs_per_input
        assert len(set(on_validation)) > 1


@pytest.mark.parametrize("share", [0.55, 0.7, 0.85, 1.2])
def test_the_best_within_a_budget_is_the_best_of_all_within_it(share: float) -> None:
    prepared = tiny_wide.prepared(4)
    small = tiny_wide.recording(40, 60)
    costs = costs_of(prepared.bundle.stages)
    scored = score_exits(small.collect(), "max_softmax")
    budget = share * costs.strict
    found = best_within(scored, costs, budget)
    levels = [[*np.unique(scored.scores[:, k]), 2.0] for k in range(2)]
    macs = np.asarray(costs.macs)

    def judged(thresholds) -> tuple[float, float]:
        taken = exits_taken(scored.scores, thresholds)
        return float(scored.correct[np.arange(len(taken)), taken].mean()), float(macs[taken].mean())

    within = [accuracy for accuracy, spent in map(judged, itertools.product(*levels)) if spent <= budget]
    assert found is not None
    accuracy, spent = judged(found)
    assert spent <= budget
    assert accuracy == pytest.approx(max(within))


def test_no_thresholds_are_within_less_than_the_first_exit_costs() -> None:
    costs = costs_of(tiny_wide.bundle().stages)
    scored = score_exits(tiny_wide.recording(5).collect(), "margin")
    assert best_within(scored, costs, costs.macs[0] - 1) is None
    assert best_within(scored, costs, costs.macs[0]) is not None


def test_masks_are_judged_with_those_branches_missing(one) -> None:
    prepared = tiny_wide.prepared(1)
    assert [point.missing for point in one.network.masks] == [(), *tiny_wide.MASKS]
    for point in one.network.masks:
        right = prepared.test.logits[point.missing].argmax(axis=2) == prepared.test.labels[:, None]
        assert point.accuracy == pytest.approx(tuple(right.mean(axis=0)))
        costs = costs_of(prepared.bundle.stages, point.missing)
        scored = score_exits(prepared.test.collect(point.missing), results.MASK_CRITERION)
        spent = np.asarray(costs.macs)[exits_taken(scored.scores, point.thresholds)].mean()
        assert point.saved_strict == pytest.approx(1 - spent / costs.strict)


def test_movement_is_the_distance_between_neighbouring_exits(one) -> None:
    (movement,) = one.network.movements
    assert movement.exit == 1
    recording = tiny_wide.prepared(1).test
    whole = [np.concatenate(of_exit, axis=1) for of_exit in recording.embeddings]
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in whole]
    distance = np.linalg.norm(unit[1] - unit[0], axis=1)
    right = recording.logits[()].argmax(axis=2) == recording.labels[:, None]
    as_good = right[:, 1] | ~right[:, 2]
    assert movement.as_good == pytest.approx(np.median(distance[as_good]), abs=1e-8)
    assert movement.worse == pytest.approx(np.median(distance[~as_good]), abs=1e-8)


def test_variants_are_judged_on_what_they_are_there_for() -> None:
    small, without = (judge(tiny_wide.prepared(1, variant)).network for variant in ("small", "no-dropout"))
    assert (small.points, small.masks) == ((), ())
    assert without.points == ()
    assert len(without.masks) == 3


# ---------------------------------------------------------------- over seeds


def test_a_group_summarises_its_seeds(written) -> None:
    report, _ = written
    (of_two,) = report.groups
    full = [network for network in report.networks if network.variant == "full"]
    assert of_two.seeds == SEEDS
    for i, summary in enumerate(of_two.criteria):
        drops = [network.points[i].test_drop.mean for network in full]
        assert summary.test_drop.mean == pytest.approx(np.mean(drops))
        assert summary.test_drop.deviation == pytest.approx(np.std(drops, ddof=1))
        assert summary.test_drop_of_inputs.mean == pytest.approx(np.mean(drops))
        assert summary.saved_strict.values == tuple(network.points[i].saved_strict for network in full)
        macs = [network.points[i].boards.mean for network in full]
        assert summary.boards.mean == pytest.approx(np.mean(macs))
    assert of_two.accuracy_no_exits is not None
    assert of_two.accuracy_no_exits.values == tuple(network.exported.int8_test[-1] for network in full)


def test_criteria_are_compared_at_what_the_smaller_network_computes(written) -> None:
    report, _ = written
    (of_two,) = report.groups
    assert of_two.small is not None
    assert of_two.small.seeds == (1, 2)
    at_small = [summary for summary in of_two.budgets if summary.budget_macs == of_two.small.strict]
    assert len(at_small) == len(of_two.criteria)


@pytest.mark.parametrize(
    ("moved", "sure", "suppressed"),
    [(0.9, 0.9, False), (0.71, 0.9, False), (0.69, 0.9, True), (0.4, 0.8, True), (None, 0.8, None)],
)
def test_suppressed_is_less_than_half_of_max_softmaxs_edge(moved, sure, suppressed) -> None:
    rankings = (RankingSummary("max_softmax", (0.99, sure)), RankingSummary("feature_difference", (0.1, moved)))
    assert analysis.is_suppressed(rankings) is suppressed


# ---------------------------------------------------------------- what is written


def test_everything_that_is_asked_for_is_there_or_named_as_missing(written) -> None:
    report, folder = written
    there = {(network.variant, network.branches, network.seed) for network in report.networks}
    missing = {(absent.variant, absent.branches, absent.seed) for absent in report.absent}
    assert there | missing == {(variant, 2, seed) for variant in VARIANTS for seed in SEEDS}
    assert missing == {("small", 2, 3), ("no-dropout", 2, 2)}
    words = (folder / "tiny-wide.md").read_text()
    assert "* small, 2 branches, seed 3: not trained" in words
    assert "* no-dropout, 2 branches, seed 2: not trained" in words


def test_the_json_is_the_report_and_plots_are_pictures(written) -> None:
    report, folder = written
    assert (folder / "tiny-wide.json").read_text() == as_json(report)
    document = json.loads(as_json(report))
    assert (
        document["groups"][0]["criteria"][0]["saved_strict"]["mean"] == report.groups[0].criteria[0].saved_strict.mean
    )
    words = (folder / "tiny-wide.md").read_text()
    (plot,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", words)
    assert (folder / plot).read_bytes().startswith(b"\x89PNG")


def numbers_of(document) -> set[float]:
    if isinstance(document, dict):
        return set().union(*map(numbers_of, document.values()), set())
    if isinstance(document, list):
        return set().union(*map(numbers_of, document), {len(document)})
    return {float(document)} if isinstance(document, int | float) and document is not None else set()


def test_every_figure_of_a_table_is_in_the_json(written) -> None:
    """Each cell's numbers are a number of the JSON, as it is, in per cent, in thousands, millions, or per branch."""
    report, folder = written
    known = numbers_of(json.loads(as_json(report)))
    shown = {value * factor for value in known for factor in (1.0, 100.0, 1e-3, 1e-6, 0.5)}
    rounded = {digits: {f"{round(value, digits) + 0.0:.{digits}f}" for value in shown} for digits in range(4)}
    precise = {f"{value:.6g}" for value in shown}
    rows = [line for line in (folder / "tiny-wide.md").read_text().splitlines() if line.startswith("| ")]
    checked = 0
    for cell in (cell for row in rows for cell in row.strip("| ").split(" | ")):
        if re.fullmatch(r"[-0-9.,() ±to]+", cell) is None:
            continue
        for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", cell):
            digits = len(number.partition(".")[2])
            assert number in precise or number in rounded.get(digits, ()), f"{number} of {cell!r} is not in the JSON"
            checked += 1
    assert checked > 300


def test_agreement_is_never_called_more_than_that(written) -> None:
    _, folder = written
    words = (folder / "tiny-wide.md").read_text().lower()
    assert "reproduc" not in words
    assert "consistent with the published 27.6 %" in words


def of_seeds(report, *savings: float):
    """The report with these savings of feature difference, strict and loose."""
    spread = Spread.of(savings)
    changes = {"saved_strict": spread, "saved_loose": spread}
    changes |= {"one_more_strict": spread.of_one_more(), "one_more_loose": spread.of_one_more()}
    (of_two,) = report.groups
    criteria = tuple(
        dataclasses.replace(one, **changes) if one.criterion == "feature_difference" else one for one in of_two.criteria
    )
    groups = (dataclasses.replace(of_two, criteria=criteria, seeds=tuple(range(len(savings)))),)
    return dataclasses.replace(report, groups=groups)


@pytest.mark.parametrize(
    ("savings", "verdict"),
    [
        ((0.26, 0.27, 0.29), ", consistent with the published 27.6 %"),
        ((0.10, 0.11, 0.10), ", not consistent with the published 27.6 %"),
        ((0.40, 0.41, 0.40), ", not consistent with the published 27.6 %"),
        ((0.02, 0.20, 0.30), ", too wide to tell whether that is consistent with the published 27.6 %"),
        ((0.27, 0.28), "2 seeds do not tell whether that is consistent with the published 27.6 %"),
        ((0.27,), "1 seed does not tell whether that is consistent with the published 27.6 %"),
    ],
)
def test_the_verdict_follows_from_the_figures(written, savings: tuple[float, ...], verdict: str) -> None:
    report, _ = written
    words = text.markdown(of_seeds(report, *savings), [])
    line = next(line for line in words.splitlines() if "DistrEE's criterion, saves" in line)
    assert verdict in line
    assert ("not consistent" in line) == (", not consistent" in verdict)


@pytest.mark.parametrize(("drop", "side"), [(0.0019, "within"), (0.0021, "above")])
def test_a_drop_above_what_is_allowed_is_said(written, drop: float, side: str) -> None:
    report, _ = written
    (of_two,) = report.groups
    criteria = tuple(dataclasses.replace(one, test_drop=Spread.of([drop, drop])) for one in of_two.criteria)
    changed = dataclasses.replace(report, groups=(dataclasses.replace(of_two, criteria=criteria),))
    assert f"points, {side} the 0.2 allowed" in text.markdown(changed, [])


def test_a_machine_that_no_checkpoint_names_is_called_as_asked(written) -> None:
    report, _ = written
    machines = {network.seed: network.training.machine for network in report.networks}
    assert machines == {1: "2 x86-64 cores", 2: "a borrowed machine", 3: "2 x86-64 cores"}


@pytest.mark.parametrize("there", [{"full"}, {"small"}, {"no-dropout"}, set()])
def test_few_networks_or_none_make_a_report_too(tmp_path: Path, there: set[str]) -> None:
    untrained = {(variant, 1) for variant in set(VARIANTS) - there}
    workshop = FakeWorkshop(untrained)
    report = write_report(tiny_wide.recipe(), Asked((1,), (2,)), workshop, tmp_path, lambda _: None)
    words = (tmp_path / "tiny-wide.md").read_text()
    assert (len(report.networks), len(report.absent)) == (len(there), 3 - len(there))
    assert ("No network with early exits is there" in words) == ("full" not in there)
    assert ("1 seed does not tell" in words) == ("full" in there)
    assert len(list(tmp_path.glob("*.png"))) == ("full" in there)


def test_a_group_of_one_seed_has_no_deviation(one) -> None:
    alone = group(2, [one])
    assert all(summary.saved_strict.deviation is None for summary in alone.criteria)
    assert all(summary.one_more_strict is None for summary in alone.criteria)
    assert all(isinstance(summary.test_drop_of_inputs, Interval) for summary in alone.criteria)
