"""One message of every type and form; `python tests/compat/compat_messages.py` writes them as this version's fixtures.

Fixtures of a released version are never written again: they are what boards in the field still send.
"""

from __future__ import annotations

import enum
import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from distree import __version__
from distree.messages.audit import AuditRow
from distree.messages.codec import encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus, Echo, HeldStage, InputDescription
from distree.messages.events import DeadLetter, Event, EventKind, Severity, Thumbnail
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

HERE = Path(__file__).parent

TOKEN = bytes.fromhex("8f00d1e2c3b4a596")
CONTEXT = RequestContext(
    request="5b1c09e4-2a",
    origin="cam1",
    attempt=1,
    token=TOKEN,
    revision="4ab1fe8ae806",
    rule=Rule(epoch=3, criterion="max_softmax", thresholds=(0.9, 0.8)),
    budget_s=0.5,
)
WIDE_CONTEXT = replace(
    CONTEXT,
    rule=replace(CONTEXT.rule, rest_s=(0.002, 0.001)),
    route=(RouteStop(stage=1, boards=("b1", ""), together=True), RouteStop(stage=2, boards=("b2",))),
    fuser="hub",
    eager=True,
    audit=True,
)
HOPS = (
    Hop(device="cam1", stage=0, queue_s=0.00003, compute_s=0.000158),
    Hop(device="b1", stage=1, queue_s=0.001, compute_s=0.0004),
)
FEATURES = Tensor(dtype="int8", shape=(1, 2, 3), codec="raw", payload=bytes([0, 127, 128, 255, 1, 2]))
TRACE = (Reading(score=0.625, class_id=9), Reading(score=-1.5, class_id=7))
PROGRESS = Progress(
    spent_s=0.001588,
    guess=Guess(exit=0, class_id=9, confidence=0.625),
    memory=(0.5, -0.25),
    hops=HOPS,
    trace=TRACE,
)
STAGE = StageMessage(
    context=CONTEXT,
    progress=Progress(spent_s=0.0, guess=None, memory=(), hops=()),
    stage=0,
    tensor=Tensor(dtype="uint8", shape=(1, 2, 2), codec="zlib", payload=bytes.fromhex("789c63606060000000040001")),
)
WIDE_STAGE = StageMessage(context=WIDE_CONTEXT, progress=PROGRESS, stage=1, tensor=FEATURES)
EMBEDDING = Embedding(
    context=WIDE_CONTEXT,
    progress=PROGRESS,
    stage=1,
    branch=1,
    device="b1",
    tensor=Tensor(dtype="float32", shape=(1, 2), codec="raw", payload=bytes(8)),
)
OUTCOME = Outcome(
    request="5b1c09e4-2a",
    token=TOKEN,
    reason="confident",
    guess=Guess(exit=1, class_id=9, confidence=0.998),
    spent_s=0.001588,
    hops=HOPS,
)
UNHEARD_OUTCOME = Outcome(
    request="5b1c09e4-2a",
    token=TOKEN,
    reason="shed",
    guess=Guess(exit=0, class_id=9, confidence=0.5, missing=(0, 2)),
    spent_s=0.0,
    hops=(),
    trace=TRACE,
)
AUDIT = AuditRow(
    request="5b1c09e4-2a",
    origin="cam1",
    boot="9f3a",
    sequence=12,
    revision="4ab1fe8ae806",
    epoch=3,
    criterion="max_softmax",
    scores=(0.625, 0.75),
    predictions=(9, 7, 7),
    missing=(1,),
    hops=HOPS,
)
PLAN = Plan(
    pipeline="fashion",
    epoch=3,
    model="fashion",
    revision="4ab1fe8ae806",
    criterion="max_softmax",
    thresholds=(0.9, 1e300),
)
TUNED_PLAN = Plan(
    pipeline="fashion",
    epoch=4,
    model="fashion",
    revision="4ab1fe8ae806",
    criterion="max_softmax",
    thresholds=(0.9, 0.8),
    masked=(MaskedThresholds(missing=(0, 1), thresholds=(0.95, 0.7)),),
    signed=bytes(range(80)),
    audit_rate=0.05,
    rest_s=(0.002, 0.001),
    reason="audits proved it safe",
    author="tuner",
)
STAGE_REPORT = {
    "stage": 0, "received": 100, "exited": 70, "forwarded": 25, "shed": 1, "expired": 2, "failed": 3, "duplicate": 4,
    "waiting": 5, "bytes_out": 44_800, "queue_s": 0.001, "compute_s": 0.002,
}  # fmt: skip
ORIGIN_REPORT = {
    "accepted": 101, "answered": 100, "resent": 2, "late": 3, "pending": 1, "exits": (70, 20, 10),
    "reasons": {"confident": 90, "last": 10}, "latency_p50_s": 0.004, "latency_p95_s": 0.009, "latency_max_s": 0.02,
}  # fmt: skip
REPORT = {
    "device": "cam1", "boot": "9f3a", "sequence": 7, "uptime_s": 14.5, "rss_bytes": 52_700_000, "dead_letters": 1,
    "offline_dropped": 2,
}  # fmt: skip
TELEMETRY = Telemetry(
    **REPORT,
    pipelines=(
        PipelineTelemetry(
            pipeline="fashion",
            epoch=3,
            plan_hash="8f14e45fceea167a",
            revision="4ab1fe8ae806",
            stages=(StageTelemetry(**STAGE_REPORT),),
            origin=OriginTelemetry(**ORIGIN_REPORT),
        ),
        PipelineTelemetry(
            pipeline="other", epoch=0, plan_hash="8f14e45fceea167a", revision="00", stages=(), origin=None
        ),
    ),
)
WIDE_TELEMETRY = Telemetry(
    **REPORT,
    pipelines=(
        PipelineTelemetry(
            pipeline="fashion",
            epoch=3,
            plan_hash="8f14e45fceea167a",
            revision="4ab1fe8ae806",
            stages=(StageTelemetry(**STAGE_REPORT, wasted=6, audited=7),),
            origin=OriginTelemetry(
                **ORIGIN_REPORT, audits_drawn=8, audits_lost=1, shed=5, dropped=3, unspooled=9, members=4, left_out=2
            ),
            fusions=(
                FusionTelemetry(
                    stage=0, fused=9, exited=6, forwarded=3, failed=1, expired=2, late=4, missing=(0, 5), audited=2
                ),
            ),
        ),
    ),
)
RESULT = Result(
    request="5b1c09e4-2a",
    site="lab",
    pipeline="fashion",
    origin="cam1",
    input="boot.png",
    label="Ankle boot",
    class_id=9,
    confidence=0.9981,
    exit=0,
    reason="confident",
    final=True,
    late=False,
    attempt=1,
    latency_s=0.000412,
    epoch=3,
    model="fashion",
    revision="4ab1fe8ae806",
    hops=HOPS,
)
SHED_RESULT = Result(
    request="5b1c09e4-2b",
    site="lab",
    pipeline="fashion",
    origin="cam1",
    input="Schuh „Ä“.png",
    label=None,
    class_id=None,
    confidence=0.0,
    exit=None,
    reason="shed",
    final=False,
    late=True,
    attempt=2,
    latency_s=0.5,
    epoch=0,
    model="fashion",
    revision="4ab1fe8ae806",
    hops=(),
    missing=(MissingBranch(branch=0, device=None), MissingBranch(branch=1, device="b1")),
)
MEMBER = {
    "device": "b1", "boot": "9f3a", "pipeline": "fashion", "model": "fashion",
    "revisions": ("4ab1fe8ae806", "00"), "stages": (1, 2),
}  # fmt: skip
STATS = OriginStats(
    pipeline="fashion",
    origin="cam1",
    epoch=3,
    answered=1000,
    pending=2,
    rate_hz=12.5,
    early_share=0.98,
    latency_p50_s=0.0004,
    latency_p95_s=0.002,
)
IDLE_STATS = OriginStats(
    pipeline="fashion",
    origin="cam1",
    epoch=3,
    answered=1000,
    pending=0,
    rate_hz=0.0,
    early_share=None,
    latency_p50_s=None,
    latency_p95_s=None,
)
META = {
    "device": "cam1", "boot": "9f3a", "version": "0.1.0", "python": "3.11.2", "runtime": "tflite-runtime 2.14.0",
    "machine": "armv7l", "memory_mb": 925,
}  # fmt: skip
HELD = {"pipeline": "fashion", "stage": 0, "model": "fashion", "revision": "4ab1fe8ae806"}


MESSAGES: dict[str, Any] = {
    "stage": STAGE,
    "stage-wide": WIDE_STAGE,
    "embedding": EMBEDDING,
    "decision": Decision(request="5b1c09e4-2a", token=TOKEN, stage=1, go=True),
    "outcome": OUTCOME,
    "outcome-unheard": UNHEARD_OUTCOME,
    "outcome-moved": replace(OUTCOME, reason="moved", guess=None),
    "outcome-unreachable": replace(OUTCOME, reason="unreachable", board="b2"),
    "audit": AUDIT,
    "audit-lost": replace(AUDIT, sequence=13, scores=(), predictions=(), missing=(), hops=()),
    "input": InputMessage(request="r-1", name="boot.png", payload=b"\x89PNG\r\n"),
    "echo": Echo(device="cam1"),
    "plan": PLAN,
    "plan-tuned": TUNED_PLAN,
    "telemetry": TELEMETRY,
    "telemetry-wide": WIDE_TELEMETRY,
    "result": RESULT,
    "result-shed": SHED_RESULT,
    "member": Member(**MEMBER),
    "member-wide": Member(**MEMBER, branch=1, fuses=True),
    "call": Call(caller="cam1"),
    "state": DeviceState(device="cam1", boot="9f3a", status=DeviceStatus.READY),
    "meta": DeviceMeta(**META, stages=(HeldStage(**HELD),), origins=("fashion",)),
    "meta-input": DeviceMeta(
        **META, stages=(), origins=("fashion",), inputs=(
            InputDescription(
                pipeline="fashion", source="mqtt", model="fashion", revision="0123456789ab", dtype="uint8",
                shape=(28, 28, 1),
            ),
        ),
    ),
    "meta-wide": DeviceMeta(**META, stages=(HeldStage(**HELD, branch=1),), origins=(), fusers=("fashion",)),
    "dead": DeadLetter(
        device="cam1", topic="distree/1/lab/pipeline/fashion/stage/1/cam1/b1", reason="field",
        detail="stage: expected an integer of 0 to 31, received 'x'", remedy="", payload_bytes=5, head_hex="81a176a178",
    ),
    "event": Event(
        device="cam1", kind=EventKind.SOURCE, severity=Severity.WARNING, pipeline="fashion",
        what="the camera is gone", remedy="plug it in", unsaid=2, time="2026-01-15T09:30:00.123+00:00",
        clock_synced=True,
    ),
    "event-site": Event(
        device=None, kind=EventKind.PLAN, severity=Severity.INFO, pipeline=None, what="all is well", remedy="",
        unsaid=0, time="2026-01-15T09:30:00.123+00:00", clock_synced=False,
    ),
    "dead-input": DeadLetter(
        device="cam1", topic="distree/1/lab/pipeline/fashion/input/cam1", reason="image",
        detail="boot.png: 4 bytes are not a readable image (unknown format)", remedy="save it again", payload_bytes=4,
        head_hex="89504e47", input="boot.png", request="r-1",
    ),
    "stats": STATS,
    "stats-idle": IDLE_STATS,
    "thumbnail": Thumbnail(request="r-1", png=b"\x89PNG\r\n\x1a\n"),
    "claim": Claim(orchestrator="a1b2c3", running=True, signed=bytes(range(80)).hex()),
    "label": Label(request="5b1c09e4-2a", label="Sneaker", signed=bytes(range(80)).hex()),
}  # fmt: skip
"""By name of the fixture: the message, and after a dash which form of it it is."""

STAMP = Stamp(time="2026-01-15T09:30:00.123+00:00", clock_synced=True)


def encoded(message: Any) -> bytes:
    return encode(message, STAMP if isinstance(message, Result) else None)


def plain(value: Any) -> Any:
    """Return a message as JSON has it, so that what a later version adds can be told from what it reads otherwise."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def write(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, message in MESSAGES.items():
        (folder / f"{name}.bin").write_bytes(encoded(message))
    said = {name: plain(message) for name, message in MESSAGES.items()}
    (folder / "said.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(HERE / __version__)
