"""Messages of a request for tests: made with what a test cares about, and with something changed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import msgpack

from distree.messages.request import (
    Decision,
    Embedding,
    Outcome,
    Progress,
    RequestContext,
    RouteStop,
    Rule,
    StageMessage,
    Tensor,
)

M = TypeVar("M", StageMessage, Embedding, Decision, Outcome)

_PARTS = {"context": RequestContext, "progress": Progress}


def _names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}  # type: ignore[arg-type]


def changed(message: M, **changes: object) -> M:
    """Return `message` with fields changed, be they its own or of its context, rule or progress.

    Another request is another attempt, too: it gets a token of its own.
    """
    if "request" in changes and "token" not in changes:
        changes["token"] = token_of(str(changes["request"]))
    own: dict[str, object] = {}
    for name, kind in _PARTS.items():
        part = getattr(message, name, None)
        if part is None:
            continue
        if kind is RequestContext and (inner := {n: changes.pop(n) for n in _names(Rule) & changes.keys()}):
            part = replace(part, rule=replace(part.rule, **inner))
        own[name] = replace(part, **{n: changes.pop(n) for n in _names(kind) & changes.keys()})
    return replace(message, **own, **changes)


def token_of(request: str) -> bytes:
    """Return the token that `changed` gives to another request."""
    return request.encode().ljust(8)[-8:]


def request_of(message: StageMessage | Embedding | Decision | Outcome) -> str:
    """Return the id of the request that a message is about."""
    return message.context.request if isinstance(message, StageMessage | Embedding) else message.request


RULE = Rule(epoch=0, criterion="max_softmax", thresholds=(0.9, 0.9))

CONTEXT = RequestContext(
    request="never-asked", origin="nobody", attempt=1, token=b"never-as", revision="", rule=RULE, budget_s=20.0
)

PROGRESS = Progress(spent_s=0.0, guess=None, memory=(), hops=())


def route_of(*stops: tuple[int, str | tuple[str, ...]], together: bool = False) -> tuple[RouteStop, ...]:
    """Return a route of stops: of each its stage, and the board of a plain one or those of a wide one."""
    return tuple(
        RouteStop(stage=stage, boards=(boards,) if isinstance(boards, str) else boards, together=together)
        for stage, boards in stops
    )


def stage_message(
    tensor: Tensor, *, stage: int = 0, to: str = "b1", route: tuple[RouteStop, ...] | None = None, **changes: object
) -> StageMessage:
    """Return a stage message for the board `to`, or along `route`; `changes` are of its context, rule or progress."""
    made = StageMessage(context=CONTEXT, progress=PROGRESS, stage=stage, tensor=tensor)
    return changed(made, route=route_of((stage, to)) if route is None else route, **changes)


def embedding_of(
    tensor: Tensor,
    *,
    device: str,
    branch: int = 0,
    stage: int = 0,
    route: tuple[RouteStop, ...] | None = None,
    **changes: object,
) -> Embedding:
    """Return an embedding of a board that its route names; `changes` are of its context, rule or progress."""
    if route is None:
        route = route_of((0, ("",) * branch + (device,)))
    made = Embedding(
        context=replace(CONTEXT, fuser="cam", route=route),
        progress=PROGRESS,
        stage=stage,
        branch=branch,
        device=device,
        tensor=tensor,
    )
    return changed(made, **changes)


_ROWS: dict[str, type] = {"context": RequestContext, "progress": Progress, "tensor": Tensor}


def repacked(payload: bytes, /, **changes: object) -> bytes:
    """Return a packed message with values changed where they stand, be they right or wrong."""
    found: dict[str, Any] = msgpack.unpackb(payload)
    for name, value in changes.items():
        part = next((key for key, cls in _ROWS.items() if key in found and name in _order(cls)), None)
        if part is None:
            found[name] = value
            continue
        is_packed = isinstance(found[part], bytes)
        row = msgpack.unpackb(found[part]) if is_packed else list(found[part])
        place = _order(_ROWS[part]).index(name)
        # Those at the end that hold their default are left out.
        row += [field.default for field in fields(_ROWS[part])[len(row) :]]  # type: ignore[arg-type]
        row[place] = value
        found[part] = msgpack.packb(row) if is_packed else row
    packed: bytes = msgpack.packb(found)
    return packed


def _order(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]  # type: ignore[arg-type]
