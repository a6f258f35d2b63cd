"""Recorded audits played to a tuner: what it would have done, audit by audit, and at what cost.

A recording is an .npz file: `score` (n, exits) float, `prediction` (n, exits) integers, `mac` (exits), growing, and
optionally `label` (n,) integers and `criterion`, the name of the one that scored. The last exit's scores are ignored.
`distree zoo evaluate --audits` writes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distree.bundle.npz import read_npz
from distree.criteria import CRITERIA
from distree.errors import CHECK_PATH, ConfigError, RemoteProtocolError
from distree.exits_taken import exits_taken
from distree.regular_files import open_regular
from orchestrator.tuning.live_tuner import LiveTuner
from orchestrator.tuning.samples import AuditedInput, Vector

_NEEDED = ("score", "prediction", "mac")
_RECORD = "record one with distree zoo evaluate --audits"


MAX_BYTES = 1 << 30
"""Most memory that the arrays of a recording may take."""


@dataclass(frozen=True, slots=True)
class AuditRecording:
    """Audited inputs in the order in which they came, and the multiply-accumulates of leaving at each exit.

    `criterion` is the name of the one that scored, "" where the recording does not say.
    """

    audits: tuple[AuditedInput, ...]
    costs: Vector
    criterion: str = ""

    def shuffled(self, seed: int) -> AuditRecording:
        """Return the same audits in another order."""
        order = np.random.default_rng(seed).permutation(len(self.audits))
        return replace(self, audits=tuple(self.audits[i] for i in order))

    def head(self, count: int | None) -> AuditRecording:
        """Return the first `count` audits, all of them for None."""
        return self if count is None else replace(self, audits=self.audits[:count])


def load_recording(path: Path) -> AuditRecording:
    """Read a recording. Raises ConfigError, in one line, for a file that is not one."""
    try:
        with open_regular(path) as file:
            arrays = read_npz(file, MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}", CHECK_PATH) from None
    except RemoteProtocolError as error:
        raise ConfigError(f"{path}: {error.detail}", _RECORD) from None
    trouble = _trouble(arrays)
    if trouble is not None:
        raise ConfigError(f"{path}: {trouble}", _RECORD)
    labels = arrays["label"].tolist() if "label" in arrays else [None] * len(arrays["score"])
    rows = zip(arrays["score"][:, :-1].tolist(), arrays["prediction"].tolist(), labels, strict=True)
    audits = tuple(AuditedInput(tuple(scores), tuple(guesses), label) for scores, guesses, label in rows)
    criterion = str(arrays["criterion"]) if "criterion" in arrays else ""
    return AuditRecording(audits, tuple(map(float, arrays["mac"])), criterion)


def _trouble(arrays: dict[str, npt.NDArray[Any]]) -> str | None:
    for name in _NEEDED:
        if name not in arrays:
            return f"has no {name!r}; it needs {', '.join(_NEEDED)}"
    score, prediction, mac = (arrays[name] for name in _NEEDED)
    if score.ndim != 2 or score.dtype.kind != "f" or score.shape[1] < 2 or not len(score):
        return f"score: floats of shape (n, exits), two exits or more, are needed; this is {score.dtype} {score.shape}"
    if prediction.shape != score.shape or prediction.dtype.kind not in "iu":
        return f"prediction: integers of shape {score.shape} are needed; this is {prediction.dtype} {prediction.shape}"
    if np.isnan(score[:, :-1]).any():
        return f"score: row {int(np.isnan(score[:, :-1]).any(axis=1).argmax())} holds NaN"
    if mac.shape != score.shape[1:] or mac.dtype.kind not in "iuf" or not (np.diff(mac) > 0).all() or mac[0] < 0:
        return f"mac: {score.shape[1]} numbers are needed, growing from exit to exit; this is {mac.tolist()}"
    label = arrays.get("label")
    if label is not None and (label.shape != score.shape[:1] or label.dtype.kind not in "iu"):
        return f"label: integers of shape {score.shape[:1]} are needed; this is {label.dtype} {label.shape}"
    criterion = arrays.get("criterion")
    if criterion is not None and str(criterion) not in CRITERIA:
        return f"criterion: one of {', '.join(CRITERIA)} is needed; this is {str(criterion)[:40]!r}"
    return None


@dataclass(frozen=True, slots=True)
class Step:
    """From `audits` audits on, these thresholds were in force.

    saved: share of the last exit's cost that they save on the whole recording. loss: their mean loss there.
    """

    audits: int
    thresholds: Vector
    saved: float
    loss: float


@dataclass(frozen=True, slots=True)
class Replay:
    """What a tuner did. answered_loss and answered_saved: means over all inputs as they were answered meanwhile."""

    tuner: str
    audits: int
    steps: tuple[Step, ...]
    answered_loss: float
    answered_saved: float


def replay(tuner: LiveTuner, recording: AuditRecording) -> Replay:
    """Play a recording to a tuner; each audit is answered by the thresholds in force before it was seen."""
    costs, judged = recording.costs, _Judge(recording)
    changes: list[tuple[int, Vector]] = [(0, tuner.thresholds)]
    losses, saved = [], []
    for count, audit in enumerate(recording.audits, start=1):
        taken = int(exits_taken(audit.scores, changes[-1][1]))
        losses.append(audit.losses()[taken])
        saved.append(1.0 - costs[taken] / costs[-1])
        tuner.observe(audit)
        if tuner.thresholds != changes[-1][1]:
            changes.append((count, tuner.thresholds))
    return Replay(
        tuner=tuner.name,
        audits=len(recording.audits),
        steps=tuple(Step(count, vector, *judged(vector)) for count, vector in changes),
        answered_loss=float(np.mean(losses)),
        answered_saved=float(np.mean(saved)),
    )


class _Judge:
    """Knows what thresholds save and lose on a whole recording."""

    def __init__(self, recording: AuditRecording) -> None:
        self._scores = np.array([audit.scores for audit in recording.audits])
        self._losses = np.array([audit.losses() for audit in recording.audits])
        self._costs = np.array(recording.costs)
        self._known: dict[Vector, tuple[float, float]] = {}

    def __call__(self, vector: Vector) -> tuple[float, float]:
        """Return (share of the last exit's cost saved, mean loss)."""
        if vector not in self._known:
            taken = exits_taken(self._scores, vector)
            saved = 1.0 - self._costs[taken].mean() / self._costs[-1]
            loss = self._losses[np.arange(len(taken)), taken].mean()
            self._known[vector] = float(saved), float(loss)
        return self._known[vector]


def thinned(steps: Sequence[Step], most: int) -> list[Step]:
    """Return at most `most` steps, the first and the last among them, evenly spread over the others."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(k * (len(steps) - 1) / (most - 1))] for k in range(most)]
