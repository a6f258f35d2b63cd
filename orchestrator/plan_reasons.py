"""What plans say in `reason` and `author`, for people: why they decide as they do, and who decided it."""

from __future__ import annotations

import getpass
import socket

from distree.messages.limits import MAX_TEXT
from distree.messages.plan import Plan
from orchestrator.tuning.goal import Goal

CONFIGURED = "as configured"
BY_HAND = "set by hand"
UNPROVED = "nothing is proved yet: early exits closed"
PROVED = "audits proved it safe"
DRIFT = "losses have grown: early exits closed"
GOAL = "chosen for a goal"
TRIED = "tried by a tuner without a guarantee"

FILE = "orchestrator.yaml"
TUNER = "tuner"


def tuned_reason(before: Plan, wanted: Plan, *, goal: Goal, alarmed: bool) -> str:
    """Return why a tuning wants another decision than before.

    `alarmed` says whether thresholds were withdrawn since, because inputs had changed.
    """
    if alarmed:
        return DRIFT
    if not goal.tuner_class.has_guarantee:
        return TRIED
    # Thresholds that were proved for missing branches leave the others as they are.
    return GOAL if goal.limits() and wanted.thresholds != before.thresholds else PROVED


def whoever_asks() -> str:
    """Return who runs this program, such as `alice@lab`, in printable characters that a plan can hold."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as in some containers
        user = "somebody"
    return "".join(sign if sign.isprintable() else "?" for sign in f"{user}@{socket.gethostname()}")[:MAX_TEXT]
