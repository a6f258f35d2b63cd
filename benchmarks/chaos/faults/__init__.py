"""The faults of the matrix, one file per kind: each has a tuple FAULTS of what it can do to a site."""

from __future__ import annotations

from benchmarks.chaos.faults import broker_restart, clock, disk, kill, links, pause, plans, same_name
from benchmarks.chaos.play import Fault

FAULTS: dict[str, Fault] = {
    fault.name: fault
    for module in (kill, pause, broker_restart, links, same_name, disk, clock, plans)
    for fault in module.FAULTS
}
"""All faults, by name, in the order of the page."""
