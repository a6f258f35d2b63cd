"""Setting thresholds by hand: a new plan goes into the store, where a running orchestrator finds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from distree.errors import ConfigError
from distree.messages.device import DeviceStatus
from distree.messages.plan import Plan
from orchestrator.config import OrchestratorConfig
from orchestrator.fleet import is_behind, serves
from orchestrator.pipeline_spec import PipelineSpec, check_thresholds, load_spec
from orchestrator.planner import same_content, starting_plan
from orchestrator.site_view import stored_devices
from orchestrator.store.database import Store
from orchestrator.store.lock import is_served
from orchestrator.store.records import PlanRow

AUTHOR = "set-thresholds"
POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What setting thresholds did: the plan now wanted, if it is new, and if a service runs to publish it."""

    plan: Plan
    new: bool
    served: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Who follows a plan: the ready devices of its pipeline, and those of them that do not report it yet."""

    ready: tuple[str, ...]
    missing: tuple[str, ...]
    superseded_by: int | None

    @property
    def done(self) -> bool:
        """Whether at least one ready device serves the pipeline and all of them follow."""
        return bool(self.ready) and not self.missing


def find_pipeline(config: OrchestratorConfig, name: str) -> PipelineSpec:
    """Return a configured pipeline by name; ConfigError, with the names there are, if it is not there."""
    for configured in config.pipelines:
        if configured.name == name:
            return load_spec(configured)
    names = ", ".join(configured.name for configured in config.pipelines)
    raise ConfigError(f"--pipeline {name}: not in the configuration", f"name one of {names}")


def set_thresholds(
    store: Store, pipeline: PipelineSpec, criterion: str | None, thresholds: tuple[float, ...]
) -> Change:
    """Want these thresholds from now on; without a criterion, the one now wanted stays.

    Those for missing branches are the bundle's, where they are of that criterion.

    Raises ConfigError if they do not fit the pipeline, StoreError if they cannot be written.
    """
    if pipeline.goal is not None:
        raise ConfigError(
            f"--pipeline {pipeline.name}: its thresholds are tuned for its goal",
            "take the goal out of the configuration to set them by hand",
        )
    latest = store.latest_plan(pipeline.name)
    known = store.pipeline(pipeline.name).configured
    now_wanted = starting_plan(pipeline.plan, latest.plan if latest else None, known)
    criterion = now_wanted.criterion if criterion is None else criterion
    check_thresholds(pipeline, criterion, thresholds)
    masked = pipeline.masked_of(criterion)
    plan = replace(now_wanted, criterion=criterion, thresholds=thresholds, masked=masked)
    served = is_served(store.path)
    if latest is not None and same_content(latest.plan, plan):
        return Change(plan=latest.plan, new=False, served=served)
    written = store.append_plan(PlanRow(plan=plan, author=AUTHOR, at=time.time()))
    return Change(plan=written, new=True, served=served)


def progress(store: Store, plan: Plan) -> Progress:
    """Return who follows a plan, as the store has it; a later epoch of the same content is waited for."""
    latest = store.latest_plan(plan.pipeline)
    newest = latest.plan if latest is not None else plan
    devices = [seen.device for seen in stored_devices(store) if serves(seen.device, plan.pipeline)]
    return Progress(
        ready=tuple(device.device for device in devices if device.status is DeviceStatus.READY),
        missing=tuple(d.device for d in devices if is_behind(d, plan.pipeline, newest.epoch)),
        # What a plan tells of times is nobody's wish.
        superseded_by=None if same_content(replace(newest, rest_s=plan.rest_s), plan) else newest.epoch,
    )


def wait_for(
    path: Path,
    plan: Plan,
    timeout_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Progress:
    """Wait until all ready devices of the pipeline report the plan, another replaces it, or time is over."""
    until_s = clock() + timeout_s
    with Store(path, read_only=True) as store:
        while True:
            seen = progress(store, plan)
            if seen.done or seen.superseded_by is not None or clock() >= until_s:
                return seen
            sleep(min(POLL_S, max(0.0, until_s - clock())))
