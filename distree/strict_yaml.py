"""Strict YAML into frozen dataclasses: every mistake is reported with its file, line, key and received value.

A dataclass is the schema of a mapping: its field names are the keys, its annotations the types, its defaults what may
be left out. Supported are str, int, float (an int will do), Share (`1%` or 0.01), bool, Literal, pathlib.Path (relative
to the folder of the file, defaults too), tuple[X, ...], dict[str, X], X | None, dataclasses, and unions of dataclasses
that each have a field `kind: Literal[...]`. What types cannot express, a dataclass checks in `__post_init__`, which
raises ConfigError, best as ConfigError("field: what is wrong", "how to fix it").

The node graph is read rather than what YAML 1.1 makes of it: an unquoted `no` is never a str, `1:30` is not
the int 90 nor `017` the int 15, and `1e3` is a float where one is wanted.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import functools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from distree.errors import CHECK_PATH, ConfigError, ConfigFileError, Problem
from distree.printable import without_credentials
from distree.regular_files import read_regular
from distree.thresholds import NEVER, NEVER_WORD, Threshold

T = TypeVar("T")


class Share(float):
    """A share of a whole, from 0 to 1; in YAML `1%` or `0.01`."""


MAX_BYTES = 1 << 20
"""Largest file that is read."""

MAX_NODES = 10_000
"""Most scalars, lists and mappings of a file, with each alias counted as what it stands for."""

MAX_DEPTH = 100
_EXPLAINED_CHARS = 1 << 14

# The parser in C where PyYAML has it: a board starts noticeably faster.
_Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_SHOWN = 60
_BAD: Any = object()
"""Stands for a value whose problem is noted already."""

_RIGHT_FILE = "check that it is the right file"
_A_MAPPING = ("a mapping", "write its keys below it, indented")
_A_LIST = ("a list", "write a list, such as [a, b]")

_YAML = "tag:yaml.org,2002:"
_NULL, _STR, _BOOL, _MAP = (f"{_YAML}{name}" for name in ("null", "str", "bool", "map"))
_START = yaml.Mark("<file>", 0, 0, 0, None, 0)
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]{0,24})")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]{0,24}(\.[0-9]{0,24})?|\.[0-9]{1,24})([eE][-+]?[0-9]{1,3})?")
_INFINITY = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_SECRET = re.compile(r"password|passwd|secret|token", re.IGNORECASE)


def load(path: Path, cls: type[T], edit: Callable[[yaml.Node], None] | None = None) -> T:
    """Read the YAML file at `path` as the dataclass `cls`; `edit` may change the nodes before they are read.

    A problem with a node whose mark has a name of its own is reported by that name instead of a line.
    An empty file is an empty mapping. Raises ConfigError, or ConfigFileError if there are several problems: the file
    cannot be read, is larger than MAX_BYTES, is not UTF-8 or YAML, has more than MAX_NODES nodes, or does not
    fit `cls`. TypeError is for a `cls` with an annotation that is not supported.
    """
    return load_bytes(_content(path), path, cls, edit)


def load_bytes(content: bytes, path: Path, cls: type[T], edit: Callable[[yaml.Node], None] | None = None) -> T:
    """Read the content of the file at `path`, as `load` does."""
    reader = _Reader(str(path), path.absolute().parent)
    try:
        root = _compose(content, path)
        if edit is not None:
            edit(root)
        value = reader.read(root, cls, "")
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply", _RIGHT_FILE) from None
    if len(reader.problems) == 1:
        raise ConfigError(*reader.problems[0])
    if reader.problems:
        raise ConfigFileError(reader.problems)
    return typing.cast("T", value)


def _compose(content: bytes, path: Path) -> yaml.Node:
    text = _text(content, path)
    try:
        root = _parse(text) or yaml.MappingNode(_MAP, [], _START)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(
            f"{where}: not YAML: {error.problem or error.context}", "check the indentation, colons and quotes there"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.reason}", "remove the character") from None
    if _too_many_nodes(root):
        raise ConfigError(f"{path}: more than {MAX_NODES} nodes once aliases are expanded", _RIGHT_FILE)
    return root


def _parse(text: str) -> yaml.Node | None:
    try:
        _check_depth(text)
        return yaml.compose(text, _Loader)
    except yaml.YAMLError:
        if len(text) > _EXPLAINED_CHARS or text.count("[") + text.count("{") > MAX_DEPTH:
            raise
        # The parser in Python explains better what is wrong, but takes minutes for some long files.
        return yaml.compose(text, yaml.SafeLoader)


def _check_depth(text: str) -> None:
    """Refuse what is nested so deeply that composing it, which recurses, would overflow the stack."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecursionError


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as error:
        remedy = _RIGHT_FILE if error.errno == errno.EFBIG else CHECK_PATH
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})", remedy) from None


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x})", "save the file as UTF-8"
        ) from None


def _too_many_nodes(root: yaml.Node) -> bool:
    # Counts before it descends, so neither nested aliases nor a list that holds itself cost memory or time.
    stack, count = [root], 1
    while stack:
        children = _children(stack.pop())
        count += len(children)
        if count > MAX_NODES:
            return True
        stack += children
    return False


def _children(node: yaml.Node) -> list[yaml.Node]:
    match node:
        case yaml.MappingNode():
            return [child for entry in node.value for child in entry]
        case yaml.SequenceNode():
            return list(node.value)
    return []


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def kinds(members: Any) -> dict[str, Any]:
    """Return the dataclasses of a union, or of a sequence, by what their fields `kind: Literal[...]` may be."""
    members = members if isinstance(members, Sequence) else get_args(members)
    return {kind: member for member in members for kind in get_args(_hints(member)["kind"])}


def check_positive(**values: float) -> None:
    """Raise ConfigError for a value that is not above 0 and finite, naming its key: for `__post_init__`."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name}: {value:g} is out of range", "choose a finite value above 0")


def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


class _Reader:
    """Reads nodes as types. Each `read` gives a value, or notes a problem and gives _BAD."""

    def __init__(self, file: str, folder: Path) -> None:
        self.file = file
        self.folder = folder
        self.problems: list[Problem] = []

    def read(self, node: yaml.Node, hint: Any, at: str) -> Any:
        """Read `node`, at the key path `at`, as the type `hint`."""
        origin = get_origin(hint)
        if origin is Union or origin is types.UnionType:
            return self._union(node, get_args(hint), at)
        if origin is Literal:
            return self._literal(node, get_args(hint), at)
        if origin is tuple:
            return self._list(node, get_args(hint)[0], at)
        if origin is dict:
            return self._dict(node, get_args(hint)[1], at)
        if dataclasses.is_dataclass(hint):
            return self._dataclass(node, typing.cast("type", hint), at)
        return self._scalar(node, hint, at)

    def _note(self, node: yaml.Node, at: str, what: str, remedy: str) -> Any:
        mark = node.start_mark
        where = f"{self.file}:{mark.line + 1}" if mark.name.startswith("<") else mark.name
        self.problems.append(Problem(what, remedy).at(f"{where}: {at}" if at else where))
        return _BAD

    def _expected(self, node: yaml.Node, at: str, what: str, remedy: str) -> Any:
        return self._note(node, at, f"expected {what}, received {_received(node, at)}", remedy)

    def _union(self, node: yaml.Node, hints: tuple[Any, ...], at: str) -> Any:
        members = [hint for hint in hints if hint is not types.NoneType]
        if len(members) < len(hints) and node.tag == _NULL:
            return None
        if len(members) == 1:
            return self.read(node, members[0], at)
        return self._by_kind(node, members, at)

    def _by_kind(self, node: yaml.Node, members: list[Any], at: str) -> Any:
        found = kinds(members)
        if not isinstance(node, yaml.MappingNode):
            return self._expected(node, at, *_A_MAPPING)
        for key, value in node.value:
            if key.value == "kind":
                kind = self._literal(value, tuple(found), _join(at, "kind"))
                return _BAD if kind is _BAD else self.read(node, found[kind], at)
        self.problems.append(
            Problem(f"{self.file}: missing key {_join(at, 'kind')}", f"add it, with one of {', '.join(found)}")
        )
        return _BAD

    def _literal(self, node: yaml.Node, options: tuple[Any, ...], at: str) -> Any:
        for option in options:
            if _as(node, type(option)) == option:
                return option
        words = [str(option) for option in options]
        near = _nearest(str(node.value), words) if isinstance(node, yaml.ScalarNode) else None
        remedy = "quote it" if node.value in options else f"write {near}" if near else "write one of these"
        return self._expected(node, at, f"one of {', '.join(words)}", remedy)

    def _list(self, node: yaml.Node, hint: Any, at: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return self._expected(node, at, *_A_LIST)
        items = [self.read(child, hint, f"{at}[{i}]") for i, child in enumerate(node.value)]
        return _BAD if _BAD in items else tuple(items)

    def _dict(self, node: yaml.Node, hint: Any, at: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self._expected(node, at, *_A_MAPPING)
        items: dict[str, Any] = {}
        for key, child in self._entries(node, at):
            if key.tag == _STR:
                items[key.value] = self.read(child, hint, _join(at, key.value))
            else:
                items[key.value] = self._expected(key, at, "text as key", _remedy(key, str))
        return _BAD if any(value is _BAD for value in items.values()) else items

    def _entries(self, node: yaml.MappingNode, at: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Give the entries of a mapping whose key is a scalar that did not occur before; note the others."""
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._expected(key, at, "text as key", _remedy(key, str))
            elif key.value in lines:
                what = f"duplicate key, first on line {lines[key.value]}"
                self._note(key, _join(at, key.value), what, "remove one of the two")
            else:
                lines[key.value] = key.start_mark.line + 1
                yield key, value

    def _dataclass(self, node: yaml.Node, cls: type, at: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self._expected(node, at, *_A_MAPPING)
        known = len(self.problems)
        fields, values = _fields(cls), {}
        for key, child in self._entries(node, at):
            if key.value in fields:
                values[key.value] = self.read(child, _hints(cls)[key.value], _join(at, key.value))
            else:
                self._unknown(key, child, fields, at)
        for name, field in fields.items():
            if name not in values and _is_required(field):
                self.problems.append(Problem(f"{self.file}: missing key {_join(at, name)}", "add it"))
            elif name not in values:
                values[name] = self._default(field)
        return self._build(node, cls, values, at) if len(self.problems) == known else _BAD

    def _default(self, field: dataclasses.Field[Any]) -> Any:
        if field.default_factory is not dataclasses.MISSING:
            return self._in_folder(field.default_factory())
        return self._in_folder(field.default)

    def _in_folder(self, value: Any) -> Any:
        """Return a default with the paths in it taken from the folder of the file."""
        if isinstance(value, Path):
            return self.folder / value
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return value
        inner = {name: getattr(value, name) for name in _fields(type(value))}
        placed = {name: self._in_folder(found) for name, found in inner.items()}
        return value if placed == inner else dataclasses.replace(value, **placed)

    def _unknown(self, key: yaml.ScalarNode, child: yaml.Node, fields: Iterable[str], at: str) -> None:
        path = _join(at, key.value)
        near = _nearest(key.value, list(fields))
        remedy = f"rename it to {near}, or remove it" if near else f"remove it, or use one of {', '.join(fields)}"
        self._note(key, path, f"unknown key (received {_received(child, path)})", remedy)

    def _build(self, node: yaml.MappingNode, cls: type, values: dict[str, Any], at: str) -> Any:
        try:
            return cls(**values)
        except ConfigError as error:
            what, remedy = error.problem
        name, colon, rest = what.partition(": ")
        if not colon or name not in _fields(cls):
            return self._note(node, at, what, remedy)
        keys = [key for key, _ in node.value if key.value == name]
        return self._note(keys[0] if keys else node, _join(at, name), rest, remedy)

    def _scalar(self, node: yaml.Node, hint: Any, at: str) -> Any:
        value = _as(node, str if hint is Path else hint)
        if value is None:
            return self._expected(node, at, _WORDS[hint][0], _remedy(node, hint))
        return self.folder / value if hint is Path else value


def _as_str(node: yaml.ScalarNode) -> str | None:
    return node.value if node.tag == _STR else None


def _as_bool(node: yaml.ScalarNode) -> bool | None:
    if not node.style and node.tag == _BOOL:
        return yaml.SafeLoader.bool_values.get(node.value.lower())
    return None


def _as_int(node: yaml.ScalarNode) -> int | None:
    if not node.style and _INT.fullmatch(node.value):
        return int(node.value.replace("_", ""))
    return None


def _as_float(node: yaml.ScalarNode) -> float | None:
    if node.style:
        return None
    if infinity := _INFINITY.fullmatch(node.value):
        return float(f"{infinity[1]}inf")
    if not _FLOAT.fullmatch(node.value):
        return None
    value = float(node.value.replace("_", ""))
    return value if math.isfinite(value) else None


def _as_share(node: yaml.ScalarNode) -> Share | None:
    percent = node.value.endswith("%")
    value = _as_float(yaml.ScalarNode(node.tag, node.value[:-1].rstrip()) if percent and not node.style else node)
    share = None if value is None else value / 100 if percent else value
    return None if share is None or not 0 <= share <= 1 else Share(share)


def _as_threshold(node: yaml.ScalarNode) -> float | None:
    if not node.style and node.value == NEVER_WORD:
        return NEVER
    value = _as_float(node)
    return value if value is not None and abs(value) <= NEVER else None


_SCALARS: dict[Any, Callable[[yaml.ScalarNode], Any]] = {
    str: _as_str,
    bool: _as_bool,
    int: _as_int,
    float: _as_float,
    Share: _as_share,
    Threshold: _as_threshold,
}


def _as(node: yaml.Node, kind: Any) -> Any:
    """Read a node as one of _SCALARS; None if it is not one."""
    if kind not in _SCALARS:
        raise TypeError(f"{kind} cannot be read from YAML")
    return _SCALARS[kind](node) if isinstance(node, yaml.ScalarNode) else None


_WORDS: dict[Any, tuple[str, str]] = {
    str: ("text", "write a word, or text in quotes"),
    bool: ("true or false", "write one of these"),
    int: ("a whole number", "write one, such as 8"),
    float: ("a number", "write one, such as 0.5"),
    Share: ("a share from 0% to 100%", "write one, such as 1% or 0.01"),
    Path: ("a path", "write one, such as folder/file"),
    Threshold: (f"a number or {NEVER_WORD!r}", f"write one, such as 0.9, or {NEVER_WORD}"),
}
"""What each type is called, and how to write it."""


def _remedy(node: yaml.Node, kind: Any) -> str:
    """Say how to fix a value of the wrong type."""
    if isinstance(node, yaml.ScalarNode):
        if kind in (str, Path):
            if not node.style and node.tag != _NULL and node.tag.startswith(_YAML):
                return "quote it"
        elif node.style and _as(yaml.ScalarNode(_BOOL, node.value), kind) is not None:
            return "remove the quotes"
    return _WORDS[kind][1]


def _received(node: yaml.Node, at: str) -> str:
    """Show a node on one line, shortened; what looks like a secret is not shown, as errors end up in logs."""
    match node:
        case yaml.MappingNode():
            return "a mapping"
        case yaml.SequenceNode():
            return "a list"
    if _SECRET.search(at):
        return "a value that is not shown"
    if node.tag == _NULL:
        return "nothing"
    return _shortened(node.value, quoted=node.tag == _STR)


def _shortened(text: str, *, quoted: bool) -> str:
    text = without_credentials(text)
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return repr(cut) if quoted or not cut.isprintable() else cut


def _join(at: str, key: str) -> str:
    key = _shortened(key, quoted=False)
    return f"{at}.{key}" if at else key


def _nearest(word: str, words: list[str]) -> str | None:
    near = difflib.get_close_matches(word, words, n=1)
    return near[0] if near else None
