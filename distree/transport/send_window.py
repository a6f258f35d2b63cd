"""What goes out: what waits, what is in flight, and what the broker supports; pure, without clock or socket.

`now` is of the monotonic clock, in seconds. Packets are returned to whoever has the socket.
"""

from __future__ import annotations

import math
from collections import deque

from distree.broker_settings import BrokerSettings
from distree.errors import LocalProtocolError, Problem
from distree.lanes import Lane
from distree.transport import connect_errors, packets
from distree.transport.hangups import ALONE, HangupTracker, at_qos_1
from distree.transport.limits import Limits
from distree.transport.outbox import Outbox, Publication

OVERHEAD_BYTES = 64
"""What a packet has beside topic and payload, at most."""

POSTPONED_S = 5.0
"""After this time, a message is sent again that the broker had no room for."""

ACKNOWLEDGED_S = 60.0
"""Within this time, in seconds, a broker acknowledges at least one of the messages that are under way."""


class SendWindow:
    """The outgoing half of a connection to a broker that supports what is in `limits`.

    `under_way` are publishes without an acknowledgement, by packet id; `alone` says whether the one that is under way
    was sent by itself, to see whether the broker hangs up on it. What it hangs up on is added to `notices`.
    `trial_payload` is what every reader of every topic ignores, see `hangups`.
    """

    def __init__(
        self, settings: BrokerSettings, limits: Limits, outbox: Outbox, trial_payload: bytes, notices: deque[Problem]
    ) -> None:
        self.limits = limits
        self.outbox = outbox
        self.hangups = HangupTracker(trial_payload)
        self.under_way: dict[int, Publication] = {}
        self.alone = False
        self._postponed: deque[tuple[float, Publication]] = deque()
        """Results that are to be sent again, and when."""
        self._has_room = True
        """Whether the broker had room for the last result."""
        self._heard_at = 0.0
        """When a message was last acknowledged, or the first one since went under way."""
        self._settings = settings
        self._notices = notices
        self._forked = False

    @property
    def retains(self) -> bool:
        """Whether messages may be retained."""
        return self.limits.retains and self.hangups.retains

    @property
    def takes_qos_1(self) -> bool:
        """Whether messages may be sent at QoS 1."""
        return self.limits.takes_qos_1 and self.hangups.takes_qos_1

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent, or to be acknowledged by the broker."""
        return not self.outbox and not self.under_way and not self._postponed

    def oldest_since(self) -> float:
        """Return when the oldest message without an acknowledgement was handed over; infinity where none is owed."""
        if not self.takes_qos_1:
            return math.inf
        sent = [*self.under_way.values(), *(item for _, item in self._postponed)]
        return min(self.outbox.oldest_since(), *(item.handed_at for item in sent), math.inf)

    def leave(self) -> None:
        """Refuse everything: the connection belongs to the process from which this one was forked."""
        self._forked = True
        self.limits.max_packet_bytes = 0

    def check(self, topic: str, nbytes: int, now: float) -> None:
        """Raise LocalProtocolError for what the broker would not accept; `nbytes` is of topic and payload."""
        if self._forked:
            raise LocalProtocolError("forked", *connect_errors.forked(self._settings))
        if nbytes + OVERHEAD_BYTES > self.limits.max_packet_bytes:
            limit = self.limits.max_packet_bytes
            raise LocalProtocolError(
                "size", *connect_errors.too_large(self._settings, topic, nbytes - len(topic), limit)
            )
        cause = self.hangups.refuses(topic, nbytes, now)
        if cause is not None:
            raise LocalProtocolError("refused", *connect_errors.hangs_up(self._settings, cause))

    def wants_acknowledged(self, topic: str) -> bool:
        """Whether a message meant for QoS 0 is to be sent so that the broker acknowledges it."""
        return self.alone or self.hangups.suspects(topic)

    def packet_at_qos_0(
        self, topic: str, payload: bytes, retain: bool, content_type: str | None, expiry_s: float | None
    ) -> bytes:
        """Return the packet of a message at QoS 0, which goes out now."""
        self.hangups.sent_at_0(topic)
        properties = packets.properties(content_type, expiry_s) if self.limits.is_mqtt5 else b""
        return packets.publish(topic, payload, mid=None, retain=retain, properties=properties)

    def prepare(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        content_type: str | None,
        expires_at: float | None,
        token: str | None,
        lane: Lane,
        now: float,
    ) -> Publication:
        """Return a message as it goes out at QoS 1, which may be only to find something out."""
        if not qos:
            return at_qos_1(topic, payload, content_type)
        item = Publication(topic, payload, retain, content_type, expires_at, token, lane)
        item.handed_at = now
        if self.hangups.refusals:
            self.hangups.mark_retry(item)
        return item

    def has_room(self, item: Publication) -> bool:
        """Whether a new message may be sent at once, beside what is under way."""
        return not self.outbox.count and len(self.under_way) < self.limits.window and self._may_go(item)

    def take_next(self, now: float) -> Publication | None:
        """Take out the next message that may be sent now; None if there is none. What has expired is dropped."""
        if self.alone or len(self.under_way) >= self.limits.window:
            return None
        if self.hangups.trials and not self.under_way:
            return self.hangups.trials.popleft()
        item = self.outbox.pop(now)
        if item is not None and not self._may_go(item):
            self.outbox.put_back([item])
            return None
        return item

    def _may_go(self, item: Publication) -> bool:
        """Whether a message may be under way together with those that are."""
        return not self.under_way or not (self.alone or item.losses >= ALONE)

    def put_under_way(self, item: Publication, mid: int | None, now: float, expiry_s: float | None) -> bytes:
        """Return the packet of a message that is sent now; without a `mid` at QoS 0, and then that settles it."""
        properties = packets.properties(item.content_type, expiry_s) if self.limits.is_mqtt5 else b""
        retain = item.retain and self.retains
        if mid is None:
            return packets.publish(item.topic, item.payload, mid=None, retain=retain, properties=properties)
        if not self.under_way:
            self._heard_at = now
        self.under_way[mid] = item
        item.mark = self.hangups.mark
        self.alone = item.losses >= ALONE
        if self.alone:
            item.alone_at = now
        return packets.publish(
            item.topic, item.payload, mid=mid, retain=retain, dup=item.losses > 0, properties=properties
        )

    def on_puback(self, mid: int, now: float, code: int = 0) -> Publication | None:
        """Take out the message that the broker has acknowledged, with a reason code; None for an unknown `mid`.

        A result that it has no room for at present is sent again a little later, so that is None too.
        """
        item = self.under_way.pop(mid, None)
        if item is None:
            return None
        self._heard_at = now
        self.alone = False
        cause = self.hangups.passed(item, now)
        if cause is not None:
            self._notices.append(connect_errors.hangs_up(self._settings, cause))
        if self.hangups.doubted:
            for doubted in self.hangups.doubted:
                self.outbox.drop(doubted)
            self.hangups.doubted.clear()
        if item.lane is not Lane.OWED:
            return item
        had_room, self._has_room = self._has_room, code != packets.QUOTA_EXCEEDED
        if self._has_room:
            return item
        self._postponed.append((now + POSTPONED_S, item))
        if had_room:
            self._notices.append(connect_errors.refuses_publish(self._settings.address, item.topic, code))
        return None

    def tick(self, now: float) -> Problem | None:
        """Have sent again what is due; return that the broker acknowledges nothing, if it does not."""
        while self._postponed and self._postponed[0][0] <= now:
            self.outbox.put_back([self._postponed.popleft()[1]])
        if self.under_way and now - self._heard_at > ACKNOWLEDGED_S:
            return connect_errors.acknowledges_nothing(self._settings, ACKNOWLEDGED_S)
        return None

    def lost(self, now: float) -> None:
        """The connection ended: send again what was under way, except what the broker hangs up on."""
        self.outbox.put_back(item for _, item in self._postponed)
        self._postponed.clear()
        again, given_up, cause = self.hangups.lost(list(self.under_way.values()), now)
        self.under_way.clear()
        self.alone = False
        self.outbox.put_back(again)
        for item in given_up:
            self.outbox.drop(item)
        if cause is not None:
            self._notices.append(connect_errors.hangs_up(self._settings, cause))
