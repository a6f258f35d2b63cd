"""fleet.yaml as frozen dataclasses: the boards of a pipeline, their traffic, and what happens to them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from distree.errors import ConfigError
from distree.strict_yaml import Share
from distree.topics import check_id
from orchestrator.config import GoalConfig
from orchestrator.fleet import MAX_DEVICES

MOST_BOARDS = MAX_DEVICES
"""Most boards of a fleet: as many as one orchestrator keeps books on."""

NONE, ALL, SPREAD, JITTER = Share(0.0), Share(1.0), Share(0.1), Share(0.05)

MOST_EXITS = 16
MOST_NAME = 24
"""Longest name of boards: each one's own id is the name and a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticConfig:
    """A network and its inputs, made up: see `orchestrator.simulator.traffic.synthetic`."""

    classes: int = 10
    """Number of classes, 2 to 1000."""
    macs: tuple[float, ...] = (4e6, 10e6, 22e6)
    """Multiply-accumulates of an input that leaves at each exit, growing."""
    ability: tuple[float, ...] = (0.8, 0.95, 1.1)
    """How difficult an input (0 to 1, evenly) each exit is just able to tell, growing."""
    sharpness: float = 12.0
    """How suddenly an exit fails beyond its ability."""
    inputs: int = 20_000
    """How many inputs are made up; traffic draws from them."""

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 1000:
            raise ConfigError(f"classes: {self.classes} is out of range", "choose 2 to 1000")
        if not 2 <= len(self.macs) <= MOST_EXITS:
            raise ConfigError(f"macs: {len(self.macs)} given", f"give one number per exit, 2 to {MOST_EXITS} of them")
        _growing("macs", self.macs)
        if len(self.ability) != len(self.macs):
            raise ConfigError(f"ability: {len(self.ability)} given", f"give {len(self.macs)}, one per exit")
        _growing("ability", self.ability)
        _positive(sharpness=self.sharpness)
        if not 1 <= self.inputs <= 1_000_000:
            raise ConfigError(f"inputs: {self.inputs} is out of range", "choose 1 to 1000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstsConfig:
    """Times of more inputs."""

    every_s: float
    """From the start of one burst to the next."""
    for_s: float
    """Length of a burst."""
    times: float
    """How many times as many inputs there are in a burst."""

    def __post_init__(self) -> None:
        _positive(every_s=self.every_s, for_s=self.for_s, times=self.times)
        if self.for_s >= self.every_s:
            what = f"for_s: {self.for_s:g} is not below every_s ({self.every_s:g})"
            raise ConfigError(what, "shorten the bursts, or make them rarer")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficConfig:
    """Inputs: how many come, at random moments (a Poisson process), and what they are."""

    rate_hz: float
    """Inputs a second at each origin, at random moments."""
    bursts: BurstsConfig | None = None
    """Times of more inputs."""
    recorded: Path | None = None
    """What `distree zoo evaluate --audits` has written; without it inputs are synthetic."""
    synthetic: SyntheticConfig | None = None
    """The made-up inputs."""
    order: Literal["random", "recorded"] = "random"
    """Inputs drawn at random, or in the order of the recording."""
    tensor_bytes: tuple[int, ...] = ()
    """Bytes of what each stage takes, from the input on; needed where a link has `kbit_per_s`."""

    def __post_init__(self) -> None:
        _positive(rate_hz=self.rate_hz)
        if self.recorded is not None and self.synthetic is not None:
            raise ConfigError("synthetic: inputs are recorded", "give the one or the other")
        if min(self.tensor_bytes, default=0) < 0:
            raise ConfigError(f"tensor_bytes: {min(self.tensor_bytes)} is negative", "give 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksConfig:
    """The way between a board and the broker, each way alike.

    A lost message holds back all that was sent after it: MQTT runs over TCP.
    """

    latency_ms: float = 1.0
    """Time of a message each way."""
    jitter_ms: float = 0.5
    """Mean of what comes on top of it, exponentially distributed."""
    kbit_per_s: float | None = None
    """Rate at which bytes go one message after the other; unbounded if left out."""
    loss: Share = NONE
    """Share of messages that are lost and come later, at most 90%."""
    retry_ms: float = 200.0
    """How much later; twice as much each further time."""

    def __post_init__(self) -> None:
        for key in ("latency_ms", "jitter_ms"):
            _not_negative(key, getattr(self, key))
        if self.loss > 0.9:
            raise ConfigError(f"loss: {self.loss * 100:g}% is out of range", "choose at most 90%")
        _positive(kbit_per_s=self.kbit_per_s, retry_ms=self.retry_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """What the broker does, by default as mosquitto with the sessions that agents ask for."""

    tells_unread: bool = True
    """Whether it tells a board that nobody reads what it has published; some brokers do not."""
    session_expiry_s: float = 10.0
    """How long it keeps the session of a board that is away, before it takes what is sent there to be unread."""
    retains: bool = True
    """Whether it retains what boards announce; without, origins that connect have to ask for it."""

    def __post_init__(self) -> None:
        _not_negative("session_expiry_s", self.session_expiry_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardsConfig:
    """Boards of a kind: the stages they run, and how fast they are.

    `spread` and `jitter` are shares of the mean and of logarithms, so that no time is negative.
    """

    name: str
    """Boards are called by it and a number: `cam-0`, `cam-1` and so on."""
    count: int = 1
    """How many there are."""
    stages: tuple[int, ...] = ()
    """What each of them computes."""
    branch: int | None = None
    """Branch that they run, of a network whose stages are all wide."""
    origin: bool = False
    """Whether each has inputs of its own."""
    rate_hz: float | None = None
    """Inputs a second at each of them; the traffic's if left out."""
    macs_per_s: float | None = None
    """Multiply-accumulates a second; this or `stage_ms` is needed where there are stages."""
    stage_ms: tuple[float, ...] | None = None
    """Milliseconds for each of their stages."""
    spread: Share = SPREAD
    """Standard deviation of speed between boards."""
    jitter: Share = JITTER
    """Standard deviation of a run's time."""
    links: LinksConfig | None = None
    """Their own way to the broker; the site's if left out."""

    def __post_init__(self) -> None:
        check_id(self.name, "name")
        if len(self.name) > MOST_NAME:
            raise ConfigError(f"name: has {len(self.name)} characters", f"use at most {MOST_NAME}")
        if self.count < 1:
            raise ConfigError(f"count: {self.count} is out of range", "choose at least 1")
        if not self.stages and not self.origin:
            raise ConfigError("stages: nothing to do", "give stages, or origin: true")
        if len(set(self.stages)) != len(self.stages) or min(self.stages, default=0) < 0:
            raise ConfigError(f"stages: received {list(self.stages)}", "give different numbers from 0")
        if self.branch is not None and (self.branch < 0 or not self.stages):
            raise ConfigError(f"branch: received {self.branch}", "give a number from 0, to boards that have stages")
        if self.stages and (self.macs_per_s is None) == (self.stage_ms is None):
            how_often = "no" if self.macs_per_s is None else "more than one"
            what = f"macs_per_s: these boards have {how_often} speed"
            raise ConfigError(what, "give either macs_per_s, or the milliseconds of each stage as stage_ms")
        if self.stage_ms is not None and len(self.stage_ms) != len(self.stages):
            raise ConfigError(f"stage_ms: {len(self.stage_ms)} given", f"give {len(self.stages)}, one per stage")
        _positive(macs_per_s=self.macs_per_s, rate_hz=self.rate_hz)
        if self.rate_hz is not None and not self.origin:
            raise ConfigError("rate_hz: these boards have no inputs", "give origin: true, or leave it out")
        if min(self.stage_ms or (1.0,)) <= 0:
            raise ConfigError("stage_ms: not all are above 0", "give values above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsConfig:
    """What agent.yaml says on every board, under the same names and with the same defaults.

    A fusion head, which is only in wide networks, takes `fuse_ms`.
    """

    deadline_ms: float = 1000
    """As `origin.deadline_ms` in agent.yaml."""
    pending: int = 64
    """As `origin.pending`."""
    silence_ms: float = 100
    """As `origin.silence_ms`."""
    spool: bool = False
    """As `origin.spool`."""
    mode: Literal["gated", "eager"] = "gated"
    """As `origin.mode`."""
    branch_timeout_ms: float = 200
    """As in agent.yaml."""
    inbox_items: int = 64
    """As `inbox.items`."""
    receive_maximum: int = 16
    """As in agent.yaml."""
    telemetry_s: float = 2.0
    """As in agent.yaml."""
    fuse_ms: float = 0.5
    """Time of a fusion head."""

    def __post_init__(self) -> None:
        for key in (
            "deadline_ms", "pending", "silence_ms", "branch_timeout_ms", "inbox_items", "receive_maximum",
            "telemetry_s", "fuse_ms",
        ):  # fmt: skip
            _positive(**{key: getattr(self, key)})


@dataclass(frozen=True, slots=True, kw_only=True)
class HarderDrift:
    """From `at_s` on, for `for_s` seconds, inputs are drawn from the `share` of which exits are least sure."""

    kind: Literal["harder"]
    """Inputs are harder."""
    at_s: float
    """When it begins."""
    share: Share
    """They are drawn from this share, of which exits are least sure."""
    for_s: float = math.inf
    """How long it lasts."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        if self.share <= 0:
            raise ConfigError("share: 0% changes nothing", "choose a share above 0%")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassesDrift:
    """From `at_s` on, for `for_s` seconds, inputs are of these `classes` alone."""

    kind: Literal["classes"]
    """Inputs are of some classes alone."""
    at_s: float
    """When it begins."""
    classes: tuple[int, ...]
    """Numbers of these classes."""
    for_s: float = math.inf
    """How long it lasts."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        if not self.classes:
            raise ConfigError("classes: there is none", "give at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoresDrift:
    """From `at_s` on, for `for_s` seconds, early exits are surer: `by` is added to their scores."""

    kind: Literal["scores"]
    """Early exits are surer."""
    at_s: float
    """When it begins."""
    by: float
    """Added to their scores."""
    for_s: float = math.inf
    """How long it lasts."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionsDrift:
    """From `at_s` on, for `for_s` seconds, early exits are wrong about a `share` of inputs, and as sure as before."""

    kind: Literal["predictions"]
    """Early exits are wrong, and as sure as before."""
    at_s: float
    """When it begins."""
    share: Share
    """Share of inputs of which they are wrong."""
    for_s: float = math.inf
    """How long it lasts."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)


Drift: TypeAlias = HarderDrift | ClassesDrift | ScoresDrift | PredictionsDrift


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardsFailure:
    """At `at_s` boards fail, for `for_s` seconds: the `share` of those called `boards`, or one board.

    Killed, a board dies, to start anew; the broker notices `notice_s` later: at once where an agent is killed, after a
    keep-alive and a half where the power fails. Stopped, it finishes what is under way and leaves in good order, to
    start anew. Paused, it does nothing for that time and goes on, and the broker does not notice.
    """

    kind: Literal["boards"]
    """Boards fail."""
    at_s: float
    """When they do."""
    boards: str
    """Those called so, or one board."""
    how: Literal["kill", "stop", "pause"] = "kill"
    """Killed, stopped in good order, or paused."""
    share: Share = ALL
    """Share of those called so."""
    for_s: float = math.inf
    """After how long they start anew, or go on."""
    notice_s: float = 0.0
    """How long after the death the broker notices: 0 where an agent is killed, a keep-alive and a half where the power
    fails."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        _not_negative("notice_s", self.notice_s)
        if self.how == "pause" and self.for_s == math.inf:
            raise ConfigError("for_s: missing, but boards are paused", "give it, or kill boards that never go on")
        if self.how != "kill" and self.notice_s:
            raise ConfigError(f"notice_s: only for boards that are killed, not with how: {self.how}", "leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorFailure:
    """At `at_s` the orchestrator dies, to start anew after `for_s` seconds with what its store has."""

    kind: Literal["orchestrator"]
    """The orchestrator dies."""
    at_s: float
    """When it dies."""
    for_s: float = math.inf
    """After how long it starts anew, with what its store has."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFailure:
    """At `at_s` the broker goes away, for `for_s` seconds. It keeps sessions and what it retains.

    What boards send each other waits until both have connected again, which takes each up to a second more.
    """

    kind: Literal["broker"]
    """The broker goes away."""
    at_s: float
    """When it goes."""
    for_s: float
    """After how long it is back."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        if self.for_s == math.inf:
            raise ConfigError("for_s: a broker must come back", "give for_s")


Failure: TypeAlias = BoardsFailure | BrokerFailure | OrchestratorFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """The whole of fleet.yaml. Thresholds are tuned for the `goal`, or stay as given: `thresholds`."""

    seed: int = 0
    """Of everything random: the same seed gives the same report."""
    duration_s: float
    """Simulated time, at most 1e6."""
    traffic: TrafficConfig
    """Inputs."""
    boards: tuple[BoardsConfig, ...]
    """Kinds of boards."""
    agents: AgentsConfig = field(default_factory=AgentsConfig)
    """What agent.yaml says on every board."""
    links: LinksConfig = field(default_factory=LinksConfig)
    """The way between a board and the broker."""
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    """What the broker does."""
    goal: GoalConfig | None = None
    """What thresholds are tuned for, as in orchestrator.yaml; this or `thresholds` is needed."""
    thresholds: tuple[float, ...] | None = None
    """Fixed ones, one per exit but the last."""
    drift: tuple[Drift, ...] = ()
    """How inputs change."""
    failures: tuple[Failure, ...] = ()
    """What fails."""

    def __post_init__(self) -> None:
        if not 0 < self.duration_s <= 1e6:
            raise ConfigError(f"duration_s: {self.duration_s:g} is out of range", "choose a value above 0, at most 1e6")
        if (self.goal is None) == (self.thresholds is None):
            raise ConfigError("goal: thresholds are tuned for a goal, or given as thresholds", "give one of the two")
        if self.goal is not None and self.goal.labels_wait_s is not None:
            raise ConfigError("goal: labels_wait_s: labels that users publish are not simulated", "leave it out")
        self._check_boards()
        self._check_failures()

    def _check_boards(self) -> None:
        names = [boards.name for boards in self.boards]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"boards: {', '.join(twice)} given twice", "give each a name of its own")
        if not any(boards.origin for boards in self.boards):
            raise ConfigError("boards: none has inputs", "give some of them origin: true")
        if (count := sum(boards.count for boards in self.boards)) > MOST_BOARDS:
            raise ConfigError(f"boards: there are {count}", f"simulate at most {MOST_BOARDS}")
        links = [self.links, *(boards.links for boards in self.boards if boards.links is not None)]
        if not self.traffic.tensor_bytes and any(link.kbit_per_s is not None for link in links):
            raise ConfigError(
                "traffic: tensor_bytes are needed where links have kbit_per_s", "give the bytes that each stage takes"
            )

    def _check_failures(self) -> None:
        names = [boards.name for boards in self.boards]
        for failure in self.failures:
            if failure.kind == "orchestrator":
                if self.goal is None:
                    raise ConfigError("failures: there is no orchestrator without a goal", "give a goal")
            elif (
                failure.kind == "boards"
                and failure.boards not in names
                and not any(
                    failure.boards == f"{boards.name}-{number}"
                    for boards in self.boards
                    for number in range(boards.count)
                )
            ):
                raise ConfigError(f"failures: there are no boards {failure.boards}", f"name one of {', '.join(names)}")

    @property
    def branches(self) -> int:
        """Number of branches of a wide network, 0 for a chain."""
        return 1 + max((boards.branch for boards in self.boards if boards.branch is not None), default=-1)


def check_exits(config: FleetConfig, exits: int) -> None:
    """Raise ConfigError where something is not of `exits` stages, the traffic's number, or a stage is nobody's."""
    branches, every = config.branches, tuple(range(exits))
    served: set[tuple[int | None, int]] = set()
    for boards in config.boards:
        if max(boards.stages, default=0) >= exits:
            what = f"boards: {boards.name} has stage {max(boards.stages)}, which does not exist"
            raise ConfigError(what, f"give stages of 0 to {exits - 1}")
        if branches and boards.stages and (boards.branch is None or tuple(sorted(boards.stages)) != every):
            raise ConfigError(
                f"boards: {boards.name}: all stages of a wide network are wide", f"give a branch and all {exits} stages"
            )
        served |= {(boards.branch, stage) for stage in boards.stages}
    for branch in range(branches) if branches else (None,):
        for stage in every:
            if (branch, stage) not in served:
                whose = "" if branch is None else f" of branch {branch}"
                what = f"boards: none has stage {stage}{whose}"
                raise ConfigError(what, f"have boards serve all stages, 0 to {exits - 1}")
    if config.thresholds is not None and len(config.thresholds) != exits - 1:
        what = f"thresholds: {len(config.thresholds)} given"
        raise ConfigError(what, f"give {exits - 1}, one per exit but the last")
    if config.traffic.tensor_bytes and len(config.traffic.tensor_bytes) != exits:
        what = f"traffic: tensor_bytes: {len(config.traffic.tensor_bytes)} given"
        raise ConfigError(what, f"give {exits}, one per stage")


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name}: {value:g} is out of range", "choose a value above 0")


def _not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name}: {value:g} is out of range", "choose 0 or more")


def _moment(at_s: float, for_s: float) -> None:
    _not_negative("at_s", at_s)
    _positive(for_s=for_s)


def _growing(name: str, values: tuple[float, ...]) -> None:
    if values[0] < 0 or any(after <= before for before, after in itertools.pairwise(values)):
        what = f"{name}: {values} does not grow from exit to exit"
        raise ConfigError(what, "give 0 or more, and more for each exit")
