"""Lanes: what is owed is never given up, and what is, is counted."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distree.lanes import Lane
from distree.transport.outbox import MAX_LOSSY_ITEMS, MAX_SHED_ITEMS, Outbox, Publication


def item(lane: Lane, topic: str = "t", payload: bytes = b"x", **changes: object) -> Publication:
    return Publication(topic, payload, lane=lane, **changes)  # type: ignore[arg-type]


def emptied(outbox: Outbox, now: float = 0.0) -> list[Publication]:
    taken = []
    while (one := outbox.pop(now)) is not None:
        taken.append(one)
    assert len(outbox) == 0
    return taken


def test_lanes_are_served_in_the_order_of_what_is_owed() -> None:
    outbox = Outbox()
    for lane in reversed(Lane):
        outbox.put(item(lane))
    assert [one.lane for one in emptied(outbox)] == list(Lane)


def test_junk_pushes_nothing_out_but_junk() -> None:
    outbox = Outbox()
    for index in range(500):
        outbox.put(item(Lane.OWED, token=f"r{index}"))
    for _ in range(60_000):
        outbox.put(item(Lane.LOSSY, payload=bytes(300)))
    for index in range(40_000):
        outbox.put(item(Lane.SHED, token=f"s{index}"))
    assert outbox.dropped == {Lane.LOSSY: 60_000 - MAX_LOSSY_ITEMS, Lane.SHED: 40_000 - MAX_SHED_ITEMS}
    assert list(outbox.casualties) == [f"s{index}" for index in range(40_000 - MAX_SHED_ITEMS)]
    assert [one.token for one in emptied(outbox)[:500]] == [f"r{index}" for index in range(500)]


def test_of_a_topic_that_is_retained_the_newest_is_kept_and_the_older_is_no_loss() -> None:
    outbox = Outbox()
    for payload in (b"init", b"ready", b"draining"):
        outbox.put(item(Lane.LATEST, "state", payload, token=payload.decode()))
    outbox.put(item(Lane.LATEST, "meta"))
    assert [(one.topic, one.payload) for one in emptied(outbox)] == [("state", b"draining"), ("meta", b"x")]
    assert list(outbox.casualties) == ["init", "ready"]
    assert not outbox.dropped


def test_what_expired_is_not_sent() -> None:
    outbox = Outbox()
    outbox.put_back([item(Lane.WORK, "again", expires_at=5.0)])
    outbox.put(item(Lane.WORK, "old", expires_at=1.0, token="old"))
    outbox.put(item(Lane.WORK, "new", expires_at=9.0))
    assert [one.topic for one in emptied(outbox, 6.0)] == ["new"]
    assert outbox.dropped == {Lane.WORK: 2}
    assert list(outbox.casualties) == ["old"]


def test_what_was_under_way_goes_first_and_in_its_order() -> None:
    outbox = Outbox()
    outbox.put(item(Lane.OWED, "later"))
    outbox.put_back([item(Lane.LOSSY, "1"), item(Lane.WORK, "2")])
    assert [one.topic for one in emptied(outbox)] == ["1", "2", "later"]


lanes = st.sampled_from(list(Lane))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), lanes, st.integers(0, 3), st.integers(0, 400)),
            st.tuples(st.just("pop"), st.integers(0, 5)),
            st.tuples(st.just("back"), st.integers(1, 3)),
        ),
        max_size=200,
    )
)
def test_every_message_is_sent_or_given_up_and_its_sender_is_told_once(steps: list[tuple[object, ...]]) -> None:
    outbox = Outbox(items=5, nbytes=1000)
    tokens: Counter[str] = Counter()
    popped: list[Publication] = []
    count = 0
    for step in steps:
        match step:
            case ("put", Lane() as lane, int(topic), int(size)):
                count += 1
                outbox.put(item(lane, str(topic), bytes(size), token=f"{count}"))
            case ("pop", int(number)):
                popped += [one for _ in range(number) if (one := outbox.pop(0.0)) is not None]
            case ("back", int(number)):
                outbox.put_back(popped[-number:])
                del popped[-number:]
        assert len(outbox) <= 5 + 8 + count
        assert sum(one.size for one in outbox._lanes[Lane.WORK]) == outbox._bytes[Lane.WORK] <= 1000
    popped += emptied(outbox)
    tokens.update(one.token for one in popped if one.token is not None)
    tokens.update(outbox.casualties)
    assert tokens == Counter(f"{number}" for number in range(1, count + 1))
    assert not outbox.dropped[Lane.OWED]
    assert not outbox.dropped[Lane.LATEST]


@pytest.mark.parametrize("lane", Lane)
def test_the_oldest_of_each_lane_and_of_what_was_sent_before_counts(lane: Lane) -> None:
    outbox = Outbox()
    assert outbox.oldest_since() == math.inf
    for topic, handed_at in (("a", 3.0), ("b", 4.0)):
        made = Publication(topic, b"x", lane=lane)
        made.handed_at = handed_at
        outbox.put(made)
    assert outbox.oldest_since() == 3.0
    first = outbox.pop(0.0)
    assert first is not None
    assert outbox.oldest_since() == 4.0
    outbox.put_back([first])
    assert outbox.oldest_since() == 3.0
