"""How `distree doctor` knows which agents run on this machine: two boards of one name disturb each other.

A running agent holds an abstract Unix socket whose name has its site, device, broker's port and boot id. It needs no
file, disappears with the process, however that ends, and is listed in /proc/net/unix. Nobody connects to it. The port
tells brokers on one machine apart; the host name of a broker can be written in many ways.
"""

from __future__ import annotations

import socket
from pathlib import Path

from device_agent.config import AgentConfig

_LISTING = Path("/proc/net/unix")


def _prefix(config: AgentConfig) -> str:
    return f"distree-agent/{config.site}/{config.device}/{config.broker.port}/"


def announce(config: AgentConfig, boot: str) -> socket.socket | None:
    """Return the socket to keep open; None where the system refuses one, which only costs a hint."""
    try:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError:
        return None
    try:
        held.bind("\0" + _prefix(config) + boot)
    except OSError:
        held.close()
        return None
    return held


def boots_here(config: AgentConfig) -> set[str]:
    """Return the boot ids of the agents of that name that run on this machine."""
    mark = "@" + _prefix(config)
    try:
        words = _LISTING.read_text(errors="replace").split()
    except OSError:
        return set()
    return {word.removeprefix(mark) for word in words if word.startswith(mark)}
