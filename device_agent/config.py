"""agent.yaml as frozen dataclasses; see examples/agent.yaml for a commented one."""

from __future__ import annotations

from dataclasses import field, replace
from pathlib import Path
from typing import Literal

from device_agent.sources import SourceConfig
from device_agent.sources.directory import DirectorySourceConfig
from distree import strict_yaml
from distree.broker_settings import BrokerSettings
from distree.bundle.loading import bundle_of
from distree.errors import ConfigError
from distree.messages.request import Codec
from distree.record import record
from distree.signing import check_public_keys
from distree.strict_yaml import check_positive
from distree.topics import check_device, check_id

DEFAULT_STATE_DIR = Path("state")


@record
class ThumbnailConfig:
    """Small pictures of inputs for dashboards.

    Inputs that come faster than `max_rate_hz` get no picture.
    """

    max_side_px: int = 48
    """Length of a picture's longer side, 8 to 128."""
    max_rate_hz: float = 5
    """Most pictures per second."""

    def __post_init__(self) -> None:
        check_positive(max_rate_hz=self.max_rate_hz)
        if not 8 <= self.max_side_px <= 128:
            raise ConfigError(f"max_side_px: {self.max_side_px} pixels are out of range", "choose 8 to 128")


@record
class OriginConfig:
    """Inputs that this board answers for."""

    source: SourceConfig
    """Where inputs come from."""
    deadline_ms: float = 1000
    """Every accepted input is answered within this time; at most one hour."""
    max_pending: int = 64
    """Most inputs that may be unanswered at a time; further inputs wait until one of them is answered."""
    min_retry_ms: float = 100
    """Shortest wait for an answer from other boards before an input is sent again, over another route if possible."""
    spool: bool = False
    """Keep accepted inputs in `state_dir` so that they survive a crash; costs disk writes. Files in a folder survive
    without it, unless they are overwritten before they are answered."""
    fuser: str | None = None
    """Wide stages: the board that fuses the embeddings of this board's inputs; if left out, this board does."""
    mode: Literal["gated", "eager"] = "gated"
    """Wide stages: whether branches wait to be told to go on (gated), or go on until told to stop (eager)."""
    thumbnails: ThumbnailConfig | None = None
    """Publishes small pictures of inputs for dashboards; if left out, none are published."""

    def __post_init__(self) -> None:
        if self.fuser is not None:
            check_device(self.fuser, "fuser")
        check_positive(deadline_ms=self.deadline_ms, max_pending=self.max_pending, min_retry_ms=self.min_retry_ms)
        if self.deadline_ms > 3_600_000:
            raise ConfigError(f"deadline_ms: {self.deadline_ms:g} is out of range", "choose at most 3600000, an hour")

    @property
    def has_spool(self) -> bool:
        """Whether answers are kept on disk until the broker has them; with `spool`, inputs are, too."""
        return self.spool or self.source.keeps_answers


@record
class AgentPipelineConfig:
    """A pipeline in which this board takes part."""

    name: str
    """Id of the pipeline, the same on all its boards."""
    bundle: str
    """A folder with a bundle.yaml, or the name of a shipped bundle or of one in `bundles_dir`."""
    stages: tuple[int, ...] = ()
    """Stages that this board computes; other boards compute the rest."""
    branch: int | None = None
    """Wide stages: the branch that this board runs in each wide stage among `stages`."""
    fuse: bool = False
    """Wide stages: fuse for origins that name this board as their `fuser`; an origin can always fuse for itself."""
    branch_timeout_ms: float = 200
    """Wide stages: how much later than the first branch another one may answer before it is left out."""
    origin: OriginConfig | None = None
    """This board's own inputs; left out on boards that have none."""

    def __post_init__(self) -> None:
        check_id(self.name, "name")
        if not self.stages and self.origin is None and not self.fuse:
            raise ConfigError("stages: this board has nothing to do", "give stages, an origin, or fuse: true")
        if len(set(self.stages)) != len(self.stages):
            raise ConfigError(f"stages: {list(self.stages)} lists a stage twice", "list each once")
        if min(self.stages, default=0) < 0:
            raise ConfigError(f"stages: {min(self.stages)} is negative", "count stages from 0")
        if self.branch is not None and self.branch < 0:
            raise ConfigError(f"branch: {self.branch} is negative", "count branches from 0")
        if self.branch is not None and not self.stages:
            raise ConfigError("branch: there are no stages", "give the wide stages whose branch this board runs")
        check_positive(branch_timeout_ms=self.branch_timeout_ms)


@record
class InboxConfig:
    """How much may wait on this board, per pipeline; beyond that the oldest message is shed."""

    max_messages: int = 64
    """Most messages waiting."""
    max_kib: int = 4096
    """Most memory for the tensors of these messages."""

    def __post_init__(self) -> None:
        check_positive(max_messages=self.max_messages, max_kib=self.max_kib)


@record
class AgentConfig:
    """One board's configuration."""

    site: str
    """Id of the site, the same on all its boards, its orchestrator and its dashboards."""
    device: str
    """Id of this board, unique within the site."""
    pipelines: tuple[AgentPipelineConfig, ...]
    """The pipelines in which this board takes part; at least one."""
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    """Where the broker is and how to log in."""
    state_dir: Path = DEFAULT_STATE_DIR
    """Folder of the spool, and of what sources remember; may be a tmpfs if that need not survive a power cut. A service
    uses /var/lib/distree/state by default."""
    bundles_dir: Path | None = None
    """Folder of bundles that `bundle` may name; by default $XDG_DATA_HOME/distree/bundles."""
    num_threads: int = 1
    """Threads of the interpreter."""
    codec: Codec = "raw"
    """How features are sent: as they are (raw), or compressed for slow radio links (zlib)."""
    inbox: InboxConfig = field(default_factory=InboxConfig)
    """How much may wait on this board, per pipeline."""
    receive_maximum: int = 16
    """Most unacknowledged messages that the broker may send to this board, 1 to 65535 (MQTT 5)."""
    telemetry_interval_s: float = 2.0
    """Time between two telemetry messages."""
    inference_timeout_s: float = 30.0
    """Inference that takes longer counts as hung: systemd's watchdog is no longer fed, and after twice as long the
    agent exits so that it can be restarted."""
    shutdown_timeout_s: float = 10.0
    """Longest time that the agent takes to finish what it has accepted once it is told to stop."""
    plan_keys: tuple[str, ...] = ()
    """Public keys of the orchestrator (needs the extra `signed`): with any, only plans signed with one of them are
    obeyed."""
    self_test: bool = True
    """At start, compare the interpreter's outputs with the bundle's golden vectors."""

    def __post_init__(self) -> None:
        check_id(self.site, "site")
        check_device(self.device, "device")
        check_positive(
            num_threads=self.num_threads,
            receive_maximum=self.receive_maximum,
            telemetry_interval_s=self.telemetry_interval_s,
            inference_timeout_s=self.inference_timeout_s,
            shutdown_timeout_s=self.shutdown_timeout_s,
        )
        if self.receive_maximum > 65535:
            raise ConfigError(f"receive_maximum: {self.receive_maximum} is out of range", "choose at most 65535")
        names = [pipeline.name for pipeline in self.pipelines]
        if not names:
            raise ConfigError("pipelines: none given", "give at least one")
        if len(set(names)) != len(names):
            raise ConfigError("pipelines: two have the same name", "give each a name of its own")
        self._check_folders()
        check_public_keys(self.plan_keys, "plan_keys")

    @property
    def keeps_state(self) -> bool:
        """Whether anything is kept in `state_dir`."""
        return bool(self.plan_keys) or any(one.origin is not None and one.origin.has_spool for one in self.pipelines)

    def _check_folders(self) -> None:
        """Refuse two pipelines of which one takes files away that the other has not read."""
        sources = [pipeline.origin.source for pipeline in self.pipelines if pipeline.origin is not None]
        folders = [source for source in sources if isinstance(source, DirectorySourceConfig)]
        for number, source in enumerate(folders):
            for other in folders[:number]:
                if source.path == other.path and {source.after, other.after} != {"keep"}:
                    raise ConfigError(
                        f"pipelines: two take files from {source.path}",
                        "give each a folder of its own, or set after: keep for both",
                    )

    @property
    def client_id(self) -> str:
        """MQTT client id: one agent per device and site. No id has an underscore, so no two agents share one."""
        return f"distree_{self.site}_{self.device}"


def load_agent_config(path: Path) -> AgentConfig:
    """Load agent.yaml; ConfigError, with a line for each mistake. All paths in it are relative to its folder."""
    config, folder = strict_yaml.load(path, AgentConfig), path.absolute().parent
    pipelines = tuple(
        replace(
            one,
            bundle=bundle_of(folder, one.bundle, config.bundles_dir),
            origin=None if one.origin is None else replace(one.origin, source=one.origin.source.in_folder(folder)),
        )
        for one in config.pipelines
    )
    return replace(config, pipelines=pipelines)
