"""Damaged messages and files at everything that reads any: `python -m benchmarks.fuzz --messages N --files N`.

Good messages and files are made by the project's own writers, or are those that it ships; 3 of 100 are handed over as
they are and must be taken. The others have bytes flipped, cut out, put in and exchanged, lengths and numbers changed,
values replaced at any depth. Whatever comes, a reader returns something, or raises the project's own error with a text
of bounded length. Anything else, a crash, a hang or more memory than a target is allowed ends in exit status 1, and the
bytes are kept in a file.

A reader that gives what its bytes do not say is not found by that: only what is checked when something is taken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fuzz.run import MEASURED, Tally, fuzz
from benchmarks.fuzz.target import Target
from benchmarks.fuzz.targets import TARGETS
from distree.formatting import table

_MIB = 1 << 20


def counts(messages: int, files: int, targets: Sequence[Target]) -> dict[str, int]:
    """Return how many each target gets of the messages and of the files, by its share."""
    found = {}
    for unit, total in (("messages", messages), ("files", files)):
        of_unit = [target for target in targets if target.unit == unit]
        shares = sum(target.share for target in of_unit)
        for target in of_unit:
            found[target.name] = round(total * target.share / shares)
    return found


def rows(tallies: dict[str, Tally]) -> list[list[str]]:
    """Return the table's rows, one per target."""
    found = []
    for name, tally in tallies.items():
        grown = [(later - tally.resident_early) / _MIB for later in (tally.resident_half, tally.resident)]
        found.append(
            [
                name, f"{tally.count:,}", f"{tally.accepted:,}", f"{tally.refused:,}", str(len(tally.failures)),
                f"{1e3 * tally.slowest_s:.0f} ({tally.slowest})", f"{tally.largest / _MIB:.1f} ({tally.largest_of})",
                f"{tally.risen / _MIB:.1f}", f"{tally.resident_early / _MIB:.1f}",
                *(f"{one:+.1f}" for one in grown), f"{tally.seconds:.0f}",
            ]
        )  # fmt: skip
    return found


HEADINGS = (
    "target", "handed over", "taken", "refused", "failed", "slowest, ms", "most memory of one, MiB", "highest, MiB",
    "resident at 10 %, MiB", "grown at 50 %, MiB", "grown at 100 %, MiB", "s",
)  # fmt: skip


def as_markdown(tallies: dict[str, Tally]) -> str:
    """Return the table for docs/results."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *rows(tallies)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run(targets: Sequence[Target], messages: int, files: int, seed: int, folder: Path) -> dict[str, Tally]:
    """Fuzz targets one after the other; return their tallies by name."""
    tallies = {}
    for name, count in counts(messages, files, targets).items():
        if count:
            tallies[name] = fuzz(TARGETS[name], count, seed, folder)
    return tallies


def problems(tallies: dict[str, Tally]) -> list[str]:
    """Return what failed, and which figures are beyond what their targets allow."""
    found = []
    for name, tally in tallies.items():
        found += tally.failures
        found += [f"{name}: {what}" for what in tally.judge(TARGETS[name])]
    return found


def main() -> int:
    """Read the options and run; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--messages", type=int, default=2_000_000, help="how many (default: %(default)s)")
    parser.add_argument("--files", type=int, default=200_000, help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default: %(default)s)")
    parser.add_argument(
        "--target", action="append", choices=[*TARGETS], metavar="NAME",
        help=f"only this, which then gets all of the messages or files; may be repeated ({', '.join(TARGETS)})",
    )  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table there, in Markdown")
    args = parser.parse_args()
    # The file's readers say on standard error what they would say to their users.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="distree-fuzz-"))
    targets = [TARGETS[name] for name in args.target or TARGETS]
    began = time.monotonic()
    tallies = run(targets, args.messages, args.files, args.seed, folder)
    print(table(list(HEADINGS), rows(tallies)))
    total = sum(tally.count for tally in tallies.values())
    print(f"{total:,} in {time.monotonic() - began:.0f} s, seed {args.seed}")
    print(f"memory of one: by tracemalloc, {MEASURED:,} of a target at most, drawn from the first tenth")
    print("highest: of the process above its start, whatever it read")
    print("resident: with what is free given back to the system")
    if args.markdown is not None:
        args.markdown.write_text(as_markdown(tallies) + "\n")
    wrong = problems(tallies)
    for line in wrong:
        print(line, file=sys.stderr)
    if not any(tally.failures for tally in tallies.values()):
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
