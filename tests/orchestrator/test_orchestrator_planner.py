from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orchestrator_samples import plan
from thoroughness import often

from orchestrator.planner import (
    CALM_S,
    MAX_EPOCH,
    MAX_REASSERTIONS,
    REPORT_PAUSE_S,
    SETTLE_S,
    Planner,
    Standing,
    same_content,
)


def settle(planner, now_s=0.0):
    planner.connected(now_s)
    return planner.step(now_s + SETTLE_S)


def leading(wanted, **kwargs):
    planner = Planner(wanted, **kwargs)
    planner.published(settle(planner))
    return planner


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
    ("wanted", "floor", "retained", "reported", "published"),
    [
        (plan(), 0, None, 0, plan(epoch=1)),
        (plan(), 6, None, 0, plan(epoch=7)),
        (plan(), 0, plan(epoch=4, thresholds=(0.1, 0.1)), 0, plan(epoch=5)),
        (plan(), 0, plan(epoch=4), 0, plan(epoch=4)),
        (plan(), 0, plan(epoch=0), 0, plan(epoch=1)),
        (plan(epoch=3), 0, plan(epoch=4), 0, plan(epoch=4)),
        (plan(epoch=3), 0, plan(epoch=4), 9, plan(epoch=10)),
        (plan(epoch=3), 0, plan(epoch=3, thresholds=(0.1, 0.1)), 0, plan(epoch=4)),
        (plan(epoch=3), 0, plan(epoch=2, thresholds=(0.1, 0.1)), 0, plan(epoch=3)),
        (plan(epoch=3), 0, None, 3, plan(epoch=3)),
        (plan(epoch=3), 0, None, 8, plan(epoch=9)),
        (plan(epoch=3), 8, None, 0, plan(epoch=9)),
        (plan(epoch=3), 0, None, MAX_EPOCH + 1, plan(epoch=3)),
        (plan(epoch=3), 0, plan(epoch=MAX_EPOCH + 1), 0, plan(epoch=3)),
    ],
)
def test_the_first_epoch_is_above_all_that_was_seen(wanted, floor, retained, reported, published):
    planner = Planner(wanted, floor=floor)
    planner.connected(0.0)
    if retained is not None:
        planner.saw(0.1, retained, retained=True)
    planner.reported(0.1, reported)
    assert planner.step(SETTLE_S) == published


def test_a_plan_is_published_once_and_again_at_each_connect():
    planner = leading(plan())
    assert planner.step(9.0) is None
    planner.disconnected()
    assert planner.step(10.0) is None
    assert settle(planner, 20.0) == plan(epoch=1)


def test_an_echo_is_no_contradiction():
    planner = leading(plan())
    planner.want(plan(epoch=2, thresholds=(0.5, 0.5)))
    planner.published(planner.step(1.0))
    assert planner.saw(1.1, plan(epoch=1)) is None
    assert planner.saw(1.2, plan(epoch=2, thresholds=(0.5, 0.5))) is None
    assert planner.step(1.3) is None


def test_new_wishes_take_their_own_epoch_or_a_higher_one():
    planner = leading(plan(), floor=4)
    planner.want(plan(epoch=9, thresholds=(0.5, 0.5)))
    assert planner.step(1.0) == plan(epoch=9, thresholds=(0.5, 0.5))
    planner.published(planner.wanted)
    planner.want(plan(epoch=2, thresholds=(0.4, 0.4)))
    assert planner.step(1.0) == plan(epoch=10, thresholds=(0.4, 0.4))


def test_a_foreign_plan_is_overruled_a_few_times_then_yielded_to():
    planner, epoch, warnings = leading(plan()), 1, []
    for k in range(MAX_REASSERTIONS):
        warnings.append(planner.saw(float(k), plan(epoch=epoch + 1, thresholds=(0.1, 0.1))))
        asserted = planner.step(float(k))
        assert asserted == plan(epoch=epoch + 2)
        planner.published(asserted)
        epoch = asserted.epoch
    assert [warning is None for warning in warnings] == [False, True, True]
    assert "another orchestrator" in planner.saw(5.0, plan(epoch=epoch + 1, thresholds=(0.1, 0.1)))
    assert planner.standing is Standing.YIELDED
    assert planner.step(6.0) is None
    planner.disconnected()
    assert settle(planner, 7.0) is None


def test_setting_thresholds_ends_a_yielding():
    planner = leading(plan())
    for k in range(MAX_REASSERTIONS + 1):
        planner.saw(float(k), plan(epoch=50 + k, thresholds=(0.1, 0.1)))
    planner.want(plan(epoch=2, thresholds=(0.7, 0.7)))
    assert planner.step(9.0) == plan(epoch=50 + MAX_REASSERTIONS + 1, thresholds=(0.7, 0.7))


def test_rare_contradictions_are_overruled_for_ever():
    planner = leading(plan())
    for k in range(3 * MAX_REASSERTIONS):
        planner.saw_garbage((k + 1) * (CALM_S + 1))
        assert planner.step((k + 1) * (CALM_S + 1)) == plan(epoch=1)


def test_two_that_want_the_same_agree():
    one, other = leading(plan()), leading(plan(), floor=7)
    assert one.saw(1.0, other.wanted) is None
    one.published(one.step(1.0))
    assert one.wanted == other.wanted
    assert other.saw(1.1, one.wanted) is None
    assert other.step(1.2) is None


def test_reports_above_the_plan_lift_it_but_not_at_every_report():
    planner = leading(plan())
    planner.reported(1.0, 5)
    planner.published(planner.step(1.0))
    assert planner.wanted.epoch == 6
    planner.reported(2.0, 100)
    assert planner.step(2.0) is None
    planner.reported(1.0 + REPORT_PAUSE_S, 100)
    assert planner.step(50.0).epoch == 101


EPOCHS = st.one_of(st.integers(0, 12), st.integers(MAX_EPOCH - 1, MAX_EPOCH + 2))
PLANS = st.builds(lambda epoch, t: plan(epoch=epoch, thresholds=(t, t)), EPOCHS, st.sampled_from((0.1, 0.2)))
EVENTS = st.one_of(
    st.tuples(st.just("saw"), PLANS, st.booleans()),
    st.tuples(st.just("want"), PLANS),
    st.tuples(st.just("reported"), EPOCHS),
    st.tuples(st.sampled_from(("connected", "disconnected", "garbage", "step"))),
)


def play(planner, event, now_s):
    match event:
        case "saw", seen, retained:
            planner.saw(now_s, seen, retained=retained)
        case "want", wanted:
            planner.want(wanted)
        case "reported", epoch:
            planner.reported(now_s, epoch)
        case ("connected",):
            planner.connected(now_s)
        case ("disconnected",):
            planner.disconnected()
        case ("garbage",):
            planner.saw_garbage(now_s)


@settings(max_examples=often(400))
@given(st.lists(st.tuples(EVENTS, st.floats(0.0, 40.0)), max_size=30), EPOCHS, PLANS)
def test_whatever_comes_epochs_only_grow_and_never_name_two_contents(events, floor, wanted):
    planner, last, now_s = Planner(wanted, floor=floor), None, 0.0
    for event, pause_s in events:
        now_s += pause_s
        play(planner, event, now_s)
        published = planner.step(now_s)
        if published is None:
            continue
        assert published.epoch >= 1
        assert last is None or published.epoch > last.epoch or published == last
        planner.published(published)
        last = published
        assert planner.step(now_s) is None
    planner.want(replace(plan(thresholds=(0.3, 0.3)), epoch=1))
    planner.connected(now_s)
    final = planner.step(now_s + SETTLE_S)
    assert same_content(final, plan(thresholds=(0.3, 0.3)))
    assert last is None or final.epoch > last.epoch
