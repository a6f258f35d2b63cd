"""JSON Schemas (draft 07) of all messages, derived from their declarations.

A schema says what is written; readers ignore keys, and items at the end of a row, that they do not know. For
MessagePack it describes the map that unpacking gives, with bytes as strings of `contentEncoding: binary`; what a part
that travels packed holds is in its `contentSchema`. `tests/tools/test_json_schema.py` holds that
schema and codec accept the same.
"""

from __future__ import annotations

import inspect
from typing import Any, TypeAlias

from distree.messages.audit import AuditRow
from distree.messages.device import DeviceMeta, DeviceState, Echo
from distree.messages.events import DeadLetter, Event, Thumbnail
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
)
from distree.messages.layout import Field, Layout, layout_of
from distree.messages.limits import MAX_PACKED_BYTES
from distree.messages.member import Call, Member
from distree.messages.plan import Plan
from distree.messages.request import Decision, Embedding, InputMessage, Outcome, StageMessage
from distree.messages.result import Result
from distree.messages.site import Claim, Label, OriginStats
from distree.messages.telemetry import Telemetry
from distree.topics import MSGPACK, Kind

DIALECT = "http://json-schema.org/draft-07/schema#"

Schema: TypeAlias = "dict[str, Any]"

MESSAGES: dict[Kind, type] = {
    Kind.STATE: DeviceState,
    Kind.META: DeviceMeta,
    Kind.TELEMETRY: Telemetry,
    Kind.DEAD: DeadLetter,
    Kind.EVENT: Event,
    Kind.SITE_EVENT: Event,
    Kind.ECHO: Echo,
    Kind.PLAN: Plan,
    Kind.MEMBER: Member,
    Kind.CALL: Call,
    Kind.STAGE: StageMessage,
    Kind.INPUT: InputMessage,
    Kind.OUTCOME: Outcome,
    Kind.RESULT: Result,
    Kind.EXIT: Embedding,
    Kind.DECISION: Decision,
    Kind.AUDIT: AuditRow,
    Kind.LABEL: Label,
    Kind.STATS: OriginStats,
    Kind.THUMBNAIL: Thumbnail,
    Kind.ORCHESTRATOR: Claim,
}
"""What topics of each kind carry."""

# Controls, formats, spaces but the plain one, private use. Unassigned code points are refused, too.
_UNPRINTABLE = (
    r"\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ue000-\uf8ff"
    r"\ufeff\ufff9-\ufffb"
)


def schema_of(kind: Kind) -> Schema:
    """Return the schema of the message that topics of a kind carry."""
    layout = layout_of(MESSAGES[kind])
    schema = _object(layout, is_json=layout.is_json)
    if layout.is_json:
        head: Schema = {"schema": {"const": layout.word}}
    else:
        head = {"v": {"const": layout.version}, "kind": {"const": layout.word}}
    beside = {field.key: _described(field, is_json=layout.is_json) for field in layout.beside}
    return {
        "title": layout.cls.__name__,
        "description": summary(layout.cls),
        **schema,
        "required": [*head, *schema["required"], *beside],
        "properties": {**head, **schema["properties"], **beside},
    }


def summary(cls: type) -> str:
    """Return the first paragraph of what stands under a class, on one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def meaning(field: Field, *, is_json: bool) -> str:
    """Return what a field means, with the unit of a duration."""
    long = {"s": "seconds", "ms": "milliseconds"}.get(unit_of(field, is_json=is_json))
    return f"{field.meaning} In {long}." if long else field.meaning


def unit_of(field: Field, *, is_json: bool) -> str:
    """Return the unit in which a field travels."""
    return "ms" if is_json and field.unit == "s" and field.key.endswith("_ms") else field.unit


def _object(layout: Layout, *, is_json: bool) -> Schema:
    return {
        "type": "object",
        "required": [field.key_in(is_json=is_json) for field in layout.required],
        "properties": {field.key_in(is_json=is_json): _described(field, is_json=is_json) for field in layout.fields},
    }


def _row(layout: Layout) -> Schema:
    items = []
    for field in layout.fields:
        schema = _described(field, is_json=False)
        if field.default is None:
            schema["type"] = [schema["type"], "null"]
        items.append(schema)
    return {"type": "array", "items": items, "minItems": len(layout.required)}


def _text_with(pattern: str) -> Schema:
    """Return the schema of text that has such a character; null, where a field may be it, has none."""
    return {"type": "string", "pattern": pattern}


def _described(field: Field, *, is_json: bool) -> Schema:
    schema = _value(field.form_in(is_json=is_json), is_json=is_json)
    if field.nullable:
        schema["type"] = [schema["type"], "null"]
    return {"description": meaning(field, is_json=is_json), **schema}


def _value(form: Form, *, is_json: bool) -> Schema:
    match form:
        case Text():
            # By what may not be in it: to some validators `$` also matches before a line feed at the end.
            return {"type": "string", "maxLength": form.most, "not": _text_with(f"[{_UNPRINTABLE}]")}
        case Id():
            return {
                "type": "string",
                "minLength": int(not form.or_none),
                "maxLength": 32,
                "not": _text_with("[^a-z0-9-]"),
            }
        case Whole():
            return {"type": "integer", "minimum": form.least, "maximum": form.most}
        case Number():
            return {"type": "number", "minimum": _bound(form.least), "maximum": _bound(form.most)}
        case Word():
            return {"type": "string", "enum": list(form.words)}
        case Flag():
            return {"type": "boolean"}
        case Data():
            return _bytes(form)
        case Items():
            array = {"type": "array", "items": _value(form.item, is_json=is_json), "maxItems": form.most}
            least = {"minItems": form.least} if form.least else {}
            return {**array, **least, **({"uniqueItems": True} if isinstance(form, Branches) else {})}
        case Tally():
            counts = {word: _value(form.count, is_json=is_json) for word in sorted(form.words)}
            return {"type": "object", "properties": counts, "additionalProperties": False}
        case Part():
            layout = layout_of(form.cls)
            return _row(layout) if layout.is_row and not is_json else _object(layout, is_json=is_json)
        case Packed():
            content = {"title": form.cls.__name__, "description": summary(form.cls), **_row(layout_of(form.cls))}
            return {**_binary(MAX_PACKED_BYTES), "contentMediaType": MSGPACK, "contentSchema": content}
        case PackedItems():
            content = _value(form.items, is_json=False)
            return {**_binary(MAX_PACKED_BYTES), "contentMediaType": MSGPACK, "contentSchema": content}
    raise TypeError(f"{form!r}: has no schema")


def _bytes(form: Data) -> Schema:
    least = {"minLength": form.least} if form.least else {}
    # A pattern is of code points, of which there is one for each byte.
    start = "".join(f"\\u{byte:04x}" if not 0x20 <= byte < 0x7F else chr(byte) for byte in form.start)
    return {**_binary(form.most), **least, **({"pattern": f"^{start}"} if start else {})}


def _binary(most: int) -> Schema:
    return {"type": "string", "contentEncoding": "binary", "maxLength": most}


def _bound(value: float) -> float:
    return int(value) if abs(value) < 1e9 and value == int(value) else value
