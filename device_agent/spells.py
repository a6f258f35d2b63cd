"""Spells of trouble: what goes wrong for many inputs is told when it begins and when it is over, and not for each.

All of it is read from the counters that a board reports anyway, so that it costs nothing where inputs are worked on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from distree.formatting import counted
from distree.messages.events import EventKind, Severity
from distree.messages.telemetry import OriginTelemetry, PipelineTelemetry, StageTelemetry
from distree.node import Tell
from distree.record import record

QUIET_S = 5.0
"""A spell is over when nothing has gone wrong for this long."""

_EARLY = ("fallback", "deadline")
"""Reasons of answers that later boards should have given."""


@record
class _Trouble:
    """One kind of trouble: how often it has happened since the agent started, and how to say that it has.

    `well` counts what went well instead: while nothing does, a spell is not over. None where quiet is enough.
    """

    name: str
    kind: EventKind
    count: int
    well: int | None
    begins: str
    remedy: str
    ends: str


@dataclass(slots=True)
class _Spell:
    since: float
    last_at: float
    before: int
    well_before: int | None


class Spells:
    """Watches the reports of one pipeline on one board."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._spells: dict[str, _Spell] = {}

    def note(self, now: float, report: PipelineTelemetry) -> list[Tell]:
        """Take in a report made at `now`, in monotonic seconds; return what begins and what is over."""
        told = []
        for trouble in _troubles(report):
            before = self._counts.get(trouble.name, 0)
            self._counts[trouble.name] = trouble.count
            spell = self._spells.get(trouble.name)
            if trouble.count > before:
                if spell is None:
                    self._spells[trouble.name] = _Spell(now, now, before, trouble.well)
                    told.append(Tell(kind=trouble.kind, what=trouble.begins, remedy=trouble.remedy))
                else:
                    spell.last_at, spell.well_before = now, trouble.well
            elif spell is not None and now >= spell.last_at + QUIET_S and _is_well(spell, trouble):
                del self._spells[trouble.name]
                many = counted(trouble.count - spell.before, "input")
                what = f"{trouble.ends} ({many} in {spell.last_at - spell.since + 1:.0f} s)"
                told.append(Tell(kind=trouble.kind, what=what, severity=Severity.INFO))
        return told


def _is_well(spell: _Spell, trouble: _Trouble) -> bool:
    return trouble.well is None or spell.well_before is None or trouble.well > spell.well_before


def _troubles(report: PipelineTelemetry) -> Iterator[_Trouble]:
    if report.origin is not None:
        yield from _of_origin(report.origin)
    for stage in report.stages:
        yield from _of_stage(stage)


def _of_origin(origin: OriginTelemetry) -> Iterator[_Trouble]:
    early = sum(origin.reasons.get(reason, 0) for reason in _EARLY)
    yield _Trouble(
        name="shed",
        kind=EventKind.SHED,
        count=origin.shed + origin.dropped,
        well=None,
        begins="inputs are turned away because there is no room for them",
        remedy="send fewer, or add boards",
        ends="there is room for inputs again; some were turned away",
    )
    yield _Trouble(
        name="early",
        kind=EventKind.FALLBACK,
        count=early,
        well=origin.answered - early,
        begins="inputs are answered with the best guess so far, because boards of later stages are missing or too slow",
        remedy="run distree top, or distree orchestrator status, to see which",
        ends="inputs are answered in full again; some were not",
    )


def _of_stage(stage: StageTelemetry) -> Iterator[_Trouble]:
    k = stage.stage
    yield _Trouble(
        name=f"shed {k}",
        kind=EventKind.SHED,
        count=stage.shed,
        well=None,
        begins=f"stage {k}: more arrives than this board can compute, and what has waited longest is given up",
        remedy="add a board that serves the stage, or allow more to wait with inbox",
        ends=f"stage {k}: this board keeps up again; some inputs were given up",
    )
