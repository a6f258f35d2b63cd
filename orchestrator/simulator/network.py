"""The simulated links to the broker, and the broker's sessions of boards: delays, order, and what waits for whom.

What is kept of MQTT: the messages of one board arrive in the order in which it sent them; a board has at most
`receive_maximum` messages that it has not acknowledged. While its session is kept, messages wait for a board that is
away; of one that has no session the broker knows that nobody reads what is sent to it.
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

Post: TypeAlias = "tuple[Message, float, int, str]"
"""A message, when it expires, its bytes, and the board that sent it."""


class Link:
    """A board's link to the broker and back. Each direction keeps the order and sends one message at a time."""

    __slots__ = (
        "_down_until", "_draw", "_jitter_s", "_latency_s", "_loss", "_retry_s", "_s_per_byte", "_up_until", "is_narrow",
    )  # fmt: skip

    def __init__(self, config: LinksConfig, lots: random.Random) -> None:
        self._draw = lots.random
        self._latency_s, self._jitter_s = config.latency_ms / 1e3, config.jitter_ms / 1e3
        self._s_per_byte = 0.0 if config.kbit_per_s is None else 8.0 / (1e3 * config.kbit_per_s)
        self._loss, self._retry_s = float(config.loss), config.retry_ms / 1e3
        # When the last message arrives, and when its last byte is sent.
        self._up_until = self._down_until = (0.0, 0.0)
        self.is_narrow = self._s_per_byte > 0.0
        """Whether bytes take time, so that one message delays the next."""

    def delay_s(self) -> float:
        """Return how long the next message takes, apart from its bytes."""
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
        """Return when a message that is sent now reaches the broker."""
        self._up_until = until = self._through(self._up_until, now, nbytes)
        return until[0]

    def down(self, at_s: float, nbytes: int) -> float:
        """Return when a message that is at the broker at `at_s` reaches the board."""
        self._down_until = until = self._through(self._down_until, at_s, nbytes)
        return until[0]

    def hold(self, until: float) -> None:
        """Hold back what is sent from now on until then."""
        self._up_until = self._up_until[0], max(self._up_until[1], until)
        self._down_until = self._down_until[0], max(self._down_until[1], until)

    def _through(self, before: tuple[float, float], at_s: float, nbytes: int) -> tuple[float, float]:
        arrived_s, sent_s = before
        sent_s = (sent_s if sent_s > at_s else at_s) + nbytes * self._s_per_byte
        through_s = sent_s + self.delay_s()
        return (through_s if through_s > arrived_s else arrived_s), sent_s


class Recipient(Protocol):
    """A board as the broker sees it."""

    def hear(self, delivery: int, message: Message, sender: str) -> None:
        """A message has arrived; `BrokerSession.acknowledge` follows once the work on it has been passed on."""


class BrokerSession:
    """A board's session at the broker."""

    __slots__ = (
        "_delivery", "_events", "_kept_until", "_receive_maximum", "_recipient", "_waiting", "is_online", "link",
        "unacknowledged",
    )  # fmt: skip

    def __init__(self, events: Events, link: Link, receive_maximum: int, recipient: Recipient) -> None:
        self._events, self._recipient, self._receive_maximum = events, recipient, receive_maximum
        self._delivery = 0
        self._waiting: deque[Post] = deque()
        self._kept_until = -math.inf
        self.link = link
        self.unacknowledged: dict[int, Post] = {}
        self.is_online = True
        """Whether the broker considers the board connected."""

    def post(self, at_s: float, message: Message, expires_at: float, nbytes: int, sender: str) -> bool:
        """Send a message that is at the broker at `at_s`, or keep it until there is room; False if nobody reads it."""
        if not self.is_online:
            # It may wait for a while, but the next run of this board starts with a clean session.
            return at_s < self._kept_until
        if len(self.unacknowledged) < self._receive_maximum:
            self._send(at_s, (message, expires_at, nbytes, sender))
        else:
            self._waiting.append((message, expires_at, nbytes, sender))
        return True

    def _send(self, at_s: float, post: Post) -> None:
        self._delivery += 1
        self.unacknowledged[self._delivery] = post
        message, _, nbytes, sender = post
        self._events.at(self.link.down(at_s, nbytes), self._recipient.hear, self._delivery, message, sender)

    def acknowledge(self, delivery: object) -> None:
        """Forget a message, and send the next one that waits."""
        self.unacknowledged.pop(delivery, None)  # type: ignore[call-overload]
        if self._waiting:
            self._flush(self._events.now + self.link.delay_s())

    def is_due(self, delivery: int) -> bool:
        """Whether a delivery is still expected; what was on its way to a board that died is lost."""
        return delivery in self.unacknowledged

    def _flush(self, at_s: float) -> None:
        while self._waiting and len(self.unacknowledged) < self._receive_maximum:
            post = self._waiting.popleft()
            if post[1] > at_s:
                self._send(at_s, post)

    def end(self, keeps_s: float) -> None:
        """The board is no longer connected; the broker keeps its session for `keeps_s` seconds."""
        self.is_online = False
        self._kept_until = self._events.now + keeps_s
        self._waiting.clear()
        self.unacknowledged.clear()

    def begin(self) -> None:
        """A board has connected with a clean session: what waited for its run before is dropped."""
        self.is_online = True
        self._waiting.clear()
        self.unacknowledged.clear()
