"""A second agent comes up under the name of one that runs, with a folder of its own, and is stopped after a while."""

from __future__ import annotations

import yaml

from benchmarks.chaos.ledger import Excuses
from benchmarks.chaos.play import Fault
from benchmarks.chaos.scene import ORIGINS, Scene

_RIVAL = "rival"


def _double(device: str, role: str, called: str) -> Fault:
    def play(scene: Scene) -> None:
        config = yaml.safe_load((scene.folder / f"{device}.yaml").read_text())
        config["state_dir"] = str(scene.folder / f"{_RIVAL}-state")
        (scene.folder / f"{_RIVAL}.yaml").write_text(yaml.safe_dump(config))
        with scene.observer.lock:
            first, before = scene.observer.boots[device], scene.observer.boot_changes[device]
        with scene.fault():
            scene.start(_RIVAL)
        with scene.observer.lock:
            changes, last = scene.observer.boot_changes[device] - before, scene.observer.boots[device]
        who = "the first agent" if last == first else "the second agent"
        scene.said.append(f"the state under the name {device} changed hands {changes} times; {who} had it in the end")
        if not changes:
            scene.failures.append("the second agent never had the name")
        scene.site.terminate(_RIVAL)
        for name in (device, _RIVAL):
            lines = scene.warnings(name)
            scene.said.append(f"{name} logs {len(lines)} warnings" + (f", first: {lines[0][:300]}" if lines else ""))
            if not lines:
                scene.failures.append(f"{name} is silent about a second agent of its name")

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
