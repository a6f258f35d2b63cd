"""What travels with a request from its input to its answer.

A request is one input of one origin. What decides it, and never changes, is its context, which boards pass on as the
bytes that came; what boards find out and use up on the way is its progress, which each of them replaces. Durations are
seconds, never points in time, because the clocks of two boards are never compared.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from distree.messages.fields import (
    branches,
    count,
    counts,
    data,
    declared,
    durations,
    epoch,
    flag,
    ident,
    idents,
    number,
    packed,
    packed_parts,
    part,
    parts,
    score,
    scores,
    seconds,
    text,
    word,
)
from distree.messages.layout import Packable
from distree.messages.limits import (
    MAX_ATTEMPTS,
    MAX_BRANCHES,
    MAX_BUDGET_S,
    MAX_CLASSES,
    MAX_HOPS,
    MAX_MEMORY,
    MAX_MESSAGE_BYTES,
    MAX_RANK,
    MAX_STAGES,
)

Reason = Literal["confident", "last", "deadline", "fallback", "shed"]
"""Why an input was answered where it was: see docs/explanation/node.md."""

DType = Literal["int8", "uint8", "float16", "float32"]
Codec = Literal["raw", "zlib"]

OutcomeReason = Literal["confident", "last", "deadline", "fallback", "shed", "moved", "unreachable"]
"""Why a board tells the origin: why it was answered there, or why it was not: see `Outcome`."""

CriterionMemory: TypeAlias = "tuple[float, ...]"
"""What a criterion carries from one exit to the next, in the message; () where it needs nothing."""

Trace: TypeAlias = "tuple[Reading, ...] | None"
"""What the exits passed so far said, where that is recorded: of inputs drawn for an audit; else None."""

TOKEN_BYTES = 8


@declared(as_row=True)
class Tensor:
    """A tensor as it travels: `payload` is C-ordered bytes of `dtype` and `shape` after `codec`."""

    dtype: DType = word("Element type of the tensor.", DType)
    shape: tuple[int, ...] = counts("Shape of the tensor.", most=MAX_RANK, least=1, each=MAX_MESSAGE_BYTES)
    codec: Codec = word("How the tensor's bytes are packed.", Codec)
    payload: bytes | memoryview = data("Bytes of the tensor.")


@declared(as_row=True)
class Hop:
    """What one board spent on one request: seconds waiting in its inbox and seconds computing."""

    device: str = ident("Id of the board.")
    stage: int = count("Number of the stage, from 0.", most=MAX_STAGES - 1)
    queue_s: float = seconds("Time spent waiting on the board.", most=MAX_BUDGET_S, json="queue_ms")
    compute_s: float = seconds("Time spent computing.", most=MAX_BUDGET_S, json="compute_ms")


@declared(as_row=True)
class Guess:
    """The best answer so far: the prediction of the deepest exit computed.

    `missing` are the branches that were not heard at that exit; () at the exit of a plain stage.
    """

    exit: int = count("Number of the exit, from 0.", most=MAX_STAGES - 1)
    class_id: int = count("Index of the predicted class.", most=MAX_CLASSES)
    confidence: float = number("Largest softmax probability there.", most=1.0)
    missing: tuple[int, ...] = branches("Branches that were not heard from there.", default=())


@declared(as_row=True)
class Reading:
    """What one exit answered for an audited input: the criterion's score (0 at the last exit) and the class."""

    score: float = score("Score by the criterion; 0 at the last exit.")
    class_id: int = count("Index of the predicted class.", most=MAX_CLASSES)


@declared(as_row=True)
class Rule(Packable):
    """What decides a request at every exit. It travels with it, so that boards need no plan and epochs never mix.

    `thresholds` has one score per exit but the last; `rest_s`, likewise, what a request takes at least from there to
    the next exit, network not counted; () if unknown.
    """

    epoch: int = epoch("Number of the plan that the rule comes from; 0 for the bundle's own thresholds.")
    criterion: str = text("Exit criterion.")
    thresholds: tuple[float, ...] = scores("Score at which each exit but the last is taken.", most=MAX_STAGES)
    rest_s: tuple[float, ...] = durations(
        "Least time from each exit but the last to the next.", most=MAX_STAGES, default=()
    )


@declared(as_row=True)
class RouteStop:
    """A part of a route: the boards that run `stage` and, on the same boards, those after it up to the next stop.

    `boards` has one board for plain stages, for wide ones one per branch, "" where a branch has none. With `together`
    what goes there is published once, for all boards of the stage, of which those in `boards` take it.
    """

    stage: int = count("First stage that is run there.", most=MAX_STAGES - 1)
    boards: tuple[str, ...] = idents(
        "Boards that run it, one per branch where it is wide; `''` where a branch has none.",
        most=MAX_BRANCHES,
        or_none=True,
    )
    together: bool = flag("Whether it is published once for all boards of the stage.", default=False)


@declared(as_row=True)
class RequestContext(Packable):
    """What travels with a request unchanged, written by its origin: one value, copied nowhere.

    `token` is random, and another one for each attempt, so that it names the attempt to those who were sent it.
    `budget_s` is the whole time that the origin grants. `route` names the boards that the origin chose, in the order of
    stages, from where the request leaves it; () before it does. `fuser` is the board that fuses the embeddings of wide
    stages, None where a pipeline has none; `eager` tells their branches to go on until they are stopped instead of
    waiting to be told to go on. An `audit` is no input that waits for an answer: it takes no exit, and gives way to
    those that do.
    """

    request: str = text("Id of the request.")
    origin: str = ident("Board that accepted the input.")
    attempt: int = count("1, plus one for each time that the features were sent again.", most=MAX_ATTEMPTS)
    token: bytes = data("Random bytes that identify the attempt.", least=TOKEN_BYTES, most=TOKEN_BYTES)
    revision: str = text("Revision of the bundle.")
    rule: Rule = packed(Rule, "What decides the request at every exit.", shared=True)
    budget_s: float = seconds("Total time that the origin grants.", most=MAX_BUDGET_S)
    route: tuple[RouteStop, ...] = packed_parts(
        RouteStop, "Boards that the origin chose, in order.", most=MAX_STAGES, default=()
    )
    fuser: str | None = ident("Board that fuses the branches' embeddings.", default=None)
    eager: bool = flag("Whether branches go on until they are stopped.", default=False)
    audit: bool = flag("Whether this is an audit: it takes no exit and nobody waits for it.", default=False)

    def names(self, device: str) -> bool:
        """Whether a board has a part in the request: it is on its route, or fuses for it."""
        for stop in self.route:
            if device in stop.boards:
                return True
        return device == self.fuser

    def stop_at(self, stage: int) -> RouteStop | None:
        """Return the stop that begins with a stage, if the route has one."""
        for stop in self.route:
            if stop.stage == stage:
                return stop
        return None


@declared(as_row=True)
class Progress:
    """What boards have found out about a request and used up so far; each replaces it.

    `spent_s` is what they have used of the budget; network time is not in it, as no board can measure it alone.
    `trace` is given where it is recorded.
    """

    spent_s: float = seconds("Time that boards have used so far.", most=MAX_BUDGET_S)
    guess: Guess | None = part(Guess, "Best answer so far; null if there is none.", nullable=True)
    memory: CriterionMemory = scores("What the criterion carries from exit to exit.", most=MAX_MEMORY)
    hops: tuple[Hop, ...] = parts(Hop, "Where the time went: one entry per board and stage.", most=MAX_HOPS)
    trace: Trace = parts(
        Reading,
        "What the exits passed so far answered, if the input was drawn for an audit.",
        most=MAX_STAGES,
        default=None,
    )


@declared(kind="stage", version=2)
class StageMessage:
    """An input (stage 0) or features (later stages), on their way to a stage."""

    context: RequestContext = packed(RequestContext, "What travels with the request unchanged.")
    progress: Progress = part(Progress, "What boards have found out and used up so far.")
    stage: int = count("Number of the stage, from 0.", most=MAX_STAGES - 1)
    tensor: Tensor = part(Tensor, "The input, or the features.")


@declared(kind="embedding", version=2)
class Embedding:
    """What one branch of a wide stage contributes at its exit, on its way to the board that fuses.

    `device` is the sender, to which the decision goes. Progress is what the stage's input came with, with the sender's
    own hop. At the second and later wide stages in a row, guess and trace are None and memory empty, for the fusing
    board knows them, and `hops` holds the one of this stage.
    """

    context: RequestContext = packed(RequestContext, "What travels with the request unchanged.")
    progress: Progress = part(Progress, "What boards have found out and used up so far.")
    stage: int = count("Number of the stage, from 0.", most=MAX_STAGES - 1)
    branch: int = count("Branch of the wide stage.", most=MAX_BRANCHES - 1)
    device: str = ident("Board that runs the branch.")
    tensor: Tensor = part(Tensor, "The embedding.")

    def fault(self) -> str:
        """Say what is wrong with the fields together."""
        return "" if self.context.fuser is not None else "fuser: expected an id of a-z, 0-9 and '-', received None"


@declared(kind="decision", version=2)
class Decision:
    """What the fusing board decided at the exit of a wide stage, for a board that runs a branch: go on, or stop."""

    request: str = text("Id of the request.")
    token: bytes = data("Random bytes that identify the attempt.", least=TOKEN_BYTES, most=TOKEN_BYTES)
    stage: int = count("Number of the stage, from 0.", most=MAX_STAGES - 1)
    go: bool = flag("Whether the branch is to go on.")


@declared(kind="outcome", version=2)
class Outcome:
    """What another board tells the origin, which alone publishes results: the answer, or why there is none.

    `moved`: the board that says so stops, and did not take the request. `unreachable`: `board` could not be reached, as
    the broker knows of nobody who reads what was sent to it. `trace` is given where it is known of all exits.
    """

    request: str = text("Id of the request.")
    token: bytes = data("Random bytes that identify the attempt.", least=TOKEN_BYTES, most=TOKEN_BYTES)
    reason: OutcomeReason = word("Why it was answered there, or why it was not.", OutcomeReason)
    guess: Guess | None = part(Guess, "The answer; null if there is none.", nullable=True)
    spent_s: float = seconds("Time that boards have used.", most=MAX_BUDGET_S)
    hops: tuple[Hop, ...] = parts(Hop, "Where the time went: one entry per board and stage.", most=MAX_HOPS)
    trace: Trace = parts(
        Reading, "What the exits answered, if the input was drawn for an audit.", most=MAX_STAGES, default=None
    )
    board: str | None = ident("Board that could not be reached.", default=None)


@declared(kind="input")
class InputMessage:
    """An input with a name, for an origin's input topic; what `payload` holds is accepted there by itself, too.

    `request` is chosen by the sender: sending it again is harmless. The windows of a recording are answered each by
    itself, as `request~1/3`, `request~2/3` and `request~3/3`.
    """

    request: str = text("Id of the request.")
    name: str = text("Name of the input.", most=256)
    payload: bytes = data("What a file would hold: an image, a WAV or CSV file, an .npy array, or the raw values.")


def is_input(payload: bytes) -> bool:
    """Whether bytes on an input topic are a named input: a small msgpack map that begins with one of its fields.

    Nothing else begins so, and raw values only by an unlikely chance.
    """
    return len(payload) > 1 and 0x83 <= payload[0] <= 0x88 and payload[1:].startswith(_FIRST_FIELDS)


_FIRST_FIELDS = tuple(bytes([0xA0 + len(name)]) + name.encode() for name in ("v", "kind", "request", "name", "payload"))
"""The fields of an `InputMessage` as msgpack writes their names, with a length of up to 31 in the first byte."""
