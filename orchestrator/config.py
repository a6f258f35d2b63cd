"""orchestrator.yaml as frozen dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from distree import strict_yaml
from distree.broker_settings import BrokerSettings
from distree.bundle.loading import bundle_of
from distree.errors import ConfigError
from distree.formatting import percent
from distree.signing import check_public_keys
from distree.strict_yaml import Share
from distree.thresholds import Threshold
from distree.topics import check_device, check_id, check_prefix
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.tuners import TUNERS

HOME_ASSISTANT_PREFIX = "homeassistant"

ALL = Share(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where the history is kept, and how much of it."""

    path: Path = Path("state/orchestrator.db")
    """SQLite file with telemetry, audits, plans and the state of tuners."""
    telemetry_days: float = 7.0
    """How long telemetry is kept."""
    max_mb: int = 64
    """Largest size of the file."""

    def __post_init__(self) -> None:
        if not 0 < self.telemetry_days < math.inf:
            raise ConfigError(f"telemetry_days: {self.telemetry_days:g} is out of range", "choose a value above 0")
        if self.max_mb < 1:
            raise ConfigError(f"max_mb: {self.max_mb} is out of range", "choose at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """A pipeline to plan for. Without criterion and thresholds the bundle's calibrated defaults apply.

    With a goal, thresholds are tuned: early exits are disabled at first, and open as far as they are proved safe.
    """

    name: str
    """The pipeline's id, as in agent.yaml."""
    bundle: str
    """A folder with a bundle.yaml, or the name of a shipped bundle or of one in `bundles_dir`."""
    criterion: str | None = None
    """Exit criterion; the bundle's if left out."""
    thresholds: tuple[Threshold, ...] | None = None
    """One per exit but the last, or `never` to keep that exit closed; the bundle's calibrated ones if left out."""
    goal: Goal | None = None
    """What thresholds are tuned for, instead of being given."""
    origins: tuple[str, ...] = ()
    """The boards whose audits count for the goal. If left out, any board counts that announces itself as an origin and
    reports its inputs, so list them where others may publish on the broker."""
    largest_share: Share = ALL
    """Largest share of the audits that one origin may make up; what exceeds it does not count."""

    def __post_init__(self) -> None:
        check_id(self.name, "name")
        self._check_origins()
        if self.tunes_thresholds and self.thresholds is not None:
            keeping = ", ".join(name for name, tuner in TUNERS.items() if tuner.uses_given_thresholds)
            raise ConfigError("thresholds: the goal tunes them", f"remove one of the two, or set goal.tuner: {keeping}")

    def _check_origins(self) -> None:
        for origin in self.origins:
            check_device(origin, "origins")
        if self.goal is None and (self.origins or self.largest_share < 1):
            key = "origins" if self.origins else "largest_share"
            raise ConfigError(f"{key}: says whose audits count, and without a goal there are none", "add a goal")
        if not 0 < self.largest_share <= 1:
            raise ConfigError("largest_share: 0% would let no audit count", "choose a share above 0%")
        if 0 < len(self.origins) * self.largest_share < 1:
            raise ConfigError(
                f"largest_share: {percent(self.largest_share)} of {len(self.origins)} origins is less than all audits",
                f"choose at least {percent(math.ceil(100 / len(self.origins)) / 100)}",
            )

    @property
    def tunes_thresholds(self) -> bool:
        """Whether a tuner finds the thresholds, starting from none."""
        return self.goal is not None and not self.goal.tuner_class.uses_given_thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Where Prometheus finds the metrics: http://host:port/metrics. Anyone who can reach the port can read them."""

    port: int
    """Port to listen on; 0 picks a free one."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorConfig:
    """The whole of orchestrator.yaml. Without `metrics` and `home_assistant`, what they configure is off."""

    site: str
    """The site's id, as in agent.yaml."""
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    """Where the broker is and how to log in."""
    bundles_dir: Path | None = None
    """Folder of bundles that `bundle` may name; by default $XDG_DATA_HOME/distree/bundles."""
    store: StoreConfig = field(default_factory=StoreConfig)
    """The history of plans, reports and audits."""
    metrics: MetricsConfig | None = None
    """Serves metrics to Prometheus (needs the extra `metrics`); without it no port is opened."""
    home_assistant: HomeAssistantConfig | None = None
    """Announces boards and answers to Home Assistant by MQTT discovery."""
    signing_key: Path | None = None
    """File with the private key with which plans are signed (needs the extra `signed`); if left out, they are not."""
    label_keys: tuple[str, ...] = ()
    """Public keys of those whose labels count, as printed by `distree orchestrator keys` (needs the extra `signed`);
    without any, everybody's labels count."""
    pipelines: tuple[PipelineConfig, ...]
    """The pipelines to plan for; at least one."""

    def __post_init__(self) -> None:
        check_id(self.site, "site")
        names = [pipeline.name for pipeline in self.pipelines]
        if not names:
            raise ConfigError("pipelines: none given", "give at least one")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"pipelines: {', '.join(twice)} given twice", "give each a name of its own")
        check_public_keys(self.label_keys, "label_keys")


def load_config(path: Path) -> OrchestratorConfig:
    """Read orchestrator.yaml; relative paths count from its folder. ConfigError names file and line."""
    loaded = strict_yaml.load(path, OrchestratorConfig)
    folder = path.absolute().parent
    return replace(
        loaded,
        # A default is not made absolute by the loader.
        store=replace(loaded.store, path=folder / loaded.store.path),
        pipelines=tuple(
            replace(pipeline, bundle=bundle_of(folder, pipeline.bundle, loaded.bundles_dir))
            for pipeline in loaded.pipelines
        ),
    )
