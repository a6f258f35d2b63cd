"""Routes: which boards an origin chooses, whom it leaves out, and what it says where there is none."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from node_fleet import SURE, UNSURE, Fleet, announce, boards, chain, chain_settings, fleet, meet, node_settings
from request_samples import route_of

from distree.messages.device import DeviceStatus
from distree.messages.request import Hop, StageMessage
from distree.node import Listen, OriginSettings, Publish, StageNode
from distree.node.members import Members
from distree.node.routing import MAX_MISSES, Router
from distree.topics import ALL


def stage_of(letter: object) -> StageMessage:
    message = letter.message  # type: ignore[attr-defined]
    assert isinstance(message, StageMessage)
    return message


def first_route(lab: Fleet) -> tuple:
    """Accept an input that leaves its origin; return its route."""
    lab.accept()
    lab.compute() if lab.work else None
    (letter,) = lab.flying
    lab.flying.clear()
    return stage_of(letter).context.route


# ---------------------------------------------------------------- the shape of routes


def test_consecutive_stages_on_one_board_are_one_visit():
    lab = chain(b1=(1, 2))
    lab.accept()
    lab.settle()
    assert first_route(lab) == route_of((1, "b1"))
    assert lab.runs == {("cam", 0): 2, ("b1", 1): 1, ("b1", 2): 1}
    assert (lab.results[0].exit, lab.results[0].reason) == (2, "last")
    assert first_route(chain(b1=1, b2=2)) == route_of((1, "b1"), (2, "b2"))


def test_a_visit_ends_before_an_own_stage_which_the_origin_gets_back():
    lab = chain(own=(0, 2), b1=(1, 2))
    assert first_route(lab) == route_of((1, "b1"), (2, "cam"))
    lab.accept()
    lab.settle()
    assert lab.runs == {("cam", 0): 2, ("b1", 1): 1, ("cam", 2): 1}
    assert [(result.exit, result.reason) for result in lab.results] == [(2, "last")]
    assert not lab.refused


def test_an_origin_without_stages_has_stage_0_routed():
    lab = chain(own=(), b0=0, b1=(1, 2))
    lab.accept()
    (letter,) = lab.flying
    assert (letter.to, stage_of(letter).stage) == ("b0", 0)
    assert stage_of(letter).context.route == route_of((0, "b0"), (1, "b1"))
    lab.settle()
    assert [hop.device for hop in lab.results[0].hops] == ["b0", "b1", "b1"]


def test_an_origin_with_all_stages_needs_nobody():
    lab = chain(own=(0, 1, 2))
    lab.accept()
    lab.settle()
    assert [result.reason for result in lab.results] == ["last"]
    assert [effect for effect in lab.sent if isinstance(effect.message, StageMessage)] == []


def test_a_route_is_empty_until_a_request_leaves_its_origin():
    lab = chain(script={0: SURE}, b1=(1, 2))
    lab.accept()
    (entry,) = lab.nodes["cam"]._origin._custody.entries.values()
    assert entry.context.route == ()
    lab.settle()
    assert lab.results[0].exit == 0


def test_a_board_whose_route_ends_with_it_says_so():
    """It has no say in who is next."""
    lab = chain(b1=1, b2=2)
    lab.accept()
    lab.compute()
    letter = lab.flying.pop()
    context = stage_of(letter).context
    lab.flying.append(
        letter._replace(message=replace(letter.message, context=replace(context, route=context.route[:1])))
    )
    lab.deliver()
    lab.compute()
    (outcome,) = [letter.message for letter in lab.flying]
    assert outcome.reason == "fallback"


# ---------------------------------------------------------------- the choice


def router(*nodes: StageNode, seed: int = 1, own: tuple[int, ...] = (0,)) -> Router:
    known = Members("r1")
    settings = chain_settings("cam", *own)
    for node in nodes:
        (said,) = node.announce()
        for stage in said.stages:
            known.announced(0.0, said.member, stage, is_live=True)
    return Router(settings, None, known, random.Random(seed))


def seen(chooser: Router, device: str, compute_s: float, *, now: float = 0.0, queue_s: float = 0.0) -> None:
    """Let a board have been chosen once, and its outcome say how long it took."""
    route = route_of((1, device))
    chooser.load(route, 1)
    chooser.load(route, -1)
    chooser.measured(now, [Hop(device=device, stage=1, queue_s=queue_s, compute_s=compute_s)])


def chosen(chooser: Router, times: int = 200, now: float = 0.0) -> Counter[str]:
    return Counter(chooser.route(now, 1)[0].boards[0] for _ in range(times))


def test_of_two_boards_the_quicker_is_chosen():
    chooser = router(*boards(b1=(1, 2), b2=(1, 2)))
    seen(chooser, "b1", 0.010)
    seen(chooser, "b2", 0.012)
    assert chosen(chooser) == {"b1": 200}


def test_a_board_that_was_never_measured_is_tried():
    chooser = router(*boards(b1=(1, 2), b2=(1, 2)))
    seen(chooser, "b1", 0.001)
    assert set(chosen(chooser)) == {"b1", "b2"}


def test_own_work_under_way_makes_a_board_slower():
    chooser = router(*boards(b1=(1, 2), b2=(1, 2)))
    seen(chooser, "b1", 0.010)
    seen(chooser, "b2", 0.015)
    loads = Counter()
    for _ in range(25):
        route = chooser.route(0.0, 1)
        chooser.load(route, 1)
        loads[route[0].boards[0]] += 1
    # In inverse proportion to what they take for one.
    assert loads["b1"] + loads["b2"] == 25
    assert 14 <= loads["b1"] <= 16


def test_a_board_that_was_slow_once_is_asked_again_after_a_while():
    chooser = router(*boards(b1=(1, 2), b2=(1, 2)))
    seen(chooser, "b1", 0.010)
    seen(chooser, "b2", 0.040)
    assert chosen(chooser) == {"b1": 200}
    for second in range(1, 31):
        seen(chooser, "b1", 0.010, now=float(second))
    assert set(chosen(chooser, now=30.0)) == {"b1", "b2"}


def test_what_is_under_way_at_a_board_may_be_too_much_for_the_time_that_is_left():
    chooser = router(*boards(b1=(1, 2)))
    seen(chooser, "b1", 0.1)
    route = route_of((1, "b1"))
    # One alone is not too slow to be tried.
    assert not chooser.is_too_long(0.0, route, 0.05)
    chooser.load(route, 4)
    assert chooser.is_too_long(0.0, route, 0.9)
    assert not chooser.is_too_long(0.0, route, 1.0)


def test_a_queue_that_was_measured_long_ago_counts_for_little():
    chooser = router(*boards(b1=(1, 2), b2=(1, 2)))
    seen(chooser, "b1", 0.010, queue_s=4.0)
    seen(chooser, "b2", 0.100)
    assert chosen(chooser, now=1.0) == {"b2": 200}
    assert chosen(chooser, now=60.0)["b1"] > 50


def test_of_more_than_two_two_are_drawn_and_the_quicker_taken():
    chooser = router(*boards(b1=(1, 2), b2=(1, 2), b3=(1, 2), b4=(1, 2)))
    for rank in range(1, 5):
        seen(chooser, f"b{rank}", rank / 100)
    shares = chosen(chooser, 6000)
    # Of the six pairs the best is in three, the next in two that it wins, then one, then none.
    assert [round(shares[f"b{rank}"] / 1000) for rank in range(1, 5)] == [3, 2, 1, 0]
    assert shares["b4"] == 0


def test_chance_is_what_is_handed_in():
    def draws(seed: int) -> list[str]:
        chooser = router(*boards(b1=(1, 2), b2=(1, 2), b3=(1, 2)), seed=seed)
        return [chooser.route(0.0, 1)[0].boards[0] for _ in range(50)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert set(draws(7)) == {"b1", "b2", "b3"}


def test_what_is_expected_is_the_whole_visit():
    chooser = router(*boards(b1=(1, 2), b2=1, c2=2))
    for device, stage, took_s in (("b1", 1, 0.01), ("b1", 2, 0.05), ("b2", 1, 0.02)):
        chooser.load(route_of((stage, device)), 1)
        chooser.load(route_of((stage, device)), -1)
        chooser.measured(0.0, [Hop(device=device, stage=stage, queue_s=0.0, compute_s=took_s)])
    assert chosen(chooser) == {"b2": 200}


def test_whoever_is_to_be_avoided_is_taken_where_there_is_no_other():
    chooser = router(*boards(b1=(1, 2), b2=(1, 2)))
    assert {chooser.route(0.0, 1, {"b1"})[0].boards for _ in range(20)} == {("b2",)}
    chooser = router(*boards(b1=(1, 2)))
    assert chooser.route(0.0, 1, {"b1"}) == route_of((1, "b1"))


def test_what_goes_out_once_more_goes_to_boards_that_have_answered_before():
    made_up = {f"forged{number}": (1, 2) for number in range(50)}
    chooser = router(*boards(b1=(1, 2), **made_up))
    repeated = lambda: {chooser.route(0.0, 1, proved=True)[0].boards[0] for _ in range(50)}  # noqa: E731
    assert len(repeated()) > 10  # nobody has answered yet
    chooser.load(route_of((1, "b1")), 1)
    chooser.measured(0.0, [Hop(device="b1", stage=1, queue_s=0.0, compute_s=0.01)])
    assert repeated() == {"b1"}
    assert len({chooser.route(0.0, 1)[0].boards[0] for _ in range(50)}) > 10
    assert chooser.route(0.0, 1, {"b1"}, proved=True)[0].boards[0] in made_up


def test_nothing_is_kept_of_boards_that_went_while_work_was_with_them():
    cam = StageNode(chain_settings("cam", 0, origin=OriginSettings()))
    (b1,) = boards(b1=(1, 2))
    meet(cam, b1)
    chooser = cam._origin._router
    chooser.load(route_of((1, "b1")), 1)
    cam.withdrawn(0.0, "b1", 1)
    cam.withdrawn(0.0, "b1", 2)
    assert chooser.knows("b1")
    chooser.load(route_of((1, "b1")), -1)
    assert not chooser.knows("b1")


# ---------------------------------------------------------------- who is there


def test_states_are_listened_to_from_the_first_announcement_to_the_last_withdrawal():
    (b1,) = boards(b1=(1, 2))
    cam = StageNode(chain_settings("cam", 0, origin=OriginSettings()))
    effects = announce(cam, b1.announce())
    assert [effect for effect in effects if isinstance(effect, Listen)] == [Listen(device="b1")]
    assert cam.withdrawn(0.0, "b1", 1) == []
    assert cam.withdrawn(0.0, "b1", 2) == [Listen(device="b1", on=False)]


def test_a_board_does_not_choose_itself():
    cam = StageNode(chain_settings("cam", 0, 1, origin=OriginSettings()))
    assert announce(cam, cam.announce(), is_live=True) == []
    assert cam.telemetry().origin.members == 0


def test_members_and_who_is_left_out_are_told():
    lab = chain(b1=(1, 2), t1=(1, 2))
    assert (lab.nodes["cam"].telemetry().origin.members, lab.nodes["cam"].telemetry().origin.left_out) == (2, 0)
    lab.accept()
    lab.compute()
    lab.bounce()
    assert (lab.nodes["cam"].telemetry().origin.members, lab.nodes["cam"].telemetry().origin.left_out) == (2, 1)


def test_a_member_of_another_revision_is_told_in_one_line():
    lab = chain(b1=(1, 2))
    other = StageNode(chain_settings("b1", 1, 2, boot="later", revision="r9"))
    lab.carry_out("cam", meet(lab.nodes["cam"], other, now=0.0))
    lab.tick(20.0)
    lab.told.clear()
    for _ in range(3):
        lab.accept()
        lab.settle()
    assert [result.reason for result in lab.results] == ["fallback"] * 3
    assert lab.told == [f"no board serves stage {k} with bundle revision r1 (b1 has r9)" for k in (1, 2)]
    lab.told.clear()
    lab.carry_out("cam", meet(lab.nodes["cam"], *boards(b2=(1, 2)), now=lab.now))
    assert lab.told == ["stage 1 is served again", "stage 2 is served again"]


def test_a_stage_that_nobody_serves_is_told_once():
    lab = chain()
    for _ in range(3):
        lab.accept()
        lab.settle()
    assert lab.told == [f"no board serves stage {k}" for k in (1, 2)]
    lab.carry_out("cam", meet(lab.nodes["cam"], *boards(b1=1)))
    assert lab.told[2:] == ["stage 1 is served again"]


# ---------------------------------------------------------------- who is blamed


def silence(lab: Fleet) -> None:
    """Let the origin notice that it hears nothing; nobody else does anything."""
    cam = lab.nodes["cam"]
    lab.now = max(lab.now, cam.notify_at())
    lab.carry_out("cam", cam.tick(lab.now))


def left_out(lab: Fleet) -> set[str]:
    return set(lab.nodes["cam"]._origin._router._left_out)


def test_silence_is_blamed_on_those_alone_who_were_not_heard_since():
    lab = chain(script={0: UNSURE, 1: UNSURE, 2: UNSURE}, b1=1, t1=1, b2=2, t2=2)
    lab.nodes["cam"]._origin._router._random = lambda: 0.0  # the first of each
    lab.accept()
    lab.compute()
    lab.tick(0.01)
    first = stage_of(lab.flying[0]).context.route
    assert first == route_of((1, "b1"), (2, "b2"))
    # Another request by the same board comes home meanwhile: it answers, and what is silent is beyond it.
    lab.lose = {"b2"}
    lab.deliver()
    lab.compute()
    lab.script[1] = SURE
    lab.accept()
    lab.settle()
    assert lab.results[0].exit == 1
    assert {hop.device for hop in lab.results[0].hops} >= {"b1"}
    silence(lab)
    assert left_out(lab) == {"b2"}
    assert lab.told == ["b2 does not answer, and is left out until it does"]
    (again,) = [stage_of(letter) for letter in lab.flying]
    assert again.context.attempt == 2
    assert {again.context.route[0].boards, again.context.route[1].boards} & {("b2",)} == set()


def make_up(lab, number, *stages):
    """Announce boards that take what they are sent and never answer."""
    for name in (f"made-up-{index}" for index in range(number)):
        lab.nodes[name] = StageNode(chain_settings(name, *stages))
        lab.lose.add(name)
    lab.introduce("cam")


def test_the_silence_of_made_up_boards_slows_nobody_down():
    lab = chain(b1=(1, 2), origin=OriginSettings(deadline_s=1.0, max_pending=64, min_retry_s=0.1))
    lab.accept()
    lab.settle()
    make_up(lab, 100, 1, 2)
    for answered in range(2, 40):
        lab.accept()
        lab.settle()
        lab.tick(0.15)
        lab.settle()
        assert [result.reason for result in lab.results] == ["last"] * answered
    assert len(left_out(lab)) > 30


def test_a_made_up_board_is_blamed_and_not_those_behind_it():
    lab = chain(b1=1, b2=2, t2=2, origin=OriginSettings(deadline_s=1.0, max_pending=64, min_retry_s=0.1))
    for _ in range(8):
        lab.accept()
        lab.settle()
    make_up(lab, 100, 1)
    for _ in range(8):
        lab.accept()
        lab.settle()
        lab.tick(0.15)
        assert left_out(lab)
        assert not left_out(lab) & {"b1", "b2", "t2"}
        lab.settle()
    assert {result.reason for result in lab.results} == {"last"}


def test_what_an_announcement_costs_does_not_depend_on_how_many_boards_there_are(monkeypatch):
    lab = chain(b1=1)

    def of(*_):
        raise AssertionError("all boards are looked at")

    monkeypatch.setattr(Members, "of", of)
    make_up(lab, 50, 1)


def test_who_can_be_replaced_is_left_out_at_once_and_the_repetition_goes_elsewhere():
    lab = chain(b1=(1, 2), t1=(1, 2))
    lab.accept()
    lab.compute()
    (silent,) = lab.on_the_way()
    lab.flying.clear()
    silence(lab)
    assert left_out(lab) == {silent}
    assert lab.on_the_way() == [{"b1": "t1", "t1": "b1"}[silent]]
    lab.settle()
    assert [(result.reason, result.attempt) for result in lab.results] == [("last", 2)]


def test_a_board_with_a_twin_for_one_stage_of_two_is_not_replaced():
    lab = chain(b1=(1, 2), t1=1)
    lab.nodes["cam"]._origin._router._random = lambda: 0.0
    lab.accept()
    lab.compute()
    assert lab.on_the_way() == ["b1"]
    lab.flying.clear()
    silence(lab)
    assert left_out(lab) == set()


def test_the_last_board_of_a_stage_is_left_out_after_a_repetition_without_an_answer():
    lab = chain(b1=(1, 2))
    lab.lose = {"b1"}
    lab.accept()
    lab.compute()
    silence(lab)
    assert (left_out(lab), lab.on_the_way()) == (set(), ["b1", "b1"])
    silence(lab)
    assert left_out(lab) == {"b1"}
    lab.tick(1.0)
    lab.flying.clear()
    assert [result.reason for result in lab.results] == ["fallback"]


def test_the_last_board_of_a_stage_is_left_out_when_it_missed_some_in_a_row():
    lab = chain(origin=OriginSettings(deadline_s=1.0, max_pending=8), b1=(1, 2))
    lab.lose = {"b1"}
    for count in range(MAX_MISSES):
        assert left_out(lab) == set(), count
        lab.accept()
        lab.compute()
    for _ in range(MAX_MISSES):
        silence(lab)
    assert left_out(lab) == {"b1"}


def test_what_may_not_have_left_this_board_is_blamed_on_nobody():
    lab = chain(b1=(1, 2), t1=(1, 2))
    lab.accept()
    lab.compute()
    lab.flying.clear()
    cam = lab.nodes["cam"]
    while cam.notify_at() < 1.0:
        now = cam.notify_at()
        assert cam.tick(now, owed_since=0.0) == []
    effects = cam.tick(1.0, owed_since=0.0)
    assert [effect.message.reason for effect in effects if isinstance(effect, Publish)] == ["deadline"]
    assert left_out(lab) == set()
    # What was sent before the broker fell behind is not in doubt.
    lab.now = 2.0
    lab.accept()
    lab.compute()
    lab.flying.clear()
    lab.now = cam.notify_at()
    lab.carry_out("cam", cam.tick(lab.now, owed_since=2.4))
    assert len(left_out(lab)) == 1


def test_boards_that_have_done_their_part_are_not_blamed_for_those_after_them():
    """The origin has its own stage between those of others: what comes back proves who was heard."""
    lab = chain(
        own=(0, 2),
        changes={"inputs": (("int8", (1, 4)),) * 4, "thresholds": (0.9,) * 3},
        script=dict.fromkeys(range(4), UNSURE),
        b1=1, t1=1, b3=3, t3=3,
    )  # fmt: skip
    lab.lose = {"b3", "t3"}
    lab.accept()
    lab.tick(0.01)
    lab.settle()
    (before,) = [effect for effect in lab.sent if effect.to in ("b1", "t1")]
    (last,) = [effect for effect in lab.sent if effect.to in ("b3", "t3")]
    assert lab.nodes["cam"].books()["loads"] == 1
    silence(lab)
    assert left_out(lab) == {last.to}
    # Nor is anything sent anew because they go.
    count = len(lab.sent)
    lab.state_changed(str(before.to), DeviceStatus.LOST)
    assert len(lab.sent) == count


def test_whoever_comes_anew_is_taken_in():
    lab = chain(b1=(1, 2), t1=(1, 2))
    lab.accept()
    lab.compute()
    (board,) = lab.on_the_way()
    lab.bounce()
    assert left_out(lab) == {board}
    lab.nodes[board] = StageNode(chain_settings(board, 1, 2, boot="anew"))
    lab.carry_out("cam", announce(lab.nodes["cam"], lab.nodes[board].announce(), lab.now, is_live=True))
    assert left_out(lab) == set()


# ---------------------------------------------------------------- wide stages


def test_a_route_has_a_board_for_each_branch():
    lab = fleet(twins=True)
    lab.accept()
    letters = list(lab.flying)
    (stop,) = stage_of(letters[0]).context.route
    assert stop.stage == 0
    assert stop.boards[0] in ("b0", "t0")
    assert stop.boards[1] in ("b1", "t1")
    assert stop.together == any(effect.to == ALL for effect in lab.sent)


@pytest.mark.parametrize(
    ("readers", "chosen", "together"),
    # Up once and down to all readers, or up and down for each that is chosen.
    [
        ((1, 1), 2, True),
        ((2, 1), 2, True),
        ((2, 2), 2, False),
        ((3, 1), 2, False),
        ((1, 0), 1, True),
        ((2, 0), 1, False),
    ],
)
def test_what_takes_fewer_bytes_is_done(readers, chosen, together):
    cam = StageNode(node_settings("cam", origin=OriginSettings()), chance=random.Random(3))
    nodes = [
        StageNode(node_settings(f"b{branch}-{k}", 0, 1, 2, branch=branch))
        for branch in (0, 1)
        for k in range(readers[branch])
    ]
    lab = Fleet({"cam": cam, **{node.settings.device: node for node in nodes}})
    lab.accept()
    sent = [effect for effect in lab.sent if isinstance(effect.message, StageMessage)]
    (stop,) = sent[0].message.context.route
    assert (stop.together, len([board for board in stop.boards if board])) == (together, chosen)
    assert [effect.to for effect in sent] == ([ALL] if together else [board for board in stop.boards if board])
    lab.settle()
    # Those that were not named let it pass.
    assert sum(lab.runs.values()) == chosen
    assert len([result for result in lab.results if result.final]) == 1
    assert not lab.refused
    assert all(node.idle() for node in nodes)


def test_the_twin_of_a_silent_branch_is_used_for_the_next_input():
    lab = fleet(twins=True)
    lab.nodes["cam"]._origin._router._random = lambda: 0.0
    lab.accept()
    boards_of_first = stage_of(lab.flying[0]).context.route[0].boards
    lab.lose = {boards_of_first[1]}
    lab.settle()
    lab.tick(0.11)
    lab.settle()
    assert [(part.branch, part.device) for part in lab.results[0].missing] == [(1, boards_of_first[1])]
    assert left_out(lab) == {boards_of_first[1]}
    lab.accept()
    lab.settle()
    assert lab.results[1].missing == ()


def test_a_branch_that_has_no_twin_is_left_out_after_some_misses_in_a_row():
    lab = fleet()
    lab.lose = {"b1"}
    for count in range(MAX_MISSES):
        assert left_out(lab) == set(), count
        lab.accept()
        lab.settle()
        lab.tick(0.11)
        lab.settle()
    assert left_out(lab) == {"b1"}
    # Heard once between, and it begins anew.
    lab = fleet()
    for _ in range(2 * MAX_MISSES):
        lab.lose ^= {"b1"}
        lab.accept()
        lab.settle()
        lab.tick(0.11)
        lab.settle()
    assert left_out(lab) == set()


def test_soon_after_a_connect_branches_are_waited_for_and_then_done_without():
    lab = fleet()
    lab.state_changed("b1", DeviceStatus.LOST)
    lab.carry_out("cam", lab.nodes["cam"].connected(0.0))
    lab.accept()
    assert lab.flying == []
    lab.tick(0.49)
    assert lab.flying == []
    lab.tick(0.02)  # half of its time is over
    assert stage_of(lab.flying[0]).context.route[0].boards == ("b0", "")
    lab.settle()
    assert [(part.branch, part.device) for part in lab.results[0].missing] == [(1, None)]


def test_soon_after_a_connect_the_last_branch_to_come_is_enough():
    lab = fleet()
    lab.state_changed("b1", DeviceStatus.LOST)
    lab.carry_out("cam", lab.nodes["cam"].connected(0.0))
    lab.accept()
    lab.tick(0.1)
    lab.state_changed("b1", DeviceStatus.READY)
    assert lab.on_the_way() == ["b0", "b1"]
    lab.settle()
    assert lab.results[0].missing == ()


def test_a_board_that_fuses_is_named_while_it_is_there_and_answers():
    lab = fleet(fuser="hub")
    for status, fuser in ((DeviceStatus.READY, "hub"), (DeviceStatus.LOST, "cam"), (DeviceStatus.READY, "hub")):
        lab.state_changed("hub", status)
        lab.accept()
        assert {stage_of(letter).context.fuser for letter in lab.flying} == {fuser}
        lab.settle()
    lab.lose = {"hub"}
    lab.accept()
    lab.settle()
    silence(lab)
    assert left_out(lab) == {"hub"}
    lab.accept()
    assert {stage_of(letter).context.fuser for letter in lab.flying if letter.to in ("b0", "b1")} == {"cam"}
