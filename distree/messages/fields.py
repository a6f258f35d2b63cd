"""How messages declare their fields: `device: str = ident("Board that sent it.")`.

A message, or a part of one, is a frozen record whose fields say in one place what they are: name and type as an
attribute, and in the call their meaning, limit and unit. Codec, schemas, pages, tables and metrics are derived.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeVar, get_args

from distree.messages.forms import (
    Branches,
    Data,
    Flag,
    Form,
    Id,
    Items,
    Number,
    Packed,
    PackedItems,
    Part,
    Tally,
    Text,
    Whole,
    Word,
    finite,
)
from distree.messages.layout import REQUIRED, Field, Layout, Metric
from distree.messages.limits import MAX_BUDGET_S, MAX_COUNT, MAX_EPOCH, MAX_MESSAGE_BYTES, MAX_NUMBER, MAX_TEXT
from distree.record import dataclass_transform, record

T = TypeVar("T")

# ---------------------------------------------------------------- what a field can be


def _declare(
    form: Form,
    meaning: str,
    *,
    default: Any,
    unit: str = "",
    key: str = "",
    nullable: bool = False,
    metric: Metric | None = None,
) -> Any:
    return Field(form, meaning, default=default, unit=unit, key=key, nullable=nullable, metric=metric)


def text(meaning: str, *, most: int = MAX_TEXT, nullable: bool = False, default: Any = REQUIRED) -> Any:
    """Declare printable text of at most `most` characters."""
    return _declare(Text(most), meaning, default=default, nullable=nullable)


def ident(meaning: str, *, nullable: bool = False, default: Any = REQUIRED) -> Any:
    """Declare an id, which may become part of a topic."""
    return _declare(Id(), meaning, default=default, nullable=nullable)


def count(
    meaning: str,
    *,
    most: int = MAX_COUNT,
    unit: str = "",
    nullable: bool = False,
    metric: Metric | None = None,
    default: Any = REQUIRED,
) -> Any:
    """Declare an integer from 0 to `most`."""
    return _declare(Whole(most), meaning, default=default, unit=unit, nullable=nullable, metric=metric)


def epoch(meaning: str, *, least: int = 0, metric: Metric | None = None) -> Any:
    """Declare the number of a plan, `least` to MAX_EPOCH; 0 stands for the bundle's own thresholds."""
    return _declare(Whole(MAX_EPOCH, least), meaning, default=REQUIRED, metric=metric)


def number(
    meaning: str,
    *,
    most: float = MAX_NUMBER,
    unit: str = "",
    digits: int | None = None,
    nullable: bool = False,
    default: Any = REQUIRED,
) -> Any:
    """Declare a number from 0 to `most`; JSON has it rounded to `digits`."""
    return _declare(Number(most, digits=digits), meaning, default=default, unit=unit, nullable=nullable)


def score(meaning: str) -> Any:
    """Declare any finite number."""
    return _declare(finite(), meaning, default=REQUIRED)


def seconds(
    meaning: str,
    *,
    most: float = MAX_NUMBER / 1e3,
    json: str = "",
    nullable: bool = False,
    metric: Metric | None = None,
    default: Any = REQUIRED,
) -> Any:
    """Declare a duration of 0 to `most` seconds; JSON has milliseconds, under the name `json`."""
    form = Number(most, scale=1e3, digits=3)
    return _declare(form, meaning, default=default, unit="s", key=json, nullable=nullable, metric=metric)


def word(meaning: str, words: Any, *, json: str = "") -> Any:
    """Declare one of a few words: `words` is a Literal, or an enumeration of str."""
    is_enum = isinstance(words, type) and issubclass(words, enum.Enum)
    known = {member.value: member for member in words} if is_enum else {one: one for one in sorted(get_args(words))}
    return _declare(Word(known), meaning, default=REQUIRED, key=json)


def flag(meaning: str, *, default: Any = REQUIRED) -> Any:
    """Declare true or false."""
    return _declare(Flag(), meaning, default=default)


def data(
    meaning: str,
    *,
    most: int = MAX_MESSAGE_BYTES,
    least: int = 0,
    start: bytes = b"",
    what: str = "",
    default: Any = REQUIRED,
) -> Any:
    """Declare bytes, `least` to `most` of them, that begin with `start`; `what` is what an error calls them."""
    return _declare(Data(most, least, start, what), meaning, default=default)


def scores(meaning: str, *, most: int, default: Any = REQUIRED) -> Any:
    """Declare at most `most` finite numbers."""
    return _declare(Items(finite(), most), meaning, default=default)


def durations(meaning: str, *, most: int, default: Any = REQUIRED) -> Any:
    """Declare at most `most` durations in seconds, each within MAX_BUDGET_S."""
    return _declare(Items(Number(MAX_BUDGET_S), most), meaning, default=default, unit="s")


def counts(
    meaning: str,
    *,
    most: int,
    each: int = MAX_COUNT,
    least: int = 0,
    metric: Metric | None = None,
    default: Any = REQUIRED,
) -> Any:
    """Declare at most `most` integers, each of `least` to `each`."""
    return _declare(Items(Whole(each, least), most), meaning, default=default, metric=metric)


def branches(meaning: str, *, least: int = 0, default: Any = REQUIRED) -> Any:
    """Declare a set of branches of a wide stage, ascending."""
    return _declare(Branches(least), meaning, default=default)


def texts(meaning: str, *, most: int, each: int = MAX_TEXT, default: Any = REQUIRED) -> Any:
    """Declare at most `most` texts, each of at most `each` characters."""
    return _declare(Items(Text(each), most), meaning, default=default)


def idents(meaning: str, *, most: int, or_none: bool = False, default: Any = REQUIRED) -> Any:
    """Declare at most `most` ids; with `or_none`, "" may stand in the place of one."""
    return _declare(Items(Id(or_none=or_none), most), meaning, default=default)


def tally(meaning: str, words: Any, *, metric: Metric | None = None) -> Any:
    """Declare counts by word; `words` is a Literal."""
    form = Tally(frozenset(get_args(words)), Whole(MAX_COUNT))
    return _declare(form, meaning, default=REQUIRED, metric=metric)


def part(cls: type, meaning: str, *, nullable: bool = False, default: Any = REQUIRED) -> Any:
    """Declare a part of the message, or a row of it."""
    return _declare(Part(cls), meaning, default=default, nullable=nullable)


def parts(cls: type, meaning: str, *, most: int, default: Any = REQUIRED) -> Any:
    """Declare at most `most` parts of one kind."""
    return _declare(Items(Part(cls), most), meaning, default=default)


def packed(cls: type, meaning: str, *, shared: bool = False) -> Any:
    """Declare a row that travels as packed bytes, so that passing it on does not pack it again.

    One that many messages share is unpacked once.
    """
    return _declare(Packed(cls, shared=shared), meaning, default=REQUIRED)


def packed_parts(cls: type, meaning: str, *, most: int, default: Any = REQUIRED) -> Any:
    """Declare at most `most` rows that travel as packed bytes and are the same in many messages."""
    return _declare(PackedItems(cls, most), meaning, default=default)


# ---------------------------------------------------------------- records


@dataclass_transform(
    frozen_default=True,
    kw_only_default=True,
    field_specifiers=(
        text, ident, count, epoch, number, score, seconds, word, flag, data, scores, durations, counts, branches, texts,
        idents, tally, part, parts, packed, packed_parts,
    ),
)  # fmt: skip
def declared(
    *, kind: str = "", version: int = 1, schema: str = "", as_row: bool = False, beside: type | None = None
) -> Callable[[type[T]], type[T]]:
    """Make a class a record that travels: a message or a part of one.

    It is a MessagePack message of a `kind` and `version`, a JSON one of a `schema`, or a part.

    A part that travels `as_row` is in MessagePack a list of its fields in their order. Those with a default come last,
    and the list ends before those at its end that hold it. A later version may append fields, which an earlier one
    ignores. `beside` is a part whose fields are written among the message's own.
    """

    def decorate(cls: type[T]) -> type[T]:
        fields = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        for name, field in fields.items():
            if field.default is REQUIRED:
                delattr(cls, name)
            else:
                setattr(cls, name, field.default)
        made = record(cls)
        Layout(made, fields, is_row=as_row, word=kind or schema, version=version, is_json=bool(schema), beside=beside)
        return made

    return decorate
