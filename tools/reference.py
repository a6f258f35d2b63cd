"""`python -m tools.reference`: write docs/reference from the code, so that it says what the code does.

Topics come from `distree.topics`, payloads from the fields declared in `distree.messages`, keys of configuration files
from the dataclasses that read them, commands from their parsers, errors from `distree.errors`. What a key or a kind of
message means is the string that stands under it in its class. New ones are found by themselves.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import itertools
import json
import math
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from device_agent.config import AgentConfig
from distree import errors, topics
from distree.apps import cli
from distree.bundle.manifest import InputSpec, Preprocess
from distree.messages.forms import Branches, Form, Items, Packed, PackedItems, Part
from distree.messages.layout import REQUIRED, Layout, layout_of
from distree.strict_yaml import Share
from distree.thresholds import NEVER_WORD, Threshold
from orchestrator.config import OrchestratorConfig
from orchestrator.simulator.config import FleetConfig
from tools.json_schema import MESSAGES, unit_of
from tools.json_schema import summary as payload_summary

FILES = (
    ("agent.yaml", AgentConfig, "Describes a board, for `distree agent run -c agent.yaml`."),
    (
        "orchestrator.yaml",
        OrchestratorConfig,
        "Describes an orchestrator, for `distree orchestrator run -c orchestrator.yaml`.",
    ),
    ("fleet.yaml", FleetConfig, "Describes a simulated site, for `distree simulate -c fleet.yaml`."),
)

UNITS = (  # of the end of a key's name
    ("_mj_per_mmac", "mJ per million"), ("mj_per_mmac", "mJ per million"), ("mj_per_kb", "mJ per kB"),
    ("kbit_per_s", "kbit/s"), ("macs_per_s", "1/s"), ("_s", "s"), ("_ms", "ms"), ("_hz", "1/s"), ("_mj", "mJ"),
    ("_mb", "MiB"), ("_kib", "KiB"), ("_px", "pixels"), ("_days", "days"), ("_bytes", "bytes"),
    ("bytes_per_input", "bytes"),
)  # fmt: skip

STATUSES = (
    ("0", "success"),
    (
        "1",
        "failure: a broker that cannot be reached, inputs without an answer, a time-out, a plan that others replace",
    ),
    ("2", "wrong usage: an error in the options, a configuration file or a bundle"),
    ("70", "an agent's inference hung; it should be restarted"),
    ("130", "ended by Ctrl-C"),
    ("141", "the program that read the output has ended"),
)


PAGES = ("topics.md", "payloads.md", "configuration.md", "inputs.md", "commands.md", "errors.md")


def page(name: str) -> str:
    """Return one of PAGES."""
    match name:
        case "topics.md":
            return _topics()
        case "payloads.md":
            return _payloads()
        case "configuration.md":
            return _configuration()
        case "inputs.md":
            return _inputs()
        case "commands.md":
            return _commands()
        case "errors.md":
            return _errors()
    raise ValueError(f"no page {name}")


def main(folder: Path = Path("docs/reference")) -> None:
    """Write the pages into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        (folder / name).write_text(page(name), encoding="utf-8")
    print(f"wrote {', '.join(PAGES)} to {folder}")


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", "<!-- Written by `make reference`: changes here are lost. -->", *parts)) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ------------------------------------------------------------------ strings under names


@functools.cache
def docs_under(cls: type) -> Mapping[str, str]:
    """Return what stands under the names of a class's body, by name, on one line each."""
    found = {}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    for item, after in itertools.pairwise(getattr(definition, "body", [])):
        match item, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found


def _meaning(cls: type, name: str) -> str:
    """Return what stands under the field, else the sentences of the class that name it; ValueError without any."""
    if text := docs_under(cls).get(name):
        return text
    sentences = re.split(r"(?<=[.;])\s+", " ".join((cls.__doc__ or "").split()))
    if told := " ".join(sentence for sentence in sentences if f"`{name}`" in sentence):
        return told
    raise ValueError(f"{cls.__module__}.{cls.__name__}.{name}: write what it means in a string under it")


# ------------------------------------------------------------------ topics


def _topics() -> str:
    meanings, roles = docs_under(topics.Kind), docs_under(topics.Role)
    rows = [
        (
            f"`{topics.template(kind)}`",
            _roles(topic.publishers),
            _roles(topics.readers(kind)),
            str(topic.delivery.qos),
            "yes" if topic.delivery.retain else "no",
            f"`{topic.delivery.content_type}`",
            meanings[kind.name],
        )
        for kind, topic in topics.TABLE.items()
    ]
    return _page(
        "Topics",
        f"All topics of version 1 begin with `{topics.ROOT}/{{site}}`. Names in braces are ids of 1 to 32 characters "
        f"from a-z, 0-9 and '-', and `{{stage}}` is the number of a stage. As `{{to}}`, `{topics.ALL}` stands for all "
        f"boards of a wide stage, so no board may be called `{topics.ALL}`.",
        _table(("topic", "from", "to", "QoS", "retained", "content type", "meaning"), rows),
        "Topics between boards end in `{sender}`, the board that publishes the message. Before that is the id of the "
        "board it is for: `{to}`, `{device}` or `{origin}`. *From* and *to* name roles:",
        _table(("role", "who has it"), [(f"`{role.value}`", roles[role.name]) for role in topics.Role]),
        "[Payloads](payloads.md) describes the messages, [subscribe from your own program](../howto/subscribe.md) "
        "shows a result, and [secure the broker](../howto/secure-broker.md) has access rules.",
    )


def _roles(roles: frozenset[topics.Role]) -> str:
    return ", ".join(f"`{role.value}`" for role in topics.Role if role in roles)


# ------------------------------------------------------------------ payloads


def _payloads() -> str:
    sections: dict[str, tuple[str, str]] = {}
    for kind, cls in MESSAGES.items():
        layout = layout_of(cls)
        coded = f"JSON, schema `{layout.word}`"
        if not layout.is_json:
            coded = f"MessagePack, kind `{layout.word}`, version {layout.version}"
        what = f"{payload_summary(cls)} Topic `{kind.value}`; {coded}."
        sections[cls.__name__] = what, _payload_fields(layout, is_json=layout.is_json)
    for cls in MESSAGES.values():
        is_json = layout_of(cls).is_json
        for inner in parts_of(layout_of(cls), is_json=is_json):
            form = "a list" if layout_of(inner).is_row and not is_json else "a map"
            what = f"{payload_summary(inner)} Part of other messages, as {form}."
            sections[_part_name(inner, is_json=is_json)] = what, _payload_fields(layout_of(inner), is_json=is_json)
    head = (
        "The contents of every message. A MessagePack message is a map that begins with its version, `v`, and its "
        "`kind`; a JSON message begins with its `schema`. Fields with a default may be missing; in a list, trailing "
        "ones are. Readers ignore unknown keys, and list items beyond the known fields. The same is available as "
        "schemas in [asyncapi.yaml](../asyncapi.yaml). [Topics](topics.md) says where each message is published."
    )
    return _page("Payloads", head, *(part for name, parts in sections.items() for part in (f"## {name}", *parts)))


def _part_name(cls: type, *, is_json: bool) -> str:
    """Return the heading of a part; what MessagePack has as a list is another thing in JSON."""
    return f"{cls.__name__} in JSON" if is_json and layout_of(cls).is_row else cls.__name__


def parts_of(layout: Layout, *, is_json: bool) -> Iterator[type]:
    """Yield the records inside of one, each before those inside of it."""
    for field in layout.fields:
        form = field.form_in(is_json=is_json)
        form = form.items if isinstance(form, PackedItems) else form
        form = form.item if isinstance(form, Items) else form
        if isinstance(form, Part | Packed):
            yield form.cls
            yield from parts_of(layout_of(form.cls), is_json=is_json)


def _payload_fields(layout: Layout, *, is_json: bool) -> str:
    rows = []
    for field in (*layout.fields, *layout.beside):
        what = form_text(field.form_in(is_json=is_json), is_json=is_json)
        default = "" if field.default is REQUIRED else f"`{json.dumps(field.default)}`"
        name = field.key_in(is_json=is_json)
        rows.append(
            (f"`{name}`", f"{what}, or null" if field.nullable else what, default, unit_of(field, is_json=is_json),
             field.meaning)
        )  # fmt: skip
    return _table(("field", "value", "default", "unit", "meaning"), rows)


def form_text(form: Form, *, is_json: bool) -> str:
    """Return what a field holds in words; parts as links to where they are described."""
    match form:
        case Branches():
            return form.description
        case Items():
            return f"list of at most {form.most}, each {form_text(form.item, is_json=is_json)}"
        case PackedItems():
            return f"bytes of packed rows, {form_text(form.items, is_json=is_json)}"
        case Part() | Packed():
            name = _part_name(form.cls, is_json=is_json)
            link = f"[{name}](#{name.lower().replace(' ', '-')})"
            return f"bytes of a packed {link}" if isinstance(form, Packed) else link
    return form.description


# ------------------------------------------------------------------ configuration


def _configuration() -> str:
    sections = [(file, path, cls) for file, root, _ in FILES for path, cls in key_sections(root)]
    known: dict[type, str] = {}
    for file, path, cls in sections:
        known.setdefault(cls, _anchor(file, path))
    parts = []
    for file, _, what in FILES:
        parts += [f"## {file}", f"{what} A commented example is in `examples/{file}`."]
        for of, path, cls in sections:
            if of == file and known[cls] == _anchor(file, path):
                parts += [f"### {_heading(file, path)}", _summary(cls), _keys(cls, known)]
    return _page(
        "Configuration",
        "The keys of the YAML files. Mistakes are reported with file, line, key and value. `distree agent check` "
        "checks a board's file without running anything. Shares are written as `1%` or `0.01`. All paths, including "
        "those of bundles and of defaults, are relative to the folder of the file that names them.",
        *parts,
    )


def _inputs() -> str:
    sections = [("input", InputSpec), *((path, cls) for path, cls in key_sections(Preprocess, "preprocess"))]
    known: dict[type, str] = {}
    for path, cls in sections:
        known.setdefault(cls, _anchor_of(f"`{path}`"))
    parts = []
    for path, cls in sections:
        if known[cls] != _anchor_of(f"`{path}`"):
            continue
        definition = [_linked(paragraph) for paragraph in (inspect.getdoc(cls) or "").split("\n\n")]
        if path.startswith("preprocess.frontend ("):
            module = inspect.getdoc(inspect.getmodule(cls)) or ""
            definition = [_linked(paragraph) for paragraph in module.split("\n\n")]
        parts += [f"## `{path}`", *definition, _keys(cls, known)]
    return _page(
        "What a bundle declares of its inputs",
        "Keys of `input` and `preprocess` in bundle.yaml. What people hand over, and what becomes of it: "
        "[data](../howto/data.md). Training, `distree zoo` and boards run the same code by them.",
        *parts,
    )


def _linked(paragraph: str) -> str:
    """Return a paragraph of a docstring on one line, a formula as a block."""
    if paragraph.startswith("    "):
        return f"```text\n{textwrap.dedent(paragraph)}\n```"
    return " ".join(paragraph.split())


def _summary(cls: type) -> str:
    """Return the docstring's first paragraph on one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _heading(file: str, path: str) -> str:
    return f"{file}: `{path}`" if path else f"{file}: top"


def _anchor(file: str, path: str) -> str:
    return _anchor_of(_heading(file, path))


def _anchor_of(heading: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "", heading.lower().replace(" ", "-"))  # as MkDocs makes it


def key_sections(cls: type, path: str = "") -> Iterator[tuple[str, type]]:
    """Yield a dataclass and those in it, each with the key where it stands; `[]` is for each of a list."""
    yield path, cls
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = _classes(hints[field.name])
        for other in inner:
            key = f"{path}.{field.name}" if path else field.name
            key += "[]" if typing.get_origin(_without_none(hints[field.name])) is tuple else ""
            yield from key_sections(other, f"{key} ({_kind(other)})" if len(inner) > 1 else key)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (Union, types.UnionType):
        kept = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return kept[0] if len(kept) == 1 else Union[tuple(kept)]  # noqa: UP007 - made from a list
    return hint


def _classes(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [cls for arg in typing.get_args(hint) for cls in _classes(arg)]


def _kind(cls: type) -> str:
    (kind,) = typing.get_args(typing.get_type_hints(cls)["kind"])
    return str(kind)


def _keys(cls: type, known: dict[type, str]) -> str:
    hints = typing.get_type_hints(cls, include_extras=True)
    rows = []
    for field in dataclasses.fields(cls):
        unit = next((unit for end, unit in UNITS if field.name.endswith(end)), "")
        kind = type_name(hints[field.name], known)
        rows.append((f"`{field.name}`", kind, default_of(field), unit, _meaning(cls, field.name)))
    return _table(("key", "type", "default", "unit", "meaning"), rows)


def type_name(hint: Any, known: dict[type, str]) -> str:
    """Return the type of a key in words; a dataclass in `known` as a link to where it is described."""
    hint = _without_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin is tuple:
        return f"list of {type_name(args[0], known)}"
    if origin is dict:
        return f"mapping to {type_name(args[1], known)}"
    if origin in (Union, types.UnionType):
        return ", ".join(type_name(arg, known) for arg in args)
    if hint in known:
        name = f"`{_kind(hint)}`" if "kind" in typing.get_type_hints(hint) else "mapping"
        return f"[{name}](#{known[hint]})"
    names = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Path: "path"}
    names |= {Share: "share", Threshold: f"number or `{NEVER_WORD}`"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def default_of(field: Any) -> str:
    """Return the default of a key as it stands in the table."""
    if field.default_factory is not dataclasses.MISSING:
        return "its defaults"
    if field.default is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(field.default):
        return "its own"
    match field.default:
        case None | ():
            return ""
        case bool(value):
            return f"`{str(value).lower()}`"
        case Share() as value:
            return f"`{value * 100:g}%`"
        case float(value):
            return "unlimited" if math.isinf(value) else f"`{value:g}`"
        case tuple(values):
            return f"`[{', '.join(f'{value:g}' for value in values)}]`"
    return f"`{field.default}`"


# ------------------------------------------------------------------ commands


@functools.cache
def group(name: str) -> argparse.ArgumentParser:
    """Return the parser of a first word after distree."""
    parser, _ = cli._parser([name])
    return _subparsers(parser)[name]


def commands(name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command line of a group that does something, such as "distree agent run", with its parser."""
    yield from _leaves(group(name))


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _leaves(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    inner = _subparsers(parser)
    for child in inner.values():
        yield from _leaves(child)
    if not inner:
        yield parser.prog, parser


def _commands() -> str:
    parts = []
    for name, (_, summary) in cli.COMMANDS.items():
        parts += [f"## distree {name}", _sentence(summary)]
        for line, parser in commands(name):
            if line.count(" ") > 1:
                parts += [f"### {line}", _sentence(_helps(name)[line.split()[-1]])]
            rows = [option_of(parser, action) for action in parser._actions if action.dest != "help"]
            if rows:
                parts.append(_table(("argument", "default", "meaning"), rows))
            example = textwrap.dedent(re.sub(r"^examples?:( |\n)", "", parser.epilog or ""))
            parts.append(f"```text\n{example}\n```")
    return _page(
        "Commands",
        "`distree COMMAND --help` prints the same. Commands end with one of [these statuses](errors.md).",
        *parts,
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(("?", ".")) else ".")


def _helps(name: str) -> dict[str, str]:
    """Return the one-line helps of a group's commands, by the command's own word."""
    for action in group(name)._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {choice.dest: choice.help or "" for choice in action._choices_actions}
    return {}


def option_of(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str, str]:
    """Return how an argument is written, its default, and what it is for."""
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    value = str(action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper())
    value = f"`{value} …`" if action.nargs in ("*", "+") else f"`{value}`".replace("|", "` or `")
    value = "" if action.nargs == 0 else value
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    default = "" if action.nargs == 0 or action.default in (None, "", [], argparse.SUPPRESS) else f"`{action.default}`"
    if default:
        text = re.sub(rf"(; |\s*\(|^)default: {re.escape(str(action.default))}\)?", "", text)
    if action.required and action.nargs != "*":
        default = "required"
    return f"{names} {value}".strip(), default, text


# ------------------------------------------------------------------ errors


def _errors() -> str:
    rows = [
        (f"`{name}`", " ".join((cls.__doc__ or "").split()))
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.DistreeError) and cls.__module__ == errors.__name__
    ]
    return _page(
        "Errors and exit statuses",
        "An error is one line on standard error: what is wrong and where, then, after a semicolon, how to fix it. "
        "[Error messages](error-messages.md) lists them. The exit status tells the kinds apart:",
        _table(("status", "meaning"), [(f"`{status}`", meaning) for status, meaning in STATUSES]),
        "In Python, every error that DistrEE reports is a `distree.errors.DistreeError`, or one of its subclasses:",
        _table(("class", "meaning"), rows),
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
