"""Waits for a socket, or for another thread's wake-up call."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Sequence
from typing import Any


class Poller:
    """Waits for one socket at a time; `wake` ends a wait, from any thread, without a lock."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self.wait = self._poll.poll
        """Wait for so many milliseconds; returns what has happened, for `is_ready`."""
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._watched: tuple[int, int] | None = None

    def open(self) -> None:
        """Set up the wake-up channel."""
        self._bell = socket.socketpair()
        for end in self._bell:
            end.setblocking(False)
        self._poll.register(self._bell[0], select.POLLIN)

    def close(self) -> None:
        """Free the descriptors; a thread that waits leaves first. Harmless when closed."""
        if self._watched is not None:
            self._poll.unregister(self._watched[0])
            self._watched = None
        if self._bell is not None:
            self.wake()
            bell, self._bell = self._bell, None
            self._poll.unregister(bell[0])
            for end in bell:
                end.close()

    def leave(self) -> None:
        """Close this process's copies of what belongs to the process from which it was forked."""
        for end in self._bell or ():
            end.close()
        self._bell = None

    def wake(self) -> None:
        """Make a wait return early."""
        bell = self._bell
        if bell is not None:
            with contextlib.suppress(OSError):  # full: it rings already; closed: nobody waits
                bell[1].send(b"!")

    def watch(self, sock: Any, *, reads: bool, writes: bool) -> None:
        """Wait for `sock` from now on (None for no socket) to be readable, writable, or at least broken."""
        wanted = None
        if sock is not None:
            wanted = (sock.fileno(), (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0))
        if wanted != self._watched:
            if self._watched is not None:
                self._poll.unregister(self._watched[0])
            if wanted is not None:
                self._poll.register(*wanted)
            self._watched = wanted

    def is_ready(self, come: Sequence[tuple[int, int]]) -> bool:
        """Whether the socket is among what happened; wake-up calls are cleared."""
        ready = False
        for fd, _ in come:
            if self._watched is not None and fd == self._watched[0]:
                ready = True
            elif self._bell is not None:
                with contextlib.suppress(BlockingIOError):
                    self._bell[0].recv(4096)
        return ready

    def wait_to_read(self, timeout_ms: int) -> None:
        """Wait for the socket alone, beside a thread that may be in `wait`."""
        watched = self._watched
        if watched is not None:
            probe = select.poll()
            probe.register(watched[0], select.POLLIN)
            probe.poll(timeout_ms)
