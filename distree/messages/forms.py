"""What a value in a message can be. Each form knows how it is checked, encoded, decoded and described.

A form gives source for the usual case, which `codec` compiles into one condition per message, and reads whatever else
comes the slow way, which says what is wrong. Both take the same values (`tests/distree/messages/test_codec.py`).
"""

from __future__ import annotations

import enum
import functools
import operator
from typing import Any, Protocol

from distree import topics
from distree.messages.layout import bad, layout_of, read_record
from distree.messages.limits import MAX_BRANCHES, MAX_FINITE, MAX_PACKED_BYTES

is_known_id = functools.lru_cache(maxsize=1024)(topics.is_id)
"""As `topics.is_id`, of texts up to 32 characters: the same few boards are named in every message."""


class Scope(Protocol):
    """What expressions may name."""

    def bind(self, value: object) -> str:
        """Return a name of an object."""

    def reader(self, cls: type, *, is_json: bool) -> str:
        """Return the name of a function that reads one record out of what was unpacked."""

    def unpacker(self, cls: type, *, shared: bool) -> str:
        """Return the name of a function that reads a row out of its bytes."""

    def packer(self, cls: type) -> str:
        """Return the name of a function that packs a row, or has its bytes."""

    def rows_unpacker(self, items: Items) -> str:
        """Return the name of a function that reads rows out of their bytes."""

    def rows_packer(self, cls: type) -> str:
        """Return the name of a function that packs rows, or has their bytes."""

    def encode_source(self, cls: type, x: str, *, is_json: bool) -> str:
        """Return an expression of what is packed of a record `x`."""


class Form:
    """The form of a value. Where `is_json` matters, `json` has the form that takes its place in JSON."""

    __slots__ = ()

    @property
    def json(self) -> Form:
        """The form of the value in JSON."""
        return self

    @property
    def description(self) -> str:
        """The form in words, for pages and errors: `an integer from 0 to 32`."""
        raise NotImplementedError

    def check_source(self, x: str, scope: Scope) -> str:
        """Return an expression that is true of most values `x` that are right, and of no others.

        `scope` gives names by which the expression may use objects.
        """
        raise NotImplementedError

    def decode_source(self, x: str, _name: str, _scope: Scope) -> str:
        """Return an expression of what a value is read as that passed `check_source`; its errors name the field."""
        return x

    def encode_source(self, x: str, _scope: Scope) -> str:
        """Return an expression of what is packed of `x`, a name or an attribute."""
        return x

    def read(self, value: Any, name: str) -> Any:
        """Return what any value is read as; RemoteProtocolError that names the field if it is not of this form."""
        raise NotImplementedError


class Text(Form):
    """Printable text: control characters and lone surrogates would break what prints or stores it."""

    __slots__ = ("most",)

    def __init__(self, most: int) -> None:
        self.most = most

    @property
    def description(self) -> str:
        return f"printable text of at most {self.most} characters"

    def check_source(self, x: str, _scope: Scope) -> str:
        return f"type({x}) is str and len({x}) <= {self.most} and {x}.isprintable()"

    def read(self, value: Any, name: str) -> str:
        if type(value) is str and len(value) <= self.most and value.isprintable():
            return value
        raise bad(name, value, self.description)


class Id(Form):
    """What may become part of a topic; with `or_none`, "" stands for nobody."""

    __slots__ = ("or_none",)

    def __init__(self, *, or_none: bool = False) -> None:
        self.or_none = or_none

    @property
    def description(self) -> str:
        return "an id of a-z, 0-9 and '-'" + (", or ''" if self.or_none else "")

    def check_source(self, x: str, scope: Scope) -> str:
        known = f"len({x}) <= 32 and {scope.bind(is_known_id)}({x})"
        return f"type({x}) is str and " + (f"(not {x} or {known})" if self.or_none else known)

    def read(self, value: Any, name: str) -> str:
        if type(value) is str and ((self.or_none and not value) or topics.is_id(value)):
            return value
        raise bad(name, value, self.description)


class Whole(Form):
    """An integer between two."""

    __slots__ = ("least", "most")

    def __init__(self, most: int, least: int = 0) -> None:
        self.least, self.most = least, most

    @property
    def description(self) -> str:
        return f"an integer from {self.least} to {self.most}"

    def check_source(self, x: str, _scope: Scope) -> str:
        return f"type({x}) is int and {self.least} <= {x} <= {self.most}"

    def read(self, value: Any, name: str) -> int:
        if type(value) is int and self.least <= value <= self.most:
            return value
        raise bad(name, value, self.description)


class Number(Form):
    """A finite number between two. JSON may have it `scale` times as large, rounded to `digits`."""

    __slots__ = ("digits", "least", "most", "scale")

    def __init__(self, most: float, least: float = 0.0, *, scale: float = 1.0, digits: int | None = None) -> None:
        self.least, self.most, self.scale, self.digits = least, most, scale, digits

    @property
    def json(self) -> Form:
        return self if self.digits is None else Rounded(self)

    @property
    def description(self) -> str:
        if (self.least, self.most) == (-MAX_FINITE, MAX_FINITE):
            return "a finite number"
        return f"a finite number from {self.least:g} to {self.most:g}"

    def check_source(self, x: str, _scope: Scope) -> str:
        # A NaN fails both comparisons.
        return f"type({x}) is float and {self.least!r} <= {x} <= {self.most!r}"

    def read(self, value: Any, name: str) -> float:
        if type(value) in (float, int) and self.least <= value <= self.most:
            return float(value)
        raise bad(name, value, self.description)


class Rounded(Number):
    """A number as JSON has it, for people: in its unit there, with a few digits."""

    __slots__ = ()

    def __init__(self, of: Number) -> None:
        super().__init__(of.most * of.scale, of.least * of.scale, scale=of.scale, digits=of.digits)

    @property
    def json(self) -> Form:
        return self

    def decode_source(self, x: str, _name: str, _scope: Scope) -> str:
        return x if self.scale == 1.0 else f"{x} / {self.scale!r}"

    def encode_source(self, x: str, _scope: Scope) -> str:
        return f"round({x}, {self.digits})" if self.scale == 1.0 else f"round({x} * {self.scale!r}, {self.digits})"

    def read(self, value: Any, name: str) -> float:
        return super().read(value, name) / self.scale


class Word(Form):
    """One of a few words; read as the member of an enumeration where there is one."""

    __slots__ = ("words",)

    def __init__(self, words: dict[str, Any]) -> None:
        self.words = words

    @property
    def description(self) -> str:
        return "one of " + ", ".join(sorted(self.words))

    @property
    def _is_enum(self) -> bool:
        return any(isinstance(word, enum.Enum) for word in self.words.values())

    def check_source(self, x: str, scope: Scope) -> str:
        return f"type({x}) is str and {x} in {scope.bind(self.words)}"

    def decode_source(self, x: str, _name: str, scope: Scope) -> str:
        return f"{scope.bind(self.words)}[{x}]" if self._is_enum else x

    def encode_source(self, x: str, _scope: Scope) -> str:
        return f"{x}.value" if self._is_enum else x

    def read(self, value: Any, name: str) -> Any:
        if type(value) is str and value in self.words:
            return self.words[value]
        raise bad(name, value, self.description)


class Flag(Form):
    """True or false, and no number in their place."""

    __slots__ = ()
    description = "true or false"

    def check_source(self, x: str, _scope: Scope) -> str:
        return f"type({x}) is bool"

    def read(self, value: Any, name: str) -> bool:
        if type(value) is bool:
            return value
        raise bad(name, value, self.description)


class Data(Form):
    """Bytes, which only MessagePack has; they may have to begin with `start`."""

    __slots__ = ("least", "most", "start", "what")

    def __init__(self, most: int, least: int = 0, start: bytes = b"", what: str = "") -> None:
        self.most, self.least, self.start, self.what = most, least, start, what

    @property
    def description(self) -> str:
        size = f"{self.most} bytes" if self.least == self.most else f"at most {self.most} bytes"
        return f"{self.what} of {size}" if self.what else size

    def check_source(self, x: str, _scope: Scope) -> str:
        begins = f" and {x}.startswith({self.start!r})" if self.start else ""
        return f"type({x}) is bytes and {self.least} <= len({x}) <= {self.most}{begins}"

    def read(self, value: Any, name: str) -> bytes:
        if type(value) is bytes and self.least <= len(value) <= self.most and value.startswith(self.start):
            return value
        raise bad(name, value if type(value) is not bytes else f"{len(value)} bytes", self.description)


class Items(Form):
    """A list of values of one form, read as a tuple."""

    __slots__ = ("is_json", "item", "least", "most")

    def __init__(self, item: Form, most: int, least: int = 0, *, is_json: bool = False) -> None:
        self.item, self.most, self.least, self.is_json = item, most, least, is_json

    @property
    def json(self) -> Form:
        return Items(self.item.json, self.most, self.least, is_json=True)

    @property
    def description(self) -> str:
        return f"a list of at most {self.most} items"

    def check_source(self, x: str, _scope: Scope) -> str:
        length = f"{self.least} <= len({x}) <= {self.most}" if self.least else f"len({x}) <= {self.most}"
        return f"type({x}) is {'list' if self.is_json else 'tuple'} and {length}"

    def item_check_source(self, x: str, scope: Scope) -> str:
        """Return an expression that is true of most items that are right, and of no others."""
        return self.item.check_source(x, scope)

    def decode_source(self, x: str, name: str, scope: Scope) -> str:
        each = self.item.decode_source("item", name, scope)
        if each == "item":
            return f"tuple({x})" if self.is_json else x
        return f"tuple([{each} for item in {x}]) if {x} else ()"

    def encode_source(self, x: str, scope: Scope) -> str:
        each = self.item.encode_source("item", scope)
        return x if each == "item" else f"[{each} for item in {x}]"

    def read(self, value: Any, name: str) -> tuple[Any, ...]:
        # What a program has unpacked by itself may have tuples where JSON has lists.
        if type(value) in (tuple, list) and self.least <= len(value) <= self.most:
            return tuple([self.item.read(item, name) for item in value])
        raise bad(name, value, self.description)


class Branches(Items):
    """A set of branches, of which there is one way to write it."""

    __slots__ = ()

    def __init__(self, least: int = 0, *, is_json: bool = False) -> None:
        super().__init__(Whole(MAX_BRANCHES - 1), MAX_BRANCHES, least, is_json=is_json)

    @property
    def json(self) -> Form:
        return Branches(self.least, is_json=True)

    @property
    def description(self) -> str:
        return f"ascending branch numbers below {MAX_BRANCHES}" + (", at least one" if self.least else "")

    def check_source(self, x: str, scope: Scope) -> str:
        # Of numbers alone, for others cannot be compared.
        each = f"all([{self.item.check_source('item', scope)} for item in {x}])"
        order = f"all(map({scope.bind(operator.lt)}, {x}, {x}[1:]))"
        return f"{super().check_source(x, scope)} and (not {x} or {each} and {order})"

    def item_check_source(self, _x: str, _scope: Scope) -> str:
        # Checked already.
        return "True"

    def read(self, value: Any, name: str) -> tuple[int, ...]:
        branches = super().read(value, name)
        if all(map(operator.lt, branches, branches[1:])):
            return branches
        raise bad(name, value, self.description)


class Tally(Form):
    """Counts by word, of those words that there are any of."""

    __slots__ = ("count", "words")

    def __init__(self, words: frozenset[str], count: Whole) -> None:
        self.words, self.count = words, count

    @property
    def description(self) -> str:
        return "a map of only " + ", ".join(sorted(self.words))

    def check_source(self, x: str, scope: Scope) -> str:
        counts = f"all([{self.count.check_source('item', scope)} for item in {x}.values()])"
        return f"type({x}) is dict and {scope.bind(self.words)}.issuperset({x}) and {counts}"

    def read(self, value: Any, name: str) -> dict[str, int]:
        if type(value) is dict and self.words.issuperset(value):
            return {word: self.count.read(count, word) for word, count in value.items()}
        raise bad(name, value, self.description)


class Part(Form):
    """A record inside of another."""

    __slots__ = ("cls", "is_json")

    def __init__(self, cls: type, *, is_json: bool = False) -> None:
        self.cls, self.is_json = cls, is_json

    @property
    def json(self) -> Form:
        return Part(self.cls, is_json=True)

    @property
    def description(self) -> str:
        return layout_of(self.cls).description(is_json=self.is_json)

    def check_source(self, _x: str, _scope: Scope) -> str:
        # Its reader checks that.
        return "True"

    def decode_source(self, x: str, name: str, scope: Scope) -> str:
        return f"{scope.reader(self.cls, is_json=self.is_json)}({x}, {name!r})"

    def encode_source(self, x: str, scope: Scope) -> str:
        return scope.encode_source(self.cls, x, is_json=self.is_json)

    def read(self, value: Any, name: str) -> Any:
        return read_record(self.cls, value, name, is_json=self.is_json)


class Packed(Form):
    """A row that travels as packed bytes, which it keeps: to pass it on, nothing is packed again.

    One that is `shared` by many messages is unpacked once.
    """

    __slots__ = ("cls", "shared")

    def __init__(self, cls: type, *, shared: bool) -> None:
        self.cls, self.shared = cls, shared

    @property
    def description(self) -> str:
        return f"{layout_of(self.cls).description(is_json=False)} in at most {MAX_PACKED_BYTES} packed bytes"

    def check_source(self, x: str, _scope: Scope) -> str:
        return f"type({x}) is bytes and len({x}) <= {MAX_PACKED_BYTES}"

    def decode_source(self, x: str, name: str, scope: Scope) -> str:
        return f"{scope.unpacker(self.cls, shared=self.shared)}({x}, {name!r})"

    def encode_source(self, x: str, scope: Scope) -> str:
        return f"{scope.packer(self.cls)}({x})"

    def read(self, value: Any, name: str) -> Any:
        if type(value) is bytes and len(value) <= MAX_PACKED_BYTES:
            # Where networks are trained there are messages, but no msgpack.
            from distree.messages.packing import unpack

            return read_record(self.cls, unpack(value), name, is_json=False)
        raise bad(name, value if type(value) is not bytes else f"{len(value)} bytes", self.description)


class PackedItems(Form):
    """Rows that travel as packed bytes, the same in many messages: they are packed and unpacked once."""

    __slots__ = ("items",)

    def __init__(self, cls: type, most: int) -> None:
        self.items = Items(Part(cls), most)

    @property
    def description(self) -> str:
        return f"{self.items.description} in at most {MAX_PACKED_BYTES} packed bytes"

    def check_source(self, x: str, _scope: Scope) -> str:
        return f"type({x}) is bytes and len({x}) <= {MAX_PACKED_BYTES}"

    def decode_source(self, x: str, name: str, scope: Scope) -> str:
        return f"{scope.rows_unpacker(self.items)}({x}, {name!r})"

    def encode_source(self, x: str, scope: Scope) -> str:
        assert isinstance(self.items.item, Part)  # noqa: S101
        return f"{scope.rows_packer(self.items.item.cls)}({x})"

    def read(self, value: Any, name: str) -> Any:
        if type(value) is bytes and len(value) <= MAX_PACKED_BYTES:
            from distree.messages.packing import unpack  # as above

            return self.items.read(unpack(value), name)
        raise bad(name, value if type(value) is not bytes else f"{len(value)} bytes", self.description)


def finite() -> Number:
    """Return the form of any number that is one."""
    return Number(MAX_FINITE, -MAX_FINITE)
