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

from distree.agenda import Agenda
from distree.types import Guess, Hop, Outcome, Reason, StageMessage, Tensor, Trace

CustodyState = Literal["here", "away", "answered"]
CustodyEvent = Literal["forward", "silent", "answer", "outcome", "deadline"]

CUSTODY_TRANSITIONS: dict[tuple[CustodyState, CustodyEvent], CustodyState] = {
    ("here", "forward"): "away",
    ("here", "answer"): "answered",
    ("here", "deadline"): "answered",
    # An outcome for an input that is worked on here: an earlier run of this origin had sent it on.
    ("here", "outcome"): "answered",
    # After a wide stage the features go on from here.
    ("away", "forward"): "away",
    ("away", "silent"): "away",
    ("away", "answer"): "answered",
    ("away", "outcome"): "answered",
    ("away", "deadline"): "answered",
    # Published as a late duplicate; what was answered stays answered.
    ("answered", "outcome"): "answered",
}

REMEMBERED = 1024
"""Closed requests that are remembered, to tell a late duplicate from an unknown request."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """One input in custody; `audited` ones were drawn for an audit. `Custody.move` alone changes its state."""

    request: str
    name: str
    accepted_at: float
    deadline_at: float
    attempt: int
    epoch: int
    tensor: Tensor
    state: CustodyState = "here"
    guess: Guess | None = None
    hops: tuple[Hop, ...] = ()
    missing: tuple[int, ...] = ()
    audited: bool = False
    trace: Trace = None
    message: StageMessage | None = None
    sent_at: float = 0.0


@dataclass(slots=True)
class RoundTrip:
    """Estimate of how long the rest of a pipeline takes: smoothed mean and deviation, as TCP estimates its timer.

    Source: Jacobson, Congestion Avoidance and Control (1988), with Karn's rule: answers to re-sent requests are no
    samples, and each silence doubles the time-out until a fresh sample comes.
    """

    floor_s: float
    mean_s: float | None = None
    deviation_s: float = 0.0
    backoff: int = 1

    def sample(self, took_s: float) -> None:
        """Take in one measured time from sending features to their outcome."""
        self.backoff = 1
        if self.mean_s is None:
            self.mean_s, self.deviation_s = took_s, took_s / 2
            return
        error = took_s - self.mean_s
        self.mean_s += error / 8
        self.deviation_s += (abs(error) - self.deviation_s) / 4

    def fade(self) -> None:
        """Forget a little: called when the estimate kept a request here, lest one bad sample do so for ever."""
        if self.mean_s is not None:
            self.mean_s *= 0.9

    def silence_s(self, left_s: float) -> float:
        """Seconds after which silence is suspicious; half of the time left while nothing was measured."""
        if self.mean_s is None:
            return left_s / 2
        return self.backoff * max(self.floor_s, self.mean_s + 4 * self.deviation_s)


@dataclass(slots=True)
class Circuit:
    """Stops sending to boards that do not answer, so that a dead board costs no one its deadline.

    Opens after `limit` failures in a row. While it is open it asks for a probe every `probe_s`: a copy of what would
    have been sent, whose fate matters to nobody. Any answer closes it.
    """

    limit: int = 1
    probe_s: float = 1.0
    failures: int = 0
    probe_at: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether nothing but probes goes through."""
        return self.failures >= self.limit

    def wants_probe(self, now: float) -> bool:
        """Whether a probe is due; True counts as one sent."""
        if not self.is_open or now < self.probe_at:
            return False
        self.probe_at = now + self.probe_s
        return True

    def failed(self, now: float) -> None:
        """One more request got no answer."""
        self.failures += 1
        if self.failures == self.limit:
            self.probe_at = now + self.probe_s

    def answered(self) -> None:
        """The boards are alive."""
        self.failures = 0


@dataclass(slots=True)
class Custody:
    """The books of one origin: entries by request, what is due, and the memory of closed requests.

    An entry is opened by `open`, moves by `move` alone, and is closed by `close`. `unanswered` counts the entries that
    need an answer, `away` those of them that are at other boards.
    """

    round_trip: RoundTrip
    circuit: Circuit = field(default_factory=Circuit)
    entries: dict[str, Entry] = field(default_factory=dict)
    closed: OrderedDict[str, tuple[str, float | None]] = field(default_factory=OrderedDict)
    agenda: Agenda[str] = field(default_factory=Agenda)
    unanswered: int = 0
    away: int = 0

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
        """Note the one repetition."""
        self.move(entry, "silent")
        self.round_trip.backoff = min(64, self.round_trip.backoff * 2)
        self._expect(entry, message, now)

    def _expect(self, entry: Entry, message: StageMessage, now: float) -> None:
        entry.message, entry.sent_at, entry.attempt = message, now, message.attempt
        silent_at = now + self.round_trip.silence_s(entry.deadline_at - now)
        self.agenda.set(entry.request, min(silent_at, entry.deadline_at))

    def unheard(self, entry: Entry, now: float) -> None:
        """Note that not even the repetition was answered: nothing is left but to wait for the deadline."""
        self.circuit.failed(now)
        self.agenda.set(entry.request, entry.deadline_at)

    def heard(self, entry: Entry, outcome: Outcome, now: float) -> None:
        """Note an outcome: the rest of the pipeline is alive, and this is how long it took."""
        self.circuit.answered()
        if entry.state == "away" and entry.attempt == 1 == outcome.attempt:
            self.round_trip.sample(now - entry.sent_at)

    def pop_due(self, now: float) -> Entry | None:
        """Return the next open entry whose deadline or silence has come, or None."""
        request = self.agenda.pop(now)
        return None if request is None else self.entries[request]

    def reason_of_silence(self, entry: Entry) -> Reason:
        """Why the deadline struck: `fallback` when even the repetition went unanswered, else `deadline`."""
        return "fallback" if entry.state == "away" and entry.attempt > 1 else "deadline"

    def close(self, request: str) -> bool:
        """The result is with the broker: forget the entry but for its name. False if there was none."""
        entry = self.entries.pop(request, None)
        if entry is None:
            return False
        self.remember([request], entry.name, entry.accepted_at)
        return True

    def remember(self, requests: Iterable[str], name: str = "", accepted_at: float | None = None) -> None:
        """Take closed requests into the memory; without `accepted_at` those of an earlier run, or of no custody."""
        for request in requests:
            self.closed[request] = (name, accepted_at)
            if len(self.closed) > REMEMBERED:
                self.closed.popitem(last=False)

    def remembered(self, request: str) -> tuple[str, float | None] | None:
        """Return (name, accepted_at) of a request in the books or closed, None for one never heard of.

        `accepted_at` is None for a request of an earlier run.
        """
        entry = self.entries.get(request)
        return (entry.name, entry.accepted_at) if entry else self.closed.get(request)
