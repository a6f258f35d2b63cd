"""What cameras, microphones and streams submit to in tests, what they tell, and programs that they run."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

from distree.bundle.inputs import InputReader
from distree.bundle.preprocessing import Preprocessor
from distree.messages.events import Severity

PATIENCE_S = 30.0

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed: apt install ffmpeg")


class LiveSink:
    """Takes inputs as an agent does, and keeps what is told."""

    def __init__(self, manifest):
        self.preprocessor = Preprocessor(manifest)
        self.reader = InputReader(manifest.input, manifest.preprocess)
        self.room = threading.Event()
        self.room.set()
        self.submitted = []
        self.rejected = []
        self.told = []
        self.times = []

    def wait_for_room(self, timeout_s):
        return self.room.wait(timeout_s)

    def submit(self, name, raw, request=None):
        self.preprocessor.tensor(raw)
        self.submitted.append((name, raw))
        self.times.append(time.monotonic())
        return request or f"own-{len(self.submitted)}"

    def run_jobs(self):
        pass

    def reject(self, name, error, payload):
        assert error.remedy
        self.rejected.append((name, error))

    def tell(self, kind, what, remedy="", *, severity=Severity.WARNING, like=""):
        self.told.append((what, remedy, severity))

    def wake(self):
        pass

    def names(self):
        return [name for name, _ in self.submitted]

    def lines(self, word):
        return [what for what, _, _ in self.told if word in what]


@contextlib.contextmanager
def running(source):
    """Run a source in a thread; it has ended, without a fault, when the block ends."""
    stop, faults = threading.Event(), []

    def run():
        try:
            source.run(stop)
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert not faults, faults


def until(condition, what, patience_s=PATIENCE_S):
    ends_at = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < ends_at, f"waited in vain for {what}"
        time.sleep(0.005)


def python(folder: Path, script: str, *arguments) -> tuple[str, ...]:
    """The command of a small Python program that may call `note()`, which leaves its process id in `folder/pids`."""
    head = (
        "import os, sys, time, signal\n"
        f"def note():\n    open({str(folder / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "out = sys.stdout.buffer\n"
        "def picture(value, size=(8, 6)):\n"
        "    out.write(b'P6\\n%d %d\\n255\\n' % size + bytes([value]) * (3 * size[0] * size[1])); out.flush()\n"
    )
    path = folder / f"program{len(list(folder.glob('program*')))}.py"
    path.write_text(head + script)
    return (sys.executable, "-IS", str(path), *map(str, arguments))


def pids(folder: Path) -> list[int]:
    """The process ids that programs have left, in order."""
    path = folder / "pids"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_gone(pid: int) -> bool:
    """Whether a process is no more, not even as a zombie."""
    return not Path(f"/proc/{pid}").exists()


def children(pid: int | None = None) -> list[int]:
    """The processes that a process has started and that are there, zombies too."""
    wanted, found = pid or os.getpid(), []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == wanted:
                found.append(int(stat.parent.name))
    return found


def named(name: str, pid: int | None = None) -> list[int]:
    """Those of `children` whose program has a name."""
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                found.append(child)
    return found
