"""That an agent of a name runs on this machine, for `distree doctor`: two boards of one name hinder each other.

A running agent holds an abstract Unix socket that bears its site, device and boot id. It needs no file, is gone with
the process, however that ends, and /proc/net/unix lists it. Nobody connects to it.
"""

from __future__ import annotations

import socket
from pathlib import Path

_LISTING = Path("/proc/net/unix")


def _prefix(site: str, device: str) -> str:
    return f"distree-agent/{site}/{device}/"


def announce(site: str, device: str, boot: str) -> socket.socket | None:
    """Return the socket to hold on to; None where the system has none to give, which costs no more than a hint."""
    try:
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError:
        return None
    try:
        held.bind("\0" + _prefix(site, device) + boot)
    except OSError:
        held.close()
        return None
    return held


def boots_here(site: str, device: str) -> set[str]:
    """Return the boot ids of the agents of that name that run on this machine."""
    mark = "@" + _prefix(site, device)
    try:
        words = _LISTING.read_text(errors="replace").split()
    except OSError:
        return set()
    return {word.removeprefix(mark) for word in words if word.startswith(mark)}
