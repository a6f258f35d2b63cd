"""The announcer: says what this board serves, when it connects and when it is asked to; and asks others.

Where a broker has retained announcements, nobody need ask. Where it has not, an origin that has connected hears
nothing, and calls.
"""

from __future__ import annotations

import math
import random

from distree.messages.member import Call, Member
from distree.node.effects import Announce, Effect, Output, Publish
from distree.node.settings import NodeSettings

JITTER_S = 0.5
"""Boards that are called answer within so many seconds, each at a moment of its own."""

CALLED_EVERY_S = 10.0
"""A board that is called again and again answers no more often than this, and calls no more often."""

PATIENCE_S = 1.0
"""What the broker has retained is there by so many seconds after a connect."""


class Announcer:
    """What this board serves, if anything, and when it is to be said; `wants` tells whether it needs others."""

    def __init__(self, settings: NodeSettings, chance: random.Random, *, wants: bool) -> None:
        self._settings = settings
        self._chance = chance
        self._wants = wants
        stages = {k for k in settings.stages if settings.travels(k)}
        if settings.fuses:
            stages |= {k for k in range(settings.last + 1) if settings.starts_group(k)}
        self.stages = tuple(sorted(stages))
        """Those at which requests may come to this board."""
        self._answer_at = self._call_at = math.inf
        self.due_at = math.inf
        """When `tick` is next worth a call; infinity if never."""
        self._answered_at = -math.inf

    def _member(self) -> Member:
        settings = self._settings
        return Member(
            device=settings.device,
            boot=settings.board_boot or settings.boot,
            pipeline=settings.pipeline,
            model=settings.model,
            revisions=(settings.revision,),
            stages=settings.stages,
            branch=settings.branch,
            fuses=settings.fuses,
        )

    def announce(self) -> list[Effect]:
        """Say what this board serves: it has come, or come back."""
        return [Announce(member=self._member(), stages=self.stages)] if self.stages else []

    def connected(self, now: float) -> None:
        """This board has connected: see whether anything was retained."""
        if self._wants:
            self._set(call_at=now + PATIENCE_S + self._chance.uniform(0.0, JITTER_S))

    def heard(self, *, is_live: bool) -> None:
        """An announcement has come; one that was retained proves that there is no need to call."""
        if not is_live:
            self._set(call_at=math.inf)

    def called(self, now: float, caller: str) -> None:
        """Boards are asked to say what they serve: this one answers soon, and asks no more itself."""
        if caller == self._settings.device:
            return
        if self._call_at < math.inf:
            self._set(call_at=now + CALLED_EVERY_S * self._chance.uniform(1.0, 1.5))
        if self._answer_at == math.inf:
            soon = now + self._chance.uniform(0.0, JITTER_S)
            self._set(answer_at=max(soon, self._answered_at + CALLED_EVERY_S))

    def _set(self, *, answer_at: float | None = None, call_at: float | None = None) -> None:
        if answer_at is not None:
            self._answer_at = answer_at
        if call_at is not None:
            self._call_at = call_at
        self.due_at = min(self._answer_at, self._call_at)

    def tick(self, now: float, *, lacks_boards: bool) -> list[Output]:
        """Answer, or call, if that is due; whoever lacks boards calls again."""
        outputs: list[Output] = []
        if now >= self._answer_at:
            self._answered_at = now
            self._set(answer_at=math.inf)
            outputs.append(Announce(member=self._member(), stages=self.stages, again=True))
        if now >= self._call_at:
            self._set(call_at=now + CALLED_EVERY_S * self._chance.uniform(1.0, 1.5) if lacks_boards else math.inf)
            outputs.append(Publish(message=Call(caller=self._settings.device)))
        return outputs
