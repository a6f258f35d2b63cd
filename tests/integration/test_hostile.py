"""Whatever bytes arrive on the topics that agents read: one dead letter each, and the work goes on."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections import Counter

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from request_samples import changed, repacked, stage_message

from distree import tensors, topics
from distree.bundle.inputs import InputReader
from distree.errors import RemoteProtocolError
from distree.messages import request as requests
from distree.messages.codec import PROBE, encode
from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.limits import EPOCH_STEP, MAX_EPOCH, MAX_MESSAGE_BYTES
from distree.messages.plan import Plan
from distree.messages.request import Guess, Hop, InputMessage, Outcome, RouteStop, Tensor
from distree.thresholds import NEVER
from distree.topics import Kind

pytestmark = pytest.mark.any_broker

SITE, PIPELINE = "test", "fashion"
STAGE = topics.stage(SITE, PIPELINE, 1, "b1", "nobody")
"""From the board that the messages name as their origin."""

STAGE_OF_ANOTHER = topics.stage(SITE, PIPELINE, 1, "b1", "b9")
STAGE_OF_ITSELF = topics.stage(SITE, PIPELINE, 1, "b1", "b1")
INPUT = topics.of_origin(SITE, PIPELINE, Kind.INPUT, "cam")
OUTCOME = topics.to_board(SITE, PIPELINE, Kind.OUTCOME, "cam", "b1")
PLAN = topics.plan(SITE, PIPELINE)
STATE = topics.device(SITE, "cam", Kind.STATE)
NO_SENDERS = (topics.ALL, "B1", "b1.", "b" * 33, "")
"""What may stand where a topic names its sender, and is no board's id."""
READERS = {
    STAGE: ("b1",),
    STAGE_OF_ANOTHER: ("b1",),
    INPUT: ("cam",),
    OUTCOME: ("cam",),
    PLAN: ("b1", "cam"),
    STATE: ("cam",),
    **{topics.stage(SITE, PIPELINE, 1, "b1", sender): ("b1",) for sender in NO_SENDERS},
    **{topics.to_board(SITE, PIPELINE, Kind.OUTCOME, "cam", sender): ("cam",) for sender in NO_SENDERS},
}
"""Which of the test's agents read a topic: each of them owes a dead letter for what it cannot take."""

BATCH = 200
"""Fewer than a broker queues for a client by default, so that none is lost on the way."""

RAW_INPUT_BYTES = 784


def drawn(strategy, count):
    """Up to `count` examples of a strategy, the same in every run; ten at a time, which is much cheaper."""
    found = []

    @settings(
        max_examples=count // 10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(strategy, min_size=10, max_size=10))
    def collect(examples):
        found.extend(examples)

    collect()
    return found


# No field of any message is a map or a list of texts.
ALWAYS_WRONG = (
    st.dictionaries(st.text(max_size=5), st.integers(-5, 5), max_size=3)
    | st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3)
    | st.recursive(st.just([{}]), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=5)
)


@st.composite
def spoilt(draw, fields, pack):
    """A valid message with one field taken away or replaced, cut short, or followed by more bytes."""
    packed = pack(fields)
    how = draw(st.sampled_from(["cut", "followed", "missing", "replaced", "replaced"]))
    if how == "cut":
        return packed[: draw(st.integers(0, len(packed) - 1))]
    if how == "followed":
        return packed + draw(st.binary(min_size=1, max_size=40))
    changed = dict(fields)
    name = draw(st.sampled_from(sorted(changed)))
    if how == "missing":
        del changed[name]
    else:
        changed[name] = draw(ALWAYS_WRONG)
    return pack(changed)


@pytest.fixture(scope="session")
def good(bundle):
    """A valid message of each kind, of which no board is the origin, so that nobody is told of its failure."""
    spec = bundle.stages[1].input
    features = np.zeros(spec.shape, spec.dtype)
    return {
        "stage": stage_message(
            tensors.encode(features),
            stage=1,
            request="bad",
            revision=bundle.revision,
            budget_s=3600.0,
            route=(RouteStop(stage=1, boards=("b1",)),),
            guess=Guess(exit=0, class_id=3, confidence=0.5),
            hops=(Hop(device="nobody", stage=0, queue_s=0.0, compute_s=0.0),),
        ),
        "outcome": Outcome(
            request="never-asked",
            token=b"never-as",
            guess=Guess(exit=1, class_id=3, confidence=0.5),
            reason="confident",
            spent_s=0.1,
            hops=(),
        ),
        "plan": Plan(
            pipeline=PIPELINE,
            epoch=999,
            model=bundle.name,
            revision=bundle.revision,
            criterion="max_softmax",
            thresholds=(0.0, 0.0),
        ),
        "input": InputMessage(request="bad", name="bad", payload=bytes(RAW_INPUT_BYTES)),
        "state": DeviceState(device="cam", boot="another", status=DeviceStatus.LOST),
    }


class Siege:
    """An origin `cam` with stage 0 and a board `b1` with stages 1 and 2, under fire."""

    def __init__(self, site, bundle, images):
        self.site, self.bundle, self.images = site, bundle, images
        self.sent = Counter()
        self.asked = 0
        site.plan(bundle, 1, (NEVER, NEVER))
        site.agent("b1", [1, 2])
        site.agent("cam", [0], origin={"deadline_ms": 30000, "min_retry_ms": 10000, "source": {"kind": "mqtt"}})

    def dead(self, device):
        return [letter for letter in self.site.watch.dead if letter.device == device]

    def alive(self):
        return all(self.site.processes[device].poll() is None for device in ("b1", "cam"))

    def until(self, condition, what):
        self.site.watch.until(lambda: condition() or not self.alive(), what)
        assert self.alive(), self.site.log("b1") + self.site.log("cam")

    def ask(self):
        """Submit a good input, which goes through all stages."""
        image = self.images[self.asked % len(self.images)]
        self.site.submit(f"good-{self.asked}", f"good-{self.asked}", image)
        self.asked += 1

    def fire(self, topic, payloads, *, retain=False):
        """Publish what is no message, good inputs among it, and wait for a dead letter of each."""
        for start in range(0, len(payloads), BATCH):
            for index, payload in enumerate(payloads[start : start + BATCH]):
                if index % 50 == 0:
                    self.ask()
                self.site.watch.publish(topic, payload, retain=retain)
                if len(payload) > MAX_MESSAGE_BYTES:
                    self.site.watch.settle()
                self.sent.update(READERS[topic])
            self.until(
                lambda: all(len(self.dead(device)) >= self.sent[device] for device in READERS[topic]),
                f"dead letters of {topic}: {self.sent}, received {Counter(x.device for x in self.site.watch.dead)}",
            )

    def settle(self):
        """All good inputs are answered by the last exit, and the books agree on the number of bad ones."""
        self.until(lambda: len(self.site.watch.final()) == self.asked, f"{self.asked} answers")
        assert {result.reason for result in self.site.watch.results} == {"last"}
        assert {result.epoch for result in self.site.watch.results} == {1}
        sequences = {device: report.sequence for device, report in self.site.watch.telemetry.items()}
        for device in ("b1", "cam"):
            self.until(
                lambda d=device: self.site.watch.telemetry[d].sequence > sequences.get(d, 0) + 1,
                "one more report, made after all that",
            )
            assert self.site.watch.telemetry[device].dead_letters == self.sent[device]
            assert len(self.dead(device)) == self.sent[device]
        assert len(self.site.watch.results) == self.asked


@pytest.fixture
def siege(site, bundle, images):
    return Siege(site, bundle, images)


def with_tensor(message, request="bad", **changes):
    tensor = dataclasses.replace(message.tensor, **changes)
    return encode(changed(message, request=request, tensor=tensor))


def wrong_stages(message, bundle):
    """(what, payload, reason) of messages that a board of stage 1 must refuse."""
    shape, nbytes = message.tensor.shape, len(message.tensor.payload)
    flat = (1, math.prod(shape))
    # Their fault shows when they are unpacked for the interpreter, and a request is only taken once.
    bomb = zlib.compress(bytes(8 << 20), 9)
    packed = encode(message)
    return [
        ("a later version", repacked(packed, v=3), "version"),
        ("no version", repacked(packed, v=None), "version"),
        ("another kind", repacked(packed, kind="outcome"), "kind"),
        ("another bundle", encode(changed(message, revision="0" * 12)), "revision"),
        ("another stage", encode(changed(message, stage=2)), "stage"),
        ("a stage that is not", encode(changed(message, stage=31)), "stage"),
        ("another shape", with_tensor(message, shape=flat), "shape"),
        ("another dtype", with_tensor(message, dtype="uint8"), "dtype"),
        ("an unknown dtype", with_tensor(message, dtype="int64"), "field"),
        ("an unknown codec", with_tensor(message, codec="lzma"), "field"),
        ("too few bytes", with_tensor(message, payload=bytes(nbytes - 1)), "size"),
        ("too many bytes", with_tensor(message, payload=bytes(nbytes + 1)), "size"),
        ("a huge shape", with_tensor(message, shape=(1 << 20,) * 6), "shape"),
        ("a negative shape", with_tensor(message, shape=(-1, *shape[1:])), "field"),
        ("too many axes", with_tensor(message, shape=(1,) * 7), "field"),
        ("a zlib bomb", with_tensor(message, "z1", codec="zlib", payload=bomb), "size"),
        ("no zlib stream", with_tensor(message, "z2", codec="zlib", payload=b"not zlib at all"), "codec"),
        (
            "a cut zlib stream",
            with_tensor(message, "z3", codec="zlib", payload=zlib.compress(bytes(nbytes))[:-3]),
            "size",
        ),
        ("an empty zlib stream", with_tensor(message, "z4", codec="zlib", payload=b""), "size"),
        (
            "a class that is not",
            encode(changed(message, guess=Guess(exit=0, class_id=len(bundle.labels), confidence=0.5))),
            "guess",
        ),
        ("a rule of another bundle", encode(changed(message, thresholds=(0.5,))), "thresholds"),
        ("a rule by nothing", encode(changed(message, criterion="astrology")), "criterion"),
        ("an origin that is no topic", repacked(packed, origin="a/b/#"), "field"),
        ("no route", encode(changed(message, route=())), "route"),
        ("a route by others", encode(changed(message, route=(RouteStop(stage=1, boards=("b2",)),))), "route"),
        ("a route from another stage", encode(changed(message, route=(RouteStop(stage=2, boards=("b1",)),))), "route"),
        ("a route that is none", repacked(packed, route=msgpack.packb([[1, "b1"]])), "field"),
        ("a route that is no topic", repacked(packed, route=msgpack.packb([[1, ["b1/#"]]])), "field"),
        ("a route without end", repacked(packed, route=msgpack.packb([[1, ["b1"]]] * 33)), "field"),
        ("a budget that is no number", repacked(packed, budget_s=math.nan), "field"),
        ("a budget without end", repacked(packed, budget_s=math.inf), "field"),
        ("a negative time", repacked(packed, spent_s=-1.0), "field"),
        ("a fuser that is no topic", repacked(packed, fuser="a/b/#"), "field"),
        ("a flag that is none", repacked(packed, eager=1), "field"),
        ("a memory without end", repacked(packed, memory=[0.0, math.inf]), "field"),
        ("too many hops", repacked(packed, hops=[("b", 0, 0.0, 0.0)] * 33), "field"),
        ("a name that is no text", repacked(packed, request="\x00\x1b[2J"), "field"),
        ("nothing", b"", "encoding"),
        ("oversized", b"\x81" + bytes(MAX_MESSAGE_BYTES), "size"),
        ("JSON", b'{"v":1,"kind":"stage"}', "encoding"),
    ]


def test_each_bad_message_is_told_once_with_its_reason(siege, good):
    stage = wrong_stages(good["stage"], siege.bundle)
    outcome, plan, named = (encode(good["outcome"]), encode(good["plan"]), good["input"])
    packed_input = encode(named)
    oversized = bytes(MAX_MESSAGE_BYTES + 1)
    cases = [(STAGE, payload, reason) for _, payload, reason in stage]
    cases += [(topics.stage(SITE, PIPELINE, 1, "b1", sender), stage[0][1], "sender") for sender in NO_SENDERS]
    cases += [
        (topics.to_board(SITE, PIPELINE, Kind.OUTCOME, "cam", sender), outcome, "sender") for sender in NO_SENDERS
    ]
    cases += [
        (STAGE_OF_ANOTHER, encode(good["stage"]), "sender"),
        (OUTCOME, outcome, "request"),
        (OUTCOME, repacked(outcome, v=9), "version"),
        (OUTCOME, repacked(outcome, kind="stage"), "kind"),
        (OUTCOME, repacked(outcome, token=b"guessed!"), "request"),
        (OUTCOME, repacked(outcome, token=b"short"), "field"),
        (OUTCOME, repacked(outcome, guess=[9, 3, 0.5]), "guess"),
        (OUTCOME, repacked(outcome, reason="because"), "field"),
        (OUTCOME, repacked(outcome, guess=[1, 3, 0.5, [1, 0]]), "field"),
        (OUTCOME, repacked(outcome, guess=[1, 3, 0.5, [0]]), "guess"),
        (OUTCOME, oversized, "size"),
        (PLAN, repacked(plan, v=0), "version"),
        (PLAN, repacked(plan, pipeline="other"), "pipeline"),
        (PLAN, repacked(plan, revision="f" * 12), "revision"),
        (PLAN, repacked(plan, thresholds=[0.5]), "thresholds"),
        (PLAN, repacked(plan, thresholds=[math.nan, 0.5]), "field"),
        (PLAN, repacked(plan, thresholds=[0.5] * 33), "field"),
        (PLAN, repacked(plan, masked=[[[1, 0], [0.5, 0.5]]]), "field"),
        (PLAN, repacked(plan, masked=[[[0], [math.nan, 0.5]]]), "field"),
        (PLAN, repacked(plan, criterion="astrology"), "criterion"),
        (PLAN, repacked(plan, thresholds=[90.0, 80.0]), "thresholds"),
        (PLAN, repacked(plan, thresholds=[0.5, -1.0]), "thresholds"),
        (PLAN, repacked(plan, epoch=-1), "field"),
        (PLAN, repacked(plan, epoch=0), "field"),
        (PLAN, repacked(plan, epoch=1 << 53), "field"),
        (PLAN, repacked(plan, epoch=2 + EPOCH_STEP), "epoch"),
        (PLAN, repacked(plan, epoch=MAX_EPOCH), "epoch"),
        (PLAN, oversized, "size"),
        (INPUT, repacked(packed_input, payload=b"too short"), "image"),
        (INPUT, repacked(packed_input, payload="text"), "field"),
        (INPUT, repacked(packed_input, name="x" * 257), "field"),
        (INPUT, repacked(packed_input, request=7), "field"),
        (INPUT, bytes(RAW_INPUT_BYTES - 1), "image"),
        (INPUT, b"\x89PNG\r\n\x1a\n and no more", "image"),
        (INPUT, oversized, "image"),
        (STATE, b"not JSON", "encoding"),
        (STATE, b'{"schema":"distree.state/2"}', "version"),
        (STATE, b'{"schema":"distree.state/1","device":"cam","boot":"b","state":"asleep"}', "field"),
        (STATE, b"[" * 100_000, "encoding"),
        (STATE, oversized, "size"),
    ]
    if siege.site.watch.transport.protocol != "5":
        # Nobody sends that over MQTT 3.1.1, where a broker cannot tell what it takes.
        cases = [case for case in cases if len(case[1]) <= MAX_MESSAGE_BYTES]
    late = [payload for what, payload, _ in stage if "zlib" in what]
    expected = Counter()
    for topic, payload, reason in cases:
        siege.fire(topic, [payload])
        # What is found when it is unpacked for the interpreter may have come from anyone.
        told_of = topics.stage(SITE, PIPELINE, 1, "b1", "+") if payload in late else topic
        expected.update((device, told_of, reason) for device in READERS[topic])
    siege.settle()
    assert Counter((letter.device, letter.topic, letter.reason) for letter in siege.site.watch.dead) == expected
    assert all(letter.detail for letter in siege.site.watch.dead)


def test_thousands_of_random_payloads_on_every_topic_cost_no_answer(siege, good):
    reader = InputReader(siege.bundle.manifest.input, siege.bundle.manifest.preprocess)
    packed = {
        STAGE: (encode(good["stage"]), msgpack.unpackb, msgpack.packb),
        OUTCOME: (encode(good["outcome"]), msgpack.unpackb, msgpack.packb),
        PLAN: (encode(good["plan"]), msgpack.unpackb, msgpack.packb),
        INPUT: (encode(good["input"]), msgpack.unpackb, msgpack.packb),
    }
    # The trial message of `distree doctor` is ignored; hypothesis finds it among the constants of the code.
    noise = [payload for payload in drawn(st.binary(max_size=1200), 500) if payload != PROBE]
    fired = 0
    for topic, (payload, unpack, pack) in packed.items():
        payloads = noise + drawn(spoilt(unpack(payload), pack), 500)
        if topic == PLAN:
            # An empty one takes the plan back.
            payloads = [item for item in payloads if item]
        if topic == INPUT:
            heads = [
                b"\x89PNG\r\n\x1a\n",
                b"GIF89a",
                b"BM",
                b"\xff\xd8\xff\xe0",
                b"RIFF\x00\x00\x00\x00WEBP",
                b"P5 ",
                b"%!PS",
            ]
            payloads += [heads[index % len(heads)] + tail for index, tail in enumerate(noise)]
            # An empty message takes back what was retained: it is no bad input.
            payloads = [item for item in payloads if item and not is_input(reader, item)]
        fired += len(payloads)
        siege.fire(topic, payloads)
    states = noise + drawn(st.dictionaries(st.text(), st.text() | st.none() | st.integers(), max_size=4), 100)
    siege.fire(STATE, [item if type(item) is bytes else json.dumps(item).encode() for item in states])
    assert fired + len(states) > 4000
    siege.settle()


def is_input(reader, payload):
    """Whether random bytes happen to be what the input topic takes: of the right length, or an image."""
    if requests.is_input(payload) and len(payload) != RAW_INPUT_BYTES:
        return False
    try:
        reader.read(payload)
    except RemoteProtocolError:
        return False
    return True


def test_a_foreign_retained_state_is_replaced_by_the_agents_own(siege):
    fresh = type(siege.site.watch)
    for index, payload in enumerate([b"\xff garbage", b"{}", b""]):
        # Heals are at most one a second, so each case waits for the end of the one before.
        sequence = siege.site.watch.telemetry["cam"].sequence if index else 0
        siege.until(
            lambda s=sequence: (
                siege.site.watch.telemetry.get("cam") and siege.site.watch.telemetry["cam"].sequence > s + 6
            ),
            "a second to pass, in reports of 0.2 s",
        )
        siege.site.watch.states.pop("cam", None)
        siege.fire(STATE, [payload], retain=True)
        siege.until(lambda: siege.site.watch.states.get("cam") == "ready", "the healed state")
        late = fresh(siege.site.broker.port, client_id=f"late-{index}")
        try:
            late.until(lambda late=late: late.states.get("cam") == "ready", "the retained state")
        finally:
            late.transport.close()
    siege.settle()


def test_two_foreign_states_within_a_second_are_both_healed(site):
    site.agent("cam", [0])
    lost = encode(DeviceState(device="cam", boot="old", status=DeviceStatus.LOST))
    for _ in range(2):
        heard = len(site.watch.history)
        site.watch.publish(STATE, lost, retain=True)
        site.watch.until(lambda h=heard: ("cam", "lost") in site.watch.history[h:], "the old will")
        site.watch.until(lambda: site.watch.states["cam"] == "ready", "the healed state")


@pytest.mark.parametrize("topic", [STAGE, OUTCOME, PLAN, INPUT])
def test_deeply_nested_values_are_refused(siege, topic):
    nested = b"\x91" * 1000 + b"\x00"
    siege.fire(topic, [b"\x83\xa1v" + nested, b"\x83\xa1v\x01\xa4kind" + nested + b"\xa1x\x00"])
    siege.settle()


@pytest.mark.parametrize("codec", ["raw", "zlib"])
def test_features_at_qos_0_in_the_name_of_a_board_that_is_no_origin_do_not_end_it(siege, good, codec):
    tensor = Tensor(
        **{**{f.name: getattr(good["stage"].tensor, f.name) for f in dataclasses.fields(Tensor)}, "codec": codec}
    )
    message = changed(good["stage"], origin="b1", tensor=tensor)
    watch = siege.site.watch
    with watch.transport.lock:
        watch.transport.publish(STAGE_OF_ITSELF, encode(message), qos=0)
    siege.ask()
    siege.until(lambda: len(watch.final()) == siege.asked, "the good input's answer")
    received = lambda: watch.telemetry["b1"].pipelines[0].stages[0].received  # noqa: E731
    siege.until(lambda: "b1" in watch.telemetry and received() >= 2, "the report of both")
    assert siege.alive()
