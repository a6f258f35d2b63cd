"""Memory and disk: what the agent may need at most, against what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

from device_agent import presence, resource_estimate, systemd
from device_agent.config import AgentConfig
from device_agent.doctor.checks import Check, CheckContext, Finding, failed, ok, unknown

_MEMINFO = Path("/proc/meminfo")


def _mb(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


def _meminfo() -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    pairs = (line.split()[:2] for line in _MEMINFO.read_text().splitlines())
    return {name.rstrip(":"): int(value) << 10 for name, value in pairs}


def check_memory(context: CheckContext) -> Finding:
    """Even with all queues full at once the agent fits into memory."""
    config = context.config
    items = resource_estimate.memory(config, context.bundles)
    need = sum(item.bytes for item in items)
    largest = max(items, key=lambda item: item.bytes)
    try:
        has = _meminfo()
        total, free = has["MemTotal"], has["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return unknown(f"the agent needs up to {_mb(need)}; this machine does not report how much memory it has")
    # An agent that runs here already uses this memory.
    available = total if presence.boots_here(config) else free
    if need <= available:
        return ok(f"the agent needs at most {_mb(need)}; {_mb(free)} of {_mb(total)} are free")
    return failed(
        f"the agent may need {_mb(need)}, but only {_mb(available)} are available; most of it is for {largest.what} "
        f"({_mb(largest.bytes)})",
        "lower inbox.max_kib, receive_maximum or origin.max_pending, give this board fewer stages, or stop other "
        "programs",
    )


def check_disk(context: CheckContext) -> Finding:
    """The folder that keeps accepted inputs can be written, and has room."""
    need = resource_estimate.disk_bytes(context.config)
    if not need:
        return ok(
            "nothing is kept on disk (no origin has spool: true, or files as its source, and there are no plan_keys)"
        )
    return _room(context.config, need)


def _room(config: AgentConfig, need: int) -> Finding:
    # That of the unit only root and the service may look into.
    service_dir = systemd.installed_state_dir()
    folder, is_service = service_dir or config.state_dir.absolute(), service_dir is not None
    above = (
        systemd.STATE_FOLDER.parent
        if is_service
        else next(parent for parent in (folder, *folder.parents) if parent.exists())
    )
    if not above.is_dir():
        return failed(f"state_dir {folder}: {above} is not a folder", "correct state_dir in agent.yaml")
    if not is_service and not os.access(above, os.W_OK | os.X_OK):
        return failed(
            f"state_dir {folder}: this user cannot write there",
            f"run this as the agent's user, make {above} writable for it (chown), or correct state_dir",
        )
    stat = os.statvfs(above)
    if stat.f_flag & os.ST_RDONLY:
        return failed(
            f"state_dir {folder} is on a read-only file system", "name a folder on a writable one, such as a tmpfs"
        )
    free = stat.f_bavail * stat.f_frsize
    kept = 0 if is_service or not folder.is_dir() else sum(found.stat().st_size for found in folder.glob("*.spool"))
    if need > free + kept:
        what = f"spools may take {_mb(need)}, but {folder} has only {_mb(free)} free"
        return failed(what, "free some space, or correct state_dir")
    return ok(f"spools take at most {_mb(need)}; {folder} has {_mb(free)} free")


CHECKS = (
    Check(name="memory", run=check_memory, needs=("bundle",)),
    Check(name="disk", run=check_disk),
)
