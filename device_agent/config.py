"""agent.yaml as frozen dataclasses; see examples/agent.yaml for a commented one."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from distree import strict_yaml
from distree.broker_settings import BrokerSettings
from distree.errors import ConfigError
from distree.messages.request import Codec
from distree.record import record
from distree.topics import check_device, check_id


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name}: {value:g} is out of range", "choose a finite value above 0")


@record
class ReplaySource:
    """Inputs from an .npz file with an array `input` (n, …) of the manifest's dtype and shape.

    With an array `name` (n,) too, results carry that name; otherwise they carry the input's index.
    """

    kind: Literal["replay"]
    """Inputs from an .npz file."""
    path: Path
    """The .npz file."""
    rate_hz: float | None = None
    """Inputs per second; if left out, as fast as they are answered."""
    limit: int | None = None
    """Stop after this many inputs; if left out, after all."""
    repeat: bool = False
    """Start over at the end of the file."""

    def __post_init__(self) -> None:
        if self.rate_hz is not None:
            _positive(rate_hz=self.rate_hz)
        if self.limit is not None:
            _positive(limit=self.limit)


@record
class DirectorySource:
    """Files that appear in a folder: .npy arrays or encoded images. A file leaves the folder once it is answered."""

    kind: Literal["directory"]
    """Inputs from files that appear in a folder."""
    path: Path
    """The folder; it is created if it does not exist. Files may have 16 MiB, images 16 million pixels."""
    after: Literal["move", "delete"] = "move"
    """What happens to a file once it is answered: it is moved to `done` in the folder, or deleted."""
    poll_ms: float = 200
    """How often to look into the folder."""

    def __post_init__(self) -> None:
        _positive(poll_ms=self.poll_ms)


@record
class MqttSource:
    """Inputs on `pipeline/{pipeline}/input/{device}`: raw bytes, encoded images, or either with a name."""

    kind: Literal["mqtt"]
    """Inputs on the MQTT topic `input/{device}`."""


@record
class PythonSource:
    """Inputs from the program that runs the agent, through `device_agent.Origin`."""

    kind: Literal["python"]
    """Inputs from your own program."""


Source = ReplaySource | DirectorySource | MqttSource | PythonSource


@record
class ThumbnailConfig:
    """Small pictures of inputs for dashboards, of at most `side` pixels each way and `rate_hz` per second.

    An input that arrives too soon after the last picture gets none.
    """

    side: int = 48
    """Pixels of the longer side; 8 to 128."""
    rate_hz: float = 5
    """Most pictures per second."""

    def __post_init__(self) -> None:
        _positive(rate_hz=self.rate_hz)
        if not 8 <= self.side <= 128:
            raise ConfigError(f"side: {self.side} pixels are out of range", "choose 8 to 128")


@record
class OriginConfig:
    """Inputs that this board answers for."""

    source: Source
    """Where inputs come from."""
    deadline_ms: float = 1000
    """Each accepted input is answered within this time; at most an hour."""
    pending: int = 64
    """Most inputs under way at a time; no more are accepted before one is answered."""
    silence_ms: float = 100
    """Least silence of a hop after which features are sent again."""
    spool: bool = False
    """Keep accepted inputs in `state_dir` so that they survive a crash, at the price of disk writes."""
    fuser: str | None = None
    """Wide stages: the board that fuses the embeddings of this board's inputs; if left out, this board."""
    mode: Literal["gated", "eager"] = "gated"
    """Wide stages: whether branches wait to be told to go on (gated), or go on until told to stop (eager)."""
    thumbnails: ThumbnailConfig | None = None
    """If given, small pictures of inputs are published for dashboards."""

    def __post_init__(self) -> None:
        if self.fuser is not None:
            check_device(self.fuser, "fuser")
        _positive(deadline_ms=self.deadline_ms, pending=self.pending, silence_ms=self.silence_ms)
        if self.deadline_ms > 3_600_000:
            raise ConfigError(f"deadline_ms: {self.deadline_ms:g} is out of range", "choose at most 3600000, an hour")


@record
class PipelineConfig:
    """A pipeline in which this board takes part."""

    name: str
    """The pipeline's id, the same on all its boards."""
    bundle: str
    """A name in the model zoo, or a folder with a bundle.yaml."""
    stages: tuple[int, ...] = ()
    """Stages that this board computes; others compute the rest."""
    branch: int | None = None
    """Wide stages: the branch that this board runs at each wide one among `stages`."""
    fuse: bool = False
    """Wide stages: fuse for origins that name this board; an origin can always fuse for itself."""
    branch_timeout_ms: float = 200
    """Wide stages: a branch that is heard later than this after the first one is left out."""
    origin: OriginConfig | None = None
    """If given, this board has inputs of its own."""

    def __post_init__(self) -> None:
        check_id(self.name, "name")
        if not self.stages and self.origin is None and not self.fuse:
            raise ConfigError("stages: this board has nothing to do", "give stages, an origin, or fuse: true")
        if len(set(self.stages)) != len(self.stages):
            raise ConfigError(f"stages: {list(self.stages)} has a stage twice", "name each once")
        if min(self.stages, default=0) < 0:
            raise ConfigError(f"stages: {min(self.stages)} is negative", "count stages from 0")
        if self.branch is not None and self.branch < 0:
            raise ConfigError(f"branch: {self.branch} is negative", "count branches from 0")
        if self.branch is not None and not self.stages:
            raise ConfigError("branch: there are no stages", "give the wide stages whose branch this board runs")
        _positive(branch_timeout_ms=self.branch_timeout_ms)


@record
class InboxConfig:
    """Bounds of what may wait on this board, per pipeline; beyond them the oldest is shed."""

    items: int = 64
    """Most messages that may wait."""
    kb: int = 4096
    """Most bytes that may wait, in kibibytes."""

    def __post_init__(self) -> None:
        _positive(items=self.items, kb=self.kb)


@record
class AgentConfig:
    """One board's configuration."""

    site: str
    """The site's id, by which boards, orchestrator and dashboards of a site find each other."""
    device: str
    """This board's id, unique within the site."""
    pipelines: tuple[PipelineConfig, ...]
    """What this board does; at least one."""
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    """Where the broker is and how to log in."""
    state_dir: Path = Path("state")
    """Folder of the spool; may be a tmpfs if nothing is spooled. The default is below the working directory."""
    num_threads: int = 1
    """Threads of the interpreter."""
    codec: Codec = "raw"
    """How features travel: as they are, or compressed, where the radio is the bottleneck."""
    inbox: InboxConfig = field(default_factory=InboxConfig)
    """What may wait on this board, per pipeline."""
    receive_maximum: int = 16
    """Most messages that the broker delivers before the first is acknowledged; at most 65535."""
    telemetry_s: float = 2.0
    """How often counters are published."""
    hang_s: float = 30.0
    """Inference that takes longer counts as hung: systemd's watchdog is no longer fed; after twice the time the agent
    exits."""
    drain_s: float = 10.0
    """How long an agent that is told to stop keeps working on what it has accepted."""
    self_test: bool = True
    """Compare the interpreter's answers with the bundle's golden vectors at start."""

    def __post_init__(self) -> None:
        check_id(self.site, "site")
        check_device(self.device, "device")
        _positive(
            num_threads=self.num_threads,
            receive_maximum=self.receive_maximum,
            telemetry_s=self.telemetry_s,
            hang_s=self.hang_s,
            drain_s=self.drain_s,
        )
        if self.receive_maximum > 65535:
            raise ConfigError(f"receive_maximum: {self.receive_maximum} is out of range", "choose at most 65535")
        names = [pipeline.name for pipeline in self.pipelines]
        if not names:
            raise ConfigError("pipelines: there is none", "give at least one")
        if len(set(names)) != len(names):
            raise ConfigError("pipelines: two have the same name", "give each a name of its own")

    @property
    def client_id(self) -> str:
        """MQTT client id: one agent per device and site. No id has an underscore, so no two agents share one."""
        return f"distree_{self.site}_{self.device}"


def load_agent_config(path: Path) -> AgentConfig:
    """Load agent.yaml; ConfigError, with a line for each mistake. Paths are relative to the file's folder."""
    return strict_yaml.load(path, AgentConfig)
