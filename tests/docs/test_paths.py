"""Paths that the documentation names are there, and so are the names that it says are in them."""

from __future__ import annotations

import re

import pytest

from tools.pages import ROOT

TOP = (
    "benchmarks",
    "broker_config",
    "device_agent",
    "distree",
    "docs",
    "examples",
    "model_zoo",
    "orchestrator",
    "tests",
    "tools",
)
PAGES = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if path.parent.name != "reference" and path.name != "CHANGELOG.md"
]
IN_TABLE_OF = re.compile(r"^\| file in `(?P<folder>[\w/]+)/` \|")
NAME = re.compile(r"`(?P<name>[\w/]+\.(?:py|js|yaml|md|json)|[\w/]+/)`")


def named(text: str) -> set[str]:
    """Return the paths in backquotes: those that begin with a folder of the project, and files of a table about one."""
    found, folder = set(), None
    for line in text.splitlines():
        if head := IN_TABLE_OF.match(line):
            folder = head["folder"]
        elif not line.startswith("|"):
            folder = None
        elif folder is not None:
            first = line.split("|")[1]
            found |= {name if name.split("/")[0] in TOP else f"{folder}/{name}" for name in NAME.findall(first)}
        found |= {name for name in NAME.findall(line) if name.split("/")[0] in TOP and "/" in name.rstrip("/")}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_that_a_page_names_exist(page):
    assert not {name for name in named(page.read_text(encoding="utf-8")) if not (ROOT / name).exists()}


SAID_TO_BE_IN = re.compile(r"`(?P<name>[\w.]+)`\s+in\s+`(?P<path>[\w/]+\.py)`")


def test_names_that_a_page_says_are_in_a_file_are_there():
    said = [(path, match) for path in PAGES for match in SAID_TO_BE_IN.finditer(path.read_text(encoding="utf-8"))]
    assert len(said) >= 10
    for page, match in said:
        name, source = match["name"].split(".")[-1], (ROOT / match["path"]).read_text(encoding="utf-8")
        assert re.search(rf"\b{name}\b", source), f"{page.name}: {match[0]}"


def test_what_counts_as_a_path():
    text = "| file in `distree/node/` | what |\n|---|---|\n| `node.py`, `gone/` | `agent.py` |\n\n`tools/pages.py`, `x/y.py`\n"
    assert named(text) == {"distree/node/", "distree/node/node.py", "distree/node/gone/", "tools/pages.py"}
