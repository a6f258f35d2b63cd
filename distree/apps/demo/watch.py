"""What the demo sees as an ordinary subscriber."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from distree import topics
from distree.apps.demo.plan import DemoSite
from distree.errors import Problem, RemoteProtocolError
from distree.messages.codec import decode
from distree.messages.device import DeviceState, DeviceStatus
from distree.messages.request import Embedding
from distree.messages.result import Result
from distree.messages.telemetry import StageTelemetry, Telemetry
from distree.topics import Kind
from distree.transport.base import QuietListener, Received, Transport

_STRANDED = frozenset({"deadline", "fallback"})
_PUBLISH_OVERHEAD_BYTES = 13
"""Bytes of an MQTT 5 PUBLISH around topic and payload: header, lengths, packet id, message expiry."""


@dataclass(slots=True)
class Watch:
    """What the demo sees as an ordinary subscriber."""

    ready: set[str] = field(default_factory=set)
    alive: set[str] = field(default_factory=set)
    """Boards that have not said goodbye, and for which the broker has not said it either."""
    results: dict[str, Result] = field(default_factory=dict)
    duplicates: int = 0
    late: int = 0
    branch_counts: tuple[int, ...] = ()
    """Branches of each stage: this many boards get a message to a wide one."""
    origin: str = ""
    announced: set[int] = field(default_factory=set)
    """Stages that boards have announced that they serve."""
    travelled: int = 0
    """Answers in which another board than the origin had a part."""
    stranded: int = 0
    """Answers for which the origin wanted other boards, and had none of them in time."""
    messages: Counter[str] = field(default_factory=Counter)
    traffic: Counter[str] = field(default_factory=Counter)
    telemetry: dict[str, Telemetry] = field(default_factory=dict)
    heard_at: float = 0.0
    first_at: float | None = None

    def take(self, message: Received) -> None:
        """Count one message by the kind of its topic."""
        address = topics.parse(message.topic)
        if address.kind is Kind.TELEMETRY:
            report = decode(Telemetry, message.payload)
            self.telemetry[report.device] = report
            return
        self.heard_at = time.monotonic()
        match address.kind:
            case Kind.STATE if message.payload:
                self._take_state(decode(DeviceState, message.payload))
            case Kind.MEMBER if message.payload and address.stage is not None:
                self.announced.add(address.stage)
            case Kind.RESULT:
                self._take_result(decode(Result, message.payload))
            case Kind.STAGE if address.stage is not None and address.stage < len(self.branch_counts):
                self._count(message, f"stage {address.stage}", max(1, self.branch_counts[address.stage]))
            case Kind.EXIT:
                self._count(message, f"exit {decode(Embedding, message.payload).stage}")
            case Kind.OUTCOME | Kind.DECISION:
                self._count(message, address.kind.value)

    def _count(self, message: Received, hop: str, boards: int = 1) -> None:
        """Count a message between boards that `boards` of them receive."""
        self.messages[hop] += boards
        self.traffic[hop] += boards * (len(message.payload) + len(message.topic) + _PUBLISH_OVERHEAD_BYTES)

    def _take_state(self, state: DeviceState) -> None:
        (self.ready.add if state.status is DeviceStatus.READY else self.ready.discard)(state.device)
        is_gone = state.status in (DeviceStatus.DISCONNECTED, DeviceStatus.LOST)
        (self.alive.discard if is_gone else self.alive.add)(state.device)

    def _take_result(self, result: Result) -> None:
        self.first_at = self.first_at or time.monotonic()
        if not result.final:
            self.late += 1
        elif result.input in self.results:
            self.duplicates += 1
        else:
            self.results[result.input] = result
            has_travelled = any(hop.device != self.origin for hop in result.hops)
            self.travelled += has_travelled
            self.stranded += not has_travelled and result.reason in _STRANDED

    def bytes_per_input(self) -> float:
        """Mean bytes between boards for one input, envelopes and topics counted."""
        return sum(self.traffic.values()) / max(1, len(self.results))

    def bytes_without_exits(self, site: DemoSite) -> float:
        """How many bytes it would be if every input made every hop."""
        counts = site.messages_of_all_hops()
        return sum(counts.get(hop, 0) * self.traffic[hop] / self.messages[hop] for hop in self.messages)

    def missing(self) -> Counter[int]:
        """How many answers were made without a branch, by branch."""
        return Counter(missing.branch for result in self.results.values() for missing in result.missing)

    def stage_reports(self) -> Iterator[StageTelemetry]:
        """Give the last report of every board on each of its stages."""
        for report in self.telemetry.values():
            for part in report.pipelines:
                yield from part.stages


class DemoListener(QuietListener):
    """Hands what the broker sends to a Watch."""

    def __init__(self, transport: Transport, watch: Watch) -> None:
        self._transport = transport
        self._watch = watch

    def disconnected(self, why: Problem) -> None:
        """Say why; the transport reconnects by itself."""
        print(f"demo: {why}", file=sys.stderr)

    def received(self, message: Received) -> None:
        """Count a message; reporting one that breaks the protocol is not the demo's business."""
        self._transport.acknowledge(message.token)
        with contextlib.suppress(RemoteProtocolError):
            self._watch.take(message)
