"""`python -m tools.reference`: write docs/reference from the code, so that it says what the code does.

Topics come from `distree.topics`, payloads from the fields declared in `distree.messages`, keys of configuration files
from the dataclasses that read them, commands from their parsers, errors from `distree.errors`. What a key or a kind of
message means is the string that stands under it in its class. New ones are found by themselves.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import json
import math
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from device_agent.config import AgentConfig
from distree import errors, topics
from distree.apps import cli
from distree.bundle.manifest import InputSpec, Preprocess
from distree.messages.forms import Branches, Form, Items, Packed, PackedItems, Part
from distree.messages.layout import REQUIRED, Layout, layout_of
from distree.strict_yaml import Share
from orchestrator.config import OrchestratorConfig
from orchestrator.simulator.config import FleetConfig
from tools.json_schema import MESSAGES, unit_of
from tools.json_schema import summary as payload_summary

FILES = (
    ("agent.yaml", AgentConfig, "A board; `distree agent run -c agent.yaml`."),
    (
        "orchestrator.yaml",
        OrchestratorConfig,
        "An orchestrator; `distree orchestrator run -c orchestrator.yaml`.",
    ),
    ("fleet.yaml", FleetConfig, "A simulated site; `distree simulate -c fleet.yaml`."),
)

UNITS = (  # of the end of a key's name
    ("_mj_per_mmac", "mJ per million"), ("mj_per_mmac", "mJ per million"), ("mj_per_kb", "mJ per kB"),
    ("kbit_per_s", "kbit/s"), ("macs_per_s", "1/s"), ("_s", "s"), ("_ms", "ms"), ("_hz", "1/s"), ("_mj", "mJ"),
    ("_mb", "MiB"), ("kb", "KiB"), ("_days", "days"), ("_bytes", "bytes"), ("bytes_per_input", "bytes"),
)  # fmt: skip

STATUSES = (
    ("0", "it worked"),
    ("1", "it did not work out: a broker that cannot be reached, inputs without an answer, a time-out"),
    ("2", "it was asked wrongly: options, a configuration file or a bundle"),
    ("70", "an agent whose inference hung, to be restarted"),
    ("130", "Ctrl-C"),
    ("141", "what read the output is gone"),
)


def pages() -> dict[str, str]:
    """Return the pages by file name."""
    return {
        "topics.md": _topics(),
        "payloads.md": _payloads(),
        "configuration.md": _configuration(),
        "inputs.md": _inputs(),
        "commands.md": _commands(),
        "errors.md": _errors(),
    }


def main(folder: Path = Path("docs/reference")) -> None:
    """Write the pages into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"wrote {', '.join(pages())} to {folder}")


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", "<!-- Written by `make reference`: changes here are lost. -->", *parts)) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# ------------------------------------------------------------------ strings under names


def docs_under(cls: type) -> dict[str, str]:
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
            _roles(topic.subscribers),
            str(topic.delivery.qos),
            "yes" if topic.delivery.retain else "no",
            f"`{topic.delivery.content_type}`",
            meanings[kind.name],
        )
        for kind, topic in topics.TABLE.items()
    ]
    return _page(
        "Topics",
        f"Version 1: all topics begin with `{topics.ROOT}/{{site}}`. Names in braces are ids, 1 to 32 of a-z, 0-9 and "
        f"'-'; `{{stage}}` is the number of a stage. No board is called `{topics.ALL}`: as `{{to}}` it stands for all "
        "boards of a wide stage.",
        _table(("topic", "from", "to", "QoS", "retained", "content type", "what"), rows),
        "What boards say to each other ends in `{sender}`, the board that says it. What is for one board has its id "
        "before that: `{to}`, `{device}` or `{origin}`.",
        _table(("who", "what it is"), [(f"`{role.value}`", roles[role.name]) for role in topics.Role]),
        "How results look: [subscribe from your own program](../howto/subscribe.md). Who may publish what: [secure the "
        "broker](../howto/secure-broker.md).",
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
        what = f"{payload_summary(cls)} On topics of kind `{kind.value}`; {coded}."
        sections[cls.__name__] = what, _payload_fields(layout, is_json=layout.is_json)
    for cls in MESSAGES.values():
        is_json = layout_of(cls).is_json
        for inner in _parts(layout_of(cls), is_json=is_json):
            form = "a list" if layout_of(inner).is_row and not is_json else "a map"
            what = f"{payload_summary(inner)} As part of a message it is {form}."
            sections[_part_name(inner, is_json=is_json)] = what, _payload_fields(layout_of(inner), is_json=is_json)
    head = (
        "What messages hold. A MessagePack message is a map that begins with its version, `v`, and its `kind`, a JSON "
        "one with its `schema`. A field with a default is left out where it holds it, at the end of a list likewise. "
        "Unknown keys are ignored, and so is what a list has beyond its fields. The same as schemas: "
        "[asyncapi.yaml](../asyncapi.yaml); on which topics they are: [topics](topics.md)."
    )
    return _page("Payloads", head, *(part for name, parts in sections.items() for part in (f"## {name}", *parts)))


def _part_name(cls: type, *, is_json: bool) -> str:
    """Return the heading of a part; what MessagePack has as a list is another thing in JSON."""
    return f"{cls.__name__} in JSON" if is_json and layout_of(cls).is_row else cls.__name__


def _parts(layout: Layout, *, is_json: bool) -> Iterator[type]:
    """Yield the records inside of one, each before those inside of it."""
    for field in layout.fields:
        form = field.form_in(is_json=is_json)
        form = form.items if isinstance(form, PackedItems) else form
        form = form.item if isinstance(form, Items) else form
        if isinstance(form, Part | Packed):
            yield form.cls
            yield from _parts(layout_of(form.cls), is_json=is_json)


def _payload_fields(layout: Layout, *, is_json: bool) -> str:
    rows = []
    for field in (*layout.fields, *layout.beside):
        what = _told(field.form_in(is_json=is_json), is_json=is_json)
        default = "" if field.default is REQUIRED else f"`{json.dumps(field.default)}`"
        name = field.key_in(is_json=is_json)
        rows.append(
            (f"`{name}`", f"{what}, or null" if field.nullable else what, default, unit_of(field, is_json=is_json),
             field.meaning)
        )  # fmt: skip
    return _table(("field", "value", "default", "unit", "meaning"), rows)


def _told(form: Form, *, is_json: bool) -> str:
    match form:
        case Branches():
            return form.told
        case Items():
            return f"at most {form.most}, each {_told(form.item, is_json=is_json)}"
        case PackedItems():
            return f"bytes of packed rows, {_told(form.items, is_json=is_json)}"
        case Part() | Packed():
            name = _part_name(form.cls, is_json=is_json)
            link = f"[{name}](#{name.lower().replace(' ', '-')})"
            return f"bytes of a packed {link}" if isinstance(form, Packed) else link
    return form.told


# ------------------------------------------------------------------ configuration


def _configuration() -> str:
    sections = [(file, path, cls) for file, root, _ in FILES for path, cls in _sections(root)]
    known: dict[type, str] = {}
    for file, path, cls in sections:
        known.setdefault(cls, _anchor(file, path))
    parts = []
    for file, _, what in FILES:
        parts += [f"## {file}", f"{what} Commented: `examples/{file}`."]
        for of, path, cls in sections:
            if of == file and known[cls] == _anchor(file, path):
                parts += [f"### {_heading(file, path)}", _summary(cls), _keys(cls, known)]
    return _page(
        "Configuration",
        "Keys of the YAML files. A mistake is told with file, line, key and received value, and `distree agent check` "
        "tells without running anything. Shares are `1%` or `0.01`. Paths count from the folder of the file.",
        *parts,
    )


def _inputs() -> str:
    sections = [("input", InputSpec), *((path, cls) for path, cls in _sections(Preprocess, "preprocess"))]
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


def _sections(cls: type, path: str = "") -> Iterator[tuple[str, type]]:
    """Yield a dataclass and those in it, each with the key where it stands; `[]` is for each of a list."""
    yield path, cls
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = _classes(hints[field.name])
        for other in inner:
            key = f"{path}.{field.name}" if path else field.name
            key += "[]" if typing.get_origin(_without_none(hints[field.name])) is tuple else ""
            yield from _sections(other, f"{key} ({_kind(other)})" if len(inner) > 1 else key)


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
    hints = typing.get_type_hints(cls)
    rows = []
    for field in dataclasses.fields(cls):
        unit = next((unit for end, unit in UNITS if field.name.endswith(end)), "")
        kind = _type(hints[field.name], known)
        rows.append((f"`{field.name}`", kind, _default(field), unit, _meaning(cls, field.name)))
    return _table(("key", "type", "default", "unit", "meaning"), rows)


def _type(hint: Any, known: dict[type, str]) -> str:
    hint = _without_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin is tuple:
        return f"list of {_type(args[0], known)}"
    if origin is dict:
        return f"mapping to {_type(args[1], known)}"
    if origin in (Union, types.UnionType):
        return ", ".join(_type(arg, known) for arg in args)
    if hint in known:
        name = f"`{_kind(hint)}`" if "kind" in typing.get_type_hints(hint) else "mapping"
        return f"[{name}](#{known[hint]})"
    names = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Path: "path", Share: "share"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _default(field: Any) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "its own"
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
            return "for ever" if math.isinf(value) else f"`{value:g}`"
        case tuple(values):
            return f"`[{', '.join(f'{value:g}' for value in values)}]`"
    return f"`{field.default}`"


# ------------------------------------------------------------------ commands


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command line that does something, such as "distree agent run", with its parser."""
    for name in cli.COMMANDS:
        parser, _ = cli._parser([name])
        yield from _leaves(_of(parser, name))


def groups() -> Iterator[argparse.ArgumentParser]:
    """Yield the parser of every first word after distree."""
    for name in cli.COMMANDS:
        parser, _ = cli._parser([name])
        yield _of(parser, name)


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _of(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    return _subparsers(parser)[name]


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
        for line, parser in commands():
            if line.split()[1] != name:
                continue
            if line.count(" ") > 1:
                parts += [f"### {line}", _sentence(_helps(name)[line.split()[-1]])]
            rows = [_option(parser, action) for action in parser._actions if action.dest != "help"]
            if rows:
                parts.append(_table(("argument", "default", "meaning"), rows))
            example = textwrap.dedent(re.sub(r"^examples?:( |\n)", "", parser.epilog or ""))
            parts.append(f"```text\n{example}\n```")
    return _page(
        "Commands",
        "`distree COMMAND --help` says the same. Every command ends with a status of [these](errors.md).",
        *parts,
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(("?", ".")) else ".")


def _helps(name: str) -> dict[str, str]:
    """Return the one-line helps of a group's commands, by the command's own word."""
    parser, _ = cli._parser([name])
    for action in _of(parser, name)._actions:
        if isinstance(action, argparse._SubParsersAction):
            return {choice.dest: choice.help or "" for choice in action._choices_actions}
    return {}


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str, str]:
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
        "An error is one line on standard error: what, where, how to mend it. The status says whose turn it is:",
        _table(("status", "meaning"), [(f"`{status}`", meaning) for status, meaning in STATUSES]),
        "In Python, every error that DistrEE reports is a `distree.errors.DistreeError`:",
        _table(("class", "meaning"), rows),
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
