"""What tuning has to know of a pipeline."""

from __future__ import annotations

from distree.messages.plan import MaskedThresholds
from distree.record import record
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.samples import Vector


@record
class TunedPipeline:
    """A pipeline with a goal, and the bundle that it runs.

    `costs` are multiply-accumulates of an input that leaves at each exit, the last included; `branches` has the number
    of branches per stage, 0 for a plain one; `labels` are the classes, () if unknown. `thresholds`, and `masked` for
    sets of missing branches, are those configured or calibrated with the bundle, for a tuner that uses them. `origins`
    are the boards whose audits count, () if all do that are origins; `largest_share` is the share of the audits that
    one of them may make up.
    """

    name: str
    model: str
    revision: str
    criterion: str
    exits: int
    costs: Vector
    goal: Goal
    branches: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    thresholds: Vector = ()
    masked: tuple[MaskedThresholds, ...] = ()
    origins: tuple[str, ...] = ()
    largest_share: float = 1.0
