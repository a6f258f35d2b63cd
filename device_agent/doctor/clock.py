"""The clock: results and certificates have dates. Durations never depend on it, so a wrong one stops no agent."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone

from device_agent.doctor.checks import Check, CheckContext, Finding, failed, ok, unknown
from device_agent.doctor.network import session
from distree import topics
from distree.clock import EARLIEST_BELIEVABLE, clock_synced
from distree.errors import BrokerError
from distree.topics import Kind
from distree.transport.packets import Published

LISTEN_S = 1.5
"""How long to wait for a result of another board; those of busy pipelines come sooner."""

TOLERATED_S = 5.0
"""More than a result takes from its origin to here."""

_NTP = "run: systemctl enable --now systemd-timesyncd, or install chrony"


def check_clock(context: CheckContext) -> Finding:
    """The date is plausible, NTP synchronises the clock, and it agrees with another board's, if one is heard."""
    now = datetime.now(timezone.utc)
    if now.timestamp() < EARLIEST_BELIEVABLE:
        return failed(f"the clock says {now:%Y-%m-%d %H:%M} UTC, which is implausible", f"set it, then {_NTP}")
    said = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    off_s = _against_others(context)
    compared = "no other board's result arrived to compare it with"
    if off_s is not None:
        if abs(off_s) > TOLERATED_S:
            return failed(f"{said}, {off_s:+.0f} s off another board's clock, which is synchronised by NTP", _NTP)
        compared = "it agrees with another board's"
    if not clock_synced():
        return unknown(f"{said}; the clock is not synchronised by NTP, and {compared}", _NTP)
    return ok(f"{said}; the clock is synchronised by NTP, and {compared}")


def _against_others(context: CheckContext) -> float | None:
    """Return by how many seconds this clock is ahead of another board's; None where no dated result comes by."""
    config = context.config
    if not context.logged_in:
        return None
    try:
        with session(context) as client:
            until = min(context.until(), time.monotonic() + LISTEN_S)
            for pipeline in config.pipelines:
                client.subscribe(topics.of_origin(config.site, pipeline.name, Kind.RESULT, "+"), until)
            while client.listen(until, lambda: bool(client.heard)):
                off_s = _ahead(client.heard.pop(), config.device)
                if off_s is not None:
                    return off_s
    except (BrokerError, OSError):
        return None  # other checks report what is wrong there
    return None


def _ahead(message: Published, device: str) -> float | None:
    """Return now minus the time in a result, if it is from another board that trusts its clock."""
    try:
        fields = json.loads(message.payload)
        if fields["clock_synced"] is not True or fields["origin"] == device or message.retain:
            return None
        return time.time() - datetime.fromisoformat(fields["time"]).timestamp()
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


CHECKS = (Check(name="clock", run=check_clock),)
