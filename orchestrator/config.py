"""orchestrator.yaml as frozen dataclasses, and what each pipeline starts with."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from distree import strict_yaml
from distree.broker_settings import BrokerSettings
from distree.bundle.loading import Bundle, load_bundle
from distree.bundle.manifest import MANIFEST
from distree.criteria import POLICIES, problem, unknown
from distree.criteria.base import PolicyParameters
from distree.errors import ConfigError
from distree.messages.plan import MaskedThresholds, Plan
from distree.strict_yaml import Share
from distree.topics import ROOT, check_id

CONFIDENCE = Share(0.95)
AUDIT_RATE = Share(0.05)

HOME_ASSISTANT_PREFIX = "homeassistant"

_PREFIX = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")

NEVER_SENT = 1e300
"""The threshold by which nobody leaves, as plans have it: messages hold finite numbers alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where the history is kept and how much of it."""

    path: Path = Path("state/orchestrator.db")
    """SQLite file of telemetry, audits, plans and the tuners' state."""
    telemetry_days: float = 7.0
    """How long telemetry is kept."""
    max_mb: int = 64
    """Largest size of the whole file."""

    def __post_init__(self) -> None:
        if not 0 < self.telemetry_days < math.inf:
            raise ConfigError(f"telemetry_days: {self.telemetry_days:g} is out of range", "choose a value above 0")
        if self.max_mb < 1:
            raise ConfigError(f"max_mb: {self.max_mb} is out of range", "choose at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalConfig:
    """What a pipeline's thresholds are tuned for.

    `latency_p95_ms`, `bytes_per_input` and `energy_mj` are for what boards measure. With any of them, inputs leave as
    early as these goals need and no earlier; without, as early as is proved safe.
    """

    accuracy_drop: Share
    """How much accuracy early exits may cost against the last exit."""
    confidence: Share = CONFIDENCE
    """How sure the orchestrator must be of it before it lets inputs leave."""
    audit_rate: Share = AUDIT_RATE
    """Share of inputs of which all exits are asked; while none may leave early it is 1, for then it costs nothing."""
    labels_wait_s: float | None = None
    """How long audits wait for what users publish on `truth`; without it losses are against the last exit."""
    latency_p95_ms: float | None = None
    """Goal for the 95th percentile of latency, of the slowest origin."""
    bytes_per_input: float | None = None
    """Goal for the bytes that boards send to each other."""
    energy_mj: float | None = None
    """Goal for the energy of an input, in millijoules; needs `mj_per_mmac`."""
    mj_per_mmac: float | None = None
    """Millijoules that a million multiply-accumulates take on your boards."""
    mj_per_kb: float = 0.0
    """Millijoules that a thousand bytes take to send."""

    def __post_init__(self) -> None:
        for name in ("accuracy_drop", "confidence"):
            if not 0 < getattr(self, name) < 1:
                what = f"{name}: {getattr(self, name) * 100:g}% is out of range"
                raise ConfigError(what, "choose a share above 0% and below 100%")
        if self.audit_rate <= 0:
            raise ConfigError("audit_rate: nothing is learned without audits", "choose a share above 0%")
        for name in ("labels_wait_s", "latency_p95_ms", "bytes_per_input", "energy_mj", "mj_per_mmac"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}: {value:g} is out of range", "choose a finite value above 0")
        if not 0 <= self.mj_per_kb < math.inf:
            raise ConfigError(f"mj_per_kb: {self.mj_per_kb:g} is out of range", "choose 0 or more")
        if self.energy_mj is not None and self.mj_per_mmac is None:
            raise ConfigError(
                "energy_mj: needs mj_per_mmac too", "give the energy of a million multiply-accumulates of a board"
            )

    def limits(self) -> dict[str, float]:
        """Return the goals for what boards measure, by name."""
        names = ("latency_p95_ms", "bytes_per_input", "energy_mj")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """A pipeline to plan for. Without criterion and thresholds the bundle's calibrated defaults hold.

    With a goal, thresholds are tuned: at first nobody leaves early, then who is proved to do so safely.
    """

    name: str
    """The pipeline's id, as in agent.yaml."""
    bundle: str
    """A name in the model zoo, or a folder with a bundle.yaml."""
    criterion: str | None = None
    """Exit criterion; the bundle's if left out."""
    thresholds: tuple[float, ...] | None = None
    """One per exit but the last; the bundle's calibrated ones if left out."""
    goal: GoalConfig | None = None
    """What thresholds are tuned for, instead of giving them."""

    def __post_init__(self) -> None:
        check_id(self.name, "name")
        if self.goal is not None and self.thresholds is not None:
            raise ConfigError("thresholds: are tuned for the goal", "give the one or the other")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Where Prometheus finds the metrics: http://host:port/metrics. Anyone who reaches the port reads them."""

    port: int
    """Port of the metrics; 0 picks a free one."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: {self.port} is out of range", "choose 0 to 65535, where 0 picks a free port")


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeAssistantConfig:
    """Where Home Assistant looks for devices: its discovery prefix, on the same broker."""

    prefix: str = HOME_ASSISTANT_PREFIX
    """Home Assistant's discovery prefix, on the same broker."""

    def __post_init__(self) -> None:
        check_prefix(self.prefix, "prefix")


def check_prefix(prefix: str, what: str) -> str:
    """Return a prefix of topics that are not DistrEE's own; raise ConfigError naming `what` otherwise."""
    if len(prefix) > 64 or not _PREFIX.fullmatch(prefix) or prefix.split("/")[0] == ROOT.split("/")[0]:
        raise ConfigError(
            f"{what}: {prefix!r} is not a discovery prefix",
            f"use letters, digits, '_', '-' and '/', as in {HOME_ASSISTANT_PREFIX}",
        )
    return prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorConfig:
    """The whole of orchestrator.yaml; what `metrics` and `home_assistant` stand for is off without them."""

    site: str
    """The site's id, as in agent.yaml."""
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    """Where the broker is and how to log in."""
    store: StoreConfig = field(default_factory=StoreConfig)
    """The history."""
    metrics: MetricsConfig | None = None
    """Given where Prometheus is to see the site (extra `metrics`); otherwise no port is opened."""
    home_assistant: HomeAssistantConfig | None = None
    """Given where Home Assistant is to find boards and answers by MQTT discovery."""
    pipelines: tuple[PipelineConfig, ...]
    """What is planned; at least one."""

    def __post_init__(self) -> None:
        check_id(self.site, "site")
        names = [pipeline.name for pipeline in self.pipelines]
        if not names:
            raise ConfigError("pipelines: there is none", "give at least one")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"pipelines: {', '.join(twice)} given twice", "give each a name of its own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A configured pipeline with its bundle read: number of exits, and the configured plan (epoch 0).

    `branches` has the number of branches per stage, 0 for a plain one; `labels` are the classes, () if unknown.
    `masked` are the bundle's thresholds for sets of missing branches, of criterion `calibrated`; `parameters` are what
    its criteria have learned. `goal` is what its thresholds are tuned for, None if they are not; `costs` are the
    multiply-accumulates of an input that leaves at each exit.
    """

    name: str
    exits: int
    plan: Plan
    branches: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    calibrated: str = ""
    masked: tuple[MaskedThresholds, ...] = ()
    parameters: PolicyParameters = field(default_factory=PolicyParameters)
    goal: GoalConfig | None = None
    costs: tuple[float, ...] = ()

    def masked_of(self, criterion: str) -> tuple[MaskedThresholds, ...]:
        """Return the bundle's thresholds for missing branches where they are of this criterion, else ()."""
        return self.masked if criterion == self.calibrated else ()


def load_config(path: Path) -> OrchestratorConfig:
    """Read orchestrator.yaml; relative paths count from its folder. ConfigError names file and line."""
    loaded = strict_yaml.load(path, OrchestratorConfig)
    folder = path.absolute().parent
    return replace(
        loaded,
        # A default is not made absolute by the loader.
        store=replace(loaded.store, path=folder / loaded.store.path),
        pipelines=tuple(_with_bundle_beside(folder, pipeline) for pipeline in loaded.pipelines),
    )


def _with_bundle_beside(folder: Path, pipeline: PipelineConfig) -> PipelineConfig:
    beside = folder / pipeline.bundle
    return replace(pipeline, bundle=str(beside)) if (beside / MANIFEST).is_file() else pipeline


def load_pipeline(configured: PipelineConfig) -> Pipeline:
    """Read the pipeline's bundle (the manifest, not the segments) and make its configured plan.

    Raises BundleError, or ConfigError where criterion or thresholds do not fit the bundle. The plan has the bundle's
    thresholds for missing branches where its criterion is the bundle's own.
    """
    bundle = load_bundle(configured.bundle, verify=())
    criterion, thresholds = _settings(configured, bundle)
    plan = Plan(
        pipeline=configured.name,
        epoch=0,
        model=bundle.name,
        revision=bundle.revision,
        criterion=criterion,
        thresholds=thresholds,
    )
    pipeline = Pipeline(
        name=configured.name,
        exits=len(bundle.stages),
        plan=plan,
        branches=bundle.branch_counts,
        labels=bundle.labels,
        calibrated=bundle.criterion,
        masked=bundle.manifest.exits.masked,
        parameters=bundle.policy_parameters(),
        goal=configured.goal,
        costs=tuple(itertools.accumulate(float(stage.macs.trunk + stage.macs.exit) for stage in bundle.stages)),
    )
    check_thresholds(pipeline, criterion, thresholds)
    if pipeline.goal is not None:
        # As with the thresholds: the bundle's are not proved here.
        return replace(pipeline, plan=replace(plan, audit_rate=1.0))
    return replace(pipeline, plan=replace(plan, masked=pipeline.masked_of(criterion)))


def _settings(configured: PipelineConfig, bundle: Bundle) -> tuple[str, tuple[float, ...]]:
    criterion = bundle.criterion if configured.criterion is None else configured.criterion
    if configured.thresholds is not None:
        return criterion, configured.thresholds
    if configured.goal is not None:
        return criterion, (NEVER_SENT,) * (len(bundle.stages) - 1)
    if criterion not in POLICIES:
        raise ConfigError(*unknown(criterion).at(f"pipeline {configured.name}"))
    if criterion != bundle.criterion:
        raise ConfigError(
            f"pipeline {configured.name}: the thresholds of bundle {bundle.name} were calibrated for "
            f"{bundle.criterion}",
            f"give thresholds for {criterion}",
        )
    return criterion, bundle.thresholds


def check_thresholds(pipeline: Pipeline, criterion: str, thresholds: tuple[float, ...]) -> None:
    """Raise ConfigError unless the criterion fits the bundle and each exit but the last has a finite threshold."""
    exits = pipeline.exits
    trouble = problem(
        criterion, pipeline.parameters, wide=any(pipeline.branches), exits=exits, classes=len(pipeline.labels) or None
    )
    if trouble is not None:
        raise ConfigError(*trouble.at(f"pipeline {pipeline.name}"))
    if len(thresholds) != exits - 1:
        raise ConfigError(
            f"pipeline {pipeline.name}: thresholds: {len(thresholds)} given for {exits} exits",
            f"give {exits - 1}, one per exit but the last",
        )
    if not all(map(math.isfinite, thresholds)):
        what = f"pipeline {pipeline.name}: the thresholds {thresholds} are not all finite"
        raise ConfigError(what, "give finite numbers")
