"""What boards serve of a pipeline, and how they are asked to say so. Origins choose their routes by it."""

from __future__ import annotations

from distree.messages.fields import count, counts, declared, flag, ident, text, texts
from distree.messages.limits import MAX_BRANCHES, MAX_REVISIONS, MAX_STAGES


@declared(schema="distree.member/1")
class Member:
    """What a board serves in a pipeline; retained, on one topic for each stage at which requests may reach it.

    It counts while the state of the board is `ready` and of the same `boot`. `revisions` are those of the bundle that
    it can run now.
    """

    device: str = ident("Id of the board.")
    boot: str = text("Distinguishes one run of the agent from the next.")
    pipeline: str = ident("Id of the pipeline.")
    model: str = text("Name of the bundle.")
    revisions: tuple[str, ...] = texts("Revisions of the bundle that it can run.", most=MAX_REVISIONS)
    stages: tuple[int, ...] = counts("Stages that it serves.", most=MAX_STAGES, each=MAX_STAGES - 1)
    branch: int | None = count("Branch of wide stages that it runs.", most=MAX_BRANCHES - 1, default=None)
    fuses: bool = flag("Whether it fuses wide stages for origins that name it.", default=False)


@declared(schema="distree.call/1")
class Call:
    """Asks the boards of a pipeline to announce what they serve, soon but not all at once."""

    caller: str = ident("Board or orchestrator that asks.")
