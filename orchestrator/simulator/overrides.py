"""A fleet.yaml with some of its values overridden, read by the same reader as the file itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from distree import strict_yaml
from distree.errors import ConfigError
from orchestrator.simulator.config import FleetConfig


def load_fleet(path: Path, overrides: Sequence[str] = ()) -> FleetConfig:
    """Read fleet.yaml with each `key.key=value` of `overrides` set in it.

    In a list, a key is the `name` of an entry or its place, from 0. Raises ConfigError: for the file with its line,
    for an override with its words.
    """

    def edit(root: yaml.Node) -> None:
        for override in overrides:
            _override(root, override)

    return strict_yaml.load(path, FleetConfig, edit)


def _override(root: yaml.Node, override: str) -> None:
    where = f"--set {override}"
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"{where}: expected KEY=VALUE", "write, for example, traffic.rate_hz=2 or boards.0.count=100")
    try:
        value = yaml.compose(text, yaml.SafeLoader) or yaml.ScalarNode("tag:yaml.org,2002:null", "")
    except yaml.YAMLError:
        raise ConfigError(f"{where}: the value is not YAML", "quote it for your shell") from None
    _mark(value, where)
    *parents, last = path.split(".")
    node = root
    for part in parents:
        node = _child(node, part, where)
    _put(node, last, value, where)


def _mark(node: yaml.Node, where: str) -> None:
    """Have problems with a node reported in the words of its override."""
    node.start_mark = yaml.Mark(where, 0, 0, 0, None, 0)
    if isinstance(node, yaml.MappingNode):
        for entry in node.value:
            for child in entry:
                _mark(child, where)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _mark(child, where)


def _child(node: yaml.Node, key: str, where: str) -> yaml.Node:
    if isinstance(node, yaml.SequenceNode):
        return node.value[_place(node, key, where)]  # type: ignore[no-any-return]
    if isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            if name.value == key:
                return child  # type: ignore[no-any-return]
    made = yaml.MappingNode("tag:yaml.org,2002:map", [])
    _mark(made, where)
    _put(node, key, made, where)
    return made


def _put(node: yaml.Node, key: str, value: yaml.Node, where: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        node.value[_place(node, key, where)] = value
    elif isinstance(node, yaml.MappingNode):
        name = yaml.ScalarNode("tag:yaml.org,2002:str", key)
        _mark(name, where)
        node.value = [entry for entry in node.value if entry[0].value != key] + [(name, value)]
    else:
        raise ConfigError(f"{where}: {node.value!r} has no keys, so {key} cannot be set in it", "correct the key")


def _place(node: yaml.SequenceNode, key: str, where: str) -> int:
    names = [_name(entry) for entry in node.value]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(names):
        return int(key)
    there = ", ".join(name or str(place) for place, name in enumerate(names)) or "none"
    raise ConfigError(f"{where}: the list has no entry {key}", f"name one of its entries: {there}")


def _name(entry: yaml.Node) -> str | None:
    if isinstance(entry, yaml.MappingNode):
        for key, value in entry.value:
            if key.value == "name":
                return str(value.value)
    return None
