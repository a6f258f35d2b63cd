"""`python -m tools.extras`: whether the package and all its extras can be installed together.

One run of uv's resolver over pyproject.toml, for every Python and machine that the package is for: what resolves
together resolves by itself too. Only metadata is fetched, so it takes seconds. Exit status 1 and the resolver's
reason where requirements contradict each other; 0 where they do not, or where no package index can be reached,
which is said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LIMIT_S = 120.0
# What uv says where there is no network, and where requirements do not fit.
_UNREACHABLE, _CONTRADICTION = "Failed to fetch", "No solution found"


def check(project: Path) -> int:
    """Resolve `project`, a pyproject.toml, with all its extras; say how it went and return the exit status."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--universal", "--all-extras", "--quiet", str(project)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"{project}: not checked: the package index did not answer within {_LIMIT_S:g} s")
        return 0
    if done.returncode == 0:
        packages = sum(1 for line in done.stdout.splitlines() if line[:1].isalnum())
        print(f"{project}: the package and all its extras resolve together, to {packages} packages")
        return 0
    if _UNREACHABLE in done.stderr:
        print(f"{project}: not checked: no package index can be reached\n{done.stderr.strip()}")
        return 0
    contradict = _CONTRADICTION in done.stderr
    why = "the requirements contradict each other; change their versions" if contradict else "uv cannot read it"
    print(f"{project}: {why}\n{done.stderr.strip()}")
    return 1


def main() -> int:
    """Check the project named on the command line, by default this one."""
    parser = argparse.ArgumentParser(prog="python -m tools.extras", description=str(__doc__).partition(": ")[2])
    parser.add_argument("project", nargs="?", type=Path, default=ROOT / "pyproject.toml")
    return check(parser.parse_args().project)


if __name__ == "__main__":
    sys.exit(main())
