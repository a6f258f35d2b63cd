"""How the long-running commands log: to standard error, each line with its time unless the journal adds one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping


def start_logging(level: int) -> None:
    """Log to standard error from `level` on, without the time where systemd's journal adds it."""
    stamp = "" if goes_to_journal() else "%(asctime)s "
    logging.basicConfig(level=level, format=f"{stamp}%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def goes_to_journal(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether standard error is a stream of systemd's journal: JOURNAL_STREAM names its device and inode."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
