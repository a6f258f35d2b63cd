"""The origin's books: every accepted input is answered once, by its deadline, whatever happens elsewhere.

Pure state, no clock and no I/O. `now` is any monotonic time in seconds. The life of an entry:

    here ── away ── answered ── (closed)

as CUSTODY_TRANSITIONS lists; `python -m distree.node` prints it.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

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
    """One input in custody; `audited` ones were drawn for an audit."""

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

    def move(self, event: CustodyEvent) -> None:
        """Follow the table; a KeyError here is a fault of this program."""
        self.state = CUSTODY_TRANSITIONS[self.state, event]


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
    """Stops sending to a rest of the pipeline that does not answer, so that a dead board costs no one its deadline.

    Opens after `limit` requests in a row went unanswered; then lets one probe through every `probe_s`; any outcome
    closes it.
    """

    limit: int = 3
    probe_s: float = 1.0
    failures: int = 0
    probe_at: float = 0.0

    def blocks(self, now: float) -> bool:
        """Whether a request should be answered here instead; False hands out a probe."""
        if not self.is_open:
            return False
        if now < self.probe_at:
            return True
        self.probe_at = now + self.probe_s
        return False

    @property
    def is_open(self) -> bool:
        """Whether nothing but probes goes through."""
        return self.failures >= self.limit

    def failed(self, now: float) -> None:
        """One more request got no answer."""
        self.failures += 1
        if self.failures == self.limit:
            self.probe_at = now + self.probe_s

    def answered(self) -> None:
        """The rest of the pipeline is alive."""
        self.failures = 0


@dataclass(slots=True)
class Custody:
    """The books of one origin: entries by request, a heap of what is due, and the memory of closed requests."""

    round_trip: RoundTrip
    circuit: Circuit = field(default_factory=Circuit)
    entries: dict[str, Entry] = field(default_factory=dict)
    closed: OrderedDict[str, tuple[str, float | None]] = field(default_factory=OrderedDict)
    due: list[tuple[float, str]] = field(default_factory=list)
    unanswered: int = 0

    def open(self, entry: Entry) -> None:
        """Take an input into custody."""
        self.entries[entry.request] = entry
        self.unanswered += 1
        heapq.heappush(self.due, (entry.deadline_at, entry.request))

    def room(self, pending_items: int) -> int:
        """How many more inputs fit: `pending_items` unanswered, and as many whose result the broker has not got yet."""
        return min(pending_items - self.unanswered, 2 * pending_items - len(self.entries))

    def open_entry(self, request: str) -> Entry | None:
        """Return the entry of a request that still needs an answer."""
        entry = self.entries.get(request)
        return None if entry is None or entry.state == "answered" else entry

    def sent(self, entry: Entry, message: StageMessage, now: float) -> None:
        """Note that features went out, and when silence becomes suspicious."""
        entry.move("forward")
        entry.message, entry.sent_at, entry.attempt = message, now, message.attempt
        silent_at = now + self.round_trip.silence_s(entry.deadline_at - now)
        if silent_at < entry.deadline_at:
            heapq.heappush(self.due, (silent_at, entry.request))

    def resent(self, entry: Entry, message: StageMessage, now: float) -> None:
        """Note the one repetition."""
        entry.move("silent")
        entry.message, entry.sent_at, entry.attempt = message, now, message.attempt
        self.round_trip.backoff = min(64, self.round_trip.backoff * 2)

    def heard(self, entry: Entry, outcome: Outcome, now: float) -> None:
        """Note an outcome: the rest of the pipeline is alive, and this is how long it took."""
        self.circuit.answered()
        if entry.state == "away" and entry.attempt == 1 == outcome.attempt:
            self.round_trip.sample(now - entry.sent_at)

    def pop_due(self, now: float) -> Entry | None:
        """Return the next open entry whose deadline or silence has come, or None."""
        while self.due and self.due[0][0] <= now:
            _, request = heapq.heappop(self.due)
            entry = self.open_entry(request)
            if entry is not None:
                return entry
        return None

    def next_due(self) -> float:
        """When `pop_due` is next worth a call; infinity when nothing is pending."""
        if not self.entries:
            self.due.clear()
        return self.due[0][0] if self.due else float("inf")

    def reason_of_silence(self, entry: Entry) -> Reason:
        """Why the deadline struck: `fallback` when even the repetition went unanswered, else `deadline`."""
        return "fallback" if entry.state == "away" and entry.attempt > 1 else "deadline"

    def close(self, request: str) -> bool:
        """The result is with the broker: forget the entry but for its name. False if there was none."""
        entry = self.entries.pop(request, None)
        if entry is None:
            return False
        self.closed[request] = (entry.name, entry.accepted_at)
        if len(self.closed) > REMEMBERED:
            self.closed.popitem(last=False)
        return True

    def remember(self, requests: Iterable[str]) -> None:
        """Take over the memory of an earlier run, whose clock is not comparable."""
        self.closed.update((request, ("", None)) for request in requests)

    def remembered(self, request: str) -> tuple[str, float | None] | None:
        """Return (name, accepted_at) of a request in the books or closed, None for one never heard of.

        `accepted_at` is None for a request of an earlier run.
        """
        entry = self.entries.get(request)
        return (entry.name, entry.accepted_at) if entry else self.closed.get(request)
