"""Disks that fill to the last byte, and empty again."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.chaos.disk import empty, fill
from benchmarks.chaos.ledger import Excuses
from benchmarks.chaos.play import Fault
from benchmarks.chaos.scene import CHAIN, ORIGINS, STORE, Scene

_FOLDERS = tuple(f"{origin}-state" for origin in ORIGINS)


def _fill_origins(scene: Scene) -> None:
    with scene.fault():
        for name in _FOLDERS:
            fill(scene.folder / name)
    for name in _FOLDERS:
        empty(scene.folder / name)
    scene.expect_warning("cam-spool", "its full disk")


def _fill_broker(scene: Scene) -> None:
    with scene.fault():
        fill(scene.store)
        scene.stop_broker()
        scene.start_broker()
    empty(scene.store)


FAULTS = (
    Fault(
        name="disk:origin",
        what="the disk with the `state_dir` of both origins fills to the last byte, and empties again",
        play=_fill_origins,
        setting=replace(CHAIN, small_disks=_FOLDERS),
    ),
    Fault(
        name="disk:broker",
        what="the disk with the broker's store fills to the last byte, the broker is restarted in order, and the disk "
        "empties again",
        play=_fill_broker,
        setting=replace(CHAIN, persistence=True, small_disks=(STORE,)),
        excuses=Excuses(broker_forgets=True),
    ),
)
