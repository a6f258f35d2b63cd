"""Play faults against real agents, a real mosquitto and real links: `python -m benchmarks.chaos [FAULT ...]`.

Without names, all faults of the matrix are played. Exit status 1 if an input is lost, wrong or unaccounted for, or if
a scenario fell short.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos import page
from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.play import Played, Tempo, play
from benchmarks.chaos.report import Report, table
from benchmarks.chaos.site import OWN_PYTHON, Options
from broker_config.managed import ManagedBroker, find_mosquitto

SCENARIOS = (
    "outages", "burst", "junk", "memory", "neighbour", "kills", "restart", "hangups", "bigpackets",
)  # fmt: skip
"""Plays with checks of their own, in `scenarios/`; they are played where they are named."""

INPUTS = 112_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="FAULT",
        help=f"any of {', '.join(FAULTS)}, with * for any part of a name; all if none is named. Or a scenario: any of "
        f"{', '.join(SCENARIOS)}, or one case of it, as in hangups:will",
    )
    parser.add_argument(
        "--inputs",
        type=int,
        help=f"how many in all, spread over the faults (default: {INPUTS} for the whole matrix, and as many per fault "
        "where some are named); memory: how many",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write faults.md and faults.json there, if all faults are played"
    )
    parser.add_argument("--kills", type=int, default=100, help="scenario kills: how many (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0.0, help="scenarios: again and again for so long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="scenarios: write all figures to FILE")
    parser.add_argument("--agent-python", default=OWN_PYTHON, metavar="PATH", help="the python that runs the agents")
    parser.add_argument(
        "--broker", choices=("managed", "stock"), default="managed", help="scenarios: how mosquitto is configured"
    )
    args = parser.parse_args()
    args.faults, args.scenarios = [], []
    for name in args.names or ["*"]:
        found = fnmatch.filter(FAULTS, name)
        args.faults += [fault for fault in found if fault not in args.faults]
        if not found and name.partition(":")[0] in SCENARIOS:
            args.scenarios.append(name)
        elif not found:
            parser.error(f"no fault and no scenario {name!r}; there are {', '.join((*FAULTS, *SCENARIOS))}")
    return args


def play_faults(names: list[str], inputs: int, options: Options) -> list[Played]:
    """Play faults one after the other and print each."""
    found = []
    for name in names:
        found.append(play(FAULTS[name], Tempo(inputs // len(names)), options))
        print(page.paragraph(found[-1]), flush=True)
    return found


def play_scenario(name: str, options: Options) -> list[Report]:
    """Run one scenario, or one case of it."""
    scenario, _, case = name.partition(":")
    module = importlib.import_module(f"benchmarks.chaos.scenarios.{scenario}")
    cases = list(getattr(module, "CASES", ()))
    if case and case not in cases:
        sys.exit(f"{scenario} has no case {case!r}; there are {', '.join(cases) or 'none'}")
    if not cases:
        return [_finish(Report(scenario), module.run, options)]
    return [_finish(Report(f"{scenario}:{each}"), module.run, each, options) for each in ([case] if case else cases)]


def _finish(report: Report, run: Callable[..., None], *args: object) -> Report:
    """Run and print; what a scenario cannot finish fell short too."""
    started_at = time.monotonic()
    try:
        run(report, *args)
    except Exception as error:  # noqa: BLE001 - one scenario's fault shall not cost the others
        report.short.append(f"not finished: {type(error).__name__}: {error}")
    report.seconds = time.monotonic() - started_at
    print(table([report]), flush=True)
    return report


def play_scenarios(args: argparse.Namespace, options: Options) -> list[Report]:
    """Play scenarios, once or for as long as was asked for."""
    ends_at, reports = time.monotonic() + args.minutes * 60, list[Report]()
    while args.scenarios:
        for name in args.scenarios:
            reports += play_scenario(name, options)
            if args.json is not None:
                args.json.write_text(json.dumps([report.as_dict() for report in reports], indent=1) + "\n")
        if time.monotonic() >= ends_at:
            break
    return reports


def main() -> int:
    args = arguments()
    if find_mosquitto() is None:
        sys.exit("mosquitto is not installed: apt install mosquitto")
    options = Options(
        # Not resolved: a virtual environment's python is a link.
        python=str(Path(args.agent_python).absolute()),
        broker=args.broker,
        inputs=args.inputs or Options().inputs,
        kills=args.kills,
    )
    mosquitto = ManagedBroker(engine="mosquitto").describe().split()[1]
    machine = page.this_machine(mosquitto)
    started_at = time.monotonic()
    played = play_faults(args.faults, args.inputs or INPUTS * len(args.faults) // len(FAULTS), options)
    if args.out is not None and len(played) == len(FAULTS):
        page.write(args.out, played, machine, time.monotonic() - started_at)
    reports = play_scenarios(args, options)
    failed = [one.fault for one in played if not one.passed] + [one.scenario for one in reports if not one.passed]
    skipped = [f"{one.fault} ({one.not_played})" for one in played if one.not_played]
    if skipped:
        print(f"\nnot played: {', '.join(skipped)}")
    count = len(played) + len(reports)
    print(f"\n{count - len(failed) - len(skipped)} of {count} passed" + f"; failed: {', '.join(failed)}" * bool(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
