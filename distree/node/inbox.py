"""The inbox: jobs that wait for this board's one interpreter, and the one that it runs.

Live work goes first; audits wait in a line of their own. Both are bounded, and what overflows is handed back.
"""

from __future__ import annotations

from collections import deque

from distree.node.effects import Run
from distree.node.job import Job

MAX_AUDITS_WAITING = 8
"""Jobs of audits that wait on a board; beyond them the oldest is shed, which its origin counts as lost."""


class Inbox:
    """Jobs that wait, at most `items` and `nbytes` of them, and the one that runs."""

    def __init__(self, items: int, nbytes: int) -> None:
        self._items, self._nbytes = items, nbytes
        self._waiting: deque[Job] = deque()
        self._waiting_bytes = 0
        self._audits: deque[Job] = deque()
        self._running: Job | None = None

    def __len__(self) -> int:
        """How many jobs wait that are not audits."""
        return len(self._waiting)

    @property
    def has_waiting(self) -> bool:
        """Whether a job waits."""
        return bool(self._waiting or self._audits)

    @property
    def has_work(self) -> bool:
        """Whether a job waits, or runs."""
        return self._running is not None or self.has_waiting

    def waiting_at(self, stage: int) -> int:
        """How many jobs wait for a stage, audits not counted."""
        return sum(job.stage == stage for job in self._waiting)

    def books(self) -> dict[str, int]:
        """How much is in each book."""
        return {
            "waiting": len(self._waiting) + len(self._audits),
            "waiting_bytes": self._waiting_bytes,
            "running": int(self._running is not None),
        }

    # ------------------------------------------------------------ in

    def put(self, now: float, job: Job) -> tuple[Run | None, list[Job]]:
        """Start a job where nothing runs or waits, else queue it; return the run, and what overflows."""
        job.ready_at = now
        if self._running is None and not self._waiting and not (job.context.audit and self._audits):
            return self._start(now, job), []
        if job.context.audit:
            self._audits.append(job)
            return None, [self._audits.popleft()] if len(self._audits) > MAX_AUDITS_WAITING else []
        self._waiting.append(job)
        self._waiting_bytes += job.nbytes
        overflow = []
        while len(self._waiting) > self._items or self._waiting_bytes > self._nbytes:
            overflow.append(self._pop_waiting())
        return None, overflow

    def go_on(self, job: Job) -> Run | None:
        """Run the next stage of the job that has just run, ahead of what waits; an audit lets that go first."""
        job.queue_s = 0.0
        if job.context.audit and self._waiting:
            job.move("yield")
            self._audits.appendleft(job)
            return None
        job.move("continue")
        self._running = job
        return Run(key=job.key, stage=job.stage, tensor=job.tensor)

    # ------------------------------------------------------------ out

    def finish(self, key: int) -> Job:
        """Return the job that ran; KeyError for another one."""
        job = self._running
        if job is None or job.key != key:
            raise KeyError(f"no run {key} is under way")
        self._running = None
        return job

    def start_next(self, now: float) -> tuple[Run | None, list[Job]]:
        """Start the oldest job that is still worth it; return its run, and those whose budget has run out."""
        expired: list[Job] = []
        while self._running is None and (self._waiting or self._audits):
            job = self._pop_waiting() if self._waiting else self._audits.popleft()
            if job.left(now) > 0:
                return self._start(now, job), expired
            expired.append(job)
        return None, expired

    def remove(self, job: Job) -> None:
        """Take out a job that waits."""
        if job.context.audit:
            self._audits.remove(job)
        else:
            self._waiting.remove(job)
            self._waiting_bytes -= job.nbytes

    def _start(self, now: float, job: Job) -> Run:
        job.move("start")
        job.queue_s = now - job.ready_at
        self._running = job
        return Run(key=job.key, stage=job.stage, tensor=job.tensor)

    def _pop_waiting(self) -> Job:
        job = self._waiting.popleft()
        self._waiting_bytes -= job.nbytes
        return job
