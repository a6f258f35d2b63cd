"""Received messages until they are acknowledged; pure, without clock or socket.

Acknowledgements go out in the order of arrival, as MQTT requires (rumqttd disconnects a client that does otherwise), so
one that is given early waits for those before it.
"""

from __future__ import annotations

from collections import deque

from distree.errors import Problem
from distree.printable import printable
from distree.transport import connect_errors, packets
from distree.transport.base import Received
from distree.transport.lean_client import MAX_INCOMING_BYTES

_SKIPS_SAID_S = 60.0

MAX_EARLY_BYTES = 32 << 20
"""Most that is kept of what arrives before the broker has answered all subscriptions, in bytes. What it retains comes
then, a few topics at a time, and all of it for ten thousand boards is less."""

_EARLY_BYTES = 512
"""What a message takes besides topic and payload, about."""


class _Pending:
    """A received message at QoS 1, until its acknowledgement is sent; compared by identity."""

    __slots__ = ("done", "mid")

    def __init__(self, mid: int) -> None:
        self.mid = mid
        self.done = False


class ReceiveWindow:
    """The incoming half of a connection. `early` are messages that arrived before it was online.

    What is not read is added to `notices`.
    """

    def __init__(self, notices: deque[Problem]) -> None:
        self._notices = notices
        self.early: list[Received] = []
        self._early_bytes = 0
        self._unacknowledged: deque[_Pending] = deque()
        self._skips_said_at = 0.0

    def on_publish(self, packet: packets.Published) -> Received:
        """Take in a PUBLISH, and return it for the listener."""
        token = None
        if packet.mid is not None:
            token = _Pending(packet.mid)
            self._unacknowledged.append(token)
        return Received(topic=packet.topic, payload=packet.payload, retain=packet.retain, token=token)

    def keep_early(self, message: Received) -> bool:
        """Keep a message in `early`; False where that would be too much."""
        self._early_bytes += len(message.topic) + len(message.payload) + _EARLY_BYTES
        if self._early_bytes <= MAX_EARLY_BYTES:
            self.early.append(message)
        return self._early_bytes <= MAX_EARLY_BYTES

    def acknowledge(self, token: object) -> bytes:
        """Return the PUBACKs that may go out now; none for QoS 0, the second time, and after a reconnect."""
        pubacks = b""
        if isinstance(token, _Pending):
            token.done = True
            # A token of an earlier connection is no longer in the deque, so that it acknowledges nothing.
            waiting = self._unacknowledged
            while waiting and waiting[0].done:
                pubacks += packets.puback(waiting.popleft().mid)
        return pubacks

    def skip(self, topic: str, nbytes: int, mid: int | None, now: float) -> bytes:
        """Acknowledge a message that is too large to be read; return the PUBACKs that may go out now."""
        if now >= self._skips_said_at:  # peers choose topics and sizes, so that no two lines need be the same
            self._skips_said_at = now + _SKIPS_SAID_S
            self._notices.append(connect_errors.ignored_too_large(printable(topic), nbytes, MAX_INCOMING_BYTES))
        if mid is None:
            return b""
        pending = _Pending(mid)
        self._unacknowledged.append(pending)
        return self.acknowledge(pending)

    def forget(self) -> None:
        """The connection ended: what was not acknowledged will be delivered again."""
        self._unacknowledged.clear()
        self.early.clear()
        self._early_bytes = 0
