from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orchestrator_samples import plan
from thoroughness import often

from distree.errors import RemoteProtocolError
from distree.messages.limits import EPOCH_STEP, MAX_EPOCH
from distree.messages.plan import next_epoch, plan_hash, same_decision
from orchestrator.planner import (
    ALARM_S,
    CALM_S,
    MAX_REASSERTIONS,
    REASSERT_S,
    SETTLE_S,
    Planner,
    Standing,
    same_content,
)

GARBAGE = RemoteProtocolError("encoding", "not MessagePack", "")
OTHER = plan(thresholds=(0.1, 0.1))
"""What somebody else wants."""


def settle(planner, now_s=0.0):
    planner.connected(now_s)
    return planner.step(now_s + SETTLE_S)


def leading(wanted, **kwargs):
    planner = Planner(wanted, **kwargs)
    planner.published(settle(planner))
    planner.saw(SETTLE_S, planner.wanted)
    return planner


def foreign(epoch, **content):
    return replace(OTHER, epoch=epoch, **content)


def preempted(planner, now_s=1.0):
    """Have others replace a plan until its planner raises the alarm; return the lines that it told."""
    lines = []
    for k in range(MAX_REASSERTIONS + 1):
        lines.append(planner.saw(now_s + k, foreign(planner.wanted.epoch + 1)))
        asserted = planner.step(now_s + k)
        if asserted is not None:
            planner.published(asserted)
            planner.saw(now_s + k, asserted)
    assert planner.standing is Standing.PREEMPTED
    return lines


def test_it_waits_for_the_retained_plan_but_not_for_ever():
    planner = Planner(plan())
    assert planner.step(0.0) is None
    planner.connected(1.0)
    assert planner.step(1.0 + SETTLE_S / 2) is None
    assert planner.step(1.0 + SETTLE_S) == plan(epoch=1)


def test_a_retained_plan_ends_the_wait():
    planner = Planner(plan(epoch=3))
    planner.connected(0.0)
    planner.saw(0.0, plan(epoch=3), retained=True)
    assert planner.step(0.0) == plan(epoch=3)


@pytest.mark.parametrize(
    ("wanted", "highest", "retained", "published"),
    [
        (plan(), 0, None, plan(epoch=1)),
        (plan(), 6, None, plan(epoch=7)),
        (plan(), 0, foreign(4), plan(epoch=5)),
        (plan(), 0, plan(epoch=4), plan(epoch=4)),
        (plan(), 6, plan(epoch=4), plan(epoch=7)),
        (plan(epoch=3), 0, plan(epoch=4), plan(epoch=4)),
        (plan(epoch=3), 0, plan(epoch=2), plan(epoch=3)),
        # What is on the topic is obeyed whatever its number, and so is what replaces it.
        (plan(epoch=3), 0, foreign(3), plan(epoch=3)),
        (plan(epoch=3), 0, foreign(2), plan(epoch=3)),
        (plan(epoch=3), 0, foreign(9), plan(epoch=3)),
        (plan(epoch=3), 8, None, plan(epoch=3)),
        # A store that was lost: its plan had a number that could be anybody's.
        (plan(), 0, foreign(EPOCH_STEP), plan(epoch=1)),
        (plan(), 0, plan(epoch=EPOCH_STEP), plan(epoch=1)),
        (plan(), 0, foreign(EPOCH_STEP - 1), plan(epoch=EPOCH_STEP)),
        (plan(epoch=3), 0, foreign(MAX_EPOCH), plan(epoch=3)),
        # Boards that hold 3 would refuse so much more.
        (plan(epoch=5 + EPOCH_STEP), 0, foreign(3), plan(epoch=1)),
        (plan(), MAX_EPOCH, None, plan(epoch=1)),
    ],
)
def test_the_number_of_the_first_plan(wanted, highest, retained, published):
    planner = Planner(wanted, highest_epoch=highest)
    planner.connected(0.0)
    if retained is not None:
        assert planner.saw(0.1, retained, retained=True) is None
    assert planner.step(SETTLE_S) == published


def test_a_plan_is_published_once_and_again_at_each_connect():
    planner = leading(plan())
    assert planner.step(9.0) is None
    planner.disconnected()
    assert planner.step(10.0) is None
    assert settle(planner, 20.0) == plan(epoch=1)


def test_an_echo_is_no_contradiction():
    planner = Planner(plan())
    planner.published(settle(planner))
    planner.want(plan(thresholds=(0.5, 0.5)))
    planner.published(planner.step(1.0))
    assert planner.saw(1.1, plan(epoch=1)) is None
    assert planner.saw(1.2, plan(epoch=2, thresholds=(0.5, 0.5))) is None
    assert planner.step(1.3) is None


def test_what_was_published_again_just_before_another_is_an_echo_too():
    planner = leading(plan())
    planner.repeated()
    planner.want(plan(thresholds=(0.5, 0.5)))
    planner.published(planner.step(1.0))
    assert planner.saw(1.1, plan(epoch=1)) is None
    assert planner.saw(1.2, planner.wanted) is None
    assert planner.saw(1.3, plan(epoch=1)) is not None


def test_an_own_plan_that_comes_once_more_is_a_replay():
    planner = leading(plan())
    planner.want(plan(thresholds=(0.5, 0.5)))
    planner.published(planner.step(1.0))
    planner.saw(1.1, planner.wanted)
    assert "a foreign plan (epoch 1: max_softmax 0.9 0.8) replaced this one" in planner.saw(2.0, plan(epoch=1))
    assert planner.step(2.0) == plan(epoch=2, thresholds=(0.5, 0.5))


def test_numbers_that_begin_again_do_not_adopt_an_older_one():
    planner = Planner(plan(), highest_epoch=MAX_EPOCH)
    planner.connected(0.0)
    planner.saw(0.1, plan(epoch=10), retained=True)
    planner.published(planner.step(0.2))
    assert planner.wanted.epoch == 1
    assert planner.step(0.3) is None


def test_decisions_are_numbered_and_what_goes_with_them_is_not():
    planner = leading(plan(), highest_epoch=4)
    assert planner.wanted.epoch == 5
    planner.want(replace(planner.wanted, rest_s=(0.1, 0.2)))
    planner.want(replace(planner.wanted, audit_rate=0.5, epoch=0, reason="proved"))
    assert planner.step(1.0) == replace(plan(epoch=5), rest_s=(0.1, 0.2), audit_rate=0.5)
    planner.published(planner.wanted)
    planner.want(plan(thresholds=(0.5, 0.5)))
    assert planner.step(1.0) == plan(epoch=6, thresholds=(0.5, 0.5))
    planner.published(planner.step(1.0))
    # One that was written to the store has its number already.
    planner.want(plan(epoch=9, thresholds=(0.4, 0.4)))
    assert planner.step(1.0).epoch == 9


def test_numbers_of_others_are_passed_over():
    planner = leading(plan())
    planner.saw(1.0, foreign(40))
    assert planner.step(1.0) == plan(epoch=1)
    planner.published(planner.step(1.0))
    planner.want(plan(thresholds=(0.5, 0.5)))
    assert planner.step(2.0).epoch == 41


def test_no_number_is_used_up():
    planner = leading(plan())
    for k in range(1, 5):
        planner.saw(CALM_S * 2 * k, foreign(MAX_EPOCH - k))
        planner.saw(CALM_S * 2 * k, foreign(EPOCH_STEP * k + 1))
        planner.reported(MAX_EPOCH, plan_hash(OTHER))
    planner.want(plan(thresholds=(0.5, 0.5)))
    assert planner.step(CALM_S * 10).epoch == 2
    assert (next_epoch(7), next_epoch(MAX_EPOCH)) == (8, 1)


def test_for_a_board_that_holds_far_less_numbers_begin_anew_once():
    planner = leading(plan(epoch=5 + EPOCH_STEP))
    planner.reported(3, plan_hash(plan()))
    planner.reported(0, plan_hash(OTHER))
    assert planner.step(1.0) is None
    planner.reported(3, plan_hash(OTHER))
    assert planner.step(1.0) == plan(epoch=1)
    planner.published(planner.step(1.0))
    assert planner.highest_epoch == 1
    planner.reported(3, plan_hash(OTHER))
    assert planner.step(2.0) is None


def test_a_foreign_plan_is_overruled_a_few_times_then_the_alarm_is_raised():
    planner = leading(plan())
    lines = preempted(planner)
    assert [line is None for line in lines] == [False, True, True, False]
    assert "replaced this one, which is published again" in lines[0]
    assert lines[-1] == planner.alarm
    assert planner.alarm.startswith("PREEMPTED: this plan was replaced on its topic 4 times, last by a foreign plan")
    assert planner.alarm.endswith("distree orchestrator reset-plan --pipeline fashion")
    assert "(epoch 2: max_softmax 0.1 0.1)" in planner.alarm


def test_who_is_preempted_publishes_its_plan_once_in_a_while_and_says_so():
    planner = leading(plan())
    preempted(planner)
    published, told = [], []
    now_s = 5.0
    while now_s < 5.0 + 2 * CALM_S:
        now_s += 1.0
        if now_s < CALM_S:
            assert planner.saw(now_s, foreign(2)) is None
        asserted = planner.step(now_s)
        if asserted is not None:
            published.append(now_s)
            planner.published(asserted)
        if planner.remind(now_s) is not None:
            told.append(now_s)
    between = [after - before for before, after in pairwise(published)]
    assert min(between) >= REASSERT_S
    assert len(published) >= (CALM_S - 10.0) / (REASSERT_S + 1.0)
    assert len(told) == int(2 * CALM_S // ALARM_S) - 1
    assert (planner.standing, planner.alarm) == (Standing.LEADING, "")


def test_a_preempted_orchestrator_is_still_so_after_a_reconnect():
    planner = leading(plan())
    preempted(planner)
    planner.disconnected()
    assert planner.standing is Standing.OFFLINE
    assert settle(planner, 7.0) is None
    assert planner.standing is Standing.PREEMPTED
    assert planner.step(7.0 + REASSERT_S) == plan(epoch=1)


def test_another_decision_of_one_that_is_preempted_is_published_at_once():
    planner = leading(plan())
    preempted(planner)
    planner.want(plan(thresholds=(0.7, 0.7)))
    published = planner.step(9.0)
    assert same_decision(published, plan(thresholds=(0.7, 0.7)))
    assert published.epoch == 3
    assert planner.alarm


def test_a_reset_ends_the_alarm_and_numbers_from_its_own_epoch():
    planner = leading(plan(epoch=700))
    preempted(planner)
    planner.reset(plan(epoch=1))
    assert (planner.alarm, planner.highest_epoch) == ("", 1)
    assert planner.step(9.0) == plan(epoch=1)
    planner.published(planner.step(9.0))
    planner.want(plan(thresholds=(0.7, 0.7)))
    assert planner.step(9.0).epoch == 2


def test_a_reset_does_not_adopt_the_number_that_the_same_plan_has_on_the_topic():
    planner = leading(plan(epoch=700))
    planner.saw(1.0, plan(epoch=700))
    planner.reset(plan(epoch=1))
    assert planner.step(2.0) == plan(epoch=1)
    planner.published(planner.step(2.0))
    assert (planner.step(3.0), planner.wanted.epoch) == (None, 1)


def test_a_plan_that_was_taken_off_its_topic_is_put_back():
    planner = leading(plan())
    assert planner.saw_garbage(1.0, b"", GARBAGE) == "an empty message replaced this one, which is published again"
    assert planner.step(1.0) == plan(epoch=1)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("signature", "a plan without this orchestrator's signature replaced this one"),
        ("replay", "an earlier plan of its own replaced this one"),
    ],
)
def test_what_is_not_signed_as_it_should_be_is_put_right_and_named(reason, words):
    planner = leading(plan())
    assert words in planner.saw_garbage(1.0, b"x", RemoteProtocolError(reason, "", ""))
    assert planner.step(1.0) == plan(epoch=1)


def test_rare_contradictions_are_overruled_for_ever():
    planner = leading(plan())
    for k in range(3 * MAX_REASSERTIONS):
        planner.saw_garbage((k + 1) * (CALM_S + 1), b"x", GARBAGE)
        assert planner.step((k + 1) * (CALM_S + 1)) == plan(epoch=1)


def test_two_that_want_the_same_agree():
    one, other = leading(plan()), leading(plan(), highest_epoch=7)
    assert one.saw(1.0, other.wanted) is None
    one.published(one.step(1.0))
    assert one.wanted == other.wanted
    assert other.saw(1.1, one.wanted) is None
    assert other.step(1.2) is None


EPOCHS = st.one_of(
    st.integers(1, 12), st.integers(EPOCH_STEP - 2, EPOCH_STEP + 12), st.integers(MAX_EPOCH - 2, MAX_EPOCH)
)
PLANS = st.builds(lambda epoch, t: plan(epoch=epoch, thresholds=(t, t)), EPOCHS, st.sampled_from((0.1, 0.2)))
EVENTS = st.one_of(
    st.tuples(st.just("saw"), PLANS, st.booleans()),
    st.tuples(st.just("want"), PLANS, st.booleans()),
    st.tuples(st.just("reset"), PLANS),
    st.tuples(st.just("reported"), EPOCHS),
    st.tuples(st.sampled_from(("connected", "disconnected", "garbage", "step"))),
)


def play(planner, event, now_s):
    match event:
        case "saw", seen, retained:
            planner.saw(now_s, seen, retained=retained)
        case "want", wanted, is_numbered:
            planner.want(wanted if is_numbered else replace(wanted, epoch=0))
        case "reset", wanted:
            planner.reset(wanted)
        case "reported", epoch:
            planner.reported(epoch, plan_hash(OTHER))
        case ("connected",):
            planner.connected(now_s)
        case ("disconnected",):
            planner.disconnected()
        case ("garbage",):
            planner.saw_garbage(now_s, b"", GARBAGE)


class Board:
    """Holds a plan as `distree.node.exits.Plans` does: see tests/distree/node/test_node.py."""

    def __init__(self):
        self.held = None

    def receive(self, received):
        if self.held is None or received.epoch <= self.held.epoch + EPOCH_STEP:
            self.held = received


@settings(max_examples=often(400))
@given(st.lists(st.tuples(EVENTS, st.floats(0.0, 40.0)), max_size=30), st.integers(0, MAX_EPOCH), PLANS, PLANS)
def test_whatever_came_every_board_obeys_in_the_end(events, highest, wanted, held):
    """After any events boards hold whatever others have published last; the plan wanted is obeyed by all within minutes."""
    planner, now_s = Planner(wanted, highest_epoch=highest), 0.0
    boards = [Board(), Board(), Board()]
    boards[1].held = held
    for event, pause_s in events:
        now_s += pause_s
        play(planner, event, now_s)
        published = planner.step(now_s)
        if event[0] == "saw":
            boards[2].receive(event[1])
        if published is None:
            continue
        assert 1 <= published.epoch <= MAX_EPOCH
        planner.published(published)
        assert planner.step(now_s) is None
        for board in boards[:2]:
            board.receive(published)
    final = plan(thresholds=(0.3, 0.3))
    planner.want(final)
    planner.connected(now_s)
    for _ in range(3):
        now_s += REASSERT_S + CALM_S
        published = planner.step(now_s)
        if published is not None:
            planner.published(published)
        for board in boards:
            board.receive(planner.wanted)
            planner.reported(board.held.epoch, plan_hash(board.held))
    assert all(same_content(board.held, final) for board in boards)
