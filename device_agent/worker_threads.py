"""Leader and stand-by: the threads that serve the network and the interpreter.

The leader waits for the network and does the work that messages bring itself, at once: a message crosses a board
without a change of threads, which would cost more than a small segment's inference. While it computes, nobody waits for
the network; when that takes longer than PATIENCE_S, or is known to, the stand-by takes over the lead. So even with a
slow or hung interpreter there is a thread that keeps the connection and the deadlines.

Close to Schmidt and others, Leader/Followers, a design pattern for efficient multi-threaded event demultiplexing
(2000), which changes leaders for every event.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

J = TypeVar("J")

PATIENCE_S = 0.05
"""Computing that takes longer is no longer done by the thread that waits for the network."""


class WorkerThreads(Generic[J]):
    """Two threads around `wait` (one turn at the network) and `compute` (one job), and the jobs between them.

    Only one thread computes at a time, and only one is at the network. `lock` guards the jobs; `put` is called with it
    held. `poll_once` is a turn at the network without waiting, for `poll_between_jobs`. An exception out of `wait`,
    `poll_once` or `compute` is a fault of the program: it goes to `on_fault` and ends its thread.
    """

    def __init__(
        self,
        wait: Callable[[], None],
        poll_once: Callable[[], None],
        compute: Callable[[J], None],
        lock: threading.RLock,
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self._wait = wait
        self._poll_once = poll_once
        self._compute = compute
        self._lock = lock
        self._on_fault = on_fault
        # Bounded by the nodes: each has at most one run under way, and one fusion for each request it gathers for.
        self._jobs: deque[J] = deque()
        self._leader = 0
        self._leader_computes = False
        self._computing_since: float | None = None
        self._computes_as: int | None = None
        self._slow = False
        self._computed = 0
        self._computers: set[int] = set()
        """Idents of the threads that are in `run_jobs`."""
        self._stopping = False
        self._active = threading.Event()
        self._take_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(me,), name=f"serve-{me}", daemon=True) for me in (0, 1)
        ]
        self.put = self._jobs.append
        """Hand a job over, with the lock held; the caller makes sure that `run_jobs` is called without it."""

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Let the threads end after their turn; False if one did not within `timeout_s`."""
        self._stopping = True
        self._active.set()
        self._take_over.set()
        ends_at = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, ends_at - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def busy_s(self) -> float:
        """Seconds that the job under way has taken so far; 0 while idle."""
        since = self._computing_since
        return 0.0 if since is None else time.monotonic() - since

    def is_idle(self) -> bool:
        """Whether nobody computes, so that a new job is found only when the network wakes a thread."""
        return self._computing_since is None

    def is_current(self) -> bool:
        """Whether the calling thread is one of these, or computes for it: what it waits for would never come."""
        return threading.get_ident() in self._computers or threading.current_thread() in self._threads

    def is_quick(self) -> bool:
        """Whether a job is done sooner than a thread is woken for it: the last one was."""
        return self._computed > 0 and not self._slow

    def poll_between_jobs(self) -> None:
        """Serve the network without waiting, if no other thread does. Only for `compute`, without the lock."""
        with self._lock:
            if self._leader != self._computes_as:
                return  # another thread is at the network, or will be in a moment
            # Nobody may take over while it is at the network: only one thread may be there.
            self._leader_computes = False
        self._poll_once()
        with self._lock:
            self._leader_computes = True

    def run_jobs(self) -> None:
        """Compute until no job is left, unless another thread is at it: it will find the jobs."""
        me = threading.get_ident()
        self._computers.add(me)
        try:
            self._run_jobs(leads=None)
        finally:
            self._computers.discard(me)

    def _run_jobs(self, *, leads: int | None) -> None:
        """Compute; `leads` is the number of the calling thread if it is the leader, with nobody at the network."""
        job = self._next_job(mine=False)
        if job is not None:
            self._computes_as = leads
        while job is not None:
            self._compute(job)
            self._slow = self.busy_s() > PATIENCE_S
            self._computed += 1
            job = self._next_job(mine=True)

    def _next_job(self, *, mine: bool) -> J | None:
        with self._lock:
            if self._computing_since is not None and not mine:
                return None
            if self._jobs:
                self._computing_since = time.monotonic()
                return self._jobs.popleft()
            self._computing_since = None
            return None

    def _serve(self, me: int) -> None:
        try:
            while not self._stopping:
                if self._leader == me:
                    self._lead(me)
                else:
                    self._stand_by(me)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the agent must learn of it
            self._on_fault(error)

    def _lead(self, me: int) -> None:
        """Wait until there is work, then do it: as the leader, or after handing the lead over where it takes long."""
        while not self._jobs or self._computing_since is not None:
            self._wait()
            if self._stopping:
                return
        if not self._active.is_set():
            self._active.set()
        if self._slow:
            self._leader = 1 - me
            self._take_over.set()
            self.run_jobs()
            return
        self._leader_computes = True
        self._run_jobs(leads=me)
        with self._lock:
            # Unless the stand-by lost patience, this thread still leads.
            if self._leader == me:
                self._leader_computes = False

    def _stand_by(self, me: int) -> None:
        """Watch the leader while there is work, asleep while there is none; return when this thread leads."""
        self._active.wait()
        computed = self._computed
        self._take_over.wait(PATIENCE_S)
        with self._lock:
            if self._leader == me or (self._leader_computes and self.busy_s() > PATIENCE_S):
                self._leader, self._leader_computes = me, False
                self._take_over.clear()
            elif computed == self._computed and self._computing_since is None:
                self._active.clear()
