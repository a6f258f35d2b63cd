"""Runs work on untrusted files in a child process with bounded memory and time, and shows its progress.

The interpreter aborts on some damaged files, and a few flipped bits make a flatbuffer endless. Neither may take the
command down: whatever happens to the child, its parent reports it in one line. The child sends lines of JSON through
a pipe, and the parent shows them; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn, Protocol

from distree import child_processes
from distree.errors import DistreeError, Problem
from model_zoo.errors import DataError, SplitError
from model_zoo.progress import Progress

_LONGEST_LINE = 1 << 20
_LAST_WORDS_S = 10.0
_STEP_EVERY_S = 0.1


class Screen(Protocol):
    """Shows the user how the work is going."""

    def print(self, text: str) -> None:
        """Show a result."""

    def line(self, text: str) -> None:
        """Show what is happening."""

    def bar(self, what: str, done: int, total: int) -> None:
        """Show how far a phase has got."""


@dataclass(slots=True)
class Terminal:
    """Results go to stdout, progress to stderr."""

    progress: Progress
    _what: str = field(default="", init=False)

    def print(self, text: str) -> None:
        """Write a result to stdout."""
        self.progress.clear()
        print(text, flush=True)  # noqa: T201

    def line(self, text: str) -> None:
        """Write a line to stderr."""
        self.progress.line(text)

    def bar(self, what: str, done: int, total: int) -> None:
        """Draw how far a phase has got."""
        self.progress.bar(what, done, total)
        if done == total and what != self._what:
            self._what = what
            self.progress.line(what)


@dataclass(slots=True)
class Teller:
    """The child's side: reports what is happening, and how long it may take. Without a pipe it reports nothing."""

    pipe: IO[str] | None = None
    _what: str = field(default="", init=False)
    _told_at: float = field(default=0.0, init=False)

    def phase(self, what: str, limit_s: float | None = None) -> None:
        """Report what begins now, and after how many seconds it counts as hanging."""
        self._what = what
        self._send("phase", what, limit_s)

    def step(self, done: int, total: int) -> None:
        """Report how far this phase has got."""
        now = time.monotonic()
        if done == total or now - self._told_at > _STEP_EVERY_S:
            self._told_at = now
            self._send("step", self._what, done, total)

    def line(self, text: str) -> None:
        """Report progress in a line of text."""
        self._send("line", text)

    def print(self, text: str) -> None:
        """Report a result of the command."""
        self._send("print", text)

    def error(self, problem: Problem, *, of_network: bool) -> None:
        """Report why the work ends here: because of the network, or of something else that the problem names."""
        self._send("error", *problem, of_network)

    def _send(self, *message: object) -> None:
        if self.pipe is not None:
            self.pipe.write(json.dumps(message) + "\n")
            self.pipe.flush()


def supervise(work: Callable[[Teller], None], about: str, screen: Screen) -> None:
    """Run `work` in a child process, and show what it reports; return when it is done.

    Raises SplitError, which begins with `about`, if the work raised SplitError, crashed, hung or ran out of memory;
    DataError if it raised another DistreeError. Call it while this process has one thread: a fork keeps only the
    calling one.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    child_processes.prepare()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(parent, writer, work)
    os.close(writer)
    listener = _Listener(about, screen)
    try:
        listener.listen(reader)
    finally:
        os.close(reader)
        status = _end(child, patient=listener.heard_out)
    listener.judge(status)


def limit_memory(at_most: int) -> None:
    """Let this process use at most `at_most` bytes of memory more than now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    wanted = pages * resource.getpagesize() + at_most
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def most_memory() -> int:
    """Return how many bytes of memory a long run may use: three quarters of this machine's."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4


def _child(parent: int, writer: int, work: Callable[[Teller], None]) -> NoReturn:
    """Do the work and exit without cleaning up what belongs to the parent."""
    code = 1
    try:
        child_processes.end_with_parent(parent)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # The interpreter's own messages do not help the user; what matters comes through the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with os.fdopen(writer, "w", encoding="utf-8") as pipe:
            teller = Teller(pipe)
            _work(work, teller)
            code = 0
    finally:
        os._exit(code)


def _work(work: Callable[[Teller], None], teller: Teller) -> None:
    """Do the work, and report what went wrong."""
    try:
        work(teller)
    except SplitError as error:
        teller.error(error.problem, of_network=True)
    except DistreeError as error:
        teller.error(error.problem, of_network=False)
    except MemoryError:
        problem = Problem("needs more memory than is available", "check that the file is complete, and the right one")
        teller.error(problem, of_network=True)
    except Exception as error:  # noqa: BLE001 - damaged files raise whatever their bytes lead to
        reason = " ".join(str(error).split())[:150]
        what = f"is damaged or has an unknown form ({type(error).__name__}: {reason})"
        teller.error(Problem(what, "copy or convert it again"), of_network=True)


@dataclass(slots=True)
class _Listener:
    """The parent's side."""

    about: str
    screen: Screen
    what: str = "starting"
    deadline: float = field(default_factory=lambda: time.monotonic() + _LAST_WORDS_S)
    limit_s: float = _LAST_WORDS_S
    error: DistreeError | None = None
    hung: bool = False
    heard_out: bool = False  # the child closed its end, so it is about to exit

    def listen(self, reader: int) -> None:
        """Show what the child sends until it closes its end, or a phase takes too long."""
        for line in self._lines(reader):
            kind, *rest = json.loads(line)
            if kind == "phase":
                self.what, limit_s = rest
                self.limit_s = float("inf") if limit_s is None else limit_s
                self.deadline = time.monotonic() + self.limit_s
            elif kind == "step":
                self.screen.bar(*rest)
            elif kind == "line":
                self.screen.line(rest[0])
            elif kind == "print":
                self.screen.print(rest[0])
            else:
                what, remedy, of_network = rest
                problem = Problem(what, remedy)
                self.error = SplitError(*problem.at(self.about)) if of_network else DataError(*problem)

    def _lines(self, reader: int) -> Iterator[bytes]:
        poller = select.poll()
        poller.register(reader, select.POLLIN | select.POLLHUP)
        rest = b""
        while True:
            left_s = self.deadline - time.monotonic()
            if left_s <= 0 or len(rest) > _LONGEST_LINE:
                self.hung = True
                return
            if not poller.poll(1e3 * min(left_s, 60.0)):
                continue
            received = os.read(reader, 1 << 16)
            if not received:
                self.heard_out = True
                return
            *lines, rest = (rest + received).split(b"\n")
            yield from lines

    def judge(self, status: int) -> None:
        """Raise SplitError unless the child did its work."""
        if self.hung:
            raise SplitError(
                f"{self.about}: {self.what}: not done after {self.limit_s:.0f} s", "check that the file is complete"
            )
        if self.error is not None:
            raise self.error
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            raise SplitError(
                f"{self.about}: {self.what}: the interpreter crashed ({name}), as it does on damaged files and "
                "unsupported networks",
                "convert the network again with a current converter",
            )
        if os.WEXITSTATUS(status):
            raise SplitError(
                f"{self.about}: {self.what}: ended with status {os.WEXITSTATUS(status)}", "please report this"
            )


def _end(child: int, *, patient: bool) -> int:
    """Wait for the child to exit, or kill it; return its wait status."""
    ends_at = time.monotonic() + (_LAST_WORDS_S if patient else 0.0)
    while time.monotonic() < ends_at:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]
