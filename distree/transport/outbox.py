"""What waits to be sent, in lanes by how much each message matters; pure, without clock or socket.

A full lane gives up its own oldest messages and nobody else's, so that junk that is answered with dead letters can
never push out a result.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from typing import Literal

from distree.lanes import Lane

MAX_SHED_ITEMS = 1024
MAX_AUDIT_ITEMS = 4096
MAX_LOSSY_ITEMS = 256
MAX_LANE_BYTES = 1 << 20
"""Bounds of the lanes SHED, AUDIT and LOSSY."""


class Publication:
    """A publish that waits or is under way. `expires_at` is of the monotonic clock, in seconds.

    `size` is that of topic and payload, in bytes; a packet has a few more. One is made for every message, so what only
    suspected messages need is a class attribute until it is set.
    """

    losses = 0
    """Connections that were lost while it was under way."""
    strikes = 0
    """Connections that ended at once after it was sent alone."""
    handed_at = math.inf
    """When it was handed over, of the monotonic clock; infinity for what the broker need not acknowledge."""
    alone_at = 0.0
    """When it was last sent alone, of the monotonic clock."""
    mark = 0
    """How many messages had gone out at QoS 0 before it."""
    trial: Literal["", "retained", "size"] = ""
    """What it is sent to find out, if anything: see `hangups`."""
    judged_bytes = 0
    """Size of the message that a trial of `size` stands in for."""

    def __init__(
        self,
        topic: str,
        payload: bytes,
        retain: bool = False,
        content_type: str | None = None,
        expires_at: float | None = None,
        token: str | None = None,
        lane: Lane = Lane.WORK,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.retain = retain
        self.content_type = content_type
        self.expires_at = expires_at
        self.token = token
        self.lane = lane
        self.size = len(topic) + len(payload)


class Outbox:
    """The lanes. `items` and `nbytes` bound the lane WORK.

    OWED is not bounded here: whoever puts something there has bounded it. LATEST holds the newest message of a topic.
    `dropped` counts by lane what was given up; the tokens of those messages wait in `casualties`.
    """

    def __init__(self, items: int = 4096, nbytes: int = 8 << 20) -> None:
        self.dropped: Counter[Lane] = Counter()
        self.casualties: deque[str] = deque()
        self._again: deque[Publication] = deque()
        self._latest: OrderedDict[str, Publication] = OrderedDict()
        self._lanes: dict[Lane, deque[Publication]] = {lane: deque() for lane in Lane if lane is not Lane.LATEST}
        self._bytes: Counter[Lane] = Counter()
        self._limits = {
            Lane.WORK: (items, nbytes),
            Lane.SHED: (MAX_SHED_ITEMS, MAX_LANE_BYTES),
            Lane.AUDIT: (MAX_AUDIT_ITEMS, MAX_LANE_BYTES),
            Lane.LOSSY: (MAX_LOSSY_ITEMS, MAX_LANE_BYTES),
        }
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def put(self, item: Publication) -> None:
        """Add a message at the end of its lane; what is beyond the lane's bounds is dropped, the oldest first."""
        self.count += 1
        if item.lane is Lane.LATEST:
            older = self._latest.pop(item.topic, None)
            self._latest[item.topic] = item
            if older is not None:  # no loss: the newer one replaces it
                self.count -= 1
                if older.token is not None:
                    self.casualties.append(older.token)
            return
        lane = self._lanes[item.lane]
        lane.append(item)
        if item.lane in self._limits:
            items, nbytes = self._limits[item.lane]
            self._bytes[item.lane] += item.size
            while len(lane) > items or self._bytes[item.lane] > nbytes:
                self.drop(self._pop_left(item.lane))

    def put_back(self, items: Iterable[Publication]) -> None:
        """Send messages that were under way before all others, in their order."""
        again = list(items)
        self._again.extendleft(reversed(again))
        self.count += len(again)

    def pop(self, now: float) -> Publication | None:
        """Take out the next message; what has expired is dropped on the way. None when nothing is left."""
        while self.count:
            item = self._next()
            if item.expires_at is None or item.expires_at > now:
                return item
            self.drop(item)
        return None

    def drop(self, item: Publication) -> None:
        """Count a message that will not be sent."""
        self.dropped[item.lane] += 1
        if item.token is not None:
            self.casualties.append(item.token)

    def oldest_since(self) -> float:
        """Return when the oldest message was handed over, infinity without any.

        A lane's first is its oldest: what is to be sent again waits separately.
        """
        firsts = [lane[0] for lane in self._lanes.values() if lane]
        firsts += [*list(self._latest.values())[:1], *self._again]
        return min((item.handed_at for item in firsts), default=math.inf)

    def _next(self) -> Publication:
        if self._again:
            self.count -= 1
            return self._again.popleft()
        if self._lanes[Lane.OWED]:
            return self._pop_left(Lane.OWED)
        if self._latest:
            self.count -= 1
            return self._latest.popitem(last=False)[1]
        return self._pop_left(next(lane for lane, waiting in self._lanes.items() if waiting))

    def _pop_left(self, lane: Lane) -> Publication:
        item = self._lanes[lane].popleft()
        self.count -= 1
        if lane in self._limits:
            self._bytes[lane] -= item.size
        return item
