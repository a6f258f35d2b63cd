"""Nodes that hear of each other, over a link made of lists."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from distree import tensors
from distree.errors import RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.member import Call
from distree.messages.plan import MaskedThresholds
from distree.messages.request import Decision, Embedding, Outcome, StageMessage
from distree.messages.result import MissingBranch, Result
from distree.node import (
    Acknowledge,
    Announce,
    Drop,
    Effect,
    Fuse,
    Listen,
    NodeSettings,
    OriginSettings,
    Publish,
    Run,
    StageNode,
    Tell,
)
from distree.segments import SegmentOutput
from distree.topics import ALL

INPUT = tensors.encode(np.zeros((1, 4), np.int8))
FEATURES = np.arange(4, dtype=np.int8).reshape(1, 4)
SURE, UNSURE = [9.0, 0.0, 0.0], [0.1, 0.0, 0.0]
WIDE = (("int8", (1, 2)), ("int8", (1, 3)))
SHAPES = {0: (1, 2), 1: (1, 3)}
MISSES_B1 = (MissingBranch(branch=1, device="b1"),)
MISSES_ONE = (MissingBranch(branch=1, device=None),)
"""Without the branch 1 of `b1`, and without any board for it."""

Between = StageMessage | Embedding | Decision | Outcome


def node_settings(device: str, *stages: int, **changes: object) -> NodeSettings:
    base = NodeSettings(
        site="lab",
        device=device,
        pipeline="p",
        boot=device,
        model="toy",
        revision="r1",
        labels=("a", "b", "c"),
        inputs=(("int8", (1, 4)),) * 3,
        stages=stages,
        criterion="max_softmax",
        thresholds=(0.9, 0.9),
        embeddings=(WIDE, WIDE, WIDE),
        branch_timeout_s=0.1,
        masked=(MaskedThresholds(missing=(1,), thresholds=(0.3, 0.3)),),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def chain_settings(device: str, *stages: int, **changes: object) -> NodeSettings:
    return node_settings(device, *stages, **{"embeddings": (), "masked": (), **changes})


# ---------------------------------------------------------------- who is there


def state_of(node: StageNode, status: DeviceStatus = DeviceStatus.READY) -> DeviceState:
    return DeviceState(device=node.settings.device, boot=node.settings.boot, status=status)


def announce(origin: StageNode, effects: Iterable[Effect], now: float = 0.0, *, is_live: bool = False) -> list[Effect]:
    """Hand what a node announces to an origin; return what that does."""
    return [
        effect
        for announced in effects
        if isinstance(announced, Announce)
        for stage in announced.stages
        for effect in origin.announced(now, announced.member, stage, is_live=is_live)
    ]


def meet(origin: StageNode, *nodes: StageNode, now: float = 0.0) -> list[Effect]:
    """Hand what the broker has retained of nodes to an origin: what they serve, then that they are ready."""
    effects = []
    for node in nodes:
        effects += announce(origin, node.announce(), now)
        effects += origin.state_changed(now, state_of(node))
    return effects


def boards(**stages: int | tuple[int, ...]) -> list[StageNode]:
    """Return boards of a chain, by name and what they serve."""
    return [
        StageNode(chain_settings(device, *(served if isinstance(served, tuple) else (served,))))
        for device, served in stages.items()
    ]


def lines(effects: Iterable[Effect]) -> list[str]:
    return [effect.what for effect in effects if isinstance(effect, Tell)]


# ---------------------------------------------------------------- a fleet


class Letter(NamedTuple):
    """A message on its way."""

    to: str
    message: Between
    sender: str


@dataclass
class Fleet:
    """Nodes by device, what is on its way between them, and what they did. Origins know all boards."""

    nodes: dict[str, StageNode]
    script: dict[int, list[float]] = field(default_factory=dict)
    """Logits of each exit; SURE where none are given."""
    now: float = 0.0
    flying: list[Letter] = field(default_factory=list)
    work: list[tuple[str, Run | Fuse]] = field(default_factory=list)
    runs: Counter[tuple[str, int]] = field(default_factory=Counter)
    results: list[Result] = field(default_factory=list)
    rows: list[AuditRow] = field(default_factory=list)
    acknowledged: Counter[object] = field(default_factory=Counter)
    refused: list[RemoteProtocolError] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """What was told to people."""
    sent: list[Publish] = field(default_factory=list)
    lose: set[str] = field(default_factory=set)
    """Devices that neither hear nor work."""
    token: int = 0

    def __post_init__(self) -> None:
        for device in self.nodes:
            self.introduce(device)
        # What is told while they come one by one.
        self.told.clear()

    @property
    def origins(self) -> list[str]:
        return [device for device, node in self.nodes.items() if node.settings.origin is not None]

    def introduce(self, device: str) -> None:
        """Let an origin know the others."""
        if device in self.origins:
            others = [node for name, node in self.nodes.items() if name != device]
            self.carry_out(device, meet(self.nodes[device], *others, now=self.now))

    def accept(self, device: str = "cam", **arguments: object) -> str:
        request, effects = self.nodes[device].accept(self.now, "x", INPUT, **arguments)  # type: ignore[arg-type]
        self.carry_out(device, effects)
        return request

    def carry_out(self, device: str, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                self.sent.append(effect)
            match effect:
                case Run() | Fuse():
                    self.work.append((device, effect))
                case Publish(message=StageMessage() as message, to=str(to)):
                    self.flying += [Letter(board, message, device) for board in self.readers(message.stage, to)]
                case Publish(message=Embedding() | Outcome() | Decision() as message, to=str(board)):
                    assert board != device, "what is for a board itself is delivered there"
                    self.flying.append(Letter(board, message, device))
                case Publish(message=Result() as result, settles=settled):
                    self.results.append(result)
                    assert settled is None or settled == result.request
                case Publish(message=AuditRow() as row):
                    self.rows.append(row)
                case Publish(message=Call()):
                    for node in self.nodes.values():
                        node.called(self.now, device)
                case Acknowledge(delivery=delivery):
                    self.acknowledged[delivery] += 1
                case Announce():
                    self.announced(device, effect)
                case Tell(what=what):
                    self.told.append(what)
                case Drop() | Listen():
                    pass
                case _:
                    raise AssertionError(effect)

    def announced(self, device: str, effect: Announce) -> None:
        for origin in self.origins:
            if origin != device:
                self.carry_out(origin, announce(self.nodes[origin], [effect], self.now, is_live=True))

    def readers(self, stage: int, to: str) -> list[str]:
        """Return who reads what is for a board, or for all of a stage."""
        if to != ALL:
            return [to]
        return [device for device, node in self.nodes.items() if stage in node.settings.stages]

    def deliver(self, index: int = 0) -> None:
        board, message, sender = self.flying.pop(index)
        if board in self.lose or board not in self.nodes:
            return
        self.token += 1
        try:
            self.carry_out(board, self.nodes[board].receive(self.now, message, self.token, sender))
        except RemoteProtocolError as error:
            self.refused.append(error)

    def bounce(self, index: int = 0) -> None:
        """Have the broker say that nobody reads a message."""
        board, message, sender = self.flying.pop(index)
        if isinstance(message, StageMessage | Embedding) and sender not in self.lose:
            self.carry_out(sender, self.nodes[sender].no_subscribers(self.now, message, board))

    def compute(self, index: int = 0) -> None:
        board, job = self.work.pop(index)
        if board not in self.lose:
            self.carry_out(board, self.nodes[board].completed(self.now, job.key, self.output(board, job), 0.001))

    def output(self, board: str, job: Run | Fuse) -> SegmentOutput:
        settings = self.nodes[board].settings
        if isinstance(job, Fuse):
            after = FEATURES if settings.width(job.stage + 1) == 0 and job.stage < settings.last else None
            heard = tuple(None if part is None else [1.0] for part in job.embeddings)
            return SegmentOutput(features=after, logits=self.script.get(job.stage, SURE), embeddings=heard)
        self.runs[board, job.stage] += 1
        features = None if job.stage == settings.last else FEATURES
        if settings.width(job.stage) == 0:
            return SegmentOutput(features=features, logits=self.script.get(job.stage, SURE))
        assert settings.branch is not None
        embedding = np.ones(SHAPES[settings.branch], np.int8)
        return SegmentOutput(features=features, logits=[], embedding=embedding)

    def tick(self, seconds: float) -> None:
        """Let time pass; every node is ticked when it wants to be."""
        ends_at = self.now + seconds
        while True:
            due = {device: node.notify_at() for device, node in self.nodes.items() if device not in self.lose}
            device, at = min(due.items(), key=lambda item: item[1])
            if at > ends_at:
                break
            self.now = max(self.now, at)
            self.carry_out(device, self.nodes[device].tick(self.now))
        self.now = ends_at

    def settle(self) -> None:
        """Deliver and compute until nothing is left to do."""
        for _ in range(10_000):
            if self.work:
                self.compute()
            elif self.flying:
                self.deliver()
            else:
                return
        raise AssertionError("it goes on for ever")

    def state_changed(self, device: str, status: DeviceStatus) -> None:
        """Let all origins hear what became of a board."""
        for origin in self.origins:
            state = state_of(self.nodes[device], status)
            self.carry_out(origin, self.nodes[origin].state_changed(self.now, state))

    def on_the_way(self, kind: type = StageMessage) -> list[str]:
        """Return the boards to which messages of a kind are on their way."""
        return [letter.to for letter in self.flying if isinstance(letter.message, kind)]


def chain(
    *,
    script: dict[int, list[float]] | None = None,
    own: tuple[int, ...] = (0,),
    origin: OriginSettings | None = None,
    seed: int = 1,
    changes: dict[str, object] | None = None,
    **stages: int | tuple[int, ...],
) -> Fleet:
    """Origin `cam` with stage 0, and boards of a chain of three plain stages, by name and what they serve."""
    origin = origin or OriginSettings(deadline_s=1.0, max_pending=8, min_retry_s=0.1)
    cam = chain_settings("cam", *own, origin=origin, **(changes or {}))
    nodes = {"cam": StageNode(cam, chance=random.Random(seed))}
    for device, served in stages.items():
        served = served if isinstance(served, tuple) else (served,)
        nodes[device] = StageNode(chain_settings(device, *served, **(changes or {})))
    return Fleet(nodes, {0: UNSURE, 1: UNSURE, 2: UNSURE} if script is None else script)


def fleet(
    *,
    eager: bool = False,
    fuser: str | None = None,
    script: dict[int, list[float]] | None = None,
    twins: bool = False,
    **changes: object,
) -> Fleet:
    """Origin `cam`, branches `b0` and `b1`, with twins `t0` and `t1` of them if asked, and `hub`, which fuses if asked."""
    origin = OriginSettings(deadline_s=1.0, max_pending=8, min_retry_s=0.3, fuser=fuser, eager=eager)
    nodes = {
        "cam": StageNode(node_settings("cam", origin=origin, **changes), chance=random.Random(1)),
        "b0": StageNode(node_settings("b0", 0, 1, 2, branch=0, **changes)),
        "b1": StageNode(node_settings("b1", 0, 1, 2, branch=1, **changes)),
        "hub": StageNode(node_settings("hub", fuses=True, **changes)),
    }
    if twins:
        nodes["t0"] = StageNode(node_settings("t0", 0, 1, 2, branch=0, **changes))
        nodes["t1"] = StageNode(node_settings("t1", 0, 1, 2, branch=1, **changes))
    return Fleet(nodes, script or {})
