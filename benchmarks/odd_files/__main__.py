"""Print what comes of odd files, by whatever way they are handed over, as docs/results/odd-files.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.odd_files.accuracy import LOSSY, variants
from benchmarks.odd_files.sets import BUNDLES, files_for
from benchmarks.odd_files.ways import WAYS, Ways, differing

_HEAD = """# Odd files

<!-- Written by `python -m benchmarks.odd_files --out docs/results/odd-files.md`: changes here are lost. -->

Files of all kinds, handed to real agents on a real broker in four ways: put into a folder, published on a topic as they
are, sent by `distree submit`, and decoded and submitted by a Python program. Each has the same labels and confidences,
to the four digits that results have, or is refused for the same reason in the same words, by all four ways. Only an
empty file is not published as it is, since MQTT has no empty messages: it goes in an `InputMessage`.
"""


def main() -> int:
    """Print the tables; return 0 if no file fares differently by any way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", action="append", choices=BUNDLES, help="only these")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: print it)")
    args = parser.parse_args()
    lines, wrong = [_HEAD], []
    for bundle in args.bundle or BUNDLES:
        with tempfile.TemporaryDirectory() as folder, Ways(bundle, Path(folder)) as ways:
            outcomes = ways.hand_over(files_for(ways.bundle))
        wrong += [f"{bundle}: {line}" for line in differing(outcomes)]
        alike = len(outcomes) - len([*differing(outcomes)])
        lines += [
            f"## {bundle}\n",
            f"{len(outcomes)} files, {alike} of them with the same outcome by {', '.join(WAYS[:-1])} and {WAYS[-1]}.\n",
            "| files | outcome |",
            "|---|---|",
        ]
        alike_by: dict[str, list[str]] = {}
        for name, by_way in outcomes.items():
            alike_by.setdefault(str(by_way["folder"]), []).append(name)
        lines += [f"| {', '.join(names)} | {_cell(outcome)} |" for outcome, names in alike_by.items()]
        lines.append("")
    lines += ["## The same picture, stored in other ways\n", _ABOUT, ""]
    for bundle in ("fashion", "cifar10-wide"):
        if bundle in (args.bundle or BUNDLES):
            lines += [f"| {bundle} | raw input bit for bit the sample's | {_MEASURE[bundle]} |", "|---|---|---|"]
            for one in variants(bundle):
                lines.append(f"| {one.name} | {one.identical:.1%} | {one.accuracy:.1%} |")
                if one.name not in LOSSY and abs(one.accuracy - one.of_samples) > 0.005:
                    wrong.append(f"{bundle}: {one.name}: {one.accuracy:.1%} instead of {one.of_samples:.1%}")
            lines.append("")
    text = "\n".join(lines).rstrip() + "\n"
    if args.out is None:
        sys.stdout.write(text)
    else:
        args.out.write_text(text, encoding="utf-8")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


_MEASURE = {"fashion": "accuracy", "cifar10-wide": "answered as the sample itself"}
_ABOUT = f"""All shipped samples of a bundle, each saved as a picture and read again. Only two of these forms lose
anything: {LOSSY[0]}, and {LOSSY[1]}. The samples of `cifar10-wide` have no labels, so
the share is given that is answered as the sample itself."""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
