"""Child processes that end with their parent, even when that is killed."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

_PR_SET_PDEATHSIG = 1


@functools.cache
def _libc() -> ctypes.CDLL:
    # Loaded before the fork: the child may only call what is there already.
    return ctypes.CDLL(None)


def prepare() -> None:
    """Load what a forked child needs, while this process may still load anything."""
    _libc()


def end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when the thread of process `parent` that forked it ends."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def spawn(
    command: Sequence[str],
    *,
    stdout: IO[bytes] | int | None = None,
    stderr: IO[bytes] | int | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` so that the kernel sends it SIGTERM when the thread that called this ends.

    A terminal's Ctrl-C does not reach it: its parent decides in which order to stop things.
    """
    _libc()
    return subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=env,
        start_new_session=True,
        preexec_fn=functools.partial(end_with_parent, os.getpid()),
    )


_TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores, and what it starts would too
if os.getppid() == int(sys.argv[1]):
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""
"""Asks the kernel to be killed with its parent, then becomes the program that follows in its arguments."""


def spawn_from_thread(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start `command`, with pipes for its output and its errors, so that it is killed when the calling thread ends.

    For processes with several threads, where `spawn` would run Python between fork and exec, and might find a lock
    taken by a thread that the child does not have. A program that does not exist is told in its errors.
    """
    return subprocess.Popen(
        [sys.executable, "-ISc", _TIED, str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, "LC_ALL": "C", "AV_LOG_FORCE_NOCOLOR": "1"},
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Send SIGTERM, and SIGKILL after `timeout_s`; return when the process is gone."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    if process.poll() is None:
        process.kill()
    process.wait()
