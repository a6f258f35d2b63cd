"""What is wrong is told once, and not with each message or at each turn. No I/O: lines are returned, not logged."""

from __future__ import annotations

from collections import Counter

from distree.errors import RemoteProtocolError
from orchestrator.text import printable

REFUSALS_TOLD = 1000
"""Pairs of topic and reason of which the first refusal is told; a site that has more of them is told of no others."""


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
        return f"refused a message on {printable(topic)}: {printable(str(error))} (said once)"


class Troubles:
    """What does not work at present, by part of the orchestrator."""

    def __init__(self) -> None:
        self._troubles: dict[str, str | None] = {}

    def note(self, part: str, trouble: str | None) -> str | None:
        """Note how a part does, None for well; return a line to tell, where a trouble is not the part's last one."""
        before = self._troubles.get(part)
        self._troubles[part] = trouble
        return f"{part}: {trouble}" if trouble is not None and trouble != before else None
