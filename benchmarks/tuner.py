"""The tuners judged: is the certificate's promise kept, what is saved, how soon is a shift heard.

Runs bundles over data once, keeps what every exit said in `--work`, and plays audits from these recordings to tuners:

    python -m benchmarks.tuner --on fashion=/usr/share/datasets/fashion-mnist --on cifar10-wide=cifar10_jpeg.npz \\
        --work tuner.work --out docs/results

A *split* is one seeded sequence of audits, drawn with replacement from the recording of the test set. So the recording
is the distribution that audits come from, they are independent, and the true loss of any thresholds is known exactly:
their mean over the whole recording. Without replacement, the tuner would see a good part of the inputs that it is
judged on, and draws would depend on each other. Paths and the bandit's levels come from the validation set.

The *oracle* knows the recording: of all thresholds with a mean loss of at most ε, it takes those that save most. The
first exit's are searched on a grid of quantiles, the second exit's among all scores.

Writes tuner.json, and tuner.md and plots from it. `--render` writes the latter two anew from a tuner.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from distree.bundle.loading import Bundle, load_bundle
from distree.errors import DistreeError
from distree.thresholds import NEVER
from model_zoo.costs import costs_of
from model_zoo.data import HELD_BACK, LabelledExamples, is_divided, load_idx_set, load_split
from model_zoo.evaluation import collect_logits, score_exits, write_audits
from orchestrator.tuning.live_tuner import LiveTuner
from orchestrator.tuning.samples import AuditedInput, Vector, losses_of
from orchestrator.tuning.tuners import Bandit, Certified
from orchestrator.tuning.tuners.bandit import spread_levels
from orchestrator.tuning.tuners.betting import Certificate
from orchestrator.tuning.tuners.certified import ALARM_HEIGHT, PATH_AUDITS
from orchestrator.tuning.tuners.path import safe_to_risky

Floats = npt.NDArray[np.float64]
Table = dict[str, Any]

EPSILONS = (0.005, 0.01, 0.02)
DELTA = 0.05
CURVE_EVERY = 100
HAND_PICKED = 0.9
GRID = 501
GIVEN = "given"
GATHERED = "gathered"
REGIMES = {GIVEN: "C0", GATHERED: "C2"}
"""Where the path comes from, and how it is drawn: the validation set, or the first audits, which is the default."""
GOAL = 0.9
"""Share of the oracle's saving that is looked for."""
LONG_SPLITS, LONG = 50, 8000
"""Splits, and audits of each, that tell when the goal is reached."""
BANDIT_SPLITS = 200
NULL_RUNS, NULL_AUDITS = 4000, 20_000
PATIENCE = 4000
"""Audits after a shift within which an alarm is waited for."""


# ---------------------------------------------------------------- recordings


@dataclass(frozen=True)
class Recording:
    """What every exit said of n inputs.

    scores: (n, exits − 1). predictions: (n, exits). costs: (exits,). labels: (n,).
    """

    scores: Floats
    predictions: npt.NDArray[np.int64]
    costs: Floats
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def read(cls, path: Path) -> Recording:
        with np.load(path) as found:
            return cls(found["score"][:, :-1], found["prediction"], found["mac"].astype(float), found["label"])

    def audits(self) -> list[AuditedInput]:
        """Without labels: a site has none."""
        rows = zip(self.scores.tolist(), self.predictions.tolist(), strict=True)
        return [AuditedInput(tuple(scores), tuple(predictions)) for scores, predictions in rows]

    def losses(self) -> Floats:
        """Return the loss of leaving at each exit: (n, exits) of 0 and 1."""
        return np.asarray(self.predictions != self.predictions[:, -1:], np.float64)


class Judge:
    """Says what thresholds truly do: their means over a whole recording. Remembers what it was asked."""

    def __init__(self, recording: Recording) -> None:
        # Columns, for a split asks of hundreds of vectors.
        self._scores = np.ascontiguousarray(recording.scores.T)
        right = (recording.predictions == recording.labels[:, None]).astype(float)
        saved = np.broadcast_to(1.0 - recording.costs / recording.costs[-1], right.shape)
        self._means = np.stack([saved, recording.losses(), right[:, -1:] - right]).transpose(2, 0, 1) / len(recording)
        self._known: dict[Vector, tuple[float, float, float]] = {}

    def __call__(self, vector: Vector) -> tuple[float, float, float]:
        """Return (share of compute saved, mean loss, accuracy drop)."""
        if vector not in self._known:
            total = np.zeros(3)
            inside = np.ones(self._scores.shape[1], np.bool_)
            for threshold, scores, means in zip(vector, self._scores, self._means, strict=False):
                leaves = inside & (scores >= threshold)
                inside &= ~leaves
                total += means @ leaves
            self._known[vector] = float(total[0]), float(total[1]), float(total[2])
        return self._known[vector]


def oracle(recording: Recording, epsilon: float) -> tuple[Vector, float]:
    """Return the thresholds of two early exits that save most with a mean loss of at most epsilon, and the saving."""
    first, second = recording.scores.T
    losses, saved = recording.losses(), 1.0 - recording.costs / recording.costs[-1]
    best: tuple[Vector, float] = ((NEVER, NEVER), 0.0)
    for threshold in (NEVER, *np.unique(np.quantile(first, np.linspace(0, 1, GRID), method="lower")).tolist()):
        leave = first >= threshold
        order = np.flatnonzero(~leave)[np.argsort(-second[~leave], kind="stable")]
        cuts = np.append(second[order], -math.inf)
        # Inputs of one score leave together.
        whole = np.append(True, cuts[1:] < cuts[:-1])
        loss = (losses[leave, 0].sum() + np.append(0.0, np.cumsum(losses[order, 1]))) / len(recording)
        save = (saved[0] * leave.sum() + saved[1] * np.arange(len(order) + 1)) / len(recording)
        allowed = np.where(whole & (loss <= epsilon), save, -1.0)
        k = int(allowed.argmax())
        if allowed[k] > best[1]:
            best = (threshold, NEVER if k == 0 else float(cuts[k - 1])), float(allowed[k])
    return best


def shifted(images: LabelledExamples, shift: str, seed: int = 0) -> LabelledExamples:
    """Return the images as a worse camera would take them."""
    pixels = images.inputs.astype(float)
    match shift:
        case "noise":
            pixels = pixels + np.random.default_rng(seed).normal(0.0, 50.0, pixels.shape)
        case "blur":
            padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
            height, width = pixels.shape[1:3]
            parts = [padded[:, y : y + height, x : x + width] for y in range(5) for x in range(5)]
            pixels = np.mean(parts, axis=0)
        case "contrast":
            pixels = 128.0 + 0.3 * (pixels - 128.0)
        case _:
            raise ValueError(f"no shift is called {shift!r}")
    made = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return LabelledExamples(made, images.labels, images.index, f"{images.source}, {shift}")


PICTURES = ("noise", "blur", "contrast")
SHIFTS = (*PICTURES, "class mix")


def hardest_class(recording: Recording) -> int:
    """Return the class whose first exits disagree most with the last one."""
    losses = recording.losses()[:, 0]
    means = [losses[recording.labels == label].mean() for label in range(int(recording.labels.max()) + 1)]
    return int(np.argmax(means))


def only(recording: Recording, label: int) -> Recording:
    """Return the inputs of one class alone."""
    kept = recording.labels == label
    return Recording(recording.scores[kept], recording.predictions[kept], recording.costs, recording.labels[kept])


class Shelf:
    """Recordings of one bundle, made once and kept in a folder."""

    def __init__(self, name: str, data: Path, work: Path) -> None:
        self.bundle: Bundle = load_bundle(name)
        self._data, self._work = data, work

    def get(self, what: str) -> Recording:
        """Return the recording of `validation`, of `test`, or of the test set under one of `PICTURES`."""
        path = self._work / f"{self.bundle.name}-{self.bundle.revision}-{what}.npz"
        if not path.exists():
            self._work.mkdir(parents=True, exist_ok=True)
            images = self._images("validation" if what == "validation" else "test")
            if what in PICTURES:
                images = shifted(images, what)
            scored = score_exits(
                collect_logits(self.bundle, images), self.bundle.criterion, self.bundle.criterion_parameters()
            )
            unfinished = path.with_suffix(".part")
            write_audits(unfinished, self.bundle.criterion, scored, costs_of(self.bundle.stages, ()), images.labels)
            unfinished.rename(path)
        return Recording.read(path)

    def _images(self, split: str) -> LabelledExamples:
        if is_divided(self._data):
            return load_split(self._data, "validation" if split == "validation" else "test")
        if split == "test":
            return load_idx_set(self._data, "t10k", "test")
        whole = load_idx_set(self._data, "train", "validation")
        return whole.slice(len(whole) - HELD_BACK, len(whole))


# ---------------------------------------------------------------- splits


@dataclass
class Run:
    """One tuner on one split. truths: (saved, loss, drop) of what is in force at each point of the curve.

    worst: greatest true (loss, drop) ever claimed.
    """

    truths: list[tuple[float, float, float]]
    worst: tuple[float, float]


def play(tuner: LiveTuner, audits: Sequence[AuditedInput], order: Sequence[int], judge: Judge) -> Run:
    """Play audits to a tuner, and look at the thresholds in force after each `CURVE_EVERY` of them.

    `worst` is over all certified vectors, those that were never in force too; of other tuners, over those in force.
    """
    in_force, curve, worst = None, [], (0.0, 0.0)
    for count in range(len(order) + 1):
        if count:
            tuner.observe(audits[order[count - 1]])
        if tuner.thresholds != in_force:
            in_force = tuner.thresholds
            claimed = tuner.choices
            _, losses, drops = zip(*map(judge, claimed), strict=True)
            worst = max(worst[0], *losses), max(worst[1], *drops)
        if count % CURVE_EVERY == 0:
            curve.append(judge(in_force))
    return Run(curve, worst)


@dataclass(frozen=True)
class Setting:
    """What all splits of a bundle share."""

    test: Recording
    audits: list[AuditedInput]
    path: tuple[Vector, ...]
    levels: list[Vector]
    length: int

    @classmethod
    def of(cls, validation: Recording, test: Recording, length: int) -> Setting:
        path = safe_to_risky(validation.audits(), validation.costs.tolist())
        return cls(test, test.audits(), path, spread_levels(validation.scores), length)

    def order(self, seed: int) -> list[int]:
        drawn: list[int] = np.random.default_rng(seed).integers(0, len(self.audits), self.length).tolist()
        return drawn

    def certified(self, epsilon: float, regime: str) -> Certified:
        costs = self.test.costs.tolist()
        return Certified(costs, epsilon, DELTA, path=self.path if regime == GIVEN else None)


Runs = dict[tuple[str, float], list[Run]]
"""Per regime and epsilon, one run a split."""


def certified_runs(setting: Setting, count: int) -> Runs:
    """Play so many splits to the certified tuner, in each regime for each epsilon."""
    runs: Runs = {(regime, epsilon): [] for regime in REGIMES for epsilon in EPSILONS}
    shared = Judge(setting.test)
    for seed in range(count):
        order = setting.order(seed)
        gathered = Judge(setting.test)  # every split has paths of its own
        for regime, epsilon in runs:
            judge = shared if regime == GIVEN else gathered
            tuner = setting.certified(epsilon, regime)
            runs[regime, epsilon].append(play(tuner, setting.audits, order, judge))
    return runs


def bandit_runs(setting: Setting, count: int) -> list[Run]:
    """Play the first of the same splits to the bandit."""
    judge, costs = Judge(setting.test), setting.test.costs.tolist()
    return [
        play(Bandit(costs, setting.levels, seed=seed), setting.audits, setting.order(seed), judge)
        for seed in range(count)
    ]


# ---------------------------------------------------------------- what could be


def losses_borne(epsilon: float, audits: int) -> tuple[int, int]:
    """Return how many losses among so many audits prove a mean loss of at most epsilon.

    First to the certificate, which may be looked at after every audit; then to the exact binomial test, of which the
    number of audits is fixed beforehand and which may be looked at once.
    """
    certificate, borne = Certificate(1, epsilon, DELTA), -1
    while certificate.count + certificate.to_pass(0) <= audits:
        certificate.observe(np.ones(1))
        borne += 1
    exact, term, below = -1, (1.0 - epsilon) ** audits, 0.0
    while (below := below + term) <= DELTA:
        exact += 1
        term *= (audits - exact) / (exact + 1) * epsilon / (1.0 - epsilon)
    return borne, exact


def tested_once(setting: Setting, epsilon: float, count: int) -> float:
    """Return the mean saving of the given path if it were tested once, by the exact test after all audits.

    What a certificate pays for being valid at every moment is the difference to this.
    """
    judge, borne = Judge(setting.test), losses_borne(epsilon, setting.length)[1]
    saved = [judge(vector)[0] for vector in setting.path]
    lost = np.array([losses_of(audit, np.array(setting.path)) for audit in setting.audits], bool)
    proved = [lost[setting.order(seed)].sum(axis=0) <= borne for seed in range(count)]
    return float(np.mean([saved[-1 if passed.all() else int(passed.argmin()) - 1] for passed in proved]))


def null(epsilon: float) -> Table:
    """Return how often a true loss of epsilon itself, the hardest there is, comes to be certified."""
    random, certificate = np.random.default_rng(0), Certificate(NULL_RUNS, epsilon, DELTA)
    for _ in range(NULL_AUDITS):
        certificate.observe((random.random(NULL_RUNS) < epsilon).astype(float))
    wrong = int(certificate.passed.sum())
    low, high = interval(wrong, NULL_RUNS)
    return {"epsilon": epsilon, "share": wrong / NULL_RUNS, "low": low, "high": high}


# ---------------------------------------------------------------- shifts


def delays(tuner: Certified, audits: Sequence[AuditedInput], order: Sequence[int]) -> int | None:
    """Return after how many audits of a shift the alarm goes off, None if it does not."""
    for count, i in enumerate(order, start=1):
        tuner.observe(audits[i])
        if tuner.alarms:
            return count
    return None


def detection(setting: Setting, changed: dict[str, Recording], epsilon: float, runs: int) -> list[Table]:
    """Return one row a shift: how soon a tuner that has had `length` calm audits hears of it.

    An alarm is due only where the thresholds in force lose more than epsilon under the shift.
    """
    heard: dict[str, list[int | None]] = {shift: [] for shift in changed}
    losses: dict[str, list[float]] = {shift: [] for shift in changed}
    judges = {shift: Judge(recording) for shift, recording in changed.items()}
    audits = {shift: recording.audits() for shift, recording in changed.items()}
    early = 0
    closed = dict.fromkeys(changed, 0)
    for seed in range(runs):
        calm = setting.certified(epsilon, GIVEN)
        if delays(calm, setting.audits, setting.order(seed)) is not None:
            early += 1
            continue
        stored = calm.snapshot()
        for shift, of_shift in audits.items():
            tuner = setting.certified(epsilon, GIVEN)
            tuner.restore(stored)
            loss = judges[shift](tuner.thresholds)[1]
            losses[shift].append(loss)
            if loss <= epsilon:
                continue
            order = np.random.default_rng([seed, 1]).integers(0, len(of_shift), PATIENCE).tolist()
            heard[shift].append(delays(tuner, of_shift, order))
            closed[shift] += tuner.alarms and tuner.thresholds == tuner.path[0]
    return [
        {
            "epsilon": epsilon,
            "shift": shift,
            "runs": len(losses[shift]),
            "alarms_before": early,
            "loss_in_force": float(np.mean(losses[shift])),
            "due": len(heard[shift]),
            "heard": sum(delay is not None for delay in heard[shift]),
            "closed_at_once": closed[shift],
            "delay_median": _quantile(heard[shift], 0.5),
            "delay_p95": _quantile(heard[shift], 0.95),
        }
        for shift in changed
    ]


def _quantile(delays: Sequence[int | None], share: float) -> int | None:
    """Return a quantile, None where it is one of those that never came."""
    ordered = sorted(math.inf if delay is None else delay for delay in delays)
    found = ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.inf
    return None if found == math.inf else int(found)


def false_alarms(setting: Setting, epsilon: float, audits: int, streams: int) -> Table:
    """Return how often there is an alarm without a shift, over streams of so many audits each."""
    alarms = 0
    for seed in range(streams):
        tuner = setting.certified(epsilon, GIVEN)
        for i in np.random.default_rng([seed, 2]).integers(0, len(setting.audits), audits).tolist():
            tuner.observe(setting.audits[i])
        alarms += tuner.alarms
    total = audits * streams
    return {"epsilon": epsilon, "audits": total, "alarms": alarms, "per_100000": alarms / total * 1e5}


# ---------------------------------------------------------------- figures


def interval(count: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a share."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, width = count / of, z * z / of
    middle = (share + width / 2) / (1 + width)
    half = z * math.sqrt(share * (1 - share) / of + width / of / 4) / (1 + width)
    return max(0.0, middle - half), min(1.0, middle + half)


def exceeded(values: Sequence[float], epsilon: float) -> Table:
    """Return in how many runs a value is above epsilon, and the interval of that share."""
    # A mean over the recording that is epsilon itself may come out a rounding above it.
    count = sum(value > epsilon + 1e-12 for value in values)
    low, high = interval(count, len(values))
    return {"runs": count, "share": count / len(values), "low": low, "high": high}


def curve_of(runs: Sequence[Run]) -> list[Table]:
    saved = np.array([[saved for saved, _, _ in run.truths] for run in runs])
    low, high = np.quantile(saved, [0.05, 0.95], axis=0)
    points = zip(saved.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
    return [{"audits": k * CURVE_EVERY, "mean": m, "p5": a, "p95": b} for k, (m, a, b) in enumerate(points)]


def violations(runs: Sequence[Run], epsilon: float) -> Table:
    return {
        "epsilon": epsilon,
        "loss": exceeded([run.worst[0] for run in runs], epsilon),
        "accuracy": exceeded([run.worst[1] for run in runs], epsilon),
    }


def measure(shelf: Shelf, options: argparse.Namespace) -> Table:
    """Return all figures of one bundle."""
    validation, test = shelf.get("validation"), shelf.get("test")
    changed = {shift: shelf.get(shift) for shift in PICTURES}
    hardest = hardest_class(validation)
    changed["class mix"] = only(test, hardest)
    setting, judge = Setting.of(validation, test, options.audits), Judge(test)
    best = {epsilon: oracle(test, epsilon) for epsilon in EPSILONS}
    certified = certified_runs(setting, options.splits)
    longer = certified_runs(replace(setting, length=LONG), min(options.splits, LONG_SPLITS))
    bandit = bandit_runs(setting, min(options.splits, BANDIT_SPLITS))
    early = len(test.costs) - 1
    fixed = {"the bundle's": tuple(shelf.bundle.thresholds), "hand-picked": (HAND_PICKED,) * early}
    return {
        "bundle": shelf.bundle.name,
        "revision": shelf.bundle.revision,
        "inputs": {"validation": len(validation), "test": len(test)},
        "path_steps": len(setting.path) - 1,
        "oracle": [_oracle_row(epsilon, *best[epsilon], setting, options.splits) for epsilon in EPSILONS],
        "certified": [
            {
                "regime": regime,
                **violations(runs, epsilon),
                **_saving(runs, best[epsilon][1]),
                "curve": curve_of(runs),
                "goal_reached": _reached(curve_of(runs), curve_of(longer[regime, epsilon]), GOAL * best[epsilon][1]),
            }
            for (regime, epsilon), runs in certified.items()
        ],
        "bandit": {
            "splits": len(bandit),
            "curve": curve_of(bandit),
            **dict(zip(("saved", "loss", "drop"), np.mean([run.truths[-1] for run in bandit], axis=0), strict=True)),
            "violations": [violations(bandit, epsilon) for epsilon in EPSILONS],
        },
        "fixed": [
            {"name": name, "thresholds": vector, **dict(zip(("saved", "loss", "drop"), judge(vector), strict=True))}
            for name, vector in fixed.items()
        ],
        "shifts": [row for e in EPSILONS for row in detection(setting, changed, e, options.shift_runs)],
        "false_alarms": [false_alarms(setting, e, options.calm, options.calm_streams) for e in EPSILONS],
        "hardest_class": shelf.bundle.labels[hardest],
    }


def _saving(runs: Sequence[Run], best: float) -> Table:
    """Return the mean of what is saved in the end, as it is and as a share of the best, with a 95 % interval."""
    saved = np.array([run.truths[-1][0] for run in runs])
    mean, error = float(saved.mean()), 1.96 * float(saved.std()) / math.sqrt(len(saved))
    return {"saved": mean, "share_of_oracle": mean / best, "share_error": error / best}


def _reached(curve: Sequence[Table], longer: Sequence[Table], goal: float) -> int | None:
    """Return after how many audits the goal is reached; after the curve's end a longer one tells, of fewer splits."""
    points = *curve, *longer[len(curve) :]
    return next((point["audits"] for point in points if point["mean"] >= goal), None)


def _oracle_row(epsilon: float, vector: Vector, saved: float, setting: Setting, count: int) -> Table:
    judge, (borne, exact) = Judge(setting.test), losses_borne(epsilon, setting.length)
    safe = [vector for vector in setting.path if judge(vector)[1] <= epsilon]
    return {
        "epsilon": epsilon,
        "thresholds": [None if threshold == NEVER else threshold for threshold in vector],
        "saved": saved,
        "loss": judge(vector)[1],
        # What a tuner with this path could save if it knew all, and if it looked once.
        "path_share": max(judge(vector)[0] for vector in safe) / saved,
        "once_share": tested_once(setting, epsilon, count) / saved,
        "losses_borne": borne,
        "losses_borne_once": exact,
    }


# ---------------------------------------------------------------- report


def render(report: Table, folder: Path) -> None:
    """Write tuner.md and the plots of a report."""
    lines = [
        "# Tuning, measured",
        "",
        f"Written by `make tuner-report` (`python -m benchmarks.tuner`) on {report['date']}. What the tuner promises "
        "is described in [the guarantee](../explanation/guarantee.md).",
        "",
        f"For each bundle, {report['audits']:,} audits were drawn {report['splits']:,} times with replacement from the "
        "test set, which is therefore the true distribution; each draw is called a *split*. δ is "
        f"{_percent(report['delta'], 0)} %. The tables use these terms:",
        "",
        "* *loss*: disagreement with the last exit, which bounds the drop in accuracy; ε is the loss that is allowed;",
        "* *path*: the thresholds from safe to risky, either *given* (made from the validation set) or *gathered* from "
        f"the first {PATH_AUDITS} audits of the split;",
        "* *saved*: multiply-accumulates, as a share of those of the last exit;",
        "* *oracle*: the thresholds that save most among all with a mean loss of at most ε, chosen with knowledge of "
        "the test set.",
        "",
        "Intervals are 95 %.",
        "",
        "## The hardest case",
        "",
        f"The mean loss is exactly ε. In {report['null_runs']:,} runs of {report['null_audits']:,} audits, checked "
        "after each audit, this is the share of runs in which such thresholds were certified at any time:",
        "",
        "| ε | certified, % of runs |",
        "|---|---|",
        *(f"| {_percent(row['epsilon'])} % | {_share(row)} |" for row in report["null"]),
    ]
    for bundle in report["bundles"]:
        lines += ["", *_of_bundle(bundle, report)]
    (folder / "tuner.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for bundle in report["bundles"]:
        _draw(bundle, report, folder / _plot_name(bundle))


def _plot_name(bundle: Table) -> str:
    return f"tuner-{bundle['bundle']}.png"


def _of_bundle(bundle: Table, report: Table) -> Iterator[str]:
    best = {row["epsilon"]: row for row in bundle["oracle"]}
    yield f"## {bundle['bundle']} ({bundle['revision']})"
    yield ""
    yield (
        f"Audits are drawn from {bundle['inputs']['test']:,} inputs; given paths come from "
        f"{bundle['inputs']['validation']:,} others."
    )
    yield ""
    yield (
        "Splits in which the true loss of certified thresholds exceeds ε, and what is saved after "
        f"{report['audits']:,} audits:"
    )
    yield ""
    yield (
        "| ε | path | loss above ε, % of splits | accuracy drop above ε, % | saved, % | oracle, % | of the oracle's, % "
        f"| audits until {_percent(GOAL, 0)} % of it |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for row in bundle["certified"]:
        of = best[row["epsilon"]]
        yield (
            f"| {_percent(row['epsilon'])} % | {row['regime']} | {_share(row['loss'])} | "
            f"{_share(row['accuracy'])} | {_percent(row['saved'])} | {_percent(of['saved'])} | "
            f"{_percent(row['share_of_oracle'])} ± {_percent(row['share_error'])} | {_reached_text(row)} |"
        )
    yield ""
    yield (f"Figures above {report['audits']:,} in the last column are from {LONG_SPLITS} splits of {LONG:,} audits.")
    yield ""
    yield (
        "The next table shows where the rest of the oracle's saving is lost, with the given path. The first column is "
        "the share of it that the path allows if the truth is known. The second is the share if thresholds are tested "
        f"once, by the exact binomial test after all {report['audits']:,} audits; it is smaller because so few audits "
        "cannot prove more. The third is the share that the certificate reaches; it is smaller because it may be "
        "checked after every audit. In brackets is the number of losses that each test tolerates."
    )
    yield ""
    yield "| ε | path, truth known | tested once | certificate |"
    yield "|---|---|---|---|"
    given = {row["epsilon"]: row["share_of_oracle"] for row in bundle["certified"] if row["regime"] == GIVEN}
    for row in bundle["oracle"]:
        yield (
            f"| {_percent(row['epsilon'])} % | {_percent(row['path_share'])} | {_percent(row['once_share'])} "
            f"({row['losses_borne_once']}) | {_percent(given[row['epsilon']])} ({row['losses_borne']}) |"
        )
    yield ""
    yield "For comparison, on the same splits, a bandit and fixed thresholds, which promise nothing:"
    yield ""
    yield (
        "| | saved, % | loss, % | accuracy drop, % | "
        + " | ".join(f"ever above ε {_percent(e)} %, % of splits" for e in report["epsilons"])
        + " |"
    )
    yield "|---|---|---|---|" + "---|" * len(report["epsilons"])
    ever = " | ".join(_percent(row["loss"]["share"]) for row in bundle["bandit"]["violations"])
    figures = " | ".join(_percent(bundle["bandit"][name], digits) for name, digits in _FIGURES)
    yield f"| bandit, {bundle['bandit']['splits']} splits | {figures} | {ever} |"
    for row in bundle["fixed"]:
        ever = " | ".join("100.0" if row["loss"] > epsilon else "0.0" for epsilon in report["epsilons"])
        vector = ", ".join(f"{threshold:.3g}" for threshold in row["thresholds"])
        figures = " | ".join(_percent(row[name], digits) for name, digits in _FIGURES)
        yield f"| {row['name']} ({vector}) | {figures} | {ever} |"
    yield ""
    yield f"![saving against audits]({_plot_name(bundle)})"
    yield ""
    yield (
        f"The next table is about images that change after {report['audits']:,} audits without a change, with the "
        "given path. An alarm is due if the thresholds in force lose more than ε after the change; the columns after "
        f"*alarm due* are about these runs. Delays are in audits; “never” means not within {report['patience']:,}. "
        "Noise has a standard deviation of 50 (of 255), blur is the mean of 5 x 5 pixels, contrast is reduced to three "
        f"tenths, and class mix means nothing but {bundle['hardest_class']}."
    )
    yield ""
    yield "| ε | change | loss after it, % | alarm due | alarms raised | median delay | 95th percentile |"
    yield "|---|---|---|---|---|---|---|"
    for row in bundle["shifts"]:
        delays = f"{_delay(row, 'delay_median')} | {_delay(row, 'delay_p95')}"
        yield (
            f"| {_percent(row['epsilon'])} % | {row['shift']} | {_percent(row['loss_in_force'], 2)} | "
            f"{row['due']} of {row['runs']} | {row['heard']} | {delays} |"
        )
    yield ""
    heard, closed = (sum(row[name] for row in bundle["shifts"]) for name in ("heard", "closed_at_once"))
    yield (
        f"In {closed:,} of {heard:,} alarms the tuner returned to the safe thresholds, which disable early exits, with "
        "the same audit that raised the alarm. The orchestrator publishes them at once, without waiting for telemetry."
    )
    yield ""
    calm = ", ".join(f"{row['per_100000']:g} at ε {_percent(row['epsilon'])} %" for row in bundle["false_alarms"])
    yield (
        f"False alarms per 100,000 audits without a change: {calm}, in {bundle['false_alarms'][0]['audits']:,} audits "
        "each. Inputs that are not audited raise none, so per 100,000 inputs there are at most as many."
    )


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _share(of: Table) -> str:
    return f"{_percent(of['share'])} ({_percent(of['low'])} to {_percent(of['high'])})"


_FIGURES = (("saved", 1), ("loss", 2), ("drop", 2))


def _reached_text(row: Table) -> str:
    return f"more than {LONG:,}" if row["goal_reached"] is None else f"{row['goal_reached']:,}"


def _delay(row: Table, name: str) -> str:
    if not row["due"]:
        return ""
    return "never" if row[name] is None else f"{row[name]:,}"


def _draw(bundle: Table, report: Table, path: Path) -> None:
    """Draw what is saved against audits, one panel an epsilon."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(report["epsilons"]), sharey=True)
    best = {row["epsilon"]: row["saved"] for row in bundle["oracle"]}
    for axes, epsilon in zip(panels, report["epsilons"], strict=True):
        axes.axhline(100 * best[epsilon], color="black", linewidth=1.2, label="oracle")
        for row in bundle["certified"]:
            if row["epsilon"] == epsilon:
                _curve(axes, row["curve"], REGIMES[row["regime"]], f"certified, path {row['regime']}")
        _curve(axes, bundle["bandit"]["curve"], "C1", "bandit, no promise", band=False)
        for row, dashes in zip(bundle["fixed"], (":", "-."), strict=True):
            is_safe = row["loss"] <= epsilon
            label = f"fixed, {row['name']}"
            axes.axhline(
                100 * row["saved"], color="grey" if is_safe else "C3", linestyle=dashes, linewidth=1.2, label=label
            )
        axes.set_title(f"ε = {_percent(epsilon)} %")
        axes.set_xlabel("audits")
        axes.set_xlim(0, report["audits"])
        axes.set_ylim(0, 110 * max(*best.values(), *(row["saved"] for row in bundle["fixed"])))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("compute saved, %")
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(f"{bundle['bundle']}: mean, and 5 to 95 % of splits of the certified; red: fixed and above ε")
    figure.savefig(path)


def _curve(axes: Any, curve: Sequence[Table], colour: str, label: str, *, band: bool = True) -> None:
    at = [point["audits"] for point in curve]
    axes.plot(at, [100 * point["mean"] for point in curve], color=colour, label=label)
    if not band:  # one that tries everything would cover all else
        return
    low, high = ([100 * point[name] for point in curve] for name in ("p5", "p95"))
    axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


# ---------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report; 1 where a promise was seen broken."""
    options = _parse(argv)
    if options.render:
        report = json.loads((options.out / "tuner.json").read_text(encoding="utf-8"))
        render(report, options.out)
        return 0
    with ProcessPoolExecutor(options.processes) as pool:
        try:
            bundles = list(pool.map(partial(_measure, options), options.on))
        except DistreeError as error:
            print(f"tuner: {error}", file=sys.stderr)
            return 2
    report = {
        "date": datetime.date.today().isoformat(),
        "splits": options.splits,
        "audits": options.audits,
        "epsilons": EPSILONS,
        "delta": DELTA,
        "alarm_height": ALARM_HEIGHT,
        "patience": PATIENCE,
        "null": [null(epsilon) for epsilon in EPSILONS],
        "null_runs": NULL_RUNS,
        "null_audits": NULL_AUDITS,
        "bundles": bundles,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tuner.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    render(report, options.out)
    print((options.out / "tuner.md").read_text(encoding="utf-8"))
    # Chance alone takes a share of exactly delta above it: what counts is whether all of its interval is.
    return int(any(row["loss"]["low"] > DELTA for bundle in bundles for row in bundle["certified"]))


def _measure(options: argparse.Namespace, on: tuple[str, Path]) -> Table:
    return measure(Shelf(*on, options.work), options)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuner", description=__doc__.split("\n")[0])
    parser.add_argument("--on", action="append", type=_bundle_and_data, metavar="BUNDLE=DATA", default=[])
    parser.add_argument("--work", type=Path, metavar="DIR", help="where recordings are kept, and found again")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--splits", type=_positive, default=1000, metavar="N")
    parser.add_argument("--audits", type=_positive, default=2000, metavar="N", help="a multiple of 100")
    parser.add_argument("--shift-runs", type=_positive, default=100, metavar="N")
    parser.add_argument(
        "--calm", type=_positive, default=100_000, metavar="N", help="audits of a stream without a shift"
    )
    parser.add_argument("--calm-streams", type=_positive, default=5, metavar="N")
    parser.add_argument("--processes", type=_positive, default=1, metavar="N", help="a bundle each")
    parser.add_argument("--render", action="store_true", help="only write tuner.md and plots from tuner.json")
    options = parser.parse_args(argv)
    if not options.render and (not options.on or options.work is None):
        parser.error("--on BUNDLE=DATA and --work DIR are needed to measure")
    return options


def _bundle_and_data(text: str) -> tuple[str, Path]:
    bundle, found, data = text.partition("=")
    if not (bundle and found and data):
        raise argparse.ArgumentTypeError(f"{text!r}: BUNDLE=DATA is needed, such as fashion=fashion-mnist")
    return bundle, Path(data)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of at least 1 is needed")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
