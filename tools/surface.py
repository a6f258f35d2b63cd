"""`python -m tools.surface`: write down the public surface, so that a diff shows when it changes.

What people and programs rely on: names that the packages export, commands and their options, exit statuses, keys of
YAML files, topics, and what messages hold. A test compares it with tests/structure/public_surface.txt, which this
writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import json
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distree import errors, topics
from distree.apps import cli
from distree.bundle.manifest import MANIFEST, Manifest
from distree.messages.layout import REQUIRED, Layout, layout_of
from tools import reference
from tools.json_schema import MESSAGES

PATH = Path(__file__).parents[1] / "tests" / "structure" / "public_surface.txt"

PACKAGES = ("distree", "device_agent")
"""Those from which programs import names."""


def surface() -> str:
    """Return the public surface, one thing a line."""
    parts: dict[str, Iterable[str]] = {
        "Python": (line for package in PACKAGES for line in _package(package)),
        "errors": _errors(),
        "commands": _commands(),
        "exit statuses": (f"{status}: {meaning}" for status, meaning in reference.STATUSES),
        "YAML": (line for file, cls in _files() for line in _keys(file, cls)),
        "topics": _topics(),
        "messages": _messages(),
    }
    head = "The public surface. Written by `python -m tools.surface`: a change here is one that users notice.\n"
    return head + "".join(f"\n# {title}\n" + "".join(f"{line}\n" for line in lines) for title, lines in parts.items())


# ------------------------------------------------------------------ Python


def _package(package: str) -> Iterator[str]:
    module = importlib.import_module(package)
    for name in sorted(module.__all__):
        found = getattr(module, name)
        if not isinstance(found, type):
            yield f"{package}.{name}"
            continue
        yield f"{package}.{name}{_signature(found)}"
        if dataclasses.is_dataclass(found):
            yield from (f"{package}.{name}.{field.name}: {field.type}" for field in dataclasses.fields(found))
        yield from (f"{package}.{name}.{member}" for member in _members(found))


def _signature(called: Any) -> str:
    if dataclasses.is_dataclass(called):
        return ""  # made of its fields
    # Annotations are strings, which a signature shows in quotes.
    shown = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(called)))
    return re.sub(r"\(self(, )?", "(", shown)


def _members(cls: type) -> Iterator[str]:
    """Yield the public methods and properties of a class, inherited ones too."""
    for name, member in sorted(inspect.getmembers(cls)):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield name
        elif inspect.isroutine(member):
            yield f"{name}{_signature(member)}"


def _errors() -> Iterator[str]:
    for name, cls in sorted(vars(errors).items()):
        if isinstance(cls, type) and issubclass(cls, errors.DistreeError):
            yield f"{name}({', '.join(base.__name__ for base in cls.__bases__)})"


# ------------------------------------------------------------------ commands


def _commands() -> Iterator[str]:
    for line, parser in (one for name in cli.COMMANDS for one in reference.commands(name)):
        yield line
        for action in parser._actions:
            if action.dest != "help":
                name, default, _ = reference.option_of(parser, action)
                yield f"{line} {name}{f' = {default}' if default else ''}".replace("`", "")


# ------------------------------------------------------------------ files


def _files() -> Iterator[tuple[str, type]]:
    yield from ((file, cls) for file, cls, _ in reference.FILES)
    yield MANIFEST, Manifest


def _keys(file: str, root: type) -> Iterator[str]:
    sections = list(reference.key_sections(root))
    known = dict.fromkeys((cls for _, cls in sections), "")
    for path, cls in sections:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            kind = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", reference.type_name(hints[field.name], known)).replace(
                "`", ""
            )
            default = reference.default_of(field).replace("`", "")
            key = f"{path}.{field.name}" if path else field.name
            yield f"{file} {key}: {kind}{f' = {default}' if default else ''}"


# ------------------------------------------------------------------ topics and messages


def _topics() -> Iterator[str]:
    for kind, topic in topics.TABLE.items():
        how = topic.delivery
        roles = (", ".join(sorted(role.value for role in of)) for of in (topic.publishers, topics.readers(kind)))
        retained = ", retained" if how.retain else ""
        yield f"{topics.template(kind)}: {' to '.join(roles)}; QoS {how.qos}{retained}, {how.content_type}"


def _messages() -> Iterator[str]:
    seen: set[tuple[type, bool]] = set()
    for kind, cls in MESSAGES.items():
        layout = layout_of(cls)
        word = layout.word if layout.is_json else f"{layout.word} version {layout.version}"
        yield f"{kind.value}: {cls.__name__}, {'JSON' if layout.is_json else 'MessagePack'} {word}"
        yield from _fields(kind.value, layout, is_json=layout.is_json)
        for inner in reference.parts_of(layout, is_json=layout.is_json):
            if (inner, layout.is_json) not in seen:
                seen.add((inner, layout.is_json))
                form = "JSON" if layout.is_json else "MessagePack"
                yield from _fields(f"{inner.__name__} in {form}", layout_of(inner), is_json=layout.is_json)


def _fields(of: str, layout: Layout, *, is_json: bool) -> Iterator[str]:
    for field in (*layout.fields, *layout.beside):
        default = "" if field.default is REQUIRED else f" = {json.dumps(field.default)}"
        nullable = " or null" if field.nullable else ""
        value = _without_links(reference.form_text(field.form_in(is_json=is_json), is_json=is_json))
        yield f"{of} {field.key_in(is_json=is_json)}: {value}{nullable}{default}"


def _without_links(text: str) -> str:
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("`", "")


def main() -> None:
    """Write the file."""
    argparse.ArgumentParser(prog="python -m tools.surface", description=main.__doc__).parse_args()
    PATH.write_text(surface(), encoding="utf-8")
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
