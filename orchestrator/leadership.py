"""Which of several orchestrators of a site publishes plans: the one that was there first. No I/O, no clock.

Each claims the site by a retained message that it repeats while it runs, and that its will takes back. An orchestrator
that connects and finds another's claim goes on standby; when the other is gone, or has not renewed its claim in time,
it takes over. If two begin to lead at the same moment, the one with the lower id goes on leading.

Anybody who may write to that topic can claim the site, so a claim counts only as long as it is renewed: one that leads
gives way only to a claim that has been renewed for RIVAL_S, and one on standby waits no longer than UNRENEWED_S for the
first renewal. After MAX_EMPTY claims that were never renewed, it gives way to nobody for EMPTY_S.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from dataclasses import dataclass

LISTEN_S = 0.5
"""How long to wait for another's claim after a connect, in seconds."""

CLAIM_S = 5.0
"""Period in which a leader repeats its claim, in seconds."""

UNRENEWED_S = 12.0
"""A claim that was heard only once is empty after so many seconds: by then, one that runs has repeated it."""

PATIENCE_S = 25.0
"""A leader that has not been heard for so many seconds is gone, though its will may not have been published."""

CONTEST_S = 2.0
"""How long after it began to lead an orchestrator gives way to a lower id that began at the same moment, in seconds."""

RIVAL_S = 30.0
"""How long a claim of a lower id must have been renewed before one that leads gives way to it, in seconds."""

MAX_EMPTY = 3
"""Empty claims after which an orchestrator gives way to nobody for EMPTY_S."""

EMPTY_S = 3600.0
"""How long empty claims are remembered, in seconds."""

IGNORED_LOG_INTERVAL_S = 60.0
"""Shortest time between two log lines about claims that are ignored, in seconds."""

MAX_CLAIMS = 64
"""Claims of others that are remembered: whoever forges them chooses the ids."""


class Role(str, enum.Enum):
    """The role of an orchestrator on its site."""

    OFFLINE = "offline"
    LISTENING = "listening"
    LEADER = "leader"
    STANDBY = "standby"


@dataclass(slots=True)
class _Claim:
    """Since when another's claim has been renewed, and when it was last heard."""

    since_s: float
    heard_at_s: float

    def is_kept_up(self, now_s: float) -> bool:
        """Whether the orchestrator that made it still seems to run."""
        patience_s = PATIENCE_S if self.heard_at_s > self.since_s else UNRENEWED_S
        return now_s < self.heard_at_s + patience_s


class Leadership:
    """The state of one orchestrator, called `own`. Every `now_s` is of one monotonic clock.

    >>> one = Leadership("a1")
    >>> one.connected(0.0)
    >>> one.step(LISTEN_S), one.leads
    (True, True)
    >>> one.heard(1.0, "f7", running=True), one.leads  # the other has to give way
    (None, True)
    """

    def __init__(self, own: str) -> None:
        self.own = own
        self.role = Role.OFFLINE
        self.leader: str | None = None
        """Id of the other orchestrator that leads; None if there is none."""
        self._claims: OrderedDict[str, _Claim] = OrderedDict()
        self._empty_at_s: deque[float] = deque(maxlen=MAX_EMPTY)
        self._claim_at_s = self._led_since_s = 0.0
        self._ignored_log_at_s = float("-inf")
        self._notice: str | None = None

    @property
    def leads(self) -> bool:
        """Whether this one publishes plans."""
        return self.role is Role.LEADER

    def connected(self, now_s: float) -> None:
        """Listen for another's claim before making one."""
        self.role, self.leader = Role.LISTENING, None
        self._claims.clear()
        self._claim_at_s = now_s + LISTEN_S

    def disconnected(self) -> None:
        """Claim nothing until connected again: another one may take over meanwhile."""
        self.role, self.leader = Role.OFFLINE, None

    def heard(self, now_s: float, other: str, *, running: bool) -> str | None:
        """Note a claim, or that one is taken back; return a line to log, if there is one."""
        if other == self.own:
            return None
        if not running:
            # Where it led, step claims at once.
            self._claims.pop(other, None)
            return None
        claim = self._note(now_s, other)
        if self.role is Role.STANDBY:
            return None
        if self.role is Role.LEADER and self.own < other:
            self._claim_at_s = now_s
            return None
        if not self._gives_way(now_s, claim):
            return self._ignored(now_s, other)
        self.role, self.leader = Role.STANDBY, other
        return (
            f"another orchestrator ({other}) runs this site: this one ({self.own}) publishes nothing and stands by; "
            "stop one of them, or leave this one to take over"
        )

    def step(self, now_s: float) -> bool:
        """Whether to publish the claim now, which may be to take over."""
        if self.role is Role.STANDBY:
            self._check_leader(now_s)
        if self.role not in (Role.LISTENING, Role.LEADER) or now_s < self._claim_at_s:
            return False
        if self.role is Role.LISTENING:
            self.role, self._led_since_s = Role.LEADER, now_s
        self._claim_at_s = now_s + CLAIM_S
        return True

    def take_notice(self) -> str | None:
        """Return a line to log about a change that `step` found, once."""
        line, self._notice = self._notice, None
        return line

    def _note(self, now_s: float, other: str) -> _Claim:
        claim = self._claims.get(other)
        if claim is None or now_s > claim.heard_at_s + PATIENCE_S:
            claim = self._claims[other] = _Claim(now_s, now_s)
        claim.heard_at_s = now_s
        self._claims.move_to_end(other)
        if len(self._claims) > MAX_CLAIMS:
            # The leader's is kept, however many others are claimed.
            del self._claims[next(name for name in self._claims if name != self.leader)]
        return claim

    def _gives_way(self, now_s: float, claim: _Claim) -> bool:
        if len(self._empty_at_s) == MAX_EMPTY and now_s < self._empty_at_s[0] + EMPTY_S:
            return False
        if self.role is not Role.LEADER or now_s < self._led_since_s + CONTEST_S:
            return True
        return claim.heard_at_s - claim.since_s >= RIVAL_S

    def _ignored(self, now_s: float, other: str) -> str | None:
        if now_s < self._ignored_log_at_s + IGNORED_LOG_INTERVAL_S:
            return None
        self._ignored_log_at_s = now_s
        return (
            f"ignored the claim of {other} on this site, for which this orchestrator ({self.own}) plans: if there is "
            "such an orchestrator, stop one of the two; if not, somebody forges claims: see docs/howto/recover.md"
        )

    def _check_leader(self, now_s: float) -> None:
        claim = self._claims.get(self.leader or "")
        if claim is not None and claim.is_kept_up(now_s):
            return
        if claim is not None:
            del self._claims[self.leader or ""]
            self._empty_at_s.append(now_s)
            self._notice = f"{self.leader} no longer renews its claim on this site: this orchestrator takes over"
        # The leader may have given way to another, whose claim has been renewed since.
        others = [name for name, of in self._claims.items() if of.since_s < of.heard_at_s and of.is_kept_up(now_s)]
        if others:
            self.leader, self._notice = others[-1], f"the orchestrator {others[-1]} runs this site now"
        else:
            self.role, self.leader, self._claim_at_s = Role.LISTENING, None, now_s
