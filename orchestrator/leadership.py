"""Which of several orchestrators of a site publishes plans: the one that was there first. No I/O, no clock.

Each claims the site by a retained message that it repeats while it runs, and that its will takes back. One that hears
another's claim goes on standby; when the other is gone, or has been silent for too long, it takes over. If two claim
the site at the same moment, the one with the lower id leads.
"""

from __future__ import annotations

import enum

LISTEN_S = 0.5
"""How long to wait for another's claim after a connect, in seconds."""

CLAIM_S = 5.0
"""Period in which a leader repeats its claim, in seconds."""

PATIENCE_S = 25.0
"""A leader that has not been heard for so many seconds is gone, though its will may not have been published."""


class Role(str, enum.Enum):
    """The role of an orchestrator on its site."""

    OFFLINE = "offline"
    LISTENING = "listening"
    LEADER = "leader"
    STANDBY = "standby"


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
        self._heard_at_s = self._claim_at_s = 0.0

    @property
    def leads(self) -> bool:
        """Whether this one publishes plans."""
        return self.role is Role.LEADER

    def connected(self, now_s: float) -> None:
        """Listen for another's claim before making one."""
        self.role, self.leader = Role.LISTENING, None
        self._claim_at_s = now_s + LISTEN_S

    def disconnected(self) -> None:
        """Claim nothing until connected again: another one may take over meanwhile."""
        self.role, self.leader = Role.OFFLINE, None

    def heard(self, now_s: float, other: str, *, running: bool) -> str | None:
        """Note a claim, or that one is taken back; return a line to log, if there is one."""
        if other == self.own:
            return None
        if not running:
            if other == self.leader:
                # Step claims at once.
                self._heard_at_s = float("-inf")
            return None
        if self.role is Role.LEADER and self.own < other:
            self._claim_at_s = now_s
            return None
        was, self.leader, self._heard_at_s = self.leader, other, now_s
        self.role = Role.STANDBY
        if was == other:
            return None
        return (
            f"another orchestrator ({other}) runs this site: this one ({self.own}) publishes nothing and stands by; "
            "stop one of them, or leave this one to take over"
        )

    def step(self, now_s: float) -> bool:
        """Whether to publish the claim now, which may be to take over."""
        if self.role is Role.STANDBY and now_s >= self._heard_at_s + PATIENCE_S:
            self.role, self.leader, self._claim_at_s = Role.LISTENING, None, now_s
        if self.role not in (Role.LISTENING, Role.LEADER) or now_s < self._claim_at_s:
            return False
        self.role = Role.LEADER
        self._claim_at_s = now_s + CLAIM_S
        return True
