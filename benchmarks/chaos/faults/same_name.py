"""A second agent comes up under the name of one that runs, with a folder of its own, and is stopped after a while."""

from __future__ import annotations

import yaml

from benchmarks.chaos.ledger import Excuses
from benchmarks.chaos.play import Fault
from benchmarks.chaos.scene import ORIGINS, Scene
from benchmarks.chaos.site import READY_S, ShortfallError
from distree.formatting import counted

_RIVAL = "rival"


def _double(device: str, role: str, called: str) -> Fault:
    def play(scene: Scene) -> None:
        config = yaml.safe_load((scene.folder / f"{device}.yaml").read_text())
        config["state_dir"] = str(scene.folder / f"{_RIVAL}-state")
        (scene.folder / f"{_RIVAL}.yaml").write_text(yaml.safe_dump(config))
        observer = scene.observer
        with observer.lock:
            first, before = observer.boots[device], observer.boot_changes[device]
        scene.start(_RIVAL)
        if not observer.until(lambda: observer.boot_changes[device] > before, READY_S):
            raise ShortfallError("the second agent never has the name")
        with scene.fault():
            pass
        with observer.lock:
            changes, last = observer.boot_changes[device] - before, observer.boots[device]
        who = "the first agent" if last == first else "the second agent"
        scene.said.append(f"the name {device} changed hands {counted(changes, 'time')}; {who} had it in the end")
        scene.site.terminate(_RIVAL)
        scene.expect_warning(device, "a second agent of its name")

    return Fault(
        name=f"same-name:{role}",
        what=f"a second agent with the device name of {called} runs for a while, and is told to stop",
        play=play,
        excuses=Excuses(origin_is_double=device in ORIGINS),
    )


FAULTS = (
    _double("mid", "middle", "the only board of stage 1"),
    _double("cam-spool", "origin", "the origin with a spool"),
)
