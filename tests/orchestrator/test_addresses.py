"""What an orchestrator reads, and what it publishes where."""

from __future__ import annotations

from orchestrator_samples import SITE

from distree import topics
from distree.messages.codec import decode
from distree.messages.member import Call
from distree.messages.site import Claim
from distree.topics import Kind
from orchestrator import addresses


def test_an_orchestrator_reads_audits_only_of_what_it_tunes_and_births_only_where_asked():
    read = [topic for topic, _ in addresses.subscriptions(SITE, ("one", "two"), ("two",), None)]
    assert {topics.plan(SITE, "one"), topics.plan(SITE, "two"), topics.label(SITE, "two")} <= set(read)
    assert topics.label(SITE, "one") not in read
    assert topics.of_origin(SITE, "one", Kind.AUDIT, "+") not in read
    births = addresses.subscriptions(SITE, ("one", "two"), ("two",), "homeassistant/status")
    assert [topic for topic, _ in births] == [*read, "homeassistant/status"]


def test_a_call_names_who_calls_on_a_topic_of_its_own_and_is_not_retained():
    call = addresses.call(SITE, "fashion", "a1")
    address = topics.parse(call.topic)
    assert (address.kind, address.pipeline, address.sender) == (Kind.CALL, "fashion", "a1")
    assert decode(Call, call.payload) == Call(caller="a1")
    assert not call.delivery.retain


def test_the_will_is_the_claim_taken_back():
    back = addresses.claim(SITE, "a1", running=False)
    assert addresses.will_of(SITE, "a1") == (back.topic, back.payload)
    assert decode(Claim, back.payload) == Claim(orchestrator="a1", running=False)
    assert back.delivery.retain
