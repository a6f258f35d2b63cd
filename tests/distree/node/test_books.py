"""Every book of a node is closed: whatever placement, whatever happens, in whatever order."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_fleet import SURE, UNSURE, Fleet, announce, node_settings, state_of
from test_audits import plan
from thoroughness import often

from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.result import Result
from distree.node import Acknowledge, Announce, Effect, NodeSettings, OriginSettings, Publish, StageNode
from distree.node.timers import Agenda

ORIGIN = OriginSettings(deadline_s=1.0, max_pending=4, min_retry_s=0.1)
CHAIN: dict[str, object] = {"embeddings": (), "masked": ()}
SHAPES = (("int8", (1, 2)), ("int8", (1, 3)))
MIXED: dict[str, object] = {"embeddings": ((), SHAPES, ()), "masked": ()}
TWICE: dict[str, object] = {
    "embeddings": (SHAPES, (), SHAPES, ()),
    "masked": (),
    "inputs": (("int8", (1, 4)),) * 4,
    "thresholds": (0.9, 0.9, 0.9),
}


def board(name: str, *stages: int, **changes: object) -> NodeSettings:
    # Small queues, so that they overflow.
    return node_settings(name, *stages, **{"inbox_max_messages": 3, **changes})


PLACEMENTS: dict[str, list[NodeSettings]] = {
    "one board": [board("cam", 0, 1, 2, origin=ORIGIN, **CHAIN)],
    "one and two": [board("cam", 0, origin=ORIGIN, **CHAIN), board("b1", 1, 2, **CHAIN)],
    "two and one": [board("cam", 0, 1, origin=ORIGIN, **CHAIN), board("b2", 2, **CHAIN)],
    "one each": [board("cam", 0, origin=ORIGIN, **CHAIN), board("b1", 1, **CHAIN), board("b2", 2, **CHAIN)],
    "around": [board("cam", 0, 2, origin=ORIGIN, **CHAIN), board("b1", 1, **CHAIN)],
    "elsewhere": [board("cam", origin=ORIGIN, **CHAIN), board("b1", 0, 1, 2, **CHAIN)],
    "wide": [board("cam", origin=ORIGIN), board("b0", 0, 1, 2, branch=0), board("b1", 0, 1, 2, branch=1)],
    "wide, eager": [
        board("cam", origin=OriginSettings(deadline_s=1.0, max_pending=4, min_retry_s=0.1, eager=True)),
        board("b0", 0, 1, 2, branch=0),
        board("b1", 0, 1, 2, branch=1),
    ],
    "twins": [
        board("cam", 0, origin=ORIGIN, **CHAIN),
        board("b1", 1, 2, **CHAIN),
        board("t1", 1, **CHAIN),
        board("t2", 2, **CHAIN),
    ],
    "wide, twins": [
        board("cam", origin=ORIGIN),
        board("b0", 0, 1, 2, branch=0),
        board("b1", 0, 1, 2, branch=1),
        board("t1", 0, 1, 2, branch=1),
    ],
    "wide, fused by a hub": [
        board("cam", origin=OriginSettings(deadline_s=1.0, max_pending=4, min_retry_s=0.1, fuser="hub")),
        board("b0", 0, 1, 2, branch=0),
        board("b1", 0, 1, 2, branch=1),
        board("hub", fuses=True),
    ],
    "wide, the origin is a branch": [
        board("cam", 0, 1, 2, branch=0, origin=ORIGIN),
        board("b1", 0, 1, 2, branch=1),
    ],
    "mixed": [
        board("cam", 0, origin=ORIGIN, **MIXED),
        board("b0", 1, branch=0, **MIXED),
        board("b1", 1, 2, branch=1, **MIXED),
    ],
    "two groups": [
        board("cam", 1, origin=ORIGIN, **TWICE),
        board("b0", 0, 2, 3, branch=0, **TWICE),
        board("b1", 0, 2, branch=1, **TWICE),
    ],
}


class Site(Fleet):
    """A fleet whose boards die, drain and come back, of which origins hear late; some messages come twice."""

    def __init__(self, boards: list[NodeSettings], rate: float) -> None:
        self.boards = {made.device: made for made in boards}
        self.rate = rate
        self.boots = 0
        self.delivered: set[int] = set()
        self.settled: list[str] = []
        self.news: list[tuple[str, Announce | DeviceState | int]] = []
        """What origins will hear of boards: announcements, states, and stages that they withdraw."""
        super().__init__({made.device: StageNode(made, chance=random.Random(1)) for made in boards})
        for device in self.boards:
            self.plan(device)

    def plan(self, device: str) -> None:
        thresholds = (0.9,) * self.nodes[device].settings.last
        self.nodes[device].receive(self.now, replace(plan(self.rate), thresholds=thresholds), None)

    def carry_out(self, device: str, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish) and isinstance(effect.message, Result):
                if effect.turned_away:
                    self.nodes[device].turned_away(told=True)
                elif effect.settles is not None:
                    self.settled.append(effect.settles)
            if isinstance(effect, Acknowledge) and effect.delivery is not None:
                self.delivered.discard(effect.delivery)  # type: ignore[arg-type]
        super().carry_out(device, effects)

    def hear(self, index: int, *, twice: bool) -> None:
        """Deliver a message; with `twice` it stays on its way and comes again."""
        letter = self.flying[index]
        if twice:
            self.flying.append(letter)
        if letter.to not in self.lose:
            self.delivered.add(self.token + 1)
        refused = len(self.refused)
        self.deliver(index)
        if len(self.refused) > refused:
            self.delivered.discard(self.token)  # the driver acknowledges what is refused

    def fail(self, index: int) -> None:
        device, job = self.work.pop(index)
        self.carry_out(device, self.nodes[device].failed(self.now, job.key, "boom"))

    # ------------------------------------------------------------ who is there

    def announced(self, device: str, effect: Announce) -> None:
        self.news.append((device, effect))

    def learn(self, index: int) -> None:
        """Let origins hear some news, maybe ahead of others."""
        device, news = self.news.pop(index)
        for origin in self.origins:
            node = self.nodes[origin]
            if origin == device:
                continue
            if isinstance(news, DeviceState):
                self.carry_out(origin, node.state_changed(self.now, news))
            elif isinstance(news, int):
                self.carry_out(origin, node.withdrawn(self.now, device, news))
            else:
                self.carry_out(origin, announce(node, [news], self.now, is_live=True))

    def say(self, device: str, status: DeviceStatus) -> None:
        self.news.append((device, state_of(self.nodes[device], status)))

    def kill(self, device: str) -> None:
        """End a board and start it anew: its work and what was on its way to it are gone."""
        self.boots += 1
        self.say(device, DeviceStatus.LOST)
        before = self.nodes[device]
        again = replace(before.settings, boot=f"{device}{self.boots}")
        left = before.snapshot() if again.origin is not None else ()
        self.nodes[device] = StageNode(again, restore=left, chance=random.Random(self.boots))
        self.work = [job for job in self.work if job[0] != device]
        self.flying = [letter for letter in self.flying if letter.to != device]
        self.delivered.clear()
        self.plan(device)
        self.introduce(device)
        self.say(device, DeviceStatus.READY)
        self.carry_out(device, self.nodes[device].connected(self.now))

    def drain(self, device: str) -> None:
        """Have a board finish what is under way."""
        if device not in self.origins:
            self.nodes[device].drain()
            self.say(device, DeviceStatus.DRAINING)

    def withdraw(self, device: str) -> None:
        """A board serves nothing any more, by what it says; requests come to it nevertheless."""
        self.news += [(device, stage) for stage in self.nodes[device].served]

    def acknowledge(self) -> None:
        told, self.settled = self.settled, []
        for request in told:
            self.nodes["cam"].published(request)

    def come_to_rest(self) -> None:
        """Deliver and compute what there is, acknowledge results, and let all times pass."""
        for _ in range(60):
            while self.news:
                self.learn(0)
            self.settle()
            self.acknowledge()
            self.tick(1.0)
        self.settle()
        self.acknowledge()


steps = st.lists(
    st.one_of(
        st.just(("accept",)),
        st.tuples(st.just("hear"), st.integers(0, 7), st.booleans()),
        st.tuples(st.just("lose"), st.integers(0, 7)),
        st.tuples(st.just("compute"), st.integers(0, 3)),
        st.tuples(st.just("fail"), st.integers(0, 3)),
        st.tuples(st.just("kill"), st.integers(0, 3)),
        st.tuples(st.just("drain"), st.integers(0, 3)),
        st.tuples(st.just("withdraw"), st.integers(0, 3)),
        st.tuples(st.just("learn"), st.integers(0, 7)),
        st.tuples(st.just("bounce"), st.integers(0, 7)),
        st.just(("connect",)),
        st.just(("call",)),
        st.tuples(st.just("wait"), st.floats(0.001, 0.5)),
        st.just(("acknowledge",)),
        st.tuples(st.just("mood"), st.sampled_from([SURE, UNSURE])),
    ),
    max_size=80,
)


def play(site: Site, script: list[tuple[object, ...]]) -> None:
    for step in script:
        match step:
            case ("accept",):
                site.accept()
            case ("hear", int(index), bool(twice)) if index < len(site.flying):
                site.hear(index, twice=twice)
            case ("lose", int(index)) if index < len(site.flying):
                site.flying.pop(index)
            case ("compute", int(index)) if index < len(site.work):
                site.compute(index)
            case ("fail", int(index)) if index < len(site.work):
                site.fail(index)
            case ("kill", int(index)) if index < len(site.boards):
                site.kill(list(site.boards)[index])
            case ("drain", int(index)) if index < len(site.boards):
                site.drain(list(site.boards)[index])
            case ("withdraw", int(index)) if index < len(site.boards):
                site.withdraw(list(site.boards)[index])
            case ("learn", int(index)) if index < len(site.news):
                site.learn(index)
            case ("bounce", int(index)) if index < len(site.flying):
                site.bounce(index)
            case ("connect",):
                site.carry_out("cam", site.nodes["cam"].connected(site.now))
            case ("call",):
                for node in site.nodes.values():
                    node.called(site.now, "else")
            case ("wait", float(seconds)):
                site.tick(seconds)
            case ("acknowledge",):
                site.acknowledge()
            case ("mood", list(logits)):
                site.script = dict.fromkeys(range(4), logits)
            case _:
                pass


@pytest.mark.parametrize("name", PLACEMENTS)
@given(script=steps, rate=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=often(60), deadline=None)
def test_all_books_are_empty_after_every_kind_of_end(name: str, script: list[tuple[object, ...]], rate: float) -> None:
    site = Site(PLACEMENTS[name], rate)
    play(site, script)
    site.come_to_rest()
    for device, node in site.nodes.items():
        assert not any(node.books().values()), (device, node.books())
        assert node.idle()
    finals = [result.request for result in site.results if result.final]
    assert len(finals) == len(set(finals))


@pytest.mark.parametrize("name", PLACEMENTS)
@given(script=steps)
@settings(max_examples=often(30), deadline=None)
def test_every_delivery_is_acknowledged(name: str, script: list[tuple[object, ...]]) -> None:
    site = Site(PLACEMENTS[name], 0.5)
    play(site, [step for step in script if step[0] != "kill"])
    site.come_to_rest()
    assert not site.delivered


def test_a_message_that_a_broker_delivers_twice_is_acknowledged_twice() -> None:
    site = Site(PLACEMENTS["wide"], 0.0)
    play(site, [("accept",), ("hear", 0, True), ("hear", 1, False)])
    site.come_to_rest()
    assert not site.delivered


@pytest.mark.parametrize("name", PLACEMENTS)
def test_hundreds_of_inputs_leave_nothing_behind(name: str) -> None:
    site = Site(PLACEMENTS[name], 0.0)
    site.script = dict.fromkeys(range(4), UNSURE)
    count = often(1000)
    for _ in range(count):
        site.accept()
        site.settle()
        site.acknowledge()
    assert len({result.request for result in site.results}) == count
    assert not [result for result in site.results if result.reason != "last"]
    for device, node in site.nodes.items():
        held = {key: count for key, count in node.books().items() if not key.endswith("_times")}
        assert not any(held.values()), (device, held)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.one_of(st.none(), st.floats(0, 100))), max_size=300))
def test_an_agenda_gives_back_what_was_set_last_and_stays_short(changes: list[tuple[str, float | None]]) -> None:
    agenda, model = Agenda[str](), dict[str, float]()
    for key, at in changes:
        if at is None:
            agenda.drop(key)
            model.pop(key, None)
        else:
            agenda.set(key, at)
            model[key] = at
        assert len(agenda._heap) <= 2 * len(model) + 65
        assert agenda.next_due() == min(model.values(), default=float("inf"))
    drawn = {}
    while (key := agenda.pop(1e9)) is not None:
        drawn[key] = model.pop(key)
    assert list(drawn.values()) == sorted(drawn.values())
    assert not model
    assert len(agenda) == 0
