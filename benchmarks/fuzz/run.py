"""Hands damaged messages or files to a target's readers, in a process of its own, and measures what they take.

A child is forked for each target, so that memory is that target's alone and a crash, a hang or an exhausted memory is
one more failure and no end of the run. What is being read stands in memory that both share.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.fuzz.mutations import Mutator
from benchmarks.fuzz.target import Form, Target
from distree.errors import ConfigFileError

GOOD_SHARE = 0.03
"""Share of what is handed over undamaged, and has to be taken."""

MEASURED = 2000
"""About so many of a target are measured by tracemalloc, which counts what Python and NumPy take, and slows both down.

All of them are of the first tenth: each time leaves some kilobytes behind, which would look like a leak later.
"""

_MEASURED_FEW = 200
"""Of a short run, those that are measured are of so many, half of them."""

MAX_TOLD = 4096
"""Longest text of a refusal, in characters; of a file of many mistakes, of each."""

HANGS_S = 60.0
MOST_S = 10.0
"""Longest time that one reading may take, on a machine that others use too."""

_SLACK_MIB = 48
"""How much the process may grow beyond what one reading takes, since memory that was freed stays in pieces."""

FLAT_MIB = 4
"""How much the resident memory may differ between the middle of a run and its end, after what is free is given back."""

_MAX_FAILURES = 20
_HEAD = 16
_ROOM = 8 << 20


@dataclass(slots=True)
class Tally:
    """What came of a target. Memory is in bytes."""

    count: int = 0
    accepted: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    slowest: str = ""
    largest: int = 0
    """The most that one reading took, of those measured by tracemalloc."""
    largest_of: str = ""
    resident_early: int = 0
    """Resident memory of the process after a tenth of the run, with what is free given back to the system."""
    resident_half: int = 0
    resident: int = 0
    """The same after half of the run, and at its end."""
    risen: int = 0
    """How far the highest resident memory of the process, at any time, is above that at its start; of what is read in
    child processes, theirs."""
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def judge(self, target: Target) -> list[str]:
        """Return what is wrong with the figures, beside what failed."""
        wrong = []
        if self.largest > target.most_mib << 20:
            wrong.append(f"{self.largest_of} took {self.largest >> 20} MiB, of {target.most_mib} allowed")
        if self.risen > (target.most_mib + _SLACK_MIB) << 20:
            wrong.append(f"the process grew by {self.risen >> 20} MiB, of {target.most_mib + _SLACK_MIB} allowed")
        if self.resident - self.resident_half > FLAT_MIB << 20:
            grown = (self.resident - self.resident_half) >> 20
            wrong.append(f"the process grew by {grown} MiB in the second half, of {FLAT_MIB} allowed")
        if self.slowest_s > MOST_S:
            wrong.append(f"{self.slowest} took {self.slowest_s:.1f} s, of {MOST_S:g} allowed")
        if self.count and not self.accepted:
            wrong.append("nothing was taken, not even what is good")
        return wrong


def fuzz(target: Target, count: int, seed: int, folder: Path) -> Tally:
    """Fuzz one target `count` times in a child process; `folder` is emptied afterwards, but for what failed."""
    shared = mmap.mmap(-1, _ROOM)
    work = folder / target.name.replace(" ", "-")
    work.mkdir(parents=True)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(target, count, seed, work, shared, writer)
    os.close(writer)
    tally = _await(target, child, reader, shared, folder)
    shutil.rmtree(work, ignore_errors=True)
    return tally


# ---------------------------------------------------------------- the child


def _child(target: Target, count: int, seed: int, work: Path, shared: mmap.mmap, writer: int) -> None:
    code = 1
    try:
        sys.stderr = os.fdopen(os.dup(2), "w")  # for this program; the interpreter writes to the other
        if target.in_child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        tally = _Run(target, seed, work, shared).run(count)
        with os.fdopen(writer, "w") as pipe:
            json.dump(asdict(tally), pipe)
        code = 0
    except BaseException:  # noqa: BLE001 - the child must not return into the parent's code
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


class _Run:
    """One target, in the child."""

    def __init__(self, target: Target, seed: int, work: Path, shared: mmap.mmap) -> None:
        self._target = target
        self._rng = random.Random(f"{seed} {target.name}")
        self._mutator = Mutator(self._rng)
        self._forms: Sequence[Form] = target.forms(work)
        self._failed = work.parent
        self._shared = shared
        self._tally = Tally()

    def run(self, count: int) -> Tally:
        tally, began = self._tally, time.perf_counter()
        first = max(count // 10, _MEASURED_FEW)
        measured_share, draw = min(0.5, MEASURED / first), random.Random(1)
        for number, (form, content, is_good) in enumerate(self._cases(count)):
            if number == min(200, count // 20):
                # What is imported or compiled at first use is no growth.
                start, highest = _resident(), _highest()
            if number == count // 10:
                tally.resident_early = _resident()
            if number == count // 2:
                tally.resident_half = _resident()
            self._note(number, form, content)
            self._read(form, content, is_good=is_good, measured=number < first and draw.random() < measured_share)
            if len(tally.failures) >= _MAX_FAILURES:
                break
        tally.resident = _resident()
        tally.risen = max(0, _highest() - highest)
        if self._target.in_child:
            # Children begin as large as this process, of which they are copies.
            tally.risen = max(0, _highest(resource.RUSAGE_CHILDREN) - start)
        tally.seconds = time.perf_counter() - began
        return tally

    def _cases(self, count: int) -> Iterator[tuple[Form, bytes, bool]]:
        rng, made = self._rng, 0
        while made < count:
            form = self._forms[made // 10 % len(self._forms)]
            fresh = form.fresh(rng)
            is_first = made < 10 * len(self._forms)
            for number in range(min(10, count - made)):
                is_good = (is_first and not number) or rng.random() < GOOD_SHARE
                yield form, fresh if is_good else self._mutator.damaged(fresh, form.damage), is_good
                made += 1

    def _note(self, number: int, form: Form, content: bytes) -> None:
        """Leave in shared memory what is read now, for the parent to find if this process ends."""
        head = json.dumps([number, form.name, len(content)]).encode()
        self._shared.seek(0)
        self._shared.write(len(head).to_bytes(_HEAD, "big") + head + content[: _ROOM - _HEAD - len(head)])

    def _read(self, form: Form, content: bytes, *, is_good: bool, measured: bool) -> None:
        tally = self._tally
        tally.count += 1
        if measured:
            tracemalloc.start()
        began = time.perf_counter()
        try:
            form.read(content)
        except self._target.refuses as error:
            tally.refused += 1
            if is_good:
                self._fail(form, content, f"refused, although it is good: {error}")
            elif (fault := _fault(error)) is not None:
                self._fail(form, content, fault)
        except BaseException as error:  # noqa: BLE001 - that there is none is what this shows
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = str(error)[:300]
            self._fail(form, content, f"{type(error).__name__}: {what} ({where.filename}:{where.lineno})")
        else:
            tally.accepted += 1
        took = time.perf_counter() - began
        if measured:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            if peak > tally.largest:
                tally.largest, tally.largest_of = peak, form.name
        elif took > tally.slowest_s:
            tally.slowest_s, tally.slowest = took, form.name

    def _fail(self, form: Form, content: bytes, what: str) -> None:
        self._tally.failures.append(_kept(self._failed, self._target, form.name, content, what, self._tally.count))


def _fault(error: Exception) -> str | None:
    """Return what is wrong with a refusal: too long, or not printable; None if nothing is."""
    problems = [str(problem) for problem in error.problems] if isinstance(error, ConfigFileError) else [str(error)]
    for told in problems:
        if not told or len(told) > MAX_TOLD:
            return f"a refusal of {len(told)} characters: {told[:200]!r}"
    return None


def _resident() -> int:
    """Return the resident memory of this process in bytes, after what is free was given back to the system.

    The C library keeps what is freed in pieces, and more of it the longer a program runs, up to a bound: what grows
    without that is a leak.
    """
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc alone has it
        trim(0)
    with Path("/proc/self/statm").open() as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def _highest(who: int = resource.RUSAGE_SELF) -> int:
    return resource.getrusage(who).ru_maxrss << 10


# ---------------------------------------------------------------- the parent


def _await(target: Target, child: int, reader: int, shared: mmap.mmap, folder: Path) -> Tally:
    """Wait for the child, and kill it if it hangs; return its tally."""
    seen, since, parts = b"", time.monotonic(), []
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb") as pipe:
        while True:
            if (part := pipe.read()) is not None:
                parts.append(part)
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            now = bytes(shared[: _HEAD + 64])
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > HANGS_S:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                return _crashed(target, shared, folder, f"not done after {HANGS_S:g} s")
            time.sleep(0.05)
        parts.append(pipe.read() or b"")
    if os.WIFSIGNALED(status):
        return _crashed(target, shared, folder, f"crashed: {signal.Signals(os.WTERMSIG(status)).name}")
    if os.WEXITSTATUS(status):
        return Tally(failures=[f"{target.name}: ended with status {os.WEXITSTATUS(status)}, see above"])
    return Tally(**json.loads(b"".join(parts)))


def _crashed(target: Target, shared: mmap.mmap, folder: Path, what: str) -> Tally:
    shared.seek(0)
    head_bytes = int.from_bytes(shared.read(_HEAD), "big")
    number, name, nbytes = json.loads(shared.read(head_bytes))
    return Tally(count=number, failures=[_kept(folder, target, name, shared.read(nbytes), what, number)])


def _kept(folder: Path, target: Target, form: str, content: bytes, what: str, number: int) -> str:
    """Keep what failed in a file; return a line that names it."""
    path = folder / f"{target.name.replace(' ', '-')}-{number}"
    path.write_bytes(content)
    return f"{target.name}: {form}: {what}; its {len(content):,} bytes are in {path}"
