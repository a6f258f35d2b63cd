"""What an agent says of plans, and how soon it reports which one it follows."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from plan_scene import PLAN, PlanScene

from distree.errors import RemoteProtocolError
from distree.node import Acknowledge


@pytest.fixture
def scene(caplog):
    caplog.set_level(logging.INFO)
    return PlanScene()


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


def test_plans_that_change_all_the_time_fill_no_log(scene, caplog):
    for epoch in range(1, 500):
        scene.take(replace(PLAN, epoch=epoch))
    assert scene.node.plan.epoch == 499
    assert 5 < len(caplog.messages) < 50


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
