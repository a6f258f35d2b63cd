"""The simulated broker and the links to it: delays, order, shared subscriptions, sessions of boards that are away.

What is kept of MQTT: the messages of one board arrive in the order in which it sent them; a stage's features go to one
board of it, in turn, and to none that the broker knows to be away; a board has at most `receive_maximum` messages that
it has not acknowledged, and what it had when it died comes again when it is back, unless its time is over.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Protocol, TypeAlias

from distree.messages.plan import Plan
from distree.messages.request import Decision, Embedding, Outcome, StageMessage
from orchestrator.simulator.config import LinksConfig
from orchestrator.simulator.events import Events

Message: TypeAlias = "StageMessage | Embedding | Decision | Outcome | Plan"

Post: TypeAlias = "tuple[Message, float, int]"
"""A message, when it is of no use any more, and its bytes."""


class Link:
    """A board's way to the broker and back. Each way keeps the order, and one message goes after the other."""

    __slots__ = ("_down_until", "_draw", "_jitter_s", "_latency_s", "_loss", "_retry_s", "_s_per_byte", "_up_until")

    def __init__(self, config: LinksConfig, lots: random.Random) -> None:
        self._draw = lots.random
        self._latency_s, self._jitter_s = config.latency_ms / 1e3, config.jitter_ms / 1e3
        self._s_per_byte = 0.0 if config.kbit_per_s is None else 8.0 / (1e3 * config.kbit_per_s)
        self._loss, self._retry_s = float(config.loss), config.retry_ms / 1e3
        # When the last message is through, and when the last one was handed to the radio.
        self._up_until = self._down_until = (0.0, 0.0)

    def delay_s(self) -> float:
        """Return how long the next message is on its way, apart from its bytes."""
        delay_s = self._latency_s
        if self._jitter_s:
            delay_s -= math.log(1.0 - self._draw()) * self._jitter_s
        if self._loss:
            retry_s = self._retry_s
            while self._draw() < self._loss:
                delay_s += retry_s
                retry_s *= 2.0
        return delay_s

    def up(self, now: float, nbytes: int) -> float:
        """Return when what is sent now is at the broker."""
        self._up_until = until = self._through(self._up_until, now, nbytes)
        return until[0]

    def down(self, at_s: float, nbytes: int) -> float:
        """Return when what is at the broker at `at_s` is at the board."""
        self._down_until = until = self._through(self._down_until, at_s, nbytes)
        return until[0]

    def _through(self, before: tuple[float, float], at_s: float, nbytes: int) -> tuple[float, float]:
        arrived_s, sent_s = before
        sent_s = (sent_s if sent_s > at_s else at_s) + nbytes * self._s_per_byte
        through_s = sent_s + self.delay_s()
        return (through_s if through_s > arrived_s else arrived_s), sent_s


class Recipient(Protocol):
    """A board as the broker sees it."""

    def hear(self, delivery: int, message: Message) -> None:
        """A message has arrived; Session.acknowledge follows once the work on it is handed over."""


class Session:
    """A board's session at the broker."""

    __slots__ = (
        "_delivery", "_events", "_receive_maximum", "_recipient", "_waiting", "is_online", "link", "unacknowledged",
    )  # fmt: skip

    def __init__(self, events: Events, link: Link, receive_maximum: int, recipient: Recipient) -> None:
        self._events, self._recipient, self._receive_maximum = events, recipient, receive_maximum
        self._delivery = 0
        self._waiting: deque[Post] = deque()
        self.link = link
        self.unacknowledged: dict[int, Post] = {}
        self.is_online = True

    def post(self, at_s: float, message: Message, expires_at: float, nbytes: int) -> None:
        """Send a message that is at the broker at `at_s`, or keep it until the board is back and has room for it."""
        if self.is_online and len(self.unacknowledged) < self._receive_maximum:
            self._send(at_s, (message, expires_at, nbytes))
        else:
            self._waiting.append((message, expires_at, nbytes))

    def _send(self, at_s: float, post: Post) -> None:
        self._delivery += 1
        self.unacknowledged[self._delivery] = post
        self._events.at(self.link.down(at_s, post[2]), self._recipient.hear, self._delivery, post[0])

    def acknowledge(self, delivery: object) -> None:
        """Forget a message, and send the next one that waits."""
        self.unacknowledged.pop(delivery, None)  # type: ignore[call-overload]
        if self._waiting:
            self._flush(self._events.now + self.link.delay_s())

    def is_due(self, delivery: int) -> bool:
        """Whether a message is still expected; what was on its way to a board that died came to nothing."""
        return delivery in self.unacknowledged

    def _flush(self, at_s: float) -> None:
        while self._waiting and self.is_online and len(self.unacknowledged) < self._receive_maximum:
            post = self._waiting.popleft()
            if post[1] > at_s:
                self._send(at_s, post)

    def resume(self) -> None:
        """The board is back: what it never acknowledged comes first."""
        self.is_online = True
        self._waiting.extendleft(reversed(self.unacknowledged.values()))
        self.unacknowledged.clear()
        self._flush(self._events.now)


class Shared:
    """A shared subscription: the boards of one stage, or of one of its branches."""

    __slots__ = ("_next", "_sessions", "_waiting")

    def __init__(self, sessions: list[Session]) -> None:
        self._sessions = sessions
        self._next = 0
        self._waiting: deque[Post] = deque()

    def post(self, at_s: float, message: Message, expires_at: float, nbytes: int) -> None:
        """Hand a message to the next board that is there; while there is none, keep it."""
        sessions = self._sessions
        for _ in sessions:
            session = sessions[self._next]
            self._next = (self._next + 1) % len(sessions)
            if session.is_online:
                session.post(at_s, message, expires_at, nbytes)
                return
        self._waiting.append((message, expires_at, nbytes))

    def resume(self, now: float) -> None:
        """A board of it is back."""
        waiting, self._waiting = self._waiting, deque()
        for message, expires_at, nbytes in waiting:
            if expires_at > now:
                self.post(now, message, expires_at, nbytes)
