"""What is recorded while a fleet is simulated: a few numbers per answer and per run, to be summarised later.

Nothing here has a part in what happens.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from distree.messages.plan import Plan
from distree.messages.request import Reason
from distree.messages.result import Result
from distree.messages.telemetry import PipelineTelemetry
from orchestrator.simulator.traffic import Traffic

REASONS: tuple[Reason, ...] = ("confident", "last", "deadline", "fallback", "shed")

NO_EXIT = -1


def _floats() -> array[float]:
    return array("d")


def _small() -> array[int]:
    return array("b")


@dataclass(slots=True)
class Books:
    """Answers are parallel arrays, and so are runs of segments: of `run_stage`, for `run_s` seconds until `run_at`."""

    traffic: Traffic
    open: dict[str, int] = field(default_factory=dict)
    """Idents of inputs that are accepted and not answered yet, by request."""
    accepted: int = 0
    missed: int = 0
    """Inputs that came while their origin was dead: never accepted."""
    lost: int = 0
    """Inputs that died with their origin, which kept no spool."""
    twice: int = 0
    """Second final results of an input; there should be none."""
    late: int = 0
    """Results that are not final, because another answer came before."""
    in_time: int = 0
    without_branches: int = 0
    answered_at: array[float] = field(default_factory=_floats)
    latency_s: array[float] = field(default_factory=_floats)
    exits: array[int] = field(default_factory=_small)
    reasons: array[int] = field(default_factory=_small)
    differs: array[int] = field(default_factory=_small)
    """1 where the answer differs from the last exit's."""
    right: array[int] = field(default_factory=_small)
    last_right: array[int] = field(default_factory=_small)
    run_at: array[float] = field(default_factory=_floats)
    run_s: array[float] = field(default_factory=_floats)
    run_stage: array[int] = field(default_factory=_small)
    messages: Counter[str] = field(default_factory=Counter)
    """Messages that boards and the orchestrator have sent to the broker, by kind, and their bytes in total."""
    message_bytes: int = 0
    deliveries: Counter[str] = field(default_factory=Counter)
    """Announcements of boards that the broker has delivered to origins, by kind, and their bytes in total."""
    delivery_bytes: int = 0
    subscriptions: int = 0
    """Subscriptions to the states of boards that have announced themselves."""
    unread: int = 0
    """Messages that nobody reads, as the broker has said."""
    audits_drawn: int = 0
    audits_lost: int = 0
    audit_runs: int = 0
    wasted_runs: int = 0
    resent: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    stops: int = 0
    pauses: int = 0
    plans: list[tuple[float, Plan]] = field(default_factory=list)
    alarms: list[float] = field(default_factory=list)

    def answered(self, now: float, result: Result, deadline_s: float) -> None:
        """Record a result."""
        if not result.final:
            self.late += 1
            return
        ident = self.open.pop(result.request, None)
        if ident is None:
            self.twice += 1
            return
        traffic, last = self.traffic, self.traffic.prediction(ident, self.traffic.exits - 1)
        label = traffic.label(ident)
        # Boards compute in floats: a deadline that is met to the last bit is met.
        self.in_time += result.latency_s <= deadline_s + 1e-9
        self.without_branches += bool(result.missing)
        self.answered_at.append(now)
        self.latency_s.append(result.latency_s)
        self.exits.append(NO_EXIT if result.exit is None else result.exit)
        self.reasons.append(REASONS.index(result.reason))
        self.differs.append(result.class_id != last)
        self.right.append(result.class_id == label)
        self.last_right.append(last == label)

    def ran(self, now: float, stage: int, took_s: float) -> None:
        """Record a run of a stage's segment."""
        self.run_at.append(now)
        self.run_s.append(took_s)
        self.run_stage.append(stage)

    def ended(self, report: PipelineTelemetry) -> None:
        """Record what a node counted, when it ends."""
        for part in report.stages:
            self.audit_runs += part.audited
            self.wasted_runs += part.wasted
        if report.origin is not None:
            self.audits_drawn += report.origin.audits_drawn
            self.audits_lost += report.origin.audits_lost
            self.resent += report.origin.resent

    def sent(self, kind: str, nbytes: int) -> None:
        """Record a message."""
        self.messages[kind] += 1
        self.message_bytes += nbytes

    def delivered(self, kind: str, count: int, nbytes: int) -> None:
        """Record delivered copies of a board's announcement: how many, and how many bytes in total."""
        self.deliveries[kind] += count
        self.delivery_bytes += nbytes
