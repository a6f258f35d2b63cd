"""Where the tuning of a pipeline stands, as status and explain show it; read from the store."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from distree.errors import DistreeError, Problem
from distree.record import record
from orchestrator.config import PipelineConfig
from orchestrator.pipeline_spec import load_spec
from orchestrator.restore import restored_tuning
from orchestrator.store.database import Store
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.live_tuner import TunerExplanation
from orchestrator.tuning.pipeline_tuning import TuningExplanation
from orchestrator.tuning.samples import Sample

_NOTHING = TuningExplanation(audits=0, lost=0, queues=(), sets=())


@record
class TuningView:
    """The goal of a pipeline and where its tuning stands; `trouble` says why that is unknown, None if it is known."""

    goal: Goal
    trouble: Problem | None = None
    explanation: TuningExplanation = _NOTHING


def read_tuning(store: Store, configured: PipelineConfig) -> TuningView | None:
    """Return where the tuning of a pipeline stands; None without a goal. Whatever goes wrong is in `trouble`."""
    if configured.goal is None:
        return None
    try:
        pipeline = load_spec(configured).tuned
        assert pipeline is not None  # noqa: S101 - it has a goal
        explanation = restored_tuning(store, pipeline).explain()
    except DistreeError as error:
        return TuningView(goal=configured.goal, trouble=error.problem)
    return TuningView(goal=configured.goal, explanation=explanation)


def kept_samples(store: Store, pipeline: str, audits: int) -> tuple[Sample, ...]:
    """Return those of the latest `audits` samples of a pipeline that the store still keeps, the oldest first.

    With the number of audits that a tuning has learned from, these are its own: older ones may be of another bundle or
    criterion.
    """
    rows = store.samples(pipeline)
    return tuple(row.sample for row in rows[max(0, len(rows) - audits) :])


def tuning_json(view: TuningView | None) -> dict[str, Any] | None:
    """Return where a tuning stands as plain data for JSON, without what its tuners say of each set."""
    if view is None:
        return None
    stands = view.explanation
    queues = {queue.goal: queue.length for queue in stands.queues}
    counts = {"audits": stands.audits, "lost": stands.lost, "alarms": stands.alarms, "queues": queues}
    what, remedy = view.trouble or ("", "")
    return {"goal": asdict(view.goal), "trouble": what, "remedy": remedy, **counts}


def tuner_json(tuner: TunerExplanation | None) -> dict[str, Any] | None:
    """Return what a tuner says as plain data for JSON, its figures by name."""
    if tuner is None:
        return None
    return {**asdict(tuner), "figures": {figure.name: figure.value for figure in tuner.figures}}
