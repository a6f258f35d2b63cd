"""Wide stages: origins, branches and fusing boards as real nodes, over a link made of lists."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_fleet import MISSES_B1, MISSES_ONE, SURE, UNSURE, WIDE, Fleet, announce, fleet, node_settings
from request_samples import changed, route_of
from thoroughness import often

from distree import tensors
from distree.errors import RemoteProtocolError
from distree.messages.device import DeviceStatus
from distree.messages.plan import MaskedThresholds, Plan
from distree.messages.request import Decision, Embedding
from distree.node import Fuse, OriginSettings, StageNode

both_modes = pytest.mark.parametrize("eager", [False, True])
both_fusers = pytest.mark.parametrize("fuser", [None, "hub"])


# ---------------------------------------------------------------- the happy paths


@both_modes
@both_fusers
@pytest.mark.parametrize("exit_taken", [0, 1, 2])
def test_an_input_is_answered_at_the_first_sure_exit(eager, fuser, exit_taken):
    lab = fleet(eager=eager, fuser=fuser, script=dict.fromkeys(range(exit_taken), UNSURE))
    request = lab.accept()
    lab.settle()
    (result,) = lab.results
    assert (result.request, result.exit, result.final, result.missing) == (request, exit_taken, True, ())
    assert result.reason == ("last" if exit_taken == 2 else "confident")
    assert not lab.refused
    lab.nodes["cam"].published(request)
    assert all(node.idle() for node in lab.nodes.values())


def test_gated_runs_no_segment_after_the_exit():
    lab = fleet(script={0: UNSURE})
    lab.accept()
    lab.settle()
    assert lab.runs == {(board, stage): 1 for board in ("b0", "b1") for stage in (0, 1)}


def test_eager_runs_on_and_counts_what_was_wasted():
    lab = fleet(eager=True)
    lab.accept()
    lab.settle()
    assert lab.results[0].exit == 0
    wasted = sum(stage.wasted for board in ("b0", "b1") for stage in lab.nodes[board].telemetry().stages)
    assert wasted == sum(count for (_, stage), count in lab.runs.items() if stage > 0) > 0


def test_an_eager_branch_that_waits_is_stopped_before_it_runs():
    lab = fleet(eager=True, fuser="hub")
    lab.accept()
    lab.accept()
    for _ in range(4):
        lab.deliver()
    # Each branch has run the first input's first stage; the second input's runs before the first one's next stage.
    lab.compute(), lab.compute()
    assert [job.stage for _, job in lab.work] == [0, 0]
    lab.deliver(), lab.deliver()
    lab.compute(next(i for i, (board, _) in enumerate(lab.work) if board == "hub"))
    while lab.flying:
        lab.deliver()
    lab.settle()
    assert len([result for result in lab.results if result.final]) == 2
    first = lab.results[0].request
    assert not any(
        job.context.request == first for board in ("b0", "b1") for job in lab.nodes[board]._branch._live.values()
    )


def test_hops_name_every_board():
    lab = fleet(fuser="hub", script={0: UNSURE})
    lab.accept()
    lab.settle()
    hops = [(hop.device, hop.stage) for hop in lab.results[0].hops]
    assert sorted(hops) == [("b0", 0), ("b0", 1), ("b1", 0), ("b1", 1), ("hub", 0), ("hub", 1)]


@both_modes
@both_fusers
def test_a_wide_stage_in_a_chain(eager, fuser):
    origin = OriginSettings(deadline_s=1.0, min_retry_s=0.3, fuser=fuser, eager=eager)
    shape = {
        "inputs": (("int8", (1, 4)),) * 5,
        "embeddings": ((), WIDE, WIDE, (), ()),
        "thresholds": (0.9,) * 4,
        "masked": (),
    }
    lab = Fleet(
        {
            "cam": StageNode(node_settings("cam", 0, origin=origin, **shape)),
            "b0": StageNode(node_settings("b0", 1, 2, branch=0, **shape)),
            "b1": StageNode(node_settings("b1", 1, 2, branch=1, **shape)),
            "hub": StageNode(node_settings("hub", fuses=True, **shape)),
            "end": StageNode(node_settings("end", 3, 4, **shape)),
        },
        dict.fromkeys(range(4), UNSURE),
    )
    lab.accept()
    lab.settle()
    (result,) = lab.results
    assert (result.exit, result.reason) == (4, "last")
    assert [hop.stage for hop in result.hops if hop.device not in ("hub", "cam")] in ([1, 1, 2, 2, 3, 4],)
    assert not lab.refused


def test_an_origin_can_run_a_branch_and_fuse():
    origin = OriginSettings(deadline_s=1.0)
    lab = fleet(script={0: UNSURE, 1: UNSURE})
    lab.nodes["cam"] = StageNode(node_settings("cam", 0, 1, 2, branch=0, origin=origin))
    del lab.nodes["b0"]
    lab.introduce("cam")
    lab.accept()
    lab.settle()
    assert lab.results[0].reason == "last"
    assert lab.runs == {(board, stage): 1 for board in ("cam", "b1") for stage in range(3)}


# ---------------------------------------------------------------- missing branches


@both_modes
@both_fusers
def test_a_missing_branch_is_masked_after_its_time_out(eager, fuser):
    lab = fleet(eager=eager, fuser=fuser, script={0: [1.0, 0.0, 0.0]})
    lab.lose = {"b1"}
    lab.accept()
    lab.settle()
    assert not lab.results
    lab.tick(0.099)
    assert not lab.work
    lab.tick(0.002)
    lab.settle()
    # Max softmax 0.58 is below the threshold of all branches and above that of one without branch 1.
    (result,) = lab.results
    assert (result.exit, result.reason, result.missing) == (0, "confident", MISSES_B1)


def test_without_thresholds_for_a_mask_only_the_last_exit_is_taken():
    lab = fleet(masked=())
    lab.lose = {"b1"}
    lab.accept()
    for _ in range(3):
        lab.settle()
        lab.tick(0.11)
    assert (lab.results[0].exit, lab.results[0].missing) == (2, MISSES_B1)


def test_masked_thresholds_of_a_plan_replace_the_bundles():
    lab = fleet(script={0: [1.0, 0.0, 0.0]})
    masked = (MaskedThresholds(missing=(1,), thresholds=(0.8, 0.8)),)
    plan = Plan(
        pipeline="p", epoch=1, model="toy", revision="r1", criterion="max_softmax", thresholds=(0.9, 0.9), masked=masked
    )
    lab.nodes["cam"].receive(0.0, plan, "d")
    lab.lose = {"b1"}
    lab.accept()
    lab.settle()
    lab.tick(0.11)
    lab.settle()
    lab.tick(0.11)
    lab.settle()
    assert (lab.results[0].exit, lab.results[0].epoch) == (1, 1)


def test_masked_thresholds_of_the_wrong_number_are_refused():
    masked = (MaskedThresholds(missing=(1,), thresholds=(0.8,)),)
    plan = Plan(
        pipeline="p", epoch=1, model="toy", revision="r1", criterion="entropy", thresholds=(0.9, 0.9), masked=masked
    )
    with pytest.raises(RemoteProtocolError) as caught:
        fleet().nodes["cam"].receive(0.0, plan, "d")
    assert caught.value.reason == "masked"


@both_fusers
def test_a_branch_that_stays_away_is_no_longer_waited_for_until_it_answers(fuser):
    lab = fleet(fuser=fuser)
    lab.lose = {"b1"}
    for _ in range(3):
        lab.accept()
        lab.settle()
        lab.tick(0.11)
        lab.settle()
    lab.accept()
    lab.settle()  # no time passes
    assert [result.missing for result in lab.results] == [MISSES_B1] * 3 + [MISSES_ONE]
    assert lab.told == ["b1 does not answer, and is left out until it does"]
    fusing = lab.nodes[fuser or "cam"]
    assert fusing.telemetry().fusions[0].missing == (0, 4)
    lab.lose = set()
    lab.tick(1.0)  # a probe is due
    lab.settle()
    assert lab.told[1:] == ["b1 answers again"]
    lab.accept()
    lab.settle()
    assert lab.results[4].missing == ()
    assert not lab.refused


def test_a_branch_missing_from_one_request_is_still_waited_for_at_the_next():
    lab = fleet(script={0: UNSURE, 1: UNSURE}, masked=())
    lab.lose = {"b1"}
    lab.accept()
    for _ in range(3):
        lab.settle()
        lab.tick(0.11)
    # Left out at three exits, of one request.
    assert (lab.results[0].exit, lab.results[0].missing) == (2, MISSES_B1)
    lab.accept()
    lab.settle()
    assert len(lab.results) == 1


def test_a_late_branch_is_told_what_was_decided_and_catches_up():
    lab = fleet(script={0: UNSURE, 1: UNSURE}, masked=())
    lab.accept()
    slow = [index for index, (board, *_) in enumerate(lab.flying) if board == "b1"]
    held = [lab.flying.pop(index) for index in slow]
    lab.settle()
    lab.tick(0.11)
    lab.compute(next(i for i, (board, _) in enumerate(lab.work) if board == "cam"))
    # Exit 0 is decided without branch 1; now it comes.
    lab.flying += held
    lab.settle()
    assert lab.results[0].exit == 2
    assert lab.results[0].missing == ()
    assert lab.nodes["cam"].telemetry().fusions[0].late == 1


# ---------------------------------------------------------------- custody


@both_modes
def test_a_dead_fuser_costs_one_repetition(eager):
    lab = fleet(eager=eager, fuser="hub")
    lab.lose = {"hub"}
    request = lab.accept()
    lab.settle()
    lab.tick(0.6)
    lab.settle()
    (result,) = lab.results
    assert (result.request, result.exit, result.reason, result.attempt) == (request, 0, "confident", 2)


def test_when_all_branches_die_half_way_the_best_guess_is_the_answer():
    lab = fleet(script={0: UNSURE})
    lab.accept()
    while not any(isinstance(message, Decision) for _, message, _ in lab.flying):
        lab.compute() if lab.work else lab.deliver()
    lab.lose = {"b0", "b1"}
    lab.settle()
    for _ in range(20):
        lab.tick(0.06)
        lab.settle()
    (result,) = lab.results
    assert (result.exit, result.label, result.reason) == (0, "a", "fallback")
    assert result.latency_s <= 1.0 + 1e-9


def test_kept_features_are_forgotten_when_their_budget_has_run_out():
    lab = fleet(fuser="hub", script={0: UNSURE})
    lab.lose = {"hub", "cam"}
    lab.accept()
    lab.settle()
    assert not lab.nodes["b0"].idle()
    lab.tick(1.1)
    assert lab.nodes["b0"].idle()
    assert sum(stage.expired for stage in lab.nodes["b0"].telemetry().stages) == 1


def test_kept_features_are_bounded():
    lab = fleet(fuser="hub", inbox_max_messages=3)
    lab.lose = {"hub"}
    for _ in range(8):
        lab.accept()
        lab.settle()
    books = lab.nodes["b0"].books()
    assert (books["kept"], books["branches"], books["kept_bytes"]) == (3, 3, 3 * 4)


def test_gatherings_are_bounded():
    lab = fleet(fuser="hub", inbox_max_messages=3)
    lab.lose = {"b1"}
    for _ in range(8):
        lab.accept()
        lab.settle()
    assert lab.nodes["hub"].books()["gatherings"] <= 3
    assert {result.reason for result in lab.results} == {"shed"}


def without_b1_at_exit_0_and_with_it_at_exit_1(**changes):
    """Exit 0 is decided without branch 1, which catches up; exit 1 has heard both and waits to be fused."""
    lab = fleet(script={0: UNSURE, 1: UNSURE}, masked=(), **changes)
    fuser = changes.get("fuser", "cam")
    lab.accept()
    held, lab.flying = [one for one in lab.flying if one[0] == "b1"], [one for one in lab.flying if one[0] != "b1"]
    lab.settle()
    lab.tick(0.11)
    lab.compute(next(index for index, (board, _) in enumerate(lab.work) if board == fuser))
    # Branch 1 first, so that it is heard before branch 0 at the next exit.
    lab.flying = [*held, *lab.flying]
    while others := [index for index, (board, *_) in enumerate(lab.flying) if board != "b0"]:
        lab.deliver(others[0])
        while lab.work:
            lab.compute()
    while not lab.work:
        lab.deliver()
    lab.compute()
    while not lab.work:
        lab.deliver()
    ((_, fuse),) = lab.work
    assert isinstance(fuse, Fuse)
    assert None not in fuse.embeddings
    return lab


def test_the_best_guess_says_which_branches_it_misses_at_the_deadline():
    lab = without_b1_at_exit_0_and_with_it_at_exit_1()
    lab.tick(1.1)
    (result,) = lab.results
    assert (result.reason, result.exit, result.missing) == ("fallback", 0, MISSES_B1)


def test_the_best_guess_says_which_branches_it_misses_when_its_gathering_is_shed():
    lab = without_b1_at_exit_0_and_with_it_at_exit_1(fuser="hub", inbox_max_messages=1)
    lab.lose = {"b1"}
    lab.accept()
    while lab.flying:
        lab.deliver()
    lab.compute(next(index for index, (board, _) in enumerate(lab.work) if board == "b0"))
    while lab.flying and not lab.results:
        lab.deliver()
    assert (lab.results[0].reason, lab.results[0].exit, lab.results[0].missing) == ("shed", 0, MISSES_B1)


def test_a_failing_branch_is_missing_and_a_failing_fusion_head_falls_back():
    lab = fleet()
    lab.accept()
    lab.deliver(), lab.deliver()
    board, job = lab.work.pop(0)
    lab.carry_out(board, lab.nodes[board].failed(lab.now, job.key, "boom"))
    assert lab.nodes[board].idle()
    lab.settle()
    lab.tick(0.11)
    (where,) = [index for index, (_, job) in enumerate(lab.work) if isinstance(job, Fuse)]
    board, job = lab.work.pop(where)
    lab.carry_out(board, lab.nodes[board].failed(lab.now, job.key, "boom"))
    lab.settle()
    # One repetition, which goes well.
    assert (lab.results[0].attempt, lab.results[0].reason) == (2, "confident")


# ---------------------------------------------------------------- what does not belong here


def embedding_of(lab: Fleet) -> Embedding:
    lab.accept()
    lab.deliver()
    lab.compute()
    return next(message for _, message, _ in lab.flying if isinstance(message, Embedding))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"revision": "other"}, "revision"),
        ({"request": "never"}, "request"),
        ({"fuser": "else"}, "fuser"),
        ({"branch": 2}, "branch"),
        ({"stage": 7}, "branch"),
        ({"tensor": tensors.encode(np.zeros((1, 3), np.int8))}, "shape"),
        ({"tensor": tensors.encode(np.zeros((1, 2), np.uint8))}, "dtype"),
    ],
)
def test_embeddings_that_do_not_belong_here_are_refused(change, reason):
    lab = fleet()
    message = embedding_of(lab)
    with pytest.raises(RemoteProtocolError) as caught:
        lab.nodes["cam"].receive(0.0, changed(message, **change), "d")
    assert caught.value.reason == reason


def test_an_embedding_of_a_deeper_exit_of_an_unknown_request_is_refused():
    lab = fleet(fuser="hub")
    message = changed(embedding_of(lab), stage=1)
    with pytest.raises(RemoteProtocolError) as caught:
        lab.nodes["hub"].receive(0.0, message, "d")
    assert caught.value.reason == "request"


def test_a_board_that_was_not_asked_to_fuse_refuses():
    lab = fleet(fuser="hub")
    message = embedding_of(lab)
    with pytest.raises(RemoteProtocolError) as caught:
        lab.nodes["b1"].receive(0.0, changed(message, fuser="b1"), "d")
    assert caught.value.reason == "fuser"


def test_decisions_that_do_not_belong_here_are_refused():
    lab = fleet()
    request = embedding_of(lab).context.request
    decision = Decision(request=request, token=b"guessed!", stage=0, go=True)
    with pytest.raises(RemoteProtocolError) as caught:
        lab.nodes["b0"].receive(0.0, decision, "d")
    assert caught.value.reason == "request"


@pytest.mark.parametrize("go", [False, True])
def test_only_the_board_that_fuses_decides(go):
    lab = fleet(script={0: UNSURE})
    context = embedding_of(lab).context
    decision = Decision(request=context.request, token=context.token, stage=0, go=go)
    for stranger in ("b1", "b0", ""):
        with pytest.raises(RemoteProtocolError, match="does not fuse it") as caught:
            lab.nodes["b0"].receive(0.0, decision, "d", stranger)
        assert caught.value.reason == "sender"
    lab.settle()
    assert [result.final for result in lab.results] == [True]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stage": 1, "route": route_of((1, ("b0", "b1")))}, "stage"),
        ({"fuser": None}, "fuser"),
        ({"route": ()}, "route"),
        ({"route": route_of((0, ("b9", "b1")))}, "route"),
    ],
)
def test_inputs_that_a_branch_cannot_take_are_refused(change, reason):
    lab = fleet()
    lab.accept()
    message = next(message for board, message, _ in lab.flying if board == "b0")
    with pytest.raises(RemoteProtocolError) as caught:
        lab.nodes["b0"].receive(0.0, changed(message, **change), "d")
    assert caught.value.reason == reason


def test_an_embedding_of_a_board_that_is_not_on_the_route_is_refused():
    lab = fleet()
    message = embedding_of(lab)
    assert message.device == "b0"
    with pytest.raises(RemoteProtocolError) as caught:
        lab.nodes["cam"].receive(0.0, changed(message, device="b7"), "d")
    assert caught.value.reason == "route"


def test_repeated_messages_change_nothing():
    lab = fleet(script={0: UNSURE})
    lab.accept()
    for _ in range(200):
        if lab.work:
            lab.compute()
        elif lab.flying:
            # Everything is delivered twice.
            letter = lab.flying[0]
            lab.flying.insert(1, letter) if lab.flying.count(letter) < 2 else None
            lab.deliver()
            if lab.flying and lab.flying[0] == letter:
                lab.deliver()
        else:
            break
    assert [result.final for result in lab.results] == [True]
    assert lab.runs == {(board, stage): 1 for board in ("b0", "b1") for stage in (0, 1)}
    assert not lab.refused


# ---------------------------------------------------------------- invariants


BOARDS = ["b0", "b1", "hub", "t1"]

steps = st.lists(
    st.one_of(
        st.just(("accept",)),
        st.tuples(st.just("deliver"), st.integers(0, 5)),
        st.tuples(st.just("lose"), st.integers(0, 5)),
        st.tuples(st.just("twice"), st.integers(0, 5)),
        st.tuples(st.just("bounce"), st.integers(0, 5)),
        st.tuples(st.just("compute"), st.integers(0, 3)),
        st.tuples(st.just("fail"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.floats(0.001, 0.4)),
        st.tuples(st.just("dies"), st.sampled_from(BOARDS)),
        st.tuples(st.just("lives"), st.sampled_from(BOARDS)),
        st.tuples(st.just("drains"), st.sampled_from(BOARDS)),
        st.tuples(st.just("state"), st.sampled_from(BOARDS), st.sampled_from(list(DeviceStatus))),
        st.tuples(st.just("withdrawn"), st.sampled_from(BOARDS)),
        st.tuples(st.just("announced"), st.sampled_from(BOARDS), st.booleans()),
        st.just(("connected",)),
        st.just(("called",)),
    ),
    max_size=80,
)


@given(
    script=steps,
    eager=st.booleans(),
    fuser=st.sampled_from([None, "hub"]),
    twins=st.booleans(),
    exits=st.dictionaries(st.integers(0, 2), st.sampled_from([SURE, UNSURE])),
)
@settings(max_examples=often(300), deadline=None)
def test_every_accepted_input_gets_exactly_one_final_result_by_its_deadline(script, eager, fuser, twins, exits):
    """Whatever is lost, repeated, reordered, unread, withdrawn or dead; nobody waits beyond what is due."""
    lab = fleet(eager=eager, fuser=fuser, script=exits, twins=twins, inbox_max_messages=4)
    cam = lab.nodes["cam"]
    accepted: dict[str, float] = {}
    for step in [*script, *[("wait", 0.4)] * 5]:
        match step:
            case ("accept",):
                accepted[lab.accept()] = lab.now
            case ("deliver", index) if index < len(lab.flying):
                lab.deliver(index)
            case ("lose", index) if index < len(lab.flying):
                lab.flying.pop(index)
            case ("twice", index) if index < len(lab.flying):
                lab.flying.append(lab.flying[index])
            case ("bounce", index) if index < len(lab.flying):
                lab.bounce(index)
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
            case ("drains", board) if board in lab.nodes:
                lab.nodes[board].drain()
            case ("state", board, status) if board in lab.nodes:
                lab.state_changed(board, status)
            case ("withdrawn", board) if board in lab.nodes:
                lab.carry_out("cam", cam.withdrawn(lab.now, board, 0))
            case ("announced", board, is_live) if board in lab.nodes:
                lab.carry_out("cam", announce(cam, lab.nodes[board].announce(), lab.now, is_live=is_live))
            case ("connected",):
                lab.carry_out("cam", cam.connected(lab.now))
            case ("called",):
                for node in lab.nodes.values():
                    node.called(lab.now, "else")
    final = Counter(result.request for result in lab.results if result.final)
    assert final == dict.fromkeys(accepted, 1)
    assert all(result.latency_s <= 1.0 + 1e-9 for result in lab.results if result.final)
    assert cam.books()["loads"] == 0
    for board in ("b0", "b1"):
        books = lab.nodes[board]._branch
        assert len(books._kept) <= 4
        assert sum(job.nbytes for job in books._kept.values()) == books._kept_bytes
    for node in lab.nodes.values():
        assert node.books().get("gatherings", 0) <= 4


@pytest.mark.parametrize("branches", [1, 2])
def test_a_gathering_that_ends_as_it_begins_leaves_nothing_due(branches):
    """With room for one gathering, the repetition's pushes out the first one's, whose end answers the request."""
    lab = fleet(inbox_max_messages=1)
    request = lab.accept()
    first = list(lab.flying)
    lab.flying.clear()
    lab.tick(0.6)  # silent: sent once more
    again = list(lab.flying)
    assert {message.context.attempt for _, message, _ in again} == {2}
    lab.flying[:] = [entry for entry in first if entry[0] == "b0"]
    lab.deliver()
    lab.compute()
    (embedding,) = lab.flying
    lab.flying.clear()
    cam = lab.nodes["cam"]
    lab.carry_out("cam", cam.receive(lab.now, embedding[1], None))
    for letter in again[:branches]:
        lab.flying[:] = [letter]
        lab.deliver()
        lab.compute()
        (embedding,) = lab.flying
        lab.flying.clear()
        lab.carry_out("cam", cam.receive(lab.now, embedding[1], None))
    lab.settle()
    lab.tick(5.0)
    (result,) = [result for result in lab.results if result.final]
    assert result.request == request
    cam.published(request)
    assert not any(cam.books().values()), cam.books()
