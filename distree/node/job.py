"""Jobs: one input or set of features, from its arrival at a board until it leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from distree.messages.request import Progress, RequestContext, Tensor

JobState = Literal["waiting", "running", "kept", "done"]
JobEvent = Literal["start", "exit", "forward", "continue", "yield", "keep", "go", "stop", "fail", "shed", "expire"]

JOB_TRANSITIONS: dict[tuple[JobState, JobEvent], JobState] = {
    ("waiting", "start"): "running",
    ("waiting", "stop"): "done",
    ("waiting", "shed"): "done",
    ("waiting", "expire"): "done",
    ("running", "exit"): "done",
    ("running", "forward"): "done",
    # The next stage is on this board too.
    ("running", "continue"): "running",
    # An audit lets others go first.
    ("running", "yield"): "waiting",
    # A branch keeps its features until it is told to go on with them; an eager one goes on by itself.
    ("running", "keep"): "kept",
    ("running", "stop"): "done",
    ("running", "fail"): "done",
    ("kept", "go"): "waiting",
    ("kept", "stop"): "done",
    ("kept", "shed"): "done",
    ("kept", "expire"): "done",
}

NOTHING_YET = Progress(spent_s=0.0, guess=None, memory=(), hops=())
"""The progress of a request that has just begun."""

TRACED = replace(NOTHING_YET, trace=())
"""The same of one of which all exits are to say what they see."""

Delivered = tuple[bytes, int]
"""Token of the attempt, and the stage at which a job came: what tells a delivery from the next."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One input or set of features, from its arrival at this board until it leaves."""

    key: int
    context: RequestContext
    progress: Progress
    stage: int
    """Goes up with each stage that this board runs."""
    delivered: Delivered
    """What it is known by while it is on this board, whatever stage it is at."""
    tensor: Tensor
    delivery: object | None
    """The driver's token of the delivery that is to be acknowledged; None for what came from this board itself."""
    arrived_at: float
    """When `progress` was what it is."""
    state: JobState = "waiting"
    ready_at: float = 0.0
    queue_s: float = 0.0
    stopped_at: int | None = None
    """The exit at which it was stopped while it was running."""

    def move(self, event: JobEvent) -> None:
        """Follow the table; a KeyError here is a fault of this program."""
        self.state = JOB_TRANSITIONS[self.state, event]

    def spent(self, now: float) -> float:
        """Seconds of the budget that boards have used of this request so far."""
        return self.progress.spent_s + (now - self.arrived_at)

    def left(self, now: float) -> float:
        """Seconds of the budget that are left."""
        return self.context.budget_s - self.spent(now)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensor as it is kept."""
        return len(self.tensor.payload)
