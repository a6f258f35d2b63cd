"""The broker is stopped in order and started again: with its store, without it, or with one that is out of date."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks.chaos.ledger import Excuses
from benchmarks.chaos.play import Fault
from benchmarks.chaos.scene import CHAIN, Scene

_KEEPS = replace(CHAIN, persistence=True)
_SAVE_S = 1.0
_AGES_S = 2.0


def _restart(change: Callable[[Scene], None], prepare: Callable[[Scene], None]) -> Callable[[Scene], None]:
    def play(scene: Scene) -> None:
        prepare(scene)
        with scene.fault():
            scene.stop_broker()
            change(scene)
        scene.start_broker()

    return play


def _nothing(_scene: Scene) -> None:
    pass


def _delete(scene: Scene) -> None:
    shutil.rmtree(scene.store)


def _copy(scene: Scene) -> None:
    """Have the store written, keep a copy, and let it age."""
    scene.send("broker", signal.SIGUSR1)
    time.sleep(_SAVE_S)
    shutil.copytree(scene.store, scene.folder / "old-store")
    time.sleep(_AGES_S)


def _put_back(scene: Scene) -> None:
    shutil.rmtree(scene.store)
    shutil.copytree(scene.folder / "old-store", scene.store)


FAULTS = (
    Fault(
        name="restart:persistent",
        what="the broker stops in order, and is started again with its store",
        play=_restart(_nothing, _nothing),
        setting=_KEEPS,
    ),
    Fault(
        name="restart:deleted",
        what="the broker stops in order, its store is deleted, and it is started again",
        play=_restart(_delete, _nothing),
        setting=_KEEPS,
        excuses=Excuses(broker_forgets=True),
    ),
    Fault(
        name="restart:stale",
        what="the broker stops in order, a copy of its store from some seconds earlier is put back, and it is started "
        "again",
        play=_restart(_put_back, _copy),
        setting=_KEEPS,
        excuses=Excuses(broker_forgets=True),
    ),
)
