"""Fusing: gathers the embeddings of a wide stage's branches, and decides at its exit whether everyone stops.

Like the node, of which it is a part, it has no clock, socket or thread. One *gathering* per request and attempt:

    gathering ── fusing ── gathering (the next exit) ── … ── ended

A branch that has not been heard `branch_timeout_s` after the first one is left out, its embedding masked. A branch
that was left out three times in a row is not waited for at all, until it is heard again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from distree import policies, tensors
from distree.agenda import Agenda
from distree.custody import RoundTrip
from distree.errors import RemoteProtocolError
from distree.exits import Epochs, reading, too_late
from distree.protocols import Evidence, SegmentOutput
from distree.settings import NodeSettings
from distree.types import (
    Decision,
    Drop,
    Effect,
    Embedding,
    Fuse,
    FusionTelemetry,
    Guess,
    Hop,
    Outcome,
    PolicyMemory,
    Reason,
    StageMessage,
    Tensor,
    Trace,
)

GatheringState = Literal["gathering", "fusing", "ended"]
GatheringEvent = Literal["fuse", "go", "exit", "forward", "fail", "expire"]

GATHERING_TRANSITIONS: dict[tuple[GatheringState, GatheringEvent], GatheringState] = {
    ("gathering", "fuse"): "fusing",
    ("gathering", "expire"): "ended",
    ("fusing", "go"): "gathering",
    ("fusing", "exit"): "ended",
    ("fusing", "forward"): "ended",
    ("fusing", "fail"): "ended",
    # Answered otherwise while the fusion head was at work: by the deadline, say.
    ("fusing", "expire"): "ended",
}

ABSENT_AFTER = 3
"""A branch left out so many times in a row is not waited for."""

ENDED = 1024
"""Ended gatherings remembered, to tell a late embedding from one of an unknown request."""

KEPT_HOPS = 32
"""Most hops told of one request."""

Key = tuple[str, int, int]
"""Request, attempt and first stage of the group of wide stages."""


@dataclass(slots=True, kw_only=True)
class _Gathering:
    """One request at the exit of wide stage `stage`."""

    request: str
    attempt: int
    origin: str
    epoch: int
    eager: bool
    first: int
    stage: int
    budget_s: float
    spent_s: float
    arrived_at: float
    guess: Guess | None
    memory: PolicyMemory
    hops: tuple[Hop, ...]
    trace: Trace
    audit: bool
    state: GatheringState = "gathering"
    heard: dict[int, Tensor] = field(default_factory=dict)
    """Embeddings of this exit, by branch."""
    ahead: dict[tuple[int, int], Embedding] = field(default_factory=dict)
    """Those of deeper exits, by stage and branch: eager branches do not wait for each other."""
    boards: dict[int, str] = field(default_factory=dict)
    """Where the branches run that were heard at any exit."""
    since: float = 0.0
    """When the branches were told, or are known, to be at work on this exit."""
    missing: tuple[int, ...] | None = None
    """Not heard at the last exit that was fused; None before the first one."""

    def move(self, event: GatheringEvent) -> None:
        """Follow the table; a KeyError here is a fault of this program."""
        self.state = GATHERING_TRANSITIONS[self.state, event]

    @property
    def key(self) -> Key:
        return self.request, self.attempt, self.first

    def spent(self, now: float) -> float:
        return self.spent_s + (now - self.arrived_at)

    def add_hops(self, *hops: Hop) -> None:
        self.hops = (*self.hops, *hops)[:KEPT_HOPS]


@dataclass(slots=True)
class _Counters:
    branches: int
    fused: int = 0
    exited: int = 0
    forwarded: int = 0
    failed: int = 0
    expired: int = 0
    late: int = 0
    missing: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.missing = [0] * self.branches


class Fuser:
    """The fusing part of a node.

    next_key: makes the key of a Fuse. asked: whether an own request still needs an answer, None if it was never
    asked. learned: is told of the guess of each exit, with the request and its hops. answer and forward: carry an
    outcome or features on their way. tell: gives a decision to a board.
    """

    def __init__(
        self,
        settings: NodeSettings,
        epochs: Epochs,
        *,
        next_key: Callable[[], int],
        asked: Callable[[str], bool | None],
        learned: Callable[[str, Guess, tuple[Hop, ...]], None],
        answer: Callable[[float, Outcome], list[Effect]],
        forward: Callable[[float, StageMessage], list[Effect]],
        tell: Callable[[float, str, Decision], list[Effect]],
    ) -> None:
        self._settings = settings
        self._epochs = epochs
        self._next_key, self._asked, self._learned = next_key, asked, learned
        self._answer, self._forward, self._tell = answer, forward, tell
        self._gatherings: OrderedDict[Key, _Gathering] = OrderedDict()
        self._ended: OrderedDict[Key, None] = OrderedDict()
        self._agenda: Agenda[Key] = Agenda()
        self._fusing: dict[int, _Gathering] = {}
        self._left_out = dict.fromkeys(range(max(map(len, settings.embeddings), default=0)), 0)
        # From the word to go on to the next exit's embedding.
        self._step = RoundTrip(settings.branch_timeout_s)
        wide = [k for k in range(len(settings.inputs)) if settings.width(k) > 0]
        self._counters = {k: _Counters(settings.width(k)) for k in wide}
        self._audit_counters = {k: _Counters(settings.width(k)) for k in wide}

    def __len__(self) -> int:
        return len(self._gatherings)

    def books(self) -> dict[str, int]:
        """How much is in each book, but for the bounded memories of what has ended."""
        return {"gatherings": len(self._gatherings), "fusing": len(self._fusing), "fusion_times": len(self._agenda)}

    # ------------------------------------------------------------ embeddings in

    def receive(self, now: float, message: Embedding) -> list[Effect]:
        """Take a decoded embedding; raise RemoteProtocolError for one that does not belong here."""
        self._check(message)
        key = (message.request, message.attempt, self._settings.group_of(message.stage))
        gathering = self._gatherings.get(key)
        if gathering is None:
            if key in self._ended or self._is_settled(message):
                return self._too_late(now, message, go=False)
            if not self._settings.starts_group(message.stage):
                raise RemoteProtocolError("request", f"{message.request} was not heard of at an earlier exit")
            gathering, effects = self._open(now, message)
            if gathering.state == "ended":  # by what was pushed out for it: its own first attempt
                return [*effects, *self._too_late(now, message, go=False)]
            return [*effects, *self._take(now, gathering, message)]
        gathering.boards[message.branch] = message.device
        if message.stage < gathering.stage:
            # It missed a decision to go on; it may still catch up.
            return self._too_late(now, message, go=True)
        if message.stage > gathering.stage:
            gathering.ahead[message.stage, message.branch] = message
            return []
        return self._take(now, gathering, message)

    def _check(self, message: Embedding) -> None:
        settings = self._settings
        if message.fuser != settings.device or not (settings.fuses or message.origin == settings.device):
            raise RemoteProtocolError("fuser", f"this board does not fuse for {message.origin}")
        settings.check_revision(message.revision)
        if message.branch >= settings.width(message.stage):
            raise RemoteProtocolError("branch", f"stage {message.stage} has no branch {message.branch}")
        dtype, shape = settings.embeddings[message.stage][message.branch]
        # Unpacked here, so that a payload that does not fit is told as its sender's fault.
        tensors.decode(message.tensor, dtype=dtype, shape=shape)
        settings.check_guess(message.guess)

    def _is_settled(self, message: Embedding) -> bool:
        """Whether an own request is answered already; RemoteProtocolError if it was never asked."""
        if message.origin != self._settings.device:
            return False
        asked = self._asked(message.request)
        if asked is None:
            raise RemoteProtocolError("request", f"{message.request} was never asked here")
        return not asked

    def _too_late(self, now: float, message: Embedding, *, go: bool) -> list[Effect]:
        self._count(message).late += 1
        self._left_out[message.branch] = 0
        effects: list[Effect] = [Drop(request=message.request, reason="late")]
        if self._settings.ends_group(message.stage) or (go and message.eager):
            return effects
        return [*effects, *self._tell(now, message.device, self._decision(message, message.stage, go=go))]

    def _count(self, of: Embedding | _Gathering) -> _Counters:
        """Return the counters of a stage: audits are not to be mistaken for traffic."""
        return (self._audit_counters if of.audit else self._counters)[of.stage]

    def _decision(self, of: Embedding | _Gathering, stage: int, *, go: bool) -> Decision:
        return Decision(request=of.request, attempt=of.attempt, revision=self._settings.revision, stage=stage, go=go)

    def _open(self, now: float, message: Embedding) -> tuple[_Gathering, list[Effect]]:
        gathering = _Gathering(
            request=message.request,
            attempt=message.attempt,
            origin=message.origin,
            epoch=message.epoch,
            eager=message.eager,
            first=message.stage,
            stage=message.stage,
            budget_s=message.budget_s,
            spent_s=message.spent_s,
            arrived_at=now,
            guess=message.guess,
            memory=message.memory,
            hops=message.hops[:-1],
            trace=message.trace,
            audit=message.audit,
            boards={message.branch: message.device},
        )
        self._gatherings[gathering.key] = gathering
        effects: list[Effect] = []
        while len(self._gatherings) > self._settings.inbox_items:
            oldest = next(iter(self._gatherings.values()))
            audit = next((gathering for gathering in self._gatherings.values() if gathering.audit), oldest)
            effects += self._give_up(now, audit, "shed")
        return gathering, effects

    def _take(self, now: float, gathering: _Gathering, message: Embedding) -> list[Effect]:
        branch = message.branch
        self._left_out[branch] = 0
        if gathering.state == "fusing":
            # Left out, but its board learns of the decision like the others.
            if branch not in gathering.heard:
                self._count(message).late += 1
            return []
        if not gathering.heard:
            left_s = gathering.budget_s - gathering.spent(now)
            # Audits wait where there is live work: a branch that lets them wait is not gone.
            self._agenda.set(gathering.key, now + (left_s if gathering.audit else self._settings.branch_timeout_s))
            if gathering.since and not gathering.audit:
                self._step.sample(now - gathering.since)
        if branch not in gathering.heard:
            gathering.heard[branch] = message.tensor
            gathering.add_hops(*message.hops[-1:])
        return self._fuse(now, gathering) if self._complete(gathering) else []

    def _complete(self, gathering: _Gathering) -> bool:
        """Whether all branches are heard that are worth waiting for."""
        return all(branch in gathering.heard for branch in self._awaited(gathering))

    def _awaited(self, gathering: _Gathering) -> list[int]:
        if not self._settings.starts_group(gathering.stage):
            # Those that were silent so far have nothing to go on from.
            return list(gathering.boards)
        width = self._settings.width(gathering.stage)
        return [branch for branch in range(width) if self._left_out[branch] < ABSENT_AFTER]

    # ------------------------------------------------------------ fusing

    def _fuse(self, now: float, gathering: _Gathering) -> list[Effect]:
        gathering.move("fuse")
        self._agenda.drop(gathering.key)
        gathering.since = now
        width = self._settings.width(gathering.stage)
        counters = self._count(gathering)
        missing = tuple(branch for branch in range(width) if branch not in gathering.heard)
        if gathering.missing not in (None, missing):
            # No thresholds are meant for exits of which some have heard more branches than others.
            gathering.trace = None
        gathering.missing = missing
        awaited = self._awaited(gathering)
        for branch in gathering.missing:
            counters.missing[branch] += 1
            # Silent at one exit, it cannot be heard at the next ones of the same request: that is one time, not three.
            self._left_out[branch] += branch in awaited
        key = self._next_key()
        self._fusing[key] = gathering
        embeddings = tuple(gathering.heard.get(branch) for branch in range(width))
        return [Fuse(key=key, stage=gathering.stage, embeddings=embeddings)]

    def is_fusing(self, key: int) -> bool:
        """Whether `key` is that of a Fuse under way."""
        return key in self._fusing

    def completed(self, now: float, key: int, output: SegmentOutput, took_s: float) -> list[Effect]:
        """The fusion head that Fuse(key) asked for gave `output` after `took_s` seconds of computing."""
        gathering = self._fusing.pop(key)
        if gathering.state == "ended":
            return []
        counters = self._count(gathering)
        counters.fused += 1
        queue_s = max(0.0, now - gathering.since - took_s)
        hop = Hop(device=self._settings.device, stage=gathering.stage, queue_s=queue_s, compute_s=took_s)
        gathering.add_hops(hop)
        class_id, confidence = policies.confidence(output.logits)
        gathering.guess = Guess(exit=gathering.stage, class_id=class_id, confidence=confidence)
        if gathering.origin == self._settings.device:
            self._learned(gathering.request, gathering.guess, gathering.hops)
        reason = self._decide(now, gathering, output, gathering.guess)
        if reason is not None:
            counters.exited += 1
            gathering.move("exit")
            return self._end(now, gathering, reason)
        counters.forwarded += 1
        if self._settings.ends_group(gathering.stage):
            gathering.move("forward")
            return self._send_on(now, gathering, output)
        return self._go_on(now, gathering)

    def _decide(self, now: float, gathering: _Gathering, output: SegmentOutput, guess: Guess) -> Reason | None:
        stage = gathering.stage
        if stage == self._settings.last:
            if gathering.trace is not None:
                gathering.trace = (*gathering.trace, reading(0.0, guess.class_id))
            return "last"
        rule = self._epochs.of(gathering.epoch)
        gathering.epoch = rule.plan.epoch
        evidence = Evidence(
            logits=output.logits,
            confidence=guess.confidence,
            exit=stage,
            embeddings=output.embeddings,
            memory=gathering.memory,
            left_s=gathering.budget_s - gathering.spent(now),
            rest_s=self._step.mean_s or 0.0,
        )
        score = rule.policy.score(evidence)
        gathering.memory = score.memory
        if gathering.trace is not None:
            gathering.trace = (*gathering.trace, reading(score.value, guess.class_id))
        if gathering.audit:
            return None
        if score.value >= rule.threshold(stage, gathering.missing or ()):
            return "confident"
        if too_late(evidence):
            self._step.fade()
            return "deadline"
        return None

    def _go_on(self, now: float, gathering: _Gathering) -> list[Effect]:
        stage = gathering.stage
        gathering.move("go")
        gathering.stage += 1
        gathering.heard, gathering.since = {}, now
        left_s = gathering.budget_s - gathering.spent(now)
        self._agenda.set(gathering.key, now + (left_s if gathering.audit else self._step.silence_s(left_s)))
        effects: list[Effect] = []
        if not gathering.eager:
            effects += self._tell_all(now, gathering, self._decision(gathering, stage, go=True))
        for branch in list(gathering.boards):
            early = gathering.ahead.pop((gathering.stage, branch), None)
            if early is not None and gathering.state == "gathering":
                effects += self._take(now, gathering, early)
        return effects

    def _send_on(self, now: float, gathering: _Gathering, output: SegmentOutput) -> list[Effect]:
        assert output.features is not None  # noqa: S101 - a bundle is checked when it is loaded
        self._forget(gathering)
        message = StageMessage(
            request=gathering.request,
            origin=gathering.origin,
            stage=gathering.stage + 1,
            attempt=gathering.attempt,
            revision=self._settings.revision,
            epoch=gathering.epoch,
            budget_s=gathering.budget_s,
            spent_s=gathering.spent(now),
            guess=gathering.guess,
            memory=gathering.memory,
            hops=gathering.hops,
            tensor=tensors.encode(output.features, self._settings.codec),
            fuser=self._settings.device,
            eager=gathering.eager,
            trace=gathering.trace,
            audit=gathering.audit,
        )
        return self._forward(now, message)

    def failed(self, now: float, key: int, error: str) -> list[Effect]:
        """The fusion head that Fuse(key) asked for raised an error."""
        gathering = self._fusing.pop(key)
        if gathering.state == "ended":
            return []
        self._count(gathering).failed += 1
        gathering.move("fail")
        return [*self._end(now, gathering, "fallback"), Drop(request=gathering.request, reason=error)]

    # ------------------------------------------------------------ ends

    def _end(self, now: float, gathering: _Gathering, reason: Reason) -> list[Effect]:
        """Answer a request and stop its branches."""
        outcome = Outcome(
            request=gathering.request,
            origin=gathering.origin,
            attempt=gathering.attempt,
            revision=self._settings.revision,
            epoch=gathering.epoch,
            guess=gathering.guess,
            reason=reason,
            spent_s=gathering.spent(now),
            hops=gathering.hops,
            missing=gathering.missing or (),
            trace=gathering.trace if reason == "last" else None,
        )
        # The answer first: the branches can wait for it, people should not.
        stops = self._stop(now, gathering)
        return [*self._answer(now, outcome), *stops]

    def _stop(self, now: float, gathering: _Gathering) -> list[Effect]:
        self._forget(gathering)
        if self._settings.ends_group(gathering.stage):
            return []
        return self._tell_all(now, gathering, self._decision(gathering, gathering.stage, go=False))

    def _tell_all(self, now: float, gathering: _Gathering, decision: Decision) -> list[Effect]:
        return [effect for device in gathering.boards.values() for effect in self._tell(now, device, decision)]

    def _forget(self, gathering: _Gathering) -> None:
        self._gatherings.pop(gathering.key, None)
        self._agenda.drop(gathering.key)
        self._ended[gathering.key] = None
        if len(self._ended) > ENDED:
            self._ended.popitem(last=False)

    def _give_up(self, now: float, gathering: _Gathering, reason: Reason) -> list[Effect]:
        gathering.move("expire")
        self._count(gathering).expired += 1
        return [*self._end(now, gathering, reason), Drop(request=gathering.request, reason="expired")]

    def settled(self, now: float, request: str) -> list[Effect]:
        """An own request has been answered: stop what is still at work on it."""
        effects: list[Effect] = []
        for gathering in [gathering for key, gathering in self._gatherings.items() if key[0] == request]:
            gathering.move("expire")
            effects += self._stop(now, gathering)
        return effects

    # ------------------------------------------------------------ time

    def next_due(self) -> float:
        """When `tick` is next worth a call; infinity when nothing is gathered."""
        return self._agenda.next_due()

    def tick(self, now: float) -> list[Effect]:
        """Fuse without the branches whose time is up; give up where none of them was heard."""
        effects: list[Effect] = []
        while (key := self._agenda.pop(now)) is not None:
            gathering = self._gatherings[key]
            effects += self._fuse(now, gathering) if gathering.heard else self._give_up(now, gathering, "fallback")
        return effects

    # ------------------------------------------------------------ telemetry

    def telemetry(self) -> tuple[FusionTelemetry, ...]:
        """Report the counters of every wide stage since boot."""
        return tuple(
            FusionTelemetry(
                stage=k,
                fused=counters.fused,
                exited=counters.exited,
                forwarded=counters.forwarded,
                failed=counters.failed,
                expired=counters.expired,
                late=counters.late,
                missing=tuple(counters.missing),
                audited=self._audit_counters[k].fused,
            )
            for k, counters in self._counters.items()
        )
