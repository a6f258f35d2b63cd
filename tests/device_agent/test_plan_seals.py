"""What a board that knows its orchestrator's key makes of plans: those that are signed with it, and no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from plan_scene import PLAN, TOPIC
from plan_scene import PlanScene as Scene

from device_agent.plan_seals import PlanSeals
from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.codec import encode
from distree.signing import SigningKey

pytest.importorskip("cryptography")

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
