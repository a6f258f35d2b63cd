"""Inputs inside text, as other programs hand them over: JSON, base64 by itself, data URLs.

JSON holds a file's content as base64 or as a data URL, or a recording as numbers: a list of them, a list of rows, or a
list of objects whose keys name the columns. Which field it is in says its user, or its name does: see `FIELDS`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from distree.errors import RemoteProtocolError
from distree.printable import printable, quoted
from distree.record import record

MAX_JSON_BYTES = 2 << 20
"""Longest JSON that is read: the objects made of it take many times its size."""

MAX_JSON_ROWS = 1 << 17
"""Most lists and objects in JSON: empty ones take three bytes there, and some sixty in memory."""

FIELDS = (
    "image", "picture", "photo", "snapshot", "frame", "img", "jpeg", "jpg", "png", "audio", "sound", "wav", "values",
    "samples", "window", "signal", "content", "data", "payload", "base64", "b64",
)  # fmt: skip
"""Names of the field that holds an input, in any case; of several, the first of these counts. After them come fields
that begin as one of them does, such as `image_base64`."""

_NAMES = ("name", "filename", "file")
_DEPTH = 3
_LONG = 64
"""Characters from which on text is taken for an input if only the beginning of its field's name says so."""

_MAX_ID = 64
_SHOWN = 6
_JSON = re.compile(
    rb"(\xef\xbb\xbf)?\s*"
    rb"(\{\s*(\"[^\"\x00-\x1f]{0,100}\"\s*:|\}\s*$)"
    rb"|(\[\s*){1,4}(\"|\{\s*[\"}]|-?[0-9][0-9.eE+-]*\s*[,\]]|\]\s*(,|$)))"
)
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\-\r\n]{64,}={0,2}\s*")
_DATA_URL = re.compile(rb"\s*data:[^,]{0,200},", re.IGNORECASE)
_REMEDY = "put the input into a field `image` or `values`, or name its field with `json_field` in a source mqtt"

Rows = list[Any]
"""A recording in JSON: numbers, lists of numbers, or objects with a number in each field."""


@record
class Wrapped:
    """What was inside: `content` is that of a file, or else `rows` are a recording; with a name and an id if given."""

    content: bytes = b""
    rows: Rows | None = None
    name: str = ""
    request: str | None = None


def looks_like_json(content: bytes) -> bool:
    """Whether bytes begin as a JSON object or list does, and are text.

    >>> looks_like_json(b'{"image": ""}'), looks_like_json(b"[section]"), looks_like_json(bytes([0x7B, 0]))
    (True, False, False)
    """
    return _JSON.match(content) is not None and _CONTROLS.search(content[:256]) is None


def looks_like_base64(content: bytes) -> bool:
    """Whether bytes are base64 and nothing else: text of its alphabet that uses much of it, unlike most pictures."""
    return _BASE64.fullmatch(content) is not None and len(set(content)) > 24


def unwrap(content: bytes, json_field: str | None = None) -> Wrapped | None:
    """Return what is inside JSON, a data URL or base64; None for anything else.

    `json_field` says where in JSON it is: names, or numbers of list items, with full stops between them.
    Raises RemoteProtocolError("json") or ("base64") if there is no input inside.
    """
    if looks_like_json(content):
        return _from_json(content, json_field)
    if _DATA_URL.match(content[:256]) or looks_like_base64(content):
        return Wrapped(content=_decoded(content, "the text"))
    return None


def _from_json(content: bytes, json_field: str | None) -> Wrapped:
    if len(content) > MAX_JSON_BYTES:
        raise _refused(
            f"it has {len(content):,} bytes, but at most {MAX_JSON_BYTES:,} are read", "send the file itself"
        )
    if content.count(b"[") + content.count(b"{") > MAX_JSON_ROWS:
        raise _refused(f"it has more than {MAX_JSON_ROWS:,} lists and objects", "send a shorter recording")
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        where = f"from character {error.pos + 1} on" if isinstance(error, json.JSONDecodeError) else "somewhere"
        raise _refused(f"it is damaged {where}, or cut off", "see what its sender publishes") from None
    if json_field is not None:
        found = _inside(_at(value, json_field), json_field)
    elif isinstance(value, list):
        found = Wrapped(rows=value)
    else:
        found = _search(value)
    if not isinstance(value, dict):
        return found
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), "")
    return Wrapped(content=found.content, rows=found.rows, name=printable(name, 256), request=_request(value))


def _request(value: dict[str, Any]) -> str | None:
    request = value.get("request")
    if request is None:
        return None
    if not isinstance(request, str) or not 0 < len(request) <= _MAX_ID or not request.isprintable():
        raise _refused(f"its field `request` is not a text of 1 to {_MAX_ID} characters", "give another id, or none")
    return request


def _at(value: Any, path: str) -> Any:
    """Follow a dotted path; a field whose own name has full stops is found, too."""
    if isinstance(value, dict) and path in value:
        return value[path]
    step, _, rest = path.partition(".")
    if isinstance(value, dict) and step in value:
        value = value[step]
    elif isinstance(value, list) and step.isascii() and step.isdigit() and len(step) < 9 and int(step) < len(value):
        value = value[int(step)]
    else:
        raise _refused(f"it has no field {quoted(path)}{_fields_of(value)}", "correct json_field, or what is published")
    return _at(value, rest) if rest else value


def _search(value: Any) -> Wrapped:
    """Look for the input by the names of fields, outer ones first."""
    level, problem = [("", value)], None
    for _ in range(_DEPTH):
        inner = []
        for path, one in level:
            if not isinstance(one, dict):
                continue
            for name in _likely(one):
                at = f"{path}{name}"
                if isinstance(one[name], dict):
                    inner.append((f"{at}.", one[name]))
                    continue
                try:
                    return _inside(one[name], at)
                except RemoteProtocolError as error:
                    problem = problem or error
        level = inner
    raise problem or _refused(f"no field of it is known to hold an input{_fields_of(value)}", _REMEDY)


def _likely(value: dict[str, Any]) -> list[str]:
    """Return the fields that may hold an input, the likeliest first."""
    by_name: dict[str, list[str]] = {}
    for key in value:
        by_name.setdefault(key.casefold(), []).append(key)
    exact = [key for field in FIELDS for key in by_name.get(field, ())]
    alike = [
        key
        for key, inside in value.items()
        if key not in exact and key.casefold().startswith(FIELDS) and isinstance(inside, str) and len(inside) > _LONG
    ]
    return [key for key in exact if isinstance(value[key], str | list | dict)] + alike


def _inside(value: Any, at: str) -> Wrapped:
    if isinstance(value, str):
        return Wrapped(content=_decoded(value.encode(), f"its field {quoted(at)}"))
    if isinstance(value, list):
        return Wrapped(rows=value)
    kind = {bool: "true or false", type(None): "null", dict: "an object"}.get(type(value), "a number")
    raise _refused(f"its field {quoted(at)} is {kind}, but neither base64 nor a list of numbers", _REMEDY)


def _decoded(text: bytes, what: str) -> bytes:
    """Decode base64, of either alphabet, or a data URL."""
    url = _DATA_URL.match(text[:256])
    if url is not None:
        if not url.group().lower().endswith(b";base64,"):
            raise RemoteProtocolError("base64", f"{what} is a data URL without base64", "encode it as base64")
        text = text[url.end() :]
    plain = b"".join(text.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error:
        raise RemoteProtocolError(
            "base64", f"{what} is not base64, or is cut off", "encode the file's content as base64"
        ) from None


def _fields_of(value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    names = [printable(name, 24) for name in list(value)[:_SHOWN]]
    more = ", …" if len(value) > _SHOWN else ""
    return f" (its fields: {', '.join(names)}{more})" if names else " (it has none)"


def as_table(rows: Rows) -> bytes:
    """Return rows as the CSV file that holds the same, so that the rules of tables apply.

    Raises RemoteProtocolError("json") if they are no rows.
    """
    if not rows:
        raise _refused("the list of numbers is empty", "send a window's numbers")
    first = rows[0]
    if isinstance(first, dict):
        names = list(first)
        if any(not isinstance(row, dict) or row.keys() != first.keys() for row in rows):
            raise _refused("the objects in the list have different fields", "give each the same fields")
        header = [",".join('"' + name.replace('"', '""').replace("\n", " ") + '"' for name in names)]
        return "\n".join(header + [",".join(_cell(row[name]) for name in names) for row in rows]).encode()
    table = [row if isinstance(row, list) else [row] for row in rows]
    return "\n".join(",".join(map(_cell, row)) for row in table).encode()


def _cell(value: Any) -> str:
    if isinstance(value, str) and value.isprintable() and '"' not in value:
        return f'"{value}"'
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    kinds = {bool: "true or false", type(None): "null", str: "text", list: "a list", dict: "an object"}
    raise _refused(f"the list holds {kinds[type(value)]} where a number is expected", "send numbers only")


def _refused(why: str, remedy: str) -> RemoteProtocolError:
    return RemoteProtocolError("json", f"it is JSON, but {why}"[:300], remedy)
