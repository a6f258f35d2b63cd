"""A wide bundle as it is served, gated and eager, against its offline evaluation.

Runs `distree demo` in both modes in alternating rounds, every branch a process, and compares every answer with
`distree zoo evaluate --per-input` on the same inputs. Reports latency, the bytes between boards, and, for the eager
mode, the share of compute that no answer needed:

    python -m benchmarks.wide --bundle cifar10-wide --data cifar10_jpeg.npz --inputs 500 --rounds 3

`--rate` is low by default, so that inputs do not wait for each other: on one machine the branches share its cores,
and only an input by itself sees the latency that boards of their own would give.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distree.bundle.loading import Bundle, load_bundle

MODES = ("gated", "eager")
ROUND_LIMIT_S = 900.0


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 1 where an answer differs from the evaluation or is missing."""
    args = _parse(argv)
    bundle = load_bundle(args.bundle)
    with tempfile.TemporaryDirectory(prefix="distree-wide-") as folder:
        evaluated = _evaluate(args, Path(folder))
        rounds = [
            {mode: _serve(args, mode, Path(folder) / f"{mode}{number}.json") for mode in MODES}
            for number in range(args.rounds)
        ]
    report = _report(bundle, args, evaluated, rounds)
    print("\n".join(_lines(report)))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(figures["equal"] == figures["inputs"] for figures in report["modes"].values()) else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wide", description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", default="cifar10-wide")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE")
    parser.add_argument("--inputs", type=int, default=500, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--rate", type=float, default=20.0, metavar="HZ")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def _distree(*arguments: str) -> None:
    command = [sys.executable, "-m", "distree", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ROUND_LIMIT_S, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")


def _evaluate(args: argparse.Namespace, folder: Path) -> dict[int, tuple[str, int]]:
    """Return (label, exit) of each input as evaluated offline, by its place in the data."""
    out = folder / "evaluated.json"
    _distree("zoo", "evaluate", args.bundle, "--data", str(args.data), "--per-input", "--json", str(out))
    return {row["index"]: (row["label"], row["exit"]) for row in json.loads(out.read_text())["results"]}


def _serve(args: argparse.Namespace, mode: str, out: Path) -> dict[str, Any]:
    options = ["--inputs", str(args.inputs), "--rate", str(args.rate), "--mode", mode, "--json", str(out)]
    _distree("demo", "--bundle", args.bundle, "--data", str(args.data), *options)
    served: dict[str, Any] = json.loads(out.read_text())
    return served


def _report(
    bundle: Bundle, args: argparse.Namespace, evaluated: dict[int, tuple[str, int]], rounds: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "bundle": bundle.name,
        "revision": bundle.revision,
        "inputs": args.inputs,
        "rounds": args.rounds,
        "rate_hz": args.rate,
        "modes": {mode: _of_mode(bundle, evaluated, [one[mode] for one in rounds]) for mode in MODES},
    }


def _of_mode(bundle: Bundle, evaluated: dict[int, tuple[str, int]], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    answers = [answer for served in rounds for answer in served["results"]]
    whole = [answer for answer in answers if not answer["missing"]]
    equal = sum((answer["label"], answer["exit"]) == evaluated[answer["index"]] for answer in whole)
    spent, wasted = zip(*(_branch_macs(bundle, served) for served in rounds), strict=True)
    return {
        "inputs": sum(served["inputs"] for served in rounds),
        "answered": len(answers),
        "without_a_branch": len(answers) - len(whole),
        "equal": equal,
        "latency_ms": {
            name: _spread([served["latency_ms"][name] for served in rounds]) for name in ("p50", "p95", "p99")
        },
        "bytes_per_input": _spread([served["bytes_per_input"] for served in rounds]),
        "branch_runs": [sum(served["branch_runs"][k] for served in rounds) for k in range(len(bundle.stages))],
        "wasted_runs": [sum(served["wasted_runs"][k] for served in rounds) for k in range(len(bundle.stages))],
        "wasted_share_of_macs": _spread([part / whole for part, whole in zip(wasted, spent, strict=True)]),
    }


def _branch_macs(bundle: Bundle, served: dict[str, Any]) -> tuple[float, float]:
    """Return what branches computed and what of it no answer needed; branches of a stage cost the same on average."""
    mean = [
        sum(branch.macs.trunk + branch.macs.exit for branch in stage.branches) / max(1, len(stage.branches))
        for stage in bundle.stages
    ]
    return float(np.dot(mean, served["branch_runs"])), float(np.dot(mean, served["wasted_runs"]))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [
        f"{report['bundle']} {report['revision']}, {report['rounds']} rounds of {report['inputs']} inputs at "
        f"{report['rate_hz']:g} a second, median (min to max) of rounds"
    ]
    for mode, figures in report["modes"].items():
        latency = ", ".join(f"{name} {_shown(spread)}" for name, spread in figures["latency_ms"].items())
        lines += [
            f"{mode}: {figures['equal']} of {figures['inputs']} answers as evaluated, "
            f"{figures['without_a_branch']} without a branch",
            f"  latency ms: {latency}",
            f"  bytes per input: {_shown(figures['bytes_per_input'], 0)}",
            f"  runs per stage: {figures['branch_runs']}, no answer needed {figures['wasted_runs']}, "
            f"{100 * figures['wasted_share_of_macs']['median']:.1f} % of the branches' multiply-accumulates",
        ]
    return lines


def _shown(spread: dict[str, float], digits: int = 2) -> str:
    return f"{spread['median']:.{digits}f} ({spread['min']:.{digits}f} to {spread['max']:.{digits}f})"


if __name__ == "__main__":
    raise SystemExit(main())
