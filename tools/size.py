"""`python -m tools.size`: the largest files and classes of the product, and how many lines of source it has.

Lines are those of the file, with comments, docstrings and empty ones: what a reader has to scroll through. A class is
counted from its first decorator to its last line.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from distree.record import record

ROOT = Path(__file__).parents[1]
PACKAGES = ("distree", "device_agent", "orchestrator", "model_zoo", "broker_config")

CLASS_LINES = 400
"""No class is longer."""

FILE_LINES = 600
"""No file is longer."""


@record
class Part:
    """A file or a class: its lines, and its name as `path` or `path::Class`, the path from the root of the project."""

    lines: int
    name: str


def files(root: Path = ROOT) -> list[Part]:
    """Return the Python files of all packages, the longest first."""
    return _longest_first(Part(lines=len(text.splitlines()), name=name) for name, text in _sources(root))


def classes(root: Path = ROOT) -> list[Part]:
    """Return the classes of all packages, inner ones too, the longest first."""
    return _longest_first(
        Part(lines=(node.end_lineno or node.lineno) - _begins(node) + 1, name=f"{name}::{node.name}")
        for name, text in _sources(root)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    )


def _sources(root: Path) -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def _begins(node: ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _longest_first(parts: Iterator[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: (-part.lines, part.name))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the largest of each kind, marked where they are beyond the limit, and the totals."""
    parser = argparse.ArgumentParser(prog="python -m tools.size", description=__doc__.splitlines()[0])
    parser.add_argument("--top", type=int, default=15, metavar="N", help="how many of each (default: %(default)s)")
    args = parser.parse_args(argv)
    all_files = files()
    for what, parts, limit in (("files", all_files, FILE_LINES), ("classes", classes(), CLASS_LINES)):
        above = sum(part.lines > limit for part in parts)
        print(f"{what}: {len(parts)}, of which {above} have more than {limit} lines")
        for part in parts[: args.top]:
            print(f"  {part.lines:>6,}{'!' if part.lines > limit else ' '} {part.name}")
    print("lines of source")
    for package in PACKAGES:
        print(f"  {sum(part.lines for part in all_files if part.name.startswith(f'{package}/')):>6,}  {package}")
    print(f"  {sum(part.lines for part in all_files):>6,}  in all")


if __name__ == "__main__":
    main()
