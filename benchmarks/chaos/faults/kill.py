"""SIGKILL to every role; after a while it is started again."""

from __future__ import annotations

import time
from dataclasses import replace

from benchmarks.chaos.conditions import GOOD, Conditions
from benchmarks.chaos.faults.roles import TARGETS, Target
from benchmarks.chaos.ledger import Excuses
from benchmarks.chaos.play import Fault
from benchmarks.chaos.scene import BROKER, Scene

_DELAYED_FOR_S = 1.0
_MORE = {
    "origin": " while answers from stage 1 on take some 200 ms each way, so that inputs are under way",
    "broker": ", which keeps nothing on disk",
}
_UNDER_WAY = Conditions(delay_s=0.2, jitter_s=0.05)


def _kill(target: Target) -> Fault:
    is_origin = target.role == "origin"

    def play(scene: Scene) -> None:
        if is_origin:
            # Else it would hold next to nothing at any moment.
            scene.become(_UNDER_WAY, "mid")
            time.sleep(_DELAYED_FOR_S)
        with scene.fault():
            scene.kill(*target.processes)
        scene.become(GOOD, *scene.setting.links)
        for name in target.processes:
            if name == BROKER:
                scene.start_broker()
            else:
                scene.start(name)

    return Fault(
        name=f"kill:{target.role}",
        what=f"`kill -9` of {target.called}{_MORE.get(target.role, '')}; started again after a while",
        play=play,
        setting=replace(target.setting, links=("mid",)) if is_origin else target.setting,
        # Its store is written every half hour and at an orderly end, so that a killed broker has forgotten all.
        excuses=Excuses(origin_dies=is_origin, broker_forgets=target.role == "broker"),
    )


FAULTS = tuple(_kill(target) for target in TARGETS)
