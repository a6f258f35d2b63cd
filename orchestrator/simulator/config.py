"""fleet.yaml as frozen dataclasses: the boards of a pipeline, their traffic, and what happens to them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from distree.criteria import threshold_problem
from distree.errors import ConfigError
from distree.formatting import percent
from distree.strict_yaml import Share
from distree.thresholds import Threshold
from distree.topics import check_id
from orchestrator.fleet import MAX_DEVICES
from orchestrator.tuning.goal import Goal

MAX_BOARDS = MAX_DEVICES
"""Most boards of a fleet: as many as one orchestrator keeps books on."""

NONE, ALL, SPREAD, JITTER = Share(0.0), Share(1.0), Share(0.1), Share(0.05)

MAX_EXITS = 16
MAX_NAME = 24
"""Longest name of a kind of boards: a board's id is that name and a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticConfig:
    """A made-up network and its inputs: see `orchestrator.simulator.traffic.synthetic`."""

    classes: int = 10
    """Number of classes, 2 to 1000."""
    macs: tuple[float, ...] = (4e6, 10e6, 22e6)
    """Multiply-accumulates of an input that leaves at each exit, growing."""
    ability: tuple[float, ...] = (0.8, 0.95, 1.1)
    """Most difficult input that each exit can just classify, growing; difficulties are spread evenly from 0 to 1."""
    sharpness: float = 12.0
    """How sharply an exit's accuracy falls beyond its ability."""
    inputs: int = 20_000
    """Number of made-up inputs that traffic is drawn from."""

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 1000:
            raise ConfigError(f"classes: {self.classes} is out of range", "choose 2 to 1000")
        if not 2 <= len(self.macs) <= MAX_EXITS:
            raise ConfigError(f"macs: {len(self.macs)} given", f"give one number per exit, 2 to {MAX_EXITS} of them")
        _growing("macs", self.macs)
        if len(self.ability) != len(self.macs):
            raise ConfigError(f"ability: {len(self.ability)} given", f"give {len(self.macs)}, one per exit")
        _growing("ability", self.ability)
        _positive(sharpness=self.sharpness)
        if not 1 <= self.inputs <= 1_000_000:
            raise ConfigError(f"inputs: {self.inputs} is out of range", "choose 1 to 1000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstsConfig:
    """Periods of heavier traffic."""

    every_s: float
    """Time from the start of one burst to the next."""
    for_s: float
    """Length of a burst."""
    times: float
    """Factor by which the rate of inputs grows during a burst."""

    def __post_init__(self) -> None:
        _positive(every_s=self.every_s, for_s=self.for_s, times=self.times)
        if self.for_s >= self.every_s:
            what = f"for_s: {self.for_s:g} is not below every_s ({self.every_s:g})"
            raise ConfigError(what, "shorten the bursts, or make them rarer")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficConfig:
    """Inputs: their rate, as a Poisson process, and what they are."""

    rate_hz: float
    """Inputs per second at each origin, at random moments."""
    bursts: BurstsConfig | None = None
    """Periods of heavier traffic."""
    recorded: Path | None = None
    """File written by `distree zoo evaluate --audits`; without it inputs are synthetic."""
    synthetic: SyntheticConfig | None = None
    """The synthetic inputs."""
    order: Literal["random", "recorded"] = "random"
    """Whether inputs are drawn at random or in recorded order."""
    tensor_bytes: tuple[int, ...] = ()
    """Bytes that travel to each stage, the raw input first; needed where a link has `kbit_per_s`."""

    def __post_init__(self) -> None:
        _positive(rate_hz=self.rate_hz)
        if self.recorded is not None and self.synthetic is not None:
            raise ConfigError("synthetic: cannot be combined with recorded", "remove one of the two")
        if min(self.tensor_bytes, default=0) < 0:
            raise ConfigError(f"tensor_bytes: {min(self.tensor_bytes)} is negative", "give 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksConfig:
    """The link between a board and the broker, the same in both directions.

    A lost message holds up everything sent after it, because MQTT runs over TCP.
    """

    latency_ms: float = 1.0
    """One-way latency of a message."""
    jitter_ms: float = 0.5
    """Mean of the additional latency, which is exponentially distributed."""
    kbit_per_s: float | None = None
    """Bandwidth; messages are sent one after the other. Unlimited if left out."""
    loss: Share = NONE
    """Share of messages that are lost and sent again, at most 90%."""
    retry_ms: float = 200.0
    """Delay until a lost message is sent again; it doubles with every further loss."""

    def __post_init__(self) -> None:
        for key in ("latency_ms", "jitter_ms"):
            _not_negative(key, getattr(self, key))
        if self.loss > 0.9:
            raise ConfigError(f"loss: {percent(self.loss)} is out of range", "choose at most 90%")
        _positive(kbit_per_s=self.kbit_per_s, retry_ms=self.retry_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """How the broker behaves; by default like mosquitto with the sessions that agents ask for."""

    reports_no_subscribers: bool = True
    """Whether it tells a board that nobody reads its message; some brokers do not."""
    session_expiry_s: float = 10.0
    """How long it keeps the session of an absent board before messages to it count as unread."""
    retains: bool = True
    """Whether it retains what boards announce; if not, origins ask the boards when they connect."""

    def __post_init__(self) -> None:
        _not_negative("session_expiry_s", self.session_expiry_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardsConfig:
    """One kind of board: which stages these boards run, and how fast.

    `spread` and `jitter` are standard deviations of logarithms, so that no time is negative.
    """

    name: str
    """Prefix of the boards' ids: `cam` makes `cam-0`, `cam-1` and so on."""
    count: int = 1
    """Number of boards."""
    stages: tuple[int, ...] = ()
    """Stages that each of them runs."""
    branch: int | None = None
    """Branch that they run, if all stages of the network are wide."""
    origin: bool = False
    """Whether each is an origin, with inputs of its own."""
    rate_hz: float | None = None
    """Inputs per second at each of them; `traffic.rate_hz` if left out."""
    macs_per_s: float | None = None
    """Multiply-accumulates per second; boards with stages need this or `stage_ms`."""
    stage_ms: tuple[float, ...] | None = None
    """Milliseconds per run, one number per stage."""
    spread: Share = SPREAD
    """Spread of speed from board to board, as a standard deviation."""
    jitter: Share = JITTER
    """Spread of time from run to run, as a standard deviation."""
    links: LinksConfig | None = None
    """Their own link to the broker; the site's `links` if left out."""

    def __post_init__(self) -> None:
        check_id(self.name, "name")
        if len(self.name) > MAX_NAME:
            raise ConfigError(f"name: has {len(self.name)} characters", f"use at most {MAX_NAME}")
        if self.count < 1:
            raise ConfigError(f"count: {self.count} is out of range", "choose at least 1")
        if not self.stages and not self.origin:
            raise ConfigError("stages: these boards have nothing to do", "give stages, or origin: true")
        if len(set(self.stages)) != len(self.stages) or min(self.stages, default=0) < 0:
            raise ConfigError(f"stages: received {list(self.stages)}", "give distinct numbers from 0")
        if self.branch is not None and (self.branch < 0 or not self.stages):
            raise ConfigError(f"branch: received {self.branch}", "give a number from 0, to boards that have stages")
        if self.stages and (self.macs_per_s is None) == (self.stage_ms is None):
            given = "not given" if self.macs_per_s is None else "given twice"
            what = f"macs_per_s: the speed of these boards is {given}"
            raise ConfigError(what, "give either macs_per_s, or the milliseconds of each stage as stage_ms")
        if self.stage_ms is not None and len(self.stage_ms) != len(self.stages):
            raise ConfigError(f"stage_ms: {len(self.stage_ms)} given", f"give {len(self.stages)}, one per stage")
        _positive(macs_per_s=self.macs_per_s, rate_hz=self.rate_hz)
        if self.rate_hz is not None and not self.origin:
            raise ConfigError("rate_hz: only origins have inputs", "add origin: true, or remove rate_hz")
        if min(self.stage_ms or (1.0,)) <= 0:
            raise ConfigError("stage_ms: not all are above 0", "give values above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsConfig:
    """What agent.yaml says on every board, under the same names and with the same defaults.

    A fusion head, which is only in wide networks, takes `fuse_ms`.
    """

    deadline_ms: float = 1000
    """As `origin.deadline_ms` in agent.yaml."""
    max_pending: int = 64
    """As `origin.max_pending`."""
    min_retry_ms: float = 100
    """As `origin.min_retry_ms`."""
    spool: bool = False
    """As `origin.spool`."""
    mode: Literal["gated", "eager"] = "gated"
    """As `origin.mode`."""
    branch_timeout_ms: float = 200
    """As in agent.yaml."""
    inbox_max_messages: int = 64
    """As `inbox.max_messages`."""
    receive_maximum: int = 16
    """As in agent.yaml."""
    telemetry_interval_s: float = 2.0
    """As in agent.yaml."""
    fuse_ms: float = 0.5
    """Time that a fusion head takes."""

    def __post_init__(self) -> None:
        for key in (
            "deadline_ms", "max_pending", "min_retry_ms", "branch_timeout_ms", "inbox_max_messages", "receive_maximum",
            "telemetry_interval_s", "fuse_ms",
        ):  # fmt: skip
            _positive(**{key: getattr(self, key)})


@dataclass(frozen=True, slots=True, kw_only=True)
class HarderDrift:
    """From `at_s`, for `for_s` seconds, inputs are drawn from the `share` that exits are least sure of."""

    kind: Literal["harder"]
    """Inputs become harder."""
    at_s: float
    """When it begins."""
    share: Share
    """Share of inputs to draw from: those that exits are least sure of."""
    for_s: float = math.inf
    """How long it lasts."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        if self.share <= 0:
            raise ConfigError("share: 0% changes nothing", "choose a share above 0%")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassesDrift:
    """From `at_s`, for `for_s` seconds, all inputs belong to these `classes`."""

    kind: Literal["classes"]
    """Inputs are limited to some classes."""
    at_s: float
    """When it begins."""
    classes: tuple[int, ...]
    """Ids of these classes."""
    for_s: float = math.inf
    """How long it lasts."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        if not self.classes:
            raise ConfigError("classes: none given", "give at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoresDrift:
    """From `at_s`, for `for_s` seconds, early exits are surer: `by` is added to their scores."""

    kind: Literal["scores"]
    """Early exits become surer."""
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
    """From `at_s`, for `for_s` seconds, early exits are wrong about a `share` of inputs, and as sure as before."""

    kind: Literal["predictions"]
    """Early exits become wrong without being less sure."""
    at_s: float
    """When it begins."""
    share: Share
    """Share of inputs that they get wrong."""
    for_s: float = math.inf
    """How long it lasts."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)


Drift: TypeAlias = HarderDrift | ClassesDrift | ScoresDrift | PredictionsDrift


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardsFailure:
    """At `at_s` boards fail, for `for_s` seconds: the given `share` of the kind `boards`, or one board of that id.

    `kill`: a board dies, and restarts later; the broker notices `notice_s` later, which is at once where an agent is
    killed and after one and a half keep-alives where the power fails. `stop`: it finishes its work, disconnects, and
    restarts later. `pause`: it does nothing for that time and then continues; the broker does not notice.
    """

    kind: Literal["boards"]
    """Boards fail."""
    at_s: float
    """When they fail."""
    boards: str
    """Name of a kind of boards, or id of one board."""
    how: Literal["kill", "stop", "pause"] = "kill"
    """Whether they are killed, stopped cleanly, or paused."""
    share: Share = ALL
    """Share of that kind that fails."""
    for_s: float = math.inf
    """How long until they restart, or continue."""
    notice_s: float = 0.0
    """How long after the failure the broker notices: 0 where an agent is killed, one and a half keep-alives where the
    power fails."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        _not_negative("notice_s", self.notice_s)
        if self.how == "pause" and self.for_s == math.inf:
            raise ConfigError("for_s: missing for a pause", "give it, or how: kill for boards that never continue")
        if self.how != "kill" and self.notice_s:
            raise ConfigError(f"notice_s: applies to how: kill, not to how: {self.how}", "leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorFailure:
    """At `at_s` the orchestrator dies; it restarts after `for_s` seconds with what its store has."""

    kind: Literal["orchestrator"]
    """The orchestrator dies."""
    at_s: float
    """When it dies."""
    for_s: float = math.inf
    """How long until it restarts, with what its store has."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFailure:
    """At `at_s` the broker goes away, for `for_s` seconds. It keeps sessions and retained messages.

    Messages between boards wait until both have reconnected, which takes each up to another second.
    """

    kind: Literal["broker"]
    """The broker goes away."""
    at_s: float
    """When it goes away."""
    for_s: float
    """How long until it is back."""

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        if self.for_s == math.inf:
            raise ConfigError("for_s: missing, but a broker has to come back", "give it")


Failure: TypeAlias = BoardsFailure | BrokerFailure | OrchestratorFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """The whole of fleet.yaml. Thresholds are either tuned for the `goal` or fixed by `thresholds`."""

    seed: int = 0
    """Random seed: the same seed gives the same report."""
    duration_s: float
    """Simulated time, at most 1e6."""
    traffic: TrafficConfig
    """Inputs."""
    boards: tuple[BoardsConfig, ...]
    """Kinds of boards."""
    agents: AgentsConfig = field(default_factory=AgentsConfig)
    """Settings of agent.yaml on every board."""
    links: LinksConfig = field(default_factory=LinksConfig)
    """The link between a board and the broker."""
    broker: BrokerConfig = field(default_factory=BrokerConfig)
    """How the broker behaves."""
    goal: Goal | None = None
    """What thresholds are tuned for, as in orchestrator.yaml; either this or `thresholds` is needed."""
    thresholds: tuple[Threshold, ...] | None = None
    """Fixed thresholds, one per exit but the last; `never` keeps an exit closed."""
    drift: tuple[Drift, ...] = ()
    """How inputs change."""
    failures: tuple[Failure, ...] = ()
    """What fails."""

    def __post_init__(self) -> None:
        if not 0 < self.duration_s <= 1e6:
            raise ConfigError(f"duration_s: {self.duration_s:g} is out of range", "choose a value above 0, at most 1e6")
        if self.goal is not None and self.goal.tuner_class.uses_given_thresholds:
            if self.thresholds is None:
                raise ConfigError(f"goal: tuner {self.goal.tuner} keeps given thresholds", "add thresholds")
        elif (self.goal is None) == (self.thresholds is None):
            raise ConfigError("goal: thresholds are either tuned for a goal or given", "give one of the two")
        if self.goal is not None and self.goal.labels_wait_s is not None:
            raise ConfigError("goal: labels_wait_s: labels that users publish are not simulated", "leave it out")
        self._check_boards()
        self._check_failures()

    def _check_boards(self) -> None:
        names = [boards.name for boards in self.boards]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"boards: {', '.join(twice)} given twice", "give each a name of its own")
        if not any(boards.origin for boards in self.boards):
            raise ConfigError("boards: none has inputs", "set origin: true for some of them")
        if (count := sum(boards.count for boards in self.boards)) > MAX_BOARDS:
            raise ConfigError(f"boards: there are {count}", f"simulate at most {MAX_BOARDS}")
        links = [self.links, *(boards.links for boards in self.boards if boards.links is not None)]
        if not self.traffic.tensor_bytes and any(link.kbit_per_s is not None for link in links):
            raise ConfigError(
                "traffic: tensor_bytes is needed where links have kbit_per_s",
                "give the bytes that travel to each stage",
            )

    def _check_failures(self) -> None:
        names = [boards.name for boards in self.boards]
        for failure in self.failures:
            if failure.kind == "orchestrator":
                if self.goal is None:
                    raise ConfigError("failures: without a goal there is no orchestrator to fail", "give a goal")
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


def check_exits(config: FleetConfig, exits: int, criterion: str) -> None:
    """Raise ConfigError where something is not of `exits` stages, the traffic's number, or a stage is nobody's.

    `criterion` is by which the traffic was scored, and what thresholds are of; "" where that is not known.
    """
    branches, every = config.branches, tuple(range(exits))
    served: set[tuple[int | None, int]] = set()
    for boards in config.boards:
        if max(boards.stages, default=0) >= exits:
            what = f"boards: {boards.name} has stage {max(boards.stages)}, which does not exist"
            raise ConfigError(what, f"give stages from 0 to {exits - 1}")
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
    problem = threshold_problem(criterion, config.thresholds or ()) if criterion else None
    if problem is not None:
        raise ConfigError(*problem.at("thresholds"))
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
