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
            raise ConfigError(f"{name}: must be above 0")


@record
class ReplaySource:
    """Inputs from an .npz file with an array `input` (n, …) of the manifest's dtype and shape.

    With an array `name` (n,) too, that is what stands in results; otherwise the input's index does.
    """

    kind: Literal["replay"]
    """Inputs from an .npz file."""
    path: Path
    """The .npz file."""
    rate_hz: float | None = None
    """Inputs a second; as fast as they are answered if left out."""
    limit: int | None = None
    """Only so many inputs; all if left out."""
    repeat: bool = False
    """Begin anew at the end."""

    def __post_init__(self) -> None:
        if self.rate_hz is not None:
            _positive(rate_hz=self.rate_hz)
        if self.limit is not None:
            _positive(limit=self.limit)


@record
class DirectorySource:
    """Files that appear in a folder: images, WAV and CSV files, .npy arrays, raw values. An answered file leaves it."""

    kind: Literal["directory"]
    """Inputs from files that appear in a folder."""
    path: Path
    """The folder; it is made if it is not there. Files have at most 16 MiB, images 16 million pixels."""
    after: Literal["move", "delete"] = "move"
    """What becomes of a file that is answered: moved to `done` in the folder, or deleted."""
    poll_ms: float = 200
    """How often the folder is looked at."""

    def __post_init__(self) -> None:
        _positive(poll_ms=self.poll_ms)


@record
class MqttSource:
    """Inputs on `pipeline/{pipeline}/input/{device}`: what a file would hold, as it is or with a name."""

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
    """Small pictures of inputs for dashboards, of at most `side` pixels each way and `rate_hz` a second.

    An input that comes sooner after the last picture has none.
    """

    side: int = 48
    """Pixels of the longer side; 8 to 128."""
    rate_hz: float = 5
    """Most pictures a second."""

    def __post_init__(self) -> None:
        _positive(rate_hz=self.rate_hz)
        if not 8 <= self.side <= 128:
            raise ConfigError(f"side: must be 8 to 128 pixels, received {self.side}")


@record
class OriginConfig:
    """Inputs that this board answers for."""

    source: Source
    """Where inputs come from."""
    deadline_ms: float = 1000
    """Each accepted input is answered within this time; at most an hour."""
    pending: int = 64
    """Most inputs on their way at a time; no more are accepted before one is answered."""
    silence_ms: float = 100
    """Least silence of a hop after which features are sent once more."""
    spool: bool = False
    """Keep accepted inputs in `state_dir` over a crash, at the price of writes."""
    fuser: str | None = None
    """Wide stages: the board that fuses the embeddings of this board's inputs; this board if left out."""
    mode: Literal["gated", "eager"] = "gated"
    """Wide stages: whether branches wait to be told to go on (gated), or go on until told to stop (eager)."""
    thumbnails: ThumbnailConfig | None = None
    """Given where small pictures of inputs are to be published for dashboards."""

    def __post_init__(self) -> None:
        if self.fuser is not None:
            check_device(self.fuser, "fuser")
        _positive(deadline_ms=self.deadline_ms, pending=self.pending, silence_ms=self.silence_ms)
        if self.deadline_ms > 3_600_000:
            raise ConfigError("deadline_ms: must be at most 3600000, an hour")


@record
class PipelineConfig:
    """A pipeline in which this board takes part."""

    name: str
    """The pipeline's id, the same on all its boards."""
    bundle: str
    """A name in the model zoo, or a folder with a bundle.yaml."""
    stages: tuple[int, ...] = ()
    """What this board computes; others compute the rest."""
    branch: int | None = None
    """Wide stages: the branch that this board runs at each wide one among `stages`."""
    fuse: bool = False
    """Wide stages: fuse for origins that name this board; an origin can always fuse for itself."""
    branch_timeout_ms: float = 200
    """Wide stages: a branch that is heard so much later than the first one is left out."""
    origin: OriginConfig | None = None
    """Given where this board has inputs of its own."""

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
    """Most messages that wait."""
    kb: int = 4096
    """Most bytes that wait, in kibibytes."""

    def __post_init__(self) -> None:
        _positive(items=self.items, kb=self.kb)


@record
class AgentConfig:
    """One board's configuration."""

    site: str
    """The site's id: boards, orchestrator and dashboards of one site find each other by it."""
    device: str
    """This board's id, the same on no two boards of a site."""
    pipelines: tuple[PipelineConfig, ...]
    """What this board does; at least one."""
    broker: BrokerSettings = field(default_factory=BrokerSettings)
    """Where the broker is and how to log in."""
    state_dir: Path = Path("state")
    """Folder of the spool; may be a tmpfs where nothing is spooled. The default is in the working directory."""
    num_threads: int = 1
    """Threads of the interpreter."""
    codec: Codec = "raw"
    """How features travel: as they are, or compressed where the radio is the bottleneck."""
    inbox: InboxConfig = field(default_factory=InboxConfig)
    """What may wait on this board, per pipeline."""
    receive_maximum: int = 16
    """Most messages that the broker hands over before the first is acknowledged; at most 65535."""
    telemetry_s: float = 2.0
    """How often counters are published."""
    hang_s: float = 30.0
    """Inference that takes longer has hung: systemd's watchdog is no longer fed; after twice as long the agent ends."""
    drain_s: float = 10.0
    """How long an agent that is told to stop goes on with what it has accepted."""
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
            raise ConfigError("receive_maximum: must be at most 65535")
        names = [pipeline.name for pipeline in self.pipelines]
        if not names or len(set(names)) != len(names):
            raise ConfigError("pipelines: at least one is needed, each with its own name")

    @property
    def client_id(self) -> str:
        """MQTT client id: one agent per device and site. No id has an underscore, so no two agents share one."""
        return f"distree_{self.site}_{self.device}"


def load_agent_config(path: Path) -> AgentConfig:
    """Load agent.yaml; ConfigError with one line per mistake. Paths are relative to the file's folder."""
    return strict_yaml.load(path, AgentConfig)
