"""Which audit rows are believed, and how many never came: the books on what origins send. No I/O, no clock.

A row counts once, comes from a board that is known and origin of the pipeline, in the order of its number, and is of
the bundle and the criterion in force. What an origin has numbered or drawn and did not get through counts as lost,
unless it was this orchestrator that was not listening: its own absence says nothing about the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from distree.errors import RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.telemetry import OriginTelemetry
from orchestrator.config import Pipeline
from orchestrator.fleet import Device

MOST_LOST = 1000
"""Most audits that one message can make count as lost: no number that a board invents goes further."""

MAX_ORIGINS = 10_000


@dataclass(slots=True)
class _Origin:
    boot: str
    sequence: int
    drawn: int = 0
    is_sure: bool = True
    """Whether everything since the last row would have been heard."""


class Intake:
    """The books of one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._origins: dict[str, _Origin] = {}

    def take(self, row: AuditRow, device: Device | None) -> int:
        """Check a row; return how many rows before it were lost.

        Raises RemoteProtocolError for a row that is not believed: `device`, `boot`, `revision`, `criterion`, `exits`,
        `missing`, or `old-sequence`.
        """
        boot = self._check_sender(row, device)
        self._check_content(row)
        known = self._origins.get(row.origin)
        if known is None:
            if len(self._origins) >= MAX_ORIGINS:
                raise RemoteProtocolError("device", f"rows of {MAX_ORIGINS} origins came already")
            self._origins[row.origin] = _Origin(boot, row.sequence)
            return 0
        if known.boot != boot:
            lost = self._next_boot(known, boot)
        elif row.sequence <= known.sequence:
            raise RemoteProtocolError("old-sequence", f"{row.sequence} after {known.sequence}")
        else:
            lost = 0
        if known.is_sure:
            lost += row.sequence - known.sequence - 1
        known.sequence, known.is_sure = row.sequence, True
        return min(lost, MOST_LOST)

    def reported(self, device: str, boot: str, origin: OriginTelemetry) -> int:
        """Note how many inputs an origin says it has drawn; return how many of an earlier boot were lost."""
        known = self._origins.get(device)
        if known is None:
            return 0
        lost = self._next_boot(known, boot) if known.boot != boot else 0
        known.drawn = origin.audits_drawn
        return min(lost, MOST_LOST)

    def away(self) -> None:
        """Note that this orchestrator was not listening: gaps up to the next rows are its own."""
        for known in self._origins.values():
            known.is_sure = False

    def _next_boot(self, known: _Origin, boot: str) -> int:
        """An origin's agent was started anew; what it had drawn before and not sent is lost."""
        lost = max(0, known.drawn - known.sequence) if known.is_sure else 0
        known.boot, known.sequence, known.drawn = boot, 0, 0
        return lost

    def _check_sender(self, row: AuditRow, device: Device | None) -> str:
        name = self._pipeline.name
        if device is None or device.meta is None or name not in device.meta.origins:
            raise RemoteProtocolError("device", f"{row.origin} is not known as an origin of {name}")
        # An agent tells its pipelines apart by what it appends to the id of its run.
        if not row.boot.startswith(device.boot):
            raise RemoteProtocolError("boot", f"{row.boot!r} is not the run of {row.origin} that is known")
        return device.boot

    def _check_content(self, row: AuditRow) -> None:
        pipeline, plan = self._pipeline, self._pipeline.plan
        if row.sequence < 1:
            raise RemoteProtocolError("old-sequence", "rows are numbered from 1")
        if row.revision != plan.revision:
            raise RemoteProtocolError("revision", f"expected {plan.revision}, received {row.revision}")
        if row.criterion != plan.criterion:
            raise RemoteProtocolError("criterion", f"expected {plan.criterion}, received {row.criterion[:40]!r}")
        if not row.lost and len(row.predictions) != pipeline.exits:
            raise RemoteProtocolError("exits", f"expected {pipeline.exits}, received {len(row.predictions)}")
        if pipeline.labels and max(row.predictions, default=0) >= len(pipeline.labels):
            raise RemoteProtocolError("exits", f"class {max(row.predictions)} does not exist")
        # One set of thresholds decides all exits, so those of missing branches need every stage to have branches.
        branches = min(pipeline.branches, default=0)
        if row.missing and (max(row.missing) >= branches or len(row.missing) >= branches):
            raise RemoteProtocolError("missing", f"branches {row.missing} cannot be missing at every stage")

    # ------------------------------------------------------------ restarts

    def snapshot(self) -> list[list[object]]:
        """Return plain data, for `restore`."""
        return [[name, known.boot, known.sequence, known.drawn] for name, known in self._origins.items()]

    def restore(self, data: list[list[object]]) -> None:
        """Go on where another one stood; rows that came meanwhile are not counted as lost."""
        self._origins = {
            str(name): _Origin(str(boot), int(str(sequence)), int(str(drawn)), is_sure=False)
            for name, boot, sequence, drawn in data
        }
