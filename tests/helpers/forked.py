"""`distree` in processes that are forked from one that has loaded Python, numpy and the product already.

Each is a process of its own, with its own standard streams, signals and exit status; only its start is cheaper, by the
quarter of a second of CPU that the imports take. What is to be seen of the start itself, such as a module that is not
there, needs `python -m distree`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from distree import child_processes

ROOT = Path(__file__).parents[2]
PRELOADED = (
    "ai_edge_litert.interpreter", "device_agent.agent", "device_agent.cli", "distree.apps.cli", "orchestrator.cli",
    "orchestrator.service",
)  # fmt: skip

# As `distree` itself does before numpy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*PRELOADED])


class Forked:
    """A running `distree`; as much of `subprocess.Popen` as tests use."""

    def __init__(self, process: ForkServerProcess, arguments: Sequence[str]) -> None:
        self._process, self.args = process, list(arguments)
        assert process.pid is not None
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: Sequence[str],
    *,
    stdout: Path | None = None,
    stderr: Path | None = None,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> Forked:
    """Start `distree ARGUMENTS`; what it prints is appended to files. Like all that tests start, it ends with them.

    `before` is called in the process first; it must be importable there.
    """
    for path in filter(None, (stdout, stderr)):
        path.touch()  # to be read at any time from now on
    environ = dict(os.environ if env is None else env)
    given = (list(map(str, arguments)), stdout, stderr, cwd, environ, before)
    process = _context.Process(target=_main, args=given, daemon=True)
    process.start()
    return Forked(process, arguments)


def run(
    arguments: Sequence[str], *, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Carry out `distree ARGUMENTS`; return its status and what it printed. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start(arguments, stdout=out, stderr=err, cwd=cwd, env=env)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, status, out.read_text(), err.read_text())


def _main(
    arguments: list[str],
    stdout: Path | None,
    stderr: Path | None,
    cwd: Path,
    environ: dict[str, str],
    before: Callable[[], object] | None,
) -> None:
    """In the forked process: become what `python -m distree ARGUMENTS` is, and exit with its status."""
    child_processes.end_with_parent(os.getppid())
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    for number, path in ((1, stdout), (2, stderr)):
        target = os.open(path or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(target, number)
        os.close(target)
    # The streams of the process that this one is forked from may belong to a test of long ago.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv = ["distree", *arguments]
    if before is not None:
        before()
    from distree.apps.cli import main

    sys.exit(main())
