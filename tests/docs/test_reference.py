"""The generated pages say what the code says, and every command's help has an example."""

from __future__ import annotations

from pathlib import Path

import pytest

from distree.apps import cli
from distree.record import record
from distree.strict_yaml import Share
from distree.topics import Kind, Role
from tools import reference

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_up_to_date(name):
    assert (FOLDER / name).read_text(encoding="utf-8") == reference.page(name), "run: make reference"


def test_no_page_is_left_over():
    provoked = {"error-messages.md"}  # of tests/integration/provoked.py
    assert {path.name for path in FOLDER.glob("*.md")} == {*reference.PAGES, *provoked}


COMMANDS = [
    *map(reference.group, cli.COMMANDS),
    *(parser for name in cli.COMMANDS for _, parser in reference.commands(name)),
]


@pytest.mark.parametrize("command", COMMANDS, ids=[command.prog for command in COMMANDS])
def test_the_help_of_a_command_has_an_example_of_it(command):
    text = " ".join(command.format_help().split())
    assert "example" in text
    assert text.count(command.prog) > 1, "once in the usage, once in the example"


@record
class Sample:
    """A sample. With `spoken` it is heard."""

    rate_hz: float
    """How many
    a second."""
    share: Share = Share(0.25)
    """A part."""
    spoken: bool = False
    kinds: tuple[int, ...] = ()
    """What kinds."""


def test_keys_come_with_type_default_unit_and_meaning():
    assert reference._keys(Sample, {}).splitlines()[2:] == [
        "| `rate_hz` | number | required | 1/s | How many a second. |",
        "| `share` | share | `25%` |  | A part. |",
        "| `spoken` | `true` or `false` | `false` |  | With `spoken` it is heard. |",
        "| `kinds` | list of integer |  |  | What kinds. |",
    ]


def test_a_key_without_a_meaning_is_told():
    @record
    class Silent:
        """Says nothing of its key."""

        key: int = 0

    with pytest.raises(ValueError, match="key: write what it means"):
        reference._keys(Silent, {})


def test_every_kind_of_message_has_a_meaning():
    assert set(reference.docs_under(Kind)) == {kind.name for kind in Kind}
    assert set(reference.docs_under(Role)) == {role.name for role in Role}
