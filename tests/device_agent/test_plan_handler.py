"""What an agent says of plans, and how soon it reports which one it follows."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from node_fleet import node_settings

from device_agent.plan_handler import PlanHandler
from device_agent.plan_seals import PlanSeals
from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.codec import encode
from distree.messages.events import EventKind
from distree.messages.plan import Plan
from distree.node import Acknowledge, StageNode
from distree.signing import SigningKey
from distree.thresholds import NEVER

TOPIC = topics.plan("lab", "p")
PLAN = Plan(
    pipeline="p", epoch=3, model="toy", revision="r1", criterion="max_softmax", thresholds=(0.9, NEVER),
    reason="set by hand", author="alice@lab",
)  # fmt: skip


class Scene:
    def __init__(self, seals=None):
        self.reports = 0
        self.node = StageNode(node_settings("cam", 0))
        pipeline = SimpleNamespace(node=self.node, config=SimpleNamespace(name="p"))
        self.route = PlanHandler(pipeline, self, seals)
        self.told = []

    def tell(self, kind, what, remedy="", *, pipeline):
        assert (kind, pipeline) == (EventKind.PLAN, "p")
        self.told.append(f"{what}; {remedy}")

    def report_soon(self):
        self.reports += 1

    def take(self, payload):
        payload = payload if isinstance(payload, bytes) else encode(payload)
        return self.route.take(SimpleNamespace(topic=TOPIC, payload=payload, token="token"))


@pytest.fixture
def scene(caplog):
    caplog.set_level(logging.INFO)
    return Scene()


def test_a_decision_is_told_with_its_reason_and_reported_at_once(scene, caplog):
    assert scene.take(PLAN) == [Acknowledge(delivery="token")]
    assert caplog.messages == ["p: plan 3 in force: max_softmax 0.9 never (set by hand, by alice@lab)"]
    assert scene.reports == 1
    scene.take(PLAN)
    assert (len(caplog.messages), scene.reports) == (1, 1)


def test_other_times_and_shares_are_reported_and_not_told(scene, caplog):
    scene.take(PLAN)
    scene.take(replace(PLAN, rest_s=(0.1, 0.2), audit_rate=0.5))
    assert (len(caplog.messages), scene.reports) == (1, 2)
    scene.take(replace(PLAN, thresholds=(0.9, 0.8), reason="", author=""))  # under the same number
    assert caplog.messages[1:] == ["p: plan 3 in force: max_softmax 0.9 0.8"]


def test_a_plan_that_is_refused_is_told_now_and_then(scene, caplog):
    scene.take(PLAN)
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match="thresholds: the threshold of exit 0 is 90"):
            scene.take(replace(PLAN, epoch=4, thresholds=(90.0, 80.0)))
    (line,) = scene.told
    assert line.startswith("refused a plan: thresholds: the threshold of exit 0 is 90, but scores of max_softmax are")
    assert "; plan 3 still in force; " in line
    assert scene.node.plan == PLAN
    assert scene.reports == 4


def test_a_topic_without_a_plan_is_told(scene, caplog):
    with pytest.raises(RemoteProtocolError):
        scene.take(b"garbage")
    assert "; the bundle's own thresholds still in force" in scene.told[0]
    scene.take(PLAN)
    assert scene.take(b"") == [Acknowledge(delivery="token")]
    assert caplog.messages[-1].startswith("p: plan withdrawn: the bundle's own thresholds are in force: max_softmax")


# ---------------------------------------------------------------- boards that know their orchestrator's key

KEY, OTHER_KEY = SigningKey(bytes(32)), SigningKey(bytes([1]) * 32)


def pinned(path, *keys):
    return Scene(PlanSeals([key.public for key in keys or (KEY,)], path, lambda problem: None))


def test_a_signed_plan_is_obeyed_by_boards_with_the_key_and_by_those_without(tmp_path):
    for scene in (pinned(tmp_path / "p"), Scene()):
        scene.take(KEY.sign(TOPIC, PLAN, 7))
        assert scene.node.plan == PLAN
    Scene().take(OTHER_KEY.sign("elsewhere", PLAN, 7))


@pytest.mark.parametrize(
    ("payload", "reason", "words"),
    [
        (b"", "signature", "taken off its topic"),
        (b"garbage", "signature", "not signed"),
        (encode(replace(PLAN, epoch=4)), "signature", "not signed"),
        (OTHER_KEY.sign(TOPIC, PLAN, 9), "signature", "another key"),
        (KEY.sign(topics.plan("barn", "p"), PLAN, 9), "signature", "does not fit"),
        (KEY.sign(topics.plan("lab", "q"), PLAN, 9), "signature", "does not fit"),
        (KEY.sign(TOPIC, replace(PLAN, epoch=2), 6), "replay", "number 7 was obeyed already"),
        (KEY.sign(TOPIC, replace(PLAN, epoch=4), 7), "replay", "number 7 was obeyed already"),
        (KEY.sign(TOPIC, replace(PLAN, epoch=4), 9)[:-1], "signature", "not signed"),
        (KEY.sign(TOPIC, replace(PLAN, epoch=4), 9) + b"x", "signature", "not signed"),
    ],
)
def test_nothing_else_is_and_the_plan_in_force_stays(tmp_path, payload, reason, words):
    scene = pinned(tmp_path / "p")
    scene.take(KEY.sign(TOPIC, PLAN, 7))
    for _ in range(3):
        with pytest.raises(RemoteProtocolError) as caught:
            scene.take(payload)
        assert caught.value.reason == reason
    assert scene.node.plan == PLAN
    (told,) = scene.told
    assert words in told
    assert "; plan 3 still in force; " in told
    assert caught.value.remedy


def test_any_bit_that_is_changed_is_noticed(tmp_path):
    scene, signed = pinned(tmp_path / "p"), KEY.sign(TOPIC, PLAN, 7)
    for at in range(len(signed)):
        changed = bytearray(signed)
        changed[at] ^= 1 << at % 8
        with pytest.raises(RemoteProtocolError):
            scene.take(bytes(changed))
    assert scene.node.plan.epoch == 0


def test_what_is_old_is_known_after_a_restart_and_numbers_of_plans_may_begin_anew(tmp_path):
    pinned(tmp_path / "state" / "p").take(KEY.sign(TOPIC, PLAN, 7))
    scene = pinned(tmp_path / "state" / "p")
    with pytest.raises(RemoteProtocolError, match="replay"):
        scene.take(KEY.sign(TOPIC, replace(PLAN, epoch=2), 6))
    # The plan that is still on its topic, and then one after a reset.
    scene.take(KEY.sign(TOPIC, PLAN, 7))
    scene.take(KEY.sign(TOPIC, replace(PLAN, epoch=1), 8))
    assert scene.node.plan.epoch == 1


def test_keys_are_replaced_one_after_the_other(tmp_path):
    pinned(tmp_path / "p").take(KEY.sign(TOPIC, PLAN, 7))
    both = pinned(tmp_path / "p", KEY, OTHER_KEY)
    both.take(OTHER_KEY.sign(TOPIC, PLAN, 1))
    with pytest.raises(RemoteProtocolError, match="replay"):
        both.take(KEY.sign(TOPIC, PLAN, 6))
    with pytest.raises(RemoteProtocolError, match="another key"):
        pinned(tmp_path / "p", OTHER_KEY).take(KEY.sign(TOPIC, PLAN, 8))


def test_a_plan_that_is_signed_and_impossible_uses_up_no_number(tmp_path):
    scene = pinned(tmp_path / "p")
    with pytest.raises(RemoteProtocolError, match="thresholds"):
        scene.take(KEY.sign(TOPIC, replace(PLAN, thresholds=(90.0, 80.0)), 9))
    scene.take(KEY.sign(TOPIC, PLAN, 8))


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', '{"a": [-1, "b"]}', "x" * 100_000])
def test_a_damaged_file_is_told_and_written_anew(tmp_path, content):
    path, told = tmp_path / "p", []
    path.write_text(content)
    seals = PlanSeals([KEY.public], path, told.append)
    assert "damaged" in told[0].what
    seals.obeyed(seals.check(TOPIC, KEY.sign(TOPIC, PLAN, 7)))
    PlanSeals([KEY.public], path, told.append)
    assert len(told) == 1


def test_a_disk_that_takes_nothing_is_told_and_plans_are_obeyed(tmp_path):
    (tmp_path / "file").write_text("")
    told = []
    seals = PlanSeals([KEY.public], tmp_path / "file" / "p", told.append)
    seals.obeyed(seals.check(TOPIC, KEY.sign(TOPIC, PLAN, 7)))
    assert "older plans would be obeyed again" in told[-1].what
    with pytest.raises(RemoteProtocolError, match="replay"):
        seals.check(TOPIC, KEY.sign(TOPIC, PLAN, 6))
