"""What a node must know of its board, its model and its limits."""

from __future__ import annotations

from distree.criteria.base import CriterionParameters
from distree.errors import SAME_BUNDLE, RemoteProtocolError
from distree.messages.plan import MaskedThresholds
from distree.messages.request import Codec, DType, Guess
from distree.record import record

Shape = tuple[DType, tuple[int, ...]]
"""dtype and shape of a tensor."""


@record
class OriginSettings:
    """How this board answers for its own inputs.

    `max_pending` bounds the inputs without an answer, and the answers that the broker has not acknowledged.
    `fuser` is the device that fuses the wide stages of its inputs, this board itself if None; `eager` tells their
    branches to go on until they are stopped.
    """

    deadline_s: float = 1.0
    max_pending: int = 64
    min_retry_s: float = 0.1
    fuser: str | None = None
    eager: bool = False


@record
class NodeSettings:
    """What a node must know of its board, its model and its limits.

    `inputs` holds (dtype, shape) of every stage's input tensor, whether held here or not. `boot` is put into request
    ids, so it must differ from one run of the origin to the next; `board_boot` is the id of that run in the board's
    state, where that is another. `secret` is what the lots for audits are
    drawn with and the tokens of attempts are made from: who does not know it can foresee neither.

    For wide stages: `embeddings` holds, per stage, (dtype, shape) of each branch's embedding, () for a plain stage;
    `branch` is the one that this board runs; `fuses` says whether it fuses for origins that name it (an origin can
    always fuse for itself); a branch that is not heard `branch_timeout_s` after the first one is left out. `masked`
    are the calibrated thresholds for sets of missing branches, `parameters` those of the criteria.
    """

    site: str
    device: str
    pipeline: str
    boot: str
    model: str
    revision: str
    labels: tuple[str, ...]
    inputs: tuple[Shape, ...]
    stages: tuple[int, ...]
    criterion: str
    thresholds: tuple[float, ...]
    codec: Codec = "raw"
    inbox_max_messages: int = 64
    inbox_max_bytes: int = 4 << 20
    origin: OriginSettings | None = None
    embeddings: tuple[tuple[Shape, ...], ...] = ()
    branch: int | None = None
    fuses: bool = False
    branch_timeout_s: float = 0.2
    masked: tuple[MaskedThresholds, ...] = ()
    parameters: CriterionParameters = CriterionParameters()
    secret: bytes = b""
    board_boot: str = ""

    @property
    def last(self) -> int:
        """Number of the last stage."""
        return len(self.inputs) - 1

    @property
    def is_wide(self) -> bool:
        """Whether any stage has branches."""
        return any(self.embeddings)

    @property
    def gathers(self) -> bool:
        """Whether this board fuses, for itself or for others."""
        return self.is_wide and (self.fuses or self.origin is not None)

    @property
    def decides(self) -> bool:
        """Whether an exit may be decided on this board: that of a plain stage, or one that it fuses."""
        return self.gathers or any(not self.width(k) for k in self.stages)

    def width(self, stage: int) -> int:
        """Return how many branches a stage has; 0 for a plain one, and for one that there is not."""
        return len(self.embeddings[stage]) if stage < len(self.embeddings) else 0

    def starts_group(self, stage: int) -> bool:
        """Whether a wide stage takes its input from the network, not from the stage before on the same board."""
        return self.width(stage) > 0 and (stage == 0 or self.width(stage - 1) == 0)

    def ends_group(self, stage: int) -> bool:
        """Whether a wide stage's branches end there."""
        return self.width(stage) > 0 and self.width(stage + 1) == 0

    def group_of(self, stage: int) -> int:
        """Return the first stage of the group of wide stages to which `stage` belongs."""
        while self.width(stage) and not self.starts_group(stage):
            stage -= 1
        return stage

    def end_of_group(self, stage: int) -> int:
        """Return the last stage of the group of wide stages to which `stage` belongs."""
        while self.width(stage) and not self.ends_group(stage):
            stage += 1
        return stage

    def travels(self, stage: int) -> bool:
        """Whether a stage takes its input from the network: a plain one, or the first of wide ones in a row."""
        return not self.width(stage) or self.starts_group(stage)

    def check_revision(self, revision: str) -> None:
        """Raise RemoteProtocolError for a message of another bundle than this board's."""
        if revision != self.revision:
            raise RemoteProtocolError(
                "revision", f"this board has bundle revision {self.revision}, the message is of {revision}", SAME_BUNDLE
            )

    def check_guess(self, guess: Guess | None) -> None:
        """Raise RemoteProtocolError for a guess at a class, an exit or without a branch that there is not."""
        if guess is None:
            return
        if guess.class_id >= len(self.labels) or guess.exit > self.last:
            raise RemoteProtocolError(
                "guess", f"class {guess.class_id} at exit {guess.exit} does not exist", SAME_BUNDLE
            )
        if guess.missing and guess.missing[-1] >= self.width(guess.exit):
            raise RemoteProtocolError(
                "guess", f"branch {guess.missing[-1]} of exit {guess.exit} does not exist", SAME_BUNDLE
            )
