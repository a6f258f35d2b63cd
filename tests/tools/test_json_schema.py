"""Schemas and codec: what one accepts the other does, and the documents in docs/ are up to date."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.codec import decode
from distree.topics import DELIVERY, JSON, Kind
from tools import asyncapi
from tools.json_schema import MESSAGES, schema_of

DOCS = Path(__file__).parents[2] / "docs"
FIXTURES = Path(__file__).parents[1] / "compat" / "0.1.0"

NAMES = {
    Kind.STATE: ["state"],
    Kind.META: ["meta", "meta-wide"],
    Kind.TELEMETRY: ["telemetry", "telemetry-wide"],
    Kind.DEAD: ["dead"],
    Kind.EVENT: ["event"],
    Kind.SITE_EVENT: ["event-site"],
    Kind.ECHO: ["echo"],
    Kind.PLAN: ["plan", "plan-tuned"],
    Kind.MEMBER: ["member", "member-wide"],
    Kind.CALL: ["call"],
    Kind.STAGE: ["stage", "stage-wide"],
    Kind.INPUT: ["input"],
    Kind.OUTCOME: ["outcome", "outcome-unheard", "outcome-moved", "outcome-unreachable"],
    Kind.RESULT: ["result", "result-shed"],
    Kind.EXIT: ["embedding"],
    Kind.DECISION: ["decision"],
    Kind.AUDIT: ["audit", "audit-lost"],
    Kind.LABEL: ["label"],
    Kind.STATS: ["stats", "stats-idle"],
    Kind.THUMBNAIL: ["thumbnail"],
    Kind.ORCHESTRATOR: ["claim"],
}
"""Of each kind: the names of messages in FIXTURES."""

CASES = [(kind, name) for kind, names in NAMES.items() for name in names]
VALIDATORS = {kind: jsonschema.Draft7Validator(schema_of(kind)) for kind in Kind}


def is_json(kind: Kind) -> bool:
    return DELIVERY[kind].content_type == JSON


def unpacked(kind: Kind, name: str) -> dict[str, Any]:
    payload = (FIXTURES / f"{name}.bin").read_bytes()
    return json.loads(payload) if is_json(kind) else msgpack.unpackb(payload)


def as_json(value: Any) -> Any:
    """What a schema sees of an unpacked message: bytes as text."""
    if isinstance(value, dict):
        return {name: as_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [as_json(part) for part in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def decodes(kind: Kind, fields: dict[str, Any]) -> bool:
    payload = json.dumps(fields).encode() if is_json(kind) else msgpack.packb(fields)
    try:
        decode(MESSAGES[kind], payload)
    except RemoteProtocolError:
        return False
    return True


def fits(kind: Kind, fields: dict[str, Any]) -> bool:
    return VALIDATORS[kind].is_valid(as_json(fields))


def test_every_kind_has_a_schema_that_is_one():
    assert set(NAMES) == set(MESSAGES) == set(Kind)
    for kind in Kind:
        jsonschema.Draft7Validator.check_schema(schema_of(kind))


def described(schema: dict[str, Any]) -> list[str]:
    """Keys without a description, but for those that have one value only."""
    bare = [name for name, part in schema.get("properties", {}).items() if not part.get("description", "const" in part)]
    inner = [part for part in schema.get("properties", {}).values() if "enum" not in part]
    items = schema.get("items")
    return bare + [name for part in (*inner, *([items] if isinstance(items, dict) else [])) for name in described(part)]


@pytest.mark.parametrize("kind", Kind)
def test_every_key_is_described(kind):
    reasons = {"confident", "deadline", "fallback", "last", "shed"}
    assert set(described(schema_of(kind))) <= reasons


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_messages_fit_their_schema(kind, name):
    fields = unpacked(kind, name)
    assert fits(kind, fields)
    assert fits(kind, {**fields, "invented_later": [1]})


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_schema_requires_what_the_codec_requires(kind, name):
    fields = unpacked(kind, name)
    unread = {"time", "clock_synced"}
    for key in fields.keys() - unread:
        rest = {other: value for other, value in fields.items() if other != key}
        assert fits(kind, rest) == decodes(kind, rest), key


# A JSON Schema takes 1.0 for an integer; bytes and text are one to it.
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: math.modf(value)[0] != 0)
    | st.text(st.characters(codec="ascii"), max_size=80)
    | st.text(st.sampled_from("a é\u0085\u00a0\u00ad\u200b\u202f\u3000\ue000\ufeff"), max_size=3)
)
# By hand: st.recursive takes five times longer.
flat = scalars | st.lists(scalars, max_size=4) | st.dictionaries(st.text("ab", max_size=3), scalars, max_size=3)
plain = scalars | st.lists(flat, max_size=4) | st.dictionaries(st.text("ab", max_size=3), flat, max_size=3)


def spots(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a message, the message itself left out."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*at, key) for key, _ in parts] + [spot for key, part in parts for spot in spots(part, (*at, key))]


def changed(value: Any, spot: tuple[Any, ...], new: Any) -> Any:
    if not spot:
        return new
    if isinstance(value, dict):
        return {**value, spot[0]: changed(value[spot[0]], spot[1:], new)}
    return [changed(part, spot[1:], new) if k == spot[0] else part for k, part in enumerate(value)]


BYTES = (("payload",), ("png",), ("context",), ("token",), ("tensor", 3))
"""What a schema, which is of JSON, cannot tell from text."""


@pytest.mark.parametrize(("kind", "name"), CASES)
@given(values=st.lists(plain, min_size=6, max_size=6))
@settings(max_examples=6, deadline=None)
def test_what_fits_a_schema_is_read(kind, name, values):
    fields = unpacked(kind, name)
    # What the codec asks for beyond types and limits: an order, a number of scores for the predictions.
    beyond = {"missing", "masked", "scores", "predictions"}
    for spot, value in itertools.product(spots(fields), values):
        broken = changed(fields, spot, value)
        if spot not in BYTES and not beyond & set(spot) and fits(kind, broken):
            assert decodes(kind, broken), broken


BAD = [
    (Kind.RESULT, "result", ("confidence",), 1.5),
    (Kind.RESULT, "result", ("reason",), "guessed"),
    (Kind.RESULT, "result", ("final",), 1),
    (Kind.RESULT, "result", ("label",), 9),
    (Kind.RESULT, "result", ("hops", 0, "device"), "CAM/1"),
    (Kind.RESULT, "result", ("schema",), "distree.result/2"),
    (Kind.RESULT, "result-shed", ("missing",), [64]),
    (Kind.STATE, "state", ("state",), "asleep"),
    (Kind.META, "meta-wide", ("stages", 0, "branch"), None),
    (Kind.PLAN, "plan-tuned", ("masked", 0, 0), []),
    (Kind.STAGE, "stage-wide", ("progress", 1), [0, 9]),
    (Kind.STAGE, "stage", ("v",), 1),
    (Kind.STAGE, "stage", ("tensor", 1), [0, 1]),
    (Kind.TELEMETRY, "telemetry", ("pipelines", 0, "origin", "reasons"), {"luck": 1}),
    (Kind.TELEMETRY, "telemetry", ("pipelines", 0, "stages", 0, "received"), -1),
    (Kind.AUDIT, "audit", ("hops", 0), ["cam1", 0, 0.1]),
    (Kind.AUDIT, "audit", ("request",), "r\n"),
    (Kind.AUDIT, "audit", ("origin",), "cam1\n"),
    (Kind.AUDIT, "audit", ("origin",), ""),
]


@pytest.mark.parametrize(("kind", "name", "spot", "value"), BAD)
def test_what_the_codec_refuses_fits_no_schema(kind, name, spot, value):
    broken = changed(unpacked(kind, name), spot, value)
    assert not decodes(kind, broken)
    assert not fits(kind, broken)


# ---------------------------------------------------------------- the documents


def test_the_documents_are_up_to_date():
    made = asyncapi.files()
    stand = {path.relative_to(DOCS).as_posix() for path in (DOCS / "schemas").iterdir()} | {"asyncapi.yaml"}
    assert stand == made.keys(), "run make api"
    for name, text in made.items():
        assert (DOCS / name).read_text(encoding="utf-8") == text, f"docs/{name}: run make api"


def test_the_document_has_every_topic_with_its_delivery():
    document = yaml.safe_load((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
    assert set(document["channels"]) == {kind.value for kind in Kind}
    for kind in Kind:
        channel = document["channels"][kind.value]
        assert channel["address"] == topics.template(kind)
        assert all("{" + name + "}" in channel["address"] for name in channel["parameters"])
        (operation,) = (
            one for one in document["operations"].values() if one["channel"]["$ref"] == f"#/channels/{kind.value}"
        )
        mqtt = operation["bindings"]["mqtt"]
        assert (mqtt["qos"], mqtt["retain"]) == (DELIVERY[kind].qos, DELIVERY[kind].retain)
        assert document["components"]["schemas"][kind.value] == schema_of(kind)


def test_the_schemas_in_docs_are_those_of_json_messages():
    for kind in Kind:
        path = DOCS / "schemas" / f"{kind.value}.json"
        assert path.exists() == is_json(kind)
        if is_json(kind):
            schema = json.loads(path.read_text(encoding="utf-8"))
            for name in NAMES[kind]:
                jsonschema.validate(unpacked(kind, name), schema)


PARSE = """
const {Parser} = require('@asyncapi/parser');
let text = '';
process.stdin.on('data', (part) => { text += part; }).on('end', async () => {
  const {document, diagnostics} = await new Parser().parse(text);
  console.log(JSON.stringify({
    faults: diagnostics.filter((one) => one.severity < 2).map((one) => `${one.path.join('.')}: ${one.message}`),
    channels: document ? document.channels().all().map((one) => one.address()) : [],
  }));
});
"""


@pytest.fixture(scope="module")
def parse():
    """Returns what @asyncapi/parser says of a document."""
    node = shutil.which("node")
    folder = Path(__file__).parents[2] / "node_modules"
    if node is None or not (folder / "@asyncapi" / "parser").is_dir():
        pytest.skip("@asyncapi/parser is not installed: apt install nodejs npm; make node")

    def parsed(text: str) -> Any:
        environment = {**os.environ, "NODE_PATH": str(folder)}
        done = subprocess.run(
            [node, "-e", PARSE], input=text, env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return json.loads(done.stdout)

    return parsed


def test_asyncapi_s_own_parser_takes_the_document(parse):
    told = parse((DOCS / "asyncapi.yaml").read_text(encoding="utf-8"))
    assert told["faults"] == []
    assert set(told["channels"]) == {topics.template(kind) for kind in Kind}


@pytest.mark.slow
def test_asyncapi_s_own_parser_would_notice_a_fault(parse):
    text = (DOCS / "asyncapi.yaml").read_text(encoding="utf-8")
    assert parse(text.replace("action: send", "action: shout", 1))["faults"]
    assert parse(text.replace("#/components/messages/state", "#/components/messages/gone", 1))["faults"]
