"""The in-process broker keeps what MQTT promises, and is the same at each run."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_transport import MemoryBroker, MemoryTransport, matches
from paho.mqtt.client import topic_matches_sub

from distree.errors import BrokerError, LocalProtocolError, Problem
from distree.lanes import Lane
from distree.transport.base import Received, Transport


class Ear:
    def __init__(self, transport: MemoryTransport, *, acknowledge: bool = True) -> None:
        self.transport = transport
        self.acknowledge = acknowledge
        self.events: list[str] = []
        self.messages: list[Received] = []
        self.tokens: list[str] = []
        self.unread_messages: list[tuple[str, bytes]] = []

    def connected(self) -> None:
        self.events.append("connected")

    def disconnected(self, why: Problem) -> None:
        self.events.append(why.what)

    def received(self, message: Received) -> None:
        self.messages.append(message)
        if self.acknowledge:
            self.transport.acknowledge(message.token)

    def published(self, token: str) -> None:
        self.tokens.append(token)

    def given_up(self, token: str) -> None:
        pass

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        self.unread_messages.append((topic, payload))

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]


def join(
    broker: MemoryBroker,
    client_id: str,
    *subscriptions: tuple[str, int],
    acknowledge: bool = True,
    **options: Any,
) -> Ear:
    transport = broker.transport(client_id, **options)
    ear = Ear(transport, acknowledge=acknowledge)
    transport.open(ear, subscriptions)
    transport.connect_now(0)
    return ear


def settle(*ears: Ear) -> None:
    for _ in range(50):
        for ear in ears:
            ear.transport.poll(0)


def test_it_is_a_transport() -> None:
    transport: Transport = MemoryBroker().transport("a")
    assert not transport.online


def test_round_trip_and_published_token() -> None:
    broker = MemoryBroker()
    a, b = join(broker, "a"), join(broker, "b", ("x/#", 1))
    a.transport.publish("x/1", b"one", qos=1, token="t")
    settle(a, b)
    assert b.payloads == [b"one"]
    assert a.tokens == ["t"]
    assert a.events == ["connected"]


def test_retained_message_reaches_a_late_subscriber_once_marked() -> None:
    broker = MemoryBroker()
    a = join(broker, "a", ("r/+", 1))
    a.transport.publish("r/1", b"kept", qos=1, retain=True)
    late = join(broker, "late", ("r/+", 1))
    settle(a, late)
    assert [m.retain for m in a.messages] == [False]
    assert [(m.payload, m.retain) for m in late.messages] == [(b"kept", True)]
    a.transport.publish("r/1", b"", qos=1, retain=True)
    assert broker.retained("r/1") is None


def test_will_is_sent_for_a_dead_client_and_not_for_one_that_leaves() -> None:
    broker = MemoryBroker()
    watcher = join(broker, "w", ("state/#", 1))
    dying = join(broker, "d", will=("state/d", b"lost"))
    leaving = join(broker, "l", will=("state/l", b"lost"))
    leaving.transport.close()
    broker.drop("d")
    settle(watcher)
    assert [m.topic for m in watcher.messages] == ["state/d"]
    assert broker.retained("state/d") == b"lost"
    assert not dying.transport.online
    settle(dying)
    assert dying.events == ["connected", "the connection was dropped", "connected"]


def test_subscriptions_that_are_added_bring_what_is_retained_and_outlive_a_reconnect() -> None:
    broker = MemoryBroker()
    a, b = join(broker, "a"), join(broker, "b", ("own", 1))
    a.transport.publish("s/1", b"kept", qos=1, retain=True)
    b.transport.subscribe([("s/1", 2), ("own", 1)])
    settle(b)
    b.transport.subscribe([("s/1", 1)])
    settle(b)
    assert [(m.payload, m.retain, m.token is not None) for m in b.messages] == [(b"kept", True, True)]
    broker.stop(forget=True)
    settle(b)
    b.transport.subscribe([("t/1", 1)])
    broker.start()
    settle(a, b)
    for topic in ("s/1", "t/1", "own"):
        a.transport.publish(topic, b"new", qos=1)
    settle(b)
    assert [m.topic for m in b.messages] == ["s/1", "s/1", "t/1", "own"]
    b.transport.unsubscribe(["s/1"])
    a.transport.publish("s/1", b"newer", qos=1)
    settle(b)
    assert len(b.messages) == 4


@pytest.mark.parametrize("tells", [True, False])
def test_who_publishes_work_that_nobody_reads_is_told(tells: bool) -> None:
    broker = MemoryBroker(reports_no_subscribers=tells)
    a, b = join(broker, "a"), join(broker, "b", ("w/1", 1))
    a.transport.publish("w/1", b"read", qos=1)
    a.transport.publish("w/2", b"owed", qos=1, lane=Lane.OWED)
    a.transport.publish("w/2", b"not at QoS 0", qos=0)
    b.transport.close()
    a.transport.publish("w/1", b"read later", qos=1)
    broker.expire("a")
    broker.expire("b")
    assert not a.unread_messages, "at the next poll, as all else"
    a.transport.publish("w/1", b"unread", qos=1, token="t")
    broker.stop()
    settle(a)
    a.transport.publish("w/3", b"queued", qos=1)
    broker.start()
    settle(a)
    assert a.unread_messages == ([("w/1", b"unread"), ("w/3", b"queued")] if tells else [])
    assert a.tokens == ["t"], "it is settled all the same"
    assert a.events == ["connected", "the broker stopped", "connected"]


def test_a_broker_that_retains_nothing() -> None:
    broker = MemoryBroker(retains=False)
    a = join(broker, "a", ("r/1", 1), will=("r/will", b"lost"))
    a.transport.publish("r/1", b"passing", qos=1, retain=True)
    settle(a)
    assert a.payloads == [b"passing"]
    broker.drop("a")
    assert broker.retained("r/1") is None
    assert broker.retained("r/will") is None


def test_nothing_is_owed_while_online() -> None:
    broker = MemoryBroker()
    transport = broker.transport("a")
    assert transport.unacknowledged_since() == -math.inf
    a = join(broker, "a")
    a.transport.publish("q", b"x", qos=1)
    assert a.transport.unacknowledged_since() == math.inf


def test_unacknowledged_messages_come_again_after_a_reconnect() -> None:
    broker = MemoryBroker()
    a = join(broker, "a", ("q", 1), acknowledge=False)
    for payload in (b"1", b"2"):
        a.transport.publish("q", payload, qos=1)
    settle(a)
    first = a.messages[0]
    a.transport.acknowledge(first.token)
    broker.drop("a")
    settle(a)
    assert a.payloads == [b"1", b"2", b"2"]
    a.transport.acknowledge(a.messages[1].token)  # of the connection before: means nothing now
    broker.drop("a")
    settle(a)
    assert a.payloads[3:] == [b"2"]


def test_receive_maximum_holds_further_deliveries_back() -> None:
    broker = MemoryBroker()
    a = join(broker, "a", ("q", 1), acknowledge=False, receive_maximum=2)
    for index in range(5):
        a.transport.publish("q", b"%d" % index, qos=1)
    settle(a)
    assert a.payloads == [b"0", b"1"]
    a.transport.acknowledge(a.messages[0].token)
    settle(a)
    assert a.payloads == [b"0", b"1", b"2"]


def test_loss_strikes_qos_0_and_repeats_with_its_seed() -> None:
    def survivors(seed: int) -> list[bytes]:
        broker = MemoryBroker(seed=seed, loss=0.3)
        a = join(broker, "a", ("t", 1))
        for index in range(100):
            a.transport.publish("t", b"%d" % index, qos=0)
        settle(a)
        return a.payloads

    assert survivors(1) == survivors(1)
    assert survivors(1) != survivors(2)
    assert 50 < len(survivors(1)) < 90


def test_loss_at_qos_1_delays_but_loses_nothing() -> None:
    broker = MemoryBroker(seed=3, loss_qos1=0.5)
    a = join(broker, "a", ("t", 1))
    sent = [b"%d" % index for index in range(50)]
    for payload in sent:
        a.transport.publish("t", payload, qos=1)
    settle(a)
    assert sorted(a.payloads) == sorted(sent)
    assert a.payloads != sent


def test_a_stopped_broker_leaves_clients_offline_with_a_bounded_queue() -> None:
    broker = MemoryBroker()
    a = join(broker, "a", ("q", 1), offline_items=3)
    broker.stop()
    settle(a)
    assert not a.transport.online
    with pytest.raises(BrokerError):
        a.transport.connect_now(0)
    for index in range(5):
        a.transport.publish("q", b"%d" % index, qos=1)
    a.transport.publish("q", b"lost", qos=0)
    assert a.transport.offline_dropped == 3
    broker.start()
    settle(a)
    assert a.payloads == [b"2", b"3", b"4"]


def test_offline_queue_is_bounded_in_bytes() -> None:
    transport = MemoryBroker().transport("a", offline_bytes=100)
    for _ in range(5):
        transport.publish("q", bytes(39), qos=1)
    assert transport.offline_dropped == 3


def test_what_the_broker_would_refuse_is_refused_here() -> None:
    a = join(MemoryBroker(max_packet_bytes=10), "a")
    with pytest.raises(LocalProtocolError, match="size"):
        a.transport.publish("topic", bytes(10), qos=1)


def test_a_second_client_of_one_id_takes_over() -> None:
    broker = MemoryBroker()
    first, second = join(broker, "a"), join(broker, "a")
    assert second.transport.online
    assert not first.transport.online
    assert "'a'" in str(first.transport.last_error)


LEVELS = st.lists(st.sampled_from(["a", "b", "$c", "+", "#", ""]), min_size=1, max_size=4)


@given(LEVELS, st.lists(st.sampled_from(["a", "b", "$c", ""]), min_size=1, max_size=4))
def test_filters_match_as_pahos_do(levels: list[str], parts: list[str]) -> None:
    if "#" in levels:
        levels = levels[: levels.index("#") + 1]
    topic_filter, topic = "/".join(levels), "/".join(parts)
    if topic_filter and topic:
        assert matches(topic_filter, topic) == topic_matches_sub(topic_filter, topic)
