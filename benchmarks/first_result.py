"""`make first-result`: from a bare virtual environment to the first result, as the tutorial says it, timed.

In an empty folder: a new virtual environment, DistrEE from this checkout with the extras that the tutorial names, then
the commands of docs/tutorial/chain.md up to the first result of a board of one's own. What pip has cached makes it
faster: `--no-cache` does without. `--out` writes the table as Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
from pathlib import Path

from broker_config.managed import find_mosquitto, free_port
from distree.errors import BrokerError
from tools.pages import ROOT, Runner

PAGE = ROOT / "docs" / "tutorial" / "chain.md"
FIRST_RESULT = "distree.result/1"
"""Stands in the block that shows it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="From a bare virtual environment to the first result, timed.",
        epilog="example: python -m benchmarks.first_result --out docs/results/first-result.md",
    )
    parser.add_argument("--no-cache", action="store_true", help="without what pip has cached")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there, as Markdown")
    args = parser.parse_args()
    if find_mosquitto() is None:
        raise BrokerError("the tutorial needs mosquitto", "run: apt install mosquitto")
    with tempfile.TemporaryDirectory(prefix="distree-first-") as name:
        folder = Path(name)
        path = os.pathsep.join([str(folder / "venv" / "bin"), os.environ["PATH"], "/usr/sbin"])
        environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
        environment.pop("PYTHONPATH", None)
        if args.no_cache:
            environment["PIP_NO_CACHE_DIR"] = "1"
        with Runner(folder, {1884: free_port()}, environment) as runner:
            runner.play(PAGE, install=True, until=FIRST_RESULT)
            told = table(runner.seconds)
    print(told)
    if args.out is not None:
        args.out.write_text(page(told, args.no_cache), encoding="utf-8")


def table(seconds: list[tuple[str, float]]) -> str:
    """Return a table of commands, their seconds and the sum so far; the last one ends with the first result."""
    lines = ["| command | seconds | total seconds |", "|---|---|---|"]
    passed = 0.0
    for command, taken in seconds:
        passed += taken
        lines.append(f"| `{command}` | {taken:.1f} | {passed:.1f} |")
    return "\n".join(lines)


def page(told: str, no_cache: bool) -> str:
    """Return the page of docs/results."""
    cached = "without pip's cache" if no_cache else "with packages in pip's cache"
    return f"""# From nothing to the first result

`make first-result` follows the [first part of the tutorial](../tutorial/chain.md) in an empty folder: it creates a
virtual environment, installs DistrEE from the checkout with the extra `images`, runs the demo, and starts a board until
its first result is printed. The time of a command that starts a program ends when the program prints what the tutorial
shows.

One run on {datetime.date.today()}: {platform.system()} on {platform.machine()}, {os.cpu_count()} cores, Python
{platform.python_version()}, {cached}.

{told}
"""


if __name__ == "__main__":
    main()
