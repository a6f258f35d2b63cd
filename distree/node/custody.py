"""The origin's books: every accepted input is answered once, by its deadline, whatever happens elsewhere.

Pure state, no clock and no I/O. `now` is any monotonic time in seconds. The life of an entry:

    here ── away (or held) ── answered ── (closed)

as CUSTODY_TRANSITIONS lists; `python -m distree.node` prints it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from distree.messages.request import Progress, Reason, RequestContext, StageMessage, Tensor
from distree.node.job import NOTHING_YET
from distree.node.round_trip import RoundTrip
from distree.node.timers import Agenda
from distree.record import record

CustodyState = Literal["here", "away", "held", "answered"]
CustodyEvent = Literal["forward", "hold", "answer", "outcome", "deadline"]

CUSTODY_TRANSITIONS: dict[tuple[CustodyState, CustodyEvent], CustodyState] = {
    ("here", "forward"): "away",
    # No board for it is there, but one may come back.
    ("here", "hold"): "held",
    ("here", "answer"): "answered",
    ("here", "deadline"): "answered",
    # Once more; or, after a wide stage, on from here.
    ("away", "forward"): "away",
    ("away", "hold"): "held",
    ("away", "answer"): "answered",
    ("away", "outcome"): "answered",
    ("away", "deadline"): "answered",
    ("held", "forward"): "away",
    ("held", "hold"): "held",
    ("held", "answer"): "answered",
    # To what was sent before it was held.
    ("held", "outcome"): "answered",
    ("held", "deadline"): "answered",
}

_BEYOND = frozenset({"away", "held"})

MAX_REMEMBERED = 1024
"""Closed requests that are remembered, to tell a late duplicate from an unknown request."""


@dataclass(slots=True, kw_only=True)
class CustodyEntry:
    """One input in custody. `Custody.move` alone changes its state."""

    name: str
    accepted_at: float
    deadline_at: float
    tensor: Tensor
    context: RequestContext
    """Of the attempt under way; `earlier` are those before it, the latest first."""
    earlier: tuple[RequestContext, ...] = ()
    state: CustodyState = "here"
    progress: Progress = NOTHING_YET
    audited: bool = False
    """Drawn for an audit."""
    message: StageMessage | None = None
    """What was sent last, to be repeated if nothing is heard of it; or what is held."""
    sent_at: float = 0.0
    is_repeated: bool = False
    """Sent once more, because nothing was heard of it."""

    @property
    def request(self) -> str:
        """The id of the request."""
        return self.context.request

    @property
    def attempts(self) -> tuple[RequestContext, ...]:
        """All attempts, the latest first."""
        return (self.context, *self.earlier)


@record
class ClosedEntry:
    """What is remembered of a request that needs no answer any more.

    `accepted_at` is None, and `attempts` are (), for one of an earlier run, or of no custody.
    """

    name: str = ""
    accepted_at: float | None = None
    attempts: tuple[RequestContext, ...] = ()


_OF_NO_CUSTODY = ClosedEntry()


@dataclass(slots=True)
class Custody:
    """The books of one origin: entries by request, what is due, and the memory of closed requests.

    An entry is opened by `open`, moves by `move` alone, and is closed by `close`. `unanswered` counts the entries that
    need an answer, `away` those of them that are at other boards, or held for them.
    """

    round_trip: RoundTrip
    entries: dict[str, CustodyEntry] = field(default_factory=dict)
    closed: OrderedDict[str, ClosedEntry] = field(default_factory=OrderedDict)
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

    def open(self, entry: CustodyEntry) -> None:
        """Take an input into custody."""
        self.entries[entry.request] = entry
        self.unanswered += 1
        self.agenda.set(entry.request, entry.deadline_at)

    def move(self, entry: CustodyEntry, event: CustodyEvent) -> None:
        """Follow the table, and keep count."""
        was = entry.state
        entry.state = state = CUSTODY_TRANSITIONS[was, event]
        if state == was:
            return
        self.away += (state in _BEYOND) - (was in _BEYOND)
        if state == "answered":
            self.unanswered -= 1
            self.agenda.drop(entry.request)
            entry.message = None

    def room(self, max_pending: int, *, local: bool) -> int:
        """How many more inputs fit.

        `max_pending` may be unanswered, and as many more may wait for the broker to take their result. With `local`,
        inputs that are away do not count: this board answers others without them.
        """
        unanswered = self.unanswered - self.away if local else self.unanswered
        return min(max_pending - unanswered, 2 * max_pending - len(self.entries))

    def open_entry(self, request: str) -> CustodyEntry | None:
        """Return the entry of a request that still needs an answer."""
        entry = self.entries.get(request)
        return None if entry is None or entry.state == "answered" else entry

    def sent(self, entry: CustodyEntry, message: StageMessage, now: float) -> None:
        """Note that features went out, and when silence becomes suspicious."""
        self.move(entry, "forward")
        self._expect(entry, message, now)

    def resent(self, entry: CustodyEntry, message: StageMessage, now: float) -> None:
        """Note that features went out once more, in an attempt of their own."""
        self.move(entry, "forward")
        entry.earlier, entry.context = entry.attempts, message.context
        self._expect(entry, message, now)

    def _expect(self, entry: CustodyEntry, message: StageMessage, now: float) -> None:
        entry.message, entry.sent_at = message, now
        silent_at = now + self.round_trip.timeout_s(entry.deadline_at - now)
        self.agenda.set(entry.request, min(silent_at, entry.deadline_at))

    def hold(self, entry: CustodyEntry, message: StageMessage) -> None:
        """Note that features wait until there is a board for them."""
        self.move(entry, "hold")
        entry.message = message
        self.agenda.set(entry.request, entry.deadline_at)

    def silent(self, entry: CustodyEntry, *, is_telling: bool) -> None:
        """Note that nothing was heard of an entry in time: others may take as long, if that `is_telling`."""
        entry.is_repeated = True
        if is_telling:
            self.round_trip.backoff = min(64, self.round_trip.backoff * 2)

    def wait(self, entry: CustodyEntry, until: float) -> None:
        """Look again at an entry at `until`, if it has not been answered by then; not beyond its deadline."""
        self.agenda.set(entry.request, min(until, entry.deadline_at))

    def heard(self, entry: CustodyEntry, now: float) -> None:
        """Note an outcome, and how long it took."""
        if entry.context.attempt == 1:
            self.round_trip.sample(now - entry.sent_at)

    def beyond(self) -> list[CustodyEntry]:
        """Return the entries that are at other boards, or held for them."""
        return [entry for entry in self.entries.values() if entry.state in _BEYOND] if self.away else []

    def pop_due(self, now: float) -> CustodyEntry | None:
        """Return the next open entry whose deadline or silence has come, or None."""
        request = self.agenda.pop(now)
        return None if request is None else self.entries[request]

    def reason_of_silence(self, entry: CustodyEntry) -> Reason:
        """Why the deadline struck: `fallback` when no board was there or answered the repetition, else `deadline`."""
        return "fallback" if entry.state == "held" or (entry.state == "away" and entry.is_repeated) else "deadline"

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
            self._remember(request, ClosedEntry(name=name) if name else _OF_NO_CUSTODY)

    def _remember(self, request: str, closed: ClosedEntry) -> None:
        self.closed[request] = closed
        if len(self.closed) > MAX_REMEMBERED:
            self.closed.popitem(last=False)

    def remembered(self, request: str) -> ClosedEntry | None:
        """Return what is known of a request in the books or closed, None for one never heard of."""
        entry = self.entries.get(request)
        return _closed(entry) if entry else self.closed.get(request)


def _closed(entry: CustodyEntry) -> ClosedEntry:
    return ClosedEntry(name=entry.name, accepted_at=entry.accepted_at, attempts=entry.attempts)
