"""SIGSTOP to every role, and SIGCONT after a while: the process stands still, its connections stay open."""

from __future__ import annotations

import signal

from benchmarks.chaos.faults.roles import TARGETS, Target
from benchmarks.chaos.ledger import Excuses
from benchmarks.chaos.play import Fault
from benchmarks.chaos.scene import Scene


def _pause(target: Target) -> Fault:
    def play(scene: Scene) -> None:
        try:
            with scene.fault():
                for name in target.processes:
                    scene.send(name, signal.SIGSTOP)
        finally:
            for name in target.processes:
                scene.send(name, signal.SIGCONT)

    return Fault(
        name=f"pause:{target.role}",
        what=f"`kill -STOP` of {target.called}, `kill -CONT` after a while",
        play=play,
        setting=target.setting,
        excuses=Excuses(origin_stands_still=target.role == "origin"),
    )


FAULTS = tuple(_pause(target) for target in TARGETS)
