"""What helps when a camera, a microphone or another device does not deliver."""

from __future__ import annotations

import re

_GROUP = "add the agent's user to the group {group} (sudo usermod -aG {group} USER), then log in again"

_REMEDIES = (
    (r"No such file|No such device|cannot find card|the device is gone|it ended$", "check that {device} is connected"),
    (r"Permission denied|Operation not permitted", _GROUP),
    (r"busy", "stop the other program that uses {device}"),
    (r"40[13]|[Uu]nauthori[sz]ed|[Ff]orbidden", "check the user name and the password in the URL"),
    (r"404|Not Found", "check the path in the URL"),
    (
        r"refused|No route|timed out|unreachable|resolve|reset by peer|Input/output error|^no \w+ for",
        "check that {device} is switched on and can be reached",
    ),
    (r"SIGKILL", "if it happens again, see in dmesg whether memory ran out"),
    (r"not installed", ""),
)


def remedy_for(reason: str, device: str, group: str) -> str:
    """Say what helps against a reason; `device` is "the camera", and `group` may open it.

    >>> remedy_for("/dev/video0: Device or resource busy", "the camera", "video")
    'stop the other program that uses the camera'
    """
    for pattern, remedy in _REMEDIES:
        if re.search(pattern, reason):
            return remedy.format(device=device, group=group)
    return "run the program by hand to see what it says"
