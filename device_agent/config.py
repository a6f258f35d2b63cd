"""agent.yaml as frozen dataclasses; see examples/agent.yaml for a commented one."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from distree import config
from distree.errors import ConfigError
from distree.record import record
from distree.topics import check_id
from distree.types import BrokerSettings, Codec


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name}: must be above 0")


@record
class ReplaySource:
    """Inputs from an .npz file with an array `input` (n, …) of the manifest's dtype and shape.

    With an array `name` (n,) too, that is what stands in results; otherwise the input's index does.
    """

    kind: Literal["replay"]
    path: Path
    rate_hz: float | None = None
    limit: int | None = None
    repeat: bool = False

    def __post_init__(self) -> None:
        if self.rate_hz is not None:
            _positive(rate_hz=self.rate_hz)
        if self.limit is not None:
            _positive(limit=self.limit)


@record
class DirectorySource:
    """Files that appear in a folder: .npy arrays or encoded images. A file leaves the folder once it is answered."""

    kind: Literal["directory"]
    path: Path
    after: Literal["move", "delete"] = "move"
    poll_ms: float = 200

    def __post_init__(self) -> None:
        _positive(poll_ms=self.poll_ms)


@record
class MqttSource:
    """Inputs on `pipeline/{pipeline}/input/{device}`: raw bytes, encoded images, or either with a name."""

    kind: Literal["mqtt"]


@record
class PythonSource:
    """Inputs from the program that runs the agent, through `device_agent.Origin`."""

    kind: Literal["python"]


Source = ReplaySource | DirectorySource | MqttSource | PythonSource


@record
class OriginConfig:
    """Inputs that this board answers for.

    `pending` bounds how many are on their way at a time; `silence_ms` is the least silence of a hop after which
    features are sent once more; `spool` keeps accepted inputs in `state_dir` over a crash.

    Of wide stages: `fuser` is the device that fuses the embeddings of this board's inputs, this board itself if None;
    with `mode` gated their branches wait to be told to go on, eager ones go on until they are told to stop.
    """

    source: Source
    deadline_ms: float = 1000
    pending: int = 64
    silence_ms: float = 100
    spool: bool = False
    fuser: str | None = None
    mode: Literal["gated", "eager"] = "gated"

    def __post_init__(self) -> None:
        if self.fuser is not None:
            check_id(self.fuser, "fuser")
        _positive(deadline_ms=self.deadline_ms, pending=self.pending, silence_ms=self.silence_ms)
        if self.deadline_ms > 3_600_000:
            raise ConfigError("deadline_ms: must be at most 3600000, an hour")


@record
class PipelineConfig:
    """A pipeline in which this board takes part. `bundle` is a name in the model zoo or a folder.

    Of wide stages: `branch` is the one that this board runs at each wide stage among `stages`; with `fuse` it fuses
    for origins that name it, as every origin can for itself; a branch that is not heard `branch_timeout_ms` after the
    first one is left out.
    """

    name: str
    bundle: str
    stages: tuple[int, ...] = ()
    branch: int | None = None
    fuse: bool = False
    branch_timeout_ms: float = 200
    origin: OriginConfig | None = None

    def __post_init__(self) -> None:
        check_id(self.name, "name")
        if not self.stages and self.origin is None and not self.fuse:
            raise ConfigError("stages: nothing to do; give stages, an origin, or fuse: true")
        if len(set(self.stages)) != len(self.stages) or min(self.stages, default=0) < 0:
            raise ConfigError("stages: must be different numbers from 0")
        if self.branch is not None and self.branch < 0:
            raise ConfigError(f"branch: must be a number from 0, received {self.branch}")
        if self.branch is not None and not self.stages:
            raise ConfigError("branch: needs stages too: the wide ones of which this board runs the branch")
        _positive(branch_timeout_ms=self.branch_timeout_ms)


@record
class InboxConfig:
    """Bounds of what waits on this board, per pipeline; beyond them the oldest is shed."""

    items: int = 64
    kb: int = 4096

    def __post_init__(self) -> None:
        _positive(items=self.items, kb=self.kb)


@record
class AgentConfig:
    """One board's configuration."""

    site: str
    device: str
    pipelines: tuple[PipelineConfig, ...]
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    state_dir: Path = Path("state")
    num_threads: int = 1
    codec: Codec = "raw"
    inbox: InboxConfig = field(default_factory=InboxConfig)
    receive_maximum: int = 16
    telemetry_s: float = 2.0
    hang_s: float = 30.0
    drain_s: float = 10.0
    self_test: bool = True

    def __post_init__(self) -> None:
        check_id(self.site, "site")
        check_id(self.device, "device")
        _positive(
            num_threads=self.num_threads,
            receive_maximum=self.receive_maximum,
            telemetry_s=self.telemetry_s,
            hang_s=self.hang_s,
            drain_s=self.drain_s,
        )
        if self.receive_maximum > 65535:
            raise ConfigError("receive_maximum: must be at most 65535")
        names = [pipeline.name for pipeline in self.pipelines]
        if not names or len(set(names)) != len(names):
            raise ConfigError("pipelines: at least one is needed, each with its own name")

    @property
    def client_id(self) -> str:
        """MQTT client id: one agent per device and site."""
        return f"distree-{self.site}-{self.device}"


def load_agent_config(path: Path) -> AgentConfig:
    """Load agent.yaml; ConfigError with one line per mistake. Paths are relative to the file's folder."""
    return config.load(path, AgentConfig)
