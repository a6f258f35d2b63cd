"""What an orchestrator tells people of its site: each event is logged, published and kept, at a bounded rate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timezone

from distree.errors import Problem
from distree.formatting import counted
from distree.log_throttle import LogThrottle
from distree.messages.events import LEVELS, Event, EventKind, Severity
from distree.node import Tell
from distree.printable import printable

log = logging.getLogger("distree.orchestrator")


BURST = 50
"""Most events in a few seconds, as when a broker restarts and all boards are lost and back."""


class SiteEvents:
    """Makes events. `clock` gives monotonic seconds, `wall` Unix seconds, `is_synced` whether those can be trusted."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float], is_synced: Callable[[], bool]) -> None:
        self._clock = clock
        self._wall = wall
        self._is_synced = is_synced
        self._throttle = LogThrottle(burst=BURST)

    def tell(
        self,
        kind: EventKind,
        what: str,
        remedy: str = "",
        *,
        severity: Severity = Severity.WARNING,
        pipeline: str | None = None,
        device: str | None = None,
    ) -> Event | None:
        """Log an event and return it; None if one of the same text was told a moment ago."""
        about = "".join(f"{name} {value}: " for name, value in (("pipeline", pipeline), ("board", device)) if value)
        line = about + (str(Problem(what, remedy)) if remedy else what)
        unsaid = self._throttle.unsaid_before(self._clock(), line)
        if unsaid is None:
            return None
        log.log(LEVELS[severity], "%s%s", line, f" (and {counted(unsaid, 'time')} before)" if unsaid else "")
        return Event(
            device=device,
            kind=kind,
            severity=severity,
            pipeline=pipeline,
            what=printable(what, 512),
            remedy=printable(remedy, 512),
            unsaid=unsaid,
            time=datetime.fromtimestamp(self._wall(), timezone.utc).isoformat(timespec="milliseconds"),
            clock_synced=self._is_synced(),
        )

    def tell_of(self, device: str, told: Tell) -> Event | None:
        """Do the same for what has become of a board."""
        return self.tell(told.kind, told.what, told.remedy, severity=told.severity, device=device)
