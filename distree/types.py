"""Messages, plan, effects and events: the words that all parts of DistrEE share.

Everything here is frozen and keyword-only. Durations are seconds in `*_s`, never points in time, because the
clocks of two boards are never compared. `request` ids are unique for the life of a pipeline.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Literal, TypeAlias

from distree.record import record

Reason = Literal["confident", "last", "deadline", "fallback", "shed"]
"""Why an input was answered where it was: see docs/architecture.md."""

DType = Literal["int8", "uint8", "float16", "float32"]
Codec = Literal["raw", "zlib"]

PolicyMemory: TypeAlias = "tuple[float, ...]"
"""What a criterion carries from one exit to the next, in the message; () where it needs nothing."""


@record
class Tensor:
    """A tensor as it travels: `payload` is C-ordered bytes of `dtype` and `shape` after `codec`."""

    dtype: DType
    shape: tuple[int, ...]
    codec: Codec
    payload: bytes | memoryview


@record
class Hop:
    """What one board spent on one request: seconds waiting in its inbox and seconds computing."""

    device: str
    stage: int
    queue_s: float
    compute_s: float


@record
class Guess:
    """The best answer so far: the prediction of the deepest exit computed."""

    exit: int
    class_id: int
    confidence: float


@record
class Reading:
    """What one exit said of an audited input: the criterion's score (0 at the last exit) and the class."""

    score: float
    class_id: int


Trace: TypeAlias = "tuple[Reading, ...] | None"
"""What the exits passed so far said, where that is recorded: of inputs drawn for an audit; else None."""


@record
class StageMessage:
    """An input (stage 0) or features (stage > 0), on their way to a stage.

    `budget_s` is the whole time the origin grants, `spent_s` what boards have used of it so far (network time is
    not in it: no board can measure it alone). `epoch` names the thresholds by which every exit of this request
    is decided. `fuser` is the device that fuses the embeddings of wide stages, None where a pipeline has none;
    `eager` tells their branches to go on until they are stopped instead of waiting to be told to go on. An `audit` is
    no input that waits for an answer: it takes no exit, and gives way to those that do.
    """

    request: str
    origin: str
    stage: int
    attempt: int
    revision: str
    epoch: int
    budget_s: float
    spent_s: float
    guess: Guess | None
    memory: PolicyMemory
    hops: tuple[Hop, ...]
    tensor: Tensor
    fuser: str | None = None
    eager: bool = False
    trace: Trace = None
    audit: bool = False


@record
class Embedding:
    """What one branch of a wide stage has to say at its exit, on its way to the board that fuses.

    `device` is the sender, to which the decision goes; `fuser` is the board that fuses. `guess`, `memory` and `trace`
    are those that the stage's input came with; `hops` are those of the input and the sender's own. At the second and
    later wide stages in a row, guess and trace are None and memory empty, for the fusing board knows them, and `hops`
    holds the one of this stage.
    """

    request: str
    origin: str
    fuser: str
    device: str
    stage: int
    branch: int
    attempt: int
    revision: str
    epoch: int
    eager: bool
    budget_s: float
    spent_s: float
    guess: Guess | None
    memory: PolicyMemory
    hops: tuple[Hop, ...]
    tensor: Tensor
    trace: Trace = None
    audit: bool = False


@record
class Decision:
    """What the fusing board decided at the exit of a wide stage, to a board of a branch: go on, or stop."""

    request: str
    attempt: int
    revision: str
    stage: int
    go: bool


@record
class InputMessage:
    """An input with a name, for an origin's input topic; raw bytes without this envelope are accepted there too.

    `request` is chosen by the sender: sending it again is harmless. `payload` is what the manifest's input spec
    takes, or an encoded image.
    """

    request: str
    name: str
    payload: bytes


@record
class Outcome:
    """The answer that a later stage sends to the origin, which alone publishes results.

    `missing` are the branches that were not heard at the exit taken; () in a chain. `trace` is given where it is known
    of all exits.
    """

    request: str
    origin: str
    attempt: int
    revision: str
    epoch: int
    guess: Guess | None
    reason: Reason
    spent_s: float
    hops: tuple[Hop, ...]
    missing: tuple[int, ...] = ()
    trace: Trace = None


@record
class AuditRow:
    """What all exits said of one input that its origin drew by lot, for the orchestrator.

    An origin numbers its rows from 1 in each run of its agent, `boot`, so that what is lost on the way is noticed.
    `scores` has one per exit but the last, by `criterion`, `predictions` a class per exit; both are () where the audit
    was lost. `missing` are the branches that no exit has heard; `hops` say where the time went.
    """

    request: str
    origin: str
    boot: str
    sequence: int
    revision: str
    epoch: int
    criterion: str
    scores: tuple[float, ...]
    predictions: tuple[int, ...]
    missing: tuple[int, ...] = ()
    hops: tuple[Hop, ...] = ()

    @property
    def lost(self) -> bool:
        """Whether the exits could not be asked."""
        return not self.predictions


@record
class Result:
    """What users see, as JSON: schema `distree.result/1`.

    Exactly one result of a request has `final` true. `class_id`, `label` and `exit` are None when nothing could
    be computed in time. `missing` are the branches of a wide stage that were not heard at the exit taken.
    """

    request: str
    site: str
    pipeline: str
    origin: str
    input: str
    label: str | None
    class_id: int | None
    confidence: float
    exit: int | None
    reason: Reason
    final: bool
    late: bool
    attempt: int
    latency_s: float
    epoch: int
    model: str
    revision: str
    hops: tuple[Hop, ...]
    missing: tuple[int, ...] = ()


@record
class MaskedThresholds:
    """Thresholds for the exits of wide stages while the branches in `missing` (ascending) are not heard."""

    missing: tuple[int, ...]
    thresholds: tuple[float, ...]


@record
class Plan:
    """What the orchestrator wants of a pipeline. One threshold per exit but the last; retained; epochs only grow.

    `masked` has thresholds for sets of missing branches; with a set that is not in it, only the last exit is taken.
    `audit_rate` is the share of inputs that origins draw for audits, 0 to 1. `rest_s` is, per exit but the last, what a
    request takes at least from there to the next exit, as boards reported it, network not counted; () if unknown.
    """

    pipeline: str
    epoch: int
    model: str
    revision: str
    criterion: str
    thresholds: tuple[float, ...]
    masked: tuple[MaskedThresholds, ...] = ()
    audit_rate: float = 0.0
    rest_s: tuple[float, ...] = ()


@record
class Claim:
    """That the orchestrator `orchestrator` plans a site (`running`), or does so no longer; retained, also its will."""

    orchestrator: str
    running: bool


@record
class Truth:
    """What an input really was, told by a user some time after the answer: `label` is one of the bundle's labels."""

    request: str
    label: str


@record
class Thumbnail:
    """A small picture of the input `request`, as a PNG file, for dashboards; never retained, lost without harm."""

    request: str
    png: bytes


class DeviceStatus(str, enum.Enum):
    """Life of a device agent, as published on its retained state topic."""

    INIT = "init"
    READY = "ready"
    DRAINING = "draining"
    DISCONNECTED = "disconnected"
    LOST = "lost"


@record
class DeviceState:
    """The retained state of a device. `boot` tells one run of the agent from the next."""

    device: str
    boot: str
    status: DeviceStatus


@record
class HeldStage:
    """A stage that a device serves, or its branch of a wide stage: of which pipeline, model and revision."""

    pipeline: str
    stage: int
    model: str
    revision: str
    branch: int | None = None


@record
class DeviceMeta:
    """The retained description of a device: versions, memory and what it serves.

    `fusers` are the pipelines for whose wide stages it fuses embeddings.
    """

    device: str
    boot: str
    version: str
    python: str
    runtime: str
    machine: str
    memory_mb: int
    stages: tuple[HeldStage, ...]
    origins: tuple[str, ...]
    fusers: tuple[str, ...] = ()


@record
class StageTelemetry:
    """Counters of one stage on one device since boot; times are means over the last report's period.

    `wasted` counts runs of a branch at a depth that the answer did not need, `audited` runs for audits and probes, in
    none of the other counters and means.
    """

    stage: int
    received: int
    exited: int
    forwarded: int
    shed: int
    expired: int
    failed: int
    duplicate: int
    waiting: int
    bytes_out: int
    queue_s: float
    compute_s: float
    wasted: int = 0
    audited: int = 0


@record
class FusionTelemetry:
    """Counters of the exit of one wide stage on the device that fuses it, since boot.

    `missing` counts, per branch, the decisions made without it; `late` the embeddings that came after their
    decision; `expired` the requests that were given up while waiting for this exit's embeddings. `audited` counts
    what was fused for audits, which are in no other counter.
    """

    stage: int
    fused: int
    exited: int
    forwarded: int
    failed: int
    expired: int
    late: int
    missing: tuple[int, ...]
    audited: int = 0


@record
class OriginTelemetry:
    """Counters of one origin since boot. `exits` and `reasons` count answered inputs; latency is of the last period.

    What was offered is `accepted`, each of which is `answered` once, + `shed`, which found no room and whose results
    say so, + `dropped`, which found no room and of which the broker could not be told either.
    `audits_drawn` counts the inputs drawn by lot; of each there is a row by now, or there will be one. `unspooled` is
    how many inputs under way a crash would lose, because the spool's disk fails; 0 where there is no spool.
    """

    accepted: int
    answered: int
    resent: int
    late: int
    pending: int
    exits: tuple[int, ...]
    reasons: dict[str, int]
    latency_p50_s: float
    latency_p95_s: float
    latency_max_s: float
    audits_drawn: int = 0
    audits_lost: int = 0
    shed: int = 0
    dropped: int = 0
    unspooled: int = 0


@record
class PipelineTelemetry:
    """One pipeline on one device: the epoch in force and what its stages, its fusion and its origin did."""

    pipeline: str
    epoch: int
    revision: str
    stages: tuple[StageTelemetry, ...]
    origin: OriginTelemetry | None
    fusions: tuple[FusionTelemetry, ...] = ()


@record
class Telemetry:
    """A periodic report at QoS 0. Counters are cumulative since boot, so a lost report costs nothing."""

    device: str
    boot: str
    sequence: int
    uptime_s: float
    rss_bytes: int
    dead_letters: int
    offline_dropped: int
    pipelines: tuple[PipelineTelemetry, ...]


@record
class OriginStats:
    """How an origin did between its last two reports, for dashboards; published by the orchestrator.

    `answered` counts since boot. `rate_hz` is answers a second, `early_share` the share of them that left before the
    last exit; it and the latencies are None where there were no answers.
    """

    pipeline: str
    origin: str
    epoch: int
    answered: int
    pending: int
    rate_hz: float
    early_share: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None


@record
class DeadLetter:
    """A message that broke the protocol: what, where it came in, and its first bytes in hexadecimal."""

    device: str
    topic: str
    reason: str
    detail: str
    payload_bytes: int
    head_hex: str


class Lane(enum.IntEnum):
    """How a message waits for the connection, by what is owed, in the order in which lanes are served.

    A lane that is full gives up its own oldest messages, which are counted.
    """

    OWED = enum.auto()
    """Never given up: who sends it has bounded it. Results of inputs in custody."""
    LATEST = enum.auto()
    """The newest of each topic, never given up. What is retained."""
    WORK = enum.auto()
    """Bounded in number and bytes, and it expires. Features, embeddings, decisions, outcomes."""
    SHED = enum.auto()
    """Bounded. Results of inputs that found no room."""
    AUDIT = enum.auto()
    """Bounded. Rows of audits, which are numbered, so that gaps are noticed."""
    LOSSY = enum.auto()
    """Bounded, and few. Dead letters; and what goes out at QoS 0, which is dropped rather than kept waiting."""


class Session(enum.Enum):
    """How long a broker keeps what waits for a client that is away."""

    NONE = "none"
    """Not at all: each connection begins afresh."""
    PROCESS = "process"
    """While this process lives, and for a short time: a process begins afresh."""
    DURABLE = "durable"
    """Over restarts, for `BrokerSettings.session_expiry_s`."""


@record
class TlsSettings:
    """How the connection to the broker is encrypted; certificate and host name are always verified."""

    ca_file: Path | None = None
    """Certificates (PEM) of those who may vouch for the broker; if left out, those that the system trusts."""
    cert_file: Path | None = None
    """This client's certificate (PEM), for a broker that asks for one."""
    key_file: Path | None = None
    """The certificate's key (PEM, no passphrase)."""

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file: a client certificate needs both, cert_file and key_file")


@record
class BrokerSettings:
    """Where the broker is and how to log in; a password never stands in YAML."""

    host: str = "127.0.0.1"
    """Name or address of the broker."""
    port: int = 1883
    """Its port for MQTT over TCP."""
    username: str | None = None
    """User name at the broker; without one the client is anonymous."""
    password_file: Path | None = None
    """File whose first line is the password."""
    tls: TlsSettings | None = None
    """Given, be it empty, the connection is encrypted; brokers usually take that on port 8883."""
    keepalive_s: int = 15
    """After so long without traffic the client pings; the broker gives it up after half as long again."""
    mqtt_version: Literal["auto", 5, "3.1.1"] = "auto"
    """Version of MQTT to speak; `auto` takes 5, or 3.1.1 where the broker knows no other."""
    session_expiry_s: int = 3600
    """How long the broker keeps inputs for an origin of source mqtt that is away."""
    connect_timeout_s: float = 5.0
    """Longest wait for one attempt to connect."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ValueError("port: must be 1 to 65535")
        if not 0 < self.keepalive_s < 65536:
            raise ValueError("keepalive_s: must be 1 to 65535")
        if not 0 <= self.session_expiry_s < 1 << 32:
            raise ValueError("session_expiry_s: must be 0 to 4294967295")
        if not 0 < self.connect_timeout_s <= 600:
            raise ValueError("connect_timeout_s: must be above 0, at most 600")


# Effects: what StageNode asks its driver to do, in order.


@record
class Publish:
    """Send a message; the driver builds the topic from the message's kind, pipeline and address."""

    message: StageMessage | Embedding | Outcome | Result | AuditRow
    token: str | None = None
    """Where set, the driver calls StageNode.published(token) once the broker has acknowledged it."""
    turned_away: bool = False
    """The result of an input that found no room; the driver calls StageNode.turned_away with what became of it."""


@record
class Run:
    """Run the segment of `stage` on `tensor`; answer with StageNode.completed or failed, quoting `key`."""

    key: int
    stage: int
    tensor: Tensor


@record
class Fuse:
    """Run the fusion head of `stage` on one embedding per branch, None where it is missing; answer as to Run."""

    key: int
    stage: int
    embeddings: tuple[Tensor | None, ...]


@record
class Tell:
    """Send `decision` to a board of a branch."""

    device: str
    decision: Decision


@record
class Acknowledge:
    """The delivery's effects are handed over: the broker may forget it. `delivery` is the driver's own token."""

    delivery: object


@record
class Drop:
    """A request ends on this board without an answer from it; counted, for logs."""

    request: str
    reason: str


Effect: TypeAlias = "Publish | Tell | Run | Fuse | Acknowledge | Drop"
