"""Accuracy, exits and cost of a bundle on labelled images, with the code that boards run.

Preprocessing, segments and criteria are those of `distree`, so what is reported here is what a board would
serve. Every input is run through all stages once; thresholds are then applied to the scores, which costs
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from distree.bundle import Bundle, StageSpec
from distree.errors import ConfigError
from distree.policies import confidence, make_policy
from distree.preprocess import Preprocessor
from distree.protocols import Evidence, ExitPolicy, SegmentRuntime
from distree.runtimes.tflite import TFLiteRuntime
from distree.types import PolicyMemory
from model_zoo.data import LabelledImages
from model_zoo.errors import DataError

Progress = Callable[[str], None]
_REPORT_EVERY = 2000


@dataclass(frozen=True, slots=True)
class ExitLogits:
    """Dequantised logits of every exit on every input, float64 (inputs, exits, classes); true classes."""

    logits: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExitScores:
    """What a criterion makes of them, each (inputs, exits): float64 scores, int64 classes, bool correct."""

    scores: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Costs:
    """What an input pays that leaves at exit k: macs[k], heads counted, and feature_bytes[k] on the wire.

    strict: multiply-accumulates of all trunks and the last head only, as a network without early exits.
    loose: of all trunks and all heads, as this network with its exits never taken.
    """

    macs: tuple[int, ...]
    feature_bytes: tuple[int, ...]
    strict: int
    loose: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A bundle on a set. Accuracies and shares are fractions; macs and bytes are means per input."""

    inputs: int
    criterion: str
    thresholds: tuple[float, ...]
    accuracy: tuple[float, ...]
    accuracy_at_thresholds: float
    exit_share: tuple[float, ...]
    macs_per_input: float
    macs_no_early_exit_strict: int
    macs_no_early_exit_loose: int
    feature_bytes_per_input: float


def collect_logits(bundle: Bundle, images: LabelledImages, progress: Progress | None = None) -> ExitLogits:
    """Run every image through all stages. Raises DataError where images or labels do not fit the bundle."""
    _check_fit(bundle, images)
    preprocessor, runtime = Preprocessor(bundle.manifest), TFLiteRuntime(bundle)
    rows: list[list[list[float]]] = []
    for count, image in enumerate(images.images, start=1):
        rows.append(_run_chain(runtime, preprocessor.tensor(image), len(bundle.stages)))
        if progress and count % _REPORT_EVERY == 0:
            progress(f"{count} of {len(images)} inputs run")
    return ExitLogits(np.asarray(rows, np.float64), images.labels)


def _check_fit(bundle: Bundle, images: LabelledImages) -> None:
    if len(images) == 0:
        raise DataError(f"{images.source}: holds no inputs")
    if images.images.shape[1:] != bundle.manifest.input.shape:
        raise DataError(
            f"{images.source}: inputs are {images.images.shape[1:]}, "
            f"bundle {bundle.name!r} takes {bundle.manifest.input.shape}"
        )
    if images.labels.min() < 0 or images.labels.max() >= len(bundle.labels):
        raise DataError(
            f"{images.source}: labels outside 0 to {len(bundle.labels) - 1}, the classes of {bundle.name!r}"
        )


def _run_chain(runtime: SegmentRuntime, tensor: npt.NDArray[np.int8], stages: int) -> list[list[float]]:
    logits: list[list[float]] = []
    for stage in range(stages):
        output = runtime.run(stage, tensor)
        logits.append(output.logits)
        if output.features is not None:
            tensor = output.features
    return logits


def score_exits(collected: ExitLogits, criterion: str) -> ExitScores:
    """Score every exit of every input by a criterion of `distree.policies`; ConfigError if it is unknown."""
    policy = make_policy(criterion)
    inputs, exits, _ = collected.logits.shape
    scores, classes = np.empty((inputs, exits)), np.empty((inputs, exits), np.int64)
    for row, logits in enumerate(collected.logits.tolist()):
        scores[row], classes[row] = _score_input(policy, logits)
    return ExitScores(scores, classes, classes == collected.labels[:, None])


def _score_input(policy: ExitPolicy, logits: Sequence[Sequence[float]]) -> tuple[list[float], list[int]]:
    memory: PolicyMemory = ()
    scores: list[float] = []
    for of_exit in logits:
        score = policy.score(Evidence(logits=of_exit, memory=memory))
        memory = score.memory
        scores.append(score.value)
    return scores, [confidence(of_exit)[0] for of_exit in logits]


def exits_taken(scores: npt.NDArray[np.float64], thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """Return, per input, the first exit whose score reaches its threshold, else the last.

    scores: (inputs, exits). Returns int64 (inputs,).
    """
    sure = scores[:, :-1] >= np.asarray(thresholds, np.float64)
    last = np.ones((len(scores), 1), np.bool_)
    taken: npt.NDArray[np.int64] = np.argmax(np.concatenate([sure, last], axis=1), axis=1)
    return taken


def costs_of(stages: Sequence[StageSpec]) -> Costs:
    """Costs from a manifest's stages; the exit heads passed on the way are counted."""
    trunks, heads = [stage.macs.trunk for stage in stages], [stage.macs.exit for stage in stages]
    sent = [0] + [_feature_bytes(stage) for stage in stages[:-1]]
    return Costs(
        macs=tuple(sum(trunks[: k + 1]) + sum(heads[: k + 1]) for k in range(len(stages))),
        feature_bytes=tuple(sum(sent[: k + 1]) for k in range(len(stages))),
        strict=sum(trunks) + heads[-1],
        loose=sum(trunks) + sum(heads),
    )


def _feature_bytes(stage: StageSpec) -> int:
    if stage.features is None:
        return 0
    return int(np.prod(stage.features.shape)) * np.dtype(stage.features.dtype).itemsize


def summarise(scored: ExitScores, costs: Costs, criterion: str, thresholds: Sequence[float]) -> Evaluation:
    """Apply thresholds to scores; ConfigError unless there is one threshold per exit but the last."""
    inputs, exits = scored.scores.shape
    check_thresholds(thresholds, exits)
    taken = exits_taken(scored.scores, thresholds)
    return Evaluation(
        inputs=inputs,
        criterion=criterion,
        thresholds=tuple(thresholds),
        accuracy=tuple(float(value) for value in scored.correct.mean(axis=0)),
        accuracy_at_thresholds=float(scored.correct[np.arange(inputs), taken].mean()),
        exit_share=tuple(float(value) for value in np.bincount(taken, minlength=exits) / inputs),
        macs_per_input=float(np.asarray(costs.macs)[taken].mean()),
        macs_no_early_exit_strict=costs.strict,
        macs_no_early_exit_loose=costs.loose,
        feature_bytes_per_input=float(np.asarray(costs.feature_bytes)[taken].mean()),
    )


def check_thresholds(thresholds: Sequence[float], exits: int) -> None:
    """Raise ConfigError unless there is one threshold per exit but the last, none of them NaN."""
    if len(thresholds) != exits - 1:
        raise ConfigError(f"thresholds: {len(thresholds)} given; one per exit but the last is needed, {exits - 1} here")
    if any(value != value for value in thresholds):
        raise ConfigError("thresholds: NaN is none; give numbers, inf to never leave at an exit")
