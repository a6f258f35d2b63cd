"""The only codec: messages to bytes and back, versioned, with a limit on every length.

Messages between boards and to the orchestrator are msgpack maps `{"v": 1, "kind": …, …}`; what people and dashboards
read (results, states, dead letters) is JSON with a `schema`. Unknown keys are ignored, so that a later version may
add some. Keys that only wide stages or audits need are left out where they hold the default, which is read where they
are absent: other messages do not pay for them. Every decoder raises RemoteProtocolError, and nothing else, for whatever
bytes it is given; `reason` is one of `size`, `encoding`, `version`, `kind`, `field`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import msgpack

from distree.errors import RemoteProtocolError
from distree.topics import is_id
from distree.types import (
    AuditRow,
    Claim,
    Codec,
    DeadLetter,
    Decision,
    DeviceMeta,
    DeviceState,
    DeviceStatus,
    DType,
    Embedding,
    FusionTelemetry,
    Guess,
    HeldStage,
    Hop,
    InputMessage,
    MaskedThresholds,
    OriginStats,
    OriginTelemetry,
    Outcome,
    PipelineTelemetry,
    Plan,
    Reading,
    Reason,
    Result,
    StageMessage,
    StageTelemetry,
    Telemetry,
    Tensor,
    Thumbnail,
    Trace,
    Truth,
)

VERSION = 1

PROBE = b"distree probe"
"""What `distree doctor` sends to see whether a topic may be used: every agent ignores it, on every topic."""

MAX_MESSAGE_BYTES = 1 << 20
"""Longest message that is looked at, in bytes; a longer one is refused unread."""

MAX_ITEMS = 1024
"""Longest list or map anywhere in a msgpack message."""

SMALL_BYTES = 1 << 16
"""A msgpack message up to this long is unpacked without counting: its objects take at most some 70 times its bytes."""

MAX_CONTAINERS = 4096
"""Most maps and lists in a longer message, which otherwise could be a million of them, and take 126 MB."""

MAX_HOPS = 32
MAX_RANK = 6
MAX_MEMORY = 1024
"""Most numbers of a criterion's memory: the embeddings of an exit are among what may have to be remembered."""

MAX_STAGES = 32
MAX_BRANCHES = 64
MAX_MASKED = 256
"""Most sets of missing branches for which a plan has thresholds."""

MAX_CLASSES = 1 << 20
MAX_PIPELINES = 64
MAX_BUDGET_S = 3600.0
MAX_COUNT = 1 << 53

_DTYPES = frozenset(get_args(DType))
_CODECS = frozenset(get_args(Codec))
_REASONS = frozenset(get_args(Reason))

T = TypeVar("T")
Fields = dict[str, Any]


# ---------------------------------------------------------------- reading and checking fields


def _bad(name: str, value: object, expected: str) -> RemoteProtocolError:
    return RemoteProtocolError("field", f"{name}: expected {expected}, received {_shown(value)}")


def _shown(value: object) -> str:
    # What is nested may be nested too deeply to be printed.
    return ascii(value)[:40] if isinstance(value, str | int | float | bytes | None) else type(value).__name__


def _text(fields: Fields, name: str, limit: int = 64) -> str:
    value = fields[name]
    # Control characters and lone surrogates would break what prints or stores them.
    if type(value) is str and len(value) <= limit and value.isprintable():
        return value
    raise _bad(name, value, f"printable text of at most {limit} characters")


def _id(fields: Fields, name: str) -> str:
    """Read what becomes part of a topic."""
    value = fields[name]
    if type(value) is str and is_id(value):
        return value
    raise _bad(name, value, "an id of a-z, 0-9 and '-'")


def _count(fields: Fields, name: str, limit: int = MAX_COUNT) -> int:
    value = fields[name]
    if type(value) is int and 0 <= value <= limit:
        return value
    raise _bad(name, value, f"an integer of 0 to {limit}")


def _number(fields: Fields, name: str, low: float = 0.0, high: float = 1e15) -> float:
    value = fields[name]
    # A NaN fails both comparisons.
    if type(value) in (float, int) and low <= value <= high:
        return float(value)
    raise _bad(name, value, f"a finite number of {low:g} to {high:g}")


def _list(fields: Fields, name: str, limit: int) -> list[Any] | tuple[Any, ...]:
    value = fields[name]
    if type(value) in (tuple, list) and len(value) <= limit:
        return value  # type: ignore[no-any-return]
    raise _bad(name, value, f"a list of at most {limit} items")


def _word(fields: Fields, name: str, words: frozenset[str]) -> Any:
    value = fields[name]
    if type(value) is str and value in words:
        return value
    raise _bad(name, value, "one of " + ", ".join(sorted(words)))


def _floats(fields: Fields, name: str, limit: int) -> tuple[float, ...]:
    values = _list(fields, name, limit)
    if all(type(value) in (float, int) and -1e300 <= value <= 1e300 for value in values):
        return tuple(map(float, values))
    raise _bad(name, values, "finite numbers")


def _durations(fields: Fields, name: str) -> tuple[float, ...]:
    seconds = _floats(fields, name, MAX_STAGES)
    if all(0.0 <= value <= MAX_BUDGET_S for value in seconds):
        return seconds
    raise _bad(name, seconds, f"seconds of 0 to {MAX_BUDGET_S:g}")


def _flag(fields: Fields, name: str) -> bool:
    value = fields[name]
    if type(value) is bool:
        return value
    raise _bad(name, value, "true or false")


def _branches(fields: Fields, name: str) -> tuple[int, ...]:
    """Read a set of branches, of which there is one way to write it."""
    branches = _list(fields, name, MAX_BRANCHES)
    last = -1
    for branch in branches:
        if type(branch) is not int or not last < branch < MAX_BRANCHES:
            raise _bad(name, branch, f"ascending branch numbers below {MAX_BRANCHES}")
        last = branch
    return tuple(branches)


def _maybe(fields: Fields, name: str, read: Callable[[Fields, str], T]) -> T | None:
    return None if fields[name] is None else read(fields, name)


def _map(value: object, name: str) -> Fields:
    if type(value) is dict:
        return value
    raise _bad(name, value, "a map")


def printable(text: str) -> str:
    """Return `text` with control characters and the like, which `_text` would refuse, written as escapes."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise RemoteProtocolError("size", f"{len(payload)} bytes, at most {MAX_MESSAGE_BYTES} are read")


def _unpack(payload: bytes, kind: str) -> Fields:
    _check_size(payload)
    try:
        if len(payload) <= SMALL_BYTES:
            fields = msgpack.unpackb(payload, use_list=False, max_array_len=MAX_ITEMS, max_map_len=MAX_ITEMS)
        else:
            fields = _unpack_counting(payload)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError("encoding", f"not msgpack: {error}"[:160]) from None
    if type(fields) is not dict:
        raise RemoteProtocolError("encoding", f"expected a map, received {type(fields).__name__}")
    if fields.get("v") != VERSION:
        raise RemoteProtocolError("version", f"expected {VERSION}, received {_shown(fields.get('v'))}")
    if fields.get("kind") != kind:
        raise RemoteProtocolError("kind", f"expected {kind!r}, received {_shown(fields.get('kind'))}")
    return fields


def _unpack_counting(payload: bytes) -> Any:
    """Unpack a long message, which is long for the sake of one payload; ValueError where it is many small things."""
    left = MAX_CONTAINERS

    def count(container: T) -> T:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_CONTAINERS} maps and lists")
        return container

    return msgpack.unpackb(
        payload,
        use_list=False,
        max_array_len=MAX_ITEMS,
        max_map_len=MAX_ITEMS,
        object_hook=count,
        list_hook=count,
    )


def _load_json(payload: bytes, schema: str) -> Fields:
    _check_size(payload)
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise RemoteProtocolError("encoding", f"not JSON: {error}"[:160]) from None
    if type(fields) is not dict:
        raise RemoteProtocolError("encoding", f"expected an object, received {type(fields).__name__}")
    if fields.get("schema") != schema:
        raise RemoteProtocolError("version", f"expected {schema}, received {_shown(fields.get('schema'))}")
    return fields


def _decode(read: Callable[[Fields], T], fields: Fields) -> T:
    try:
        return read(fields)
    except KeyError as error:
        raise RemoteProtocolError("field", f"{error.args[0]}: missing") from None


def _dump_json(fields: Fields) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


# ---------------------------------------------------------------- parts


def _guess(fields: Fields, name: str) -> Guess | None:
    value = fields[name]
    if value is None:
        return None
    if type(value) is tuple and len(value) == 3:
        exit, class_id, confidence = value
        if (
            type(exit) is int
            and 0 <= exit <= MAX_STAGES
            and type(class_id) is int
            and 0 <= class_id <= MAX_CLASSES
            and type(confidence) is float
            and 0.0 <= confidence <= 1.0
        ):
            return Guess(exit=exit, class_id=class_id, confidence=confidence)
    raise _bad(name, value, "[exit, class_id, confidence]")


def _hop(value: object) -> Hop:
    if type(value) is tuple and len(value) == 4:
        device, stage, queue_s, compute_s = value
        if (
            type(device) is str
            and is_id(device)
            and type(stage) is int
            and 0 <= stage < MAX_STAGES
            and type(queue_s) is float
            and type(compute_s) is float
            and 0.0 <= queue_s <= MAX_BUDGET_S
            and 0.0 <= compute_s <= MAX_BUDGET_S
        ):
            return Hop(device=device, stage=stage, queue_s=queue_s, compute_s=compute_s)
    raise _bad("hops", value, "[device, stage, queue_s, compute_s]")


def _hops(fields: Fields) -> tuple[Hop, ...]:
    return tuple([_hop(value) for value in _list(fields, "hops", MAX_HOPS)])


def _routing(fields: Fields) -> tuple[str, str, int, str, int]:
    """Read what stage messages, embeddings and outcomes share: request, origin, attempt, revision, epoch.

    One expression for the usual case, since this is on the path of every message; what fails it is read field by
    field, to say which one it was.
    """
    request, origin, attempt = fields["request"], fields["origin"], fields["attempt"]
    revision, epoch = fields["revision"], fields["epoch"]
    if (
        type(request) is str
        and type(origin) is str
        and type(attempt) is int
        and type(revision) is str
        and type(epoch) is int
        and len(request) <= 64
        and request.isprintable()
        and is_id(origin)
        and 0 <= attempt <= 100
        and len(revision) <= 64
        and revision.isprintable()
        and 0 <= epoch <= MAX_COUNT
    ):
        return request, origin, attempt, revision, epoch
    _text(fields, "request")
    _id(fields, "origin")
    _count(fields, "attempt", 100)
    _text(fields, "revision")
    _count(fields, "epoch")
    raise AssertionError("unreachable: one of the fields was refused")


def _tensor(fields: Fields) -> Tensor:
    shape = _list(fields, "shape", MAX_RANK)
    for size in shape:
        if type(size) is not int or not 0 < size <= MAX_MESSAGE_BYTES:
            raise _bad("shape", size, "positive integers")
    payload = fields["payload"]
    if type(payload) is not bytes:
        raise _bad("payload", type(payload).__name__, "bytes")
    return Tensor(
        dtype=_word(fields, "dtype", _DTYPES),
        shape=tuple(shape),
        codec=_word(fields, "codec", _CODECS),
        payload=payload,
    )


def _trace(fields: Fields) -> Trace:
    """Read what exits said; None where it is not recorded."""
    if "trace" not in fields:
        return None
    return tuple([_reading(value) for value in _list(fields, "trace", MAX_STAGES)])


def _reading(value: object) -> Reading:
    if type(value) is tuple and len(value) == 2:
        score, class_id = value
        if type(score) is float and -1e300 <= score <= 1e300 and type(class_id) is int and 0 <= class_id <= MAX_CLASSES:
            return Reading(score=score, class_id=class_id)
    raise _bad("trace", value, "[score, class_id], the score finite")


def _pack_trace(trace: tuple[Reading, ...]) -> list[tuple[float, int]]:
    return [(part.score, part.class_id) for part in trace]


def _add_audit(fields: Fields, message: StageMessage | Embedding) -> None:
    if message.trace is not None:
        fields["trace"] = _pack_trace(message.trace)
    if message.audit:
        fields["audit"] = True


def _pack_guess(guess: Guess | None) -> tuple[int, int, float] | None:
    return None if guess is None else (guess.exit, guess.class_id, guess.confidence)


def _pack_hops(hops: tuple[Hop, ...]) -> list[tuple[str, int, float, float]]:
    return [(hop.device, hop.stage, hop.queue_s, hop.compute_s) for hop in hops]


# ---------------------------------------------------------------- between boards


def encode_stage(message: StageMessage) -> bytes:
    """Encode an input or features for a stage topic."""
    tensor = message.tensor
    fields = {
        "v": VERSION,
        "kind": "stage",
        "request": message.request,
        "origin": message.origin,
        "stage": message.stage,
        "attempt": message.attempt,
        "revision": message.revision,
        "epoch": message.epoch,
        "budget_s": message.budget_s,
        "spent_s": message.spent_s,
        "guess": _pack_guess(message.guess),
        "memory": message.memory,
        "hops": _pack_hops(message.hops),
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "codec": tensor.codec,
        "payload": tensor.payload,
    }
    if message.fuser is not None:
        fields["fuser"] = message.fuser
    if message.eager:
        fields["eager"] = True
    _add_audit(fields, message)
    packed: bytes = msgpack.packb(fields)
    return packed


def _read_stage(fields: Fields) -> StageMessage:
    request, origin, attempt, revision, epoch = _routing(fields)
    memory = fields["memory"]
    return StageMessage(
        request=request,
        origin=origin,
        stage=_count(fields, "stage", MAX_STAGES),
        attempt=attempt,
        revision=revision,
        epoch=epoch,
        budget_s=_number(fields, "budget_s", 0.0, MAX_BUDGET_S),
        spent_s=_number(fields, "spent_s", 0.0, MAX_BUDGET_S),
        guess=_guess(fields, "guess"),
        memory=() if memory == () else _floats(fields, "memory", MAX_MEMORY),
        hops=_hops(fields),
        tensor=_tensor(fields),
        fuser=_id(fields, "fuser") if "fuser" in fields else None,
        eager=_flag(fields, "eager") if "eager" in fields else False,
        trace=_trace(fields),
        audit=_flag(fields, "audit") if "audit" in fields else False,
    )


def decode_stage(payload: bytes) -> StageMessage:
    """Decode what came on a stage topic."""
    return _decode(_read_stage, _unpack(payload, "stage"))


def encode_embedding(message: Embedding) -> bytes:
    """Encode a branch's embedding for the exit topic of the board that fuses."""
    tensor = message.tensor
    fields = {
        "v": VERSION,
        "kind": "embedding",
        "request": message.request,
        "origin": message.origin,
        "fuser": message.fuser,
        "device": message.device,
        "stage": message.stage,
        "branch": message.branch,
        "attempt": message.attempt,
        "revision": message.revision,
        "epoch": message.epoch,
        "eager": message.eager,
        "budget_s": message.budget_s,
        "spent_s": message.spent_s,
        "guess": _pack_guess(message.guess),
        "memory": message.memory,
        "hops": _pack_hops(message.hops),
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "codec": tensor.codec,
        "payload": tensor.payload,
    }
    _add_audit(fields, message)
    packed: bytes = msgpack.packb(fields)
    return packed


def _read_embedding(fields: Fields) -> Embedding:
    request, origin, attempt, revision, epoch = _routing(fields)
    memory = fields["memory"]
    return Embedding(
        request=request,
        origin=origin,
        fuser=_id(fields, "fuser"),
        device=_id(fields, "device"),
        stage=_count(fields, "stage", MAX_STAGES),
        branch=_count(fields, "branch", MAX_BRANCHES - 1),
        attempt=attempt,
        revision=revision,
        epoch=epoch,
        eager=_flag(fields, "eager"),
        budget_s=_number(fields, "budget_s", 0.0, MAX_BUDGET_S),
        spent_s=_number(fields, "spent_s", 0.0, MAX_BUDGET_S),
        guess=_guess(fields, "guess"),
        memory=() if memory == () else _floats(fields, "memory", MAX_MEMORY),
        hops=_hops(fields),
        tensor=_tensor(fields),
        trace=_trace(fields),
        audit=_flag(fields, "audit") if "audit" in fields else False,
    )


def decode_embedding(payload: bytes) -> Embedding:
    """Decode what came on an exit topic."""
    return _decode(_read_embedding, _unpack(payload, "embedding"))


def encode_decision(decision: Decision) -> bytes:
    """Encode go or stop for the decision topic of a branch's board."""
    packed: bytes = msgpack.packb(
        {
            "v": VERSION,
            "kind": "decision",
            "request": decision.request,
            "attempt": decision.attempt,
            "revision": decision.revision,
            "stage": decision.stage,
            "go": decision.go,
        }
    )
    return packed


def _read_decision(fields: Fields) -> Decision:
    return Decision(
        request=_text(fields, "request"),
        attempt=_count(fields, "attempt", 100),
        revision=_text(fields, "revision"),
        stage=_count(fields, "stage", MAX_STAGES),
        go=_flag(fields, "go"),
    )


def decode_decision(payload: bytes) -> Decision:
    """Decode what came on a decision topic."""
    return _decode(_read_decision, _unpack(payload, "decision"))


def encode_outcome(outcome: Outcome) -> bytes:
    """Encode an answer on its way to the origin."""
    fields = {
        "v": VERSION,
        "kind": "outcome",
        "request": outcome.request,
        "origin": outcome.origin,
        "attempt": outcome.attempt,
        "revision": outcome.revision,
        "epoch": outcome.epoch,
        "guess": _pack_guess(outcome.guess),
        "reason": outcome.reason,
        "spent_s": outcome.spent_s,
        "hops": _pack_hops(outcome.hops),
    }
    if outcome.missing:
        fields["missing"] = outcome.missing
    if outcome.trace is not None:
        fields["trace"] = _pack_trace(outcome.trace)
    packed: bytes = msgpack.packb(fields)
    return packed


def _read_outcome(fields: Fields) -> Outcome:
    request, origin, attempt, revision, epoch = _routing(fields)
    return Outcome(
        request=request,
        origin=origin,
        attempt=attempt,
        revision=revision,
        epoch=epoch,
        guess=_guess(fields, "guess"),
        reason=_word(fields, "reason", _REASONS),
        spent_s=_number(fields, "spent_s", 0.0, MAX_BUDGET_S),
        hops=_hops(fields),
        missing=_branches(fields, "missing") if "missing" in fields else (),
        trace=_trace(fields),
    )


def decode_outcome(payload: bytes) -> Outcome:
    """Decode what came on an outcome topic."""
    return _decode(_read_outcome, _unpack(payload, "outcome"))


def encode_audit(row: AuditRow) -> bytes:
    """Encode what all exits said of an audited input, for the orchestrator."""
    packed: bytes = msgpack.packb(
        {
            "v": VERSION,
            "kind": "audit",
            "request": row.request,
            "origin": row.origin,
            "boot": row.boot,
            "sequence": row.sequence,
            "revision": row.revision,
            "epoch": row.epoch,
            "criterion": row.criterion,
            "scores": row.scores,
            "predictions": row.predictions,
            "missing": row.missing,
            "hops": _pack_hops(row.hops),
        }
    )
    return packed


def _read_audit(fields: Fields) -> AuditRow:
    scores, predictions = _floats(fields, "scores", MAX_STAGES), _counts(fields, "predictions", MAX_STAGES)
    if len(scores) != max(0, len(predictions) - 1):
        raise _bad("scores", scores, "one less than predictions")
    return AuditRow(
        request=_text(fields, "request"),
        origin=_id(fields, "origin"),
        boot=_text(fields, "boot"),
        sequence=_count(fields, "sequence"),
        revision=_text(fields, "revision"),
        epoch=_count(fields, "epoch"),
        criterion=_text(fields, "criterion"),
        scores=scores,
        predictions=predictions,
        missing=_branches(fields, "missing"),
        hops=_hops(fields),
    )


def decode_audit(payload: bytes) -> AuditRow:
    """Decode what came on an audit topic."""
    return _decode(_read_audit, _unpack(payload, "audit"))


def encode_input(message: InputMessage) -> bytes:
    """Encode a named input for an origin's input topic."""
    packed: bytes = msgpack.packb(
        {
            "v": VERSION,
            "kind": "input",
            "request": message.request,
            "name": message.name,
            "payload": message.payload,
        }
    )
    return packed


def _read_input(fields: Fields) -> InputMessage:
    payload = fields["payload"]
    if type(payload) is not bytes:
        raise _bad("payload", type(payload).__name__, "bytes")
    return InputMessage(request=_text(fields, "request"), name=_text(fields, "name", 256), payload=payload)


def is_input(payload: bytes) -> bool:
    """Whether bytes on an input topic look like a named input: a small msgpack map, which no image starts with."""
    return len(payload) > 0 and 0x83 <= payload[0] <= 0x88


def decode_input(payload: bytes) -> InputMessage:
    """Decode a named input."""
    return _decode(_read_input, _unpack(payload, "input"))


MAX_THUMBNAIL_BYTES = 64 << 10
"""Longest picture that is taken for a thumbnail."""

_PNG = b"\x89PNG\r\n\x1a\n"


def encode_thumbnail(thumbnail: Thumbnail) -> bytes:
    """Encode a small picture of an input for its origin's thumbnail topic."""
    packed: bytes = msgpack.packb(
        {"v": VERSION, "kind": "thumbnail", "request": thumbnail.request, "png": thumbnail.png}
    )
    return packed


def _read_thumbnail(fields: Fields) -> Thumbnail:
    png = fields["png"]
    if type(png) is not bytes or not png.startswith(_PNG) or len(png) > MAX_THUMBNAIL_BYTES:
        raise _bad("png", type(png).__name__, f"a PNG file of at most {MAX_THUMBNAIL_BYTES} bytes")
    return Thumbnail(request=_text(fields, "request"), png=png)


def decode_thumbnail(payload: bytes) -> Thumbnail:
    """Decode what came on a thumbnail topic; whether the picture behind its signature is whole is not looked at."""
    return _decode(_read_thumbnail, _unpack(payload, "thumbnail"))


# ---------------------------------------------------------------- plan and telemetry


def encode_plan(plan: Plan) -> bytes:
    """Encode a plan for its retained topic."""
    fields = {
        "v": VERSION,
        "kind": "plan",
        "pipeline": plan.pipeline,
        "epoch": plan.epoch,
        "model": plan.model,
        "revision": plan.revision,
        "criterion": plan.criterion,
        "thresholds": plan.thresholds,
    }
    if plan.masked:
        fields["masked"] = [(row.missing, row.thresholds) for row in plan.masked]
    if plan.audit_rate:
        fields["audit_rate"] = plan.audit_rate
    if plan.rest_s:
        fields["rest_s"] = plan.rest_s
    packed: bytes = msgpack.packb(fields)
    return packed


def _masked_row(value: object) -> MaskedThresholds:
    if type(value) is tuple and len(value) == 2:
        missing, thresholds = _branches({"masked": value[0]}, "masked"), {"masked": value[1]}
        if missing:
            return MaskedThresholds(missing=missing, thresholds=_floats(thresholds, "masked", MAX_STAGES))
    raise _bad("masked", value, "[missing branches, thresholds], at least one branch missing")


def _masked(fields: Fields) -> tuple[MaskedThresholds, ...]:
    rows = tuple([_masked_row(value) for value in _list(fields, "masked", MAX_MASKED)])
    if len({row.missing for row in rows}) != len(rows):
        raise _bad("masked", rows, "each set of missing branches once")
    return rows


def _read_plan(fields: Fields) -> Plan:
    return Plan(
        pipeline=_id(fields, "pipeline"),
        epoch=_count(fields, "epoch"),
        model=_text(fields, "model"),
        revision=_text(fields, "revision"),
        criterion=_text(fields, "criterion"),
        thresholds=_floats(fields, "thresholds", MAX_STAGES),
        masked=_masked(fields) if "masked" in fields else (),
        audit_rate=_number(fields, "audit_rate", 0.0, 1.0) if "audit_rate" in fields else 0.0,
        rest_s=_durations(fields, "rest_s") if "rest_s" in fields else (),
    )


def decode_plan(payload: bytes) -> Plan:
    """Decode what came on a plan topic."""
    return _decode(_read_plan, _unpack(payload, "plan"))


_STAGE_COUNTERS = (
    "stage", "received", "exited", "forwarded", "shed", "expired", "failed", "duplicate", "waiting", "bytes_out",
)  # fmt: skip
_FUSION_COUNTERS = ("stage", "fused", "exited", "forwarded", "failed", "expired", "late")
_ORIGIN_COUNTERS = ("accepted", "answered", "resent", "late", "pending")
_AUDIT_COUNTERS = ("audits_drawn", "audits_lost")
_TROUBLES = ("shed", "dropped", "unspooled")
"""What an origin reports only where there is any."""
_ORIGIN_LATENCIES = ("latency_p50_s", "latency_p95_s", "latency_max_s")


def _pack_stage_telemetry(report: StageTelemetry) -> Fields:
    fields = {name: getattr(report, name) for name in (*_STAGE_COUNTERS, "queue_s", "compute_s")}
    return fields | {name: getattr(report, name) for name in ("wasted", "audited") if getattr(report, name)}


def _pack_fusion_telemetry(report: FusionTelemetry) -> Fields:
    fields = {name: getattr(report, name) for name in (*_FUSION_COUNTERS, "missing")}
    return {**fields, "audited": report.audited} if report.audited else fields


def _pack_origin_telemetry(report: OriginTelemetry | None) -> Fields | None:
    if report is None:
        return None
    names = (*_ORIGIN_COUNTERS, *_ORIGIN_LATENCIES, "exits", "reasons")
    fields = {name: getattr(report, name) for name in names}
    fields |= {name: getattr(report, name) for name in _AUDIT_COUNTERS if report.audits_drawn}
    return fields | {name: getattr(report, name) for name in _TROUBLES if getattr(report, name)}


def _pack_pipeline_telemetry(report: PipelineTelemetry) -> Fields:
    fields: Fields = {
        "pipeline": report.pipeline,
        "epoch": report.epoch,
        "revision": report.revision,
        "stages": [_pack_stage_telemetry(stage) for stage in report.stages],
        "origin": _pack_origin_telemetry(report.origin),
    }
    if report.fusions:
        fields["fusions"] = [_pack_fusion_telemetry(fusion) for fusion in report.fusions]
    return fields


def encode_telemetry(report: Telemetry) -> bytes:
    """Encode a device's periodic report."""
    packed: bytes = msgpack.packb(
        {
            "v": VERSION,
            "kind": "telemetry",
            "device": report.device,
            "boot": report.boot,
            "sequence": report.sequence,
            "uptime_s": report.uptime_s,
            "rss_bytes": report.rss_bytes,
            "dead_letters": report.dead_letters,
            "offline_dropped": report.offline_dropped,
            "pipelines": [_pack_pipeline_telemetry(pipeline) for pipeline in report.pipelines],
        }
    )
    return packed


def _read_stage_telemetry(value: object) -> StageTelemetry:
    fields = _map(value, "stages")
    return StageTelemetry(
        **{name: _count(fields, name) for name in _STAGE_COUNTERS},
        queue_s=_number(fields, "queue_s"),
        compute_s=_number(fields, "compute_s"),
        wasted=_count(fields, "wasted") if "wasted" in fields else 0,
        audited=_count(fields, "audited") if "audited" in fields else 0,
    )


def _counts(fields: Fields, name: str, limit: int) -> tuple[int, ...]:
    return tuple([_count({name: count}, name) for count in _list(fields, name, limit)])


def _read_fusion_telemetry(value: object) -> FusionTelemetry:
    fields = _map(value, "fusions")
    return FusionTelemetry(
        **{name: _count(fields, name) for name in _FUSION_COUNTERS},
        missing=_counts(fields, "missing", MAX_BRANCHES),
        audited=_count(fields, "audited") if "audited" in fields else 0,
    )


def _read_reasons(fields: Fields) -> dict[str, int]:
    reasons = _map(fields["reasons"], "reasons")
    if not _REASONS.issuperset(reasons):
        raise _bad("reasons", reasons, "only " + ", ".join(sorted(_REASONS)))
    return {name: _count(reasons, name) for name in reasons}


def _read_origin_telemetry(fields: Fields, name: str) -> OriginTelemetry:
    part = _map(fields[name], name)
    return OriginTelemetry(
        **{name: _count(part, name) for name in _ORIGIN_COUNTERS},
        exits=_counts(part, "exits", MAX_STAGES),
        reasons=_read_reasons(part),
        latency_p50_s=_number(part, "latency_p50_s"),
        latency_p95_s=_number(part, "latency_p95_s"),
        latency_max_s=_number(part, "latency_max_s"),
        **{name: _count(part, name) for name in (*_AUDIT_COUNTERS, *_TROUBLES) if name in part},
    )


def _read_fusions(fields: Fields) -> tuple[FusionTelemetry, ...]:
    return tuple(_read_fusion_telemetry(fusion) for fusion in _list(fields, "fusions", MAX_STAGES))


def _read_pipeline_telemetry(value: object) -> PipelineTelemetry:
    fields = _map(value, "pipelines")
    return PipelineTelemetry(
        pipeline=_id(fields, "pipeline"),
        epoch=_count(fields, "epoch"),
        revision=_text(fields, "revision"),
        stages=tuple(_read_stage_telemetry(stage) for stage in _list(fields, "stages", MAX_STAGES)),
        origin=_maybe(fields, "origin", _read_origin_telemetry),
        fusions=_read_fusions(fields) if "fusions" in fields else (),
    )


def _read_telemetry(fields: Fields) -> Telemetry:
    return Telemetry(
        device=_id(fields, "device"),
        boot=_text(fields, "boot"),
        sequence=_count(fields, "sequence"),
        uptime_s=_number(fields, "uptime_s"),
        rss_bytes=_count(fields, "rss_bytes"),
        dead_letters=_count(fields, "dead_letters"),
        offline_dropped=_count(fields, "offline_dropped"),
        pipelines=tuple(_read_pipeline_telemetry(part) for part in _list(fields, "pipelines", MAX_PIPELINES)),
    )


def decode_telemetry(payload: bytes) -> Telemetry:
    """Decode what came on a telemetry topic."""
    return _decode(_read_telemetry, _unpack(payload, "telemetry"))


# ---------------------------------------------------------------- JSON, for people and dashboards

RESULT_SCHEMA = "distree.result/1"
STATE_SCHEMA = "distree.state/1"
META_SCHEMA = "distree.meta/1"
DEAD_SCHEMA = "distree.dead/1"
CLAIM_SCHEMA = "distree.orchestrator/1"
TRUTH_SCHEMA = "distree.truth/1"
STATS_SCHEMA = "distree.stats/1"


def encode_result(result: Result, *, time: str, clock_synced: bool) -> bytes:
    """Encode a result as JSON. `time` is ISO 8601 in UTC; `clock_synced` says whether to believe it."""
    fields: Fields = {
        "schema": RESULT_SCHEMA,
        "request": result.request,
        "site": result.site,
        "pipeline": result.pipeline,
        "origin": result.origin,
        "input": result.input,
        "label": result.label,
        "class_id": result.class_id,
        "confidence": round(result.confidence, 4),
        "exit": result.exit,
        "reason": result.reason,
        "final": result.final,
        "late": result.late,
        "attempt": result.attempt,
        "latency_ms": round(result.latency_s * 1e3, 3),
        "epoch": result.epoch,
        "model": result.model,
        "revision": result.revision,
        "hops": [
            {
                "device": hop.device,
                "stage": hop.stage,
                "queue_ms": round(hop.queue_s * 1e3, 3),
                "compute_ms": round(hop.compute_s * 1e3, 3),
            }
            for hop in result.hops
        ],
        "time": time,
        "clock_synced": clock_synced,
    }
    if result.missing:
        fields["missing"] = result.missing
    return _dump_json(fields)


def _read_json_hop(value: object) -> Hop:
    fields = _map(value, "hops")
    return Hop(
        device=_id(fields, "device"),
        stage=_count(fields, "stage", MAX_STAGES),
        queue_s=_number(fields, "queue_ms") / 1e3,
        compute_s=_number(fields, "compute_ms") / 1e3,
    )


def _read_result(fields: Fields) -> Result:
    return Result(
        request=_text(fields, "request"),
        site=_text(fields, "site", 32),
        pipeline=_id(fields, "pipeline"),
        origin=_id(fields, "origin"),
        input=_text(fields, "input", 512),
        label=_maybe(fields, "label", _text),
        class_id=_maybe(fields, "class_id", _count),
        confidence=_number(fields, "confidence", 0.0, 1.0),
        exit=_maybe(fields, "exit", _count),
        reason=_word(fields, "reason", _REASONS),
        final=_flag(fields, "final"),
        late=_flag(fields, "late"),
        attempt=_count(fields, "attempt", 100),
        latency_s=_number(fields, "latency_ms") / 1e3,
        epoch=_count(fields, "epoch"),
        model=_text(fields, "model"),
        revision=_text(fields, "revision"),
        hops=tuple(_read_json_hop(hop) for hop in _list(fields, "hops", MAX_HOPS)),
        missing=_branches(fields, "missing") if "missing" in fields else (),
    )


def decode_result(payload: bytes) -> Result:
    """Decode a result; its wall-clock time is for people and is left out."""
    return _decode(_read_result, _load_json(payload, RESULT_SCHEMA))


def encode_state(state: DeviceState) -> bytes:
    """Encode a device's state for its retained topic (and its will)."""
    return _dump_json({"schema": STATE_SCHEMA, "device": state.device, "boot": state.boot, "state": state.status.value})


_STATUSES = frozenset(status.value for status in DeviceStatus)


def _read_state(fields: Fields) -> DeviceState:
    return DeviceState(
        device=_id(fields, "device"),
        boot=_text(fields, "boot"),
        status=DeviceStatus(_word(fields, "state", _STATUSES)),
    )


def decode_state(payload: bytes) -> DeviceState:
    """Decode what came on a state topic."""
    return _decode(_read_state, _load_json(payload, STATE_SCHEMA))


def _pack_held(held: HeldStage) -> Fields:
    fields: Fields = {
        "pipeline": held.pipeline,
        "stage": held.stage,
        "model": held.model,
        "revision": held.revision,
    }
    if held.branch is not None:
        fields["branch"] = held.branch
    return fields


def encode_meta(meta: DeviceMeta) -> bytes:
    """Encode a device's description for its retained topic."""
    fields: Fields = {
        "schema": META_SCHEMA,
        "device": meta.device,
        "boot": meta.boot,
        "version": meta.version,
        "python": meta.python,
        "runtime": meta.runtime,
        "machine": meta.machine,
        "memory_mb": meta.memory_mb,
        "stages": [_pack_held(held) for held in meta.stages],
        "origins": meta.origins,
    }
    if meta.fusers:
        fields["fusers"] = meta.fusers
    return _dump_json(fields)


def _read_held(value: object) -> HeldStage:
    fields = _map(value, "stages")
    return HeldStage(
        pipeline=_id(fields, "pipeline"),
        stage=_count(fields, "stage", MAX_STAGES),
        model=_text(fields, "model"),
        revision=_text(fields, "revision"),
        branch=_count(fields, "branch", MAX_BRANCHES - 1) if "branch" in fields else None,
    )


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    return tuple(_text({name: value}, name, 32) for value in _list(fields, name, MAX_PIPELINES))


def _read_meta(fields: Fields) -> DeviceMeta:
    return DeviceMeta(
        device=_id(fields, "device"),
        boot=_text(fields, "boot"),
        version=_text(fields, "version"),
        python=_text(fields, "python"),
        runtime=_text(fields, "runtime", 128),
        machine=_text(fields, "machine"),
        memory_mb=_count(fields, "memory_mb"),
        stages=tuple(_read_held(held) for held in _list(fields, "stages", MAX_STAGES * MAX_PIPELINES)),
        origins=_names(fields, "origins"),
        fusers=_names(fields, "fusers") if "fusers" in fields else (),
    )


def decode_meta(payload: bytes) -> DeviceMeta:
    """Decode what came on a meta topic."""
    return _decode(_read_meta, _load_json(payload, META_SCHEMA))


def encode_claim(claim: Claim) -> bytes:
    """Encode an orchestrator's claim for its retained topic (and its will)."""
    return _dump_json({"schema": CLAIM_SCHEMA, "orchestrator": claim.orchestrator, "running": claim.running})


def _read_claim(fields: Fields) -> Claim:
    return Claim(orchestrator=_id(fields, "orchestrator"), running=_flag(fields, "running"))


def decode_claim(payload: bytes) -> Claim:
    """Decode what came on the orchestrator's topic."""
    return _decode(_read_claim, _load_json(payload, CLAIM_SCHEMA))


def encode_truth(truth: Truth) -> bytes:
    """Encode what an input really was."""
    return _dump_json({"schema": TRUTH_SCHEMA, "request": truth.request, "label": truth.label})


def _read_truth(fields: Fields) -> Truth:
    return Truth(request=_text(fields, "request"), label=_text(fields, "label"))


def decode_truth(payload: bytes) -> Truth:
    """Decode what came on a truth topic."""
    return _decode(_read_truth, _load_json(payload, TRUTH_SCHEMA))


def encode_stats(stats: OriginStats) -> bytes:
    """Encode how an origin did of late."""
    return _dump_json(
        {
            "schema": STATS_SCHEMA,
            "pipeline": stats.pipeline,
            "origin": stats.origin,
            "epoch": stats.epoch,
            "answered": stats.answered,
            "pending": stats.pending,
            "rate_hz": round(stats.rate_hz, 3),
            "early_share": None if stats.early_share is None else round(stats.early_share, 4),
            "latency_p50_ms": None if stats.latency_p50_s is None else round(stats.latency_p50_s * 1e3, 3),
            "latency_p95_ms": None if stats.latency_p95_s is None else round(stats.latency_p95_s * 1e3, 3),
        }
    )


def _share(fields: Fields, name: str) -> float:
    return _number(fields, name, 0.0, 1.0)


def _milliseconds(fields: Fields, name: str) -> float:
    return _number(fields, name) / 1e3


def _read_stats(fields: Fields) -> OriginStats:
    return OriginStats(
        pipeline=_id(fields, "pipeline"),
        origin=_id(fields, "origin"),
        epoch=_count(fields, "epoch"),
        answered=_count(fields, "answered"),
        pending=_count(fields, "pending"),
        rate_hz=_number(fields, "rate_hz"),
        early_share=_maybe(fields, "early_share", _share),
        latency_p50_s=_maybe(fields, "latency_p50_ms", _milliseconds),
        latency_p95_s=_maybe(fields, "latency_p95_ms", _milliseconds),
    )


def decode_stats(payload: bytes) -> OriginStats:
    """Decode what came on a stats topic."""
    return _decode(_read_stats, _load_json(payload, STATS_SCHEMA))


def encode_dead(letter: DeadLetter) -> bytes:
    """Encode a dead letter."""
    return _dump_json(
        {
            "schema": DEAD_SCHEMA,
            "device": letter.device,
            "topic": letter.topic,
            "reason": letter.reason,
            "detail": letter.detail,
            "payload_bytes": letter.payload_bytes,
            "head_hex": letter.head_hex,
        }
    )


def _read_dead(fields: Fields) -> DeadLetter:
    return DeadLetter(
        device=_id(fields, "device"),
        topic=_text(fields, "topic", 512),
        reason=_text(fields, "reason"),
        detail=_text(fields, "detail", 512),
        payload_bytes=_count(fields, "payload_bytes"),
        head_hex=_text(fields, "head_hex", 128),
    )


def decode_dead(payload: bytes) -> DeadLetter:
    """Decode a dead letter."""
    return _decode(_read_dead, _load_json(payload, DEAD_SCHEMA))
