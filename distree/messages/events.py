"""What happens beside requests: events for people, a message that was rejected, a small picture for dashboards."""

from __future__ import annotations

import enum
import logging

from distree.messages.fields import count, data, declared, flag, ident, text, word
from distree.messages.limits import MAX_THUMBNAIL_BYTES


class EventKind(str, enum.Enum):
    """What an event is about."""

    INPUT = "input"
    """An input was refused, and why."""
    SOURCE = "source"
    """A source of inputs broke down, or works again."""
    SHED = "shed"
    """Inputs were turned away because there was no room for them."""
    BOARD = "board"
    """A board was lost, or is back."""
    FALLBACK = "fallback"
    """Inputs are answered without the boards of later stages, or with them again."""
    STAGE = "stage"
    """A segment of the network failed."""
    PLAN = "plan"
    """Thresholds: a plan was overridden, an exit was shut, two orchestrators disagree."""
    DISK = "disk"
    """Something could not be written to disk, or can be again."""
    REFUSED = "refused"
    """A message from another program that broke the protocol."""
    CONNECTION = "connection"
    """The connection to the broker was lost for a while."""


class Severity(str, enum.Enum):
    """How much an event matters."""

    INFO = "info"
    """All is well again."""
    WARNING = "warning"
    """Something is lost or worse than it should be."""
    ERROR = "error"
    """Something does not work until somebody mends it."""


LEVELS = {Severity.INFO: logging.INFO, Severity.WARNING: logging.WARNING, Severity.ERROR: logging.ERROR}
"""How events are logged."""


@declared(schema="distree.event/1")
class Event:
    """Something that people should know: what happened, and what to do about it."""

    device: str | None = ident("Id of the board that it is about; null for the site as a whole.", nullable=True)
    kind: EventKind = word("What it is about.", EventKind)
    severity: Severity = word("How much it matters.", Severity)
    pipeline: str | None = ident("Id of the pipeline that it is about; null if none in particular.", nullable=True)
    what: str = text("What happened.", most=512)
    remedy: str = text("How to fix it; empty if there is nothing to do.", most=512)
    unsaid: int = count("Events like this one that were left out since the last, to spare the reader.")
    time: str = text("When it was noticed, ISO 8601 in UTC, by the clock of its sender.", most=40)
    clock_synced: bool = flag("Whether that clock was synchronised.")


@declared(schema="distree.dead/1")
class DeadLetter:
    """A message that broke the protocol: what, where it arrived, how to fix it, and its first bytes in hexadecimal."""

    device: str = ident("Id of the board.")
    topic: str = text("Topic on which the message arrived.", most=512)
    reason: str = text("Which rule the message broke.")
    detail: str = text("What was wrong with the message.", most=512)
    remedy: str = text("How to fix it; empty where nothing can be done.", most=512)
    payload_bytes: int = count("Size of the message in bytes.", unit="bytes")
    head_hex: str = text("First bytes of the message in hexadecimal.", most=128)
    input: str = text(
        "Name of the input that was refused; empty if it had none, or was no input.", most=256, default=""
    )
    request: str = text("Id that its sender gave the input; empty if it gave none.", default="")


@declared(kind="thumbnail")
class Thumbnail:
    """A small picture of the input `request`, as a PNG file, for dashboards; never retained, lost without harm.

    The decoder checks only the signature, not whether the picture behind it is complete.
    """

    request: str = text("Id of the request.")
    png: bytes = data(
        "The picture as a PNG file.", most=MAX_THUMBNAIL_BYTES, start=b"\x89PNG\r\n\x1a\n", what="a PNG file"
    )
