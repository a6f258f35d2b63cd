"""`distree tune`: run a tuner over recorded audits and show what it would have done."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from distree.criteria import NEVER
from distree.errors import CHECK_PATH, ConfigError
from orchestrator.formatting import table
from orchestrator.tuning.replay import Recording, Replay, load_recording, replay, thinned
from orchestrator.tuning.tuners import Bandit, Certified, Static, Tuner, Vector
from orchestrator.tuning.tuners.bandit import spread_levels
from orchestrator.tuning.tuners.path import safe_to_risky

_EXAMPLE = """example:
  distree zoo evaluate fashion --data /usr/share/datasets/fashion-mnist --audits audits.npz
  distree tune --replay audits.npz --accuracy-drop 1% --confidence 95% --plot tuned.png"""
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree tune`."""
    parser.epilog, parser.formatter_class = _EXAMPLE, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--replay", type=Path, required=True, metavar="FILE", help="npz: score, prediction, mac and perhaps label"
    )
    parser.add_argument("--tuner", choices=("certified", "bandit", "static"), default="certified")
    parser.add_argument("--accuracy-drop", default="1%", metavar="E", help="greatest drop (default: 1%%)")
    parser.add_argument("--confidence", default="95%", metavar="C", help="of keeping it (default: 95%%)")
    parser.add_argument("--thresholds", metavar="A,B", help="of the tuner static: one per exit but the last")
    parser.add_argument("--path-from", type=Path, metavar="FILE", help="certified: other audits, to make the path from")
    parser.add_argument("--labels", action="store_true", help="use the truth where the recording has it")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N audits, after shuffling")
    parser.add_argument("--seed", type=int, metavar="N", help="shuffle the audits (default: as they come)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw it (needs the extra 'plots')")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it as JSON")


def run(args: argparse.Namespace) -> int:
    """Do what the parsed arguments ask and return the exit status; DistreeError is the caller's to print."""
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib", "run: pip install 'distree[plots]'")
    recording = _recording(args.replay, args.labels)
    tuner = _tuner(args, recording)
    if args.seed is not None:
        recording = recording.shuffled(args.seed)
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: is out of range", "choose at least 1")
    played = replay(tuner, recording.head(args.limit))
    print(_text(played, tuner))
    if args.json is not None:
        _write(args.json, json.dumps(_plain(played), indent=1) + "\n")
    if args.plot is not None:
        _draw(played, _share("--accuracy-drop", args.accuracy_drop), args.plot)
    return 0


def _recording(path: Path, labels: bool) -> Recording:
    recording = load_recording(path)
    if labels:
        if recording.audits[0].label is None:
            raise ConfigError(f"--labels: {path} has no label", "leave it out, or record with labels")
        return recording
    return Recording(tuple(replace(audit, label=None) for audit in recording.audits), recording.costs)


def _tuner(args: argparse.Namespace, recording: Recording) -> Tuner:
    exits = len(recording.costs)
    if (args.thresholds is not None) != (args.tuner == "static"):
        raise ConfigError("--thresholds A,B goes with --tuner static, and it needs them", "give both or none")
    match args.tuner:
        case "static":
            return Static(_thresholds(args.thresholds, exits))
        case "bandit":
            scores = np.array([audit.scores for audit in recording.audits])
            return Bandit(recording.costs, spread_levels(scores), seed=args.seed or 0)
    path = None
    if args.path_from is not None:
        other = _recording(args.path_from, args.labels)
        if len(other.costs) != exits:
            what = f"--path-from: has {len(other.costs)} exits, {args.replay} has {exits}"
            raise ConfigError(what, "give a recording of the same bundle")
        path = safe_to_risky(other.audits, recording.costs)
    epsilon = _share("--accuracy-drop", args.accuracy_drop)
    return Certified(recording.costs, epsilon, 1.0 - _share("--confidence", args.confidence), path=path)


def _thresholds(text: str, exits: int) -> Vector:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != exits - 1 or any(math.isnan(value) for value in values):
        raise ConfigError(
            f"--thresholds {text}: not {exits - 1} numbers", "give one per early exit, separated by commas"
        )
    return values


def _share(option: str, text: str) -> float:
    """Read a share such as 1% or 0.01."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{option} {text}: not a share between 0 and 1", "write it as 0.01 or 1%")
    return value


def _text(played: Replay, tuner: Tuner) -> str:
    rows = [
        [str(step.audits), _vector(step.thresholds), f"{100 * step.saved:.1f}", f"{100 * step.loss:.2f}"]
        for step in thinned(played.steps, _SHOWN)
    ]
    lines = [
        table(["AUDITS", "THRESHOLDS", "SAVED %", "LOSS %"], rows),
        "",
        f"{played.tuner}: {played.audits} audits, thresholds changed {len(played.steps) - 1} times",
        f"while it learned: {100 * played.answered_saved:.1f} % saved, loss {100 * played.answered_loss:.2f} %",
    ]
    if isinstance(tuner, Certified):
        lines.append(_standing(tuner))
    return "\n".join(lines)


def _standing(tuner: Certified) -> str:
    if tuner.gathering:
        return f"trial {tuner.trial}: {tuner.gathering} more audits are wanted for a path"
    further = tuner.to_next()
    step = "the path ends there" if further is None else f"{further} audits without a loss from the next"
    return (
        f"trial {tuner.trial}: {len(tuner.certified) - 1} of {len(tuner.path) - 1} steps certified by {tuner.audits} "
        f"audits, {step}; {tuner.alarms} alarms"
    )


def _vector(thresholds: Vector) -> str:
    return " ".join("never" if threshold == NEVER else f"{threshold:.4g}" for threshold in thresholds)


def _plain(played: Replay) -> dict[str, object]:
    plain = asdict(played)
    for step in plain["steps"]:
        # JSON has no infinity: null is a threshold that is never reached.
        step["thresholds"] = [None if math.isinf(value) else value for value in step["thresholds"]]
    return plain


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", CHECK_PATH) from None


def _draw(played: Replay, epsilon: float, path: Path) -> None:
    """Draw what the thresholds in force save and lose against the number of audits."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    at = [step.audits for step in played.steps] + [played.audits]
    for axes, values, name in (
        (above, [100 * step.saved for step in played.steps], "compute saved, %"),
        (below, [100 * step.loss for step in played.steps], "loss, %"),
    ):
        axes.step(at, [*values, values[-1]], where="post")
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    below.axhline(100 * epsilon, color="black", linestyle="--", linewidth=1, label="accuracy drop allowed")
    below.legend()
    below.set_xlabel("audits")
    above.set_title(f"{played.tuner}: thresholds in force, on the whole recording")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}", CHECK_PATH) from None
