"""orchestrator.yaml as frozen dataclasses, and what each pipeline starts with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from distree import config
from distree.bundle import MANIFEST, Bundle, load_bundle
from distree.errors import ConfigError
from distree.policies import make_policy
from distree.topics import check_id
from distree.types import BrokerSettings, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where the history is kept and how much of it: days of telemetry, and mebibytes of the whole file."""

    path: Path = Path("state/orchestrator.db")
    telemetry_days: float = 7.0
    max_mb: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.telemetry_days < math.inf:
            raise ConfigError(f"telemetry_days: must be above 0, received {self.telemetry_days:g}")
        if self.max_mb < 1:
            raise ConfigError(f"max_mb: must be at least 1, received {self.max_mb}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """A pipeline to plan for. Without criterion and thresholds the bundle's calibrated defaults hold."""

    name: str
    bundle: str
    criterion: str | None = None
    thresholds: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_id(self.name, "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorConfig:
    """The whole of orchestrator.yaml."""

    site: str
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    store: StoreConfig = field(default_factory=StoreConfig)
    pipelines: tuple[PipelineConfig, ...]

    def __post_init__(self) -> None:
        check_id(self.site, "site")
        names = [pipeline.name for pipeline in self.pipelines]
        if not names:
            raise ConfigError("pipelines: at least one is needed")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"pipelines: {', '.join(twice)} given twice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A configured pipeline with its bundle read: number of exits, and the configured plan (epoch 0)."""

    name: str
    exits: int
    plan: Plan


def load_config(path: Path) -> OrchestratorConfig:
    """Read orchestrator.yaml; relative paths count from its folder. ConfigError names file and line."""
    loaded = config.load(path, OrchestratorConfig)
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

    Raises BundleError, or ConfigError where criterion or thresholds do not fit the bundle.
    """
    bundle = load_bundle(configured.bundle, verify=())
    criterion, thresholds = _settings(configured, bundle)
    exits = len(bundle.stages)
    check_thresholds(configured.name, exits, criterion, thresholds)
    plan = Plan(
        pipeline=configured.name,
        epoch=0,
        model=bundle.name,
        revision=bundle.revision,
        criterion=criterion,
        thresholds=thresholds,
    )
    return Pipeline(name=configured.name, exits=exits, plan=plan)


def _settings(configured: PipelineConfig, bundle: Bundle) -> tuple[str, tuple[float, ...]]:
    criterion = bundle.criterion if configured.criterion is None else configured.criterion
    if configured.thresholds is not None:
        return criterion, configured.thresholds
    if criterion != bundle.criterion:
        raise ConfigError(
            f"pipeline {configured.name}: the thresholds of bundle {bundle.name} were calibrated for "
            f"{bundle.criterion}; give thresholds for {criterion}"
        )
    return criterion, bundle.thresholds


def check_thresholds(pipeline: str, exits: int, criterion: str, thresholds: tuple[float, ...]) -> None:
    """Raise ConfigError unless the criterion is known and each exit but the last has a finite threshold."""
    try:
        make_policy(criterion)
    except ConfigError as error:
        raise ConfigError(f"pipeline {pipeline}: {error}") from None
    if len(thresholds) != exits - 1:
        raise ConfigError(
            f"pipeline {pipeline}: {len(thresholds)} thresholds given; its bundle has {exits} exits and "
            f"needs {exits - 1}, one per exit but the last"
        )
    if not all(map(math.isfinite, thresholds)):
        raise ConfigError(f"pipeline {pipeline}: thresholds must be finite, received {thresholds}")
