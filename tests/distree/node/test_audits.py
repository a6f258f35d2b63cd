"""Audits: which inputs are drawn, what comes of them, and that nobody who waits for an answer waits for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_fleet import MISSES_B1, MISSES_ONE, SURE, UNSURE, WIDE, Fleet, fleet, node_settings
from request_samples import changed, request_of
from test_wide_node import both_fusers, both_modes
from thoroughness import often

from distree.errors import RemoteProtocolError
from distree.messages.device import DeviceStatus
from distree.messages.plan import Plan
from distree.messages.request import Outcome, Reading, StageMessage
from distree.node import Acknowledge, OriginSettings, Publish, Run, StageNode
from distree.node.audits import AUDIT_BUDGET_S, MAX_OPEN, AuditBooks
from distree.node.exits import reading
from distree.node.inbox import MAX_AUDITS_WAITING

SECOND = [0.0, 9.0, 0.0]


def plan(rate: float, *, epoch: int = 1, criterion: str = "max_softmax") -> Plan:
    return Plan(
        pipeline="p", epoch=epoch, model="toy", revision="r1", criterion=criterion, thresholds=(0.9, 0.9),
        audit_rate=rate,
    )  # fmt: skip


def audited(lab: Fleet, rate: float = 1.0) -> Fleet:
    for node in lab.nodes.values():
        node.receive(0.0, plan(rate), None)
    return lab


def chain(*, script: dict[int, list[float]] | None = None, rate: float = 1.0, **changes: object) -> Fleet:
    """Origin `cam` with stage 0, and the boards `b1` and `b2` of a chain of three plain stages."""
    origin = OriginSettings(deadline_s=1.0, max_pending=4, min_retry_s=0.3)
    changes = {"embeddings": (), "masked": (), **changes}
    nodes = {
        "cam": StageNode(node_settings("cam", 0, origin=origin, **changes)),
        "b1": StageNode(node_settings("b1", 1, **changes)),
        "b2": StageNode(node_settings("b2", 2, **changes)),
    }
    return audited(Fleet(nodes, script or {}), rate)


def mixed() -> Fleet:
    """A plain stage, a wide one of the branches `b0` and `b1`, and a plain one on `b2`."""
    shapes = {"embeddings": ((), WIDE, ()), "masked": ()}
    origin = OriginSettings(deadline_s=1.0, max_pending=4, min_retry_s=0.3)
    nodes = {
        "cam": StageNode(node_settings("cam", 0, origin=origin, **shapes)),
        "b0": StageNode(node_settings("b0", 1, branch=0, **shapes)),
        "b1": StageNode(node_settings("b1", 1, branch=1, **shapes)),
        "b2": StageNode(node_settings("b2", 2, **shapes)),
    }
    return audited(Fleet(nodes, {0: UNSURE, 1: UNSURE}))


# ---------------------------------------------------------------- the lots


def books(key: bytes = b"key", **changes: object) -> AuditBooks:
    return AuditBooks(node_settings("cam", 0, secret=key, **changes))


def test_the_share_drawn_is_the_rate():
    lots = books()
    drawn = sum(lots.draw(f"request-{n}", 0.1) for n in range(20_000))
    assert drawn == lots.drawn == pytest.approx(2000, rel=0.1)
    assert not any(books().draw(f"request-{n}", 0.0) for n in range(100))
    assert all(books().draw(f"request-{n}", 1.0) for n in range(100))


def test_who_does_not_know_the_key_cannot_foresee_the_lots():
    one, other = ([books(key).draw(f"{n}", 0.5) for n in range(1000)] for key in (b"one", b"other"))
    agreed = sum(a == b for a, b in zip(one, other, strict=True))
    assert agreed == pytest.approx(500, abs=80)
    assert one == [books(b"one").draw(f"{n}", 0.5) for n in range(1000)]


def test_a_higher_rate_draws_what_a_lower_one_draws():
    few, many = ([books().draw(f"{n}", rate) for n in range(500)] for rate in (0.1, 0.4))
    assert all(b for a, b in zip(few, many, strict=True) if a)


def test_readings_are_finite_and_no_number_is_the_least_score():
    assert [reading(score, 1).score for score in (0.5, float("inf"), float("-inf"), float("nan"))] == [
        0.5, 1e300, -1e300, -1e300,
    ]  # fmt: skip


# ---------------------------------------------------------------- what comes of an audit


def test_an_input_that_left_early_is_run_again_to_the_end():
    lab = chain(script={0: SURE, 1: SECOND, 2: SECOND})
    request = lab.accept()
    lab.settle()
    (result,) = lab.results
    assert (result.request, result.exit, result.reason, result.epoch) == (request, 0, "confident", 1)
    (row,) = lab.rows
    assert (row.request, row.origin, row.boot, row.sequence) == (request, "cam", "cam", 1)
    assert (row.revision, row.epoch, row.criterion, row.lost) == ("r1", 1, "max_softmax", False)
    assert row.predictions == (0, 1, 1)
    assert row.scores == pytest.approx((0.99975, 0.99975), abs=1e-4)
    assert [hop.device for hop in row.hops] == ["cam", "b1", "b2"]
    assert lab.runs == {("cam", 0): 2, ("b1", 1): 1, ("b2", 2): 1}


def test_an_input_that_went_to_the_end_needs_no_second_run():
    lab = chain(script={0: UNSURE, 1: UNSURE, 2: SECOND})
    lab.accept()
    lab.settle()
    (row,) = lab.rows
    assert (row.predictions, lab.runs) == ((0, 0, 1), {("cam", 0): 1, ("b1", 1): 1, ("b2", 2): 1})
    assert row.scores == pytest.approx((0.356, 0.356), abs=1e-3)
    assert [result.reason for result in lab.results] == ["last"]


@pytest.mark.parametrize("lost", [set(), {"b1"}])
def test_an_audit_does_not_hide_behind_a_plain_exit_that_a_branch_was_missing(lost):
    lab = mixed()
    lab.lose = lost
    lab.accept()
    for _ in range(3):
        lab.settle()
        lab.tick(0.11)
    assert [(result.exit, result.reason) for result in lab.results] == [(2, "last")]
    lab.tick(AUDIT_BUDGET_S)
    lab.settle()
    assert [(row.lost, row.missing) for row in lab.rows] == [(bool(lost), ())]


def test_inputs_that_are_not_drawn_carry_no_trace():
    lab = chain(script={0: UNSURE, 1: UNSURE}, rate=0.0)
    lab.accept()
    lab.compute()
    (_, message, _), *_ = lab.flying
    assert (message.progress.trace, message.context.audit) == (None, False)
    lab.settle()
    assert (lab.rows, len(lab.results)) == ([], 1)


@both_modes
@both_fusers
@pytest.mark.parametrize("exit_taken", [0, 1, 2])
def test_wide_stages_are_audited_alike(eager, fuser, exit_taken):
    script = dict.fromkeys(range(exit_taken), UNSURE) | {2: SECOND}
    lab = audited(fleet(eager=eager, fuser=fuser, script=script))
    request = lab.accept()
    lab.settle()
    assert [(result.request, result.exit) for result in lab.results] == [(request, exit_taken)]
    (row,) = lab.rows
    assert (row.request, row.predictions, row.missing) == (request, (0, 0, 1), ())
    assert len(row.scores) == 2
    assert all(node.idle() or node.pending for node in lab.nodes.values())
    # Eager branches have gone on before they were stopped; the audit's do not.
    assert lab.runs["b0", 2] == 1 + (eager and exit_taken < 2)
    assert not lab.refused


def test_wide_stages_between_plain_ones_are_audited_alike():
    wide = (("int8", (1, 2)), ("int8", (1, 3)))
    changes = {"embeddings": ((), wide, ())}
    origin = OriginSettings(deadline_s=1.0, max_pending=8, min_retry_s=0.3)
    nodes = {
        "cam": StageNode(node_settings("cam", 0, origin=origin, **changes)),
        "b0": StageNode(node_settings("b0", 1, branch=0, **changes)),
        "b1": StageNode(node_settings("b1", 1, branch=1, **changes)),
        "end": StageNode(node_settings("end", 2, **changes)),
    }
    lab = audited(Fleet(nodes, {2: SECOND}))
    lab.accept()
    lab.settle()
    (row,) = lab.rows
    assert (row.predictions, len(row.scores), [result.exit for result in lab.results]) == ((0, 0, 1), 2, [0])
    assert not lab.refused


def test_an_absent_branch_stands_in_the_row():
    lab = audited(fleet())
    lab.lose.add("b1")
    for _ in range(4):
        lab.accept()
        lab.settle()
        lab.tick(0.2)
        lab.settle()
    assert [result.missing for result in lab.results] == [MISSES_B1] * 3 + [MISSES_ONE]
    lab.tick(AUDIT_BUDGET_S)
    # Once the branch is known to be gone, audits do not wait for it either.
    assert [row.missing for row in lab.rows if not row.lost][-1] == (1,)
    assert len(lab.rows) == 4


def test_exits_that_heard_different_branches_make_no_row_of_scores():
    lab = audited(fleet(script={0: UNSURE, 1: UNSURE, 2: SURE}, masked=()))
    lab.tick(0.01)
    lab.accept()
    lab.settle()
    assert [row.lost for row in lab.rows] == [False]
    # From here on it is known how soon branches answer: the second exit is decided before anybody is asked again.
    lab.accept()
    while lab.runs["b1", 0] + lab.runs["b0", 0] < 4 or lab.flying:
        lab.compute() if lab.work else lab.deliver()
    lab.compute()  # the first fusion head, which has heard both
    lab.lose.add("b1")
    for _ in range(5):
        lab.settle()
        lab.tick(0.11)
    assert [(result.reason, result.missing) for result in lab.results] == [("last", ()), ("last", MISSES_B1)]
    lab.tick(AUDIT_BUDGET_S)
    assert [row.lost for row in lab.rows] == [False, True]


# ---------------------------------------------------------------- audits that come to nothing


def drawn_and_left_early(**changes: object) -> Fleet:
    """A chain whose first input has been answered and is on its way as an audit, to stage 1."""
    lab = chain(script={0: SURE}, **changes)
    lab.accept()
    lab.compute()
    lab.compute()
    assert [type(message) for _, message, _ in lab.flying] == [StageMessage]
    return lab


def test_an_audit_without_an_answer_is_a_lost_row_in_the_end():
    lab = drawn_and_left_early()
    lab.flying.clear()
    lab.tick(AUDIT_BUDGET_S - 1.0)
    assert lab.rows == []
    lab.tick(2.0)
    (row,) = lab.rows
    assert (row.lost, row.scores, row.predictions, row.request) == (True, (), (), lab.results[0].request)
    assert lab.nodes["cam"].telemetry().origin.audits_lost == 1


def test_a_late_answer_to_an_audit_changes_nothing():
    lab = drawn_and_left_early()
    lab.compute() if lab.work else None
    lab.deliver()
    lab.tick(AUDIT_BUDGET_S + 1.0)
    lab.settle()
    assert [row.lost for row in lab.rows] == [True]
    assert not lab.refused


@pytest.mark.parametrize("change", [{}, {"token": b"guessed!"}])
def test_only_a_board_on_the_route_of_an_audit_answers_it(change):
    lab = drawn_and_left_early()
    while not any(isinstance(message, Outcome) for _, message, _ in lab.flying):
        lab.compute() if lab.work else lab.deliver()
    board, outcome, sender = lab.flying[-1]
    lab.flying.append(lab.flying[-1]._replace(message=replace(outcome, **change), sender=sender if change else "b9"))
    lab.deliver(-1)
    assert [error.reason for error in lab.refused] == ["token" if change else "sender"]
    assert not lab.rows
    lab.settle()
    assert [(board, row.lost) for row in lab.rows] == [("cam", False)]


@pytest.mark.parametrize("change", [{"trace": None}, {"reason": "confident", "trace": None}])
def test_an_answer_that_does_not_know_all_exits_is_a_lost_audit(change):
    lab = drawn_and_left_early()
    while not any(isinstance(message, Outcome) for _, message, _ in lab.flying):
        lab.compute() if lab.work else lab.deliver()
    letter = lab.flying.pop()
    lab.flying.append(letter._replace(message=replace(letter.message, **change)))
    lab.deliver()
    assert [row.lost for row in lab.rows] == [True]


@pytest.mark.parametrize(
    "trace", [(Reading(score=0.0, class_id=0),) * 4, (Reading(score=0.0, class_id=3),) * 3], ids=["exits", "classes"]
)
def test_a_trace_that_this_bundle_cannot_give_is_refused(trace):
    lab = drawn_and_left_early()
    while not any(isinstance(message, Outcome) for _, message, _ in lab.flying):
        lab.compute() if lab.work else lab.deliver()
    _, outcome, sender = lab.flying.pop()
    with pytest.raises(RemoteProtocolError) as caught:
        lab.nodes["cam"].receive(lab.now, replace(outcome, trace=trace), 1, sender)
    assert caught.value.reason == "trace"
    assert lab.rows == []


def test_a_failing_board_loses_the_audit_at_once():
    lab = drawn_and_left_early()
    lab.deliver()
    board, job = lab.work.pop()
    lab.carry_out(board, lab.nodes[board].failed(lab.now, job.key, "boom"))
    lab.settle()
    assert [row.lost for row in lab.rows] == [True]


def test_audits_that_the_broker_refuses_are_lost_at_once():
    lab = drawn_and_left_early()
    _, message, _ = lab.flying.pop()
    lab.carry_out("cam", lab.nodes["cam"].refused(lab.now, message))
    assert [row.lost for row in lab.rows] == [True]


def test_a_board_that_stops_gives_its_audits_up():
    lab = drawn_and_left_early()
    lab.carry_out("cam", lab.nodes["cam"].give_up_audits(lab.now))
    assert [row.lost for row in lab.rows] == [True]
    assert StageNode(node_settings("b1", 1)).give_up_audits(0.0) == []


def test_the_number_of_audits_is_bounded_and_what_is_too_much_is_lost():
    lab = chain(script={0: SURE})
    lab.lose |= {"b1"}
    for _ in range(MAX_OPEN + 5):
        lab.accept()
        lab.settle()
        lab.nodes["cam"].published(lab.results[-1].request)
    assert [row.lost for row in lab.rows] == [True] * 5
    assert [row.sequence for row in lab.rows] == [1, 2, 3, 4, 5]


def test_an_audit_goes_to_boards_that_answer_or_not_at_all():
    lab = chain(script={0: SURE})
    lab.nodes["a1"] = StageNode(node_settings("a1", 1, embeddings=(), masked=()))
    lab.introduce("cam")
    (letter,) = [*drawn_and_left_early().flying]
    lab.carry_out("cam", lab.nodes["cam"].no_subscribers(0.0, letter.message, "b1"))
    lab.accept()
    lab.compute()
    lab.compute()
    assert lab.on_the_way() == ["a1"]
    assert all(node.idle() or node.pending for node in lab.nodes.values())
    lab.flying.clear()
    lab.state_changed("a1", DeviceStatus.LOST)
    lab.accept()
    lab.compute()
    lab.compute()
    assert (lab.on_the_way(), [row.lost for row in lab.rows]) == ([], [True])


def test_nobody_is_blamed_for_an_audit_that_is_lost():
    lab = chain(script={0: SURE})
    lab.lose = {"b1", "b2"}
    for _ in range(5):
        lab.accept()
        lab.settle()
        lab.tick(AUDIT_BUDGET_S + 1.0)
    assert [row.lost for row in lab.rows] == [True] * 5
    assert lab.nodes["cam"].telemetry().origin.left_out == 0
    assert lab.told == []


# ---------------------------------------------------------------- those who wait for an answer go first


def test_an_audit_waits_for_every_input_that_waits_for_an_answer():
    node = StageNode(node_settings("b1", 1, embeddings=(), masked=()))
    sender = chain(script={0: SURE})
    sender.accept()
    sender.settle()
    _, sent, _ = drawn_and_left_early().flying.pop()
    live = changed(sent, audit=False, trace=None)
    (run,) = [effect for effect in node.receive(0.0, changed(live, request="first"), 1) if isinstance(effect, Run)]
    assert node.receive(0.0, changed(sent, request="audit"), 2) == [Acknowledge(delivery=2)]
    assert node.receive(0.0, changed(live, request="second"), 3) == []
    order = []
    for now in (0.1, 0.2, 0.3):
        effects = node.completed(now, run.key, sender.output("b1", run), 0.01)
        order += [request_of(effect.message) for effect in effects if isinstance(effect, Publish)]
        run = next((effect for effect in effects if isinstance(effect, Run)), run)
    assert order == ["first", "second", "audit"]
    stage = node.telemetry().stages[0]
    assert (stage.received, stage.exited, stage.forwarded, stage.audited) == (2, 2, 0, 1)


def test_an_audit_gives_way_between_two_stages_of_one_board():
    origin = OriginSettings(deadline_s=1.0, max_pending=8, min_retry_s=0.3)
    lab = audited(
        Fleet({"cam": StageNode(node_settings("cam", 0, 1, 2, origin=origin, embeddings=(), masked=()))}, {0: SURE})
    )
    first = lab.accept()
    lab.compute()
    second = lab.accept()
    lab.compute()
    # The audit of the first has run stage 0 and now lets the second input go.
    assert [result.request for result in lab.results] == [first]
    lab.compute()
    assert [result.request for result in lab.results] == [first, second]
    lab.settle()
    assert [row.request for row in lab.rows] == [first, second]


def test_too_many_waiting_audits_are_shed_and_inputs_are_not():
    node = StageNode(node_settings("b1", 1, embeddings=(), masked=(), inbox_max_messages=4))
    _, sent, _ = drawn_and_left_early().flying.pop()
    node.receive(0.0, changed(sent, request="live", audit=False, trace=None), 0)
    effects = []
    for n in range(MAX_AUDITS_WAITING + 3):
        effects += node.receive(0.0, changed(sent, request=f"audit-{n}"), n)
    shed = [effect.message for effect in effects if isinstance(effect, Publish)]
    assert [(outcome.request, outcome.reason) for outcome in shed] == [(f"audit-{n}", "shed") for n in range(3)]
    for n in range(4):
        assert node.receive(0.0, changed(sent, request=f"live-{n}", audit=False, trace=None), n) == []


def test_kept_features_of_audits_are_dropped_before_those_of_inputs():
    lab = audited(fleet(inbox_max_messages=2))
    node = lab.nodes["b0"]
    lab.accept()
    while not any(isinstance(message, StageMessage) for _, message, _ in lab.flying):
        lab.compute()
    _, sent, _ = lab.flying.pop()
    live = changed(sent, audit=False, trace=None)
    for request, message in [("live-1", live), ("audit", changed(sent, audit=True)), ("live-2", live)]:
        effects = node.receive(0.0, changed(message, request=request), request)
        (run,) = [effect for effect in effects if isinstance(effect, Run)]
        node.completed(0.0, run.key, lab.output("b0", run), 0.01)
    assert [job.context.request for job in node._branch._kept.values()] == ["live-1", "live-2"]


def test_an_audit_repeated_by_the_broker_is_run_once():
    lab = drawn_and_left_early()
    lab.flying.append(lab.flying[0])
    lab.settle()
    assert lab.runs["b1", 1] == 1
    assert len(lab.rows) == 1


# ---------------------------------------------------------------- invariants

steps = st.lists(
    st.one_of(
        st.just(("accept",)),
        st.tuples(st.just("deliver"), st.integers(0, 5)),
        st.tuples(st.just("lose"), st.integers(0, 5)),
        st.tuples(st.just("twice"), st.integers(0, 5)),
        st.tuples(st.just("compute"), st.integers(0, 3)),
        st.tuples(st.just("fail"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.floats(0.001, 0.4)),
        st.tuples(st.just("dies"), st.sampled_from(["b1"])),
        st.tuples(st.just("lives"), st.sampled_from(["b1"])),
        st.tuples(st.just("bounce"), st.integers(0, 5)),
        st.tuples(st.just("drains"), st.sampled_from(["b1"])),
        st.tuples(st.just("state"), st.sampled_from(["b1"]), st.sampled_from(list(DeviceStatus))),
    ),
    max_size=80,
)


@given(
    script=steps,
    wide=st.booleans(),
    eager=st.booleans(),
    fuser=st.sampled_from([None, "hub"]),
    exits=st.dictionaries(st.integers(0, 2), st.sampled_from([SURE, UNSURE])),
    rate=st.sampled_from([0.5, 1.0]),
)
@settings(max_examples=often(300), deadline=None)
def test_one_result_of_each_input_and_one_row_of_each_that_was_drawn(script, wide, eager, fuser, exits, rate):
    """Whatever is lost, repeated, reordered or dead: rows are numbered without gaps, and results are on time."""
    if wide:
        lab = audited(fleet(eager=eager, fuser=fuser, script=exits, inbox_max_messages=4), rate)
    else:
        lab = chain(script=exits, rate=rate, inbox_max_messages=4)
    accepted = []
    for step in [*script, ("wait", AUDIT_BUDGET_S), ("wait", 1.0), ("wait", AUDIT_BUDGET_S)]:
        match step:
            case ("accept",):
                accepted.append(lab.accept())
            case ("deliver", index) if index < len(lab.flying):
                lab.deliver(index)
            case ("lose", index) if index < len(lab.flying):
                lab.flying.pop(index)
            case ("twice", index) if index < len(lab.flying):
                lab.flying.append(lab.flying[index])
            case ("compute", index) if index < len(lab.work):
                lab.compute(index)
            case ("fail", index) if index < len(lab.work):
                board, job = lab.work.pop(index)
                lab.carry_out(board, lab.nodes[board].failed(lab.now, job.key, "boom"))
            case ("wait", seconds):
                lab.tick(seconds)
            case ("dies", board):
                lab.lose.add(board)
            case ("lives", board):
                lab.lose.discard(board)
            case ("bounce", index) if index < len(lab.flying):
                lab.bounce(index)
            case ("drains", board):
                lab.nodes[board].drain()
            case ("state", board, status):
                lab.state_changed(board, status)
    assert Counter(result.request for result in lab.results if result.final) == dict.fromkeys(accepted, 1)
    assert all(result.latency_s <= 1.0 + 1e-9 for result in lab.results if result.final)
    origin = lab.nodes["cam"].telemetry().origin
    assert origin.audits_drawn == len(lab.rows) == len({row.request for row in lab.rows})
    assert {row.request for row in lab.rows} <= set(accepted)
    assert [row.sequence for row in lab.rows] == list(range(1, len(lab.rows) + 1))
    assert all(len(row.predictions) == 3 for row in lab.rows if not row.lost)
    if rate == 1.0:
        # What is turned away at the door is not drawn.
        assert len(lab.rows) == origin.accepted


def test_results_are_what_they_are_without_audits():
    def answers(rate: float) -> list[tuple[str, int | None, str]]:
        lab = chain(script={0: UNSURE, 1: SURE}, rate=rate)
        for _ in range(20):
            lab.accept()
            lab.settle()
            lab.nodes["cam"].published(lab.results[-1].request)
        return [(result.label or "", result.exit, result.reason) for result in lab.results]

    assert answers(0.0) == answers(1.0)
