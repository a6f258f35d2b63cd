"""The codec: golden bytes, round trips, and nothing but RemoteProtocolError for whatever comes in."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distree import wire
from distree.errors import RemoteProtocolError
from distree.types import (
    DeadLetter,
    DeviceMeta,
    DeviceState,
    DeviceStatus,
    Guess,
    HeldStage,
    Hop,
    InputMessage,
    OriginTelemetry,
    Outcome,
    PipelineTelemetry,
    Plan,
    Result,
    StageMessage,
    StageTelemetry,
    Telemetry,
    Tensor,
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
}
each_codec = pytest.mark.parametrize("kind", CODECS)


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


def test_unknown_keys_of_a_later_version_are_ignored():
    fields = msgpack.unpackb(wire.encode_stage(STAGE))
    assert wire.decode_stage(msgpack.packb({**fields, "invented_later": [1, 2]})) == STAGE


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


@pytest.mark.parametrize("kind", ["stage", "outcome", "plan", "telemetry", "input"])
def test_wrong_version_and_wrong_kind(kind):
    encode, decode, message = CODECS[kind]
    fields = msgpack.unpackb(encode(message))
    assert reason_of(decode, msgpack.packb({**fields, "v": 2})) == "version"
    assert reason_of(decode, msgpack.packb({**fields, "v": True and [1]})) == "version"
    assert reason_of(decode, msgpack.packb({**fields, "kind": "else"})) == "kind"


@pytest.mark.parametrize("kind", ["stage", "outcome", "plan", "telemetry", "input"])
def test_each_missing_key_is_named(kind):
    encode, decode, message = CODECS[kind]
    fields = msgpack.unpackb(encode(message))
    for name in fields.keys() - {"v", "kind"}:
        with pytest.raises(RemoteProtocolError, match=f"field: {name}"):
            decode(msgpack.packb({key: value for key, value in fields.items() if key != name}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
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
        ("memory", [0.0] * 65),
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
    ],
)
def test_bad_fields_are_refused(name, value):
    fields = msgpack.unpackb(wire.encode_stage(STAGE))
    assert reason_of(wire.decode_stage, msgpack.packb({**fields, name: value})) == "field"


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


@pytest.mark.parametrize("kind", ["stage", "outcome", "plan", "telemetry", "input"])
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_one_field_of_any_value_is_read_or_refused(kind, data):
    encode, decode, message = CODECS[kind]
    fields = msgpack.unpackb(encode(message))
    name = data.draw(st.sampled_from(sorted(fields)))
    try:
        decode(msgpack.packb({**fields, name: data.draw(plain)}))
    except RemoteProtocolError:
        return


@pytest.mark.parametrize("kind", ["result", "state", "meta", "dead"])
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


@given(st.binary(max_size=64), st.integers(0, 400))
@settings(max_examples=500, deadline=None)
def test_flipped_bytes(noise, position):
    whole = bytearray(wire.encode_stage(STAGE))
    whole[position : position + len(noise)] = noise
    try:
        wire.decode_stage(bytes(whole))
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
