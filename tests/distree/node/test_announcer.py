"""When boards say what they serve, and when they ask others to."""

from __future__ import annotations

import itertools
import random

import pytest
from node_fleet import announce, boards, chain_settings, meet, node_settings

from distree.messages.member import Call, Member
from distree.node import Announce, Effect, OriginSettings, Publish, StageNode
from distree.node.announcer import CALLED_EVERY_S, JITTER_S, PATIENCE_S


def calls(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, Publish) and isinstance(effect.message, Call)]


def answers(effects: list[Effect]) -> list[Announce]:
    return [effect for effect in effects if isinstance(effect, Announce)]


def origin(*stages: int, seed: int = 1) -> StageNode:
    return StageNode(chain_settings("cam", *stages, origin=OriginSettings()), chance=random.Random(seed))


def board(seed: int = 1) -> StageNode:
    return StageNode(chain_settings("b1", 1, 2), chance=random.Random(seed))


def test_a_board_says_what_it_serves_when_it_connects():
    node = StageNode(chain_settings("b1", 1, 2, boot="run", board_boot="agent"))
    (said,) = node.connected(0.0)
    assert said == Announce(
        member=Member(
            device="b1", boot="agent", pipeline="p", model="toy", revisions=("r1",), stages=(1, 2), branch=None
        ),
        stages=(1, 2),
    )
    assert node.announce() == [said]
    assert node.served == (1, 2)


def test_who_runs_a_branch_announces_where_requests_come_and_who_fuses_where_embeddings_begin():
    branch = StageNode(node_settings("b1", 0, 1, 2, branch=1))
    (said,) = branch.announce()
    assert (said.stages, said.member.stages, said.member.branch, said.member.fuses) == ((0,), (0, 1, 2), 1, False)
    (said,) = StageNode(node_settings("hub", fuses=True)).announce()
    assert (said.stages, said.member.stages, said.member.fuses) == ((0,), (), True)


def test_who_serves_nothing_says_nothing_unless_it_is_asked():
    node = origin()
    assert node.connected(0.0) == []
    node.called(0.0, "orchestrator")
    (said,) = answers(node.tick(1.0))
    assert (said.stages, said.again) == ((), True)


def test_a_board_that_stops_announces_nothing():
    node = board()
    node.drain()
    assert node.connected(0.0) == []
    node.called(0.0, "cam")
    assert node.notify_at() == float("inf")


def test_an_origin_that_hears_of_nobody_calls():
    node = origin(0)
    node.connected(5.0)
    assert 5.0 + PATIENCE_S <= node.notify_at() <= 5.0 + PATIENCE_S + JITTER_S
    assert calls(node.tick(5.9)) == []
    (call,) = calls(node.tick(node.notify_at()))
    assert (call.message, call.to) == (Call(caller="cam"), None)


def test_an_origin_whose_broker_has_retained_announcements_does_not_call():
    node = origin(0)
    node.connected(0.0)
    meet(node, *boards(b1=(1, 2)))
    assert node.notify_at() == float("inf")


def test_what_comes_live_does_not_prove_that_anything_is_retained():
    node = origin(0)
    node.connected(0.0)
    announce(node, board().announce(), is_live=True)
    assert len(calls(node.tick(2.0))) == 1
    # It has heard of all that it needs: no need to call again.
    assert node.notify_at() == float("inf")


def test_who_lacks_boards_calls_again_and_again_but_not_often():
    node = origin(0)
    node.connected(0.0)
    times = []
    while len(times) < 10:
        times.append(node.notify_at())
        assert len(calls(node.tick(times[-1]))) == 1
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert all(CALLED_EVERY_S <= pause <= 1.5 * CALLED_EVERY_S for pause in pauses)
    assert len(set(pauses)) > 5


def test_boards_do_not_call():
    node = board()
    node.connected(0.0)
    assert node.notify_at() == float("inf")


def test_who_is_called_answers_soon_at_a_moment_of_its_own():
    times = set()
    for seed in range(20):
        node = board(seed)
        node.called(3.0, "cam")
        times.add(node.notify_at())
        assert 3.0 <= node.notify_at() <= 3.0 + JITTER_S
        (said,) = answers(node.tick(node.notify_at()))
        assert (said.again, said.stages) == (True, (1, 2))
        assert node.notify_at() == float("inf")
    assert len(times) == 20


def test_many_calls_have_one_answer_and_the_next_comes_later():
    node, answered = board(), []
    for tenth in range(400):
        now = tenth / 10
        node.called(now, f"cam{tenth % 7}")
        answered += [now for _ in answers(node.tick(now))]
    pauses = [after - before for before, after in itertools.pairwise(answered)]
    assert len(answered) == 4
    assert min(pauses) >= CALLED_EVERY_S - 1e-9


def test_who_hears_another_call_need_not():
    node = origin(0)
    node.connected(0.0)
    node.called(0.5, "other")
    assert calls(node.tick(2.0)) == []
    due = node.notify_at()
    assert 0.5 + CALLED_EVERY_S <= due <= 0.5 + 1.5 * CALLED_EVERY_S
    assert len(calls(node.tick(due))) == 1


def test_its_own_call_is_none_to_itself():
    node = origin(0)
    node.connected(0.0)
    due = node.notify_at()
    node.called(0.5, "cam")
    assert node.notify_at() == due


@pytest.mark.parametrize("seed", range(3))
def test_chance_is_what_is_handed_in(seed):
    def due() -> float:
        node = origin(0, seed=seed)
        node.connected(0.0)
        return node.notify_at()

    assert due() == due()
