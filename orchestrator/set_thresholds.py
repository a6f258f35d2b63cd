"""Plans set by hand: they go into the store, where a running orchestrator finds them.

`set_thresholds` asks for other thresholds. `reset_plan` asks for the plan that is wanted already, but has the
orchestrator forget what others have published, number plans from 1 again, and publish its own at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from distree.errors import ConfigError
from distree.messages.device import DeviceStatus
from distree.messages.plan import Plan, plan_hash, same_decision
from orchestrator.config import OrchestratorConfig
from orchestrator.fleet import is_behind, serves
from orchestrator.pipeline_spec import PipelineSpec, check_thresholds, load_spec
from orchestrator.plan_reasons import BY_HAND, whoever_asks
from orchestrator.planner import starting_plan
from orchestrator.site_view import standing_alarm, stored_devices
from orchestrator.store.database import Store
from orchestrator.store.lock import is_served
from orchestrator.store.records import PlanRow

POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a command did: the plan now wanted, whether it is new, and whether a service runs to publish it.

    `online` says whether that service is connected to the broker. `alarm` says that others keep replacing the plan of
    the pipeline, "" where they do not. `asked_at` is when a reset was asked for (Unix seconds), 0.0 where none was.
    """

    plan: Plan
    new: bool
    served: bool
    online: bool
    alarm: str
    asked_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Who follows a plan: the ready devices of its pipeline, and those of them that do not report it yet.

    `hindrance` is why no plan can reach a board now, and what to do about it; "" where nothing is known to prevent it.
    """

    ready: tuple[str, ...]
    missing: tuple[str, ...]
    superseded_by: int | None
    alarm: str
    hindrance: str

    @property
    def done(self) -> bool:
        """Whether at least one ready device serves the pipeline, and all of them follow undisturbed."""
        return bool(self.ready) and not self.missing and not self.alarm


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
    now_wanted = _now_wanted(store, pipeline)
    criterion = now_wanted.criterion if criterion is None else criterion
    check_thresholds(pipeline, criterion, thresholds)
    masked = pipeline.masked_of(criterion)
    plan = replace(now_wanted, criterion=criterion, thresholds=thresholds, masked=masked)
    latest = store.latest_plan(pipeline.name)
    if latest is not None and same_decision(latest.plan, plan):
        return _change(store, latest.plan, new=False)
    plan = replace(plan, epoch=0, reason=BY_HAND, author=whoever_asks())
    return _change(store, store.append_plan(PlanRow(plan=plan, at=time.time())), new=True)


def reset_plan(store: Store, pipeline: PipelineSpec, *, configured: bool) -> Change:
    """Ask for the plan that is wanted now, or the `configured` one, as epoch 1, whatever others have published.

    Raises StoreError if it cannot be written.
    """
    plan = pipeline.plan if configured else _now_wanted(store, pipeline)
    row = PlanRow(plan=replace(plan, epoch=1), at=time.time(), is_reset=True)
    return replace(_change(store, store.append_plan(row), new=True), asked_at=row.at)


def _now_wanted(store: Store, pipeline: PipelineSpec) -> Plan:
    latest = store.latest_plan(pipeline.name)
    return starting_plan(pipeline.plan, latest.plan if latest else None, store.pipeline(pipeline.name).configured)


def _change(store: Store, plan: Plan, *, new: bool) -> Change:
    return Change(
        plan=plan,
        new=new,
        served=is_served(store.path),
        online=_is_online(store),
        alarm=standing_alarm(store, plan.pipeline),
    )


def _is_online(store: Store) -> bool:
    service = store.service()
    return service is not None and service.online


def _hindrance(store: Store) -> str:
    if not is_served(store.path):
        return "no orchestrator is running; start it: distree orchestrator run"
    return "" if _is_online(store) else "the orchestrator is not connected to the broker; its log says why"


def progress(store: Store, plan: Plan, asked_at: float = 0.0) -> Progress:
    """Return who follows a plan, as the store has it; the same decision under another number is waited for.

    Only what boards have said since `asked_at` counts (Unix seconds): before a reset they may have followed the plan
    that is wanted, and another since.
    """
    latest = store.latest_plan(plan.pipeline)
    newest = latest.plan if latest is not None else plan
    seen = [one for one in stored_devices(store) if serves(one.device, plan.pipeline)]
    ready = [one for one in seen if one.device.status is DeviceStatus.READY]
    missing = [
        one.device.device
        for one in ready
        if (one.heard_at or 0.0) < asked_at or is_behind(one.device, plan.pipeline, plan_hash(newest))
    ]
    return Progress(
        ready=tuple(one.device.device for one in ready),
        missing=tuple(missing),
        superseded_by=None if same_decision(newest, plan) else newest.epoch,
        alarm=standing_alarm(store, plan.pipeline),
        hindrance=_hindrance(store),
    )


def wait_for(
    path: Path,
    plan: Plan,
    timeout_s: float,
    asked_at: float = 0.0,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Progress:
    """Wait until all ready devices of the pipeline report the plan, another replaces it, or time is over.

    Reports from before `asked_at` do not count (Unix seconds).
    """
    until_s = clock() + timeout_s
    with Store(path, read_only=True) as store:
        while True:
            seen = progress(store, plan, asked_at)
            if seen.done or seen.superseded_by is not None or clock() >= until_s:
                return seen
            sleep(min(POLL_S, max(0.0, until_s - clock())))
