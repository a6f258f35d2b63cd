"""How the long-running commands log: to standard error, each line with its time unless the journal adds one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from distree.printable import printable

MOST = 1000
"""Characters of a message in the log. Whatever a peer sent that got into one, it cannot fill a disk."""


def start_logging(level: int) -> None:
    """Log to standard error from `level` on, without the time where systemd's journal adds it."""
    stamp = "" if goes_to_journal() else "%(asctime)s "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(f"{stamp}%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


class OneLine(logging.Formatter):
    """Writes each message as one line of at most `MOST` characters, with control characters as escapes.

    Names, topics and texts of errors come from anywhere, so this holds for all, whoever logs them. What follows the
    message, as the traceback of a bug does, keeps its lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging names it
        """Return the line."""
        record.message = printable(record.message, MOST)
        return super().formatMessage(record)


def goes_to_journal(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether standard error is a stream of systemd's journal: JOURNAL_STREAM names its device and inode."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
