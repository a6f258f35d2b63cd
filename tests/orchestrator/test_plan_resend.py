"""When a plan is published again for boards that lack it."""

from __future__ import annotations

from itertools import pairwise

from orchestrator.plan_resend import PAUSE_S, Reminder


def test_a_board_that_stays_behind_has_the_plan_published_ever_less_often():
    reminder, at = Reminder(), []
    reminder.published(-10.0, "3")
    for now_s in range(0, 4000, 2):
        reminder.reported(now_s, "a", is_behind=True)
        if reminder.is_due(now_s):
            at.append(now_s)
            reminder.published(now_s, "3")
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert gaps[:3] == [10, 20, 40]
    assert set(gaps[6:]) == {600}


def test_who_stays_behind_holds_up_no_other_and_a_new_plan_or_a_start_counts_anew():
    reminder = Reminder()

    def is_published(now_s, wanted="3"):
        if due := reminder.is_due(now_s):
            reminder.published(now_s, wanted)
        return due

    for now_s in range(100):
        reminder.reported(now_s, "a", is_behind=True)
        is_published(now_s)
    reminder.reported(100.0, "a", is_behind=True)
    assert not is_published(100.0)
    reminder.reported(100.0, "b", is_behind=True)
    assert is_published(100.0)
    reminder.reported(101.0, "c", is_behind=True)  # Sent before the publish, for all that is known.
    assert not is_published(101.0 + PAUSE_S)
    reminder.reported(110.0, "b", is_behind=False)
    reminder.reported(111.0, "b", is_behind=True)
    assert is_published(111.0)
    reminder.published(120.0, "4")
    reminder.reported(130.0, "a", is_behind=True)
    assert is_published(130.0, "4")
    reminder.started("a")
    reminder.started("b")
    assert not is_published(131.0, "4")
    assert is_published(130.0 + PAUSE_S, "4")
    assert not is_published(200.0, "4")
