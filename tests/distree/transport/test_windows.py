"""The outgoing and the incoming half of a connection, without a socket."""

from __future__ import annotations

import math
from collections import deque

import pytest

from distree.broker_settings import BrokerSettings
from distree.errors import LocalProtocolError, Problem
from distree.lanes import Lane
from distree.transport import packets
from distree.transport.hangups import ALONE, MAX_STRIKES
from distree.transport.limits import Limits
from distree.transport.outbox import Outbox, Publication
from distree.transport.packets import Published, puback
from distree.transport.receive_window import ReceiveWindow
from distree.transport.send_window import ACKNOWLEDGED_S, POSTPONED_S, SendWindow


def sender() -> SendWindow:
    return SendWindow(BrokerSettings(), Limits(), Outbox(), b"of no meaning", deque())


def message(
    topic: str, *, retain: bool = False, expires_at: float | None = None, lane: Lane = Lane.OWED
) -> Publication:
    return Publication(topic, b"x", retain, expires_at=expires_at, token=topic, lane=lane)


def drain(half: SendWindow, now: float = 0.0) -> list[str]:
    """Send all that may go; return the topics."""
    sent = []
    while (item := half.take_next(now)) is not None:
        half.put_under_way(item, len(half.under_way) + 1, now, None)
        sent.append(item.topic)
    return sent


def parse(packet: bytes, *, is_mqtt5: bool = True) -> Published:
    found = packets.frame(packet, 0)
    assert found is not None
    return packets.parse_publish(packet[0], packet[found[0] : found[1]], is_mqtt5=is_mqtt5)


def test_a_message_goes_out_as_the_broker_takes_it() -> None:
    half = sender()
    parsed = parse(half.put_under_way(message("a", retain=True), 7, 0.0, 2.5))
    assert (parsed.topic, parsed.payload, parsed.retain, parsed.mid) == ("a", b"x", True, 7)
    half.limits.learn(None, is_mqtt5=False)
    half.limits.retains = False
    parsed = parse(half.put_under_way(message("b", retain=True), 8, 0.0, 2.5), is_mqtt5=False)
    assert (parsed.payload, parsed.retain) == (b"x", False)
    assert list(half.under_way) == [7, 8]
    half.limits.takes_qos_1 = False
    assert not half.takes_qos_1
    assert parse(half.put_under_way(message("c"), None, 0.0, None), is_mqtt5=False).mid is None
    assert list(half.under_way) == [7, 8], "nobody will acknowledge it"


def test_the_window_holds_what_waits_and_what_waits_goes_first() -> None:
    half = sender()
    half.limits.window = 2
    for topic in "abc":
        half.outbox.put(message(topic))
    assert not half.has_room(message("d")), "others wait already"
    assert drain(half) == ["a", "b"]
    assert not half.has_room(message("d"))
    settled = half.on_puback(1, 0.0)
    assert settled is not None
    assert settled.topic == "a"
    assert half.on_puback(1, 0.0) is None, "once"
    assert half.take_next(0.0) is not None
    assert not half.idle
    assert half.on_puback(2, 0.0) is not None
    assert half.idle
    assert half.has_room(message("d"))


def test_a_result_that_the_broker_has_no_room_for_is_sent_again_and_again_and_told_once() -> None:
    half = sender()
    half.outbox.put(message("result", lane=Lane.OWED))
    now = 0.0
    for _ in range(3):
        assert drain(half, now) == ["result"]
        assert half.on_puback(next(iter(half.under_way)), now, packets.QUOTA_EXCEEDED) is None
        assert not half.idle
        assert half.tick(now + POSTPONED_S / 2) is None
        assert drain(half, now + POSTPONED_S / 2) == [], "not at once"
        now += POSTPONED_S
        half.tick(now)
    assert [str(notice) for notice in half._notices] == [
        "127.0.0.1:1883 refuses publishes on result (quota exceeded), so nobody receives what is sent there; "
        "raise the limit in the broker, or have clients send less"
    ]
    drain(half, now)
    settled = half.on_puback(next(iter(half.under_way)), now)
    assert settled is not None
    assert settled.topic == "result"
    assert half.idle


def test_a_postponed_result_survives_the_connection() -> None:
    half = sender()
    half.outbox.put(message("result", lane=Lane.OWED))
    drain(half)
    half.on_puback(next(iter(half.under_way)), 0.0, packets.QUOTA_EXCEEDED)
    assert half.oldest_since() == math.inf, "it was not handed over with a time"
    half.lost(1.0)
    assert drain(half, 1.0) == ["result"]


@pytest.mark.parametrize(("lane", "code"), [(Lane.WORK, packets.QUOTA_EXCEEDED), (Lane.OWED, 0x87)])
def test_other_refusals_are_final(lane: Lane, code: int) -> None:
    half = sender()
    half.outbox.put(message("a", lane=lane))
    drain(half)
    assert half.on_puback(next(iter(half.under_way)), 0.0, code) is not None
    assert half.idle


def test_a_broker_that_acknowledges_nothing_is_noticed_and_a_slow_one_is_not() -> None:
    half = sender()
    half.outbox.put(message("a"))
    drain(half, 10.0)
    assert half.tick(10.0 + ACKNOWLEDGED_S) is None
    half.outbox.put(message("b"))
    drain(half, 50.0)
    half.on_puback(next(iter(half.under_way)), 60.0)
    assert half.tick(60.0 + ACKNOWLEDGED_S) is None, "it has acknowledged something"
    assert "has acknowledged no publish for 60 s" in str(half.tick(60.1 + ACKNOWLEDGED_S))
    half.on_puback(next(iter(half.under_way)), 130.0)
    assert half.tick(1000.0) is None, "nothing is owed"


def test_what_has_expired_is_given_up_on_the_way() -> None:
    half = sender()
    half.outbox.put(message("stale", expires_at=1.0))
    half.outbox.put(message("fresh", expires_at=9.0))
    assert drain(half, now=2.0) == ["fresh"]
    assert list(half.outbox.casualties) == ["stale"]


def test_what_was_under_way_comes_again_before_all_else_and_twice_lost_goes_alone() -> None:
    half = sender()
    for topic in "abc":
        half.outbox.put(message(topic))
    assert drain(half) == ["a", "b", "c"]
    half.lost(10.0)
    half.outbox.put(message("d"))
    item = half.take_next(11.0)
    assert item is not None
    packet = half.put_under_way(item, 1, 11.0, None)
    assert packet[0] & 0x08, "it is marked as a repetition"
    assert drain(half, 11.0) == ["b", "c", "d"]
    half.lost(20.0)
    assert drain(half, 21.0) == ["a"]
    assert half.alone
    assert half.wants_acknowledged("any"), "so that nothing else is to blame"
    assert not half.has_room(message("e"))
    assert half.on_puback(1, 21.0) is not None
    assert not half.alone


def test_what_the_broker_hangs_up_on_is_given_up_said_and_refused() -> None:
    half = sender()
    notices = half._notices
    half.outbox.put(message("good"))
    drain(half)
    half.on_puback(1, 0.0)
    half.outbox.put(message("bad"))
    now = 0.0
    for _ in range(ALONE + MAX_STRIKES + 2):
        now += 1.0
        drain(half, now)
        if not half.under_way:
            break
        half.lost(now)
    assert list(half.outbox.casualties) == ["bad"]
    assert len(notices) == 1
    assert "hangs up on publishes on bad" in notices[0].what
    with pytest.raises(LocalProtocolError, match="refused"):
        half.check("bad", 4, now)
    half.check("good", 5, now)


def hand_over(half: SendWindow, topic: str, now: float, *, qos: int = 1, lane: Lane = Lane.WORK) -> Publication:
    item = half.prepare(topic, b"x", qos, False, None, None, None, lane, now)
    half.outbox.put(item)
    return item


def test_since_when_an_acknowledgement_is_owed() -> None:
    half = sender()
    half.limits.window = 2
    assert half.oldest_since() == math.inf
    hand_over(half, "unowed", 1.0, qos=0)
    assert half.oldest_since() == math.inf, "what is meant for QoS 0 is nobody's due"
    drain(half)
    half.on_puback(1, 0.0)
    for now, (topic, lane) in enumerate(
        [("a", Lane.AUDIT), ("b", Lane.LATEST), ("c", Lane.WORK), ("d", Lane.WORK), ("e", Lane.OWED)], start=10
    ):
        hand_over(half, topic, float(now), lane=lane)
        assert half.oldest_since() == 10.0
    assert drain(half) == ["e", "b"], "what was handed over first need not go first"
    assert half.oldest_since() == 10.0
    half.lost(20.0)
    assert half.oldest_since() == 10.0
    since = []
    while half.under_way or drain(half):
        since.append(half.oldest_since())
        half.on_puback(next(reversed(half.under_way)), 30.0)
        drain(half)
    assert since == [10.0] * 4 + [14.0], "the last to be settled is the first that was sent"
    assert half.oldest_since() == math.inf


def test_without_qos_1_nothing_is_owed() -> None:
    half = sender()
    hand_over(half, "a", 1.0)
    assert half.oldest_since() == 1.0
    half.limits.takes_qos_1 = False
    assert half.oldest_since() == math.inf


def test_a_message_that_is_tried_without_its_flag_is_owed_since_it_was_handed_over() -> None:
    half = sender()
    half.outbox.put(half.prepare("a", b"x", 1, True, None, None, "a", Lane.LATEST, 5.0))
    for now in range(10, 10 + ALONE + MAX_STRIKES):
        drain(half, float(now))
        half.lost(float(now))
    drain(half, 20.0)
    assert [item.trial for item in half.under_way.values()] == ["retained"]
    assert half.oldest_since() == 5.0


def test_a_message_beyond_the_brokers_limit_is_refused() -> None:
    half = sender()
    half.limits.max_packet_bytes = 1000
    half.check("a", 900, 0.0)
    with pytest.raises(LocalProtocolError, match=r"size.*exceeds the packet limit .*, 1,000 bytes"):
        half.check("a", 999, 0.0)
    half.leave()
    with pytest.raises(LocalProtocolError, match="forked"):
        half.check("a", 1, 0.0)


def published(mid: int | None) -> Published:
    return Published(topic="a", payload=b"x", retain=False, mid=mid)


def took(half: ReceiveWindow, mid: int | None) -> object:
    return half.on_publish(published(mid)).token


def test_acknowledgements_go_out_in_the_order_of_arrival() -> None:
    half = ReceiveWindow(deque())
    first, second, third = (took(half, mid) for mid in (1, 2, 3))
    assert half.acknowledge(third) == b""
    assert half.acknowledge(second) == b""
    assert half.acknowledge(first) == puback(1) + puback(2) + puback(3)
    assert half.acknowledge(first) == b"", "once"
    assert half.acknowledge(took(half, None)) == b"", "QoS 0"
    assert half.acknowledge("of no kind") == b""


def test_a_token_of_an_earlier_connection_acknowledges_nothing() -> None:
    half = ReceiveWindow(deque())
    stale = took(half, 1)
    half.early.append(half.on_publish(published(2)))
    half.forget()
    assert not half.early
    fresh = took(half, 1)
    assert half.acknowledge(stale) == b""
    assert half.acknowledge(fresh) == puback(1)


def test_what_is_too_large_is_acknowledged_in_its_turn_and_said_now_and_then() -> None:
    notices: deque[Problem] = deque()
    half = ReceiveWindow(notices)
    first = took(half, 1)
    assert half.skip("big/1", 2_000_000, 2, 100.0) == b""
    assert half.acknowledge(first) == puback(1) + puback(2)
    assert half.skip("big/2", 2_000_000, 3, 110.0) == puback(3)
    assert half.skip("big/3", 2_000_000, None, 120.0) == b""
    assert len(notices) == 1
    half.skip("big/4", 2_000_000, None, 161.0)
    assert len(notices) == 2
    assert "2,000,000 bytes on big/4" in notices[1].what
