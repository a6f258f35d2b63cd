"""By what plans are told apart."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace

import msgpack
import pytest
from message_samples import WIDE_PLAN

from distree.messages.codec import decode, encode
from distree.messages.plan import MaskedThresholds, Plan, plan_hash, same_decision
from distree.thresholds import NEVER

PLAN = replace(WIDE_PLAN, thresholds=(0.5, NEVER), audit_rate=0.05, rest_s=(0.002, 1.0), reason="why", author="who")

OTHERS = {
    "pipeline": "other",
    "epoch": 8,
    "model": "other",
    "revision": "ba9876543210",
    "criterion": "entropy",
    "thresholds": (0.5, 0.25),
    "masked": PLAN.masked[:1],
    "audit_rate": 0.06,
    "rest_s": (0.002, 2.0),
    "reason": "another",
    "author": "somebody",
    "signed": bytes(80),
}
DECIDES_NOTHING = {"epoch", "reason", "author", "signed"}


def test_every_field_is_tried():
    assert OTHERS.keys() == {field.name for field in fields(Plan)}


@pytest.mark.parametrize("name", OTHERS)
def test_the_hash_is_over_all_that_a_board_does_by_a_plan(name):
    other = replace(PLAN, **{name: OTHERS[name]})
    assert (plan_hash(other) == plan_hash(PLAN)) is (name in DECIDES_NOTHING)
    assert same_decision(other, PLAN) is (name in DECIDES_NOTHING | {"audit_rate", "rest_s"})


def test_the_hash_is_what_its_description_says():
    masked = [[[0.0], [0.75, 0.5]], [[0.0, 2.0], [1.0, 0.5]]]
    content = ["fashion", "fashion", "0123456789ab", "margin", [0.5, 1e300], masked, 0.05, [0.002, 1.0]]
    assert plan_hash(PLAN) == hashlib.sha256(msgpack.packb(content)).hexdigest()[:16]


def test_the_hash_survives_the_network():
    rough = replace(PLAN, thresholds=(1, -0.0), masked=(MaskedThresholds(missing=(1,), thresholds=(0, 1)),))
    assert plan_hash(decode(Plan, encode(rough))) == plan_hash(rough)
    assert plan_hash(replace(rough, thresholds=(1.0, 0.0))) == plan_hash(rough)
