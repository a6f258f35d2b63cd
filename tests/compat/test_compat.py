"""What any released version has written is read by this one: bytes as they came, and what they said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from compat_messages import HERE, MESSAGES, encoded, plain

from distree import __version__
from distree.messages.codec import decode
from distree.topics import DELIVERY, JSON
from tools import json_schema
from tools.json_schema import schema_of

FIXTURES = sorted(HERE.glob("*/*.bin"))
NOW = HERE / __version__
HOW = f"run python tests/compat/compat_messages.py, and see that nothing of {NOW.name} changes once it is released"


def decoded(path: Path) -> Any:
    return decode(type(MESSAGES[path.stem]), path.read_bytes())


def assert_says(read: Any, said: Any, where: str) -> None:
    """Fail unless `read` has all of `said`; keys that a later version has added are its own."""
    if isinstance(said, dict):
        for name, value in said.items():
            assert name in read, f"{where}.{name} is no longer read"
            assert_says(read[name], value, f"{where}.{name}")
    elif isinstance(said, list):
        assert len(read) == len(said), where
        for k, (mine, theirs) in enumerate(zip(read, said, strict=True)):
            assert_says(mine, theirs, f"{where}[{k}]")
    elif isinstance(said, float):
        assert read == pytest.approx(said), where
    else:
        assert read == said, where


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_a_version_wrote_is_read_as_it_was_meant(path):
    said = json.loads((path.parent / "said.json").read_text(encoding="utf-8"))
    assert_says(plain(decoded(path)), said[path.stem], path.stem)


def test_every_version_has_the_fixtures_that_it_says():
    versions = {path.parent for path in FIXTURES}
    assert HERE / "0.1.0" in versions
    for folder in versions:
        said = json.loads((folder / "said.json").read_text(encoding="utf-8"))
        assert {path.stem for path in folder.glob("*.bin")} == said.keys()
        assert len(said) >= 20


def test_this_version_has_fixtures_and_writes_them_still():
    assert NOW.is_dir(), HOW
    assert {path.stem for path in NOW.glob("*.bin")} == MESSAGES.keys(), HOW
    for name, message in MESSAGES.items():
        assert (NOW / f"{name}.bin").read_bytes() == encoded(message), f"{name}: {HOW}"


def test_every_message_type_has_a_fixture():
    assert {type(message) for message in MESSAGES.values()} == set(json_schema.MESSAGES.values())


def keys_of(schema: dict[str, Any], at: str = "") -> set[str]:
    """All keys that a schema knows, each with where it stands."""
    found = set()
    for name, part in schema.get("properties", {}).items():
        found |= {f"{at}.{name}"} | keys_of(part, f"{at}.{name}")
    items = schema.get("items")
    return found | (keys_of(items, f"{at}[]") if isinstance(items, dict) else set())


def keys_in(value: Any, at: str = "") -> set[str]:
    if isinstance(value, dict):
        return {f"{at}.{name}" for name in value}.union(
            *(keys_in(part, f"{at}.{name}") for name, part in value.items())
        )
    return set().union(*(keys_in(part, f"{at}[]") for part in value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("kind", json_schema.MESSAGES)
def test_every_key_of_a_message_stands_in_a_fixture(kind):
    unpack = json.loads if DELIVERY[kind].content_type == JSON else msgpack.unpackb
    written: set[str] = set()
    for name, message in MESSAGES.items():
        if isinstance(message, json_schema.MESSAGES[kind]):
            written |= keys_in(unpack((NOW / f"{name}.bin").read_bytes()))
    known = {key for key in keys_of(schema_of(kind)) if ".reasons." not in key}
    assert {key for key in written if ".reasons." not in key} == known
