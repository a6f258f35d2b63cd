"""Play scenarios: `python -m benchmarks.chaos [SCENARIO[:CASE] ...]`; exit status 1 if anything fell short."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos.report import Report, table
from benchmarks.chaos.site import Options
from broker_config.managed import find_mosquitto

SCENARIOS = (
    "outages", "burst", "junk", "memory", "neighbour", "kills", "restart", "hangups", "bigpackets",
)  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO[:CASE]",
        help=f"any of {', '.join(SCENARIOS)}; all if none is named. CASE is one of a scenario's, as in hangups:will",
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="play them again and again for so long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument(
        "--agent-python", default=sys.executable, metavar="PATH", help="the python that runs the agents"
    )
    parser.add_argument("--broker", choices=("managed", "stock"), default="managed", help="how mosquitto is configured")
    parser.add_argument("--inputs", type=int, default=110_000, help="memory: how many inputs (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=100, help="kills: how many (default: %(default)s)")
    args = parser.parse_args()
    for name in args.scenarios:
        if name.partition(":")[0] not in SCENARIOS:
            parser.error(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    return args


def play(name: str, options: Options) -> list[Report]:
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


def main() -> int:
    args = arguments()
    if find_mosquitto() is None:
        sys.exit("mosquitto is not installed: apt install mosquitto")
    options = Options(
        # Not resolved: a virtual environment's python is a link.
        python=str(Path(args.agent_python).absolute()),
        broker=args.broker,
        inputs=args.inputs,
        kills=args.kills,
    )
    ends_at = time.monotonic() + args.minutes * 60
    reports: list[Report] = []
    while True:
        for name in args.scenarios or SCENARIOS:
            reports += play(name, options)
            if args.json is not None:
                args.json.write_text(json.dumps([report.as_dict() for report in reports], indent=1) + "\n")
        if time.monotonic() >= ends_at:
            break
    failed = [report.scenario for report in reports if not report.passed]
    print(
        f"\n{len(reports) - len(failed)} of {len(reports)} passed"
        + (f"; fell short: {', '.join(failed)}" * bool(failed))
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
