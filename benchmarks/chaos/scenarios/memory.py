"""Resident memory of every agent at a tenth of the inputs and at the end, for every placement of the stages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.chaos.broker import make_broker
from benchmarks.chaos.report import Report
from benchmarks.chaos.site import (
    SAMPLES,
    TINY_WIDE,
    Books,
    Options,
    Publisher,
    ShortfallError,
    Site,
    closing_all,
    open_site,
    tiny_images,
)
from distree.thresholds import NEVER

MAX_GROWTH_KB = 1024
SLOWEST_HZ = 150.0
"""Inputs that are answered more slowly than this are not waited for."""


def _replay(path: Any = SAMPLES) -> dict[str, Any]:
    return {"deadline_ms": 30_000, "source": {"kind": "replay", "path": str(path), "repeat": True}}


def _one(site: Site) -> None:
    site.agent("cam", [0, 1, 2], origin=_replay())


def _two(site: Site) -> None:
    site.agent("far", [1, 2])
    site.agent("cam", [0], origin=_replay())


def _three(site: Site) -> None:
    site.agent("mid", [1])
    site.agent("last", [2])
    site.agent("cam", [0], origin=_replay())


def _around(site: Site) -> None:
    site.agent("mid", [1])
    site.agent("cam", [0, 2], origin=_replay())


def _wide(site: Site) -> None:
    path = site.folder / "tiny.npz"
    np.savez(path, input=tiny_images())
    for branch in range(2):
        site.agent(f"branch{branch}", [0, 1, 2], bundle=TINY_WIDE, branch=branch)
    site.agent("cam", bundle=TINY_WIDE, origin=_replay(path))


PLACEMENTS: dict[str, Callable[[Site], None]] = {
    "one": _one,
    "two": _two,
    "three": _three,
    "around": _around,
    "wide": _wide,
}
CASES = tuple(PLACEMENTS) + tuple(f"{name}-travelling" for name in PLACEMENTS)


def run(report: Report, case: str, options: Options) -> None:
    name, _, travelling = case.partition("-")
    last = options.inputs
    first = last // 11
    with make_broker(options.broker) as broker, open_site(broker.port, options, results=False) as site:
        if travelling:
            publisher = Publisher(broker.port)
            with closing_all(publisher):
                site.plan(publisher, (NEVER, NEVER), TINY_WIDE if name == "wide" else "fashion")
        started_at = time.monotonic()
        PLACEMENTS[name](site)
        before = _at(site, first)
        after = _at(site, last)
        with site.observer.lock:
            books = site.observer.books["cam"]
        report.note(
            inputs=books.answered,
            a_second=books.answered / (time.monotonic() - started_at),
            dead_letters=sum(site.observer.dead.values()),
        )
        for device in site.processes:
            if device not in after:
                report.check(False, f"{device} has ended; its log ends: {site.log(device)[-200:]!r}")
                continue
            growth = after[device]["VmRSS"] - before[device]["VmRSS"]
            report.note(**{device: f"{before[device]['VmRSS'] / 1024:.1f} → {after[device]['VmRSS'] / 1024:.1f} MiB"})
            report.check(growth <= MAX_GROWTH_KB, f"{device} grew by {growth / 1024:.1f} MiB")


def _at(site: Site, answered: int) -> dict[str, dict[str, int]]:
    """Return every agent's memory once the origin has answered so many."""
    observer = site.observer
    if not observer.until(
        lambda: observer.books.get("cam", Books()).answered >= answered, 30.0 + answered / SLOWEST_HZ, 0.1
    ):
        raise ShortfallError(f"{observer.books.get('cam', Books()).answered} of {answered} answered in time")
    return site.memory()
