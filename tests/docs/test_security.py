"""The tables of docs/explanation/security.md say what the code and the tests say."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from attack_table import ATTACKERS, EXPECTED, INSIDER

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without its own head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]


def test_the_outcomes_of_attacks_are_those_that_tests_expect() -> None:
    shown = {re.findall(r"`([a-z0-9_]+)`", what)[0]: (is_open, secured) for what, is_open, secured in attacks()}
    users = [name for name in ATTACKERS if name != "anybody"]
    assert shown == {
        name: (outcomes["anybody"], "; ".join(dict.fromkeys(outcomes[user] for user in users)))
        for name, outcomes in EXPECTED.items()
    }


def attacks() -> list[list[str]]:
    return rows("What needs a secured broker")


def test_what_an_insider_can_do_is_what_tests_try() -> None:
    assert [row[0].strip("`") for row in rows("What is not defended")] == list(INSIDER)


BOUNDS = rows("Bounds")


@pytest.mark.parametrize("row", BOUNDS, ids=[row[0] for row in BOUNDS])
def test_a_bound_is_the_one_that_is_declared(row: list[str]) -> None:
    _, shown, declared, _ = row
    path, name = re.findall(r"`([^`]+)`", declared)
    if path.endswith(".js"):
        (value,) = re.findall(rf"^const {name} = (\d+);", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    else:
        value = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert shown.split()[0] == f"{int(value):,}"


def test_the_dependencies_of_the_base_are_all_there() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = project.split("\ndependencies = [\n")[1].split("]\n")[0]
    wanted: dict[str, set[str]] = {}
    for name, versions in re.findall(r'"([a-z-]+)([^;"]+)', listed):
        wanted.setdefault(name, set()).add(versions)
    shown = {
        package.strip("`"): set(re.findall(r"`([<>=][^`]*)`", versions))
        for package, versions, *_ in rows("Dependencies")
    }
    assert shown == wanted


def test_there_is_a_way_to_report_a_fault() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    (anchor,) = re.findall(r"security\.md#([a-z-]+)", text)
    assert f"\n## {anchor.replace('-', ' ').capitalize()}\n" in PAGE
