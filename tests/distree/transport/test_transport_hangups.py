"""Which message makes a broker hang up: brokers of every kind, as a function of what they hang up on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from distree.lanes import Lane
from distree.transport.hangups import ALONE, AT_ONCE_S, MAX_STRIKES, RETRY_S, HangupCause, HangupTracker
from distree.transport.negotiation import Handshake, Subscriptions
from distree.transport.outbox import Outbox, Publication

TRIAL = b"of no meaning"
Hates = Callable[[Publication, int, bool], bool]
"""Whether a broker hangs up on a message, at a QoS, retained or not."""


class Line:
    """Sends what is offered over connections that a broker ends as it likes, the way the transport does."""

    def __init__(self, hates: Hates, *, trial: bytes = TRIAL) -> None:
        self.hates = hates
        self.hangups = HangupTracker(trial)
        self.outbox = Outbox()
        self.now = 0.0
        self.causes: list[HangupCause] = []
        self.taken: list[Publication] = []
        self.hang_ups = 0

    def offer(self, topic: str, nbytes: int = 10, *, retain: bool = False) -> bool:
        made = Publication(topic, bytes(nbytes - len(topic)), retain=retain, token=topic, lane=Lane.OWED)
        if self.hangups.refuses(topic, nbytes, self.now) is not None:
            return False
        self.hangups.mark_retry(made)
        self.outbox.put(made)
        return True

    def run(self) -> None:
        """Send until nothing is left; a broker that hangs up is dialled again a second later."""
        for _ in range(100):
            if not self.connect():
                return
            self.hang_ups += 1
            self.now += 1.0
        raise AssertionError("it never ends")

    def connect(self) -> bool:
        """One connection: True if it ended by a hang-up."""
        while self.outbox or self.hangups.trials:
            under_way: list[Publication] = []
            while len(under_way) < 8:
                one = (
                    self.hangups.trials.popleft()
                    if self.hangups.trials and not under_way
                    else self.outbox.pop(self.now)
                )
                if one is None:
                    break
                if under_way and max(one.losses, under_way[0].losses) >= ALONE:
                    self.outbox.put_back([one])
                    break
                if not one.strikes and self.hangups.refuses(one.topic, one.size, self.now):
                    self.outbox.drop(one)
                    continue
                one.alone_at, one.mark = self.now, self.hangups.mark
                under_way.append(one)
            for index, one in enumerate(under_way):
                qos = 1 if self.hangups.takes_qos_1 else 0
                if self.hates(one, qos, one.retain and self.hangups.retains):
                    self.lose(under_way[index:])
                    return True
                self.taken.append(one)
                if qos:
                    self.note(self.hangups.passed(one, self.now))
                    while self.hangups.doubted:
                        self.outbox.drop(self.hangups.doubted.pop())
        return False

    def lose(self, under_way: list[Publication]) -> None:
        again, given_up, cause = self.hangups.lost(under_way, self.now)
        self.outbox.put_back(again)
        for one in given_up:
            self.outbox.drop(one)
        self.note(cause)

    def note(self, cause: HangupCause | None) -> None:
        if cause is not None:
            self.causes.append(cause)

    def delivered(self) -> list[str]:
        return [one.topic for one in self.taken if one.trial != "size"]


def of_topic(topic: str) -> Hates:
    return lambda item, _qos, _retain: item.topic == topic


def above(nbytes: int) -> Hates:
    return lambda item, _qos, _retain: item.size > nbytes


@pytest.mark.parametrize("nbytes", [10, 900], ids=["small", "larger than what passed"])
def test_a_topic_is_found_out_and_the_rest_goes_on(nbytes: int) -> None:
    line = Line(of_topic("bad"))
    for index in range(20):
        line.offer(f"good{index}", 100)
        if index == 7:
            line.offer("bad", nbytes)
    line.run()
    assert sorted(line.delivered()) == sorted(f"good{index}" for index in range(20))
    assert [(cause.why, cause.topic) for cause in line.causes] == [("topic", "bad")]
    assert line.hang_ups <= 5
    assert list(line.outbox.casualties) == ["bad"]
    assert not line.offer("bad", 5)
    assert line.offer("good", 5000)


def test_a_size_is_found_out_and_larger_ones_are_refused_on_every_topic() -> None:
    line = Line(above(1500))
    for topic, nbytes in (("a", 700), ("b", 1800), ("c", 400)):
        line.offer(topic, nbytes)
    line.run()
    assert line.delivered() == ["a", "c"]
    (cause,) = line.causes
    assert (cause.why, cause.nbytes, cause.passed) == ("size", 1800, 700)
    assert not line.offer("d", 1800)
    assert not line.offer("b", 1600), "one of that topic that is larger than what has passed"
    assert line.offer("d", 1400)
    line.run()
    assert line.delivered() == ["a", "c", "d"]


def test_retained_messages_are_found_out_and_sent_without() -> None:
    line = Line(lambda _item, _qos, retain: retain)
    for topic in ("state", "meta", "plan"):
        line.offer(topic, 200, retain=True)
    line.offer("result", 300)
    line.run()
    assert sorted(line.delivered()) == ["meta", "plan", "result", "state"]
    assert not line.outbox.casualties
    assert [cause.why for cause in line.causes] == ["retained"]
    assert not line.hangups.retains


def test_qos_1_is_found_out_and_done_without() -> None:
    line = Line(lambda _item, qos, _retain: qos == 1)
    for topic in ("state", "meta", "result"):
        line.offer(topic, 200, retain=topic != "result")
    line.run()
    assert sorted(line.delivered()) == ["meta", "result", "state"]
    assert not line.outbox.casualties
    assert [cause.why for cause in line.causes][-1] == "qos"
    assert not line.hangups.takes_qos_1
    assert line.hang_ups < 12


def test_a_broker_that_was_mended_is_believed_after_a_while() -> None:
    line = Line(of_topic("bad"))
    line.offer("good")
    line.offer("bad")
    line.run()
    line.now += RETRY_S + 1
    assert line.offer("bad")
    line.run()
    before = line.hang_ups
    assert line.causes == line.causes[:1], "said once"
    assert not line.offer("bad")
    line.now += RETRY_S + 1
    assert not line.offer("bad"), "a confirmed cause holds twice as long"
    line.now += RETRY_S
    line.hates = lambda _item, _qos, _retain: False
    assert line.offer("bad")
    line.run()
    assert line.hang_ups == before
    assert "bad" in line.delivered()
    assert line.offer("bad")
    assert not line.hangups.refusals


def test_a_network_that_fails_blames_nobody() -> None:
    """Losses that come some time after the sending, or with several messages under way, prove nothing."""
    tracker, item = HangupTracker(), Publication("t", b"x", token="t", lane=Lane.OWED)
    for _ in range(50):
        item.alone_at = 0.0
        again, given_up, cause = tracker.lost([item], AT_ONCE_S + 1)
        assert (again, given_up, cause) == ([item], [], None)
    others = [Publication(f"o{index}", b"") for index in range(3)]
    for _ in range(50):
        assert tracker.lost(others, 0.0) == (others, [], None)


def test_what_is_alone_needs_more_than_one_strike() -> None:
    tracker, item = HangupTracker(), Publication("t", b"x")
    losses = 0
    while tracker.lost([item], 0.0)[0]:
        losses += 1
    assert losses == 2 + MAX_STRIKES - 1


def test_what_goes_out_unacknowledged_is_suspected_after_two_hang_ups_and_cleared_when_it_passes() -> None:
    tracker = HangupTracker()
    for _ in range(2):
        assert not tracker.suspects("telemetry")
        tracker.sent_at_0("telemetry")
        tracker.lost([], 0.0)
    assert tracker.suspects("telemetry")
    item = Publication("telemetry", b"x")
    item.mark = tracker.mark
    tracker.passed(item, 0.0)
    assert not tracker.suspects("telemetry")
    # What the broker acknowledges proves what went before it.
    for _ in range(5):
        tracker.sent_at_0("telemetry")
        proof = Publication("other", b"x")
        proof.mark = tracker.mark
        tracker.passed(proof, 0.0)
        tracker.lost([], 0.0)
    assert not tracker.suspects("telemetry")


# ---------------------------------------------------------------- greetings and filters


def shaken(takes: Callable[[str, bool], bool], attempts: int = 20) -> tuple[Handshake, list[tuple[str, bool]]]:
    handshake, tried = Handshake(("5", "3.1.1"), has_will=True), []
    for _ in range(attempts):
        tried.append((handshake.version, handshake.with_will))
        if not takes(*tried[-1]):
            handshake.unanswered()
        elif handshake.answered() == "go":
            return handshake, tried
    raise AssertionError(tried)


def test_a_filter_that_was_left_out_is_tried_again_after_longer_and_longer() -> None:
    filters, now = Subscriptions([("bad", 1), ("good", 1)], 1), 0.0
    for lasts_s in (RETRY_S, 2 * RETRY_S, 4 * RETRY_S):
        while "bad" not in filters.without:
            filters.begin()
            while asked := filters.ask():
                if asked[0][0] == "bad":
                    filters.unanswered(now)
                    break
                filters.answered([None])
        filters.begin()
        filters.try_again(now + lasts_s - 1.0)
        assert filters.ask(for_more=True) == [("good", 1)]
        filters.answered([None])
        now += lasts_s
        filters.try_again(now)
        assert not filters.without
    assert filters.ask() == [("bad", 1)]
    filters.answered([None])
    assert not filters.without


def test_the_usual_broker_is_connected_to_at_once() -> None:
    assert shaken(lambda _version, _will: True)[1] == [("5", True)]


def test_a_broker_that_closes_on_mqtt_5_is_greeted_in_3_1_1() -> None:
    handshake, tried = shaken(lambda version, _will: version == "3.1.1")
    assert tried == [("5", True), ("5", True), ("3.1.1", True), ("5", True), ("3.1.1", True)]
    handshake.unanswered()
    assert handshake.version == "3.1.1"


@pytest.mark.parametrize("versions", [("5", "3.1.1"), ("3.1.1",)])
def test_a_broker_that_closes_on_a_will_is_greeted_without_after_one_more_try(versions: tuple[str, ...]) -> None:
    handshake, tried = shaken(lambda version, will: version in versions and not will)
    assert tried[-2:] == [(versions[0], True), (versions[0], False)]
    assert not handshake.with_will
    handshake.unanswered()
    assert not handshake.with_will


@pytest.mark.parametrize("tries", range(1, 9))
def test_a_broker_that_was_only_slow_to_start_is_spoken_to_in_mqtt_5_with_the_will(tries: int) -> None:
    calls = Counter[str]()

    def takes(_version: str, _will: bool) -> bool:
        calls["all"] += 1
        return calls["all"] > tries

    handshake, tried = shaken(takes)
    assert tried[-1] == ("5", True)
    assert (handshake.version, handshake.with_will) == ("5", True)


def subscribe(filters: Subscriptions, hates: Callable[[list[str]], bool]) -> tuple[list[str], int]:
    """Return what is subscribed to in the end, and how many connections it took."""
    for connections in range(1, 20):
        filters.begin()
        done: list[str] = []
        while asked := [name for name, _ in filters.ask()]:
            if hates(asked):
                filters.unanswered(0.0)
                break
            done += asked
        else:
            return done, connections
    raise AssertionError("never")


ALL = [(f"f{index}", 1) for index in range(20)]


def test_filters_go_a_few_at_a_time() -> None:
    assert subscribe(Subscriptions(ALL, 8), lambda asked: len(asked) > 8) == ([name for name, _ in ALL], 1)


def test_fewer_at_a_time_are_asked_for_where_that_is_what_it_takes() -> None:
    assert subscribe(Subscriptions(ALL, 8), lambda asked: len(asked) > 1) == ([name for name, _ in ALL], 2)


def test_the_one_that_is_hung_up_on_is_done_without() -> None:
    filters = Subscriptions(ALL, 8)
    done, connections = subscribe(filters, lambda asked: "f11" in asked)
    assert done == [name for name, _ in ALL if name != "f11"]
    assert filters.without == {"f11"}
    assert connections == 4


def test_filters_that_are_added_come_after_those_that_are_needed() -> None:
    filters = Subscriptions(ALL[:3], 2)
    filters.begin()
    assert filters.add([("more/1", 2), ("more/2", 0), ("more/3", 1)])
    assert filters.ask() == [("f0", 1), ("f1", 1)]
    assert filters.ask() == [("f2", 1)]
    assert filters.ask() == []
    assert filters.ask(for_more=True) == [("more/1", 1), ("more/2", 0)], "QoS 2 counts as 1"
    assert filters.add([("more/1", 1), ("f0", 1)]), "the third is still to be asked for"
    assert filters.ask(for_more=True) == [("more/3", 1)]
    assert not filters.add([("more/1", 1), ("f0", 1)])
    assert filters.ask(for_more=True) == [], "none is asked for twice"
    filters.begin()
    assert [filters.ask(), filters.ask()] == [[("f0", 1), ("f1", 1)], [("f2", 1)]]
    assert len(filters.ask(for_more=True)) == 2, "on the next connection all are"


def test_a_filter_that_is_still_waiting_is_forgotten() -> None:
    filters = Subscriptions(ALL[:1], 1)
    filters.begin()
    filters.ask()
    filters.add([("more/1", 1), ("more/2", 1)])
    filters.ask(for_more=True)
    assert filters.remove(["f0", "more/1", "more/2", "never"]) == ["f0", "more/1"], "the broker knows of no other"
    assert filters.ask(for_more=True) == []
    filters.begin()
    assert filters.ask(for_more=True) == []


def test_an_added_filter_that_may_have_been_hung_up_on_goes_first_and_alone() -> None:
    filters = Subscriptions(ALL[:2], 8)
    filters.add([(f"more/{index}", 1) for index in range(3)])
    filters.begin()
    filters.ask()
    assert len(filters.ask(for_more=True)) == 3
    filters.add([("late", 1)])
    assert filters.unanswered(0.0) is None
    filters.begin()
    asked = []
    while filters.ask():
        asked += filters.asked
        assert len(filters.asked) == 1
        if filters.asked == [("more/1", 1)]:
            break
        filters.answered([None])
    assert [name for name, _ in asked] == ["f0", "f1", "more/0", "more/1"]
    assert filters.unanswered(0.0) is None, "once may be the network"
    filters.begin()
    while filters.ask() != [("more/1", 1)]:
        filters.answered([None])
    assert filters.unanswered(0.0) == "more/1"
    filters.begin()
    first = []
    while filters.ask():
        first += filters.asked
        filters.answered([None])
    assert [name for name, _ in first] == ["f0", "f1", "more/2"], "what was not under way need not hurry"
    assert filters.ask(for_more=True) == [("more/0", 1)]


def test_one_loss_now_and_another_long_after_prove_nothing() -> None:
    filters = Subscriptions([], 8)
    filters.add([("more", 1)])
    for _ in range(5):
        filters.begin()
        filters.ask(for_more=True)
        assert filters.unanswered(0.0) is None
        filters.begin()
        filters.ask()
        assert filters.answered([None]) == {"more": None}
    assert not filters.without
