"""Which audit rows are believed, and how many never came: the books on what origins send. No I/O, no clock.

A row counts once, comes from a board that is known and origin of the pipeline, in the order of its number, and is of
the bundle and the criterion in force. What an origin has numbered or drawn and did not get through counts as lost,
unless it was this orchestrator that was not listening: its own absence says nothing about the inputs.

There are books for each run of an origin's agent that the fleet remembers: rows come in order within a run, and a run
that is heard again goes on where it stood.
"""

from __future__ import annotations

from dataclasses import dataclass

from distree.errors import RESTRICT, SAME_BUNDLE, RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.telemetry import OriginTelemetry
from orchestrator.config import Pipeline
from orchestrator.fleet import RUNS_REMEMBERED, Device

MOST_LOST = 1000
"""Most audits that one message can make count as lost: no number that a board invents goes further."""

MAX_ORIGINS = 10_000


@dataclass(slots=True)
class _Run:
    sequence: int
    drawn: int = 0
    is_sure: bool = True
    """Whether everything since the last row would have been heard."""


class Intake:
    """The books of one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._origins: dict[str, dict[str, _Run]] = {}
        """The runs of each origin by boot, the current one last."""

    def take(self, row: AuditRow, device: Device | None) -> int:
        """Check a row; return how many rows before it were lost.

        Raises RemoteProtocolError for a row that is not believed: `device`, `boot`, `revision`, `criterion`, `exits`,
        `missing`, or `old-sequence`.
        """
        boot = self._check_sender(row, device)
        self._check_content(row)
        runs = self._origins.get(row.origin)
        if runs is None:
            if len(self._origins) >= MAX_ORIGINS:
                raise RemoteProtocolError("device", f"rows of {MAX_ORIGINS} origins came already", RESTRICT)
            self._origins[row.origin] = {boot: _Run(row.sequence)}
            return 0
        known = runs.get(boot)
        if known is not None and row.sequence <= known.sequence:
            raise RemoteProtocolError("old-sequence", f"{row.sequence} after {known.sequence}")
        run, lost = _turn_to(runs, boot)
        if run.is_sure:
            lost += row.sequence - run.sequence - 1
        run.sequence, run.is_sure = row.sequence, True
        return min(lost, MOST_LOST)

    def reported(self, device: str, boot: str, origin: OriginTelemetry) -> int:
        """Note how many inputs an origin says it has drawn; return how many of an earlier boot were lost."""
        runs = self._origins.get(device)
        if runs is None:
            return 0
        run, lost = _turn_to(runs, boot)
        run.drawn = origin.audits_drawn
        return min(lost, MOST_LOST)

    def away(self) -> None:
        """Note that this orchestrator was not listening: gaps up to the next rows are its own."""
        for runs in self._origins.values():
            for run in runs.values():
                run.is_sure = False

    def _check_sender(self, row: AuditRow, device: Device | None) -> str:
        name = self._pipeline.name
        # Any message may have made another run the current one for a moment.
        known = () if device is None else (device, *device.earlier)
        runs = [run for run in known if run.meta is not None and name in run.meta.origins]
        if not runs:
            raise RemoteProtocolError("device", f"{row.origin} is not known as an origin of {name}", RESTRICT)
        # An agent tells its pipelines apart by what it appends to the id of its run.
        boots = [run.boot for run in runs if row.boot.startswith(run.boot)]
        if not boots:
            raise RemoteProtocolError("boot", f"{row.boot!r} is no run of {row.origin} that is known", RESTRICT)
        return max(boots, key=len)

    def _check_content(self, row: AuditRow) -> None:
        pipeline, plan = self._pipeline, self._pipeline.plan
        if row.sequence < 1:
            raise RemoteProtocolError("old-sequence", "rows are numbered from 1", RESTRICT)
        if row.revision != plan.revision:
            raise RemoteProtocolError("revision", f"expected {plan.revision}, received {row.revision}", SAME_BUNDLE)
        if row.criterion != plan.criterion:
            raise RemoteProtocolError("criterion", f"expected {plan.criterion}, received {row.criterion[:40]!r}")
        if not row.lost and len(row.predictions) != pipeline.exits:
            raise RemoteProtocolError(
                "exits", f"expected {pipeline.exits}, received {len(row.predictions)}", SAME_BUNDLE
            )
        if pipeline.labels and max(row.predictions, default=0) >= len(pipeline.labels):
            raise RemoteProtocolError("exits", f"class {max(row.predictions)} does not exist", SAME_BUNDLE)
        # One set of thresholds decides all exits, so those of missing branches need every stage to have branches.
        branches = min(pipeline.branches, default=0)
        if row.missing and (max(row.missing) >= branches or len(row.missing) >= branches):
            raise RemoteProtocolError(
                "missing", f"branches {row.missing} cannot be missing at every stage", SAME_BUNDLE
            )

    # ------------------------------------------------------------ restarts

    def snapshot(self) -> list[list[object]]:
        """Return plain data, for `restore`."""
        return [
            [name, boot, run.sequence, run.drawn] for name, runs in self._origins.items() for boot, run in runs.items()
        ]

    def restore(self, data: list[list[object]]) -> None:
        """Go on where another one stood; rows that came meanwhile are not counted as lost."""
        self._origins = {}
        for name, boot, sequence, drawn in data:
            run = _Run(int(str(sequence)), int(str(drawn)), is_sure=False)
            self._origins.setdefault(str(name), {})[str(boot)] = run


def _turn_to(runs: dict[str, _Run], boot: str) -> tuple[_Run, int]:
    """Make a run of an origin the current one; return it, and how many rows of the one before are lost with that.

    What that one had drawn and not sent is lost. Should it still come, it is counted already, and refused as old.
    """
    before, last = next(reversed(runs.items()))
    if before == boot:
        return last, 0
    lost = max(0, last.drawn - last.sequence) if last.is_sure else 0
    last.sequence += lost
    runs[boot] = runs.pop(boot) if boot in runs else _Run(0, is_sure=last.is_sure)
    while len(runs) > RUNS_REMEMBERED + 1:
        del runs[next(iter(runs))]
    return runs[boot], lost
