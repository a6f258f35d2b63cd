"""Memory and disk: what the agent may need at most, against what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

from device_agent import presence, resource_estimate, systemd
from device_agent.config import AgentConfig
from device_agent.doctor.checks import Finding, Visit, failed, ok, unknown

_MEMINFO = Path("/proc/meminfo")


def _mb(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


def _meminfo() -> dict[str, int]:
    """Return /proc/meminfo in bytes."""
    pairs = (line.split()[:2] for line in _MEMINFO.read_text().splitlines())
    return {name.rstrip(":"): int(value) << 10 for name, value in pairs}


def check_memory(visit: Visit) -> Finding:
    """All queues full at once still fit into the memory."""
    config = visit.config
    items = resource_estimate.memory(config, visit.bundles)
    need = sum(item.bytes for item in items)
    largest = max(items, key=lambda item: item.bytes)
    try:
        has = _meminfo()
        total, free = has["MemTotal"], has["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return unknown(f"up to {_mb(need)} are needed; the machine does not say what it has")
    # What an agent that runs here already has is not free, and is the same memory.
    available = total if presence.boots_here(config) else free
    if need <= available:
        return ok(f"at most {_mb(need)} are needed, {_mb(free)} of {_mb(total)} are free")
    return failed(
        f"up to {_mb(need)} may be needed, {_mb(available)} are there; most for {largest.what} ({_mb(largest.bytes)})",
        "lower inbox.max_kib, receive_maximum or origin.max_pending, give this board fewer stages, or stop other "
        "programs",
    )


def check_disk(visit: Visit) -> Finding:
    """What accepted inputs are kept in can be written, and has room."""
    need = resource_estimate.disk_bytes(visit.config)
    if not need:
        return ok("nothing is kept on disk (no origin has spool: true)")
    return _room(visit.config, need)


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
        return failed(f"state_dir {folder}: {above} is no folder", "correct state_dir in agent.yaml")
    if not is_service and not os.access(above, os.W_OK | os.X_OK):
        return failed(
            f"state_dir {folder}: this user cannot write there",
            f"run this as the agent's user, make it writable (chown), or correct state_dir; it is {above} that exists",
        )
    stat = os.statvfs(above)
    if stat.f_flag & os.ST_RDONLY:
        return failed(f"state_dir {folder} is on a read-only file system", "name a writable one, such as a tmpfs")
    free = stat.f_bavail * stat.f_frsize
    kept = 0 if is_service or not folder.is_dir() else sum(found.stat().st_size for found in folder.glob("*.spool"))
    if need > free + kept:
        return failed(f"spools may take {_mb(need)}, {folder} has {_mb(free)} free", "free some, or correct state_dir")
    return ok(f"spools take at most {_mb(need)}, {folder} has {_mb(free)} free")
