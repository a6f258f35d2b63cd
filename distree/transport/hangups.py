"""Which message makes the broker hang up; pure, without clock or socket.

Some brokers, and proxies in front of them, answer a message that they do not like by silently closing the connection.
Sent again after the reconnect, it would do so forever. So what was under way when a second connection was lost is sent
alone, one message at a time: if the connection ends again, that message is to blame, and is given up. Why it is to
blame is found out by sending something similar, alone too: first without retain, then a few bytes on its topic.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Literal, TypeAlias

from distree.lanes import Lane
from distree.record import record
from distree.transport.outbox import Publication

ALONE = 2
"""A message that was under way in this many losses of the connection is sent alone from then on."""

MAX_STRIKES = 2
"""A message that was sent alone this many times and met with a hang-up each time is given up."""

AT_ONCE_S = 2.0
"""A hang-up follows within this time what it is an answer to; a network may fail at any time."""

RETRY_S = 60.0
RETRY_MAX_S = 3600.0
"""What causes hang-ups is avoided this long at first, and twice as long each time that it is confirmed: brokers do get
fixed."""

_TOPICS = 64
_UNPROVEN = 16

Why = Literal["topic", "size", "retained", "qos"]


@record
class HangupCause:
    """What the broker hangs up on: a topic, sizes above `passed`, retained messages, or all of QoS 1."""

    why: Why
    topic: str
    nbytes: int
    passed: int


Judgement: TypeAlias = "tuple[list[Publication], list[Publication], HangupCause | None]"
"""Messages to send again, messages to give up, and what the broker hung up on, once that is known."""


class _Refusal:
    """A cause of hang-ups that is avoided, for `lasts_s` from when it was last confirmed."""

    def __init__(self, cause: HangupCause, now: float) -> None:
        self.cause = cause
        self.lasts_s = RETRY_S
        self.until = now + RETRY_S


class HangupTracker:
    """Keeps track of what the broker took, what it hung up on, and what is not sent for that reason (`refusals`).

    `refusals` are by topic. `retains` and `takes_qos_1` say whether messages may be retained, and sent at QoS 1.
    `trial_payload` is what every reader of every topic ignores; without it topics and sizes cannot be told apart.
    """

    def __init__(self, trial_payload: bytes = b"") -> None:
        self.retains = True
        self.takes_qos_1 = True
        self.trials: deque[Publication] = deque()
        """To be sent, alone, before anything else."""
        self.doubted: list[Publication] = []
        """To be given up once the broker has acknowledged anything at all."""
        self._trial_payload = trial_payload
        self._passed = 0
        self._passed_retained = False
        self._suspects: set[str] = set()
        """Topics that were hung up on before anything got through: once there is a second one, QoS 1 is to blame."""
        self.refusals: OrderedDict[str, _Refusal] = OrderedDict()
        self._unproven: deque[tuple[int, str]] = deque(maxlen=_UNPROVEN)
        self.mark = 0
        """How many messages went out at QoS 0: an acknowledgement now proves that those before it got through."""
        self._proven = 0
        """The `mark` of the last message that the broker acknowledged."""
        self._strikes: OrderedDict[str, int] = OrderedDict()

    # ------------------------------------------------------------ what is sent

    def sent_at_0(self, topic: str) -> None:
        """Note a message that the broker will not acknowledge."""
        self.mark += 1
        self._unproven.append((self.mark, topic))

    def suspects(self, topic: str) -> bool:
        """Whether what goes out on `topic` at QoS 0 should rather be acknowledged."""
        return self._strikes.get(topic, 0) >= ALONE

    def refuses(self, topic: str, nbytes: int, now: float) -> HangupCause | None:
        """Return why a message is not to be sent; None if it may be, perhaps to see whether the broker was fixed."""
        for refusal in self.refusals.values():
            cause = refusal.cause
            same = topic == cause.topic
            if (same and (cause.why == "topic" or nbytes > cause.passed)) or (
                cause.why == "size" and nbytes >= cause.nbytes
            ):
                return cause if now < refusal.until else None
        return None

    def mark_retry(self, item: Publication) -> None:
        """Have a message sent alone that is like one the broker hung up on earlier: once more is proof enough."""
        if self.refuses(item.topic, item.size, -1.0) is not None:
            item.losses, item.strikes = ALONE, MAX_STRIKES - 1

    # ------------------------------------------------------------ what comes of it

    def passed(self, item: Publication, now: float) -> HangupCause | None:
        """The broker acknowledged a message; return what that proves, if anything."""
        self._proven = item.mark
        if not (item.size > self._passed or item.retain or self._strikes or self.refusals or item.trial):
            return None  # nearly always
        self._passed_retained |= item.retain
        if self._strikes:
            self._strikes.pop(item.topic, None)
        if item.size > self._passed:
            self._passed = item.size
        if self.refusals and not item.trial:
            self._pardon(item)
        if item.trial == "retained":
            self.retains = False
            return HangupCause(why="retained", topic=item.topic, nbytes=item.size, passed=self._passed)
        if item.trial == "size":
            return self._refuse("size", item.topic, item.judged_bytes, now)
        return None

    def _pardon(self, item: Publication) -> None:
        """Forget the causes that a message which passed has proved wrong."""
        for topic, refusal in list(self.refusals.items()):
            cause = refusal.cause
            if item.topic == topic if cause.why == "topic" else item.size >= cause.nbytes:
                del self.refusals[topic]

    def lost(self, under_way: list[Publication], now: float) -> Judgement:
        """The connection ended: say what is to become of what was under way."""
        for mark, topic in self._unproven:
            if mark > self._proven:
                self._strikes[topic] = self._strikes.get(topic, 0) + 1
                self._strikes.move_to_end(topic)
                if len(self._strikes) > _TOPICS:
                    self._strikes.popitem(last=False)
        self._unproven.clear()
        if len(under_way) == 1 and under_way[0].losses >= ALONE and now - under_way[0].alone_at <= AT_ONCE_S:
            item = under_way[0]
            item.strikes += 1
            if item.strikes >= MAX_STRIKES:
                again, given_up, cause = self._judge(item, now)
                if not self._passed:
                    # It may turn out that the broker takes nothing at QoS 1, and this after all.
                    self.doubted += given_up
                    given_up = []
                return again, given_up, cause
        for item in under_way:
            item.losses += 1
        return under_way, [], None

    def _judge(self, item: Publication, now: float) -> Judgement:
        """Find out why the broker hangs up on a message, by trials if necessary; return as `lost` does."""
        if item.trial == "size":  # not even a few bytes get through: it is the topic
            return [], [], self._refuse("topic", item.topic, item.judged_bytes, now)
        if item.topic in self.refusals:
            self._refuse("topic", item.topic, item.size, now)
            return [], [item], None
        if not self._passed:
            self._suspects.add(item.topic)
        if len(self._suspects) > 1:
            self._suspects.clear()
            self.takes_qos_1 = False
            self.refusals.clear()
            again, self.doubted = [*self.doubted, item], []
            return again, [], HangupCause(why="qos", topic=item.topic, nbytes=item.size, passed=0)
        if item.retain and not self._passed_retained:
            # The message itself, but for its flag: if it passes, it has arrived.
            made = Publication(
                item.topic, item.payload, False, item.content_type, item.expires_at, item.token, item.lane
            )
            made.handed_at = item.handed_at
            self._try(made, "retained")
            return [], [], None
        if item.size <= self._passed:
            return [], [item], self._refuse("topic", item.topic, item.size, now)
        if not self._trial_payload:
            return [], [item], self._refuse("size", item.topic, item.size, now)
        made = Publication(item.topic, self._trial_payload, lane=item.lane)
        made.judged_bytes = item.size
        self._try(made, "size")
        return [], [item], None

    def _try(self, item: Publication, trial: Literal["retained", "size"]) -> None:
        """Have a message sent alone; the next hang-up is proof."""
        item.trial, item.losses, item.strikes = trial, ALONE, MAX_STRIKES - 1
        self.trials.append(item)

    def _refuse(self, why: Literal["topic", "size"], topic: str, nbytes: int, now: float) -> HangupCause:
        """Avoid a cause from now on, or confirm it for twice the time."""
        known = self.refusals.get(topic)
        if known is not None:
            known.lasts_s = min(RETRY_MAX_S, 2 * known.lasts_s)
            known.until = now + known.lasts_s
            return known.cause
        cause = HangupCause(why=why, topic=topic, nbytes=nbytes, passed=self._passed)
        self.refusals[topic] = _Refusal(cause, now)
        if len(self.refusals) > _TOPICS:
            self.refusals.popitem(last=False)
        return cause


def at_qos_1(topic: str, payload: bytes, content_type: str | None) -> Publication:
    """Return a message meant for QoS 0 as one at QoS 1 that is sent alone, to see whether the broker takes it."""
    made = Publication(topic, payload, content_type=content_type, lane=Lane.LOSSY)
    made.losses = ALONE
    return made
