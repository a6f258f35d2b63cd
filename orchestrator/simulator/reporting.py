"""What a simulated board reports, as `device_agent.reporting` does: state, description, members, telemetry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from distree import topics
from distree.messages.codec import encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus, HeldStage
from distree.messages.member import Call, Member
from distree.messages.telemetry import Telemetry
from distree.topics import DELIVERY, Kind
from orchestrator.simulator.service import SITE

if TYPE_CHECKING:
    from orchestrator.simulator.board import SimulatedBoard, Surroundings


class Reporting:
    """The reports of one board, to the orchestrator and to the origins."""

    __slots__ = ("_around", "_board", "_events", "_host", "_sequence", "_status")

    def __init__(self, board: SimulatedBoard, around: Surroundings) -> None:
        self._board, self._around = board, around
        self._events, self._host = around.events, around.host
        self._sequence = 0
        self._status = DeviceStatus.INIT

    def begin(self) -> None:
        """Start over, for a new run of the board."""
        self._sequence = 0

    # ------------------------------------------------------------ to the orchestrator

    def describe(self) -> None:
        """Describe this board to the orchestrator."""
        settings = self._board.node.settings
        held = [
            HeldStage(
                pipeline=settings.pipeline,
                stage=stage,
                model=settings.model,
                revision=settings.revision,
                branch=settings.branch,
            )
            for stage in settings.stages
        ]
        meta = DeviceMeta(
            device=settings.device,
            boot=settings.boot,
            version="",
            python="",
            runtime="simulated",
            machine="simulated",
            memory_mb=0,
            stages=tuple(held),
            origins=(settings.pipeline,) if settings.origin is not None else (),
        )
        if self._host is not None:
            self._tell_host(Kind.META, encode(meta))

    def report(self) -> None:
        """Send telemetry."""
        if self._host is None:
            return
        board = self._board
        self._sequence += 1
        report = Telemetry(
            device=board.name,
            boot=board.boot,
            sequence=self._sequence,
            uptime_s=self._events.now,
            rss_bytes=0,
            dead_letters=0,
            offline_dropped=0,
            pipelines=(board.node.telemetry(),),
        )
        self._tell_host(Kind.TELEMETRY, encode(report))

    def audited(self, row: bytes) -> None:
        """Send the encoded row of an audit."""
        if self._host is not None:
            self._tell_host(Kind.AUDIT, row)

    def _tell_host(self, kind: Kind, payload: bytes) -> None:
        self._events.at(self._sent(kind, len(payload)), self._at_host, kind, payload)

    def _at_host(self, kind: Kind, payload: bytes) -> None:
        if self._host is None:
            return
        settings = self._board.node.settings
        if kind is Kind.AUDIT:
            topic = topics.of_origin(SITE, settings.pipeline, kind, settings.device)
        else:
            topic = topics.device(SITE, settings.device, kind)
        self._host.arrive(topic, payload, DELIVERY[kind].retain)

    def _sent(self, kind: Kind, nbytes: int) -> float:
        """Record a message; return when it reaches the broker."""
        self._around.books.sent(kind.value, nbytes)
        return self._board.session.link.up(self._events.now, nbytes)

    # ------------------------------------------------------------ to the origins

    def set_status(self, status: DeviceStatus) -> None:
        """Publish a new state: for the orchestrator, and for origins that listen."""
        self._status = status
        state = self._state(status)
        payload = encode(state)
        self._events.at(self._sent(Kind.STATE, len(payload)), self._has_state, state, payload)

    def will(self) -> None:
        """The broker publishes this board's will."""
        state = self._state(DeviceStatus.LOST)
        self._has_state(state, encode(state))

    def _state(self, status: DeviceStatus) -> DeviceState:
        return DeviceState(device=self._board.name, boot=self._board.boot, status=status)

    def _has_state(self, state: DeviceState, payload: bytes) -> None:
        self._around.roll.state_changed(state, len(payload))
        self._at_host(Kind.STATE, payload)

    def announce(self, member: Member, stages: Iterable[int], *, at_once: bool = False) -> None:
        """Publish what this board serves, on the topic of each stage; `at_once` if that was long ago."""
        nbytes, at_broker = len(encode(member)), 0.0
        for _ in stages:
            at_broker = self._sent(Kind.MEMBER, nbytes)
        if at_once:
            self._around.roll.announced(member, tuple(stages), nbytes)
        else:
            self._events.at(at_broker, self._around.roll.announced, member, tuple(stages), nbytes)

    def say_again(self) -> None:
        """Publish description and state again: somebody asked, or this board has reconnected."""
        self.describe()
        self.set_status(self._status)

    def call(self, call: Call) -> None:
        """Ask all boards to announce what they serve."""
        around, nbytes = self._around, len(encode(call))
        self._events.at(self._sent(Kind.CALL, nbytes), around.roll.called, call.caller, nbytes, around.boards.values())
