"""What a board says of a request: to its origin, and its origin to everybody."""

from __future__ import annotations

from distree.messages.request import (
    Embedding,
    Outcome,
    OutcomeReason,
    Progress,
    Reason,
    RequestContext,
    StageMessage,
)
from distree.messages.result import MissingBranch, Result
from distree.node.effects import Send
from distree.node.settings import NodeSettings


def turned_back(message: StageMessage | Embedding, reason: OutcomeReason, board: str | None = None) -> Send:
    """Return what tells the origin that a message goes no further from here, with the answer so far."""
    context, progress = message.context, message.progress
    outcome = Outcome(
        request=context.request,
        token=context.token,
        reason=reason,
        guess=progress.guess,
        spent_s=progress.spent_s,
        hops=progress.hops,
        board=board,
    )
    return Send(message=outcome, to=context.origin)


def result_of(
    settings: NodeSettings,
    context: RequestContext,
    name: str,
    reason: Reason,
    progress: Progress,
    *,
    latency_s: float,
    final: bool,
) -> Result:
    """Return the result of one attempt of the input `name`."""
    guess = progress.guess
    missing = () if guess is None else guess.missing
    return Result(
        request=context.request,
        site=settings.site,
        pipeline=settings.pipeline,
        origin=settings.device,
        input=name,
        label=None if guess is None else settings.labels[guess.class_id],
        class_id=None if guess is None else guess.class_id,
        confidence=0.0 if guess is None else guess.confidence,
        exit=None if guess is None else guess.exit,
        reason=reason,
        final=final,
        late=not final,
        attempt=context.attempt,
        latency_s=latency_s,
        epoch=context.rule.epoch,
        model=settings.model,
        revision=settings.revision,
        hops=progress.hops,
        missing=tuple(
            MissingBranch(branch=branch, device=board_of_branch(settings, context, branch)) for branch in missing
        )
        if missing
        else (),
    )


def board_of_branch(settings: NodeSettings, context: RequestContext, branch: int) -> str | None:
    """Return the board that was to run a branch of the first wide stages on a route; None if there was none."""
    boards = next((stop.boards for stop in context.route if settings.width(stop.stage)), ())
    return (boards[branch] or None) if branch < len(boards) else None
