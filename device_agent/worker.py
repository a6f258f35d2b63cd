"""The inference thread: one at a time, never on the network's thread, so that a hung interpreter costs no deadline."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

J = TypeVar("J")


class Worker(Generic[J]):
    """Runs `work(job)` for each job in order, in a thread of its own.

    An exception out of `work` is a fault of the program: it is handed to `on_fault` and ends the thread.
    """

    def __init__(self, work: Callable[[J], None], on_fault: Callable[[BaseException], None]) -> None:
        self._work = work
        self._on_fault = on_fault
        # Unbounded, but each node has at most one job under way, so it never holds more than there are pipelines.
        self._jobs: queue.SimpleQueue[J | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="inference", daemon=True)
        self._busy_since: float | None = None
        self.put = self._jobs.put
        """Hand a job over; from any thread."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Let the thread end after the job under way; False if it did not within `timeout_s`."""
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def busy_s(self) -> float:
        """Seconds that the job under way has taken so far; 0 while idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _loop(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                self._busy_since = time.monotonic()
                self._work(job)
                self._busy_since = None
        except BaseException as error:  # noqa: BLE001 - whatever it is, the agent must learn of it
            self._on_fault(error)
