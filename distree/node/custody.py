"""The origin's books: every accepted input is answered once, by its deadline, whatever happens elsewhere.

Pure state, no clock and no I/O. `now` is any monotonic time in seconds. The life of an entry:

    here ── away ── answered ── (closed)

as CUSTODY_TRANSITIONS lists; `python -m distree.node` prints it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from distree.messages.request import Progress, Reason, RequestContext, StageMessage, Tensor
from distree.node.agenda import Agenda
from distree.node.circuits import Circuit, RoundTrip
from distree.node.job import NOTHING_YET
from distree.record import record

CustodyState = Literal["here", "away", "answered"]
CustodyEvent = Literal["forward", "silent", "answer", "outcome", "deadline"]

CUSTODY_TRANSITIONS: dict[tuple[CustodyState, CustodyEvent], CustodyState] = {
    ("here", "forward"): "away",
    ("here", "answer"): "answered",
    ("here", "deadline"): "answered",
    # After a wide stage the features go on from here.
    ("away", "forward"): "away",
    ("away", "silent"): "away",
    ("away", "answer"): "answered",
    ("away", "outcome"): "answered",
    ("away", "deadline"): "answered",
}

REMEMBERED = 1024
"""Closed requests that are remembered, to tell a late duplicate from an unknown request."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """One input in custody. `Custody.move` alone changes its state."""

    name: str
    accepted_at: float
    deadline_at: float
    tensor: Tensor
    context: RequestContext
    """Of the attempt under way; `earlier` is the one before it, if there was one."""
    earlier: RequestContext | None = None
    state: CustodyState = "here"
    progress: Progress = NOTHING_YET
    missing: tuple[int, ...] = ()
    audited: bool = False
    """Drawn for an audit."""
    message: StageMessage | None = None
    """What was sent last, to be repeated if nothing is heard of it."""
    sent_at: float = 0.0

    @property
    def request(self) -> str:
        """The id of the request."""
        return self.context.request

    @property
    def attempts(self) -> tuple[RequestContext, ...]:
        """All attempts, the latest first."""
        return (self.context,) if self.earlier is None else (self.context, self.earlier)


@record
class Closed:
    """What is remembered of a request that needs no answer any more.

    `accepted_at` is None, and `attempts` are (), for one of an earlier run, or of no custody.
    """

    name: str = ""
    accepted_at: float | None = None
    attempts: tuple[RequestContext, ...] = ()


_OF_NO_CUSTODY = Closed()


@dataclass(slots=True)
class Custody:
    """The books of one origin: entries by request, what is due, and the memory of closed requests.

    An entry is opened by `open`, moves by `move` alone, and is closed by `close`. `unanswered` counts the entries that
    need an answer, `away` those of them that are at other boards.
    """

    round_trip: RoundTrip
    circuit: Circuit = field(default_factory=Circuit)
    entries: dict[str, Entry] = field(default_factory=dict)
    closed: OrderedDict[str, Closed] = field(default_factory=OrderedDict)
    agenda: Agenda[str] = field(default_factory=Agenda)
    unanswered: int = 0
    away: int = 0

    def books(self) -> dict[str, int]:
        """How much is in each book, but for the memory of closed requests."""
        return {
            "custody": len(self.entries),
            "custody_times": len(self.agenda),
            "unanswered": self.unanswered,
            "away": self.away,
        }

    def open(self, entry: Entry) -> None:
        """Take an input into custody."""
        self.entries[entry.request] = entry
        self.unanswered += 1
        self.agenda.set(entry.request, entry.deadline_at)

    def move(self, entry: Entry, event: CustodyEvent) -> None:
        """Follow the table, and keep count."""
        was = entry.state
        entry.state = state = CUSTODY_TRANSITIONS[was, event]
        if state == was:
            return
        if was == "away":
            self.away -= 1
        elif state == "away":
            self.away += 1
        if state == "answered":
            self.unanswered -= 1
            self.agenda.drop(entry.request)
            entry.message = None

    def room(self, pending_items: int, *, local: bool) -> int:
        """How many more inputs fit.

        `pending_items` may be unanswered, and as many more may wait for the broker to take their result. With `local`,
        inputs that are away do not count: this board answers others without them.
        """
        unanswered = self.unanswered - self.away if local else self.unanswered
        return min(pending_items - unanswered, 2 * pending_items - len(self.entries))

    def open_entry(self, request: str) -> Entry | None:
        """Return the entry of a request that still needs an answer."""
        entry = self.entries.get(request)
        return None if entry is None or entry.state == "answered" else entry

    def sent(self, entry: Entry, message: StageMessage, now: float) -> None:
        """Note that features went out, and when silence becomes suspicious."""
        self.move(entry, "forward")
        self._expect(entry, message, now)

    def resent(self, entry: Entry, message: StageMessage, now: float) -> None:
        """Note the one repetition, an attempt of its own."""
        self.move(entry, "silent")
        entry.earlier, entry.context = entry.context, message.context
        self.round_trip.backoff = min(64, self.round_trip.backoff * 2)
        self._expect(entry, message, now)

    def _expect(self, entry: Entry, message: StageMessage, now: float) -> None:
        entry.message, entry.sent_at = message, now
        silent_at = now + self.round_trip.silence_s(entry.deadline_at - now)
        self.agenda.set(entry.request, min(silent_at, entry.deadline_at))

    def unheard(self, entry: Entry, now: float) -> None:
        """Note that not even the repetition was answered: nothing is left but to wait for the deadline."""
        self.circuit.failed(now)
        self.agenda.set(entry.request, entry.deadline_at)

    def heard(self, entry: Entry, now: float) -> None:
        """Note an outcome: the rest of the pipeline is alive, and this is how long it took."""
        self.circuit.answered()
        if entry.context.attempt == 1:
            self.round_trip.sample(now - entry.sent_at)

    def pop_due(self, now: float) -> Entry | None:
        """Return the next open entry whose deadline or silence has come, or None."""
        request = self.agenda.pop(now)
        return None if request is None else self.entries[request]

    def reason_of_silence(self, entry: Entry) -> Reason:
        """Why the deadline struck: `fallback` when even the repetition went unanswered, else `deadline`."""
        return "fallback" if entry.state == "away" and entry.context.attempt > 1 else "deadline"

    def close(self, request: str) -> bool:
        """The result is with the broker: forget the entry but for what tells a late answer. False if there was none."""
        entry = self.entries.pop(request, None)
        if entry is None:
            return False
        self._remember(request, _closed(entry))
        return True

    def remember(self, requests: Iterable[str], name: str = "") -> None:
        """Take requests into the memory that were closed by an earlier run, or were never in custody."""
        for request in requests:
            self._remember(request, Closed(name=name) if name else _OF_NO_CUSTODY)

    def _remember(self, request: str, closed: Closed) -> None:
        self.closed[request] = closed
        if len(self.closed) > REMEMBERED:
            self.closed.popitem(last=False)

    def remembered(self, request: str) -> Closed | None:
        """Return what is known of a request in the books or closed, None for one never heard of."""
        entry = self.entries.get(request)
        return _closed(entry) if entry else self.closed.get(request)


def _closed(entry: Entry) -> Closed:
    return Closed(name=entry.name, accepted_at=entry.accepted_at, attempts=entry.attempts)
