"""Accuracy, exits and cost of a bundle on labelled images, with the code that boards run.

Preprocessing, segments and criteria are those of `distree`, so what is reported here is what a board would
serve. Every input is run through all stages once; thresholds are then applied to the scores, which costs
nothing. Of wide stages the branches are run once, whatever branches are then taken to be missing: only fusion
heads, and what comes after them, are run for each set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distree.bundle.loading import Bundle
from distree.bundle.manifest import TensorSpec
from distree.bundle.preprocessing import Preprocessor
from distree.criteria import confidence, make_criterion, threshold_problem
from distree.criteria.base import Criterion, CriterionParameters, ExitEvidence
from distree.errors import CHECK_PATH, ConfigError
from distree.exits_taken import exits_taken
from distree.messages.request import CriterionMemory
from distree.tensors import Array
from distree.thresholds import NEVER
from model_zoo.boards import Boards
from model_zoo.costs import FUSER, BoardCosts, Costs, Traffic, costs_of
from model_zoo.data import LabelledExamples
from model_zoo.errors import DataError

__all__ = [
    "BoardCosts",
    "BoardMacs",
    "Collector",
    "Costs",
    "Evaluation",
    "ExitLogits",
    "ExitScores",
    "TrafficPerInput",
    "check_missing",
    "check_thresholds",
    "class_means",
    "collect_logits",
    "costs_of",
    "score_exits",
    "summarise",
    "thresholds_in_force",
    "with_boards",
]

Progress = Callable[[str], None]
_REPORT_EVERY = 2000


@dataclass(frozen=True, slots=True)
class ExitLogits:
    """Dequantised logits of every exit on every input, float64 (inputs, exits, classes); true classes.

    missing: the branches that are not there. embeddings: per exit, the dequantised embeddings of its branches,
    float64 (inputs, values), None where one is missing; () at the exit of a plain stage.
    """

    logits: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    missing: tuple[int, ...] = ()
    embeddings: tuple[tuple[npt.NDArray[np.float64] | None, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class ExitScores:
    """What a criterion makes of them, each (inputs, exits): float64 scores, int64 classes, bool correct."""

    scores: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BoardMacs:
    """Mean multiply-accumulates of one board per input, and its `strict` and `loose` as in `Costs`."""

    board: str
    macs_per_input: float
    strict: int
    loose: int


@dataclass(frozen=True, slots=True)
class TrafficPerInput:
    """Means of `Traffic` per input; message_bytes is None where messages cannot be encoded here."""

    input_bytes: float
    feature_bytes: float
    embedding_bytes: float
    decisions: float
    messages: float
    message_bytes: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A bundle on a set. Accuracies and shares are fractions; macs and bytes are means per input.

    missing: branches that were taken to be missing. boards: what each board computes; board_macs_mean and
    board_macs_max are over those that run stages or branches, without the one that fuses. feature_bytes_per_input
    are payloads of features and embeddings; traffic says the rest.
    """

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
    missing: tuple[int, ...] = ()
    boards: tuple[BoardMacs, ...] = ()
    board_macs_mean: float = 0.0
    board_macs_max: float = 0.0
    traffic: TrafficPerInput | None = None


class Collector:
    """Runs a bundle over images; `collect` then gives the logits of all exits, nobody missing or some branches.

    Each branch of the wide stages is run once here, unless what it takes depends on the branches missing before.
    Raises DataError where images or labels do not fit the bundle.
    """

    def __init__(self, bundle: Bundle, images: LabelledExamples, progress: Progress | None = None) -> None:
        _check_fit(bundle, images)
        self.bundle = bundle
        self.labels = images.labels
        self._boards = Boards(bundle)
        self._progress = progress
        preprocessor = Preprocessor(bundle.manifest)
        self._start = _Passage()
        self._start = self._pass_on(self._start, (preprocessor.tensor(image) for image in images.inputs), len(images))

    def collect(self, missing: Iterable[int] = ()) -> ExitLogits:
        """Return all exits' logits with these branches missing; ConfigError unless each wide stage keeps one."""
        absent = tuple(sorted(set(missing)))
        check_missing(self.bundle, absent)
        passage = self._start
        while passage.embeddings:
            passage = self._fuse_group(passage, absent)
        return ExitLogits(
            logits=np.stack(passage.logits, axis=1), labels=self.labels, missing=absent, embeddings=passage.known
        )

    def _pass_on(self, passage: _Passage, tensors: Iterable[Array], count: int) -> _Passage:
        """Run the plain stages that come next, and then the branches of the group of wide stages after them."""
        counts = self.bundle.branch_counts
        first = len(passage.logits)
        last = next((k for k in range(first, len(counts)) if counts[k]), len(counts))
        group = _group_from(counts, last)
        rows: list[list[list[float]]] = []
        embeddings: list[list[list[Array]]] = [[[] for _ in range(counts[k])] for k in group]
        for done, tensor in enumerate(tensors, start=1):
            logits, tensor = self._run_plain(range(first, last), tensor)
            rows.append(logits)
            for b in range(counts[last] if group else 0):
                for into, embedding in zip(embeddings, self._run_branch(group, b, tensor), strict=True):
                    into[b].append(embedding)
            if self._progress and done % _REPORT_EVERY == 0:
                self._progress(f"{done} of {count} inputs run")
        by_exit = [np.asarray([row[i] for row in rows], np.float64) for i in range(last - first)]
        return _Passage(
            logits=[*passage.logits, *by_exit],
            known=(*passage.known, *(() for _ in by_exit)),
            embeddings=[[np.concatenate(of_branch) for of_branch in of_stage] for of_stage in embeddings],
        )

    def _run_plain(self, stages: Iterable[int], tensor: Array) -> tuple[list[list[float]], Array]:
        logits: list[list[float]] = []
        for stage in stages:
            output = self._boards.run(stage, tensor)
            logits.append(output.logits)
            if output.features is not None:
                tensor = output.features
        return logits, tensor

    def _run_branch(self, group: Sequence[int], branch: int, tensor: Array) -> list[Array]:
        embeddings: list[Array] = []
        for stage in group:
            output = self._boards.run(stage, tensor, branch)
            assert output.embedding is not None  # noqa: S101 - a branch of a wide stage
            embeddings.append(output.embedding)
            if output.features is not None:
                tensor = output.features
        return embeddings

    def _fuse_group(self, passage: _Passage, absent: tuple[int, ...]) -> _Passage:
        """Run the fusion heads of a group of wide stages, and what comes after them."""
        first, features = len(passage.logits), []
        logits, known = list(passage.logits), list(passage.known)
        for stage, embeddings in enumerate(passage.embeddings, start=first):
            kept = [None if b in absent else of_branch for b, of_branch in enumerate(embeddings)]
            count = len(embeddings[0])
            rows: list[list[float]] = []
            for row in range(count):
                output = self._boards.fuse(stage, [None if one is None else one[row : row + 1] for one in kept])
                rows.append(output.logits)
                if output.features is not None:
                    features.append(output.features)
            logits.append(np.asarray(rows, np.float64))
            branches = self.bundle.stages[stage].branches
            known.append(
                tuple(
                    None if one is None else _dequantised(one, branch.embedding)
                    for one, branch in zip(kept, branches, strict=True)
                )
            )
        fused = _Passage(logits=logits, known=tuple(known))
        return self._pass_on(fused, features, len(features)) if features else fused


@dataclass(slots=True)
class _Passage:
    """How far the images have come: logits and embeddings of the exits passed, (inputs, …) each.

    embeddings: those of the group of wide stages that comes next, quantised, per stage and branch (inputs, values).
    """

    logits: list[npt.NDArray[np.float64]] = field(default_factory=list)
    known: tuple[tuple[npt.NDArray[np.float64] | None, ...], ...] = ()
    embeddings: list[list[Array]] = field(default_factory=list)


def _group_from(counts: Sequence[int], first: int) -> range:
    """Return the stages of the group of wide stages that begins at `first`; none where that is the end."""
    after = next((k for k in range(first, len(counts)) if not counts[k]), len(counts))
    return range(first, after)


def _dequantised(quantised: Array, spec: TensorSpec) -> npt.NDArray[np.float64]:
    if spec.dtype == "float32":
        return quantised.astype(np.float64)
    return (quantised.astype(np.float64) - spec.zero_point) * spec.scale


def collect_logits(
    bundle: Bundle, images: LabelledExamples, progress: Progress | None = None, missing: Iterable[int] = ()
) -> ExitLogits:
    """Run every image through all stages. Raises DataError where images or labels do not fit the bundle."""
    check_missing(bundle, missing)
    return Collector(bundle, images, progress).collect(missing)


def check_missing(bundle: Bundle, missing: Iterable[int]) -> None:
    """Raise ConfigError unless these branches exist and every wide stage has another one."""
    absent = set(missing)
    if not absent:
        return
    counts = [count for count in bundle.branch_counts if count]
    if not counts:
        raise ConfigError(f"missing branches: {bundle.name!r} has no wide stage", "name no missing branches")
    if min(absent) < 0 or max(absent) >= max(counts):
        what = f"missing branches {sorted(absent)}: {bundle.name!r} does not have them all"
        raise ConfigError(what, f"choose from 0 to {max(counts) - 1}")
    if any(absent.issuperset(range(count)) for count in counts):
        what = f"missing branches {sorted(absent)}: a wide stage of {bundle.name!r} has no others"
        raise ConfigError(what, "leave at least one branch of each wide stage")


def thresholds_in_force(bundle: Bundle, missing: Iterable[int] = ()) -> tuple[float, ...]:
    """Return the thresholds that boards use by default while these branches are missing.

    The exits of plain stages miss nobody. Without thresholds for a set, only the last exit is taken.
    """
    absent = tuple(sorted(set(missing)))
    of_set = next((row.thresholds for row in bundle.manifest.exits.masked if row.missing == absent), None)
    return tuple(
        usual if not (absent and branches) else NEVER if of_set is None else of_set[k]
        for k, (usual, branches) in enumerate(zip(bundle.thresholds, bundle.branch_counts, strict=False))
    )


def _check_fit(bundle: Bundle, images: LabelledExamples) -> None:
    if len(images) == 0:
        raise DataError(f"{images.source}: contains no inputs", "give data with inputs")
    spec = bundle.manifest.input
    if images.inputs.shape[1:] != spec.shape or images.inputs.dtype != spec.dtype:
        raise DataError(
            f"{images.source}: inputs are {images.inputs.dtype} {images.inputs.shape[1:]}, "
            f"bundle {bundle.name!r} takes {spec.dtype} {spec.shape}",
            "convert them, or choose another bundle",
        )
    if images.labels.min() < 0 or images.labels.max() >= len(bundle.labels):
        raise DataError(
            f"{images.source}: has labels outside 0 to {len(bundle.labels) - 1}, the classes of {bundle.name!r}",
            "give data for this bundle",
        )


def score_exits(
    collected: ExitLogits,
    criterion: str,
    parameters: CriterionParameters = CriterionParameters(),  # noqa: B008 - frozen
) -> ExitScores:
    """Score every exit of every input by a criterion of `distree.criteria`.

    `parameters` are the bundle's, `bundle.criterion_parameters()`. ConfigError for a criterion that is unknown, or that
    needs parameters that are not there.
    """
    made = make_criterion(criterion, parameters)
    inputs, exits, _ = collected.logits.shape
    scores, classes = np.empty((inputs, exits)), np.empty((inputs, exits), np.int64)
    embeddings = collected.embeddings or ((),) * exits
    for row, logits in enumerate(collected.logits.tolist()):
        known = [[None if one is None else one[row].tolist() for one in of_exit] for of_exit in embeddings]
        scores[row], classes[row] = _score_input(made, logits, known)
    return ExitScores(scores, classes, classes == collected.labels[:, None])


def _score_input(
    criterion: Criterion, logits: Sequence[Sequence[float]], embeddings: Sequence[Sequence[Sequence[float] | None]]
) -> tuple[list[float], list[int]]:
    memory: CriterionMemory = ()
    scores: list[float] = []
    classes: list[int] = []
    for k, (of_exit, known) in enumerate(zip(logits, embeddings, strict=True)):
        class_id, probability = confidence(of_exit)
        evidence = ExitEvidence(logits=of_exit, confidence=probability, exit=k, embeddings=known, memory=memory)
        score = criterion.score(evidence)
        memory = score.memory
        scores.append(score.value)
        classes.append(class_id)
    return scores, classes


def class_means(collected: ExitLogits, classes: int) -> list[npt.NDArray[np.float32]]:
    """Return, per branch of the first wide exit, each class's mean embedding: float32 (classes, values).

    `collected` is of training images, nobody missing. Raises DataError where a class has no image.
    """
    first = next((of_exit for of_exit in collected.embeddings if of_exit), ())
    chosen = [collected.labels == class_id for class_id in range(classes)]
    if not all(of_class.any() for of_class in chosen):
        raise DataError("class means: a class has no images", "give at least one image of each class")
    return [
        np.stack([of_branch[of_class].mean(axis=0) for of_class in chosen]).astype(np.float32)
        for of_branch in first
        if of_branch is not None
    ]


def write_audits(path: Path, criterion: str, scored: ExitScores, costs: Costs, labels: npt.NDArray[np.int64]) -> None:
    """Write what every exit says of every input, as `distree tune --replay` reads it.

    Arrays `score` float64 and `prediction` int64, both (inputs, exits), `mac` int64 (exits), `label` int64 (inputs,),
    and `criterion`, the name of what scored. Raises DataError where the file cannot be written.
    """
    try:
        with path.open("wb") as out:
            macs = np.asarray(costs.macs, np.int64)
            scores = {"score": scored.scores, "criterion": np.array(criterion)}
            np.savez_compressed(out, **scores, prediction=scored.classes, mac=macs, label=labels)  # type: ignore[arg-type]
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})", CHECK_PATH) from error


def summarise(scored: ExitScores, costs: Costs, criterion: str, thresholds: Sequence[float]) -> Evaluation:
    """Apply thresholds to scores; ConfigError unless there is one threshold of the criterion per exit but the last."""
    inputs, exits = scored.scores.shape
    check_thresholds(criterion, thresholds, exits)
    taken = exits_taken(scored.scores, thresholds)
    evaluation = Evaluation(
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
    return with_boards(evaluation, costs)


def with_boards(evaluation: Evaluation, costs: Costs) -> Evaluation:
    """Return the evaluation with what each board computes and receives, from the shares of the exits."""

    def mean(at_exit: Sequence[int]) -> float:
        return float(np.dot(evaluation.exit_share, at_exit))

    boards = tuple(BoardMacs(board.name, mean(board.macs), board.strict, board.loose) for board in costs.boards)
    computing = [board.macs_per_input for board in boards if board.board != FUSER] or [0.0]
    return replace(
        evaluation,
        missing=costs.missing,
        boards=boards,
        board_macs_mean=float(np.mean(computing)),
        board_macs_max=max(computing),
        traffic=None if costs.traffic is None else _traffic(costs.traffic, mean),
    )


def _traffic(traffic: Traffic, mean: Callable[[Sequence[int]], float]) -> TrafficPerInput:
    return TrafficPerInput(
        input_bytes=mean(traffic.input_bytes),
        feature_bytes=mean(traffic.feature_bytes),
        embedding_bytes=mean(traffic.embedding_bytes),
        decisions=mean(traffic.decisions),
        messages=mean(traffic.messages),
        message_bytes=None if traffic.message_bytes is None else mean(traffic.message_bytes),
    )


def check_thresholds(criterion: str, thresholds: Sequence[float], exits: int) -> None:
    """Raise ConfigError unless there is one threshold per exit but the last, each in the range of `criterion`."""
    if len(thresholds) != exits - 1:
        raise ConfigError(f"thresholds: {len(thresholds)} given", f"give {exits - 1}, one per exit but the last")
    if criterion and (problem := threshold_problem(criterion, thresholds)) is not None:
        raise ConfigError(*problem.at("thresholds"))
