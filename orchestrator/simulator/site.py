"""A simulated site: its boards, what happens to them, and how it all runs."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

from distree.messages.plan import Plan
from distree.node import AcceptedInput, NodeSettings, OriginSettings, StageNode
from distree.node.members import Members
from distree.thresholds import NEVER
from orchestrator.pipeline_spec import PipelineSpec
from orchestrator.simulator.board import SimulatedBoard, Surroundings
from orchestrator.simulator.books import Books
from orchestrator.simulator.config import BoardsConfig, BoardsFailure, FleetConfig, check_exits
from orchestrator.simulator.events import Events
from orchestrator.simulator.network import Link
from orchestrator.simulator.roll import Roll
from orchestrator.simulator.service import SITE, Host
from orchestrator.simulator.traffic import CRITERION, TENSOR, Table, Traffic

PIPELINE, MODEL, REVISION = "fleet", "simulated", "0"

RECONNECT_S = 1.0
"""Boards reconnect within so many seconds once the broker is back, each at a moment of its own."""


class SimulatedSite:
    """All boards under one clock. `run` simulates `duration_s` of traffic, and lets all work finish.

    Raises ConfigError where the configuration does not fit the traffic.
    """

    def __init__(self, config: FleetConfig, table: Table) -> None:
        check_exits(config, len(table.costs), table.criterion)
        self.config = config
        self.table = table
        self.events = Events()
        self.traffic = Traffic(table, config)
        self.books = Books(self.traffic)
        self.host: Host | None = None
        if config.goal is not None:
            self.host = Host(self.events, self._spec(), self.books, self, config.duration_s)
        # One record of members for all origins, where they all know the same.
        self._members = Members(REVISION) if config.broker.retains else None
        self._around = self._surroundings()
        with _no_collection():
            self.boards = {boards.name: self._build(boards) for boards in config.boards}
        self._around.boards.update((board.name, board) for board in self._all())
        self._subscribe()

    def _all(self) -> itertools.chain[SimulatedBoard]:
        return itertools.chain.from_iterable(self.boards.values())

    def _lots(self, purpose: str) -> random.Random:
        # One stream per purpose: another choice of failures does not change the inputs.
        return random.Random(f"{self.config.seed} {purpose}")  # noqa: S311 - a simulation has to be repeatable

    # ------------------------------------------------------------ building

    def _surroundings(self) -> Surroundings:
        agents = self.config.agents
        return Surroundings(
            events=self.events,
            traffic=self.traffic,
            books=self.books,
            random=self._lots("runs"),
            readers=[],
            boards={},
            roll=Roll(self.events, self.books, self._members, map(self._needs, self.config.boards)),
            broker=self.config.broker,
            host=self.host,
            tensor_bytes=self.config.traffic.tensor_bytes,
            fuse_s=agents.fuse_ms / 1e3,
            deadline_s=agents.deadline_ms / 1e3,
            telemetry_interval_s=agents.telemetry_interval_s,
            receive_maximum=agents.receive_maximum,
            has_spools=agents.spool,
            ends_at=self.config.duration_s,
        )

    def _build(self, boards: BoardsConfig) -> tuple[SimulatedBoard, ...]:
        lots, links = self._lots(f"boards {boards.name}"), self._lots(f"links {boards.name}")
        # Shared by boards of a kind, as their links' is: thousands of generators would take tens of megabytes.
        routes = self._lots(f"routes {boards.name}")
        run_s, built = self._run_s(boards), []
        for number in range(boards.count):
            name, slowness = f"{boards.name}-{number}", math.exp(lots.gauss(0.0, boards.spread))
            built.append(
                SimulatedBoard(
                    name,
                    self._around,
                    self._node_maker(name, boards, routes),
                    Link(boards.links or self.config.links, links),
                    {stage: mean_s * slowness for stage, mean_s in run_s.items()},
                    boards,
                    self._needs(boards),
                )
            )
        return tuple(built)

    def _run_s(self, boards: BoardsConfig) -> dict[int, float]:
        """Return the mean seconds of a run, by stage; a branch has its share of a wide stage."""
        if boards.stage_ms is not None:
            return {stage: stage_ms / 1e3 for stage, stage_ms in zip(boards.stages, boards.stage_ms, strict=True)}
        costs, width = (0.0, *self.traffic.costs), self.config.branches or 1
        speed = boards.macs_per_s or math.inf
        return {stage: (costs[stage + 1] - costs[stage]) / width / speed for stage in boards.stages}

    def _needs(self, boards: BoardsConfig) -> frozenset[int]:
        """Return the stages for which an origin chooses boards: where requests travel, less its own plain ones."""
        if not boards.origin:
            return frozenset()
        return frozenset({0} if self.config.branches else set(range(self.traffic.exits)).difference(boards.stages))

    def _subscribe(self) -> None:
        for stage in range(self.traffic.exits):
            readers = [boards for boards in self.config.boards if stage in boards.stages]
            self._around.readers.append([board.session for kind in readers for board in self.boards[kind.name]])

    def _node_maker(
        self, name: str, boards: BoardsConfig, chance: random.Random
    ) -> Callable[[str, Sequence[AcceptedInput], Sequence[str]], StageNode]:
        agents, exits, branches = self.config.agents, self.traffic.exits, self.config.branches
        origin = None
        if boards.origin:
            origin = OriginSettings(
                deadline_s=agents.deadline_ms / 1e3,
                max_pending=agents.max_pending,
                min_retry_s=agents.min_retry_ms / 1e3,
                eager=agents.mode == "eager",
            )
        thresholds, labels = self._thresholds(), self._labels()
        inputs, embeddings = (TENSOR,) * exits, ((TENSOR,) * branches,) * exits if branches else ()

        def make(boot: str, restore: Sequence[AcceptedInput], answered: Sequence[str]) -> StageNode:
            settings = NodeSettings(
                site=SITE,
                device=name,
                pipeline=PIPELINE,
                boot=boot,
                model=MODEL,
                revision=REVISION,
                labels=labels,
                inputs=inputs,
                stages=boards.stages,
                criterion=CRITERION,
                thresholds=thresholds,
                inbox_max_messages=agents.inbox_max_messages,
                origin=origin,
                embeddings=embeddings,
                branch=boards.branch,
                branch_timeout_s=agents.branch_timeout_ms / 1e3,
                secret=f"{self.config.seed} audits".encode(),
            )
            return StageNode(settings, restore=restore, answered=answered, chance=chance, members=self._members)

        return make

    def _thresholds(self) -> tuple[float, ...]:
        """Return the thresholds before the first plan: those given, or else ones that disable early exits."""
        given = self.config.thresholds
        return (NEVER,) * (self.traffic.exits - 1) if given is None else given

    def _labels(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.traffic.classes)))

    def _spec(self) -> PipelineSpec:
        exits = self.traffic.exits
        plan = Plan(
            pipeline=PIPELINE,
            epoch=0,
            model=MODEL,
            revision=REVISION,
            criterion=CRITERION,
            thresholds=self._thresholds(),
            audit_rate=1.0,
        )
        return PipelineSpec(
            name=PIPELINE,
            exits=exits,
            plan=plan,
            branches=(self.config.branches,) * exits,
            labels=self._labels(),
            goal=self.config.goal,
            costs=self.traffic.costs,
        )

    # ------------------------------------------------------------ what happens

    def take_plan(self, plan: Plan, nbytes: int) -> None:
        """Give a plan to all boards; dead ones find it on its topic when they are back."""
        for board in self._all():
            board.take_plan((plan, nbytes))

    def run(self) -> None:
        """Run the simulation."""
        for phase in self.traffic.phases[1:]:
            self.events.at(phase, self.traffic.begin, phase)
        self._schedule_failures()
        self._gather()
        starts = self._lots("starts")
        for board in self._all():
            self.events.at(0.0, board.introduce)
            if self.host is not None:
                # Agents do not report all at once.
                self.events.at(starts.random() * self.config.agents.telemetry_interval_s, board.report)
            board.begin()
        if self.host is not None:
            self.host.open()
            self.events.at(0.0, self.host.start)
        try:
            with _no_collection():
                self.events.run()
        finally:
            if self.host is not None:
                self.host.close()
        for board in self._all():
            if board.is_alive:
                board.close_books()

    def _gather(self) -> None:
        """Connect all boards, each with what the others have announced."""
        for board in self._all():
            board.announce()
        for board in self._all():
            board.join()

    def _schedule_failures(self) -> None:
        lots = self._lots("failures")
        for failure in self.config.failures:
            back_at = failure.at_s + failure.for_s
            if failure.kind == "boards":
                for board in self._victims(failure, lots):
                    self._schedule(failure, board)
            elif failure.kind == "broker":
                self.events.at(failure.at_s, self._cut_off, back_at, lots)
            elif self.host is not None:
                self.events.at(failure.at_s, self.host.die)
                if back_at < math.inf:
                    self.events.at(back_at, self.host.start)

    def _cut_off(self, until: float, lots: random.Random) -> None:
        for board in self._all():
            board.cut_off(until + lots.random() * RECONNECT_S)

    def _schedule(self, failure: BoardsFailure, board: SimulatedBoard) -> None:
        match failure.how:
            case "pause":
                self.events.at(failure.at_s, board.pause, failure.for_s)
                return
            case "stop":
                self.events.at(failure.at_s, board.stop)
            case "kill":
                self.events.at(failure.at_s, board.die, failure.notice_s)
        back_at = failure.at_s + failure.for_s
        if back_at < math.inf:
            self.events.at(back_at, board.revive)

    def _victims(self, failure: BoardsFailure, lots: random.Random) -> list[SimulatedBoard]:
        boards = self.boards.get(failure.boards) or (self._around.boards[failure.boards],)
        return lots.sample(boards, round(failure.share * len(boards)))


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Disable the cyclic garbage collector: thousands of nodes live to the end, and events leave no cycles behind."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
