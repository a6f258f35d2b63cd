"""What was declared about a record, and how it is read the slow way, which says what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distree.errors import RemoteProtocolError
from distree.printable import printable

if TYPE_CHECKING:
    from distree.messages.forms import Form

REQUIRED: Any = dataclasses.MISSING
"""The default of a field without one."""

AS_DESCRIBED = "write the message as docs/reference/payloads.md describes it"
"""The remedy for a message that cannot be read."""

_SHOWN = 40
"""Characters of a value from outside that errors show."""


class Metric:
    """How Prometheus sees a field: a counter if it `grows`, else a gauge, under `name` if not under the field's own.

    Of several numbers each has a label `by`, with its place or its word.
    """

    __slots__ = ("by", "grows", "name")

    def __init__(self, *, grows: bool, name: str = "", by: str = "") -> None:
        self.grows, self.name, self.by = grows, name, by


class Field:
    """A field as declared. `default` is REQUIRED where it has none; one that holds its default is left out.

    `key` is its name in JSON, `unit` that of the attribute. A value of a `nullable` field may be None, which is then
    written.
    """

    __slots__ = ("default", "form", "key", "meaning", "metric", "name", "nullable", "unit")

    name: str
    """Known once the class is made, as is a `key` that is the same."""

    def __init__(
        self, form: Form, meaning: str, *, default: Any, unit: str, key: str, nullable: bool, metric: Metric | None
    ) -> None:
        self.form, self.meaning, self.unit, self.key, self.metric = form, meaning, unit, key, metric
        self.default, self.nullable = default, nullable

    def key_in(self, *, is_json: bool) -> str:
        """Return its name in a message."""
        return self.key if is_json else self.name

    def form_in(self, *, is_json: bool) -> Form:
        """Return its form in a message."""
        return self.form.json if is_json else self.form


class Layout:
    """How a record travels: its fields, and of a message the word and version by which its bytes say what they are.

    In MessagePack a row is a list of its fields in their order; whatever else is a map. `beside` are fields of a
    message that its writer adds and no program reads.
    """

    __slots__ = ("beside", "cls", "fields", "is_json", "is_row", "version", "word")

    def __init__(
        self,
        cls: type,
        fields: dict[str, Field],
        *,
        is_row: bool,
        word: str,
        version: int,
        is_json: bool,
        beside: type | None,
    ) -> None:
        self.cls, self.is_row, self.word, self.version, self.is_json = cls, is_row, word, version, is_json
        self.beside: tuple[Field, ...] = () if beside is None else layout_of(beside).fields
        self.fields: tuple[Field, ...] = tuple(fields.values())
        for name, field in fields.items():
            field.name, field.key = name, field.key or name
        _layouts[cls] = self

    @property
    def required(self) -> tuple[Field, ...]:
        """Fields without a default."""
        return tuple(field for field in self.fields if field.default is REQUIRED)

    @property
    def optional(self) -> tuple[Field, ...]:
        """Fields with a default."""
        return tuple(field for field in self.fields if field.default is not REQUIRED)

    def description(self, *, is_json: bool) -> str:
        """Say in words what it is: `[exit, class_id, confidence]`."""
        return f"[{', '.join(field.name for field in self.fields)}]" if self.is_row and not is_json else "a map"


_layouts: dict[type, Layout] = {}


def layout_of(cls: type) -> Layout:
    """Return how a record travels; KeyError if it does not."""
    return _layouts[cls]


class Packable:
    """A row that keeps the bytes as which it travels, once they are known. They are no part of its value."""

    __slots__ = ("packed",)

    packed: bytes


keep_packed: Callable[[Any, bytes], None] = Packable.__dict__["packed"].__set__
"""Let a row, although frozen, know its bytes."""


# ---------------------------------------------------------------- reading the slow way


def bad(name: str, value: object, expected: str) -> RemoteProtocolError:
    """Return the error that says what a field should have been."""
    return RemoteProtocolError("field", f"{name}: expected {expected}, received {shown(value)}", AS_DESCRIBED)


def shown(value: object) -> str:
    """Return a value from outside as short text; what is nested may be nested too deeply to be printed."""
    if isinstance(value, str | bytes):
        value = value[:_SHOWN]
    return (
        printable(ascii(value), _SHOWN) if isinstance(value, str | bytes | int | float | None) else type(value).__name__
    )


def read_record(cls: type, value: Any, name: str, *, is_json: bool) -> Any:
    """Return the record that was unpacked as `value`; RemoteProtocolError says which field is wrong, and how."""
    layout = layout_of(cls)
    if layout.is_row and not is_json:
        # A later version may have appended some.
        if type(value) is not tuple or len(value) < len(layout.required):
            raise bad(name, value, layout.description(is_json=is_json))
        found: dict[str, Any] = dict(zip((field.name for field in layout.fields), value, strict=False))
    elif type(value) is dict:
        found = value
    else:
        raise bad(name, value, "a map")
    made = cls(**{field.name: _read_field(field, found, layout, is_json=is_json) for field in layout.fields})
    check_whole(made)
    return made


def _read_field(field: Field, found: dict[str, Any], layout: Layout, *, is_json: bool) -> Any:
    key = field.key_in(is_json=is_json)
    if key not in found:
        if field.default is REQUIRED:
            raise RemoteProtocolError("field", f"{key}: missing", AS_DESCRIBED)
        return field.default
    value = found[key]
    if value is None and (field.nullable or (layout.is_row and not is_json and field.default is None)):
        return None
    return field.form_in(is_json=is_json).read(value, key)


def check_whole(made: Any) -> None:
    """Raise RemoteProtocolError where fields that are each right do not go together."""
    fault = getattr(made, "fault", None)
    if fault is not None and (found := fault()):
        raise RemoteProtocolError("field", found, AS_DESCRIBED)
