"""Whether the parts of a manifest fit each other, which no single value shows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from distree.bundle.input_checks import input_problems
from distree.bundle.manifest import MANIFEST, BranchSpec, Exits, Manifest, StageSpec, TensorSpec
from distree.bundle.runtimes import RUNTIMES
from distree.criteria import POLICIES
from distree.errors import ConfigError

MAX_BRANCHES = 64


def check_manifest(manifest: Manifest) -> None:
    """Raise ConfigError, with the first fault, for a manifest whose parts do not fit each other."""
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
    yield from input_problems(manifest)
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
