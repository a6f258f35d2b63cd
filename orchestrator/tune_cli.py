"""`distree tune`: run a tuner over recorded audits and show what it would have done."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

from distree.criteria import threshold_problem
from distree.errors import CHECK_PATH, ConfigError
from distree.formatting import counted, table, thresholds_text
from distree.thresholds import NEVER_WORD, parse_threshold, plain_thresholds
from orchestrator.tuning.live_tuner import LiveTuner, TunerSetup
from orchestrator.tuning.replay import AuditRecording, Replay, load_recording, replay, thinned
from orchestrator.tuning.samples import AuditedInput, Vector
from orchestrator.tuning.tuners import DEFAULT, TUNERS

_EXAMPLE = """example:
  distree zoo evaluate fashion --data /usr/share/datasets/fashion-mnist --audits audits.npz
  distree tune --replay audits.npz --accuracy-drop 1% --confidence 95% --plot tuned.png"""
_SHOWN = 20
_USING_THRESHOLDS = ", ".join(name for name, tuner in TUNERS.items() if tuner.uses_given_thresholds)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree tune`."""
    parser.epilog, parser.formatter_class = _EXAMPLE, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--replay",
        type=Path,
        required=True,
        metavar="FILE",
        help="recorded audits: an .npz with score, prediction, mac and perhaps label",
    )
    parser.add_argument("--tuner", choices=tuple(TUNERS), default=DEFAULT, help="tuner to run (default: %(default)s)")
    parser.add_argument("--accuracy-drop", default="1%", metavar="E", help="largest drop allowed (default: 1%%)")
    parser.add_argument("--confidence", default="95%", metavar="C", help="confidence that it is kept (default: 95%%)")
    parser.add_argument(
        "--thresholds",
        metavar="A,B",
        help=f"for tuner {_USING_THRESHOLDS}: one per exit but the last; never keeps an exit closed",
    )
    parser.add_argument(
        "--prepare-from",
        type=Path,
        metavar="FILE",
        help="other audits for the tuner to make its path from, instead of gathering the first ones of the recording",
    )
    parser.add_argument("--labels", action="store_true", help="use the true labels where the recording has them")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N audits, after shuffling")
    parser.add_argument("--seed", type=int, metavar="N", help="shuffle the audits (default: in recorded order)")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw a plot (needs the extra 'plots')")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")


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


def _recording(path: Path, labels: bool) -> AuditRecording:
    recording = load_recording(path)
    if labels:
        if recording.audits[0].label is None:
            raise ConfigError(f"--labels: {path} has no label", "leave it out, or record with labels")
        return recording
    return replace(recording, audits=tuple(replace(audit, label=None) for audit in recording.audits))


def _tuner(args: argparse.Namespace, recording: AuditRecording) -> LiveTuner:
    exits, cls = len(recording.costs), TUNERS[args.tuner]
    if (args.thresholds is not None) != cls.uses_given_thresholds:
        raise ConfigError(
            f"--thresholds A,B goes with --tuner {_USING_THRESHOLDS}, which needs them", "give both or none"
        )
    earlier: tuple[AuditedInput, ...] = ()
    if args.prepare_from is not None:
        other = _recording(args.prepare_from, args.labels)
        if len(other.costs) != exits:
            what = f"--prepare-from: has {counted(len(other.costs), 'exit')}, but {args.replay} has {exits}"
            raise ConfigError(what, "give a recording of the same bundle")
        earlier = other.audits
    setup = TunerSetup(
        costs=recording.costs,
        accuracy_drop=_share("--accuracy-drop", args.accuracy_drop),
        confidence=_share("--confidence", args.confidence),
        thresholds=() if args.thresholds is None else _thresholds(args.thresholds, exits, recording.criterion),
        earlier=earlier,
        seed=args.seed or 0,
    )
    return cls.create(setup)


def _thresholds(text: str, exits: int, criterion: str) -> Vector:
    try:
        values = tuple(parse_threshold(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != exits - 1:
        raise ConfigError(
            f"--thresholds {text}: not {exits - 1} numbers",
            f"give one per exit but the last, separated by commas, or {NEVER_WORD!r} in place of a number",
        )
    if criterion and (problem := threshold_problem(criterion, values)) is not None:
        raise ConfigError(*problem.at(f"--thresholds {text}"))
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


def _text(played: Replay, tuner: LiveTuner) -> str:
    rows = [
        [str(step.audits), thresholds_text(step.thresholds, 4), f"{100 * step.saved:.1f}", f"{100 * step.loss:.2f}"]
        for step in thinned(played.steps, _SHOWN)
    ]
    changed = counted(len(played.steps) - 1, "time")
    lines = [
        table(["AUDITS", "THRESHOLDS", "SAVED %", "LOSS %"], rows),
        "",
        f"{played.tuner}: {counted(played.audits, 'audit')}, thresholds changed {changed}",
        f"while it learned: {100 * played.answered_saved:.1f} % saved, loss {100 * played.answered_loss:.2f} %",
        f"{tuner.explain().progress}; {counted(tuner.alarms, 'alarm')}",
    ]
    if not tuner.has_guarantee:
        lines.append(f"tuner {tuner.name} has no guarantee: nothing keeps the loss within --accuracy-drop")
    return "\n".join(lines)


def _plain(played: Replay) -> dict[str, object]:
    plain = asdict(played)
    for step in plain["steps"]:
        step["thresholds"] = plain_thresholds(step["thresholds"])
    return plain


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", CHECK_PATH) from None


def _draw(played: Replay, epsilon: float, path: Path) -> None:
    """Plot what the thresholds in force save and lose against the number of audits."""
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
