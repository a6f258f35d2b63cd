"""Why plans decide as they do, and who says so: what stands in their `reason` and `author`, for people."""

from __future__ import annotations

import getpass
import socket

from distree.messages.limits import MAX_TEXT
from distree.messages.plan import Plan

CONFIGURED = "as configured"
BY_HAND = "set by hand"
UNPROVED = "nothing is proved yet: early exits closed"
PROVED = "audits proved it safe"
DRIFT = "losses have grown: early exits closed"
GOAL = "chosen for a goal"

FILE = "orchestrator.yaml"
TUNER = "tuner"


def tuned_reason(before: Plan, wanted: Plan, *, alarmed: bool, has_limits: bool) -> str:
    """Return why a tuning wants another decision than before.

    `alarmed` says whether it has given up what was proved since, `has_limits` whether its goal is more than accuracy.
    """
    if alarmed:
        return DRIFT
    # What was proved for missing branches alone moves no other thresholds.
    return GOAL if has_limits and wanted.thresholds != before.thresholds else PROVED


def whoever_asks() -> str:
    """Return who runs this program, such as `alice@lab`, in printable characters that a plan can hold."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as in some containers
        user = "somebody"
    return "".join(sign if sign.isprintable() else "?" for sign in f"{user}@{socket.gethostname()}")[:MAX_TEXT]
