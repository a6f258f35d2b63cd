"""Who can be killed or paused: the processes of a role, in the site where it matters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.chaos.scene import BROKER, CHAIN, ORCHESTRATOR, ORIGINS, TWINS, WIDE, Setting


@dataclass(frozen=True, slots=True)
class Target:
    """A role, what the page calls it, its processes, and the site in which it is hit."""

    role: str
    called: str
    processes: tuple[str, ...]
    setting: Setting = CHAIN


TARGETS = (
    Target("origin", "both origins", tuple(ORIGINS)),
    Target("middle", "the only board of stage 1", ("mid",)),
    Target("last", "the only board of stage 2", ("last",)),
    Target("twin", "one of two boards of stage 1", ("twin",), TWINS),
    Target("branch", "one of two branches of a wide network", ("branch1",), WIDE),
    Target("fuser", "the board that fuses for the origins of a wide network", ("fuser",), WIDE),
    Target("orchestrator", "the orchestrator", (ORCHESTRATOR,), replace(CHAIN, orchestrator=True)),
    Target("broker", "the broker", (BROKER,)),
)
