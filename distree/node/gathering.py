"""Gatherings: one attempt of a request at the exits of wide stages, and what a board counts of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from distree.messages.request import (
    CriterionMemory,
    Decision,
    Embedding,
    Guess,
    Hop,
    Progress,
    RequestContext,
    Tensor,
    Trace,
)
from distree.messages.telemetry import FusionTelemetry
from distree.node.effects import Output, Send
from distree.node.exits import reading

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

MAX_HOPS_KEPT = 32
"""Most hops told of one request."""

Key = tuple[bytes, int]
"""Token of the attempt, and first stage of the group of wide stages."""


@dataclass(slots=True, kw_only=True)
class Gathering:
    """One attempt of a request at the exit of wide stage `stage`, the first of whose group is `first`."""

    context: RequestContext
    first: int
    stage: int
    spent_s: float
    arrived_at: float
    guess: Guess | None
    memory: CriterionMemory
    hops: tuple[Hop, ...]
    trace: Trace
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
    """Not heard at the exit that was last given to be fused; None before the first one."""

    @classmethod
    def of(cls, message: Embedding, now: float) -> Gathering:
        """Return the gathering that the first embedding of an attempt begins."""
        progress = message.progress
        return cls(
            context=message.context,
            first=message.stage,
            stage=message.stage,
            spent_s=progress.spent_s,
            arrived_at=now,
            guess=progress.guess,
            memory=progress.memory,
            hops=progress.hops[:-1],
            trace=progress.trace,
            boards={message.branch: message.device},
        )

    def move(self, event: GatheringEvent) -> None:
        """Follow the table; a KeyError here is a fault of this program."""
        self.state = GATHERING_TRANSITIONS[self.state, event]

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.context.token, self.first

    def left(self, now: float) -> float:
        """Seconds of the budget that are left."""
        return self.context.budget_s - self.spent_s - (now - self.arrived_at)

    def add_hops(self, *hops: Hop) -> None:
        """Add hops, as long as there is room for them."""
        self.hops = (*self.hops, *hops)[:MAX_HOPS_KEPT]

    def add_reading(self, score: float, class_id: int) -> None:
        """Add what an exit said, where that is recorded."""
        if self.trace is not None:
            self.trace = (*self.trace, reading(score, class_id))

    def progress(self, now: float) -> Progress:
        """Return what is known so far, as it travels on."""
        return Progress(
            spent_s=self.spent_s + (now - self.arrived_at),
            guess=self.guess,
            memory=self.memory,
            hops=self.hops,
            trace=self.trace,
        )

    def tell(self, stage: int, *, go: bool) -> list[Output]:
        """Return the decision at the exit of `stage`, to every board that was heard."""
        decision = Decision(request=self.context.request, token=self.context.token, stage=stage, go=go)
        return [Send(message=decision, to=device) for device in self.boards.values()]


@dataclass(slots=True)
class FusionCounters:
    """Counters of the exit of one wide stage since boot."""

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

    def report(self, stage: int, *, audited: int) -> FusionTelemetry:
        """Report on the exit of `stage`."""
        return FusionTelemetry(
            stage=stage,
            fused=self.fused,
            exited=self.exited,
            forwarded=self.forwarded,
            failed=self.failed,
            expired=self.expired,
            late=self.late,
            missing=tuple(self.missing),
            audited=audited,
        )
