"""Effects: what a node asks its driver to do, in order; and what the parts of a node hand to each other.

A part returns effects, and things to be delivered: a `Send`, which the node gives to another part of the same board or
turns into a `Publish`, and what is for parts of this board alone: a `Job` for the inbox, `GuessUpdate`,
`RequestClosed`.
"""

from __future__ import annotations

from typing import TypeAlias

from distree.messages.audit import AuditRow
from distree.messages.events import EventKind, Severity
from distree.messages.member import Call, Member
from distree.messages.request import Decision, Embedding, Outcome, Progress, StageMessage, Tensor
from distree.messages.result import Result
from distree.node.job import Job
from distree.record import record
from distree.topics import ALL


@record
class Publish:
    """Send a message; the driver builds the topic from its kind, the pipeline and `to`.

    `to` is the board for which it is, or `topics.ALL`; None for what is for everybody: results, audits, calls.
    """

    message: StageMessage | Embedding | Decision | Outcome | Result | AuditRow | Call
    to: str | None = None
    settles: str | None = None
    """Where set, the driver calls StageNode.published(settles) once the broker has acknowledged it."""
    turned_away: bool = False
    """The result of an input that found no room; the driver calls StageNode.turned_away with what became of it."""


@record
class Run:
    """Run the segment of `stage` on `tensor`; answer with StageNode.completed or failed, quoting `key`."""

    key: int
    stage: int
    tensor: Tensor


@record
class Fuse:
    """Run the fusion head of `stage` on one embedding per branch, None where it is missing; answer as to Run."""

    key: int
    stage: int
    embeddings: tuple[Tensor | None, ...]


@record
class Acknowledge:
    """The delivery's effects are handed over: the broker may forget it. `delivery` is the driver's own token."""

    delivery: object


@record
class Drop:
    """A request ends on this board without an answer from it; for logs."""

    request: str
    reason: str


@record
class Announce:
    """Publish what this board serves, retained, on the topic of each of `stages`.

    With `again` boards were asked to say what they are, so that the board's state and description are due too.
    """

    member: Member
    stages: tuple[int, ...]
    again: bool = False


@record
class Listen:
    """Subscribe to the state of a board, or no longer."""

    device: str
    on: bool = True


@record
class Tell:
    """Something that people should know; the driver logs it, and publishes it as an `Event` of this pipeline."""

    kind: EventKind
    what: str
    remedy: str = ""
    severity: Severity = Severity.WARNING


Effect: TypeAlias = "Publish | Run | Fuse | Acknowledge | Drop | Announce | Listen | Tell"


@record
class Send:
    """A message for the board `to`, which may be this one; None for features, which go where their route says."""

    message: StageMessage | Embedding | Decision | Outcome
    to: str | None = None


@record
class GuessUpdate:
    """The best answer so far to an own request, from a fuser on this board: for the deadline."""

    request: str
    progress: Progress


@record
class RequestClosed:
    """An own request needs no answer any more: what is still at work on it may stop."""

    request: str


Output: TypeAlias = "Effect | Send | Job | GuessUpdate | RequestClosed"
"""What a part returns."""


def forward(message: StageMessage) -> list[Output]:
    """Return what sends features to the boards that their route names for their stage, one or more."""
    stop = message.context.stop_at(message.stage)
    assert stop is not None  # noqa: S101 - the caller has looked
    if stop.together:
        return [Publish(message=message, to=ALL)]
    if len(stop.boards) == 1:
        return [Publish(message=message, to=stop.boards[0])]
    return [Publish(message=message, to=device) for device in stop.boards if device]
