"""The codec: golden bytes, round trips, and nothing but RemoteProtocolError for whatever comes in."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import subprocess
import sys
import tracemalloc
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from message_samples import (
    CONTEXT,
    DECISION,
    EMBEDDING,
    INPUT,
    MESSAGES,
    META,
    OPTIONAL,
    OUTCOME,
    PLAN,
    PROGRESS,
    RESULT,
    ROUTE,
    RULE,
    STAGE,
    TELEMETRY,
    WIDE_META,
    WIDE_OUTCOME,
    WIDE_PLAN,
    WIDE_RESULT,
    WIDE_TELEMETRY,
    changed,
    decoded,
    encoded,
    is_json,
    packed,
    unpacked,
)

from distree.errors import RemoteProtocolError
from distree.messages import codec
from distree.messages.layout import layout_of, read_record
from distree.messages.limits import (
    MAX_BRANCHES,
    MAX_CLASSES,
    MAX_EPOCH,
    MAX_HOPS,
    MAX_MASKED,
    MAX_MEMORY,
    MAX_MESSAGE_BYTES,
    MAX_PACKED_BYTES,
    MAX_REVISIONS,
    MAX_STAGES,
)
from distree.messages.plan import MaskedThresholds, Plan
from distree.messages.request import Hop, Reading, RequestContext, RouteStop, Rule, StageMessage, is_input
from distree.messages.result import MissingBranch
from distree.messages.telemetry import Telemetry

JSON_KINDS = [kind for kind in MESSAGES if is_json(kind)]
MSGPACK_KINDS = [kind for kind in MESSAGES if not is_json(kind)]

each_codec = pytest.mark.parametrize("kind", MESSAGES)
each_msgpack = pytest.mark.parametrize("kind", MSGPACK_KINDS)


@each_codec
def test_round_trip(kind):
    message = MESSAGES[kind]
    assert decoded(kind, encoded(message)) == message


def test_golden_bytes_of_a_stage_message():
    """These bytes are version 2: if this test needs another value, the version must change."""
    assert encoded(STAGE).hex() == (
        "86a17602a46b696e64a57374616765a7636f6e74657874c44a97a461622d31a463616d3101c40801746f6b656e6564ac3031"
        "32333435363738396162c41c9307a66d617267696e92cb3fe0000000000000cb3fd0000000000000cb3fe0000000000000a8"
        "70726f677265737394cb3fc0000000000000930003cb3fe000000000000092cb3ff0000000000000cb400000000000000091"
        "94a463616d3100cb3fd0000000000000cb3fe0000000000000a5737461676501a674656e736f7294a4696e7438920104a372"
        "6177c40400010203"
    )


def test_golden_bytes_of_an_outcome_and_a_plan():
    assert encoded(OUTCOME).hex() == (
        "88a17602a46b696e64a76f7574636f6d65a772657175657374a461622d31a5746f6b656ec40801746f6b656e6564a6726561"
        "736f6ea473686564a56775657373c0a77370656e745f73cb3fc0000000000000a4686f70739194a463616d3100cb3fd00000"
        "00000000cb3fe0000000000000"
    )
    assert encoded(PLAN).hex() == (
        "88a17601a46b696e64a4706c616ea8706970656c696e65a766617368696f6ea565706f636807a56d6f64656ca76661736869"
        "6f6ea87265766973696f6eac303132333435363738396162a9637269746572696f6ea66d617267696eaa7468726573686f6c"
        "647392cb3fe0000000000000cb3fd0000000000000"
    )


def test_golden_bytes_of_an_embedding_and_a_decision():
    assert encoded(EMBEDDING).hex() == (
        "88a17602a46b696e64a9656d62656464696e67a7636f6e74657874c4529aa461622d31a463616d3101c40801746f6b656e65"
        "64ac303132333435363738396162c41c9307a66d617267696e92cb3fe0000000000000cb3fd0000000000000cb3fe0000000"
        "000000c40190a3687562c3a870726f677265737394cb3fc0000000000000930003cb3fe000000000000092cb3ff000000000"
        "0000cb40000000000000009194a463616d3100cb3fd0000000000000cb3fe0000000000000a5737461676501a66272616e63"
        "6802a6646576696365a26232a674656e736f7294a4696e7438920104a3726177c40400010203"
    )
    assert encoded(DECISION).hex() == (
        "86a17602a46b696e64a86465636973696f6ea772657175657374a461622d31a5746f6b656ec40801746f6b656e6564a57374"
        "61676501a2676fc3"
    )


def test_a_result_is_the_json_that_dashboards_were_promised():
    result = json.loads(encoded(RESULT))
    assert list(result) == [
        "schema", "request", "site", "pipeline", "origin", "input", "label", "class_id", "confidence", "exit",
        "reason", "final", "late", "attempt", "latency_ms", "epoch", "model", "revision", "hops", "time",
        "clock_synced",
    ]  # fmt: skip
    assert result["latency_ms"] == 12.5
    assert result["hops"] == [{"device": "cam1", "stage": 0, "queue_ms": 250.0, "compute_ms": 500.0}]


def test_what_wide_stages_add_comes_after_the_golden_bytes_of_a_chain():
    def added(wide: bytes, plain: bytes) -> str:
        assert wide[1 : len(plain)] == plain[1:]
        return wide[len(plain) :].hex()

    assert unpacked("wide outcome", encoded(WIDE_OUTCOME))["guess"] == [1, 2, 0.75, [0, 3]]
    assert added(encoded(WIDE_PLAN), encoded(PLAN)) == (
        "a66d61736b65649292910092cb3fe8000000000000cb3fe00000000000009292000292cb3ff0000000000000cb3fe0000000000000"
    )
    wide = replace(CONTEXT, route=ROUTE, fuser="hub", eager=True)
    route = "c41292920191a26231930293a26232a0a26233c3"
    assert added(packed_context(wide), packed_context(CONTEXT)) == route + "a3687562c3"
    assert added(packed_context(replace(CONTEXT, route=ROUTE)), packed_context(CONTEXT)) == route


def packed_context(context: RequestContext) -> bytes:
    return msgpack.unpackb(encoded(replace(STAGE, context=context)))["context"]


def test_a_chain_is_not_told_of_what_only_wide_stages_have():
    pipeline = msgpack.unpackb(encoded(TELEMETRY))["pipelines"][0]
    assert not {"fusions"} & pipeline.keys()
    assert not {"wasted", "audited"} & pipeline["stages"][0].keys()
    assert not {"audits_drawn"} & pipeline["origin"].keys()
    assert not {"fusers"} & json.loads(encoded(META)).keys()
    assert not {"branch"} & json.loads(encoded(META))["stages"][0].keys()
    assert not {"missing"} & json.loads(encoded(RESULT)).keys()
    stage = msgpack.unpackb(encoded(STAGE))
    assert len(msgpack.unpackb(stage["context"])) == len(layout_of(RequestContext).required)
    assert len(stage["progress"]) == 4


@pytest.mark.parametrize("kind", OPTIONAL)
def test_absent_optional_keys_are_read_as_their_defaults(kind):
    message = MESSAGES[kind]
    fields = unpacked(kind, encoded(message))
    bare = MESSAGES[kind.split()[-1]]
    assert fields.keys() >= OPTIONAL[kind]
    assert fields.keys() - OPTIONAL[kind] == unpacked(kind, encoded(bare)).keys()
    for name in OPTIONAL[kind]:
        default = type(message).__dataclass_fields__[name].default
        without = packed(kind, {key: value for key, value in fields.items() if key != name})
        assert decoded(kind, without) == replace(message, **{name: default}) != message


def test_the_places_of_wide_stages_in_a_result_and_a_description():
    assert json.loads(encoded(WIDE_RESULT))["missing"] == [
        {"branch": 1, "device": "b2"},
        {"branch": 3, "device": None},
    ]
    meta = json.loads(encoded(WIDE_META))
    assert (meta["stages"][0]["branch"], meta["fusers"]) == (0, ["fashion"])


@each_codec
def test_unknown_keys_of_a_later_version_are_ignored(kind):
    message = MESSAGES[kind]
    fields = unpacked(kind, encoded(message))
    assert decoded(kind, packed(kind, {**fields, "invented_later": [1, 2]})) == message


def reason_of(kind, payload: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        decoded(kind, payload)
    return caught.value.reason


@each_codec
def test_truncated_at_any_byte(kind):
    message = MESSAGES[kind]
    whole = encoded(message)
    for length in range(len(whole)):
        assert reason_of(kind, whole[:length]) == "encoding"


@each_codec
def test_too_long(kind):
    assert reason_of(kind, b"\x00" * (MAX_MESSAGE_BYTES + 1)) == "size"


@each_msgpack
def test_wrong_version_and_wrong_kind(kind):
    message = MESSAGES[kind]
    fields = msgpack.unpackb(encoded(message))
    assert reason_of(kind, msgpack.packb({**fields, "v": 3})) == "version"
    assert reason_of(kind, msgpack.packb({**fields, "v": [fields["v"]]})) == "version"
    assert reason_of(kind, msgpack.packb({**fields, "kind": "else"})) == "kind"


@each_msgpack
def test_each_missing_key_is_named(kind):
    message = MESSAGES[kind]
    fields = msgpack.unpackb(encoded(message))
    for name in fields.keys() - {"v", "kind"} - OPTIONAL.get(kind, set()):
        with pytest.raises(RemoteProtocolError, match=f"field: {name}"):
            decoded(kind, msgpack.packb({key: value for key, value in fields.items() if key != name}))


BAD_OF_A_STAGE = [
    ("context", None),
    ("context", "text"),
    ("context", b"\x90"),
    ("context", b"\xc0"),
    ("context", bytes(MAX_PACKED_BYTES + 1)),
    ("progress", None),
    ("progress", {}),
    ("progress", [0.5, None, []]),
    ("tensor", ["int8", [1], "raw"]),
    ("context.origin", "../etc"),
    ("context.origin", "a/b"),
    ("context.origin", "a+"),
    ("context.request", "x" * 65),
    ("context.request", "a\nb"),
    ("context.request", "\x00"),
    ("stage", -1),
    ("stage", 1.0),
    ("stage", True),
    ("stage", 1 << 40),
    ("context.attempt", "1"),
    ("context.budget_s", math.nan),
    ("context.budget_s", math.inf),
    ("context.budget_s", -0.1),
    ("context.budget_s", 1e9),
    ("progress.spent_s", -math.inf),
    ("progress.guess", [0, 1]),
    ("progress.guess", [0, 1, 1.5]),
    ("progress.guess", [0, 1, math.nan]),
    ("progress.memory", [math.nan]),
    ("progress.memory", [0.0, math.inf]),
    ("progress.memory", "x"),
    ("progress.hops", [["cam1", 0, 0.1, 0.1]] * 33),
    ("progress.hops", [["cam1", 0, 0.1]]),
    ("progress.hops", [["cam1", 0, -0.1, 0.1]]),
    ("progress.hops", [{}]),
    ("tensor.dtype", "object"),
    ("tensor.dtype", ["int8"]),
    ("tensor.shape", [0, 4]),
    ("tensor.shape", [-1]),
    ("tensor.shape", [1] * 7),
    ("tensor.shape", [1 << 30]),
    ("tensor.codec", "pickle"),
    ("tensor.payload", "text"),
    ("tensor.payload", None),
    ("context.attempt", 101),
    ("context.token", b"1234567"),
    ("context.token", b"123456789"),
    ("context.token", "12345678"),
    ("context.token", None),
    ("context.route", ["b1"]),
    ("context.route", [[1, ["a/b"]]]),
    ("context.route", [[1]]),
    ("context.route", [[-1, ["b1"]]]),
    ("context.route", [[1, "b1"]]),
    ("context.route", [[1, ["b1"] * 65]]),
    ("context.route", [[1, [None]]]),
    ("context.route", [[1, ["b1"], 1]]),
    ("context.route", [[1, ["b1"]]] * 33),
    ("context.route", None),
    ("context.revision", b"0"),
    ("context.rule", None),
    ("context.rule", b"\xc0"),
    ("context.rule", b"\x91\x07"),
    ("context.rule.epoch", -1),
    ("context.rule.criterion", "a\nb"),
    ("context.rule.thresholds", [math.nan]),
    ("context.rule.thresholds", [0.5] * 33),
    ("context.rule.rest_s", [-0.1]),
    ("context.rule.rest_s", None),
]
BAD_FLAGS = [0, 1, None, "true", [], {}]
BAD_IDS = ["../etc", "a/b", "a+", "#", "", "A", "x" * 33, None, 7, ["hub"]]
BAD_TRACES = [
    {},
    "x",
    [0.5],
    [[0.5]],
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
    + [("context.fuser", value) for value in BAD_IDS if value is not None]
    + [(f"context.{name}", value) for name in ("eager", "audit") for value in BAD_FLAGS]
    + [("progress.trace", value) for value in BAD_TRACES],
    "embedding": BAD_OF_A_STAGE
    + [(name, value) for name in ("context.fuser", "device") for value in BAD_IDS]
    + [(f"context.{name}", value) for name in ("eager", "audit") for value in BAD_FLAGS]
    + [("progress.trace", value) for value in BAD_TRACES]
    + [("branch", value) for value in (-1, 64, True, 1.0, "0", None)],
    "claim": [("orchestrator", value) for value in BAD_IDS] + [("running", value) for value in BAD_FLAGS],
    "stats": [(name, value) for name in ("pipeline", "origin") for value in BAD_IDS]
    + [("early_share", value) for value in (-0.1, 1.1, "0.5", True)]
    + [("latency_p50_ms", -1), ("rate_hz", None), ("answered", -1), ("pending", 0.5), ("epoch", None)],
    "label": [
        ("request", "x" * 65),
        ("request", "a\nb"),
        ("request", 7),
        ("label", "x" * 65),
        ("label", None),
        ("label", 3),
    ],
    "decision": [("go", value) for value in BAD_FLAGS]
    + [("request", "x" * 65), ("request", "a\nb"), ("token", b""), ("token", b"1" * 9), ("token", "12345678")]
    + [("stage", -1), ("stage", 33), ("stage", None)],
    "wide outcome": [("guess.missing", value) for value in BAD_SETS_OF_BRANCHES],
    "outcome": [("trace", value) for value in [*BAD_TRACES, None]],
    "audit": [("missing", value) for value in BAD_SETS_OF_BRANCHES]
    + [("scores", value) for value in ([], [0.5, 0.5], [math.nan], [math.inf], [-math.inf], ["0"], [True], None, 0.5)]
    + [("predictions", value) for value in ([], [1], [1, 2, 3], [1, -1], [1, True], [1, 1.0], [1, 1 << 60], None, {})]
    + [("sequence", value) for value in (-1, 1.0, True, 1 << 54, "1", None)]
    + [("origin", value) for value in BAD_IDS]
    + [("boot", "a\nb"), ("boot", "x" * 65), ("criterion", None), ("epoch", -1), ("revision", 7), ("request", "\x00")],
    "unreachable outcome": [("board", value) for value in BAD_IDS if value is not None]
    + [("reason", value) for value in ("gone", None, 1)],
    "result": [("missing", value) for value in (None, 3, {}, [1], [None], [{}], [{"branch": 1}])]
    + [("missing", [{"branch": value, "device": None}]) for value in (-1, 64, True, 1.0, "0", None)]
    + [("missing", [{"branch": 1, "device": value}]) for value in (3, "x" * 33, ["b1"], "a\nb")]
    + [("missing", [{"branch": 1, "device": None}] * 65)]
    + [("reason", value) for value in ("moved", "unreachable", "gone")],
    "member": [(name, value) for name in ("device", "pipeline") for value in BAD_IDS]
    + [("stages", value) for value in ([-1], [32], [True], [1.0], ["0"], list(range(33)), None, 1, {})]
    + [("revisions", value) for value in ([None], ["x" * 65], ["a\nb"], ["r"] * 9, None, "r", {})]
    + [("branch", value) for value in (-1, 64, True, 1.0, "0", None)]
    + [("fuses", value) for value in BAD_FLAGS]
    + [("boot", "a\nb"), ("boot", "x" * 65), ("boot", None), ("model", 7)],
    "call": [("caller", value) for value in BAD_IDS],
    "plan": [("rest_s", value) for value in ([-0.1], [math.nan], [math.inf], [1e9], ["0"], [0.5] * 33, None, 0.5)]
    + [("masked", [[value, [0.5, 0.5]]]) for value in [*BAD_SETS_OF_BRANCHES, []]]
    + [("audit_rate", value) for value in (-0.1, 1.1, math.nan, math.inf, True, "1", None)]
    + [("masked", [[[0], value]]) for value in ([math.nan], [-math.inf], [1e301], ["0"], [True], 0.5, [0.5] * 33)]
    + [("masked", [[[0], [0.5]], [[1], [0.5]], [[0], [0.25]]])]
    + [("masked", value) for value in ([[]], [[[0]]], [{}], {}, None, [[[0], []]] * 257)],
    "meta": [("fusers", value) for value in (None, 3, "fashion", [None], ["a\nb"], ["x" * 33], ["p"] * 65)],
}


@pytest.mark.parametrize(("kind", "name", "value"), [(kind, *case) for kind, cases in BAD.items() for case in cases])
def test_bad_fields_are_refused(kind, name, value):
    message = MESSAGES[kind]
    bad = changed(type(message), unpacked(kind, encoded(message)), name, value)
    assert reason_of(kind, packed(kind, bad)) == "field"


LONGEST_CONTEXT = RequestContext(
    request="\U0001f600" * 64,
    origin="o" * 32,
    attempt=100,
    token=bytes(8),
    revision="\U0001f600" * 64,
    rule=Rule(epoch=MAX_EPOCH, criterion="\U0001f600" * 64, thresholds=(0.1,) * MAX_STAGES, rest_s=(0.1,) * MAX_STAGES),
    budget_s=3600.0,
    # A group of wide stages and as many plain ones as there can be beside it.
    route=(
        RouteStop(stage=0, boards=("w" * 32,) * MAX_BRANCHES, together=True),
        *(RouteStop(stage=k, boards=("r" * 32,), together=True) for k in range(1, MAX_STAGES)),
    ),
    fuser="f" * 32,
    eager=True,
    audit=True,
)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("stage", "progress", replace(PROGRESS, memory=(0.5,) * MAX_MEMORY)),
        (
            "stage",
            "progress",
            replace(PROGRESS, hops=(Hop(device="c", stage=0, queue_s=0.0, compute_s=0.0),) * MAX_HOPS),
        ),
        ("stage", "progress", replace(PROGRESS, trace=(Reading(score=1.0, class_id=MAX_CLASSES),) * MAX_STAGES)),
        ("stage", "context", LONGEST_CONTEXT),
        ("embedding", "branch", MAX_BRANCHES - 1),
        ("wide outcome", "guess", replace(WIDE_OUTCOME.guess, missing=tuple(range(MAX_BRANCHES)))),
        ("result", "missing", (MissingBranch(branch=MAX_BRANCHES - 1, device="d" * 32),) * MAX_BRANCHES),
        ("member", "stages", tuple(range(MAX_STAGES))),
        ("member", "revisions", ("\U0001f600" * 64,) * MAX_REVISIONS),
        (
            "plan",
            "masked",
            tuple(
                MaskedThresholds(missing=(index % 16, 16 + index // 16), thresholds=(0.5,) * MAX_STAGES)
                for index in range(MAX_MASKED)
            ),
        ),
    ],
)
def test_the_longest_that_is_allowed(kind, name, value):
    message = MESSAGES[kind]
    longest = replace(message, **{name: value})
    assert decoded(kind, encoded(longest)) == longest


@pytest.mark.parametrize("kind", ["stage", "embedding"])
def test_a_memory_that_is_too_long_is_refused(kind):
    message = MESSAGES[kind]
    assert (
        reason_of(kind, encoded(replace(message, progress=replace(PROGRESS, memory=(0.5,) * (MAX_MEMORY + 1)))))
        == "encoding"
    )


@pytest.mark.parametrize("value", [-1, 64, True, 1.0, "0", None])
def test_a_branch_that_cannot_be_held_is_refused(value):
    fields = json.loads(encoded(META))
    held = {**fields["stages"][0], "branch": value}
    assert reason_of("meta", json.dumps({**fields, "stages": [held]}).encode()) == "field"


def test_hostile_telemetry_is_refused():
    fields = msgpack.unpackb(encoded(TELEMETRY))
    stage = fields["pipelines"][0]["stages"][0]
    for name, value in [
        ("received", -1),
        ("compute_s", math.nan),
        ("queue_s", math.inf),
        ("bytes_out", 1 << 60),
    ]:
        pipeline = {**fields["pipelines"][0], "stages": [{**stage, name: value}]}
        assert reason_of("telemetry", msgpack.packb({**fields, "pipelines": [pipeline]})) == "field"


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
    fields = msgpack.unpackb(encoded(WIDE_TELEMETRY))
    pipeline = fields["pipelines"][0]
    pipeline = {**pipeline, part: [{**pipeline[part][0], name: value}]}
    assert reason_of("telemetry", msgpack.packb({**fields, "pipelines": [pipeline]})) == "field"


def test_deep_nesting_is_refused():
    assert reason_of("stage", b"\x91" * 100_000) in ("encoding", "version")
    assert reason_of("result", b"[" * 100_000) == "encoding"


# Ten at a time, here and below: drawing alone takes ten times longer than reading.
@each_codec
@given(st.lists(st.binary(max_size=300), min_size=10, max_size=10))
@settings(max_examples=15, deadline=None)
def test_random_bytes(kind, payloads):
    for payload in payloads:
        with pytest.raises(RemoteProtocolError):
            decoded(kind, payload)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
# By hand: st.recursive takes five times longer.
flat = scalars | st.lists(scalars, max_size=4) | st.dictionaries(st.text(max_size=8), scalars, max_size=4)
plain = scalars | st.lists(flat, max_size=4) | st.dictionaries(st.text(max_size=8), flat, max_size=4)
tens = st.lists(plain, min_size=10, max_size=10)


@each_msgpack
@given(values=tens)
@settings(max_examples=15, deadline=None)
def test_one_field_of_any_value_is_refused_or_read_and_written_alike(kind, values):
    fields = msgpack.unpackb(encoded(MESSAGES[kind]))
    for name, value in itertools.product(fields, values):
        try:
            read = decoded(kind, msgpack.packb({**fields, name: value}))
        except RemoteProtocolError:
            continue
        assert decoded(kind, encoded(read)) == read


@pytest.mark.parametrize("kind", JSON_KINDS)
@given(values=tens)
@settings(max_examples=15, deadline=None)
def test_one_json_field_of_any_value_is_read_or_refused(kind, values):
    fields = json.loads(encoded(MESSAGES[kind]))
    for name, value in itertools.product(fields, values):
        with contextlib.suppress(RemoteProtocolError):
            decoded(kind, json.dumps({**fields, name: value}, default=str).encode())


@pytest.mark.parametrize("kind", ["routed stage", "wide stage", "embedding", "decision", "wide plan"])
@given(st.lists(st.tuples(st.binary(max_size=64), st.integers(0, 400)), min_size=10, max_size=10))
@settings(max_examples=50, deadline=None)
def test_flipped_bytes(kind, flips):
    message = encoded(MESSAGES[kind])
    for noise, position in flips:
        whole = bytearray(message)
        whole[position : position + len(noise)] = noise
        with contextlib.suppress(RemoteProtocolError):
            decoded(kind, bytes(whole))


def test_numbers_too_large_for_a_float_are_refused():
    fields = json.loads(encoded(RESULT))
    assert reason_of("result", json.dumps({**fields, "latency_ms": 10**400}).encode()) == "field"


def test_named_inputs_are_told_from_raw_bytes_and_images():
    assert is_input(encoded(INPUT))
    assert not is_input(b"\x89PNG\r\n")
    assert not is_input(b"\xff\xd8\xff")
    assert not is_input(b"")


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
@pytest.mark.parametrize("cls", [StageMessage, Plan, Telemetry])
def test_a_megabyte_of_small_things_takes_a_bounded_memory(cls, payload):
    assert len(payload) <= MAX_MESSAGE_BYTES
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            codec.decode(cls, payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32e6


# ---------------------------------------------------------------- rows and what travels packed


@pytest.mark.parametrize("path", ["progress", "progress.guess", "tensor", "context", "context.rule"])
def test_what_a_later_version_appends_to_a_row_is_ignored(path):
    def longer(cls, value, path):
        name, _, rest = path.partition(".")
        place = name if isinstance(value, dict) else [field.name for field in layout_of(cls).fields].index(name)
        inner = next(field.form.cls for field in layout_of(cls).fields if field.name == name)
        row = msgpack.unpackb(value[place]) if isinstance(value[place], bytes) else value[place]
        defaults = [field.default for field in layout_of(inner).fields[len(row) :]]
        new = longer(inner, row, rest) if rest else [*row, *defaults, {"later": [1]}]
        value[place] = msgpack.packb(new) if isinstance(value[place], bytes) else new
        return value

    fields = longer(StageMessage, msgpack.unpackb(encoded(STAGE)), path)
    assert decoded("stage", msgpack.packb(fields)) == STAGE


def test_what_a_later_version_appended_to_a_context_is_passed_on():
    fields = msgpack.unpackb(encoded(MESSAGES["wide stage"]))
    fields["context"] = msgpack.packb([*msgpack.unpackb(fields["context"]), False, "later"])
    read = decoded("stage", msgpack.packb(fields))
    assert read == MESSAGES["wide stage"]
    passed_on = encoded(replace(read, stage=2, progress=replace(PROGRESS, spent_s=0.25)))
    assert msgpack.unpackb(passed_on)["context"] == fields["context"]


def test_the_bytes_of_a_context_are_those_of_its_value():
    read = decoded("stage", encoded(STAGE)).context
    assert read.packed == packed_context(CONTEXT)
    later = replace(read, attempt=2, token=b"another!")
    assert not hasattr(later, "packed")
    assert decoded("stage", encoded(replace(STAGE, context=later))).context == later
    assert read == CONTEXT
    assert hash(read) == hash(CONTEXT)
    assert repr(read) == repr(CONTEXT)
    assert "packed" not in {field.name for field in fields(read)}


def test_a_rule_that_many_requests_share_is_one_value():
    payloads = [encoded(replace(STAGE, context=replace(CONTEXT, request=f"r-{k}"))) for k in range(2)]
    first, second = (decoded("stage", payload).context.rule for payload in payloads)
    assert first is second
    assert first == RULE


@pytest.mark.parametrize("name", ["context", "context.rule"])
@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x91" * 4000, b"\x92\x01"])
def test_packed_bytes_that_are_none_are_refused(name, value):
    fields = changed(StageMessage, msgpack.unpackb(encoded(STAGE)), name, value)
    assert reason_of("stage", msgpack.packb(fields)) in ("encoding", "field")


# ---------------------------------------------------------------- the quick way and the slow one


def objects(value):
    """All records in a record."""
    if hasattr(value, "__dataclass_fields__"):
        yield value
        for field in fields(value):
            yield from objects(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from objects(item)


@each_codec
def test_what_was_read_is_frozen_like_what_was_made(kind):
    message = MESSAGES[kind]
    for mine, made in zip(objects(decoded(kind, encoded(message))), objects(message), strict=True):
        assert type(mine) is type(made)
        with pytest.raises(FrozenInstanceError):
            setattr(mine, fields(mine)[0].name, None)
        assert not hasattr(mine, "__dict__")


def spots(value, at=()):
    """All places in what was unpacked, packed parts taken apart."""
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = list(enumerate(value))
    else:
        return []
    return [(*at, key) for key, _ in parts] + [spot for key, part in parts for spot in spots(part, (*at, key))]


def put(value, spot, new):
    if not spot:
        return new
    if isinstance(value, dict):
        return {**value, spot[0]: put(value[spot[0]], spot[1:], new)}
    return [put(part, spot[1:], new) if k == spot[0] else part for k, part in enumerate(value)]


def tupled(value):
    if isinstance(value, dict):
        return {key: tupled(part) for key, part in value.items()}
    return tuple(map(tupled, value)) if isinstance(value, list) else value


@each_codec
@given(values=tens)
@settings(max_examples=3, deadline=None)
def test_both_ways_read_alike(kind, values):
    """The condition of the usual case and the reading field by field take the same, and give the same."""
    message, cls = MESSAGES[kind], type(MESSAGES[kind])
    fields = unpacked(kind, encoded(message))
    for spot, value in itertools.product(spots(fields), values):
        if is_json(kind) and "bytes" in repr(type(value)):
            continue
        payload = packed_or_none(kind, put(fields, spot, value))
        if payload is None:
            continue
        again = unpacked(kind, payload) if is_json(kind) else tupled(msgpack.unpackb(payload))
        if again.keys() >= {"v", "kind"} or "schema" in again:
            head = {name: again[name] for name in ("v", "kind", "schema") if name in again}
            if head != {name: fields[name] for name in head}:
                continue
        assert outcome(lambda payload=payload: decoded(kind, payload)) == outcome(
            lambda again=again: read_record(cls, again, "message", is_json=is_json(kind))
        )


def packed_or_none(kind, fields):
    try:
        return packed(kind, fields)
    except (TypeError, ValueError):
        return None


def outcome(read):
    try:
        return repr(read())
    except RemoteProtocolError as error:
        return f"refused: {error}"


def test_where_there_is_no_msgpack_there_are_messages_nevertheless():
    """Networks are trained with less installed than boards have."""
    code = "import sys; sys.modules['msgpack'] = None; import distree.messages.request, distree.node, model_zoo.costs"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True, timeout=60)
