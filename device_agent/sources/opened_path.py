"""A FIFO, a serial device or a file that is read as it comes, and opened without waiting for a writer."""

from __future__ import annotations

import os
import select
import stat
import termios
import tty
from pathlib import Path

from device_agent.sources.output import PIECE_BYTES, Ending
from distree.errors import ConfigError

_SPEED = "B{}"


def check_baud(baud: int) -> None:
    """Raise ConfigError for a speed that serial devices do not have."""
    if not hasattr(termios, _SPEED.format(baud)):
        raise ConfigError(f"baud: {baud} is not a speed of serial devices", "choose one, such as 115200")


class OpenedPath:
    """A FIFO, device or file that is open for reading. OSError if it cannot be opened."""

    reopens = False
    """A FIFO that is silent has a slow writer, which would be killed by SIGPIPE if the FIFO were closed."""

    last_line = ""

    def __init__(self, path: Path, baud: int | None = None) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._is_fifo = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)
        try:
            if os.isatty(self._descriptor):
                _make_raw(self._descriptor, baud)
        except termios.error as error:
            os.close(self._descriptor)
            raise OSError(*error.args) from None
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self._ending = "it ended"

    def read(self, timeout_s: float) -> bytes | None:
        """Return what has come; None if there is nothing yet, b"" if there will be nothing more."""
        if not self._poll.poll(timeout_s * 1e3):
            return None
        try:
            piece = os.read(self._descriptor, PIECE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:  # what reading from an unplugged device gives
            self._ending = error.strerror or str(error)
            return b""
        if not piece and self._is_fifo:
            self._ending = "its writer has closed it"
        elif not piece and not self._is_file:
            self._ending = "the device is gone"
        return piece

    def finish(self, patience_s: float = 0.0) -> Ending:  # noqa: ARG002 - nobody is waited for
        """Close it; say why it ended."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
        return Ending(reason=self._ending, is_clean=self._is_file)


def _make_raw(descriptor: int, baud: int | None) -> None:
    """Take bytes as they are, and send none back: a terminal echoes, and changes line ends."""
    tty.setraw(descriptor, termios.TCSANOW)
    settings = termios.tcgetattr(descriptor)
    settings[2] |= termios.CLOCAL | termios.CREAD  # most devices have no modem's lines to wait for
    if baud is not None:
        settings[4] = settings[5] = getattr(termios, _SPEED.format(baud))
    termios.tcsetattr(descriptor, termios.TCSANOW, settings)
    termios.tcflush(descriptor, termios.TCIFLUSH)
