"""The clock: results and certificates bear dates. Durations never depend on it, so a wrong one stops no agent."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone

from device_agent.doctor.checks import Finding, Visit, failed, ok, unknown
from device_agent.doctor.network import session
from device_agent.linux import EARLIEST_BELIEVABLE, clock_synced
from distree import topics
from distree.errors import BrokerError
from distree.topics import Kind
from distree.transport.packets import Published

LISTEN_S = 1.5
"""How long to wait for a result of another board; those of busy pipelines come sooner."""

TOLERATED_S = 5.0
"""More than a result takes from its origin to here."""

_NTP = "systemctl enable --now systemd-timesyncd, or install chrony"


def check_clock(visit: Visit) -> Finding:
    """The date is possible, something keeps the clock right, and it agrees with other boards' where one is heard."""
    now = datetime.now(timezone.utc)
    if now.timestamp() < EARLIEST_BELIEVABLE:
        return failed(f"the clock says {now:%Y-%m-%d %H:%M} UTC, which cannot be", f"set it; {_NTP}")
    said = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    off_s = _against_others(visit)
    compared = "compared with nobody: no other board's result was heard"
    if off_s is not None:
        if abs(off_s) > TOLERATED_S:
            return failed(f"{said}, which is {off_s:+.0f} s against another board whose clock is kept by NTP", _NTP)
        compared = "as on another board"
    if not clock_synced():
        return unknown(f"{said}; nothing keeps the clock right (NTP), {compared}", _NTP)
    return ok(f"{said}, kept right by NTP, {compared}")


def _against_others(visit: Visit) -> float | None:
    """Return by how many seconds this clock is ahead of another board's; None where no dated result comes by."""
    config = visit.config
    if not visit.let_in:
        return None
    try:
        with session(visit) as client:
            until = min(visit.until(), time.monotonic() + LISTEN_S)
            for pipeline in config.pipelines:
                client.subscribe(topics.of_origin(config.site, pipeline.name, Kind.RESULT, "+"), until)
            while client.listen(until, lambda: bool(client.heard)):
                off_s = _ahead(client.heard.pop(), config.device)
                if off_s is not None:
                    return off_s
    except (BrokerError, OSError):
        return None  # what is wrong there is told by the checks whose matter it is
    return None


def _ahead(message: Published, device: str) -> float | None:
    """Return now minus the time in a result, if its board is another one and trusts its clock."""
    try:
        fields = json.loads(message.payload)
        if fields["clock_synced"] is not True or fields["origin"] == device or message.retain:
            return None
        return time.time() - datetime.fromisoformat(fields["time"]).timestamp()
    except (ValueError, KeyError, TypeError):
        return None
