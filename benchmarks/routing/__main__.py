"""How the choice of boards does when they go, hang, are slow, or lose their broker.

    python -m benchmarks.routing                      all scenarios, some ten minutes
    python -m benchmarks.routing uneven --rounds 3
    python -m benchmarks.routing --checkout new=. --checkout old=/path/to/another

With several checkouts the agents of each are played in turn, round by round, so that what else this machine does
falls on all of them. `chain` and `wide`: one of two boards with the same work is stopped (SIGTERM), killed (SIGKILL)
or paused (SIGSTOP for 20 s). `restart`: a board without a twin is started anew. `uneven`: one of two boards needs 10,
the other 40 ms. `broker`: the broker of thirty boards restarts. Times of what was hit last are of the moment at which
that input was sent, after the fault.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.routing.fleet import ROOT, ShortfallError
from benchmarks.routing.scenarios import SCENARIOS, Options, Row


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"any of {', '.join(SCENARIOS)}; else all")
    parser.add_argument("--rounds", type=int, default=1, help="play them so often (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="how long a fault is looked at (default: %(default)s)"
    )
    parser.add_argument(
        "--checkout",
        action="append",
        metavar="[NAME=]DIR",
        help="whose agents to play with; several in turn (default: this one)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    args = parser.parse_args()
    for name in args.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    return args


def checkouts(told: list[str] | None) -> dict[str, Path]:
    """Return the folders of the checkouts by name."""
    if told is None:
        return {"here": ROOT}
    found = {}
    for text in told:
        name, _, folder = text.rpartition("=")
        path = Path(folder).resolve()
        if not (path / "distree").is_dir():
            sys.exit(f"--checkout {text}: no folder distree in it")
        found[name or path.name] = path
    return found


def table(rows: list[Row]) -> str:
    """Return rows of the same columns as text."""
    heads = list(rows[0])
    cells = [heads] + [[_cell(row.get(head, "-")) for head in heads] for row in rows]
    widths = [max(len(line[k]) for line in cells) for k in range(len(heads))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value: float | int | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> int:
    """Play, and print a table of each scenario."""
    args = arguments()
    found: dict[str, list[Row]] = {}
    short = False
    for name in args.scenarios or SCENARIOS:
        rows = found.setdefault(name, [])
        for number in range(args.rounds):
            for label, path in checkouts(args.checkout).items():
                try:
                    played = SCENARIOS[name](Options(path, args.seconds))
                except ShortfallError as error:
                    short = True
                    print(f"{name} {label}: {error}", file=sys.stderr, flush=True)
                    continue
                rows += [{"round": number + 1, "agents": label, **row} for row in played]
        if rows:
            print(f"\n{name}\n{table(rows)}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
