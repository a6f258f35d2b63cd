"""Inputs: when they come, recorded or made up, and what exits say of them.

An input is a row of a table: the score and the class of every exit, as `distree zoo evaluate --audits` records them.
The number of the row, its `ident`, stands in the eight bytes of its tensor, so it comes out of the messages by which
nodes pass it on. A drift chooses other rows, or appends altered ones.

Nodes compute scores from logits. So that they come to the recorded score, to the last bit and whatever criterion it was
recorded with, plans name the criterion `energy` here and the predicted class has the score as its only logit that
counts: log(exp(s)) = s.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distree import tensors
from distree.criteria.max_softmax import MaxSoftmax
from distree.errors import ConfigError
from distree.exits_taken import exits_taken
from distree.messages.request import Tensor
from distree.node.settings import Shape
from distree.segments import SegmentOutput
from orchestrator.simulator.config import Drift, FleetConfig, SyntheticConfig, TrafficConfig
from orchestrator.tuning.replay import load_recording
from orchestrator.tuning.samples import Vector

CRITERION = "energy"

TENSOR: Shape = ("uint8", (1, 8))
"""Shape of every tensor: of inputs, features and embeddings."""

_LEAST = -1.7e308  # The logit of a class that is not predicted.
_LIMIT = 1e300  # Scores beyond it are infinite, which no logit is.


@dataclass(frozen=True, slots=True)
class Table:
    """scores: (n, exits − 1) float64. predictions: (n, exits) int64. costs: MACs of leaving at each exit.

    labels: (n,) int64, or None where the truth is not known. criterion: the name of what scored, "" if unknown.
    """

    scores: npt.NDArray[np.float64]
    predictions: npt.NDArray[np.int64]
    costs: Vector
    labels: npt.NDArray[np.int64] | None
    criterion: str = ""

    @property
    def truth(self) -> npt.NDArray[np.int64]:
        """The labels, or the last exit's predictions where they are unknown: (n,)."""
        return self.predictions[:, -1] if self.labels is None else self.labels

    def judge(self, thresholds: Vector) -> tuple[float, float]:
        """Return (share of the last exit's cost saved, mean loss) of thresholds on all rows."""
        taken = exits_taken(self.scores, thresholds)
        saved = 1.0 - np.array(self.costs)[taken].mean() / self.costs[-1]
        answers = self.predictions[np.arange(len(taken)), taken]
        return float(saved), float((answers != self.predictions[:, -1]).mean())


def load_table(config: TrafficConfig, seed: int) -> Table:
    """Read the recorded inputs or make synthetic ones. Raises ConfigError, in one line, for a file that is not one."""
    if config.recorded is None:
        return synthetic(config.synthetic or SyntheticConfig(), seed)
    recording = load_recording(config.recorded)
    labels = [audit.label for audit in recording.audits]
    return Table(
        scores=np.array([audit.scores for audit in recording.audits], np.float64),
        predictions=np.array([audit.predictions for audit in recording.audits], np.int64),
        costs=recording.costs,
        labels=None if labels[0] is None else np.array(labels, np.int64),
        criterion=recording.criterion,
    )


def synthetic(config: SyntheticConfig, seed: int) -> Table:
    """Make inputs of a network whose exits grow surer from one to the next.

    An input's difficulty d is even between 0 and 1; exit l knows it with probability
    p = 1/K + (1 − 1/K) / (1 + exp(−sharpness · (ability_l − d))), which is its score: it is calibrated. An input that
    an exit knows, all later ones know; exits that are wrong agree about the wrong class.
    """
    rng = np.random.default_rng(seed)
    count, classes = config.inputs, config.classes
    difficulty = rng.random((count, 1))
    sure = 1.0 / (1.0 + np.exp(-config.sharpness * (np.array(config.ability) - difficulty)))
    knows = 1.0 / classes + (1.0 - 1.0 / classes) * sure
    truth = rng.integers(classes, size=count)
    wrong = (truth + 1 + rng.integers(classes - 1, size=count)) % classes
    is_right = rng.random((count, 1)) < knows
    return Table(
        scores=knows[:, :-1],
        predictions=np.where(is_right, truth[:, None], wrong[:, None]),
        costs=config.macs,
        labels=truth,
        criterion=MaxSoftmax.name,
    )


class Traffic:
    """Draws inputs from a table, and says when the next one comes and what the exits say of it.

    `phases` has the moments at which drifts begin or end; `begin` is to be called at each. Raises ConfigError for a
    drift that leaves no inputs.
    """

    def __init__(self, table: Table, config: FleetConfig) -> None:
        self.costs = table.costs
        self.exits = len(table.costs)
        self.classes = int(max(table.predictions.max(), table.truth.max(), 1)) + 1
        self._config, self._table = config.traffic, table
        self._scores: list[list[float]] = []
        self._predictions: list[list[int]] = []
        self._labels: list[int] = []
        self._random = random.Random(f"{config.seed} traffic")  # noqa: S311 - a simulation has to be repeatable
        self._altered_by = np.random.default_rng(config.seed)
        self._place = -1
        # As many as the tables have rows.
        self._tensors: dict[int, Tensor] = {}
        self._outputs: dict[tuple[int, int], SegmentOutput] = {}
        self._rows = self._append(table.scores, table.predictions)
        self._pools: dict[float, list[int]] = {0.0: self._rows.tolist()} | {
            at_s: self._drifted(config.drift, at_s) for at_s in _moments(config)
        }
        self.phases = tuple(self._pools)
        self._pool = self._pools[0.0]

    def begin(self, phase: float) -> None:
        """Apply the drifts of a phase to inputs from now on."""
        self._pool = self._pools[phase]

    def _append(self, scores: npt.NDArray[np.float64], predictions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Take in a table's rows, altered or not; return their idents."""
        start = len(self._labels)
        self._scores += np.clip(scores, -_LIMIT, _LIMIT).tolist()
        self._predictions += predictions.tolist()
        self._labels += self._table.truth.tolist()
        return np.arange(start, len(self._labels))

    def _drifted(self, drifts: Sequence[Drift], now: float) -> list[int]:
        """Return the idents of the inputs under the drifts of a moment."""
        scores, predictions, truth = self._table.scores, self._table.predictions, self._table.truth
        rows, is_altered = np.arange(len(truth)), False
        for drift in drifts:
            if not drift.at_s <= now < drift.at_s + drift.for_s:
                continue
            match drift.kind:
                case "classes":
                    rows = rows[np.isin(truth[rows], drift.classes)]
                case "harder":
                    least_sure_first = np.argsort(self._table.scores[rows].mean(axis=1), kind="stable")
                    rows = np.sort(rows[least_sure_first[: max(1, round(drift.share * len(rows)))]])
                case "scores":
                    scores, is_altered = scores + drift.by, True
                case "predictions":
                    predictions, is_altered = self._mistaken(predictions, drift.share), True
            if not len(rows):
                raise ConfigError("drift: classes: there are no inputs of these classes", "name others")
        idents = self._append(scores, predictions) if is_altered else self._rows
        drawn_from: list[int] = idents[rows].tolist()
        return drawn_from

    def _mistaken(self, predictions: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
        """Return the predictions with a share of each early exit's made wrong."""
        rng, early = self._altered_by, predictions[:, :-1]
        shift = 1 + rng.integers(self.classes - 1, size=early.shape)
        wrong = np.where(rng.random(early.shape) < share, (early + shift) % self.classes, early)
        return np.hstack([wrong, predictions[:, -1:]])

    # ------------------------------------------------------------ inputs

    def next_at(self, now: float, rate_hz: float | None = None) -> float:
        """Return when an origin's next input comes, after one at `now`; `rate_hz` is its own rate, if it has one."""
        usual_hz = self._config.rate_hz if rate_hz is None else rate_hz
        while True:
            times, until = self._times(now)
            at_s = now + self._random.expovariate(usual_hz * times)
            if at_s < until:
                return at_s
            # The time to the next input does not depend on how long none has come.
            now = until

    def _times(self, now: float) -> tuple[float, float]:
        """Return the factor on the rate of inputs at a time, and until when it holds."""
        bursts = self._config.bursts
        if bursts is None:
            return 1.0, math.inf
        count = math.floor(now / bursts.every_s)
        ends_at, next_at = count * bursts.every_s + bursts.for_s, (count + 1) * bursts.every_s
        return (bursts.times, ends_at) if now < ends_at else (1.0, max(next_at, math.nextafter(now, math.inf)))

    def draw(self) -> int:
        """Return the ident of a fresh input."""
        pool = self._pool
        if self._config.order == "recorded":
            self._place += 1
            return pool[self._place % len(pool)]
        return pool[int(self._random.random() * len(pool))]

    def tensor(self, ident: int) -> Tensor:
        """Return the tensor by which an input is known."""
        known = self._tensors.get(ident)
        if known is None:
            known = self._tensors[ident] = tensors.encode(_array(ident))
        return known

    # ------------------------------------------------------------ what exits say

    def prediction(self, ident: int, exit: int) -> int:
        """Return the class that an exit predicts."""
        return self._predictions[ident][exit]

    def label(self, ident: int) -> int:
        """Return the true class, or the last exit's prediction where it is unknown."""
        return self._labels[ident]

    def ran(self, stage: int, tensor: Tensor) -> SegmentOutput:
        """Return what a plain stage's segment, or the fusion head of a wide one, gives for an input."""
        ident = _ident(tensor)
        known = self._outputs.get((stage, ident))
        if known is None:
            features = _array(ident) if stage < self.exits - 1 else None
            known = SegmentOutput(features=features, logits=self._logits(stage, ident))
            self._outputs[stage, ident] = known
        return known

    def branch_ran(self, stage: int, tensor: Tensor) -> SegmentOutput:
        """Return what a branch's segment gives: features for its own next stage, and an embedding."""
        array = _array(_ident(tensor))
        return SegmentOutput(features=array if stage < self.exits - 1 else None, logits=[], embedding=array)

    def _logits(self, stage: int, ident: int) -> list[float]:
        # Classes after the predicted one are left out: they would change nothing, and take time.
        logits = [_LEAST] * (self._predictions[ident][stage] + 1)
        # The last exit's score is ignored.
        logits[-1] = self._scores[ident][stage] if stage < self.exits - 1 else 0.0
        return logits


def _ident(tensor: Tensor) -> int:
    # Only the zeros of probes are packed: they stand for no input, and any will do.
    return int.from_bytes(tensor.payload, "little") if tensor.codec == "raw" else 0


def _array(ident: int) -> npt.NDArray[Any]:
    return np.frombuffer(ident.to_bytes(8, "little"), np.uint8).reshape(TENSOR[1])


def _moments(config: FleetConfig) -> list[float]:
    """Return when a drift begins or ends, in order."""
    moments = {drift.at_s for drift in config.drift} | {drift.at_s + drift.for_s for drift in config.drift}
    return sorted(moment for moment in moments if moment < config.duration_s)
