"""Members: whose announcements count, and what becomes of boards by what is heard of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.member import Member
from distree.node import members as module
from distree.node.members import MemberChange, Members


def member(device: str = "b1", boot: str = "one", *, stages: tuple[int, ...] = (1,), **changes: object) -> Member:
    made = {"pipeline": "p", "model": "toy", "revisions": ("r1",), **changes}
    return Member(device=device, boot=boot, stages=stages, **made)  # type: ignore[arg-type]


def state(status: DeviceStatus = DeviceStatus.READY, boot: str = "one", device: str = "b1") -> DeviceState:
    return DeviceState(device=device, boot=boot, status=status)


def there(*made: Member) -> Members:
    known = Members("r1")
    for one in made or (member(),):
        for stage in one.stages or (0,):
            known.announced(0.0, one, stage, is_live=False)
        known.state_changed(0.0, state(boot=one.boot, device=one.device))
    return known


def names(known: Members, stage: int = 1, branch: int | None = None) -> list[str]:
    return [one.device for one in known.of(stage, branch)]


def test_an_announcement_counts_once_the_board_is_ready_and_of_the_same_run():
    known = Members("r1")
    assert known.announced(0.0, member(), 1, is_live=False) == MemberChange(device="b1", listen="begin")
    assert (names(known), known.present, known.get("b1")) == ([], 0, None)
    for status in (DeviceStatus.INIT, DeviceStatus.DRAINING, DeviceStatus.LOST, DeviceStatus.DISCONNECTED):
        assert not known.state_changed(0.0, state(status)).came
        assert names(known) == []
    assert not known.state_changed(0.0, state(boot="two")).came
    assert names(known) == []
    assert known.state_changed(0.0, state()) == MemberChange(
        device="b1", ended=True, came=True
    )  # what was said of a run "two"
    assert (names(known), known.present, known.get("b1")) == (["b1"], 1, member())


def test_a_retained_announcement_of_an_earlier_run_does_not_count():
    known = Members("r1")
    known.announced(0.0, member(boot="old"), 1, is_live=False)
    known.state_changed(0.0, state(boot="new"))
    assert names(known) == []
    assert known.announced(0.0, member(boot="new"), 1, is_live=False) == MemberChange(device="b1", came=True)
    assert names(known) == ["b1"]


def test_an_announcement_that_comes_live_proves_that_the_board_is_there():
    known = Members("r1")
    assert known.announced(0.0, member(), 1, is_live=True) == MemberChange(device="b1", came=True, listen="begin")
    assert names(known) == ["b1"]
    # Whatever the broker has kept of an earlier run.
    known = Members("r1")
    known.announced(0.0, member(boot="old"), 1, is_live=False)
    known.state_changed(0.0, state(DeviceStatus.LOST, boot="old"))
    assert known.announced(0.0, member(boot="new"), 1, is_live=True).came
    # But not that it takes requests, once it has said that it does not.
    known.state_changed(0.0, state(DeviceStatus.DRAINING, boot="new"))
    assert known.announced(0.0, member(boot="new"), 1, is_live=True) == MemberChange(device="b1")
    assert names(known) == []


def test_states_of_boards_that_announce_nothing_are_nothing():
    known = Members("r1")
    assert known.state_changed(0.0, state()) == MemberChange(device="b1")
    assert known.withdrawn(0.0, "b1", 1) == MemberChange(device="b1")
    assert len(known) == 0


@pytest.mark.parametrize("last", [DeviceStatus.LOST, DeviceStatus.DISCONNECTED, DeviceStatus.INIT])
def test_the_last_word_of_an_old_session_does_not_end_a_new_run(last):
    known = there()
    known.announced(1.0, member(boot="two"), 1, is_live=True)
    assert known.state_changed(1.0, state(last, boot="one")) == MemberChange(device="b1")
    assert names(known) == ["b1"]


def test_a_restart_ends_one_run_and_begins_the_next():
    known = there()
    assert known.announced(1.0, member(boot="two"), 1, is_live=True) == MemberChange(device="b1", ended=True, came=True)
    known = there()
    assert known.state_changed(1.0, state(boot="two")) == MemberChange(device="b1", ended=True)
    assert known.announced(1.0, member(boot="two"), 1, is_live=False) == MemberChange(device="b1", came=True)


def test_two_boards_of_one_name_take_turns():
    """What one says is never held against the other."""
    known = there()
    for turn in range(6):
        boot = ("two", "one")[turn % 2]
        change = known.announced(float(turn), member(boot=boot), 1, is_live=True)
        assert change == MemberChange(device="b1", ended=True, came=True)
        assert names(known) == ["b1"]
        other = ("one", "two")[turn % 2]
        known.state_changed(float(turn), state(DeviceStatus.LOST, boot=other))
        assert names(known) == ["b1"]


def test_a_draining_board_is_not_chosen_and_its_run_goes_on_until_it_is_disconnected():
    known = there()
    assert known.state_changed(1.0, state(DeviceStatus.DRAINING)) == MemberChange(device="b1")
    assert (names(known), known.went_at(1)) == ([], 1.0)
    assert known.state_changed(2.0, state(DeviceStatus.DISCONNECTED)) == MemberChange(device="b1", ended=True)
    assert known.went_at(1) == 1.0


@pytest.mark.parametrize("status", [DeviceStatus.LOST, DeviceStatus.DISCONNECTED, DeviceStatus.INIT])
def test_a_run_is_over_once(status):
    known = there()
    assert known.state_changed(1.0, state(status)) == MemberChange(device="b1", ended=True)
    assert known.state_changed(1.5, state(status)) == MemberChange(device="b1")
    assert known.state_changed(2.0, state()) == MemberChange(device="b1", came=True)


def test_what_is_withdrawn_is_not_served_and_the_last_of_it_ends_the_board():
    known = there(member(stages=(1, 2)))
    assert known.withdrawn(3.0, "b1", 2) == MemberChange(device="b1")
    assert (names(known, 1), names(known, 2), known.went_at(2)) == (["b1"], [], 3.0)
    assert known.withdrawn(3.0, "b1", 2) == MemberChange(device="b1")
    assert known.withdrawn(4.0, "b1", 1) == MemberChange(device="b1", ended=True, listen="end")
    assert (names(known, 1), len(known), known.went_at(1)) == ([], 0, 4.0)
    assert known.announced(5.0, member(), 1, is_live=True).listen == "begin"


def test_members_are_of_a_stage_or_of_a_branch_of_it():
    known = there(
        member("b1", stages=(0, 1), branch=0), member("b2", stages=(0,), branch=1), member("hub", stages=(), fuses=True)
    )
    assert (names(known, 0, 0), names(known, 0, 1), names(known, 0, 2)) == (["b1"], ["b2"], [])
    assert names(known, 0) == ["b1", "b2"]
    assert known.get("hub") is not None
    assert known.present == 3


def test_boards_with_another_bundle_are_there_but_serve_nothing():
    known = there(member("b1", revisions=("r2",)), member("b2", revisions=("r0", "r1")))
    assert names(known) == ["b2"]
    assert [one.device for one in known.others(1)] == ["b1"]
    assert (known.get("b1"), known.others(2)) == (None, [])


def test_members_stay_in_the_order_in_which_they_came():
    known = there(member("b1"), member("b2"), member("b3"))
    for status in (DeviceStatus.DRAINING, DeviceStatus.READY):
        known.state_changed(0.0, state(status, device="b1"))
    assert names(known) == ["b1", "b2", "b3"]
    known.announced(0.0, member("b2", boot="two"), 1, is_live=True)
    assert [(one.device, one.boot) for one in known.of(1)] == [("b1", "one"), ("b2", "two"), ("b3", "one")]
    assert known.serve(1)
    assert known.serve(1, {"b1", "b2"})
    assert not known.serve(1, {"b1", "b2", "b3"})
    assert not known.serve(2)


def test_of_many_boards_with_another_bundle_a_few_are_named():
    known = there(*(member(f"b{number}", revisions=("r2",)) for number in range(20)))
    assert [one.device for one in known.others(1)] == ["b0", "b1", "b2", "b3"]


def test_of_too_many_boards_the_one_that_announced_itself_longest_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(module, "MAX_MEMBERS", 2)
    known = there(member("b1"), member("b2"))
    known.announced(0.0, member("b1"), 1, is_live=True)
    change = known.announced(5.0, member("b3"), 1, is_live=True)
    assert change.pushed_out == MemberChange(device="b2", ended=True, listen="end")
    assert (change.device, change.came, change.listen) == ("b3", True, "begin")
    assert (names(known), len(known), known.present, known.went_at(1)) == (["b1", "b3"], 2, 2, 5.0)


def test_a_board_that_answered_is_forgotten_after_those_that_never_did(monkeypatch):
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    known = there(member("real"), member("real-2"))
    known.answered("real")
    known.answered("real-2")
    for number in range(50):
        known.announced(0.0, member(f"forged-{number}"), 1, is_live=True)
    assert names(known) == ["real", "real-2", "forged-49"]
    # Once all have answered, one of them has to go.
    known.answered("forged-49")
    change = known.announced(0.0, member("b9"), 1, is_live=True)
    assert change.pushed_out is not None
    assert (change.pushed_out.device, names(known)) == ("real", ["real-2", "forged-49", "b9"])
    # What withdraws makes room.
    known.withdrawn(0.0, "real-2", 1)
    assert known.announced(0.0, member("real"), 1, is_live=True).pushed_out is None


heard = st.one_of(
    st.tuples(st.just("announced"), st.sampled_from("ab"), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("withdrawn"), st.integers(0, 1)),
    st.tuples(st.just("state"), st.sampled_from("ab"), st.sampled_from(list(DeviceStatus))),
)


@given(st.lists(heard, max_size=40))
def test_a_board_is_chosen_from_where_it_came_until_it_goes(script):
    """Whoever does as changes say knows what the books know."""
    known, is_there, listens = Members("r1"), False, False
    for step in script:
        match step:
            case ("announced", boot, stage, is_live):
                change = known.announced(0.0, member(boot=boot, stages=(0, 1)), stage, is_live=is_live)
            case ("withdrawn", stage):
                change = known.withdrawn(0.0, "b1", stage)
            case ("state", boot, status):
                change = known.state_changed(0.0, state(status, boot=boot))
        listens = {"begin": True, "end": False, "": listens}[change.listen]
        was_there, is_there = is_there, known.get("b1") is not None
        assert known.present == is_there
        assert listens == bool(len(known))
        # A board that comes is told; one that was there all the time need not be.
        assert not change.came or is_there
        assert not is_there or was_there or change.came
