"""Jobs: one input or set of features, from its arrival at a board until it leaves; and the books of a branch."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from distree.agenda import Agenda
from distree.types import Guess, Hop, PolicyMemory, Tensor, Trace

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

ENDED = 1024
"""Ended jobs of a branch that are remembered, to tell a late decision from one on an unknown request."""

Delivered = tuple[str, int, int]
"""Request, attempt, and the stage at which a job came: what tells a delivery from the next."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One input or set of features, from its arrival at this board until it leaves."""

    key: int
    request: str
    origin: str
    attempt: int
    epoch: int
    stage: int
    budget_s: float
    spent_s: float
    arrived_at: float
    guess: Guess | None
    memory: PolicyMemory
    hops: tuple[Hop, ...]
    tensor: Tensor
    delivery: object | None
    came_to: int = 0
    """The stage at which it came to this board; `stage` goes up with each that this board runs."""
    own: bool = False
    """Accepted by this board, which is its origin; others came in a delivery."""
    fuser: str | None = None
    eager: bool = False
    trace: Trace = None
    audit: bool = False
    stopped_at: int | None = None
    """The exit at which it was stopped while it was running."""
    state: JobState = "waiting"
    ready_at: float = 0.0
    queue_s: float = 0.0

    def move(self, event: JobEvent) -> None:
        """Follow the table; a KeyError here is a fault of this program."""
        self.state = JOB_TRANSITIONS[self.state, event]

    def spent(self, now: float) -> float:
        """Seconds of the budget that boards have used of this request so far."""
        return self.spent_s + (now - self.arrived_at)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensor as it is kept."""
        return len(self.tensor.payload)

    @property
    def delivered(self) -> Delivered:
        """What it is known by while it is on this board, whatever stage it is at."""
        return self.request, self.attempt, self.came_to


@dataclass(slots=True)
class BranchBooks:
    """The jobs of this board's branch: those not at their end, those with kept features, the memory of ended ones.

    Features are kept up to `items` and `nbytes`, each until its budget has run out. A job is opened by `begin` and
    closed by `end`.
    """

    items: int
    nbytes: int
    live: dict[Delivered, Job] = field(default_factory=dict)
    kept: OrderedDict[Delivered, Job] = field(default_factory=OrderedDict)
    kept_bytes: int = 0
    ended: OrderedDict[Delivered, int] = field(default_factory=OrderedDict)
    agenda: Agenda[Delivered] = field(default_factory=Agenda)

    def begin(self, job: Job) -> None:
        """Take in a job that was delivered."""
        self.live[job.delivered] = job

    def keep(self, now: float, job: Job) -> list[Job]:
        """Keep a job's features; return the jobs that must be dropped for them, audits before others, oldest first."""
        self.kept[job.delivered] = job
        self.kept_bytes += job.nbytes
        self.agenda.set(job.delivered, now + job.budget_s - job.spent(now))
        dropped = []
        while len(self.kept) > self.items or self.kept_bytes > self.nbytes:
            oldest = next(iter(self.kept.values()))
            dropped.append(self.take(next((kept for kept in self.kept.values() if kept.audit), oldest)))
        return dropped

    def take(self, job: Job) -> Job:
        """Take a job's features out of what is kept."""
        del self.kept[job.delivered]
        self.agenda.drop(job.delivered)
        self.kept_bytes -= job.nbytes
        return job

    def end(self, job: Job, last_run: int) -> None:
        """Forget a job but for the deepest stage that it ran, -1 for none."""
        self.live.pop(job.delivered, None)
        self.ended[job.delivered] = last_run
        if len(self.ended) > ENDED:
            self.ended.popitem(last=False)

    def next_due(self) -> float:
        """When `pop_due` is next worth a call; infinity when nothing is kept."""
        return self.agenda.next_due()

    def pop_due(self, now: float) -> Job | None:
        """Return the next job whose kept features have outlived their budget, or None."""
        key = self.agenda.pop(now)
        return None if key is None else self.take(self.kept[key])
