"""One message of each type and form, and how its bytes are taken apart and put together by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgpack

from distree.messages import codec
from distree.messages.audit import AuditRow
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus, Echo, HeldStage
from distree.messages.events import DeadLetter, Event, EventKind, Severity, Thumbnail
from distree.messages.layout import layout_of
from distree.messages.member import Call, Member
from distree.messages.plan import MaskedThresholds, Plan
from distree.messages.request import (
    Decision,
    Embedding,
    Guess,
    Hop,
    InputMessage,
    Outcome,
    Progress,
    Reading,
    RequestContext,
    RouteStop,
    Rule,
    StageMessage,
    Tensor,
)
from distree.messages.result import MissingBranch, Result, Stamp
from distree.messages.site import Claim, Label, OriginStats
from distree.messages.telemetry import FusionTelemetry, OriginTelemetry, PipelineTelemetry, StageTelemetry, Telemetry

HOP = Hop(device="cam1", stage=0, queue_s=0.25, compute_s=0.5)
RULE = Rule(epoch=7, criterion="margin", thresholds=(0.5, 0.25))
CONTEXT = RequestContext(
    request="ab-1", origin="cam1", attempt=1, token=b"\x01tokened", revision="0123456789ab", rule=RULE, budget_s=0.5
)
PROGRESS = Progress(spent_s=0.125, guess=Guess(exit=0, class_id=3, confidence=0.5), memory=(1.0, 2.0), hops=(HOP,))
TENSOR = Tensor(dtype="int8", shape=(1, 4), codec="raw", payload=b"\x00\x01\x02\x03")
STAGE = StageMessage(context=CONTEXT, progress=PROGRESS, stage=1, tensor=TENSOR)
OUTCOME = Outcome(request="ab-1", token=b"\x01tokened", reason="shed", guess=None, spent_s=0.125, hops=(HOP,))
PLAN = Plan(
    pipeline="fashion",
    epoch=7,
    model="fashion",
    revision="0123456789ab",
    criterion="margin",
    thresholds=(0.5, 0.25),
)
TELEMETRY = Telemetry(
    device="cam1",
    boot="b0",
    sequence=3,
    uptime_s=1.5,
    rss_bytes=1000,
    dead_letters=1,
    offline_dropped=0,
    pipelines=(
        PipelineTelemetry(
            pipeline="fashion",
            epoch=7, plan_hash="8f14e45fceea167a",
            revision="0123456789ab",
            stages=(
                StageTelemetry(
                    stage=0, received=1, exited=2, forwarded=3, shed=4, expired=5, failed=6, duplicate=7, waiting=8,
                    bytes_out=9, queue_s=0.5, compute_s=0.25,
                ),
            ),
            origin=OriginTelemetry(
                accepted=9, answered=8, resent=7, late=6, pending=5, exits=(1, 2), reasons={"last": 4},
                latency_p50_s=0.5, latency_p95_s=1.0, latency_max_s=2.0,
            ),
        ),
    ),
)  # fmt: skip
RESULT = Result(
    request="ab-1",
    site="lab",
    pipeline="fashion",
    origin="cam1",
    input="7",
    label="Bag",
    class_id=8,
    confidence=0.5,
    exit=1,
    reason="confident",
    final=True,
    late=False,
    attempt=1,
    latency_s=0.0125,
    epoch=7,
    model="fashion",
    revision="0123456789ab",
    hops=(HOP,),
)
STATE = DeviceState(device="cam1", boot="b0", status=DeviceStatus.READY)
META = DeviceMeta(
    device="cam1",
    boot="b0",
    version="0.1.0",
    python="3.11",
    runtime="x 1",
    machine="armv7l",
    memory_mb=512,
    stages=(HeldStage(pipeline="fashion", stage=0, model="fashion", revision="0123456789ab"),),
    origins=("fashion",),
)
DEAD = DeadLetter(
    device="cam1", topic="a/b", reason="size", detail="why", remedy="how", payload_bytes=3, head_hex="0a0b0c"
)
EVENT = Event(
    device="cam1",
    kind=EventKind.SOURCE,
    severity=Severity.WARNING,
    pipeline="fashion",
    what="the camera is gone",
    remedy="plug it in",
    unsaid=2,
    time="2026-01-15T09:30:00.123+00:00",
    clock_synced=True,
)
INPUT = InputMessage(request="r", name="a.png", payload=b"123")
EMBEDDING = Embedding(
    context=replace(CONTEXT, fuser="hub", eager=True),
    progress=PROGRESS,
    stage=1,
    branch=2,
    device="b2",
    tensor=TENSOR,
)
STATS = OriginStats(
    pipeline="fashion",
    origin="cam1",
    epoch=7,
    answered=9,
    pending=1,
    rate_hz=0.5,
    early_share=0.75,
    latency_p50_s=0.5,
    latency_p95_s=None,
)
DECISION = Decision(request="ab-1", token=b"\x01tokened", stage=1, go=True)
MEMBER = Member(device="b1", boot="b0", pipeline="fashion", model="fashion", revisions=("0123456789ab",), stages=(1, 2))
CALL = Call(caller="cam1")

# What its origin writes into a request that leaves it.
ROUTE = (RouteStop(stage=1, boards=("b1",)), RouteStop(stage=2, boards=("b2", "", "b3"), together=True))
ROUTED_STAGE = replace(STAGE, context=replace(CONTEXT, route=ROUTE))

# What a pipeline with wide stages puts into the messages that a chain has too.
WIDE_STAGE = replace(STAGE, context=replace(CONTEXT, fuser="hub", eager=True, route=ROUTE))
WIDE_OUTCOME = replace(OUTCOME, guess=Guess(exit=1, class_id=2, confidence=0.75, missing=(0, 3)))
WIDE_PLAN = replace(
    PLAN,
    masked=(
        MaskedThresholds(missing=(0,), thresholds=(0.75, 0.5)),
        MaskedThresholds(missing=(0, 2), thresholds=(1.0, 0.5)),
    ),
)
WIDE_TELEMETRY = replace(
    TELEMETRY,
    pipelines=(
        replace(
            TELEMETRY.pipelines[0],
            stages=(replace(TELEMETRY.pipelines[0].stages[0], wasted=10),),
            fusions=(
                FusionTelemetry(
                    stage=0, fused=7, exited=6, forwarded=5, failed=4, expired=3, late=2, missing=(0, 1, 0, 2)
                ),
            ),
        ),
    ),
)
WIDE_MEMBER = replace(MEMBER, branch=1, fuses=True)
WIDE_RESULT = replace(RESULT, missing=(MissingBranch(branch=1, device="b2"), MissingBranch(branch=3, device=None)))
WIDE_META = replace(META, stages=(replace(META.stages[0], branch=0),), fusers=("fashion",))

# What only audits put into messages.
TRACE = (Reading(score=0.5, class_id=3), Reading(score=-1e300, class_id=0))
WIDE_AUDIT = AuditRow(
    request="ab-1",
    origin="cam1",
    boot="b0",
    sequence=5,
    revision="0123456789ab",
    epoch=7,
    criterion="margin",
    scores=(0.5,),
    predictions=(3, 1),
    missing=(1,),
    hops=(HOP,),
)
AUDIT = replace(WIDE_AUDIT, missing=(), hops=())
AUDITED_TELEMETRY = replace(
    WIDE_TELEMETRY,
    pipelines=(
        replace(
            WIDE_TELEMETRY.pipelines[0],
            stages=(replace(TELEMETRY.pipelines[0].stages[0], audited=3),),
            fusions=(replace(WIDE_TELEMETRY.pipelines[0].fusions[0], audited=4),),
            origin=replace(
                TELEMETRY.pipelines[0].origin, audits_drawn=6, audits_lost=1, unspooled=2, members=3, left_out=1
            ),
        ),
    ),
)

MESSAGES: dict[str, Any] = {
    "stage": STAGE,
    "outcome": OUTCOME,
    "plan": PLAN,
    "telemetry": TELEMETRY,
    "input": INPUT,
    "result": RESULT,
    "state": STATE,
    "meta": META,
    "echo": Echo(device="cam1"),
    "dead": DEAD,
    "event": EVENT,
    "embedding": EMBEDDING,
    "decision": DECISION,
    "member": MEMBER,
    "call": CALL,
    "claim": Claim(orchestrator="a1b2", running=True),
    "label": Label(request="ab-1", label="Bag"),
    "audit": AUDIT,
    "stats": STATS,
    "thumbnail": Thumbnail(request="ab-1", png=b"\x89PNG\r\n\x1a\n..."),
    "routed stage": ROUTED_STAGE,
    "wide stage": WIDE_STAGE,
    "wide member": WIDE_MEMBER,
    "wide outcome": WIDE_OUTCOME,
    "wide plan": WIDE_PLAN,
    "wide telemetry": WIDE_TELEMETRY,
    "wide result": WIDE_RESULT,
    "wide meta": WIDE_META,
    "wide audit": WIDE_AUDIT,
    "traced stage": replace(
        STAGE, context=replace(CONTEXT, audit=True), progress=replace(PROGRESS, memory=(), trace=TRACE)
    ),
    "traced embedding": replace(
        EMBEDDING,
        context=replace(EMBEDDING.context, audit=True, rule=replace(RULE, rest_s=(0.25, 0.0))),
        progress=replace(PROGRESS, guess=None, trace=TRACE),
    ),
    "unreachable outcome": replace(OUTCOME, reason="unreachable", board="b1"),
    "traced outcome": replace(OUTCOME, guess=Guess(exit=1, class_id=2, confidence=1.0), trace=TRACE),
    "auditing plan": replace(PLAN, audit_rate=0.25, rest_s=(0.5, 0.0)),
    "audited telemetry": AUDITED_TELEMETRY,
}
"""By name: the kind of the message, and before it what is special about it."""

OPTIONAL = {
    "traced outcome": {"trace"},
    "auditing plan": {"audit_rate", "rest_s"},
    "unreachable outcome": {"board"},
    "wide member": {"branch", "fuses"},
    "wide plan": {"masked"},
    "wide result": {"missing"},
    "wide meta": {"fusers"},
    "wide audit": {"missing", "hops"},
}
"""Keys that a chain's messages without audits do not have, of the messages that have such keys at the top."""


def encoded(message: Any) -> bytes:
    stamp = Stamp(time="2026-01-01T00:00:00.000+00:00", clock_synced=True)
    return codec.encode(message, stamp if isinstance(message, Result) else None)


def decoded(name: str, payload: bytes) -> Any:
    """Decode as the message of that name is decoded."""
    return codec.decode(type(MESSAGES[name]), payload)


def is_json(name: str) -> bool:
    return layout_of(type(MESSAGES[name])).is_json


def unpacked(name: str, payload: bytes) -> dict[str, Any]:
    return json.loads(payload) if is_json(name) else msgpack.unpackb(payload)


def packed(name: str, fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode() if is_json(name) else msgpack.packb(fields)


def changed(cls: type, value: Any, path: str, new: Any) -> Any:
    """Return what was unpacked of a `cls` with another value at `context.rule.epoch`; a row stands in for its bytes."""
    name, _, rest = path.partition(".")
    fields = layout_of(cls).fields
    place = [field.name for field in fields].index(name) if layout_of(cls).is_row else name
    if rest:
        inner = next(field.form.cls for field in fields if field.name == name)
        was = value[place]
        is_packed = isinstance(was, bytes)
        row = changed(inner, msgpack.unpackb(was) if is_packed else was, rest, new)
        new = msgpack.packb(row) if is_packed else row
    if isinstance(value, dict):
        return {**value, place: new}
    missing = [field.default for field in fields[len(value) :]] if isinstance(place, int) else []
    return [new if k == place else item for k, item in enumerate([*value, *missing])]
