"""What Prometheus sees of a running orchestrator: `metrics: {port: 9469}` in orchestrator.yaml serves it over HTTP.

A scrape is answered in a thread of its own from one `Snapshot`, which the service takes under its lock and which does
not change afterwards: nobody sees half of a change. Every label comes from the configuration, from a closed set, or is
the id of a known device, of which there are at most `fleet.MAX_DEVICES`.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distree.broker_address import joined
from distree.errors import ConfigError
from distree.messages.device import DeviceStatus
from distree.messages.layout import layout_of
from distree.messages.plan import Plan, plan_hash
from distree.messages.telemetry import PipelineTelemetry
from distree.thresholds import NEVER
from orchestrator.config import MetricsConfig
from orchestrator.fleet import Device, ages_s, is_behind
from orchestrator.site_view import state_of
from orchestrator.tuning.goal_control import FULL_QUEUE
from orchestrator.tuning.pipeline_tuning import TuningExplanation

if TYPE_CHECKING:
    from prometheus_client import Metric

_STATES = (*(status.value for status in DeviceStatus), "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSnapshot:
    """A pipeline as it stands: the plan wanted (epoch 0 before it has one) and its tuning, None if it is not tuned.

    `is_preempted` says whether others keep replacing that plan on its topic.
    """

    plan: Plan
    is_preempted: bool = False
    tuning: TuningExplanation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the service knows at `now_s` of its monotonic clock; `refused` counts messages by reason."""

    now_s: float
    online: bool
    refused: Mapping[str, int]
    devices: tuple[Device, ...]
    pipelines: tuple[PipelineSnapshot, ...]


@contextmanager
def serving(config: MetricsConfig, read: Callable[[], Snapshot]) -> Iterator[int]:
    """Answer scrapes of http://host:port/metrics while the block runs; gives the port, a free one for 0.

    `read` is called in other threads. Raises ConfigError where prometheus-client is not installed or the port is
    taken.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError("metrics: need prometheus-client", "run: pip install 'distree[metrics]'")
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(_Collector(read))
    try:
        server, thread = start_http_server(config.port, config.host, registry)
    except OSError as error:
        where = joined(config.host, config.port)
        raise ConfigError(f"metrics: {where}: {error.strerror}", "choose another metrics.host or port") from None
    thread.name = "metrics"
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Collector:
    """Gives one snapshot's metrics at each scrape."""

    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Announce nothing: otherwise the registry would ask for a whole snapshot."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Give all metrics of one moment."""
        families = _Families()
        _add_snapshot(families, self._read())
        return families.all()


class _Families:
    """Metrics by name, each with its samples. The labels of a name are those of its first sample."""

    def __init__(self) -> None:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        self._counter, self._gauge = CounterMetricFamily, GaugeMetricFamily
        self._known: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

    def all(self) -> Iterable[Metric]:
        return self._known.values()

    def count(self, name: str, what: str, value: float, **labels: object) -> None:
        """Add a sample of a counter, which only grows until the process that counts restarts."""
        if name not in self._known:
            self._known[name] = self._counter(f"distree_{name}", what, labels=list(labels))
        self._known[name].add_metric([str(label) for label in labels.values()], value)

    def gauge(self, name: str, what: str, value: float, **labels: object) -> None:
        """Add a sample of a gauge, which goes up and down."""
        if name not in self._known:
            self._known[name] = self._gauge(f"distree_{name}", what, labels=list(labels))
        self._known[name].add_metric([str(label) for label in labels.values()], value)


def _add_snapshot(to: _Families, seen: Snapshot) -> None:
    to.gauge("orchestrator_online", "Whether the orchestrator is connected to its broker.", seen.online)
    for reason, count in sorted(seen.refused.items()):
        to.count("refused_messages", "Messages that the orchestrator refused.", count, reason=reason)
    for pipeline in seen.pipelines:
        _add_plan(to, pipeline.plan, seen.devices)
        what = "Whether others keep replacing this plan on its topic."
        to.gauge("plan_preempted", what, pipeline.is_preempted, pipeline=pipeline.plan.pipeline)
        _add_tuning(to, pipeline)
    for device in seen.devices:
        _add_device(to, device, seen.now_s)


def _add_plan(to: _Families, plan: Plan, devices: Sequence[Device]) -> None:
    name, wanted = plan.pipeline, plan_hash(plan)
    behind = sum(is_behind(device, name, wanted) for device in devices)
    to.gauge("plan_epoch", "Epoch of the plan that is wanted; 0 before it has one.", plan.epoch, pipeline=name)
    to.gauge("plan_behind", "Ready devices that do not follow this plan yet.", behind, pipeline=name)
    to.gauge("plan_audit_rate", "Share of inputs that are drawn for audits.", plan.audit_rate, pipeline=name)
    vectors = [((), plan.thresholds), *((part.missing, part.thresholds) for part in plan.masked)]
    for missing, thresholds in vectors:
        for k, threshold in enumerate(thresholds):
            # An infinite one disables its exit.
            value = math.inf if threshold >= NEVER else threshold
            what = "Score at which an exit is taken while these branches are missing."
            to.gauge("plan_threshold", what, value, pipeline=name, missing=_joined(missing), exit=k)


def _joined(missing: Sequence[int]) -> str:
    return ",".join(map(str, missing))


def _add_tuning(to: _Families, pipeline: PipelineSnapshot) -> None:
    tuning = pipeline.tuning
    if tuning is None:
        return
    name = pipeline.plan.pipeline
    to.count("tuning_audits", "Audits that the tuning has learned from.", tuning.audits, pipeline=name)
    to.count("tuning_lost_audits", "Audits of these that were lost.", tuning.lost, pipeline=name)
    for queue in tuning.queues:
        what = f"Virtual queue of a goal: 0 where it is met, {FULL_QUEUE:g} where it has been missed for long."
        to.gauge("goal_queue", what, queue.length, pipeline=name, goal=queue.goal)
    for one in tuning.sets:
        tuner, labels = one.tuner, {"pipeline": name, "missing": _joined(one.missing)}
        to.count("tuner_alarms", "How often thresholds were withdrawn: inputs changed.", tuner.alarms, **labels)
        to.gauge("tuner_audits", "Audits that the thresholds rest on.", tuner.audits, **labels)
        to.gauge("tuner_gathering", "Audits still needed before any early exit.", tuner.gathering, **labels)
        for figure in tuner.figures:
            to.gauge(f"tuner_{figure.name}", figure.meaning, figure.value, **labels)


def _add_device(to: _Families, device: Device, now_s: float) -> None:
    name, report, state = device.device, device.telemetry, state_of(device)
    for one in _STATES:
        to.gauge("device_state", "1 for the state that the device is in.", one == state, device=name, state=one)
    heard_s, _ = ages_s(device, now_s)
    if heard_s is not None:
        to.gauge("device_silence_seconds", "Time since the device was last heard.", heard_s, device=name)
    if report is None:
        return
    _add_fields(to, "device", report, {"device": name})
    branches = {(held.pipeline, held.stage): held.branch for held in device.meta.stages} if device.meta else {}
    for part in report.pipelines:
        _add_report(to, name, part, branches)


def _add_report(
    to: _Families, device: str, part: PipelineTelemetry, branches: Mapping[tuple[str, int], int | None]
) -> None:
    labels = {"pipeline": part.pipeline, "device": device}
    _add_fields(to, "device", part, labels)
    for stage in part.stages:
        branch = branches.get((part.pipeline, stage.stage))
        # Prometheus takes an empty label as none, which is right for a plain stage.
        _add_fields(to, "stage", stage, {**labels, "stage": stage.stage, "branch": "" if branch is None else branch})
    for fusion in part.fusions:
        _add_fields(to, "fusion", fusion, {**labels, "stage": fusion.stage})
    if part.origin is not None:
        _add_fields(to, "origin", part.origin, labels)


def _add_fields(to: _Families, of: str, report: object, labels: Mapping[str, object]) -> None:
    """Add the fields of a report, or of a part of one, that are declared to be metrics."""
    for one in layout_of(type(report)).fields:
        if one.metric is None:
            continue
        name = f"{of}_{one.metric.name or re.sub('_s$', '_seconds', one.name)}"
        add, value = to.count if one.metric.grows else to.gauge, getattr(report, one.name)
        if not one.metric.by:
            add(name, one.meaning, value, **labels)
            continue
        for key, number in sorted(value.items()) if isinstance(value, dict) else enumerate(value):
            add(name, one.meaning, number, **labels, **{one.metric.by: key})
