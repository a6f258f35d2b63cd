"""What the page reads, as it is declared: `page/declared.js`, which `make api` writes and `decode.js` reads by.

A form is a list: its name, and its limits in the order in which `decode.js` takes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distree.messages.forms import Data, Flag, Form, Id, Items, Number, Part, Tally, Text, Whole, Word
from distree.messages.layout import REQUIRED, Field, layout_of
from distree.topics import Kind
from tools.json_schema import MESSAGES

PATH = Path(__file__).parents[1] / "distree" / "apps" / "dashboard" / "page" / "declared.js"
KINDS = (Kind.RESULT, Kind.STATE, Kind.META, Kind.TELEMETRY, Kind.PLAN, Kind.ORCHESTRATOR, Kind.THUMBNAIL, Kind.EVENT)
"""What the page subscribes to."""


def text() -> str:
    """Return the file."""
    lines = [
        "// Written by `make api` from the declarations of messages: changes here are lost.",
        "",
        "// Of each kind: the word and version by which bytes say what they are, and the form of each field.",
        "export const MESSAGES = {",
    ]
    for kind in KINDS:
        layout = layout_of(MESSAGES[kind])
        lines += [f"  {kind.value}: {{", f"    word: {json.dumps(layout.word)},"]
        if not layout.is_json:  # whose word ends in its version
            lines.append(f"    version: {layout.version},")
        lines.append("    fields: [")
        lines += [f"      {json.dumps(_field(field, layout.is_json))}," for field in layout.fields]
        lines += ["    ],", "  },"]
    return "\n".join([*lines, "};", ""])


def _field(field: Field, is_json: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": field.key_in(is_json=is_json),
        "form": _form(field.form_in(is_json=is_json), is_json),
    }
    if field.nullable:
        made["nullable"] = True
    if field.default is not REQUIRED:
        made["absent"] = field.default
    return made


def _form(form: Form, is_json: bool) -> list[Any]:
    match form:
        case Text():
            return ["text", form.most]
        case Id():
            return ["id"]
        case Whole():
            return ["count", form.least, form.most]
        case Number():
            return ["number", form.least, form.most]
        case Word():
            return ["word", list(form.words)]
        case Flag():
            return ["flag"]
        case Data():
            return ["bytes", form.least, form.most]
        case Items():
            return ["list", _form(form.item, is_json), form.least, form.most]
        case Tally():
            return ["tally", sorted(form.words), form.count.most]
        case Part():
            layout = layout_of(form.cls)
            name = "row" if layout.is_row and not is_json else "map"
            return [name, [_field(field, is_json) for field in layout.fields]]
    raise TypeError(f"{form!r}: is not read by the page")


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
