"""What sources read from: an open output of a program, a FIFO or a device, and why it ended."""

from __future__ import annotations

from typing import Protocol

from distree.record import record

PIECE_BYTES = 1 << 18
"""The most that is read at once."""


@record
class Ending:
    """Why an output ended, and what helps against it, if that is known already.

    is_clean: it is complete, such as a file that was read to its end.
    """

    reason: str
    is_clean: bool = False
    remedy: str = ""


class Output(Protocol):
    """Bytes that come, sooner or later."""

    reopens: bool
    """Whether to open it again when nothing comes from it."""

    def read(self, timeout_s: float) -> bytes | None:
        """Return what has come; None if there is nothing yet, b"" if there will be nothing more."""

    @property
    def last_line(self) -> str:
        """What whoever writes it has complained of last; "" if nothing."""

    def finish(self, patience_s: float = 0.0) -> Ending:
        """Close it, once it has ended or after so long; say why it ended, the first time and later."""


class OutputReader(Protocol):
    """What is made of the bytes."""

    def take(self, piece: bytes) -> bool:
        """Take in the next bytes; whether they completed something, so that the output is known to work.

        Raises RemoteProtocolError if they are not what they should be, and no later ones will; but only at the next
        call, which may be without bytes, if they completed something before that.
        """

    def end(self) -> None:
        """No more bytes come."""
