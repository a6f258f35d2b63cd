"""One message of every type and form; `python tests/compat/compat_messages.py` writes them as this version's fixtures.

Fixtures of a released version are never written again: they are what boards in the field still send.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from distree import __version__, wire
from distree.types import (
    AuditRow,
    Claim,
    DeadLetter,
    Decision,
    DeviceMeta,
    DeviceState,
    DeviceStatus,
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
    Result,
    StageMessage,
    StageTelemetry,
    Telemetry,
    Tensor,
    Thumbnail,
    Truth,
)

HERE = Path(__file__).parent

ROUTING = {"request": "5b1c09e4-2a", "origin": "cam1", "attempt": 1, "revision": "4ab1fe8ae806", "epoch": 3}
HOPS = (
    Hop(device="cam1", stage=0, queue_s=0.00003, compute_s=0.000158),
    Hop(device="b1", stage=1, queue_s=0.001, compute_s=0.0004),
)
FEATURES = Tensor(dtype="int8", shape=(1, 2, 3), codec="raw", payload=bytes([0, 127, 128, 255, 1, 2]))
TRACE = (Reading(score=0.625, class_id=9), Reading(score=-1.5, class_id=7))
STAGE = StageMessage(
    **ROUTING,
    stage=0,
    budget_s=0.5,
    spent_s=0.0,
    guess=None,
    memory=(),
    hops=(),
    tensor=Tensor(dtype="uint8", shape=(1, 2, 2), codec="zlib", payload=bytes.fromhex("789c63606060000000040001")),
)
WIDE_STAGE = StageMessage(
    **ROUTING,
    stage=1,
    budget_s=0.5,
    spent_s=0.001588,
    guess=Guess(exit=0, class_id=9, confidence=0.625),
    memory=(0.5, -0.25),
    hops=HOPS,
    tensor=FEATURES,
    fuser="hub",
    eager=True,
    trace=TRACE,
    audit=True,
)
EMBEDDING = Embedding(
    **ROUTING,
    fuser="hub",
    device="b1",
    stage=1,
    branch=1,
    eager=False,
    budget_s=0.5,
    spent_s=0.001588,
    guess=Guess(exit=0, class_id=9, confidence=0.625),
    memory=(0.5, -0.25),
    hops=HOPS,
    tensor=Tensor(dtype="float32", shape=(1, 2), codec="raw", payload=bytes(8)),
    trace=TRACE,
    audit=True,
)
OUTCOME = Outcome(
    **ROUTING, guess=Guess(exit=1, class_id=9, confidence=0.998), reason="confident", spent_s=0.001588, hops=HOPS
)
UNHEARD_OUTCOME = Outcome(**ROUTING, guess=None, reason="shed", spent_s=0.0, hops=(), missing=(0, 2), trace=TRACE)
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
    audit_rate=0.05,
    rest_s=(0.002, 0.001),
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
            revision="4ab1fe8ae806",
            stages=(StageTelemetry(**STAGE_REPORT),),
            origin=OriginTelemetry(**ORIGIN_REPORT),
        ),
        PipelineTelemetry(pipeline="other", epoch=0, revision="00", stages=(), origin=None),
    ),
)
WIDE_TELEMETRY = Telemetry(
    **REPORT,
    pipelines=(
        PipelineTelemetry(
            pipeline="fashion",
            epoch=3,
            revision="4ab1fe8ae806",
            stages=(StageTelemetry(**STAGE_REPORT, wasted=6, audited=7),),
            origin=OriginTelemetry(**ORIGIN_REPORT, audits_drawn=8, audits_lost=1, shed=5, dropped=3, unspooled=9),
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
    missing=(0, 1),
)
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


def _result(message: Result) -> bytes:
    return wire.encode_result(message, time="2026-01-15T09:30:00.123+00:00", clock_synced=True)


MESSAGES: dict[str, tuple[Callable[[Any], bytes], Any]] = {
    "stage": (wire.encode_stage, STAGE),
    "stage-wide": (wire.encode_stage, WIDE_STAGE),
    "embedding": (wire.encode_embedding, EMBEDDING),
    "decision": (
        wire.encode_decision,
        Decision(request="5b1c09e4-2a", attempt=1, revision="4ab1fe8ae806", stage=1, go=True),
    ),
    "outcome": (wire.encode_outcome, OUTCOME),
    "outcome-unheard": (wire.encode_outcome, UNHEARD_OUTCOME),
    "audit": (wire.encode_audit, AUDIT),
    "input": (wire.encode_input, InputMessage(request="r-1", name="boot.png", payload=b"\x89PNG\r\n")),
    "plan": (wire.encode_plan, PLAN),
    "plan-tuned": (wire.encode_plan, TUNED_PLAN),
    "telemetry": (wire.encode_telemetry, TELEMETRY),
    "telemetry-wide": (wire.encode_telemetry, WIDE_TELEMETRY),
    "result": (_result, RESULT),
    "result-shed": (_result, SHED_RESULT),
    "state": (wire.encode_state, DeviceState(device="cam1", boot="9f3a", status=DeviceStatus.READY)),
    "meta": (wire.encode_meta, DeviceMeta(**META, stages=(HeldStage(**HELD),), origins=("fashion",))),
    "meta-wide": (
        wire.encode_meta,
        DeviceMeta(**META, stages=(HeldStage(**HELD, branch=1),), origins=(), fusers=("fashion",)),
    ),
    "dead": (
        wire.encode_dead,
        DeadLetter(
            device="cam1", topic="distree/1/lab/pipeline/fashion/stage/1", reason="field",
            detail="stage: expected an integer of 0 to 32, received 'x'", payload_bytes=5, head_hex="81a176a178",
        ),
    ),
    "stats": (wire.encode_stats, STATS),
    "stats-idle": (wire.encode_stats, IDLE_STATS),
    "thumbnail": (wire.encode_thumbnail, Thumbnail(request="r-1", png=b"\x89PNG\r\n\x1a\n")),
    "claim": (wire.encode_claim, Claim(orchestrator="a1b2c3", running=True)),
    "truth": (wire.encode_truth, Truth(request="5b1c09e4-2a", label="Sneaker")),
}  # fmt: skip
"""By name of the fixture: the codec's name, and after a dash which form of the message it is."""


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
    for name, (encode, message) in MESSAGES.items():
        (folder / f"{name}.bin").write_bytes(encode(message))
    said = {name: plain(message) for name, (_, message) in MESSAGES.items()}
    (folder / "said.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(HERE / __version__)
