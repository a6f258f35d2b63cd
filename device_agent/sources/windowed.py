"""Windows of a stream of samples: cut as the bundle says, and submitted one after the other."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from device_agent.sources.base import InputSink
from device_agent.sources.output import Output
from device_agent.sources.samples import SampleFormat, Samples, samples_of
from device_agent.sources.supervision import Supervision
from device_agent.sources.trial import try_output
from distree.bundle.manifest import Manifest
from distree.bundle.preprocessing import FULL_SCALE
from distree.bundle.windows import WindowBuffer
from distree.errors import Problem, RemoteProtocolError
from distree.formatting import counted
from distree.messages.events import EventKind
from distree.record import record
from distree.tensors import Array

if TYPE_CHECKING:
    from distree.bundle.inputs import InputReader

log = logging.getLogger(__name__)

WAITING = 8
"""Windows that may wait to be submitted."""

_TURN_S = 0.5
_TELL_S = 5.0
"""Shortest time between two reports of what was lost."""


def misfits(manifest: Manifest, hop: int | None) -> Iterator[Problem]:
    """Say why a stream of samples cannot be cut into inputs of a bundle."""
    spec, rule = manifest.input, manifest.preprocess.window
    if not spec.is_window:
        yield Problem(
            f"kind: a stream gives windows of samples, but inputs of the bundle are {spec.dtype} {spec.shape}",
            "choose another source, or a bundle for sound or motion",
        )
    elif hop is None and rule.hop is None:
        yield Problem(
            "hop: the bundle does not say how far apart windows begin (preprocess.window.hop)",
            f"set hop, in samples; {spec.shape[0]} for windows that do not overlap",
        )


@record
class WindowRules:
    """How a source cuts and hands over windows.

    length, hop: in samples. pads_short: a whole recording that is shorter than a window is padded. min_level: the least
    root mean square, as a share of full scale, of a window that is submitted. is_live: windows that cannot be submitted
    in time are dropped; else reading waits.
    """

    format: SampleFormat
    length: int
    hop: int
    pads_short: bool
    min_level: float = 0.0
    is_live: bool = True


def rules_for(
    reader: InputReader, format_: SampleFormat, hop: int | None, *, min_level: float = 0.0, is_live: bool = True
) -> WindowRules:
    """Return the rules for a bundle; `hop` is its own if none is given, and `misfits` says where there is none."""
    return WindowRules(
        format=format_,
        length=reader.shape[0],
        hop=hop or reader.hop or reader.shape[0],
        pads_short=reader.pads_short,
        min_level=min_level,
        is_live=is_live,
    )


@record
class _Window:
    values: Array
    start: int


class WindowedSource:
    """Reads samples, and submits their windows in order. Time is counted in samples: no clock takes part.

    When an output is opened again, what was lost has no place in a window: cutting begins anew, and the count goes on.
    """

    def __init__(
        self,
        sink: InputSink,
        name: str,
        rules: WindowRules,
        open_output: Callable[[], Output],
        remedy_for: Callable[[str], str],
        *,
        silence_s: float,
    ) -> None:
        self._sink = sink
        self._name = name
        self._rules = rules
        self.ready = True
        self._supervision = Supervision(
            sink, name, open_output, remedy_for, expects="sample", silence_s=silence_s, is_live=rules.is_live
        )
        self._changed = threading.Condition()
        self._waiting: deque[_Window] = deque()
        self._is_over = False
        self._fault: BaseException | None = None
        self.samples = 0
        self.submitted = self.dropped = self.quiet = self.bad_lines = 0
        self._bad_line = "", ""
        self._told = 0, 0
        """How many windows and lines of those lost were told."""
        self._told_at = float("-inf")

    def run(self, stop: threading.Event) -> None:
        """Submit windows until `stop`, or the end of the stream."""
        reading = threading.Thread(target=self._read, args=(stop,), name="samples", daemon=True)
        reading.start()
        while not stop.is_set() and not self._has_ended():
            if self._has_window() and self._sink.wait_for_room(_TURN_S):
                self._submit(self._next())
            self._tell_losses()
        reading.join()
        self._tell_losses(at_last=True)
        log.info("%s: %s", self._name, self.counts())
        if self._fault is not None:
            raise self._fault

    def counts(self) -> str:
        """Say what became of the samples."""
        return (
            f"{counted(self.samples, 'sample')} came, {counted(self.submitted, 'window')} submitted, {self.quiet} "
            f"quiet, {self.dropped} dropped; {counted(self.bad_lines, 'bad line')}"
        )

    def note_answered(self, request: str) -> None:
        """Nothing to do: a window that was not answered is not taken again."""

    # ------------------------------------------------------------ submitting

    def _has_window(self) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting or self._is_over, _TURN_S) and bool(self._waiting)

    def _has_ended(self) -> bool:
        with self._changed:
            return self._is_over and not self._waiting

    def _next(self) -> _Window:
        with self._changed:
            window = self._waiting.popleft()
            self._changed.notify_all()
            return window

    def _submit(self, window: _Window) -> None:
        name = self._sink.reader.place(window.start)
        try:
            self._sink.submit(name, window.values)
        except RemoteProtocolError as error:
            self._sink.reject(f"{self._name} at {name}", error, b"")
            return
        self.submitted += 1
        self._sink.run_jobs()

    # ------------------------------------------------------------ reading

    def _read(self, stop: threading.Event) -> None:
        try:
            self._supervision.run(stop, lambda: _Cutter(self, self._make_samples(), self._rules, stop))
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            self._fault = error
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _make_samples(self) -> Samples:
        return samples_of(self._rules.format, self._sink.reader, self._note_bad_line)

    def put(self, values: Array, start: int, stop: threading.Event) -> None:
        """Have a window submitted; where that takes too long, drop the oldest, or wait."""
        if self._rules.min_level and level(values) < self._rules.min_level:
            self.quiet += 1
            return
        with self._changed:
            if not self._rules.is_live:
                while len(self._waiting) >= WAITING and not stop.is_set():
                    self._changed.wait(_TURN_S)
            if len(self._waiting) >= WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(_Window(values=values, start=start))
            self._changed.notify_all()

    def _note_bad_line(self, what: str, remedy: str) -> None:
        self.bad_lines += 1
        self._bad_line = what, remedy

    # ------------------------------------------------------------ telling

    def _tell_losses(self, *, at_last: bool = False) -> None:
        """Tell what was lost since it was last told, every few seconds: not each line, of which there may be floods."""
        now = time.monotonic()
        if not at_last and now - self._told_at < _TELL_S:
            return
        lost, told = (self.dropped, self.bad_lines), self._told
        if lost == told:
            return
        self._told_at, self._told = now, lost
        if self.dropped > told[0]:
            self._sink.tell(
                EventKind.SHED,
                f"{self._name}: {counted(self.dropped, 'window')} dropped since the start, because inputs are not "
                "answered as fast as they come",
                "set a larger hop, or give the pipeline faster boards",
                like=f"{self._name} drops",
            )
        if self.bad_lines > told[1]:
            what, remedy = self._bad_line
            self._sink.tell(
                EventKind.SOURCE,
                f"{self._name}: {counted(self.bad_lines, 'line')} left out since the start, the last because of {what}",
                remedy,
                like=f"{self._name} lines",
            )


class _Cutter:
    """Cuts what comes from one opening of an output into windows of `source`, whose count of samples goes on."""

    def __init__(self, source: WindowedSource, samples: Samples, rules: WindowRules, stop: threading.Event) -> None:
        self._source = source
        self._samples = samples
        self._rules = rules
        self._stop = stop
        self._windows = WindowBuffer(rules.length, rules.hop)
        self._starts_at = self._next_start = source.samples

    def take(self, piece: bytes) -> bool:
        """Take in bytes; whether they completed a sample."""
        return self._cut(self._samples.push(piece))

    def end(self) -> None:
        """Cut what the last bytes make up; a whole recording that is shorter than a window is padded."""
        self._cut(self._samples.end())
        rest = self._windows.rest()
        is_short = self._next_start == self._starts_at and rest is not None and len(rest) > 0
        if is_short and rest is not None and self._rules.pads_short and not self._rules.is_live:
            missing = self._rules.length - len(rest)
            self._source.put(np.pad(rest, [(0, missing), *[(0, 0)] * (rest.ndim - 1)]), self._starts_at, self._stop)

    def _cut(self, samples: Array) -> bool:
        self._source.samples += len(samples)
        for window in self._windows.push(samples):
            self._source.put(window, self._next_start, self._stop)
            self._next_start += self._rules.hop
        return len(samples) > 0


class _SampleCounter:
    """Counts samples, for a trial."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.count = 0
        self.first = 0

    def take(self, piece: bytes) -> bool:
        """Take in bytes; whether they completed a sample."""
        found = len(self._samples.push(piece))
        self.first = self.first or found
        self.count += found
        return found > 0

    def end(self) -> None:
        """Count what the last bytes make up."""
        self.count += len(self._samples.end())


def try_samples(
    open_output: Callable[[], Output], samples: Samples, remedy_for: Callable[[str], str], timeout_s: float
) -> str:
    """Read samples for a moment; say how many come, and how fast. ConfigError if none come in time."""
    counter = _SampleCounter(samples)
    trial = try_output(open_output, counter, "sample", remedy_for, timeout_s)
    # What came first had been waiting for who knows how long.
    rate = (counter.count - counter.first) / trial.measured_s if trial.measured_s > 0 else 0.0
    fast = f", {rate:,.0f} samples per second" if rate else ""
    return f"{counted(counter.count, 'sample')}, the first after {trial.first_s:.1f} s{fast}"


def level(values: Array) -> float:
    """Return the root mean square of samples as a share of full scale, which is 1 for floating-point numbers.

    >>> level(np.full(100, 16384, np.int16))
    0.5
    """
    scaled = values.astype(np.float64) / FULL_SCALE.get(values.dtype.name, 1.0)
    return float(np.sqrt(np.mean(scaled**2)))
