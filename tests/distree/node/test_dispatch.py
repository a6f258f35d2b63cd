"""What an origin does with inputs whose boards go, stop, cannot be reached, or are not there yet."""

from __future__ import annotations

import pytest
from node_fleet import (
    UNSURE,
    Fleet,
    announce,
    boards,
    chain,
    chain_settings,
    fleet,
    meet,
    state_of,
)
from request_samples import route_of

from distree.messages.device import DeviceStatus
from distree.messages.request import Decision, Embedding, Outcome, StageMessage
from distree.node import OriginSettings, StageNode
from distree.node.dispatch import MAX_SENDINGS
from distree.node.routing import RESTART_S

FAR = OriginSettings(deadline_s=30.0, max_pending=4, min_retry_s=0.1)


def send(lab: Fleet) -> StageMessage:
    """Accept an input and let it leave its origin; return what goes out."""
    lab.accept()
    while lab.work:
        lab.compute()
    message = lab.flying[-1].message
    assert isinstance(message, StageMessage)
    return message


def attempts(lab: Fleet) -> list[tuple[str | None, int]]:
    """Return to whom features were sent, and in which attempt."""
    return [(out.to, out.message.context.attempt) for out in lab.sent if isinstance(out.message, StageMessage)]


def other_than(board: str | None) -> str:
    return {"b1": "t1", "t1": "b1"}[str(board)]


def origin_of(lab: Fleet) -> StageNode:
    return lab.nodes["cam"]


def restart(lab: Fleet, device: str, boot: str = "anew") -> StageNode:
    settings = lab.nodes[device].settings
    lab.nodes[device] = StageNode(chain_settings(device, *settings.stages, boot=boot))
    lab.work = [job for job in lab.work if job[0] != device]
    return lab.nodes[device]


# ---------------------------------------------------------------- boards that go


@pytest.mark.parametrize("status", [DeviceStatus.LOST, DeviceStatus.DISCONNECTED])
def test_what_was_with_a_board_that_is_gone_is_sent_anew_at_once(status):
    lab = chain(b1=(1, 2), t1=(1, 2))
    first = send(lab)
    (board,) = lab.on_the_way()
    lab.flying.clear()
    lab.state_changed(board, status)
    assert attempts(lab) == [(board, 1), (other_than(board), 2)]
    again = lab.flying[0].message
    assert isinstance(again, StageMessage)
    assert again.context.token != first.context.token
    assert again.context.route == route_of((1, other_than(board)))
    lab.settle()
    assert [(result.reason, result.attempt, result.final) for result in lab.results] == [("last", 2, True)]
    assert origin_of(lab).telemetry().origin.resent == 1
    assert origin_of(lab).books()["loads"] == 0


def test_what_was_with_other_boards_stays_there():
    lab = chain(b1=(1, 2), t1=(1, 2))
    send(lab)
    lab.state_changed(other_than(lab.on_the_way()[0]), DeviceStatus.LOST)
    assert len(attempts(lab)) == 1


def test_what_is_with_a_draining_board_stays_until_it_is_disconnected():
    lab = chain(b1=(1, 2), t1=(1, 2))
    send(lab)
    (board,) = lab.on_the_way()
    lab.state_changed(board, DeviceStatus.DRAINING)
    assert attempts(lab) == [(board, 1)]
    send(lab)
    assert attempts(lab)[1:] == [(other_than(board), 1)]
    lab.state_changed(board, DeviceStatus.DISCONNECTED)
    assert attempts(lab)[2:] == [(other_than(board), 2)]


def test_a_restarted_board_is_sent_what_its_earlier_run_had():
    lab = chain(b1=(1, 2))
    send(lab)
    lab.deliver()
    node = restart(lab, "b1")
    lab.carry_out("cam", announce(origin_of(lab), node.announce(), 0.1, is_live=True))
    assert attempts(lab) == [("b1", 1), ("b1", 2)]
    # The last word of its earlier session comes after all.
    lab.carry_out(
        "cam", origin_of(lab).state_changed(0.2, state_of(StageNode(chain_settings("b1", 1)), DeviceStatus.LOST))
    )
    lab.settle()
    assert [(result.reason, result.attempt) for result in lab.results] == [("last", 2)]


def test_a_board_that_withdraws_all_that_it_serves_is_gone():
    lab = chain(b1=(1, 2), t1=(1, 2))
    send(lab)
    (board,) = lab.on_the_way()
    lab.flying.clear()
    for stage in (1, 2):
        lab.carry_out("cam", origin_of(lab).withdrawn(0.1, board, stage))
    assert lab.on_the_way() == [other_than(board)]
    assert board not in origin_of(lab)._origin._router._peers


def test_requests_are_sent_only_so_often_and_answered_all_the_same():
    lab = chain(b1=(1, 2))
    send(lab)
    for run in range(2 * MAX_SENDINGS):
        node = restart(lab, "b1", f"run{run}")
        lab.carry_out("cam", announce(origin_of(lab), node.announce(), lab.now, is_live=True))
    assert [attempt for _, attempt in attempts(lab)] == list(range(1, MAX_SENDINGS + 1))
    lab.lose = {"b1"}
    lab.tick(1.0)
    assert [(result.label, result.final, result.attempt) for result in lab.results] == [("a", True, MAX_SENDINGS)]


def test_a_request_that_is_silent_after_its_last_attempt_is_answered():
    """The repetition that silence asks for is one too many."""
    lab = chain(b1=(1, 2))
    send(lab)
    for run in range(MAX_SENDINGS - 1):
        node = restart(lab, "b1", f"run{run}")
        lab.carry_out("cam", announce(origin_of(lab), node.announce(), lab.now, is_live=True))
    lab.lose = {"b1"}
    while origin_of(lab).notify_at() <= 1.0:
        lab.tick(origin_of(lab).notify_at() - lab.now)
    assert [(result.final, result.attempt) for result in lab.results] == [(True, MAX_SENDINGS)]


# ---------------------------------------------------------------- boards that nobody reads for, or that move on


def test_what_nobody_reads_goes_another_way_at_once():
    lab = chain(b1=(1, 2), t1=(1, 2))
    send(lab)
    (board,) = lab.on_the_way()
    lab.bounce()
    assert attempts(lab) == [(board, 1), (other_than(board), 2)]
    assert lab.told == [f"the broker reports that nobody reads messages to {board}, so it is left out until it answers"]
    lab.settle()
    assert [(result.reason, result.attempt) for result in lab.results] == [("last", 2)]


def test_what_nobody_reads_waits_for_the_next_run_of_the_only_board():
    lab = chain(b1=(1, 2))
    send(lab)
    lab.bounce()
    assert (lab.flying, origin_of(lab).pending, origin_of(lab).books()["loads"]) == ([], 1, 0)
    lab.tick(0.3)
    node = restart(lab, "b1")
    lab.carry_out("cam", announce(origin_of(lab), node.announce(), lab.now, is_live=True))
    assert attempts(lab) == [("b1", 1), ("b1", 2)]
    (again,) = [letter.message for letter in lab.flying if isinstance(letter.message, StageMessage)]
    # What it waited for is not granted a second time.
    assert again.progress.spent_s == pytest.approx(0.3)
    lab.settle()
    assert [(result.reason, result.attempt, result.latency_s) for result in lab.results] == [
        ("last", 2, pytest.approx(0.3))
    ]


def test_the_board_before_tells_the_origin_whom_it_could_not_reach():
    lab = chain(b1=1, b2=2, t2=2)
    send(lab)
    while lab.on_the_way() and lab.on_the_way()[0] not in ("b2", "t2"):
        lab.deliver()
        lab.compute() if lab.work else None
    (board,) = lab.on_the_way()
    lab.bounce(next(k for k, letter in enumerate(lab.flying) if isinstance(letter.message, StageMessage)))
    (told,) = [letter for letter in lab.flying if isinstance(letter.message, Outcome)]
    assert (told.to, told.sender) == ("cam", "b1")
    assert (told.message.reason, told.message.board) == ("unreachable", board)  # type: ignore[union-attr]
    lab.settle()
    (result,) = lab.results
    assert (result.reason, result.attempt) == ("last", 2)
    assert result.hops[-1].device == {"b2": "t2", "t2": "b2"}[board]
    assert lab.runs["b1", 1] == 2


def test_a_branch_tells_the_origin_that_it_could_not_reach_the_board_that_fuses():
    lab = fleet(fuser="hub")
    lab.accept()
    while not lab.on_the_way(Embedding):
        lab.compute() if lab.work else lab.deliver()
    lab.bounce(next(k for k, letter in enumerate(lab.flying) if isinstance(letter.message, Embedding)))
    lab.lose = {"hub"}
    lab.settle()
    (result,) = lab.results
    assert (result.reason, result.attempt) == ("confident", 2)
    assert {hop.device for hop in result.hops} == {"b0", "b1", "cam"}


def test_what_is_known_to_be_old_is_not_sent_anew():
    lab = chain(b1=(1, 2), t1=(1, 2))
    first = send(lab)
    (board,) = lab.on_the_way()
    lab.state_changed(board, DeviceStatus.LOST)
    assert len(attempts(lab)) == 2
    # That nobody read the first attempt either is told too late.
    assert not [
        effect
        for effect in origin_of(lab).no_subscribers(0.1, first, board)
        if isinstance(getattr(effect, "message", None), StageMessage)
    ]


def test_a_board_that_stops_turns_work_back_which_goes_elsewhere():
    lab = chain(b1=(1, 2), t1=(1, 2))
    send(lab)
    (board,) = lab.on_the_way()
    lab.nodes[board].drain()
    lab.deliver()
    (told,) = lab.flying
    assert (told.to, told.message.reason) == ("cam", "moved")  # type: ignore[union-attr]
    lab.settle()
    assert attempts(lab) == [(board, 1), (other_than(board), 2)]
    assert [(result.reason, result.attempt) for result in lab.results] == [("last", 2)]
    # Before its state says so, too, nothing goes there, and nobody says that it does not answer.
    send(lab)
    assert (attempts(lab)[-1], lab.told) == ((other_than(board), 1), [])
    assert lab.nodes[board].announce() == []


def test_a_board_that_stops_finishes_what_it_has():
    lab = chain(b1=(1, 2), t1=(1, 2))
    send(lab)
    (board,) = lab.on_the_way()
    letter = lab.flying[0]
    lab.deliver()
    lab.nodes[board].drain()
    lab.flying.append(letter)  # and a redelivery is no new work
    lab.deliver()
    lab.deliver() if lab.flying else None
    lab.settle()
    assert [(result.reason, result.attempt) for result in lab.results] == [("last", 1)]
    assert attempts(lab) == [(board, 1)]


def test_a_board_that_stops_does_not_fuse_what_is_new():
    lab = fleet(fuser="hub")
    lab.nodes["hub"].drain()
    lab.accept()
    lab.settle()
    assert [(result.reason, result.attempt) for result in lab.results] == [("confident", 2)]
    assert {hop.device for hop in lab.results[0].hops} == {"b0", "b1", "cam"}


def test_an_origin_that_stops_goes_on_with_its_own_inputs():
    lab = chain(own=(0, 2), b1=1)
    send(lab)
    origin_of(lab).drain()
    lab.settle()
    assert [(result.reason, result.exit, result.attempt) for result in lab.results] == [("last", 2, 1)]


# ---------------------------------------------------------------- nobody there


def test_with_nobody_there_for_long_inputs_are_answered_here_at_once():
    lab = chain()
    lab.accept()
    lab.compute()
    assert [(result.reason, result.exit, result.latency_s) for result in lab.results] == [("fallback", 0, 0.0)]
    assert lab.told == [f"no board serves stage {stage}" for stage in (1, 2)]


@pytest.mark.parametrize("why", ["went", "connected"])
def test_where_boards_are_about_to_come_inputs_are_held_for_so_long(why):
    lab = chain(origin=FAR, b1=(1, 2))
    lab.tick(100.0)
    lab.state_changed("b1", DeviceStatus.LOST)
    if why == "connected":
        lab.tick(100.0)
        lab.carry_out("cam", origin_of(lab).connected(lab.now))
    for _ in range(FAR.max_pending):
        lab.accept()
        lab.settle()
    assert (lab.results, origin_of(lab).books()["away"]) == ([], 4)
    # No more than that, for the origin has a guess.
    lab.accept()
    lab.settle()
    assert [result.reason for result in lab.results] == ["fallback"]
    lab.tick(RESTART_S / 2)
    lab.state_changed("b1", DeviceStatus.READY)
    assert [attempt for _, attempt in attempts(lab)] == [1] * 4
    lab.settle()
    assert [result.reason for result in lab.results[1:]] == ["last"] * 4
    for result in lab.results:
        origin_of(lab).published(result.request)
    lab.state_changed("b1", DeviceStatus.LOST)
    lab.tick(RESTART_S)
    lab.results.clear()
    lab.accept()
    lab.settle()
    assert [result.reason for result in lab.results] == ["fallback"]


def test_without_a_guess_inputs_are_held_until_their_deadline():
    lab = chain(own=())
    lab.accept()
    lab.tick(0.99)
    assert lab.results == []
    lab.tick(0.02)
    assert [(result.reason, result.label, result.attempt) for result in lab.results] == [("fallback", None, 1)]
    assert lab.told == [f"no board serves stage {stage}" for stage in range(3)]
    lab.accept()
    lab.carry_out("cam", meet(origin_of(lab), *boards(b0=(0, 1, 2)), now=lab.now))
    assert lab.on_the_way() == ["b0"]


def test_inputs_of_an_earlier_run_get_routes_and_tokens_of_their_own():
    lab = chain(b1=(1, 2), t1=(1, 2))
    before = send(lab)
    left = origin_of(lab).snapshot()
    lab.flying.clear()
    settings = origin_of(lab).settings
    lab.nodes["cam"] = again = StageNode(chain_settings("cam", 0, origin=settings.origin, boot="anew"), restore=left)
    lab.introduce("cam")
    lab.carry_out("cam", again.tick(again.notify_at()))
    lab.compute()
    (sent,) = [letter.message for letter in lab.flying]
    assert isinstance(sent, StageMessage)
    assert (sent.context.request, sent.context.attempt) == (before.context.request, 2)
    assert sent.context.token != before.context.token
    assert len(sent.context.route) == 1
    # What comes of the attempt of the earlier run is no answer to this one.
    lab.settle()
    assert [(result.reason, result.attempt) for result in lab.results] == [("last", 2)]


def test_a_board_that_failed_is_avoided_by_the_repetition():
    lab = chain(b1=(1, 2), t1=(1, 2))
    send(lab)
    (board,) = lab.on_the_way()
    lab.deliver()
    device, job = lab.work.pop()
    lab.carry_out(device, lab.nodes[device].failed(lab.now, job.key, "boom"))
    lab.settle()
    assert attempts(lab) == [(board, 1), (other_than(board), 2)]
    assert [(result.reason, result.attempt) for result in lab.results] == [("last", 2)]


def test_what_still_waits_on_branches_of_an_attempt_that_is_over_is_stopped():
    lab = fleet(twins=True, script={0: UNSURE})
    lab.accept()
    stop = lab.flying[0].message.context.route[0]  # type: ignore[union-attr]
    while not any(isinstance(out.message, Decision) for out in lab.sent):
        lab.compute() if lab.work else lab.deliver()
    lab.flying.clear()
    lab.state_changed(stop.boards[1], DeviceStatus.LOST)
    stops = [letter for letter in lab.flying if isinstance(letter.message, Decision)]
    assert [(letter.to, letter.message.go) for letter in stops if letter.to == stop.boards[0]] == [  # type: ignore[union-attr]
        (stop.boards[0], False)
    ]
    lab.settle()
    assert [(result.attempt, result.missing) for result in lab.results] == [(2, ())]


def test_a_thousand_inputs_over_boards_that_restart_are_each_answered_once():
    lab = chain(origin=OriginSettings(deadline_s=60.0, max_pending=8, min_retry_s=0.1), b1=(1, 2), t1=(1, 2))
    for index in range(1000):
        lab.accept()
        lab.compute()
        if index % 7 == 0:
            (board,) = lab.on_the_way()
            lab.flying.clear()
            node = restart(lab, board, f"run{index}")
            lab.carry_out("cam", announce(origin_of(lab), node.announce(), lab.now, is_live=True))
        lab.settle()
        origin_of(lab).published(lab.results[-1].request)
    assert len({result.request for result in lab.results}) == 1000
    assert {result.reason for result in lab.results} == {"last"}
    assert not any(count for name, count in origin_of(lab).books().items() if not name.endswith("_times"))
