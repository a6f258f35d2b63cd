"""Which audit rows are accepted, and how many never came. No I/O, no clock.

A row counts once, comes from a known board that is an origin of the pipeline (a listed one, where origins are listed),
in the order of its number, and belongs to the bundle and the criterion in force. `audit_shares.py` decides how many
count. What an origin has numbered or drawn and did not get through counts as lost, unless it was this orchestrator that
was not listening: its own absence says nothing about the inputs.

Rows are counted per run of an origin's agent: they come in order within a run, and a run that is heard again continues
where it stood.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from distree.criteria import CRITERIA
from distree.errors import RESTRICT, SAME_BUNDLE, RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.telemetry import OriginTelemetry
from distree.thresholds import NEVER
from orchestrator.tuning.tuned_pipeline import TunedPipeline

MAX_LOST = 1000
"""Most audits that one message can make count as lost: no number that a board makes up goes further."""

MAX_ORIGINS = 10_000
"""Origins that are remembered, the ones heard last."""

MAX_RUNS = 8
"""Runs of one origin that are counted, the latest ones: more than the orchestrator ever knows of a board."""


@dataclass(slots=True)
class _Run:
    sequence: int
    drawn: int = 0
    is_sure: bool = True
    """Whether everything since the last row would have been heard."""


class AuditIntake:
    """Checks and counts the audit rows of one pipeline."""

    def __init__(self, pipeline: TunedPipeline) -> None:
        self._pipeline = pipeline
        self._origins: OrderedDict[str, dict[str, _Run]] = OrderedDict()
        """The runs of each origin by boot, the current one last."""

    def take(self, row: AuditRow, boots: Sequence[str]) -> int:
        """Check a row; return how many rows before it were lost.

        `boots` are the known runs of its sender in which it is an origin of the pipeline. Raises RemoteProtocolError
        for a row that is refused: `origin`, `device`, `boot`, `revision`, `criterion`, `exits`, `scores`, `missing`, or
        `old-sequence`.
        """
        boot = self._check_sender(row, boots)
        self._check_content(row)
        runs = self._origins.get(row.origin)
        if runs is None:
            self._origins[row.origin] = {boot: _Run(row.sequence)}
            if len(self._origins) > MAX_ORIGINS:
                self._origins.popitem(last=False)
            return 0
        self._origins.move_to_end(row.origin)
        known = runs.get(boot)
        if known is not None and row.sequence <= known.sequence:
            raise RemoteProtocolError("old-sequence", f"{row.sequence} after {known.sequence}")
        run, lost = _turn_to(runs, boot)
        if run.is_sure:
            lost += row.sequence - run.sequence - 1
        run.sequence, run.is_sure = row.sequence, True
        return min(lost, MAX_LOST)

    def reported(self, device: str, boot: str, origin: OriginTelemetry) -> int:
        """Note how many inputs an origin says it has drawn; return how many of an earlier run were lost."""
        runs = self._origins.get(device)
        if runs is None:
            return 0
        run, lost = _turn_to(runs, boot)
        run.drawn = origin.audits_drawn
        return min(lost, MAX_LOST)

    def away(self) -> None:
        """Note that this orchestrator is not listening: rows missing before the next ones do not count as lost."""
        for runs in self._origins.values():
            for run in runs.values():
                run.is_sure = False

    def _check_sender(self, row: AuditRow, boots: Sequence[str]) -> str:
        listed = self._pipeline.origins
        if listed and row.origin not in listed:
            what = f"{row.origin} is not among the origins of {self._pipeline.name}"
            raise RemoteProtocolError(
                "origin", what, "add it to origins in orchestrator.yaml if its inputs are to count"
            )
        if not boots:
            what = f"{row.origin} is not known as an origin of {self._pipeline.name}"
            raise RemoteProtocolError("device", what, RESTRICT)
        # An agent tells its pipelines apart by what it appends to the id of its run.
        fitting = [boot for boot in boots if row.boot.startswith(boot)]
        if not fitting:
            raise RemoteProtocolError("boot", f"{row.boot!r} is not a known run of {row.origin}", RESTRICT)
        return max(fitting, key=len)

    def _check_content(self, row: AuditRow) -> None:
        pipeline = self._pipeline
        if row.sequence < 1:
            raise RemoteProtocolError("old-sequence", "rows are numbered from 1", RESTRICT)
        if row.revision != pipeline.revision:
            raise RemoteProtocolError("revision", f"expected {pipeline.revision}, received {row.revision}", SAME_BUNDLE)
        if row.criterion != pipeline.criterion:
            raise RemoteProtocolError("criterion", f"expected {pipeline.criterion}, received {row.criterion[:40]!r}")
        if not row.lost and len(row.predictions) != pipeline.exits:
            raise RemoteProtocolError(
                "exits", f"expected {pipeline.exits}, received {len(row.predictions)}", SAME_BUNDLE
            )
        if pipeline.labels and max(row.predictions, default=0) >= len(pipeline.labels):
            raise RemoteProtocolError("exits", f"class {max(row.predictions)} does not exist", SAME_BUNDLE)
        possible = CRITERIA[pipeline.criterion].range
        for score in row.scores:
            # What an exit that knows nothing scores is in no range.
            if score > -NEVER and not possible.least <= score <= possible.most:
                raise RemoteProtocolError(
                    "scores", f"{score:g}, but scores of {pipeline.criterion} are {possible}", SAME_BUNDLE
                )
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
        """Go on where another one stood; rows sent in between are not counted as lost."""
        self._origins = OrderedDict()
        for name, boot, sequence, drawn in data:
            run = _Run(int(str(sequence)), int(str(drawn)), is_sure=False)
            self._origins.setdefault(str(name), {})[str(boot)] = run


def _turn_to(runs: dict[str, _Run], boot: str) -> tuple[_Run, int]:
    """Make a run of an origin the current one; return it, and how many rows of the one before are lost by that.

    What that one had drawn and not sent is lost. Should it still come, it has been counted, and is refused as old.
    """
    before, last = next(reversed(runs.items()))
    if before == boot:
        return last, 0
    lost = max(0, last.drawn - last.sequence) if last.is_sure else 0
    last.sequence += lost
    runs[boot] = runs.pop(boot) if boot in runs else _Run(0, is_sure=last.is_sure)
    while len(runs) > MAX_RUNS:
        del runs[next(iter(runs))]
    return runs[boot], lost
