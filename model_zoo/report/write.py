"""Puts a report together and writes it: Markdown, JSON and plots."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_zoo.recipes import WideRecipe
from model_zoo.report.analysis import Judged, group, judge
from model_zoo.report.networks import Source, Workshop
from model_zoo.report.plots import check_matplotlib, draw
from model_zoo.report.results import DEVIATIONS, MAX_DROP, PUBLISHED_SAVING, Absent, Group, Report, Teacher
from model_zoo.report.text import markdown
from model_zoo.training.machine import processor
from model_zoo.training.plans import VARIANTS, Variant, WideSettings

# The smaller network first: the others are compared at what it computes.
_ORDER: tuple[Variant, ...] = ("small", "full", "no-dropout")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a report is to be about. trained_on: what to call the machine where a checkpoint does not say it."""

    seeds: tuple[int, ...]
    branches: tuple[int, ...]
    trained_on: str | None = None


def write_report(
    recipe: WideRecipe, asked: Asked, workshop: Workshop, out: Path, progress: Callable[[str], None]
) -> Report:
    """Judge all networks that are there, and write RECIPE.md, RECIPE.json and the plots into `out`.

    Raises DataError for the data, a checkpoint or an unknown number of branches, ExportError where a tool is missing.
    """
    check_matplotlib()
    report = _collect(recipe, asked, workshop, progress)
    out.mkdir(parents=True, exist_ok=True)
    plots = draw(report, out)
    (out / f"{recipe.name}.md").write_text(markdown(report, plots), encoding="utf-8")
    (out / f"{recipe.name}.json").write_text(as_json(report), encoding="utf-8")
    return report


def as_json(report: Report) -> str:
    """Return the report as JSON, its fields named as in `model_zoo.report.results`."""
    return json.dumps(dataclasses.asdict(report), indent=1, allow_nan=False) + "\n"


def _collect(recipe: WideRecipe, asked: Asked, workshop: Workshop, progress: Callable[[str], None]) -> Report:
    judged: list[Judged] = []
    absent: list[Absent] = []
    sources: list[Source] = []
    for settings in _settings(asked):
        prepared = workshop.prepare(settings)
        if isinstance(prepared, str):
            absent.append(Absent(settings.variant, settings.branches, settings.seed, prepared))
            continue
        progress(f"judging {settings.variant}, {settings.branches} branches, seed {settings.seed}")
        judged.append(judge(prepared, _budgets(judged, settings.branches)))
        sources.append(prepared.source)
    judged = [_named(one, asked.trained_on) for one in judged]
    return Report(
        recipe=recipe.name,
        data=recipe.data_name,
        train_inputs=max((source.train_inputs for source in sources), default=0),
        validation_inputs=max((source.validation_inputs for source in sources), default=0),
        test_inputs=max((source.test_inputs for source in sources), default=0),
        machine=processor(),
        max_drop=MAX_DROP,
        deviations=DEVIATIONS,
        published_saving=PUBLISHED_SAVING,
        seeds=asked.seeds,
        branches=asked.branches,
        teacher=_teacher(sources, asked.trained_on),
        networks=tuple(
            sorted((one.network for one in judged), key=lambda one: _rank(one.variant, one.branches, one.seed))
        ),
        absent=tuple(sorted(absent, key=lambda one: _rank(one.variant, one.branches, one.seed))),
        groups=tuple(_groups(judged, asked.branches)),
    )


def _settings(asked: Asked) -> Iterator[WideSettings]:
    for branches in asked.branches:
        for variant in _ORDER:
            yield from (WideSettings(branches, seed, variant) for seed in asked.seeds)


def _budgets(judged: Sequence[Judged], branches: int) -> tuple[int, ...]:
    """Return what the smaller network of this number of branches computes, if it is there."""
    found = {
        one.network.compute.strict
        for one in judged
        if (one.network.variant, one.network.branches) == ("small", branches)
    }
    return tuple(sorted(found))


def _groups(judged: Sequence[Judged], branches: Sequence[int]) -> Iterator[Group]:
    for count in branches:
        of_count = [one for one in judged if one.network.branches == count]
        if of_count:
            yield group(count, of_count)


def _rank(variant: Variant, branches: int, seed: int) -> tuple[int, int, int]:
    return branches, VARIANTS.index(variant), seed


def _named(judged: Judged, trained_on: str | None) -> Judged:
    training = judged.network.training
    named = dataclasses.replace(training, machine=training.machine or trained_on)
    return dataclasses.replace(judged, network=dataclasses.replace(judged.network, training=named))


def _teacher(sources: Sequence[Source], trained_on: str | None) -> Teacher | None:
    found = next((source.teacher for source in sources if source.teacher is not None), None)
    return None if found is None else dataclasses.replace(found, machine=found.machine or trained_on)
