"""StageNode by itself and in pairs, over a link made of lists."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_fleet import announce, lines, meet, state_of
from request_samples import changed, route_of
from thoroughness import often

from distree import tensors
from distree.errors import RemoteProtocolError
from distree.messages.device import DeviceStatus
from distree.messages.limits import EPOCH_STEP, MAX_EPOCH
from distree.messages.plan import MaskedThresholds, Plan, plan_hash
from distree.messages.request import Guess, Outcome, StageMessage
from distree.messages.result import Result
from distree.node import AcceptedInput, Acknowledge, Drop, Effect, NodeSettings, OriginSettings, Publish, Run, StageNode
from distree.node.__main__ import TABLES, transition_tables
from distree.node.round_trip import RoundTrip
from distree.segments import SegmentOutput
from distree.thresholds import NEVER

SURE = [9.0, 0.0, 0.0]
UNSURE = [0.1, 0.0, 0.0]
FEATURES = np.arange(4, dtype=np.int8).reshape(1, 4)
INPUT = tensors.encode(np.zeros((1, 4), np.int8))


def node_settings(device: str, *stages: int, origin: OriginSettings | None = None, **changes: object) -> NodeSettings:
    base = NodeSettings(
        site="lab",
        device=device,
        pipeline="p",
        boot="b00t",
        model="toy",
        revision="r1",
        labels=("a", "b", "c"),
        inputs=(("int8", (1, 4)),) * 3,
        stages=stages,
        criterion="max_softmax",
        thresholds=(0.9, 0.9),
        origin=origin,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def others() -> list[StageNode]:
    """Return the boards that an origin knows: one for each later stage, and for the first one too."""
    return [StageNode(node_settings(f"b{stage}", stage)) for stage in range(3)]


def origin_node(
    *stages: int,
    deadline_s: float = 1.0,
    pending: int = 4,
    known: list[StageNode] | None = None,
    **changes: object,
) -> StageNode:
    origin = OriginSettings(deadline_s=deadline_s, max_pending=pending, min_retry_s=0.05)
    node = StageNode(node_settings("cam", *stages, origin=origin, **changes), chance=random.Random(1))
    meet(node, *(others() if known is None else known))
    return node


def output(logits: list[float], last: bool = False) -> SegmentOutput:
    return SegmentOutput(features=None if last else FEATURES, logits=logits)


def only(effects: list[Effect], kind: type) -> list:
    return [effect for effect in effects if isinstance(effect, kind)]


def published(effects: list[Effect], kind: type) -> list:
    return [effect.message for effect in only(effects, Publish) if isinstance(effect.message, kind)]


def finish(node: StageNode, now: float, effects: list[Effect], logits: list[float], last: bool = False) -> list[Effect]:
    """Complete the one run among `effects`."""
    (run,) = only(effects, Run)
    return node.completed(now, run.key, output(logits, last), 0.01)


def send_on(node: StageNode, now: float = 0.0) -> tuple[str, StageMessage]:
    """Accept an input whose first exit is unsure; return its id and what goes to stage 1."""
    request, effects = node.accept(now, "x", INPUT)
    (message,) = published(finish(node, now, effects, UNSURE), StageMessage)
    return request, message


def reply_to(message: StageMessage, reason: str = "last") -> Outcome:
    return Outcome(
        request=message.context.request,
        token=message.context.token,
        guess=Guess(exit=2, class_id=1, confidence=0.8),
        reason=reason,  # type: ignore[arg-type]
        spent_s=0.1,
        hops=message.progress.hops,
    )


# ---------------------------------------------------------------- the happy paths


def test_a_sure_first_exit_is_answered_where_the_input_came_in():
    node = origin_node(0)
    request, effects = node.accept(0.0, "img7", INPUT)
    effects = finish(node, 0.02, effects, SURE)
    (result,) = published(effects, Result)
    assert (result.request, result.input, result.label, result.exit) == (request, "img7", "a", 0)
    assert (result.reason, result.final, result.late, result.attempt) == ("confident", True, False, 1)
    assert result.latency_s == pytest.approx(0.02)
    assert [hop.device for hop in result.hops] == ["cam"]
    assert node.pending == 1
    assert node.published(request)
    assert node.pending == 0
    assert node.idle()


def test_an_unsure_input_travels_and_its_outcome_becomes_the_result():
    origin, middle, end = origin_node(0), StageNode(node_settings("b1", 1)), StageNode(node_settings("b2", 2))
    request, message = send_on(origin)
    assert (message.stage, message.progress.guess.class_id) == (1, 0)
    effects = middle.receive(0.1, message, "d1")
    effects = finish(middle, 0.12, effects, UNSURE)
    (message,) = published(effects, StageMessage)
    assert effects[-1] == Acknowledge(delivery="d1")
    assert message.progress.spent_s == pytest.approx(0.02)
    effects = finish(end, 0.2, end.receive(0.2, message, "d2"), UNSURE, last=True)
    (outcome,) = published(effects, Outcome)
    assert (outcome.reason, outcome.guess.exit, len(outcome.hops)) == ("last", 2, 3)
    effects = origin.receive(0.3, outcome, "d3", "b2")
    (result,) = published(effects, Result)
    assert (result.request, result.exit, result.reason) == (request, 2, "last")
    assert [hop.stage for hop in result.hops] == [0, 1, 2]
    assert effects[-1] == Acknowledge(delivery="d3")


def test_stages_on_one_board_need_no_message():
    node = origin_node(0, 1, 2)
    _, effects = node.accept(0.0, "x", INPUT)
    effects = finish(node, 0.01, effects, UNSURE)
    assert not only(effects, Publish)
    effects = finish(node, 0.02, effects, UNSURE)
    (result,) = published(finish(node, 0.03, effects, UNSURE, last=True), Result)
    assert (result.exit, result.reason) == (2, "last")


def test_an_origin_without_stages_publishes_the_input():
    node = origin_node()
    _, effects = node.accept(0.0, "x", INPUT)
    (message,) = published(effects, StageMessage)
    assert (message.stage, message.progress.guess, message.progress.hops) == (0, None, ())


# ---------------------------------------------------------------- custody


def test_a_silent_hop_is_tried_once_more_and_then_falls_back_at_the_deadline():
    node = origin_node(0)
    send_on(node)
    resend_at = node.notify_at()
    assert resend_at == pytest.approx(0.5)
    (again,) = published(node.tick(resend_at), StageMessage)
    assert again.context.attempt == 2
    assert node.notify_at() == pytest.approx(0.75)
    assert only(node.tick(0.75), Publish) == []
    assert node.notify_at() == pytest.approx(1.0)
    (result,) = published(node.tick(1.0), Result)
    assert (result.reason, result.exit, result.attempt, result.label) == ("fallback", 0, 2, "a")


def test_a_deadline_during_inference_is_answered_without_a_guess():
    node = origin_node(0)
    _, effects = node.accept(0.0, "x", INPUT)
    (result,) = published(node.tick(1.0), Result)
    assert (result.reason, result.label, result.exit, result.confidence) == ("deadline", None, None, 0.0)
    effects = finish(node, 1.5, effects, SURE)
    assert not only(effects, Publish)
    assert only(effects, Drop)


def test_a_late_outcome_is_published_as_late_and_not_final():
    node = origin_node(0)
    request, message = send_on(node)
    node.tick(0.5)
    node.tick(1.0)
    for closed in (False, True):
        if closed:
            node.published(request)
        (late,) = published(node.receive(2.0, reply_to(message), "d", "b2"), Result)
        assert (late.final, late.late, late.exit) == (False, True, 2)
        assert late.latency_s == pytest.approx(2.0)
    assert node.telemetry().origin.late == 2


def test_both_attempts_answered_give_one_final_result():
    node = origin_node(0)
    _, message = send_on(node)
    (again,) = published(node.tick(0.5), StageMessage)
    first = published(node.receive(0.6, reply_to(again), 1, "b2"), Result)
    second = published(node.receive(0.7, reply_to(message), 2, "b2"), Result)
    assert [result.final for result in (*first, *second)] == [True, False]


def test_a_board_that_failed_costs_one_repetition_then_the_best_guess():
    node = origin_node(0)
    _, message = send_on(node)
    (again,) = published(node.receive(0.1, reply_to(message, "fallback"), 1, "b2"), StageMessage)
    assert again.context.attempt == 2
    (result,) = published(node.receive(0.2, reply_to(again, "fallback"), 2, "b2"), Result)
    assert result.reason == "fallback"


def test_full_books_shed_and_stay_bounded():
    node = origin_node(0, pending=3)
    results = []
    for index in range(10):
        results += published(node.accept(0.0, str(index), INPUT)[1], Result)
    assert [result.reason for result in results] == ["shed"] * 7
    assert (node.pending, node.room()) == (3, 0)


def test_a_full_inbox_sheds_the_oldest_first():
    node = StageNode(node_settings("b1", 1, inbox_max_messages=2))
    _, message = send_on(origin_node(0))
    messages = [changed(message, request=f"r{index}") for index in range(5)]
    effects = [effect for m in messages for effect in node.receive(0.0, m, m.context.request)]
    shed = published(effects, Outcome)
    # r0 runs; of the four that wait, the two oldest are shed.
    assert [(outcome.request, outcome.reason) for outcome in shed] == [("r1", "shed"), ("r2", "shed")]
    assert [effect.delivery for effect in only(effects, Acknowledge)] == ["r1", "r2"]
    assert shed[0].guess == message.progress.guess


def test_the_inbox_is_bounded_in_bytes_too():
    node = StageNode(node_settings("b1", 1, inbox_max_bytes=9))
    _, message = send_on(origin_node(0))
    effects = [e for i in range(5) for e in node.receive(0.0, changed(message, request=f"r{i}"), i)]
    assert len(published(effects, Outcome)) == 2


def test_what_has_run_out_of_budget_is_not_computed():
    node = StageNode(node_settings("b1", 1))
    _, message = send_on(origin_node(0))
    first = node.receive(0.0, message, 1)
    node.receive(0.0, changed(message, request="late"), 2)
    effects = finish(node, 5.0, first, SURE)
    assert Drop(request="late", reason="expired") in effects
    assert Acknowledge(delivery=2) in effects
    assert not only(effects, Run)


def test_a_deadline_too_near_for_the_rest_is_answered_at_this_exit():
    node = origin_node(0, pending=64)
    for _ in range(20):
        _, message = send_on(node)
        node.receive(0.4, reply_to(message), 1, "b2")
    _, effects = node.accept(1.0, "x", INPUT, deadline_s=0.3)
    (result,) = published(finish(node, 1.01, effects, UNSURE), Result)
    assert (result.reason, result.exit) == ("deadline", 0)


def test_one_slow_answer_does_not_keep_inputs_here_for_ever():
    node = origin_node(0, pending=64)
    _, message = send_on(node)
    node.receive(0.95, reply_to(message), 1, "b2")
    reasons = []
    for index in range(30):
        _, effects = node.accept(index + 1.0, "x", INPUT, deadline_s=0.5)
        done = finish(node, index + 1.0, effects, UNSURE)
        reasons += [result.reason for result in published(done, Result)]
        if published(done, StageMessage):
            break
    else:
        pytest.fail("never sent on again")
    assert set(reasons) == {"deadline"}


def test_the_first_unanswered_repetition_leaves_the_last_boards_out_and_probes_take_them_in():
    node = origin_node(0, pending=64)
    first, _ = send_on(node)
    node.tick(0.5)
    assert node.telemetry().origin.left_out == 0  # nobody can stand in for them
    told = lines(node.tick(0.75))
    assert told == [f"{board} does not answer, and is left out until it does" for board in ("b1", "b2")]
    _, effects = node.accept(0.8, "x", INPUT)
    effects = finish(node, 0.8, effects, UNSURE)
    (result,) = published(effects, Result)
    assert (result.reason, result.exit) == ("fallback", 0)
    assert lines(effects) == [f"no board answers for stage {stage}" for stage in (1, 2)]
    # The answer of an input never hangs on a probe: that has a request of its own, and nobody waits for it.
    assert node.notify_at() == pytest.approx(1.0)
    node.tick(1.0)
    probes = only(node.tick(1.75), Publish)
    assert sorted(probe.to for probe in probes) == ["b1", "b2"]
    assert all(probe.message.context.audit for probe in probes)
    assert not {probe.message.context.request for probe in probes} & {first, result.request}
    before = node.telemetry().origin
    for probe in probes:
        effects = node.receive(1.9, reply_to(probe.message, "fallback"), 1, probe.to)
        assert (lines(effects), effects[-1]) == (
            [f"{probe.to} answers again", f"stage {probe.to[1]} is served again"],
            Acknowledge(delivery=1),
        )
    assert node.telemetry().origin.accepted == before.accepted == 2
    assert published(finish(node, 2.0, node.accept(2.0, "z", INPUT)[1], UNSURE), StageMessage)


def test_what_nobody_took_is_sent_anew_but_not_for_ever():
    node = origin_node(0)
    _, message = send_on(node)
    attempts = [message]
    for _ in range(20):
        effects = node.receive(0.01, reply_to(attempts[-1], "moved"), 1, "b1")
        # It is at once there again, as far as its origin knows.
        meet(node, StageNode(node_settings("b1", 1, boot=f"b{len(attempts)}")), now=0.01)
        attempts += published(effects, StageMessage)
        if node.notify_at() == pytest.approx(1.0):
            break
    assert [sent.context.attempt for sent in attempts] == list(range(1, len(attempts) + 1))
    assert len(attempts) <= 8
    while node.pending:
        now = node.notify_at()
        assert now <= 1.0 + 1e-9
        for result in published(node.tick(now), Result):
            node.published(result.request)


def test_while_the_rest_is_dead_and_the_deadline_far_inputs_are_answered_at_the_local_exit():
    node = origin_node(0, pending=4, deadline_s=10.0)
    away = [send_on(node, now=0.01 * index)[0] for index in range(4)]
    assert node.room() == 0  # sources that can wait do
    for index in range(20):  # others are answered
        request, effects = node.accept(0.1 + index / 100, "x", INPUT)
        (result,) = published(finish(node, 0.1 + index / 100, effects, UNSURE), Result)
        assert (result.request, result.reason, result.label) == (request, "fallback", "a")
        node.published(request)
    now = 0.3
    while not node.telemetry().origin.left_out:
        now = max(now, node.notify_at())
        node.tick(now)
    assert now < 10.0
    assert node.room() == 4  # and sources that can wait need not any more
    effects = []
    while node.pending:
        effects += node.tick(node.notify_at())
        for result in published(effects, Result):
            node.published(result.request)
    assert {(result.request, result.label) for result in published(effects, Result)} == {(r, "a") for r in away}


def test_an_inference_error_is_answered():
    node = origin_node(0)
    _, effects = node.accept(0.0, "x", INPUT)
    (run,) = only(effects, Run)
    (result,) = published(node.failed(0.1, run.key, "boom"), Result)
    assert (result.reason, result.label) == ("fallback", None)


def test_a_message_the_transport_refuses_is_answered():
    node = origin_node(0)
    _, message = send_on(node)
    (result,) = published(node.refused(0.1, message), Result)
    assert (result.reason, result.exit) == ("fallback", 0)


def test_what_a_run_left_open_is_answered_by_the_next():
    node = origin_node(0)
    node.accept(0.0, "one", INPUT)
    node.accept(0.0, "two", INPUT)
    left = node.snapshot()
    again = StageNode(node.settings, restore=left)
    effects = again.tick(again.notify_at())
    names = set()
    while only(effects, Run):
        effects = finish(again, 0.1, effects, SURE)
        names |= {(result.input, result.attempt) for result in published(effects, Result)}
    assert names == {("one", 2), ("two", 2)}
    assert {item.request for item in left} == set(again._origin._custody.entries)


def test_what_does_not_fit_the_books_yet_waits_for_room_and_not_for_ticks():
    left = [AcceptedInput(request=f"r{index}", name="x", tensor=INPUT) for index in range(9)]
    node = StageNode(origin_node(0, pending=2).settings, restore=left)
    node.tick(node.notify_at())
    assert (node.room(), node.pending) == (0, 2)
    # The next tick is worth its while at a deadline, not at once and over and over.
    assert node.notify_at() == pytest.approx(1.0)


def test_the_same_input_again_is_dropped():
    node = origin_node(0)
    node.accept(0.0, "x", INPUT, request="mine")
    _, effects = node.accept(0.1, "x", INPUT, request="mine")
    assert effects == [Drop(request="mine", reason="duplicate")]


# ---------------------------------------------------------------- deliveries


def test_a_redelivery_after_the_work_is_acknowledged_and_not_repeated():
    node = StageNode(node_settings("b1", 1))
    _, message = send_on(origin_node(0))
    finish(node, 0.1, node.receive(0.0, message, 1), SURE)
    effects = node.receive(0.2, message, 2)
    assert effects == [Drop(request=message.context.request, reason="duplicate"), Acknowledge(delivery=2)]


def test_a_redelivery_during_the_work_takes_over_the_acknowledgement():
    node = StageNode(node_settings("b1", 1))
    _, message = send_on(origin_node(0))
    first = node.receive(0.0, message, "before the reconnect")
    # Harmless, where its connection is gone.
    assert node.receive(0.1, message, "after") == [Acknowledge(delivery="before the reconnect")]
    assert only(finish(node, 0.2, first, SURE), Acknowledge) == [Acknowledge(delivery="after")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"revision": "other"}, "revision"),
        ({"stage": 2}, "stage"),
        ({"route": ()}, "route"),
        ({"route": route_of((1, "b9"), (2, "b1"))}, "route"),
        ({"route": route_of((2, "b1"))}, "route"),
        ({"tensor": tensors.encode(np.zeros((1, 4), np.uint8))}, "dtype"),
        ({"tensor": tensors.encode(np.zeros((1, 5), np.int8))}, "shape"),
        ({"tensor": replace(INPUT, payload=b"123")}, "size"),
    ],
)
def test_messages_that_do_not_belong_here_are_refused(change, reason):
    node = StageNode(node_settings("b1", 1))
    _, message = send_on(origin_node(0))
    with pytest.raises(RemoteProtocolError) as caught:
        node.receive(0.0, changed(message, **change), 1)
    assert caught.value.reason == reason
    assert node.idle()


def test_outcomes_that_do_not_belong_here_are_refused():
    node = origin_node(0)
    _, message = send_on(node)
    for change, reason in [
        ({"request": "never"}, "request"),
        ({"token": b"guessed!"}, "token"),
        ({"guess": Guess(exit=3, class_id=0, confidence=0.5)}, "guess"),
        ({"guess": Guess(exit=2, class_id=0, confidence=0.5, missing=(0,))}, "guess"),
    ]:
        with pytest.raises(RemoteProtocolError) as caught:
            node.receive(0.1, changed(reply_to(message), **change), 1, "b2")
        assert caught.value.reason == reason
    for stranger in ("b9", "", "b0"):
        with pytest.raises(RemoteProtocolError, match="is not on its route") as caught:
            node.receive(0.1, reply_to(message), 1, stranger)
        assert caught.value.reason == "sender"
    for board in (None, "b9", "cam"):
        with pytest.raises(RemoteProtocolError, match="is not on its route") as caught:
            node.receive(0.1, replace(reply_to(message, "unreachable"), board=board), 1, "b1")
        assert caught.value.reason == "board"
    assert node.pending == 1


# ---------------------------------------------------------------- plans


def plan(epoch: int, *thresholds: float, criterion: str = "max_softmax", revision: str = "r1") -> Plan:
    return Plan(pipeline="p", epoch=epoch, model="toy", revision=revision, criterion=criterion, thresholds=thresholds)


def test_a_new_plan_applies_to_inputs_accepted_after_it():
    origin, end = origin_node(0), StageNode(node_settings("b1", 1))
    _, before = origin.accept(0.0, "before", INPUT)
    origin.receive(0.0, plan(1, 0.1, 0.1), "d")
    end.receive(0.0, plan(1, 0.1, 0.1), "d")
    (message,) = published(finish(origin, 0.0, before, UNSURE), StageMessage)
    assert message.context.rule.epoch == 0
    # The other board decides this input by epoch 0 as well, though epoch 1 would let it leave here.
    effects = finish(end, 0.1, end.receive(0.1, message, 1), UNSURE)
    assert published(effects, StageMessage)
    _, after = origin.accept(0.1, "after", INPUT)
    (result,) = published(finish(origin, 0.1, after, UNSURE), Result)
    assert (result.epoch, result.reason) == (1, "confident")


def test_the_deadline_rule_believes_what_the_request_tells_of_the_next_stage():
    for told, reason in ((0.1, None), (0.5, "deadline")):
        node = StageNode(node_settings("b1", 1))
        _, message = send_on(origin_node(0))
        effects = node.receive(0.6, changed(message, spent_s=0.6, rest_s=(0.0, told)), 2)
        effects = finish(node, 0.61, effects, UNSURE)
        (sent,) = [effect.message for effect in only(effects, Publish)]
        assert getattr(sent, "reason", None) == reason


def test_a_plan_that_tells_of_other_stages_is_refused():
    node = origin_node(0)
    with pytest.raises(RemoteProtocolError) as caught:
        node.receive(0.0, replace(plan(1, 0.5, 0.5), rest_s=(0.1,)), 1)
    assert caught.value.reason == "rest_s"


def test_the_plan_that_came_last_is_in_force_whatever_its_number():
    node = origin_node(0)
    for epoch in (MAX_EPOCH, 4, EPOCH_STEP + 4, 1, 1):
        thresholds = (0.5, epoch / MAX_EPOCH)
        node.receive(0.0, plan(epoch, *thresholds), 1)
        assert (node.plan.epoch, node.plan.thresholds) == (epoch, thresholds)
        assert node.telemetry().plan_hash == plan_hash(plan(epoch, *thresholds))
    node.receive(0.0, plan(1, 0.5, 0.25), 1)  # another one under the same number
    assert node.plan.thresholds == (0.5, 0.25)


def test_a_plan_too_far_beyond_the_one_held_is_refused():
    node = origin_node(0)
    node.receive(0.0, plan(5, 0.5, 0.5), 1)
    with pytest.raises(RemoteProtocolError, match="1006 is more than 1000 above 5") as caught:
        node.receive(0.0, plan(6 + EPOCH_STEP, 0.0, 0.0), 1)
    assert (caught.value.reason, node.plan) == ("epoch", plan(5, 0.5, 0.5))
    # A board that holds none yet takes whatever the orchestrator has come to meanwhile.
    fresh = origin_node(0)
    fresh.receive(0.0, plan(6 + EPOCH_STEP, 0.5, 0.5), 1)
    assert fresh.plan.epoch == 6 + EPOCH_STEP


def test_without_a_plan_on_its_topic_the_bundles_own_thresholds_hold_again():
    node = origin_node(0)
    own, own_hash = node.plan, node.telemetry().plan_hash
    node.receive(0.0, plan(5, 0.5, 0.5), 1)
    assert node.withdraw_plan("token") == [Acknowledge(delivery="token")]
    assert (node.plan, node.telemetry().plan_hash, node.telemetry().epoch) == (own, own_hash, 0)


def test_requests_that_are_under_way_are_decided_by_the_plan_of_their_acceptance():
    """Though another plan has its number: what decides travels with the request."""
    origin = origin_node(0)
    origin.receive(0.0, plan(1, 0.1, 0.1), "d")
    _, before = origin.accept(0.0, "before", INPUT)
    origin.receive(0.0, plan(1, NEVER, NEVER), "d")
    (result,) = published(finish(origin, 0.0, before, UNSURE), Result)
    assert (result.epoch, result.reason) == (1, "confident")
    _, after = origin.accept(0.1, "after", INPUT)
    assert published(finish(origin, 0.1, after, UNSURE), StageMessage)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (plan(1, 0.5), "thresholds"),
        (plan(1, 90.0, 80.0), "thresholds"),
        (plan(1, 0.5, -0.1), "thresholds"),
        (replace(plan(1, 0.5, 0.5), masked=(MaskedThresholds(missing=(0,), thresholds=(0.5, 80.0)),)), "thresholds"),
        (replace(plan(1, 0.5, 0.5), masked=(MaskedThresholds(missing=(0,), thresholds=(0.5,)),)), "masked"),
        (plan(1, 0.5, 0.5, criterion="nonsense"), "criterion"),
        (plan(1, 0.5, 0.5, revision="other"), "revision"),
        (replace(plan(1, 0.5, 0.5), pipeline="q"), "pipeline"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_changes_nothing(bad, reason):
    node = origin_node(0)
    with pytest.raises(RemoteProtocolError) as caught:
        node.receive(0.0, bad, 1)
    assert caught.value.reason == reason
    assert node.plan.epoch == 0


def test_only_so_many_epochs_are_kept():
    node = origin_node(0)
    for epoch in range(1, 100):
        node.receive(0.0, plan(epoch, 0.5, 0.5), epoch)
    assert len(node._plans._kept) <= 8


# ---------------------------------------------------------------- invariants


def test_the_tables_can_be_read():
    text = transition_tables()
    assert len(text.splitlines()) == len(TABLES) + sum(map(len, TABLES.values()))


def test_round_trip_estimate_backs_off_and_recovers():
    trip = RoundTrip(0.01)
    assert trip.timeout_s(1.0) == 0.5
    for _ in range(50):
        trip.sample(0.1)
    assert trip.timeout_s(1.0) == pytest.approx(0.1, rel=0.2)
    trip.backoff = 4
    assert trip.timeout_s(1.0) > 0.35
    trip.sample(0.1)
    assert trip.backoff == 1


BOARDS = ["b1", "b2", "t1"]

events = st.lists(
    st.one_of(
        st.just(("accept",)),
        st.tuples(st.just("complete"), st.sampled_from([SURE, UNSURE])),
        st.just(("fail",)),
        st.tuples(
            st.just("reply"),
            st.integers(0, 5),
            st.sampled_from(["last", "confident", "fallback", "shed", "moved", "unreachable"]),
        ),
        st.tuples(st.just("unread"), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.floats(0.001, 0.7), st.booleans()),
        st.just(("acknowledge",)),
        st.tuples(st.just("announced"), st.sampled_from(BOARDS), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("state"), st.sampled_from(BOARDS), st.integers(0, 2), st.sampled_from(list(DeviceStatus))),
        st.tuples(st.just("withdrawn"), st.sampled_from(BOARDS)),
        st.just(("connected",)),
        st.just(("called",)),
    ),
    max_size=60,
)


@given(events)
@settings(max_examples=often(300), deadline=None)
def test_every_accepted_input_gets_exactly_one_final_result_by_its_deadline(script):
    """Whatever happens in whatever order; time moves in steps of at most 0.7 s and each step is ticked."""
    known = {
        (device, run): StageNode(node_settings(device, int(device[1]), boot=f"run{run}"))
        for device in BOARDS
        for run in range(3)
    }
    node, now = origin_node(0, pending=5, known=[known[device, 0] for device in BOARDS]), 0.0
    accepted: dict[str, float] = {}
    final: dict[str, float] = {}
    away: list[tuple[str, StageMessage]] = []
    runs: list[Run] = []

    def carry_out(effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Run):
                runs.append(effect)
            elif isinstance(effect, Publish) and isinstance(effect.message, StageMessage):
                assert effect.to in BOARDS
                away.append((effect.to, effect.message))
            elif isinstance(effect, Publish) and isinstance(effect.message, Result) and effect.message.final:
                assert effect.message.request not in final
                final[effect.message.request] = now

    def advance(to: float) -> Iterator[float]:
        while node.notify_at() <= to:
            yield max(now, node.notify_at())
        yield to

    for step in [*script, ("wait", 0.7, False), ("wait", 0.7, False)]:
        match step:
            case ("accept",):
                request, effects = node.accept(now, "x", INPUT)
                accepted[request] = now
                carry_out(effects)
            case ("complete", logits) if runs:
                carry_out(node.completed(now, runs.pop(0).key, output(logits), 0.01))
            case ("fail",) if runs:
                carry_out(node.failed(now, runs.pop(0).key, "boom"))
            case ("reply", index, reason) if index < len(away):
                board, message = away[index]
                reply = replace(reply_to(message, reason), board=board if reason == "unreachable" else None)
                carry_out(node.receive(now, reply, index, board))
            case ("unread", index) if index < len(away):
                board, message = away[index]
                carry_out(node.no_subscribers(now, message, board))
            case ("wait", seconds, is_owed):
                owed_since = now if is_owed else float("inf")
                for moment in advance(now + seconds):
                    now = moment
                    carry_out(node.tick(now, owed_since))
            case ("acknowledge",):
                for request in list(final):
                    node.published(request)
            case ("announced", device, run, is_live):
                carry_out(announce(node, known[device, run].announce(), now, is_live=is_live))
            case ("state", device, run, status):
                carry_out(node.state_changed(now, state_of(known[device, run], status)))
            case ("withdrawn", device):
                carry_out(node.withdrawn(now, device, int(device[1])))
            case ("connected",):
                carry_out(node.connected(now))
            case ("called",):
                node.called(now, "else")
    assert final.keys() == accepted.keys()
    assert all(final[request] <= accepted[request] + 1.0 + 1e-9 for request in accepted)
    assert len(runs) <= 1
    assert node.books()["loads"] == node.books()["away"] == 0
