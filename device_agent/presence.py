"""That an agent of a name runs on this machine, for `distree doctor`: two boards of one name hinder each other.

A running agent holds an abstract Unix socket that bears its site, device, broker's port and boot id. It needs no file,
is gone with the process, however that ends, and /proc/net/unix lists it. Nobody connects to it. The port tells the
brokers of one machine apart; the name of a broker's machine may be written in many ways.
"""

from __future__ import annotations

import socket
from pathlib import Path

from device_agent.config import AgentConfig

_LISTING = Path("/proc/net/unix")


def _prefix(config: AgentConfig) -> str:
    return f"distree-agent/{config.site}/{config.device}/{config.broker.port}/"


def announce(config: AgentConfig, boot: str) -> socket.socket | None:
    """Return the socket to hold on to; None where the system has none to give, which costs no more than a hint."""
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
