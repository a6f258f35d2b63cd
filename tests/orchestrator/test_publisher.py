"""What the broker does not take is told, once in a while, and ends nothing."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from distree.errors import LocalProtocolError, Problem
from distree.lanes import Lane
from distree.topics import Delivery
from orchestrator.addresses import Outgoing
from orchestrator.publisher import REFUSED_INTERVAL_S, Publisher

NOW = [0.0]


def message(topic: str = "t") -> Outgoing:
    return Outgoing(
        topic=topic, payload=b"x", delivery=Delivery(qos=1, retain=False, content_type=None, lane=Lane.LOSSY)
    )


@pytest.fixture
def transport() -> SimpleNamespace:
    NOW[0] = 0.0
    return SimpleNamespace(online=True, last_error=None, notices=deque(), sizes=iter(range(1000)))


@pytest.fixture
def publisher(transport: Any) -> Publisher:
    def refuse(topic: str, _payload: bytes, **_: object) -> None:
        raise LocalProtocolError("size", f"a message of {next(transport.sizes)} bytes on {topic}", "raise the limit")

    transport.publish = refuse
    return Publisher(transport, lambda: NOW[0])


def test_a_message_that_is_too_large_for_the_broker_ends_nothing_and_is_told_once_in_a_while(
    publisher: Publisher,
) -> None:
    for number in range(10):
        publisher.publish(message())
        assert len(publisher.problems()) == (number == 0), "whatever its size"
    publisher.publish(message("another"))
    assert publisher.problems() == ["broker: a message of 10 bytes on another; raise the limit"]
    NOW[0] = REFUSED_INTERVAL_S
    publisher.publish(message())
    assert publisher.problems() == ["broker: a message of 11 bytes on t; raise the limit (and 9 times before)"]


def test_two_topics_that_are_refused_in_turns_fill_no_log(publisher: Publisher, transport: Any) -> None:
    told = []
    for number in range(20):
        transport.last_error = Problem(f"the broker refuses publishes on {number % 2}", "allow it")
        told += publisher.problems()
    assert len(told) == 2


def test_each_reason_why_there_is_no_connection_is_told(publisher: Publisher, transport: Any) -> None:
    transport.online = False
    for what, is_new in (("nothing listens", True), ("nothing listens", False), ("no login", True)):
        transport.last_error = Problem(what, "do something")
        assert publisher.problems() == ([f"broker: {what}; do something"] if is_new else [])
    publisher.lost(Problem("gone", "wait"))
    transport.last_error = Problem("gone", "wait")
    assert publisher.problems() == [], "that was said"


def test_what_the_broker_does_not_support_is_told(publisher: Publisher, transport: Any) -> None:
    transport.notices = deque([Problem("no retained messages", "allow them")])
    assert publisher.problems() == ["broker: no retained messages; allow them"]
    assert not transport.notices
