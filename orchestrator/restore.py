"""What an orchestrator that starts goes on with: the plans and tunings that its store has."""

from __future__ import annotations

import logging
from dataclasses import replace

from distree.errors import DistreeError
from distree.messages.plan import Plan
from distree.printable import printable
from orchestrator.config import Pipeline
from orchestrator.pipeline_controller import SAMPLES_UNSAVED, PlannedPipeline
from orchestrator.planner import Planner, same_content, starting_plan
from orchestrator.store.database import Store
from orchestrator.tuning.pipeline_tuning import Tuning

log = logging.getLogger("distree.orchestrator")


class OtherTuningError(DistreeError):
    """What the store keeps of a tuning is not of the configured bundle, criterion and goal; `reason` says how."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"what is kept is of another tuning, which the orchestrator begins anew: {reason}", "")
        self.args = (reason,)  # what pickle and copy call the class with
        self.reason = reason


def restored_pipeline(store: Store, configured: Pipeline) -> PlannedPipeline:
    """Return a pipeline as it stood, or at its beginning where nothing is known of it. Raises StoreError."""
    known, latest = store.pipeline(configured.name), store.latest_plan(configured.name)
    last = latest.plan if latest is not None else None
    tuning, unsaved = None, 0
    if configured.goal is None:
        start = starting_plan(configured.plan, last, known.configured)
    else:
        try:
            tuning = restored_tuning(store, configured)
        except OtherTuningError as error:
            log.warning("pipeline %s: tuning begins anew, for the last one %s", configured.name, error.reason)
            tuning, unsaved = Tuning(configured), SAMPLES_UNSAVED
        start = _tuned_start(tuning, configured.plan, last)
    # The last plan counts even where it is given up: its epoch must not name another content.
    planner = Planner(start, floor=max(known.floor, last.epoch if last else 0))
    author = "config" if tuning is None else "tuner"
    if latest is not None and start == last:
        author = latest.author
    return PlannedPipeline(configured, planner, tuning, author=author, unsaved=unsaved)


def restored_tuning(store: Store, configured: Pipeline) -> Tuning:
    """Return the tuning of a pipeline that has a goal, as it stood and with what it was to learn since.

    Raises OtherTuningError where a tuning has to begin anew, StoreError where the store cannot be read.
    """
    tuning = Tuning(configured)
    state, later = store.tuning(configured.name)
    try:
        if state is not None:
            tuning.restore(state)
        for row in later:
            tuning.apply(row.sample)
    except (ValueError, LookupError, TypeError) as error:
        raise OtherTuningError(printable(str(error))) from None
    return tuning


def _tuned_start(tuning: Tuning, configured: Plan, last: Plan | None) -> Plan:
    """Return the plan that a tuning wants: the last one, if that is its content."""
    wanted = tuning.plan(configured if last is None else replace(configured, rest_s=last.rest_s))
    return last if last is not None and same_content(last, wanted) else wanted
