"""Whether the parts of a manifest fit each other, which no single value can show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from distree.bundle.input_checks import input_problems
from distree.bundle.manifest import BranchSpec, Exits, Golden, Manifest, StageSpec, TensorSpec
from distree.bundle.runtimes import RUNTIMES
from distree.criteria import CRITERIA, threshold_problem
from distree.errors import ConfigError, Problem
from distree.printable import quoted

MAX_BRANCHES = 64


def check_manifest(manifest: Manifest, path: Path) -> None:
    """Raise ConfigError, with the first fault, for a manifest whose parts do not fit each other; `path` is its own."""
    for fault in _problems(manifest):
        raise ConfigError(*fault.at(str(path)))


def _problems(manifest: Manifest) -> Iterable[Problem]:
    stages = manifest.stages
    if manifest.runtime not in RUNTIMES:
        yield Problem(f"runtime: unknown {quoted(manifest.runtime)}", f"use one of {', '.join(RUNTIMES)}")
    if not stages:
        yield Problem("stages: none given", "give at least one")
    if len(manifest.labels) < 2:
        yield Problem(f"labels: {len(manifest.labels)} given", "give at least two")
    yield from input_problems(manifest)
    yield from _exit_problems(manifest.exits, stages)
    yield from _golden_problems(manifest.golden, len(stages))
    for k, stage in enumerate(stages):
        before, after = stages[k - 1] if k else None, stages[k + 1] if k + 1 < len(stages) else None
        yield from _stage_problems(k, stage, after, len(manifest.labels))
        if stage.branches:
            yield from _wide_problems(k, stage, before, after)


def _exit_problems(exits: Exits, stages: tuple[StageSpec, ...]) -> Iterable[Problem]:
    if exits.criterion not in CRITERIA:
        yield Problem(f"exits.criterion: unknown {quoted(exits.criterion)}", f"use one of {', '.join(CRITERIA)}")
    yield from _threshold_problems("exits.thresholds", exits.criterion, exits.thresholds, len(stages) - 1)
    if exits.parameters is not None:
        yield from _file_problems("exits.parameters.file", exits.parameters.file)
    widest = max((len(stage.branches) for stage in stages), default=0)
    seen: set[tuple[int, ...]] = set()
    for i, masked in enumerate(exits.masked):
        where = f"exits.masked[{i}]"
        yield from _threshold_problems(f"{where}.thresholds", exits.criterion, masked.thresholds, len(stages) - 1)
        for fault in _mask_problems(masked.missing, widest):
            yield fault.at(f"{where}.missing")
        if masked.missing in seen:
            yield Problem(f"{where}.missing: {list(masked.missing)} is given twice", "remove one of the two")
        seen.add(masked.missing)


def _threshold_problems(where: str, criterion: str, thresholds: tuple[float, ...], needed: int) -> Iterable[Problem]:
    if len(thresholds) != needed:
        yield Problem(f"{where}: {len(thresholds)} given", f"give {needed}, one per exit but the last")
    if (fault := threshold_problem(criterion, thresholds)) is not None:
        yield fault.at(where)


def _mask_problems(missing: tuple[int, ...], widest: int) -> Iterable[Problem]:
    if not widest:
        yield Problem("no stage is wide, so no branch can be missing", "remove the entry")
    elif not missing or any(one >= next_one for one, next_one in itertools.pairwise(missing)):
        yield Problem(f"{list(missing)} is not in order", "give at least one branch, each once, in ascending order")
    elif missing[0] < 0 or missing[-1] >= widest:
        yield Problem(f"{list(missing)} has a branch that does not exist", f"give branches from 0 to {widest - 1}")
    elif len(missing) == widest:
        yield Problem(f"{list(missing)} are all branches", "leave out at least one")


def _golden_problems(golden: Golden, stages: int) -> Iterable[Problem]:
    if golden.stage_tolerances and len(golden.stage_tolerances) != stages:
        yield Problem(f"golden.stage_tolerances: {len(golden.stage_tolerances)} given", f"give {stages}, one per stage")
    if min(golden.tolerance, *golden.stage_tolerances, 0) < 0:
        yield Problem("golden: a tolerance is below 0", "give 0 or more")


def _file_problems(where: str, name: str) -> Iterable[Problem]:
    if Path(name).name != name:
        yield Problem(f"{where}: {quoted(name)} is not a plain file name", "give a file name without a folder")


def _stage_problems(k: int, stage: StageSpec, after: StageSpec | None, classes: int) -> Iterable[Problem]:
    where = f"stages[{k}]"
    yield from _file_problems(f"{where}.segment", stage.segment)
    for name, tensor in (("input", stage.input), ("features", stage.features), ("logits", stage.logits)):
        yield from _tensor_problems(f"{where}.{name}", tensor)
    if math.prod(stage.logits.shape) != classes:
        yield Problem(
            f"{where}.logits.shape: {math.prod(stage.logits.shape)} logits for {classes} labels",
            "make the two numbers equal",
        )
    if after is None:
        if stage.features is not None:
            yield Problem(f"{where}.features: the last stage has none", "remove them")
    elif stage.branches and after.branches:
        if stage.features is not None:
            yield Problem(
                f"{where}.features: the next wide stage takes the branches' features, not the fusion head's",
                "remove them",
            )
    elif stage.features is None:
        yield Problem(f"{where}.features: missing", "add them: the next stage takes them")
    else:
        for name, taken in _inputs(k + 1, after):
            if not _fits(stage.features, taken):
                yield _mismatch(f"{where}.features", name)


def _inputs(k: int, stage: StageSpec) -> Iterator[tuple[str, TensorSpec]]:
    if not stage.branches:
        yield f"stages[{k}].input", stage.input
    for b, branch in enumerate(stage.branches):
        yield f"stages[{k}].branches[{b}].input", branch.input


def _wide_problems(k: int, stage: StageSpec, before: StageSpec | None, after: StageSpec | None) -> Iterable[Problem]:
    where, branches = f"stages[{k}]", stage.branches
    if not 2 <= len(branches) <= MAX_BRANCHES:
        yield Problem(f"{where}.branches: {len(branches)} given", f"give 2 to {MAX_BRANCHES}")
    if stage.input != branches[0].input:
        yield Problem(f"{where}.input: not that of branches[0]", "make the two equal")
    if before is None or not before.branches:
        for name, taken in _inputs(k, stage):
            if not _fits(branches[0].input, taken):
                yield Problem(
                    f"{name}: not that of branches[0], although all branches receive one tensor", "make the two equal"
                )
    elif len(before.branches) != len(branches):
        yield Problem(
            f"{where}.branches: {len(branches)} given, {len(before.branches)} at stages[{k - 1}]",
            "give both the same number of branches",
        )
    for b, branch in enumerate(branches):
        yield from _branch_problems(f"{where}.branches[{b}]", branch)
    takers = after.branches if after is not None else ()
    if takers and len(takers) != len(branches):
        return  # reported at that stage
    for b, (branch, taker) in enumerate(itertools.zip_longest(branches, takers)):
        yield from _handover_problems(f"{where}.branches[{b}]", branch, f"stages[{k + 1}].branches[{b}]", taker)


def _branch_problems(where: str, branch: BranchSpec) -> Iterable[Problem]:
    yield from _file_problems(f"{where}.segment", branch.segment)
    for name, tensor in (("input", branch.input), ("features", branch.features)):
        yield from _tensor_problems(f"{where}.{name}", tensor)
    embedding = branch.embedding
    if len(embedding.shape) != 2 or embedding.shape[0] != 1 or embedding.shape[1] < 1:
        yield Problem(f"{where}.embedding.shape: received {list(embedding.shape)}", "give [1, number of values]")
    if embedding.dtype == "float16":
        yield Problem(f"{where}.embedding.dtype: float16 is not supported", "use int8, uint8 or float32")
    # A missing embedding is filled with the zero point, so that must be one of its values.
    yield from _tensor_problems(f"{where}.embedding", embedding)


def _tensor_problems(where: str, tensor: TensorSpec | None) -> Iterable[Problem]:
    if tensor is None:
        return
    if tensor.dtype in ("float32", "float16"):
        if (tensor.scale, tensor.zero_point) != (1.0, 0):
            yield Problem(f"{where}: {tensor.dtype} values have no scale and no zero point", "remove both")
        return
    bounds = np.iinfo(tensor.dtype)
    if not bounds.min <= tensor.zero_point <= bounds.max:
        yield Problem(f"{where}.zero_point: {tensor.zero_point} is out of range", f"give {bounds.min} to {bounds.max}")
    if not 0 < tensor.scale < math.inf:
        yield Problem(f"{where}.scale: {tensor.scale:g} is out of range", "give a finite value above 0")


def _handover_problems(where: str, branch: BranchSpec, next_where: str, taker: BranchSpec | None) -> Iterable[Problem]:
    if taker is None:
        if branch.features is not None:
            yield Problem(f"{where}.features: the last wide stage in a row has none", "remove them")
    elif branch.features is None:
        yield Problem(f"{where}.features: missing", "add them: the next stage takes them")
    elif not _fits(branch.features, taker.input):
        yield _mismatch(f"{where}.features", f"{next_where}.input")


def _mismatch(where: str, taker: str) -> Problem:
    return Problem(f"{where}: not what {taker} takes", "make dtype, shape, scale and zero_point of both equal")


def _fits(features: TensorSpec, taken: TensorSpec) -> bool:
    # Scales of neighbouring segments may differ in the last digits: converters compute them separately.
    return (features.dtype, features.shape, features.zero_point) == (
        taken.dtype,
        taken.shape,
        taken.zero_point,
    ) and math.isclose(features.scale, taken.scale, rel_tol=1e-5)
