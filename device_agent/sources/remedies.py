"""What helps when a camera, a microphone or another device does not deliver."""

from __future__ import annotations

import re

_GROUP = "add the agent's user to the group {group} (sudo usermod -aG {group} USER), then log in again"

_REMEDIES = (
    (
        r"No such file|No such device|cannot find card|the device is gone",
        "check that {device} is connected: {listed} shows what is",
    ),
    (r"Permission denied|Operation not permitted", _GROUP),
    (r"busy", "stop the other program that uses {device}"),
    (r"40[13]|[Uu]nauthori[sz]ed|[Ff]orbidden", "check the user name and the password in the URL"),
    (r"404|Not Found", "check the path in the URL"),
    (
        r"refused|No route|timed out|unreachable|resolve|reset by peer|Input/output error|^no \w+ for",
        "check that {device} is switched on and can be reached",
    ),
    (r"SIGKILL", "if it happens again, see in dmesg whether memory ran out"),
    (r"^the program ended$", "check that {device} is still connected, or let the program run on"),
    (r"closed it$", ""),
)


def remedy_for(reason: str, device: str, group: str, listed: str) -> str:
    """Say what helps against a reason; `device` is "the camera", `group` may open it, and `listed` lists them.

    >>> remedy_for("/dev/video0: Device or resource busy", "the camera", "video", "ls /dev/video*")
    'stop the other program that uses the camera'
    """
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, reason):
            return remedy.format(device=device, group=group, listed=listed)
    return "run the program by hand to see what it says"
