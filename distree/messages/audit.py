"""What tuning learns from: what all exits said of an input."""

from __future__ import annotations

from distree.messages.fields import branches, count, counts, declared, epoch, ident, parts, scores, text
from distree.messages.limits import MAX_CLASSES, MAX_HOPS, MAX_STAGES
from distree.messages.request import Hop


@declared(kind="audit")
class AuditRow:
    """What all exits answered for an input that its origin drew at random, for the orchestrator.

    An origin numbers its rows from 1 in each run of its agent, `boot`, so that what is lost on the way is noticed.
    `scores` has one per exit but the last, by `criterion`, `predictions` a class per exit; both are () where the audit
    was lost. `missing` are the branches that no exit has heard; `hops` say where the time went.
    """

    request: str = text("Id of the request.")
    origin: str = ident("Board that accepted the input.")
    boot: str = text("Distinguishes one run of the agent from the next.")
    sequence: int = count("Number of the row since boot, from 1.")
    revision: str = text("Revision of the bundle.")
    epoch: int = epoch("Number of the plan by which exits were decided; 0 for the bundle's own thresholds.")
    criterion: str = text("Exit criterion.")
    scores: tuple[float, ...] = scores("Score of each exit but the last.", most=MAX_STAGES)
    predictions: tuple[int, ...] = counts(
        "Class that each exit predicts; empty where the audit was lost.", most=MAX_STAGES, each=MAX_CLASSES
    )
    missing: tuple[int, ...] = branches("Branches that no exit has heard from.", default=())
    hops: tuple[Hop, ...] = parts(Hop, "Where the time went: one entry per board and stage.", most=MAX_HOPS, default=())

    @property
    def lost(self) -> bool:
        """Whether the exits could not be asked."""
        return not self.predictions

    def fault(self) -> str:
        """Say what is wrong with the fields together."""
        if len(self.scores) != max(0, len(self.predictions) - 1):
            return f"scores: expected one less than predictions, received {len(self.scores)}"
        return ""
