"""Keeps an output open: opens it, hands on what comes, reopens it when it ends or falls silent, and says so once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from device_agent.sources.base import InputSink
from device_agent.sources.output import Ending, Output, OutputReader
from distree.errors import DistreeError, RemoteProtocolError
from distree.messages.events import EventKind, Severity

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
STEADY_S = 10.0
"""How long an output must have worked for the next retry to come soon again."""

_REASONS = 4
"""The most reasons that are told of one outage."""

_TURN_S = 0.5
_FINISH_S = 1.0
"""How long a program that has closed its output may take to end, and to say why."""


class Supervision:
    """Reads the output that `open_output` opens; OSError and DistreeError of it are reasons, too.

    `name` is what people call it ("camera /dev/video0"), `expects` what comes from it ("picture"), and `remedy_for`
    knows what helps against a reason. Programs that hang without ending are known for it (a camera that vanished from
    the network, a driver): an output without anything useful for `silence_s` seconds counts as broken.
    """

    def __init__(
        self,
        sink: InputSink,
        name: str,
        open_output: Callable[[], Output],
        remedy_for: Callable[[str], str],
        *,
        expects: str,
        silence_s: float,
        is_live: bool = True,
    ) -> None:
        self._sink = sink
        self._name = name
        self._open = open_output
        self._remedy_for = remedy_for
        self._expects = expects
        self._silence_s = silence_s
        self._is_live = is_live
        self._told: set[str] = set()
        """What was told of this outage: nothing while it works."""
        self._worked_at = time.monotonic()
        self._has_worked = False

    def run(self, stop: threading.Event, make_reader: Callable[[], OutputReader]) -> None:
        """Read until `stop`, or the end of what has one; `make_reader` makes a new reader for each time it is opened.

        Call it in a thread that lives as long as the output: the kernel kills a program when the thread that started
        it ends.
        """
        self._worked_at = time.monotonic()
        wait_s = FIRST_RETRY_S
        while not stop.is_set():
            opened_at = time.monotonic()
            ending = self._read(make_reader(), stop)
            if ending is None:
                return
            if ending.is_clean and not self._is_live:
                log.info("%s has been read to its end", self._name)
                return
            self._tell_broken(ending)
            if self._worked_at - opened_at > STEADY_S:
                wait_s = FIRST_RETRY_S
            if stop.wait(wait_s):
                return
            wait_s = min(2 * wait_s, LONGEST_RETRY_S)

    def _read(self, reader: OutputReader, stop: threading.Event) -> Ending | None:
        """Read one output until it ends, and say why; None if that is because of `stop`."""
        try:
            output = self._open()
        except OSError as error:
            return Ending(reason=error.strerror or str(error))
        except DistreeError as error:
            return Ending(reason=error.what, remedy=error.remedy)
        try:
            waits_since = time.monotonic()
            while not stop.is_set():
                piece = output.read(_TURN_S)
                if piece == b"":
                    reader.end()
                    return output.finish(_FINISH_S)
                if reader.take(piece or b""):
                    self._note_works()
                    waits_since = self._worked_at
                elif time.monotonic() - waits_since > self._silence_s:
                    said = output.last_line
                    silent = f"no {self._expects} for {self._silence_s:.3g} s" + (f" ({said})" if said else "")
                    if output.reopens:
                        return Ending(reason=silent)
                    self._tell_broken(Ending(reason=silent))
            return None
        except RemoteProtocolError as error:
            return Ending(reason=error.detail, remedy=error.remedy)
        finally:
            output.finish()

    # ------------------------------------------------------------ one line when it breaks, one when it works again

    def _tell_broken(self, ending: Ending) -> None:
        reason = ending.reason
        if reason in self._told or len(self._told) >= _REASONS:
            log.debug("%s: %s; trying again", self._name, reason)
            return
        self._told.add(reason)
        words, severity = ("broke down", Severity.WARNING) if self._has_worked else ("does not work", Severity.ERROR)
        self._sink.tell(
            EventKind.SOURCE,
            f"{self._name} {words}: {reason}",
            ending.remedy or self._remedy_for(reason),
            severity=severity,
            like=f"{self._name} {reason}",
        )

    def _note_works(self) -> None:
        now = time.monotonic()
        if self._told:
            self._told.clear()
            what = f"{self._name} works again, after {now - self._worked_at:.1f} s"
            self._sink.tell(EventKind.SOURCE, what, severity=Severity.INFO, like=f"{self._name} works")
        elif not self._has_worked:
            log.info("%s works", self._name)
        self._worked_at, self._has_worked = now, True
