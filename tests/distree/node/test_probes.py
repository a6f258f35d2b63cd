"""Probes: boards that are left out are asked whether they are back, with nothing but zeros."""

from __future__ import annotations

import numpy as np
import pytest
from node_fleet import SURE, Fleet, chain, fleet

from distree import tensors
from distree.errors import RemoteProtocolError
from distree.messages.device import DeviceStatus
from distree.messages.request import Decision, Embedding, StageMessage
from distree.node import OriginSettings, Publish


def probes(lab: Fleet) -> list[Publish]:
    return [out for out in lab.sent if isinstance(out.message, StageMessage | Embedding) and out.message.context.audit]


def leave_out(lab: Fleet, device: str) -> None:
    """Have the broker say that nobody reads what is sent to a board."""
    cam = lab.nodes["cam"]
    lab.accept()
    lab.compute() if lab.work else None
    sent = next(letter.message for letter in lab.flying if letter.to == device)
    lab.carry_out("cam", cam.no_subscribers(lab.now, sent, device))  # type: ignore[arg-type]
    lab.flying.clear()
    lab.sent.clear()
    lab.told.clear()
    assert is_left_out(lab, device)


def is_left_out(lab: Fleet, device: str) -> bool:
    return device in lab.nodes["cam"]._origin._router._left_out


def plain(*stages: int) -> Fleet:
    origin = OriginSettings(deadline_s=1.0, max_pending=8, min_retry_s=0.1)
    return chain(origin=origin, b1=stages or (1, 2))


def test_a_probe_carries_zeros_and_its_board_alone_is_on_its_route():
    lab = plain()
    leave_out(lab, "b1")
    lab.tick(0.99)
    assert probes(lab) == []
    lab.tick(0.02)
    (probe,) = probes(lab)
    message = probe.message
    assert isinstance(message, StageMessage)
    assert (probe.to, message.stage, [stop.boards for stop in message.context.route]) == ("b1", 1, [("b1",)])
    assert not tensors.decode(message.tensor, dtype="int8", shape=(1, 4)).any()
    assert (message.context.audit, message.context.eager, message.progress.guess) == (True, False, None)
    assert not lab.nodes["cam"].holds(message.context.request)


@pytest.mark.parametrize("stages", [(1, 2), (0, 1, 2)])
def test_an_answer_takes_a_board_in_again(stages):
    lab = plain(*stages)
    leave_out(lab, "b1")
    lab.tick(1.01)
    lab.settle()
    assert not is_left_out(lab, "b1")
    assert [line for line in lab.told if "no board" not in line] == [
        "b1 answers again", "stage 1 is served again", "stage 2 is served again",
    ]  # fmt: skip
    assert [result for result in lab.results if not result.final] == []
    assert not lab.refused
    # It went through all stages of the board in a row, and is in no counter of traffic.
    assert [stage.audited for stage in lab.nodes["b1"].telemetry().stages] == [1] * len(stages)
    assert [stage.received for stage in lab.nodes["b1"].telemetry().stages] == [0] * len(stages)
    lab.accept()
    lab.compute()
    assert lab.on_the_way() == ["b1"]


def test_a_board_of_one_stage_answers_that_its_route_ends_there():
    lab = chain(b1=1, b2=2)
    leave_out(lab, "b1")
    lab.tick(1.01)
    lab.settle()
    assert (is_left_out(lab, "b1"), lab.runs["b1", 1], lab.runs["b2", 2]) == (False, 1, 0)


def test_probes_of_a_board_that_does_not_answer_come_ever_more_seldom():
    lab = plain()
    leave_out(lab, "b1")
    lab.lose = {"b1"}
    times = []
    while lab.now < 200.0:
        lab.sent.clear()
        lab.tick(0.25)
        times += [lab.now] * len(probes(lab))
    assert times[:7] == pytest.approx([1.0, 3.0, 7.0, 15.0, 31.0, 61.0, 91.0], abs=0.3)
    assert is_left_out(lab, "b1")
    # Once it has answered, it begins anew.
    lab.lose = set()
    lab.tick(31.0)
    lab.settle()
    assert not is_left_out(lab, "b1")
    leave_out(lab, "b1")
    lab.tick(1.01)
    assert len(probes(lab)) == 1


def test_what_was_held_meanwhile_is_sent():
    origin = OriginSettings(deadline_s=10.0, max_pending=8, min_retry_s=0.1)
    lab = chain(own=(), origin=origin, b1=(0, 1, 2))
    leave_out(lab, "b1")
    lab.accept()
    lab.tick(1.01)
    lab.settle()
    assert [(result.reason, result.attempt) for result in lab.results] == [("last", 2), ("last", 1)]
    assert [result.latency_s for result in lab.results] == pytest.approx([1.01] * 2)
    assert lab.told == ["b1 answers again"]


def test_what_is_heard_otherwise_takes_a_board_in_as_well():
    lab = plain()
    lab.accept()
    lab.compute()
    lab.deliver()
    working = lab.work.pop()
    leave_out(lab, "b1")
    lab.work.append(working)
    while lab.work:
        lab.compute()
    lab.settle()  # the first one's answer
    assert not is_left_out(lab, "b1")


def test_a_board_that_stops_answers_no_probe():
    lab = plain()
    leave_out(lab, "b1")
    lab.nodes["b1"].drain()
    lab.tick(1.01)
    lab.settle()
    assert is_left_out(lab, "b1")


def test_boards_that_are_gone_are_not_probed():
    lab = plain()
    leave_out(lab, "b1")
    lab.state_changed("b1", DeviceStatus.LOST)
    lab.tick(5.0)
    assert probes(lab) == []
    assert lab.nodes["cam"].telemetry().origin.left_out == 0


def test_an_outcome_of_a_probe_by_a_stranger_is_refused():
    lab = plain()
    leave_out(lab, "b1")
    lab.tick(1.01)
    while not any(letter.to == "cam" for letter in lab.flying):
        lab.compute() if lab.work else lab.deliver()
    (letter,) = lab.flying
    with pytest.raises(RemoteProtocolError) as caught:
        lab.nodes["cam"].receive(lab.now, letter.message, 1, "b7")
    assert caught.value.reason == "sender"
    assert is_left_out(lab, "b1")


@pytest.mark.parametrize("eager", [False, True])
def test_a_branch_answers_with_its_embedding_and_is_stopped(eager):
    lab = fleet(eager=eager, fuser="hub")
    leave_out(lab, "b1")
    lab.tick(1.01)
    (probe,) = probes(lab)
    assert isinstance(probe.message, StageMessage)
    context = probe.message.context
    assert (probe.to, context.fuser, context.eager) == ("b1", "cam", False)
    assert [stop.boards for stop in context.route] == [("", "b1")]
    assert not tensors.decode(probe.message.tensor, dtype="int8", shape=(1, 4)).any()
    before = lab.runs["b1", 1]
    lab.settle()
    assert not is_left_out(lab, "b1")
    assert not lab.refused
    assert lab.nodes["b1"].books()["kept"] == 0
    assert lab.runs["b1", 1] == before
    assert any(isinstance(out.message, Decision) and not out.message.go for out in lab.sent)
    assert lab.nodes["cam"].telemetry().fusions[0].fused == 0


def test_a_board_that_fuses_answers_as_to_an_audit():
    lab = fleet(fuser="hub", script={0: SURE})
    lab.accept()
    while not lab.on_the_way(Embedding):
        lab.compute() if lab.work else lab.deliver()
    lab.bounce(next(k for k, letter in enumerate(lab.flying) if isinstance(letter.message, Embedding)))
    lab.settle()
    assert is_left_out(lab, "hub")
    lab.sent.clear()
    lab.told.clear()
    lab.tick(1.01)
    (probe,) = probes(lab)
    message = probe.message
    assert isinstance(message, Embedding)
    assert (probe.to, message.device, message.branch, message.context.fuser) == ("hub", "cam", 0, "hub")
    assert not np.any(tensors.decode(message.tensor, dtype="int8", shape=(1, 2)))
    lab.settle()
    assert not is_left_out(lab, "hub")
    lab.tick(2.0)
    lab.settle()
    assert not lab.refused
    assert lab.nodes["hub"].idle()
    assert lab.told == ["hub answers again"]
    assert message.context.request not in {result.request for result in lab.results}
