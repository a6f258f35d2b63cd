"""fleet.yaml as frozen dataclasses: the boards of a pipeline, their traffic, and what happens to them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from distree.config import Share
from distree.errors import ConfigError
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
    """A network and its inputs, made up: see `orchestrator.simulator.traffic.synthetic`.

    `macs` are the multiply-accumulates of an input that leaves at each exit, growing; `ability` says how difficult an
    input (0 to 1, evenly) each exit is just able to tell; `sharpness` how suddenly it fails beyond.
    """

    classes: int = 10
    macs: tuple[float, ...] = (4e6, 10e6, 22e6)
    ability: tuple[float, ...] = (0.8, 0.95, 1.1)
    sharpness: float = 12.0
    inputs: int = 20_000

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= 1000:
            raise ConfigError(f"classes: must be 2 to 1000, received {self.classes}")
        if not 2 <= len(self.macs) <= MOST_EXITS:
            raise ConfigError(f"macs: one number per exit, 2 to {MOST_EXITS} of them, received {len(self.macs)}")
        _growing("macs", self.macs)
        if len(self.ability) != len(self.macs):
            raise ConfigError(f"ability: {len(self.ability)} received, one per exit expected ({len(self.macs)})")
        _growing("ability", self.ability)
        _positive(sharpness=self.sharpness)
        if not 1 <= self.inputs <= 1_000_000:
            raise ConfigError(f"inputs: must be 1 to 1000000, received {self.inputs}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstsConfig:
    """Every `every_s` seconds, for `for_s` seconds, there are `times` as many inputs."""

    every_s: float
    for_s: float
    times: float

    def __post_init__(self) -> None:
        _positive(every_s=self.every_s, for_s=self.for_s, times=self.times)
        if self.for_s >= self.every_s:
            raise ConfigError(f"for_s: must be below every_s ({self.every_s:g}), received {self.for_s:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficConfig:
    """Inputs: `rate_hz` at each origin, at random moments (a Poisson process), and what they are.

    `recorded` is a file that `distree zoo evaluate --audits` has written, from the folder of fleet.yaml; without one
    the inputs are synthetic. They are drawn at random, or come in the `order` of the recording, from its beginning
    again after its end. `tensor_bytes` are the bytes of what each stage takes, from the input on.
    """

    rate_hz: float
    bursts: BurstsConfig | None = None
    recorded: Path | None = None
    synthetic: SyntheticConfig | None = None
    order: Literal["random", "recorded"] = "random"
    tensor_bytes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _positive(rate_hz=self.rate_hz)
        if self.recorded is not None and self.synthetic is not None:
            raise ConfigError("synthetic: inputs are recorded; give the one or the other")
        if min(self.tensor_bytes, default=0) < 0:
            raise ConfigError("tensor_bytes: must not be below 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksConfig:
    """The way between a board and the broker, each way alike.

    `latency_ms`, and `jitter_ms` more on average; at `kbit_per_s` one message goes after the other. `loss` is the share
    of messages that are lost and come `retry_ms` later, twice as much later each further time, with all that was sent
    after them: MQTT runs over TCP.
    """

    latency_ms: float = 1.0
    jitter_ms: float = 0.5
    kbit_per_s: float | None = None
    loss: Share = NONE
    retry_ms: float = 200.0

    def __post_init__(self) -> None:
        for key in ("latency_ms", "jitter_ms"):
            _not_negative(key, getattr(self, key))
        if self.loss > 0.9:
            raise ConfigError("loss: at most 90%")
        _positive(kbit_per_s=self.kbit_per_s, retry_ms=self.retry_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardsConfig:
    """`count` boards of a kind, called `name`-0, `name`-1, and so on: the stages they run, and how fast they are.

    With `origin` each has inputs of its own. `branch` is the one that they run of a network whose stages are all wide.
    They take `stage_ms` for each of their stages, or its multiply-accumulates by `macs_per_s`; `spread` is the standard
    deviation between boards, `jitter` that from run to run, both as a share of the mean and of logarithms, so that no
    time is negative. `links` are their own way to the broker, the site's if left out.
    """

    name: str
    count: int = 1
    stages: tuple[int, ...] = ()
    branch: int | None = None
    origin: bool = False
    macs_per_s: float | None = None
    stage_ms: tuple[float, ...] | None = None
    spread: Share = SPREAD
    jitter: Share = JITTER
    links: LinksConfig | None = None

    def __post_init__(self) -> None:
        check_id(self.name, "name")
        if len(self.name) > MOST_NAME:
            raise ConfigError(f"name: at most {MOST_NAME} characters, received {len(self.name)}")
        if self.count < 1:
            raise ConfigError(f"count: must be at least 1, received {self.count}")
        if not self.stages and not self.origin:
            raise ConfigError("stages: nothing to do; give stages, or origin: true")
        if len(set(self.stages)) != len(self.stages) or min(self.stages, default=0) < 0:
            raise ConfigError("stages: must be different numbers from 0")
        if self.branch is not None and (self.branch < 0 or not self.stages):
            raise ConfigError("branch: must be a number from 0, of boards that have stages")
        if self.stages and (self.macs_per_s is None) == (self.stage_ms is None):
            raise ConfigError("macs_per_s: give it, or stage_ms: milliseconds of each of the stages")
        if self.stage_ms is not None and len(self.stage_ms) != len(self.stages):
            raise ConfigError(f"stage_ms: {len(self.stage_ms)} given, one per stage needed ({len(self.stages)})")
        _positive(macs_per_s=self.macs_per_s)
        if min(self.stage_ms or (1.0,)) <= 0:
            raise ConfigError("stage_ms: must all be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentsConfig:
    """What agent.yaml says on every board, under the same names and with the same defaults.

    A fusion head, which is only in wide networks, takes `fuse_ms`.
    """

    deadline_ms: float = 1000
    pending: int = 64
    silence_ms: float = 100
    spool: bool = False
    mode: Literal["gated", "eager"] = "gated"
    branch_timeout_ms: float = 200
    inbox_items: int = 64
    receive_maximum: int = 16
    telemetry_s: float = 2.0
    fuse_ms: float = 0.5

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
    at_s: float
    share: Share
    for_s: float = math.inf

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        if self.share <= 0:
            raise ConfigError("share: must be above 0%")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassesDrift:
    """From `at_s` on, for `for_s` seconds, inputs are of these `classes` alone."""

    kind: Literal["classes"]
    at_s: float
    classes: tuple[int, ...]
    for_s: float = math.inf

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        if not self.classes:
            raise ConfigError("classes: at least one is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoresDrift:
    """From `at_s` on, for `for_s` seconds, early exits are surer: `by` is added to their scores."""

    kind: Literal["scores"]
    at_s: float
    by: float
    for_s: float = math.inf

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionsDrift:
    """From `at_s` on, for `for_s` seconds, early exits are wrong about a `share` of inputs, and as sure as before."""

    kind: Literal["predictions"]
    at_s: float
    share: Share
    for_s: float = math.inf

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)


Drift: TypeAlias = HarderDrift | ClassesDrift | ScoresDrift | PredictionsDrift


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardsFailure:
    """At `at_s` boards die, to start anew after `for_s` seconds: the `share` of those called `boards`, or one board.

    The broker notices `notice_s` after the death: at once where an agent is killed, after a keep-alive and a half where
    the power fails.
    """

    kind: Literal["boards"]
    at_s: float
    boards: str
    share: Share = ALL
    for_s: float = math.inf
    notice_s: float = 0.0

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)
        _not_negative("notice_s", self.notice_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestratorFailure:
    """At `at_s` the orchestrator dies, to start anew after `for_s` seconds with what its store has."""

    kind: Literal["orchestrator"]
    at_s: float
    for_s: float = math.inf

    def __post_init__(self) -> None:
        _moment(self.at_s, self.for_s)


Failure: TypeAlias = BoardsFailure | OrchestratorFailure


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """The whole of fleet.yaml. Thresholds are tuned for the `goal`, or stay as given: `thresholds`."""

    seed: int = 0
    duration_s: float
    traffic: TrafficConfig
    boards: tuple[BoardsConfig, ...]
    agents: AgentsConfig = field(default_factory=AgentsConfig)
    links: LinksConfig = field(default_factory=LinksConfig)
    goal: GoalConfig | None = None
    thresholds: tuple[float, ...] | None = None
    drift: tuple[Drift, ...] = ()
    failures: tuple[Failure, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.duration_s <= 1e6:
            raise ConfigError(f"duration_s: must be above 0, at most 1e6, received {self.duration_s:g}")
        if (self.goal is None) == (self.thresholds is None):
            raise ConfigError("goal: thresholds are tuned for a goal, or given as thresholds; give one of the two")
        if self.goal is not None and self.goal.labels_wait_s is not None:
            raise ConfigError("goal: labels_wait_s: labels that users publish are not simulated")
        self._check_boards()
        self._check_failures()

    def _check_boards(self) -> None:
        names = [boards.name for boards in self.boards]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"boards: {', '.join(twice)} given twice")
        if not any(boards.origin for boards in self.boards):
            raise ConfigError("boards: none has inputs; give some of them origin: true")
        if (count := sum(boards.count for boards in self.boards)) > MOST_BOARDS:
            raise ConfigError(f"boards: {count} of them, at most {MOST_BOARDS} can be simulated")
        links = [self.links, *(boards.links for boards in self.boards if boards.links is not None)]
        if not self.traffic.tensor_bytes and any(link.kbit_per_s is not None for link in links):
            raise ConfigError(
                "traffic: tensor_bytes are needed where links have kbit_per_s: bytes that each stage takes"
            )

    def _check_failures(self) -> None:
        names = [boards.name for boards in self.boards]
        for failure in self.failures:
            if failure.kind == "orchestrator":
                if self.goal is None:
                    raise ConfigError("failures: there is no orchestrator without a goal")
            elif failure.boards not in names and not any(
                failure.boards == f"{boards.name}-{number}" for boards in self.boards for number in range(boards.count)
            ):
                raise ConfigError(f"failures: there are no boards {failure.boards}; there are {', '.join(names)}")

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
            raise ConfigError(f"boards: {boards.name} has stage {max(boards.stages)}, the last is {exits - 1}")
        if branches and boards.stages and (boards.branch is None or tuple(sorted(boards.stages)) != every):
            raise ConfigError(
                f"boards: {boards.name}: all stages of a wide network are wide; give a branch and all {exits} stages"
            )
        served |= {(boards.branch, stage) for stage in boards.stages}
    for branch in range(branches) if branches else (None,):
        for stage in every:
            if (branch, stage) not in served:
                whose = "" if branch is None else f" of branch {branch}"
                raise ConfigError(f"boards: none has stage {stage}{whose}; stages 0 to {exits - 1} are needed")
    if config.thresholds is not None and len(config.thresholds) != exits - 1:
        raise ConfigError(f"thresholds: {len(config.thresholds)} given, {exits - 1} needed: one per exit but the last")
    if config.traffic.tensor_bytes and len(config.traffic.tensor_bytes) != exits:
        raise ConfigError(f"traffic: tensor_bytes: {len(config.traffic.tensor_bytes)} given, one per stage ({exits})")


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name}: must be above 0, received {value:g}")


def _not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name}: must be 0 or more, received {value:g}")


def _moment(at_s: float, for_s: float) -> None:
    _not_negative("at_s", at_s)
    _positive(for_s=for_s)


def _growing(name: str, values: tuple[float, ...]) -> None:
    if values[0] < 0 or any(after <= before for before, after in itertools.pairwise(values)):
        raise ConfigError(f"{name}: must be 0 or more and grow from exit to exit, received {values}")
