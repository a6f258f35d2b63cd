"""The wall clock of all boards and of the orchestrator jumps by hours, forward and back, while they run."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timedelta

from benchmarks.chaos.play import Fault
from benchmarks.chaos.scene import CHAIN, Scene

JUMPS_H = (6.0, -3.0, 24.0, 0.0)


def _jump(scene: Scene) -> None:
    assert scene.clock is not None
    with scene.fault():
        for hours in JUMPS_H:
            scene.clock.jump(hours)
            time.sleep(scene.hold_s / len(JUMPS_H))
    with scene.observer.lock:
        dates = sorted(answer.dated for found in scene.observer.finals.values() for answer in found)
    scene.said.append(f"results are dated from {dates[0]} to {dates[-1]}")
    if datetime.fromisoformat(dates[-1]) - datetime.fromisoformat(dates[0]) < timedelta(hours=24):
        scene.failures.append("the clock of the origins did not jump")


FAULTS = (
    Fault(
        name="clock",
        what="the wall clocks of boards and orchestrator jump 6 h forward, 9 h back, 27 h forward and 24 h back",
        play=_jump,
        setting=replace(CHAIN, orchestrator=True, clock=True),
    ),
)
