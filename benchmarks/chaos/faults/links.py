"""Bad links, of both origins or of the middle board: nothing is cut in order, and most of it is not cut at all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.chaos.conditions import GOOD, Conditions
from benchmarks.chaos.play import Fault
from benchmarks.chaos.scene import CHAIN, ORIGINS, Scene
from distree.formatting import counted


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    what: str
    conditions: Conditions


KINDS = (
    _Kind(
        "half-open",
        "all bytes vanish, both ways and also those of new connections; neither end hears of it",
        Conditions(half_open=True),
    ),
    _Kind("delayed", "300 ms later each way, more or less 100 ms", Conditions(delay_s=0.3, jitter_s=0.1)),
    _Kind("slow", "64 kbit/s each way", Conditions(bits_per_s=64_000)),
    _Kind("stalling", "still for 2 s of every 3 s", Conditions(stall_every_s=3.0, stalled_s=2.0)),
    _Kind("resetting", "a connection is reset (RST) at random, every 0.5 s on average", Conditions(reset_every_s=0.5)),
)
ENDS = {"origin": ("both origins", tuple(ORIGINS)), "middle": ("the only board of stage 1", ("mid",))}


def _bad(kind: _Kind, end: str) -> Fault:
    called, devices = ENDS[end]

    def play(scene: Scene) -> None:
        with scene.fault():
            scene.become(kind.conditions, *devices)
        scene.become(GOOD, *devices)
        if kind.conditions.reset_every_s:
            resets = sum(scene.proxies[device].resets for device in devices)
            scene.said.append(counted(resets, "reset"))
            if not resets:
                scene.failures.append("nothing was reset")

    return Fault(
        name=f"{kind.name}:{end}",
        what=f"link of {called}: {kind.what}",
        play=play,
        setting=replace(CHAIN, links=("mid",)) if end == "middle" else CHAIN,
    )


FAULTS = tuple(_bad(kind, end) for kind in KINDS for end in ENDS)
