"""What an input costs that leaves at each exit: multiply-accumulates of every board, and bytes on the wire.

Assumed is the usual placement: one board per plain stage, of which the first is the origin; one per branch of the
wide stages; and the origin fuses. In the gated mode a branch goes on only when it is told to.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from distree.bundle.manifest import BranchSpec, StageSpec, TensorSpec
from distree.messages.limits import MAX_HOPS
from distree.messages.request import (
    Decision,
    Embedding,
    Guess,
    Hop,
    Outcome,
    Progress,
    RequestContext,
    Rule,
    StageMessage,
    Tensor,
)

FUSER = "fusion"
"""Name of the board that runs the fusion heads."""


@dataclass(frozen=True, slots=True)
class BoardCosts:
    """What one board computes for an input that leaves at exit k: macs[k]; `strict` and `loose` as in Costs."""

    name: str
    macs: tuple[int, ...]
    strict: int
    loose: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What boards receive of an input that leaves at exit k, a message once for each board that gets it.

    input_bytes, feature_bytes and embedding_bytes are payloads; an input costs nothing where the origin runs stage 0.
    decisions are messages of the gated mode that tell a branch to go on or to stop. messages are all of these, and
    the answer on its way to the origin. message_bytes are their sizes as sent, with a criterion that remembers
    nothing and the codec raw; None where msgpack is not installed.
    """

    input_bytes: tuple[int, ...]
    feature_bytes: tuple[int, ...]
    embedding_bytes: tuple[int, ...]
    decisions: tuple[int, ...]
    messages: tuple[int, ...]
    message_bytes: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Costs:
    """What an input pays that leaves at exit k, over all boards: macs[k], heads counted, and feature_bytes[k].

    feature_bytes: payloads of features and embeddings on the wire. strict: multiply-accumulates of all trunks and the
    last head only, as a network without early exits; where features come out of a fusion head, it belongs to the
    trunk. loose: of all trunks and all heads, as this network with its exits never taken. `missing` are branches that
    compute and send nothing.
    """

    macs: tuple[int, ...]
    feature_bytes: tuple[int, ...]
    strict: int
    loose: int
    missing: tuple[int, ...] = ()
    boards: tuple[BoardCosts, ...] = ()
    traffic: Traffic | None = None


def costs_of(stages: Sequence[StageSpec], missing: Iterable[int] = ()) -> Costs:
    """Costs from a manifest's stages, with some branches missing; the exit heads passed on the way are counted."""
    absent = tuple(sorted(set(missing)))
    boards = tuple(_boards(stages, absent))
    traffic = _traffic(stages, absent)
    sent = zip(traffic.feature_bytes, traffic.embedding_bytes, strict=True)
    return Costs(
        macs=tuple(map(sum, zip(*(board.macs for board in boards), strict=True))),
        feature_bytes=tuple(features + embeddings for features, embeddings in sent),
        strict=sum(board.strict for board in boards),
        loose=sum(board.loose for board in boards),
        missing=absent,
        boards=boards,
        traffic=traffic,
    )


# ---------------------------------------------------------------- computing


def _boards(stages: Sequence[StageSpec], absent: tuple[int, ...]) -> Iterable[BoardCosts]:
    numbers = range(len(stages))
    for k, stage in enumerate(stages):
        if not stage.branches:
            yield _board(stages, f"stage {k}", [_plain_macs(stages[at]) if at == k else (0, 0) for at in numbers])
    widest = max((len(stage.branches) for stage in stages), default=0)
    for b in range(widest):
        if b not in absent:
            yield _board(stages, f"branch {b}", [_branch_macs(stage, b) for stage in stages])
    if widest:
        yield _board(stages, FUSER, [(0, fusion_macs(stage)) for stage in stages])


def _board(stages: Sequence[StageSpec], name: str, parts: Sequence[tuple[int, int]]) -> BoardCosts:
    """Add up what a board computes; `parts` are its multiply-accumulates at each stage, of trunk and of head."""
    needed = [trunk + (head if _needs_head(stages, k) else 0) for k, (trunk, head) in enumerate(parts)]
    whole = [trunk + head for trunk, head in parts]
    return BoardCosts(name=name, macs=tuple(itertools.accumulate(whole)), strict=sum(needed), loose=sum(whole))


def _needs_head(stages: Sequence[StageSpec], k: int) -> bool:
    """Whether a network without early exits would need this stage's head: for its answer, or for its features."""
    return k == len(stages) - 1 or (bool(stages[k].branches) and stages[k].features is not None)


def _plain_macs(stage: StageSpec) -> tuple[int, int]:
    return stage.macs.trunk, stage.macs.exit


def _branch_macs(stage: StageSpec, b: int) -> tuple[int, int]:
    if b >= len(stage.branches):
        return 0, 0
    return stage.branches[b].macs.trunk, stage.branches[b].macs.exit


def fusion_macs(stage: StageSpec) -> int:
    """Multiply-accumulates of a wide stage's fusion head; 0 of a plain stage."""
    return stage.macs.exit - sum(branch.macs.exit for branch in stage.branches) if stage.branches else 0


# ---------------------------------------------------------------- sending


@dataclass(slots=True)
class _Sent:
    """What has been received on the way to an exit."""

    input_bytes: int = 0
    feature_bytes: int = 0
    embedding_bytes: int = 0
    decisions: int = 0
    messages: int = 0
    message_bytes: int = 0
    hops: int = 0


def _traffic(stages: Sequence[StageSpec], absent: tuple[int, ...]) -> Traffic:
    sizes = _Sizes(len(stages))
    way, at_exit = _Sent(), []
    for k, stage in enumerate(stages):
        present = [branch for b, branch in enumerate(stage.branches) if b not in absent]
        _arrive(way, stages, k, len(present), sizes)
        for branch in present:
            way.embedding_bytes += tensor_bytes(branch.embedding)
            way.messages += 1
            way.message_bytes += sizes.embedding(branch, k, way.hops if _starts_group(stages, k) else 0)
        way.hops += len(present) + 1
        at_exit.append(_leave(way, stages, k, len(present), sizes))
        if _goes_on_wide(stages, k):
            _decide(way, len(present), sizes)
    return Traffic(
        input_bytes=tuple(one.input_bytes for one in at_exit),
        feature_bytes=tuple(one.feature_bytes for one in at_exit),
        embedding_bytes=tuple(one.embedding_bytes for one in at_exit),
        decisions=tuple(one.decisions for one in at_exit),
        messages=tuple(one.messages for one in at_exit),
        message_bytes=tuple(one.message_bytes for one in at_exit) if sizes.known else None,
    )


def _starts_group(stages: Sequence[StageSpec], k: int) -> bool:
    return bool(stages[k].branches) and (k == 0 or not stages[k - 1].branches)


def _goes_on_wide(stages: Sequence[StageSpec], k: int) -> bool:
    """Whether the branches of stage `k` wait for a decision: there is another wide stage for them."""
    return bool(stages[k].branches) and k + 1 < len(stages) and bool(stages[k + 1].branches)


def _arrive(way: _Sent, stages: Sequence[StageSpec], k: int, present: int, sizes: _Sizes) -> None:
    """Count what brings an input or features to stage `k`; between two wide stages nothing travels."""
    stage = stages[k]
    if (stage.branches and not _starts_group(stages, k)) or (k == 0 and not stage.branches):
        return
    receivers = present if stage.branches else 1
    payload = receivers * tensor_bytes(stage.input)
    if k == 0:
        way.input_bytes += payload
    else:
        way.feature_bytes += payload
    way.messages += receivers
    way.message_bytes += receivers * sizes.stage(stage.input, k, way.hops, wide=bool(stage.branches))


def _decide(way: _Sent, present: int, sizes: _Sizes) -> None:
    way.decisions += present
    way.messages += present
    way.message_bytes += present * sizes.decision()


def _leave(way: _Sent, stages: Sequence[StageSpec], k: int, present: int, sizes: _Sizes) -> _Sent:
    """Return the sum for an input that leaves here: branches that wait are stopped, the origin is told."""
    left = _Sent(
        way.input_bytes, way.feature_bytes, way.embedding_bytes, way.decisions, way.messages, way.message_bytes
    )
    if _goes_on_wide(stages, k):
        _decide(left, present, sizes)
    if k and not stages[k].branches:
        left.messages += 1
        left.message_bytes += sizes.outcome(k, way.hops)
    return left


def tensor_bytes(spec: TensorSpec) -> int:
    """Bytes of a tensor's payload, codec raw."""
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


class _Sizes:
    """Sizes of messages as sent, by `distree.messages`, with ids and numbers as they usually are; of so many stages.

    Where there is no msgpack, as where networks are trained, sizes are not `known`, and 0.
    """

    def __init__(self, stages: int) -> None:
        self.known = importlib.util.find_spec("msgpack") is not None
        of_exits = (_SECONDS,) * (stages - 1)
        rule = Rule(epoch=1, criterion="max_softmax", thresholds=of_exits, rest_s=of_exits)
        self._context = RequestContext(
            request=_REQUEST,
            origin=_DEVICE,
            attempt=1,
            token=_TOKEN,
            revision=_REVISION,
            rule=rule,
            budget_s=1.0,
        )
        self._wide_context = replace(self._context, fuser=_DEVICE)

    def stage(self, spec: TensorSpec, k: int, hops: int, *, wide: bool) -> int:
        return self._size(
            StageMessage(
                context=self._wide_context if wide else self._context,
                progress=_progress(_guess(k), hops),
                stage=k,
                tensor=_tensor(spec),
            )
        )

    def embedding(self, branch: BranchSpec, k: int, hops: int) -> int:
        return self._size(
            Embedding(
                context=self._wide_context,
                progress=_progress(_guess(k) if hops else None, hops + 1),
                stage=k,
                branch=0,
                device=_DEVICE,
                tensor=_tensor(branch.embedding),
            )
        )

    def decision(self) -> int:
        return self._size(Decision(request=_REQUEST, token=_TOKEN, stage=1, go=True))

    def outcome(self, k: int, hops: int) -> int:
        return self._size(
            Outcome(
                request=_REQUEST,
                token=_TOKEN,
                reason="confident",
                guess=_guess(k + 1),
                spent_s=_SECONDS,
                hops=_hops(hops),
            )
        )

    def _size(self, message: StageMessage | Embedding | Decision | Outcome) -> int:
        if not self.known:
            return 0
        from distree.messages.codec import encode

        return len(encode(message))


_REQUEST, _REVISION, _DEVICE, _SECONDS = "5f3a09c2-1a2", "0123456789ab", "board1", 0.0123
_TOKEN = bytes(8)


def _tensor(spec: TensorSpec) -> Tensor:
    return Tensor(dtype=spec.dtype, shape=spec.shape, codec="raw", payload=bytes(tensor_bytes(spec)))


def _hops(count: int) -> tuple[Hop, ...]:
    return (Hop(device=_DEVICE, stage=1, queue_s=_SECONDS, compute_s=_SECONDS),) * min(
        count, MAX_HOPS
    )  # a board tells no more


def _progress(guess: Guess | None, hops: int) -> Progress:
    return Progress(spent_s=_SECONDS, guess=guess, memory=(), hops=_hops(hops))


def _guess(k: int) -> Guess | None:
    return Guess(exit=k - 1, class_id=1, confidence=0.5) if k else None
