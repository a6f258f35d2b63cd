"""Where inputs of a pipeline cannot continue, because no board serves what they need. No I/O, no clock.

Boards with one revision of the bundle have the same model to the last bit, and an origin's inputs only go to boards
with its own revision. So a stage can be served by many boards, and still by none for the inputs of one origin.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from distree.errors import SAME_BUNDLE, Problem
from distree.messages.device import DeviceStatus
from distree.printable import printable
from orchestrator.fleet import Device

NAMED = 3
"""Boards that a message names; it counts the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A ready board and the revision with which it serves something."""

    device: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A stage, or a branch of a wide one, that no ready board serves for the inputs of some origins.

    `revision` is the origins', and `others` are boards that serve it with another one. Where no board serves it at all,
    `revision` is None and `others` is empty. `branch` is None for a plain stage.
    """

    stage: int
    branch: int | None
    revision: str | None
    origins: tuple[str, ...]
    others: tuple[Holder, ...] = ()

    @property
    def what(self) -> Hashable:
        """What is missing, regardless of who needs it and who has another revision."""
        return self.stage, self.branch, self.revision


def find_gaps(pipeline: str, branches: Sequence[int], devices: Iterable[Device]) -> tuple[Gap, ...]:
    """Return the gaps of a pipeline for its ready origins.

    `branches` has the number of branches per stage, 0 for a plain one. An origin also serves what it runs itself. An
    origin whose revision is not known yet accepts any.
    """
    ready = [device for device in devices if device.status is DeviceStatus.READY]
    return tuple(_find(branches, _origins(pipeline, ready), _holders(pipeline, ready)))


def gap_text(gap: Gap) -> str:
    """Say what is missing, and what to do about it.

    >>> gap_text(Gap(stage=2, branch=None, revision=None, origins=("cam1",)))
    'no board serves stage 2; start one that does'
    """
    what = f"stage {gap.stage}" if gap.branch is None else f"stage {gap.stage} branch {gap.branch}"
    if gap.revision is None:
        return str(Problem(f"no board serves {what}", "start one that does"))
    others = [f"{other.device} has {printable(other.revision)}" for other in gap.others[:NAMED]]
    if len(gap.others) > NAMED:
        others.append(f"{len(gap.others) - NAMED} more have others")
    missing = f"no board serves {what} with bundle revision {printable(gap.revision)} ({', '.join(others)})"
    return str(Problem(missing, SAME_BUNDLE))


def _find(
    branches: Sequence[int], origins: dict[str | None, list[str]], holders: dict[tuple[int, int | None], list[Holder]]
) -> Iterator[Gap]:
    if not origins:
        return
    for stage, count in enumerate(branches):
        for branch in range(count) if count else (None,):
            serving = holders.get((stage, branch), [])
            if not serving:
                everybody = sorted(name for names in origins.values() for name in names)
                yield Gap(stage=stage, branch=branch, revision=None, origins=tuple(everybody))
                continue
            served = {None, *(holder.revision for holder in serving)}
            for revision, names in origins.items():
                if revision not in served:
                    others = tuple(serving)
                    yield Gap(stage=stage, branch=branch, revision=revision, origins=tuple(names), others=others)


def _origins(pipeline: str, ready: Iterable[Device]) -> dict[str | None, list[str]]:
    """Return the ids of the origins, by revision."""
    found: dict[str | None, list[str]] = {}
    for device in ready:
        if device.meta is not None and pipeline in device.meta.origins:
            found.setdefault(_revision(pipeline, device), []).append(device.device)
    return found


def _revision(pipeline: str, device: Device) -> str | None:
    """Return the revision of an origin: of the stages that it serves, or else the one that it reports."""
    held = [part.revision for part in (device.meta.stages if device.meta else ()) if part.pipeline == pipeline]
    reports = device.telemetry.pipelines if device.telemetry else ()
    return next(iter([*held, *(part.revision for part in reports if part.pipeline == pipeline)]), None)


def _holders(pipeline: str, ready: Iterable[Device]) -> dict[tuple[int, int | None], list[Holder]]:
    """Return who serves each stage, or each branch of one."""
    found: dict[tuple[int, int | None], list[Holder]] = {}
    for device in ready:
        for held in device.meta.stages if device.meta is not None else ():
            if held.pipeline == pipeline:
                holder = Holder(device=device.device, revision=held.revision)
                found.setdefault((held.stage, held.branch), []).append(holder)
    return found
