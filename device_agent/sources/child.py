"""A program whose output is read. It never outlives the agent and never becomes a zombie, and its errors are kept.

What goes wrong elsewhere, and is ruled out here: errors that nobody reads fill their pipe, and the program stops; a
program that ignores SIGTERM is waited for without end; one that has ended and is not waited for stays in the list of
processes; what it has started itself lives on and keeps the camera; its output piles up in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence

from device_agent.sources.output import PIECE_BYTES, Ending
from distree import child_processes
from distree.errors import ConfigError
from distree.printable import printable, without_credentials

_PIPE_BYTES = 1 << 20
"""What the kernel keeps between the program and this process, if it is willing to."""

_LINES, _LINE_BYTES = 8, 1024
_POLL_S = 0.02
_TERM_S = 1.0
"""How long a program may take to end once it is told to: enough to say goodbye to a camera, which may allow only a few
sessions."""

_KILL_S = 2.0
"""How long it may take once it is killed: a moment, unless a driver hangs."""

_WHERE = re.compile(r"^(\[[^\]]* @ 0x[0-9a-f]+\] ?)+")
"""What ffmpeg puts before a line, such as "[rtsp @ 0x55d0] "."""

_SAYS_LITTLE = re.compile(r"^(Error opening (input|output)|Conversion failed|Exiting |Recording )")
"""Lines of ffmpeg and arecord that say less than those before them."""


def require(program: str, package: str = "") -> None:
    """Raise ConfigError if a program is not installed; `package` is Debian's that has it, if it is known."""
    if shutil.which(program) is None:
        remedy = f"run: sudo apt install {package}" if package else "install it, or correct its name in command"
        raise ConfigError(f"{program} is not installed", remedy)


class Child:
    """A running program. `on_line` is given each line of its errors, without passwords, as it is read."""

    reopens = True

    def __init__(self, command: Sequence[str], on_line: Callable[[str], None] | None = None) -> None:
        process = child_processes.spawn_from_thread(command)
        assert process.stdout is not None  # noqa: S101 - it was started with pipes
        assert process.stderr is not None  # noqa: S101
        self.pid = process.pid
        self._process, self._out, self._err = process, process.stdout, process.stderr
        self._poll = select.poll()
        for file in (self._out, self._err):
            os.set_blocking(file.fileno(), False)
            self._poll.register(file.fileno(), select.POLLIN)
        with contextlib.suppress(OSError):  # an ordinary user may have no more
            fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._begun = b""
        self._hears_errors = True
        self._ended: Ending | None = None

    def read(self, timeout_s: float) -> bytes | None:
        """Return what it has put out since; None if there is nothing yet, b"" if there will be nothing more."""
        ready = {descriptor for descriptor, _ in self._poll.poll(timeout_s * 1e3)}
        if self._err.fileno() in ready:
            self._read_errors()
        return self._out.read(PIECE_BYTES) if self._out.fileno() in ready else None

    @property
    def last_line(self) -> str:
        """The last line of its errors that says something; "" if there is none."""
        telling = [line for line in self._lines if not _SAYS_LITTLE.match(line)] or [*self._lines]
        return telling[-1] if telling else ""

    def finish(self, patience_s: float = 0.0) -> Ending:
        """Let it end by itself for so long, then end it, with all that it has started; say why it ended."""
        if self._ended is None:
            self._ended = self._finish(patience_s)
        return self._ended

    def _finish(self, patience_s: float) -> Ending:
        ended = self._wait(patience_s)
        self._poll.unregister(self._out.fileno())
        self._out.close()  # before it is told: it may be waiting for us to read
        if not ended:
            self._signal(signal.SIGTERM)
            self._wait(_TERM_S)
        # As long as it is not waited for, no other process gets its number.
        self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # where a driver hangs, Popen waits for it later
            self._process.wait(_KILL_S)
        self._note_line(self._begun)
        self._err.close()
        return self._ending() if ended else Ending(reason=self.last_line or "the program closed its output")

    def _ending(self) -> Ending:
        status = self._process.returncode or 0
        if status < 0:
            return Ending(reason=f"killed by {_signal_name(-status)}")
        return Ending(
            reason=self.last_line or (f"the program ended with status {status}" if status else "the program ended"),
            is_clean=not status,
        )

    def _wait(self, patience_s: float) -> bool:
        """Wait for it to end, and take in what it says; whether it has ended. It is not yet waited for."""
        ends_at = time.monotonic() + patience_s
        while True:
            ended = self._has_ended()
            while self._hears_errors and self._poll.poll(0) and self._read_errors() and time.monotonic() < ends_at:
                pass
            if ended or time.monotonic() >= ends_at:
                return ended
            time.sleep(_POLL_S)

    def _has_ended(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # a program around the agent has every child waited for
            return True

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _read_errors(self) -> bool:
        """Take in what it says, bounded however much that is; whether it said something."""
        piece = self._err.read(PIECE_BYTES)
        if not piece:
            if piece is not None and self._hears_errors:
                self._hears_errors = False
                self._poll.unregister(self._err.fileno())
            return False
        *lines, begun = re.split(rb"[\r\n]+", self._begun + piece)
        self._begun = begun[:_LINE_BYTES]
        for line in lines:
            self._note_line(line)
        return True

    def _note_line(self, line: bytes) -> None:
        text = line[:_LINE_BYTES].decode("utf-8", "replace").strip()
        text = printable(without_credentials(_WHERE.sub("", text)), 200)
        if text:
            self._lines.append(text)
            if self._on_line is not None:
                self._on_line(text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"
