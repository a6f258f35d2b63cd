"""The codec: golden bytes, round trips, and nothing but RemoteProtocolError for whatever comes in."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distree import wire
from distree.errors import RemoteProtocolError
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

HOP = Hop(device="cam1", stage=0, queue_s=0.25, compute_s=0.5)
STAGE = StageMessage(
    request="ab-1",
    origin="cam1",
    stage=1,
    attempt=1,
    revision="0123456789ab",
    epoch=7,
    budget_s=0.5,
    spent_s=0.125,
    guess=Guess(exit=0, class_id=3, confidence=0.5),
    memory=(1.0, 2.0),
    hops=(HOP,),
    tensor=Tensor(dtype="int8", shape=(1, 4), codec="raw", payload=b"\x00\x01\x02\x03"),
)
OUTCOME = Outcome(
    request="ab-1",
    origin="cam1",
    attempt=1,
    revision="0123456789ab",
    epoch=7,
    guess=None,
    reason="shed",
    spent_s=0.125,
    hops=(HOP,),
)
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
            epoch=7,
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
DEAD = DeadLetter(device="cam1", topic="a/b", reason="size", detail="why", payload_bytes=3, head_hex="0a0b0c")
INPUT = InputMessage(request="r", name="a.png", payload=b"123")
EMBEDDING = Embedding(
    request="ab-1",
    origin="cam1",
    fuser="hub",
    device="b2",
    stage=1,
    branch=2,
    attempt=1,
    revision="0123456789ab",
    epoch=7,
    eager=True,
    budget_s=0.5,
    spent_s=0.125,
    guess=Guess(exit=0, class_id=3, confidence=0.5),
    memory=(1.0, 2.0),
    hops=(HOP,),
    tensor=Tensor(dtype="int8", shape=(1, 4), codec="raw", payload=b"\x00\x01\x02\x03"),
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
DECISION = Decision(request="ab-1", attempt=1, revision="0123456789ab", stage=1, go=True)

# What a pipeline with wide stages puts into the messages that a chain has too.
WIDE_STAGE = replace(STAGE, fuser="hub", eager=True)
WIDE_OUTCOME = replace(OUTCOME, missing=(0, 3))
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
WIDE_RESULT = replace(RESULT, missing=(1,))
WIDE_META = replace(META, stages=(replace(META.stages[0], branch=0),), fusers=("fashion",))

# What only audits put into messages.
TRACE = (Reading(score=0.5, class_id=3), Reading(score=-1e300, class_id=0))
AUDIT = AuditRow(
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
AUDITED_TELEMETRY = replace(
    WIDE_TELEMETRY,
    pipelines=(
        replace(
            WIDE_TELEMETRY.pipelines[0],
            stages=(replace(TELEMETRY.pipelines[0].stages[0], audited=3),),
            fusions=(replace(WIDE_TELEMETRY.pipelines[0].fusions[0], audited=4),),
            origin=replace(TELEMETRY.pipelines[0].origin, audits_drawn=6, audits_lost=1, unspooled=2),
        ),
    ),
)


def _result(message: Result) -> bytes:
    return wire.encode_result(message, time="2026-01-01T00:00:00.000+00:00", clock_synced=True)


CODECS = {
    "stage": (wire.encode_stage, wire.decode_stage, STAGE),
    "outcome": (wire.encode_outcome, wire.decode_outcome, OUTCOME),
    "plan": (wire.encode_plan, wire.decode_plan, PLAN),
    "telemetry": (wire.encode_telemetry, wire.decode_telemetry, TELEMETRY),
    "input": (wire.encode_input, wire.decode_input, INPUT),
    "result": (_result, wire.decode_result, RESULT),
    "state": (wire.encode_state, wire.decode_state, STATE),
    "meta": (wire.encode_meta, wire.decode_meta, META),
    "dead": (wire.encode_dead, wire.decode_dead, DEAD),
    "embedding": (wire.encode_embedding, wire.decode_embedding, EMBEDDING),
    "decision": (wire.encode_decision, wire.decode_decision, DECISION),
    "claim": (wire.encode_claim, wire.decode_claim, Claim(orchestrator="a1b2", running=True)),
    "truth": (wire.encode_truth, wire.decode_truth, Truth(request="ab-1", label="Bag")),
    "audit": (wire.encode_audit, wire.decode_audit, AUDIT),
    "stats": (wire.encode_stats, wire.decode_stats, STATS),
    "thumbnail": (
        wire.encode_thumbnail,
        wire.decode_thumbnail,
        Thumbnail(request="ab-1", png=b"\x89PNG\r\n\x1a\n..."),
    ),
}
WIDE = {
    "wide stage": (wire.encode_stage, wire.decode_stage, WIDE_STAGE),
    "wide outcome": (wire.encode_outcome, wire.decode_outcome, WIDE_OUTCOME),
    "wide plan": (wire.encode_plan, wire.decode_plan, WIDE_PLAN),
    "wide telemetry": (wire.encode_telemetry, wire.decode_telemetry, WIDE_TELEMETRY),
    "wide result": (_result, wire.decode_result, WIDE_RESULT),
    "wide meta": (wire.encode_meta, wire.decode_meta, WIDE_META),
}
AUDITED = {
    "traced stage": (wire.encode_stage, wire.decode_stage, replace(STAGE, trace=TRACE, audit=True)),
    "traced embedding": (wire.encode_embedding, wire.decode_embedding, replace(EMBEDDING, trace=TRACE, audit=True)),
    "traced outcome": (wire.encode_outcome, wire.decode_outcome, replace(OUTCOME, trace=TRACE)),
    "auditing plan": (wire.encode_plan, wire.decode_plan, replace(PLAN, audit_rate=0.25, rest_s=(0.5, 0.0))),
    "audited telemetry": (wire.encode_telemetry, wire.decode_telemetry, AUDITED_TELEMETRY),
}
OPTIONAL = {
    "traced stage": {"trace", "audit"},
    "traced embedding": {"trace", "audit"},
    "traced outcome": {"trace"},
    "auditing plan": {"audit_rate", "rest_s"},
    "wide stage": {"fuser", "eager"},
    "wide outcome": {"missing"},
    "wide plan": {"masked"},
    "wide result": {"missing"},
    "wide meta": {"fusers"},
}
"""Keys that a chain's messages without audits do not have, of the messages that have such keys at the top."""

CODECS |= WIDE | AUDITED
JSON_KINDS = ["result", "state", "meta", "dead", "claim", "truth", "stats", "wide result", "wide meta"]
MSGPACK_KINDS = [kind for kind in CODECS if kind not in JSON_KINDS]

each_codec = pytest.mark.parametrize("kind", CODECS)
each_msgpack = pytest.mark.parametrize("kind", MSGPACK_KINDS)


def unpacked(kind: str, encoded: bytes) -> dict:
    return json.loads(encoded) if kind in JSON_KINDS else msgpack.unpackb(encoded)


def packed(kind: str, fields: dict) -> bytes:
    return json.dumps(fields).encode() if kind in JSON_KINDS else msgpack.packb(fields)


@each_codec
def test_round_trip(kind):
    encode, decode, message = CODECS[kind]
    assert decode(encode(message)) == message


def test_golden_bytes_of_a_stage_message():
    """These bytes are version 1: if this test needs another value, the version must change."""
    assert wire.encode_stage(STAGE).hex() == (
        "de0011a17601a46b696e64a57374616765a772657175657374a461622d31a66f726967696ea463616d31a573746167650"
        "1a7617474656d707401a87265766973696f6eac303132333435363738396162a565706f636807a86275646765745f73cb"
        "3fe0000000000000a77370656e745f73cb3fc0000000000000a56775657373930003cb3fe0000000000000a66d656d6f"
        "727992cb3ff0000000000000cb4000000000000000a4686f70739194a463616d3100cb3fd0000000000000cb3fe000000"
        "0000000a56474797065a4696e7438a57368617065920104a5636f646563a3726177a77061796c6f6164c40400010203"
    )


def test_golden_bytes_of_an_outcome_and_a_plan():
    assert wire.encode_outcome(OUTCOME).hex() == (
        "8ba17601a46b696e64a76f7574636f6d65a772657175657374a461622d31a66f726967696ea463616d31a7617474656d70"
        "7401a87265766973696f6eac303132333435363738396162a565706f636807a56775657373c0a6726561736f6ea4736865"
        "64a77370656e745f73cb3fc0000000000000a4686f70739194a463616d3100cb3fd0000000000000cb3fe0000000000000"
    )
    assert wire.encode_plan(PLAN).hex() == (
        "88a17601a46b696e64a4706c616ea8706970656c696e65a766617368696f6ea565706f636807a56d6f64656ca76661736869"
        "6f6ea87265766973696f6eac303132333435363738396162a9637269746572696f6ea66d617267696eaa7468726573686f6c"
        "647392cb3fe0000000000000cb3fd0000000000000"
    )


def test_a_result_is_the_json_that_dashboards_were_promised():
    fields = json.loads(_result(RESULT))
    assert list(fields) == [
        "schema", "request", "site", "pipeline", "origin", "input", "label", "class_id", "confidence", "exit",
        "reason", "final", "late", "attempt", "latency_ms", "epoch", "model", "revision", "hops", "time",
        "clock_synced",
    ]  # fmt: skip
    assert fields["latency_ms"] == 12.5
    assert fields["hops"] == [{"device": "cam1", "stage": 0, "queue_ms": 250.0, "compute_ms": 500.0}]


def test_golden_bytes_of_an_embedding_and_a_decision():
    assert wire.encode_embedding(EMBEDDING).hex() == (
        "de0015a17601a46b696e64a9656d62656464696e67a772657175657374a461622d31a66f726967696ea463616d31a5667573"
        "6572a3687562a6646576696365a26232a5737461676501a66272616e636802a7617474656d707401a87265766973696f6eac"
        "303132333435363738396162a565706f636807a56561676572c3a86275646765745f73cb3fe0000000000000a77370656e74"
        "5f73cb3fc0000000000000a56775657373930003cb3fe0000000000000a66d656d6f727992cb3ff0000000000000cb400000"
        "0000000000a4686f70739194a463616d3100cb3fd0000000000000cb3fe0000000000000a56474797065a4696e7438a57368"
        "617065920104a5636f646563a3726177a77061796c6f6164c40400010203"
    )
    assert wire.encode_decision(DECISION).hex() == (
        "87a17601a46b696e64a86465636973696f6ea772657175657374a461622d31a7617474656d707401a87265766973696f6eac"
        "303132333435363738396162a5737461676501a2676fc3"
    )


def test_what_wide_stages_add_comes_after_the_golden_bytes_of_a_chain():
    def added(wide: bytes, plain: bytes, header_bytes: int) -> str:
        assert wide[header_bytes : len(plain)] == plain[header_bytes:]
        return wide[len(plain) :].hex()

    assert added(wire.encode_stage(WIDE_STAGE), wire.encode_stage(STAGE), 3) == "a56675736572a3687562a56561676572c3"
    assert added(wire.encode_outcome(WIDE_OUTCOME), wire.encode_outcome(OUTCOME), 1) == "a76d697373696e67920003"
    assert added(wire.encode_plan(WIDE_PLAN), wire.encode_plan(PLAN), 1) == (
        "a66d61736b65649292910092cb3fe8000000000000cb3fe00000000000009292000292cb3ff0000000000000cb3fe0000000000000"
    )


def test_a_chain_is_not_told_of_what_only_wide_stages_have():
    assert not {"fusions"} & msgpack.unpackb(wire.encode_telemetry(TELEMETRY))["pipelines"][0].keys()
    assert (
        not {"wasted", "audited"}
        & msgpack.unpackb(wire.encode_telemetry(TELEMETRY))["pipelines"][0]["stages"][0].keys()
    )
    assert not {"audits_drawn"} & msgpack.unpackb(wire.encode_telemetry(TELEMETRY))["pipelines"][0]["origin"].keys()
    assert not {"fusers"} & json.loads(wire.encode_meta(META)).keys()
    assert not {"branch"} & json.loads(wire.encode_meta(META))["stages"][0].keys()
    assert not {"missing"} & json.loads(_result(RESULT)).keys()


@pytest.mark.parametrize("kind", OPTIONAL)
def test_absent_optional_keys_are_read_as_their_defaults(kind):
    encode, decode, message = CODECS[kind]
    fields = unpacked(kind, encode(message))
    assert fields.keys() >= OPTIONAL[kind]
    assert fields.keys() - OPTIONAL[kind] == unpacked(kind, encode(CODECS[kind.split()[-1]][2])).keys()
    for name in OPTIONAL[kind]:
        default = type(message).__dataclass_fields__[name].default
        changed = packed(kind, {key: value for key, value in fields.items() if key != name})
        assert decode(changed) == replace(message, **{name: default}) != message


def test_the_places_of_wide_stages_in_a_result_and_a_description():
    assert json.loads(_result(WIDE_RESULT))["missing"] == [1]
    meta = json.loads(wire.encode_meta(WIDE_META))
    assert (meta["stages"][0]["branch"], meta["fusers"]) == (0, ["fashion"])


@each_codec
def test_unknown_keys_of_a_later_version_are_ignored(kind):
    encode, decode, message = CODECS[kind]
    fields = unpacked(kind, encode(message))
    assert decode(packed(kind, {**fields, "invented_later": [1, 2]})) == message


def reason_of(decode, payload: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(payload)
    return caught.value.reason


@each_codec
def test_truncated_at_any_byte(kind):
    encode, decode, message = CODECS[kind]
    whole = encode(message)
    for length in range(len(whole)):
        assert reason_of(decode, whole[:length]) == "encoding"


@each_codec
def test_too_long(kind):
    assert reason_of(CODECS[kind][1], b"\x00" * (wire.MAX_MESSAGE_BYTES + 1)) == "size"


@each_msgpack
def test_wrong_version_and_wrong_kind(kind):
    encode, decode, message = CODECS[kind]
    fields = msgpack.unpackb(encode(message))
    assert reason_of(decode, msgpack.packb({**fields, "v": 2})) == "version"
    assert reason_of(decode, msgpack.packb({**fields, "v": True and [1]})) == "version"
    assert reason_of(decode, msgpack.packb({**fields, "kind": "else"})) == "kind"


@each_msgpack
def test_each_missing_key_is_named(kind):
    encode, decode, message = CODECS[kind]
    fields = msgpack.unpackb(encode(message))
    for name in fields.keys() - {"v", "kind"} - OPTIONAL.get(kind, set()):
        with pytest.raises(RemoteProtocolError, match=f"field: {name}"):
            decode(msgpack.packb({key: value for key, value in fields.items() if key != name}))


BAD_OF_A_STAGE = [
    ("origin", "../etc"),
    ("origin", "a/b"),
    ("origin", "a+"),
    ("request", "x" * 65),
    ("request", "a\nb"),
    ("request", "\x00"),
    ("stage", -1),
    ("stage", 1.0),
    ("stage", True),
    ("stage", 1 << 40),
    ("attempt", "1"),
    ("budget_s", math.nan),
    ("budget_s", math.inf),
    ("budget_s", -0.1),
    ("budget_s", 1e9),
    ("spent_s", -math.inf),
    ("guess", [0, 1]),
    ("guess", [0, 1, 1.5]),
    ("guess", [0, 1, math.nan]),
    ("memory", [math.nan]),
    ("memory", [0.0, math.inf]),
    ("memory", "x"),
    ("hops", [["cam1", 0, 0.1, 0.1]] * 33),
    ("hops", [["cam1", 0, 0.1]]),
    ("hops", [["cam1", 0, -0.1, 0.1]]),
    ("hops", [{}]),
    ("dtype", "object"),
    ("dtype", ["int8"]),
    ("shape", [0, 4]),
    ("shape", [-1]),
    ("shape", [1] * 7),
    ("shape", [1 << 30]),
    ("codec", "pickle"),
    ("payload", "text"),
    ("payload", None),
]
BAD_FLAGS = [0, 1, None, "true", [], {}]
BAD_IDS = ["../etc", "a/b", "a+", "#", "", "A", "x" * 33, None, 7, ["hub"]]
BAD_TRACES = [
    None,
    {},
    "x",
    [0.5],
    [[0.5]],
    [[0.5, 1, 2]],
    [[1, 1]],
    [[math.nan, 1]],
    [[math.inf, 1]],
    [[-math.inf, 1]],
    [[0.5, -1]],
    [[0.5, True]],
    [[0.5, 1.0]],
    [[0.5, 1 << 40]],
    [[0.5, 1]] * 33,
]
BAD_SETS_OF_BRANCHES = [
    [1, 0],
    [0, 0],
    [-1],
    [64],
    [True],
    [1.0],
    ["0"],
    [[0]],
    list(range(65)),
    None,
    3,
    "01",
    {},
]
BAD = {
    "stage": BAD_OF_A_STAGE
    + [("fuser", value) for value in BAD_IDS]
    + [(name, value) for name in ("eager", "audit") for value in BAD_FLAGS]
    + [("trace", value) for value in BAD_TRACES],
    "embedding": BAD_OF_A_STAGE
    + [(name, value) for name in ("fuser", "device") for value in BAD_IDS]
    + [(name, value) for name in ("eager", "audit") for value in BAD_FLAGS]
    + [("trace", value) for value in BAD_TRACES]
    + [("branch", value) for value in (-1, 64, True, 1.0, "0", None)],
    "claim": [("orchestrator", value) for value in BAD_IDS] + [("running", value) for value in BAD_FLAGS],
    "stats": [(name, value) for name in ("pipeline", "origin") for value in BAD_IDS]
    + [("early_share", value) for value in (-0.1, 1.1, "0.5", True)]
    + [("latency_p50_ms", -1), ("rate_hz", None), ("answered", -1), ("pending", 0.5), ("epoch", None)],
    "truth": [
        ("request", "x" * 65),
        ("request", "a\nb"),
        ("request", 7),
        ("label", "x" * 65),
        ("label", None),
        ("label", 3),
    ],
    "decision": [("go", value) for value in BAD_FLAGS]
    + [("request", "x" * 65), ("request", "a\nb"), ("attempt", 101), ("attempt", True), ("revision", b"0")]
    + [("stage", -1), ("stage", 33), ("stage", None)],
    "outcome": [("missing", value) for value in BAD_SETS_OF_BRANCHES] + [("trace", value) for value in BAD_TRACES],
    "audit": [("missing", value) for value in BAD_SETS_OF_BRANCHES]
    + [("scores", value) for value in ([], [0.5, 0.5], [math.nan], [math.inf], [-math.inf], ["0"], [True], None, 0.5)]
    + [("predictions", value) for value in ([], [1], [1, 2, 3], [1, -1], [1, True], [1, 1.0], [1, 1 << 60], None, {})]
    + [("sequence", value) for value in (-1, 1.0, True, 1 << 54, "1", None)]
    + [("origin", value) for value in BAD_IDS]
    + [("boot", "a\nb"), ("boot", "x" * 65), ("criterion", None), ("epoch", -1), ("revision", 7), ("request", "\x00")],
    "result": [("missing", value) for value in BAD_SETS_OF_BRANCHES],
    "plan": [("rest_s", value) for value in ([-0.1], [math.nan], [math.inf], [1e9], ["0"], [0.5] * 33, None, 0.5)]
    + [("masked", [[value, [0.5, 0.5]]]) for value in [*BAD_SETS_OF_BRANCHES, []]]
    + [("audit_rate", value) for value in (-0.1, 1.1, math.nan, math.inf, True, "1", None)]
    + [("masked", [[[0], value]]) for value in ([math.nan], [-math.inf], [1e301], ["0"], [True], 0.5, [0.5] * 33)]
    + [("masked", [[[0], [0.5]], [[1], [0.5]], [[0], [0.25]]])]
    + [("masked", value) for value in ([[]], [[[0]]], [[[0], [], []]], [{}], {}, None, [[[0], []]] * 257)],
    "meta": [("fusers", value) for value in (None, 3, "fashion", [None], ["a\nb"], ["x" * 33], ["p"] * 65)],
}


@pytest.mark.parametrize(("kind", "name", "value"), [(kind, *case) for kind, cases in BAD.items() for case in cases])
def test_bad_fields_are_refused(kind, name, value):
    encode, decode, message = CODECS[kind]
    fields = unpacked(kind, encode(message))
    assert reason_of(decode, packed(kind, {**fields, name: value})) == "field"


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("stage", "memory", (0.5,) * wire.MAX_MEMORY),
        ("embedding", "memory", (0.5,) * wire.MAX_MEMORY),
        ("embedding", "branch", wire.MAX_BRANCHES - 1),
        ("outcome", "missing", tuple(range(wire.MAX_BRANCHES))),
        ("result", "missing", tuple(range(wire.MAX_BRANCHES))),
        (
            "plan",
            "masked",
            tuple(
                MaskedThresholds(missing=(index % 16, 16 + index // 16), thresholds=(0.5,) * wire.MAX_STAGES)
                for index in range(wire.MAX_MASKED)
            ),
        ),
    ],
)
def test_the_longest_that_is_allowed(kind, name, value):
    encode, decode, message = CODECS[kind]
    longest = replace(message, **{name: value})
    assert decode(encode(longest)) == longest


@pytest.mark.parametrize("kind", ["stage", "embedding"])
def test_a_memory_that_is_too_long_is_refused(kind):
    encode, decode, message = CODECS[kind]
    assert reason_of(decode, encode(replace(message, memory=(0.5,) * (wire.MAX_MEMORY + 1)))) == "encoding"


@pytest.mark.parametrize("value", [-1, 64, True, 1.0, "0", None])
def test_a_branch_that_cannot_be_held_is_refused(value):
    fields = json.loads(wire.encode_meta(META))
    held = {**fields["stages"][0], "branch": value}
    assert reason_of(wire.decode_meta, json.dumps({**fields, "stages": [held]}).encode()) == "field"


def test_hostile_telemetry_is_refused():
    fields = msgpack.unpackb(wire.encode_telemetry(TELEMETRY))
    stage = fields["pipelines"][0]["stages"][0]
    for name, value in [
        ("received", -1),
        ("compute_s", math.nan),
        ("queue_s", math.inf),
        ("bytes_out", 1 << 60),
    ]:
        changed = {**fields["pipelines"][0], "stages": [{**stage, name: value}]}
        assert reason_of(wire.decode_telemetry, msgpack.packb({**fields, "pipelines": [changed]})) == "field"


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("stages", "wasted", -1),
        ("stages", "wasted", None),
        ("fusions", "stage", 1.0),
        ("fusions", "fused", -1),
        ("fusions", "late", True),
        ("fusions", "expired", 1 << 60),
        ("fusions", "missing", [0, -1]),
        ("fusions", "missing", [0] * 65),
        ("fusions", "missing", {}),
        ("fusions", "missing", None),
    ],
)
def test_hostile_telemetry_of_wide_stages_is_refused(part, name, value):
    fields = msgpack.unpackb(wire.encode_telemetry(WIDE_TELEMETRY))
    pipeline = fields["pipelines"][0]
    changed = {**pipeline, part: [{**pipeline[part][0], name: value}]}
    assert reason_of(wire.decode_telemetry, msgpack.packb({**fields, "pipelines": [changed]})) == "field"


def test_deep_nesting_is_refused():
    assert reason_of(wire.decode_stage, b"\x91" * 100_000) in ("encoding", "version")
    assert reason_of(wire.decode_result, b"[" * 100_000) == "encoding"


@each_codec
@given(st.binary(max_size=300))
@settings(max_examples=400, deadline=None)
def test_random_bytes(kind, payload):
    with pytest.raises(RemoteProtocolError):
        CODECS[kind][1](payload)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@each_msgpack
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_one_field_of_any_value_is_refused_or_read_and_written_alike(kind, data):
    encode, decode, message = CODECS[kind]
    fields = msgpack.unpackb(encode(message))
    name = data.draw(st.sampled_from(sorted(fields)))
    try:
        read = decode(msgpack.packb({**fields, name: data.draw(plain)}))
    except RemoteProtocolError:
        return
    assert decode(encode(read)) == read


@pytest.mark.parametrize("kind", JSON_KINDS)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_one_json_field_of_any_value_is_read_or_refused(kind, data):
    encode, decode, message = CODECS[kind]
    fields = json.loads(encode(message))
    name = data.draw(st.sampled_from(sorted(fields)))
    json_value = data.draw(plain.filter(lambda value: "bytes" not in repr(type(value))))
    try:
        decode(json.dumps({**fields, name: json_value}, default=str).encode())
    except RemoteProtocolError:
        return


@pytest.mark.parametrize("kind", ["wide stage", "embedding", "decision", "wide plan"])
@given(st.binary(max_size=64), st.integers(0, 400))
@settings(max_examples=500, deadline=None)
def test_flipped_bytes(kind, noise, position):
    encode, decode, message = CODECS[kind]
    whole = bytearray(encode(message))
    whole[position : position + len(noise)] = noise
    try:
        decode(bytes(whole))
    except RemoteProtocolError:
        return


def test_numbers_too_large_for_a_float_are_refused():
    fields = json.loads(_result(RESULT))
    assert reason_of(wire.decode_result, json.dumps({**fields, "latency_ms": 10**400}).encode()) == "field"


def test_named_inputs_are_told_from_raw_bytes_and_images():
    assert wire.is_input(wire.encode_input(INPUT))
    assert not wire.is_input(b"\x89PNG\r\n")
    assert not wire.is_input(b"\xff\xd8\xff")
    assert not wire.is_input(b"")


def test_an_outcome_may_have_a_guess():
    outcome = replace(OUTCOME, guess=Guess(exit=1, class_id=2, confidence=1.0))
    assert wire.decode_outcome(wire.encode_outcome(outcome)) == outcome


def many(count: int, item: bytes) -> bytes:
    """A list of lists of `item`, as long as `count` says: what a sender of bad will makes of a megabyte."""
    inner = b"\xdc\x03\xfc" + item * 1020
    return b"\xdc\x03\xff" + inner * count


@pytest.mark.parametrize(
    "payload",
    [
        msgpack.packb([[{}] * 1020] * 1020),
        b"\xdd\x00\x0f\xff\xf0" + b"\x80" * ((1 << 20) - 8),
        many(500, b"\x91\xc0"),
        many(340, b"\xa2ab"),
        many(113, b"\xcb" + b"\x01" * 8),
        many(60, b"\x80"),
        many(15, b"\x81\xa1a\xc0"),
    ],
    ids=["maps", "flat", "lists", "texts", "numbers", "short maps", "maps with keys"],
)
@pytest.mark.parametrize("decode", [wire.decode_stage, wire.decode_plan, wire.decode_telemetry])
def test_a_megabyte_of_small_things_takes_a_bounded_memory(decode, payload):
    assert len(payload) <= wire.MAX_MESSAGE_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32e6
