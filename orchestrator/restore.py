"""What an orchestrator that starts goes on with: the plans and tunings that its store has.

Service, status, explain and the export of audits restore a tuning by the one function here, so that what is shown is
what the service knows, up to the second or so that it has not written yet.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from distree.errors import DistreeError
from distree.messages.plan import Plan
from distree.printable import printable
from orchestrator import plan_reasons
from orchestrator.pipeline_controller import SAMPLES_UNSAVED, PipelineController
from orchestrator.pipeline_spec import PipelineSpec
from orchestrator.planner import Planner, same_content, starting_plan
from orchestrator.store.database import Store
from orchestrator.tuning.pipeline_tuning import PipelineTuning
from orchestrator.tuning.tuned_pipeline import TunedPipeline

log = logging.getLogger("distree.orchestrator")


class OtherTuningError(DistreeError):
    """The store has a tuning for another bundle, criterion or goal, or one that cannot be read; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the store has another tuning, so the orchestrator starts this one from scratch: {reason}", ""
        )
        self.args = (reason,)  # what pickle and copy call the class with
        self.reason = reason


def restored_controller(store: Store, spec: PipelineSpec) -> PipelineController:
    """Return a pipeline as the store has it, or at its start where the store knows nothing. Raises StoreError."""
    known, latest = store.pipeline(spec.name), store.latest_plan(spec.name)
    last = latest.plan if latest is not None else None
    tuning, unsaved = None, 0
    if spec.tuned is None:
        start = starting_plan(spec.plan, last, known.configured)
    else:
        try:
            tuning = restored_tuning(store, spec.tuned)
        except OtherTuningError as error:
            log.warning("pipeline %s: tuning starts from scratch: %s", spec.name, error.reason)
            tuning, unsaved = PipelineTuning(spec.tuned), SAMPLES_UNSAVED
        start = _tuned_start(tuning, spec.plan, last)
    # The last plan counts even where it is dropped: the next decision must not have its number.
    planner = Planner(start, highest_epoch=max(known.highest_epoch, last.epoch if last else 0))
    row_id = latest.id if latest is not None else 0
    return PipelineController(spec, planner, tuning, row_id=row_id, unsaved=unsaved)


def restored_tuning(store: Store, pipeline: TunedPipeline) -> PipelineTuning:
    """Return the tuning of a pipeline as it stood, with what it was to learn since it was saved.

    Raises OtherTuningError where it has to start from nothing, StoreError where the store cannot be read.
    """
    tuning = PipelineTuning(pipeline)
    state, later = store.tuning(pipeline.name)
    try:
        if state is not None:
            tuning.restore(state)
        for row in later:
            tuning.check_origin(row.sample.origin)
            tuning.apply(row.sample)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise OtherTuningError(printable(str(error))) from None
    return tuning


def _tuned_start(tuning: PipelineTuning, configured: Plan, last: Plan | None) -> Plan:
    """Return the plan that a tuning wants: the last one, if that has the same content."""
    wanted = tuning.plan(configured if last is None else replace(configured, rest_s=last.rest_s))
    if wanted.thresholds != configured.thresholds:
        wanted = replace(wanted, reason=plan_reasons.tuned_reason(configured, wanted, goal=tuning.goal, alarmed=False))
    return last if last is not None and same_content(last, wanted) else wanted
