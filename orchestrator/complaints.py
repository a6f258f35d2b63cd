"""What is wrong is told once, and not with each message or at each turn. No I/O: lines are returned, not logged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping

from distree.errors import Problem, RemoteProtocolError
from distree.printable import printable
from orchestrator.fleet import Device

REFUSALS_TOLD = 1000
"""Pairs of topic and reason of which the first refusal is told; a site that has more of them is told of no others."""

NAMESAKE_S = 600.0
"""Time in which runs that take turns are counted; it is told of them once in it."""

NAMESAKE_RETURNS = 4
"""So many returns to an earlier run are two boards. A will that comes after the birth of the next run makes two: its
own, and the one by which the board mends it; and a board rarely dies twice within NAMESAKE_S."""


class Refusals:
    """Messages that broke the protocol: `counts` has how many, by reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._told: set[tuple[str, str]] = set()

    def add(self, topic: str, error: RemoteProtocolError) -> str | None:
        """Count a message; return a line to tell, where it is the first of its topic and reason."""
        self.counts[error.reason] += 1
        key = (topic, error.reason)
        if key in self._told or len(self._told) >= REFUSALS_TOLD:
            return None
        self._told.add(key)
        return f"refused a message on {printable(topic)}: {printable(str(error), 400)} (said once)"


class Troubles:
    """What does not work at present, by part of the orchestrator."""

    def __init__(self) -> None:
        self._troubles: dict[str, Problem | str | None] = {}

    def note(self, part: str, trouble: Problem | str | None) -> str | None:
        """Note how a part does, None for well; return a line to tell, where a trouble is not the part's last one."""
        before = self._troubles.get(part)
        self._troubles[part] = trouble
        return f"{part}: {trouble}" if trouble is not None and trouble != before else None


class Lasting:
    """What is wrong for longer than from one look to the next: while boards start, much is for a moment."""

    def __init__(self) -> None:
        self._told: dict[str, dict[Hashable, bool]] = {}

    def note(self, part: str, troubles: Mapping[Hashable, str]) -> list[str]:
        """Note all that is wrong with a part at a look; return what to tell: what was so at the last one too, once."""
        before = self._told.get(part, {})
        self._told[part] = {trouble: trouble in before for trouble in troubles}
        return [line for trouble, line in troubles.items() if before.get(trouble) is False]


class Namesakes:
    """Boards that share a name, by how often a fleet has heard runs of them that were over."""

    def __init__(self) -> None:
        self._counted: dict[str, tuple[float, int, int]] = {}
        """Since when returns are counted, how many there were then, and how many at the last message."""

    def note(self, now_s: float, device: Device) -> str | None:
        """Note a device as each of its messages leaves it, by one monotonic clock; return a line to tell, if any."""
        since_s, before, last = self._counted.get(device.device, (now_s, 0, 0))
        if last == before or now_s - since_s > NAMESAKE_S:
            # The time begins with the first return.
            since_s, before = now_s, last
        self._counted[device.device] = since_s, before, device.returns
        return namesakes_text(device) if last < before + NAMESAKE_RETURNS <= device.returns else None

    def forget(self, device: str) -> None:
        """Drop a device that is gone."""
        self._counted.pop(device, None)


def namesakes_text(device: Device) -> str:
    """Say that two boards use the name of a device, and what to do about it."""
    boots = ", ".join(sorted(printable(run.boot) for run in (device, *device.earlier[:1])))
    return f"two boards call themselves {device.device} (boots {boots}): give one another id"
