"""JSON Schemas (draft 07) of all messages, made from their types, their topics' kinds and the codec's limits.

A schema says what is written; readers ignore keys that they do not know. For MessagePack it describes the map that
unpacking gives, with bytes as strings of `contentEncoding: binary`. `tests/core/test_schemas.py` holds that schema and
codec accept the same.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from distree import wire
from distree.record import record
from distree.topics import DELIVERY, JSON, Kind
from distree.types import (
    AuditRow,
    Claim,
    DeadLetter,
    Decision,
    DeviceMeta,
    DeviceState,
    Embedding,
    FusionTelemetry,
    Guess,
    Hop,
    InputMessage,
    MaskedThresholds,
    OriginStats,
    Outcome,
    PipelineTelemetry,
    Plan,
    Reading,
    Reason,
    Result,
    StageMessage,
    Telemetry,
    Tensor,
    Thumbnail,
    Truth,
)

DIALECT = "http://json-schema.org/draft-07/schema#"

Schema: TypeAlias = "dict[str, Any]"


@record
class Payload:
    """What topics of one kind carry: the message's type, and the word by which its bytes say what they are."""

    message: type
    word: str


PAYLOADS: dict[Kind, Payload] = {
    Kind.STATE: Payload(message=DeviceState, word=wire.STATE_SCHEMA),
    Kind.META: Payload(message=DeviceMeta, word=wire.META_SCHEMA),
    Kind.TELEMETRY: Payload(message=Telemetry, word="telemetry"),
    Kind.DEAD: Payload(message=DeadLetter, word=wire.DEAD_SCHEMA),
    Kind.PLAN: Payload(message=Plan, word="plan"),
    Kind.STAGE: Payload(message=StageMessage, word="stage"),
    Kind.INPUT: Payload(message=InputMessage, word="input"),
    Kind.OUTCOME: Payload(message=Outcome, word="outcome"),
    Kind.RESULT: Payload(message=Result, word=wire.RESULT_SCHEMA),
    Kind.EXIT: Payload(message=Embedding, word="embedding"),
    Kind.DECISION: Payload(message=Decision, word="decision"),
    Kind.AUDIT: Payload(message=AuditRow, word="audit"),
    Kind.TRUTH: Payload(message=Truth, word=wire.TRUTH_SCHEMA),
    Kind.STATS: Payload(message=OriginStats, word=wire.STATS_SCHEMA),
    Kind.THUMBNAIL: Payload(message=Thumbnail, word="thumbnail"),
    Kind.ORCHESTRATOR: Payload(message=Claim, word=wire.CLAIM_SCHEMA),
}

_ID: Schema = {"type": "string", "pattern": "^[a-z0-9-]{1,32}$"}
_FINITE: Schema = {"type": "number", "minimum": -1e300, "maximum": 1e300}
_BYTES: Schema = {"type": "string", "contentEncoding": "binary"}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": wire.MAX_COUNT}


# Controls, formats, spaces but the plain one, private use. Unassigned code points are refused, too.
_UNPRINTABLE = (
    r"\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ue000-\uf8ff"
    r"\ufeff\ufff9-\ufffb"
)


def _text(limit: int) -> Schema:
    return {"type": "string", "maxLength": limit, "pattern": f"^[^{_UNPRINTABLE}]*$"}


def _upto(limit: int) -> Schema:
    return {"type": "integer", "minimum": 0, "maximum": limit}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _list(items: Schema, limit: int) -> Schema:
    return {"type": "array", "items": items, "maxItems": limit}


def _row(*items: Schema) -> Schema:
    return {"type": "array", "items": list(items), "minItems": len(items), "additionalItems": False}


_SECONDS = _number(0, wire.MAX_BUDGET_S)
_BRANCHES = {**_list(_upto(wire.MAX_BRANCHES - 1), wire.MAX_BRANCHES), "uniqueItems": True}
_NAMES = _list(_text(32), wire.MAX_PIPELINES)
_STAGE, _EXIT, _CLASS = _upto(wire.MAX_STAGES), _upto(wire.MAX_STAGES), _upto(wire.MAX_CLASSES)
_CODED_ROWS: dict[type, Schema] = {
    Guess: _row(_EXIT, _CLASS, _number(0, 1)),
    Hop: _row(_ID, _upto(wire.MAX_STAGES - 1), _SECONDS, _SECONDS),
    Reading: _row(_FINITE, _CLASS),
    MaskedThresholds: _row({**_BRANCHES, "minItems": 1}, _list(_FINITE, wire.MAX_STAGES)),
}
"""What MessagePack messages hold as a list of its fields, in their order."""

_JSON_NAMES = {
    "latency_s": "latency_ms",
    "latency_p50_s": "latency_p50_ms",
    "latency_p95_s": "latency_p95_ms",
    "queue_s": "queue_ms",
    "compute_s": "compute_ms",
    "status": "state",
}
"""Fields that JSON messages call otherwise: people read milliseconds."""

_LIMITS: dict[str, Schema] = {
    **dict.fromkeys(("device", "origin", "pipeline", "fuser", "orchestrator"), _ID),
    "site": _text(32),
    "input": _text(512),
    "topic": _text(512),
    "detail": _text(512),
    "name": _text(256),
    "runtime": _text(128),
    "head_hex": _text(128),
    "attempt": _upto(100),
    "stage": _STAGE,
    "branch": _upto(wire.MAX_BRANCHES - 1),
    **dict.fromkeys(("confidence", "audit_rate", "early_share"), _number(0, 1)),
    **dict.fromkeys(("budget_s", "spent_s"), _SECONDS),
    "memory": _list(_FINITE, wire.MAX_MEMORY),
    "missing": _BRANCHES,
    "hops": {"maxItems": wire.MAX_HOPS},
    "trace": {"maxItems": wire.MAX_STAGES},
    "shape": {**_list(_upto(wire.MAX_MESSAGE_BYTES) | {"minimum": 1}, wire.MAX_RANK)},
    "payload": _BYTES,
    "png": {**_BYTES, "pattern": r"^\u0089PNG\r\n\u001a\n", "maxLength": wire.MAX_THUMBNAIL_BYTES},
    "rest_s": _list(_SECONDS, wire.MAX_STAGES),
    **dict.fromkeys(("thresholds", "scores"), _list(_FINITE, wire.MAX_STAGES)),
    **dict.fromkeys(("predictions", "exits"), _list(_COUNT, wire.MAX_STAGES)),
    "masked": {"maxItems": wire.MAX_MASKED},
    "fusions": {"maxItems": wire.MAX_STAGES},
    "pipelines": {"maxItems": wire.MAX_PIPELINES},
    "origins": _NAMES,
    "fusers": _NAMES,
    "reasons": {
        "type": "object",
        "properties": dict.fromkeys(sorted(get_args(Reason)), _COUNT),
        "additionalProperties": False,
    },
}
_LIMITS_OF: dict[tuple[type, str], Schema] = {
    (FusionTelemetry, "missing"): _list(_COUNT, wire.MAX_BRANCHES),
    (DeviceMeta, "stages"): {"maxItems": wire.MAX_STAGES * wire.MAX_PIPELINES},
    (PipelineTelemetry, "origin"): {},
}

_ALWAYS_WRITTEN = (AuditRow,)
"""Of these, fields with a default are written too; other messages leave out what holds its default."""

_MEANING = {
    "accepted": "Inputs accepted since boot.",
    "answered": "Inputs answered since boot.",
    "attempt": "1, or 2 where the features were sent once more.",
    "audit": "Whether this is an audit: it takes no exit and nobody waits for it.",
    "audit_rate": "Share of inputs that origins draw for audits.",
    "audited": "Runs for audits and probes, in no other counter.",
    "audits_drawn": "Inputs drawn for audits since boot.",
    "audits_lost": "Audits that could not be run to the end.",
    "boot": "Tells one run of the agent from the next.",
    "branch": "Branch of a wide stage.",
    "budget_s": "Seconds that the origin grants in all.",
    "bytes_out": "Bytes of features and embeddings published.",
    "class_id": "Index of the predicted class; null where nothing could be computed in time.",
    "clock_synced": "Whether the clock of the board that wrote `time` is to be believed.",
    "codec": "How the tensor's bytes are packed.",
    "compute_ms": "Milliseconds spent computing.",
    "compute_s": "Mean seconds of a run, of the last report's period.",
    "confidence": "Largest softmax probability at the exit taken.",
    "criterion": "Exit criterion.",
    "dead_letters": "Messages refused since boot.",
    "detail": "What was wrong with the message.",
    "device": "Id of the board.",
    "dtype": "Element type of the tensor.",
    "dropped": "Inputs for which there was no room, not even for a result that says so.",
    "duplicate": "Deliveries seen before.",
    "eager": "Whether branches go on until they are stopped.",
    "early_share": "Share of the answers since the report before that left before the last exit; null without any.",
    "epoch": "Number of the plan by which exits are decided; 0 for the bundle's own thresholds.",
    "exit": "Number of the exit that answered, from 0; null where none did.",
    "exited": "Runs after which the input was answered.",
    "exits": "Inputs answered by each exit since boot.",
    "expired": "Work dropped because its time was over.",
    "failed": "Runs that raised an error.",
    "final": "True for exactly one result of a request.",
    "forwarded": "Runs after which features or an embedding went on.",
    "fused": "Exits of a wide stage that were decided.",
    "fuser": "Board that fuses the branches' embeddings.",
    "fusers": "Pipelines for whose wide stages the board fuses.",
    "fusions": "What the board fused, per wide stage.",
    "go": "Whether the branch is to go on.",
    "guess": "Best answer so far: exit, class, confidence; null if none.",
    "head_hex": "First bytes of the message in hexadecimal.",
    "hops": "Where the time went: one entry per board and stage.",
    "input": "Name of the input, as its source gave it.",
    "label": "Name of the class; null where nothing could be computed in time.",
    "late": "Answers or embeddings that came too late.",
    "latency_max_s": "Longest latency in seconds, of the last report's period.",
    "latency_ms": "Milliseconds from the input to its answer, by the origin's clock.",
    "latency_p50_ms": "Their median latency in milliseconds; null without any.",
    "latency_p50_s": "Median latency in seconds, of the last report's period.",
    "latency_p95_ms": "95th percentile of their latency in milliseconds; null without any.",
    "latency_p95_s": "95th percentile of latency in seconds, of the last report's period.",
    "machine": "Machine type, such as armv7l.",
    "masked": "Thresholds for sets of missing branches: the set, then one threshold per exit but the last.",
    "memory": "What the criterion carries from exit to exit.",
    "memory_mb": "Memory of the board in megabytes.",
    "missing": "Branches that were not heard.",
    "model": "Name of the bundle.",
    "name": "Name of the input.",
    "offline_dropped": "Messages lost while without a broker.",
    "orchestrator": "Id of the orchestrator.",
    "origin": "Board that accepted the input.",
    "origins": "Pipelines of which the board is an origin.",
    "payload": "The bytes.",
    "payload_bytes": "Size of the message in bytes.",
    "pending": "Inputs under way.",
    "pipeline": "Id of the pipeline.",
    "pipelines": "What the board did, per pipeline.",
    "png": "The picture as a PNG file of at most 64 KiB.",
    "predictions": "Class that each exit predicts; empty where the audit was lost.",
    "python": "Version of Python.",
    "queue_ms": "Milliseconds spent waiting.",
    "queue_s": "Mean seconds of waiting before a run, of the last report's period.",
    "rate_hz": "Answers a second since the report before.",
    "reason": "Why it was answered there.",
    "reasons": "Inputs answered for each reason since boot.",
    "received": "Inputs and features that came.",
    "request": "Id of the request.",
    "resent": "Inputs sent once more.",
    "rest_s": "Least seconds from each exit but the last to the next.",
    "revision": "Revision of the bundle.",
    "rss_bytes": "Resident memory of the agent in bytes.",
    "running": "Whether it plans the site; false once it is gone.",
    "runtime": "Package and version that runs the segments.",
    "scores": "Score of each exit but the last.",
    "sequence": "Number of the report or row since boot, from 1.",
    "shape": "Shape of the tensor.",
    "shed": "Work refused or answered at once because a queue was full; at an origin, inputs that found no room.",
    "site": "Id of the site.",
    "spent_s": "Seconds that boards have used so far.",
    "stage": "Number of the stage, from 0.",
    "stages": "What the board did, per stage.",
    "state": "Life of the agent; `lost` is its will's.",
    "thresholds": "Score at which each exit but the last is taken.",
    "time": "When it was answered, ISO 8601 in UTC.",
    "topic": "Topic on which the message came.",
    "trace": "What the exits passed so far said: score and class each.",
    "unspooled": "Inputs under way that a crash would lose, because the spool's disk fails.",
    "uptime_s": "Seconds since the agent started.",
    "version": "Version of DistrEE.",
    "waiting": "Work that waits now.",
    "wasted": "Runs of a branch that the answer did not need.",
}
_MEANING_OF = {
    (DeadLetter, "reason"): "Which rule the message broke.",
    (DeviceMeta, "stages"): "Stages that the board serves.",
    (FusionTelemetry, "missing"): "Decisions made without each branch.",
    (PipelineTelemetry, "origin"): "What the board did as an origin; null where it is none.",
    (Result, "late"): "Whether it came after another result of the request was final.",
}


def schema_of(kind: Kind) -> Schema:
    """Return the schema of the message that topics of a kind carry."""
    payload, is_json = PAYLOADS[kind], DELIVERY[kind].content_type == JSON
    schema = _object(payload.message, is_json=is_json)
    if is_json:
        head: Schema = {"schema": {"const": payload.word}}
    else:
        head = {"v": {"const": wire.VERSION}, "kind": {"const": payload.word}}
    own: Schema = {}
    if payload.message is Result:
        own = {
            "time": {"description": _MEANING["time"], **_text(64)},
            "clock_synced": {"description": _MEANING["clock_synced"], "type": "boolean"},
        }
    return {
        "title": payload.message.__name__,
        "description": _summary(payload.message),
        **schema,
        "required": [*head, *schema["required"], *own],
        "properties": {**head, **schema["properties"], **own},
    }


def _summary(message: type) -> str:
    return " ".join((inspect.getdoc(message) or "").split("\n\n")[0].split())


def _object(message: type, *, is_json: bool) -> Schema:
    """Describe a record as a map; a tensor's fields stand among those of its message."""
    properties: Schema = {}
    required: list[str] = []
    hints = get_type_hints(message)
    for field in dataclasses.fields(message):
        if hints[field.name] is Tensor:
            inner = _object(Tensor, is_json=is_json)
            properties |= inner["properties"]
            required += inner["required"]
            continue
        name = _JSON_NAMES.get(field.name, field.name) if is_json else field.name
        limits = _LIMITS_OF.get((message, field.name), _LIMITS.get(field.name, {}))
        hint, is_optional = hints[field.name], field.default is not dataclasses.MISSING
        if is_optional and field.default is None:
            # Left out, and never null.
            (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
        meaning = _MEANING_OF.get((message, field.name), _MEANING.get(name, ""))
        properties[name] = {"description": meaning, **_typed(hint, limits, is_json=is_json)}
        if not is_optional or message in _ALWAYS_WRITTEN:
            required.append(name)
    return {"type": "object", "required": required, "properties": properties}


def _typed(hint: Any, limits: Schema, *, is_json: bool) -> Schema:
    """Describe a value of an annotated type, with narrower limits where there are any."""
    if get_origin(hint) in (Union, types.UnionType) and types.NoneType in get_args(hint):
        (inner,) = (part for part in get_args(hint) if part is not types.NoneType)
        schema = _typed(inner, limits, is_json=is_json)
        return {**schema, "type": [schema["type"], "null"]}
    return limits if "type" in limits else {**_plain(hint, is_json=is_json), **limits}


def _plain(hint: Any, *, is_json: bool) -> Schema:
    if get_origin(hint) is Literal:
        return {"type": "string", "enum": sorted(get_args(hint))}
    if get_origin(hint) is tuple:
        return _list(_typed(get_args(hint)[0], {}, is_json=is_json), wire.MAX_STAGES)
    if not is_json and hint in _CODED_ROWS:
        return _CODED_ROWS[hint]
    if dataclasses.is_dataclass(hint):
        return _object(hint, is_json=is_json)  # type: ignore[arg-type]  # a class, not one of its objects
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {"type": "string", "enum": [member.value for member in hint]}
    return {bool: {"type": "boolean"}, int: _COUNT, float: _number(0, 1e15), str: _text(64)}[hint]
