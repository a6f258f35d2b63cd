"""What a broker retains: found by subscribing to it, and removed by empty messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from distree.broker_settings import BrokerSettings, Session
from distree.client.confirmations import Confirmations
from distree.errors import BrokerError
from distree.transport import make_transport
from distree.transport.base import Received, Transport

QUIET_S = 1.0
"""After so many seconds without a message, the broker has sent everything that it retains."""

LONGEST_S = 10.0
"""Longest wait for that."""

MAX_BYTES = 64 << 20
"""Most bytes of topics and payloads that are taken in."""


class _Finder(Confirmations):
    """Collects messages as the broker sends them, by topic."""

    def __init__(self, transport: Transport, is_wanted: Callable[[str], bool]) -> None:
        super().__init__()
        self._transport = transport
        self._is_wanted = is_wanted
        self.found: dict[str, bytes] = {}
        self.is_full = False
        self._bytes = 0
        self.heard_at = time.monotonic()

    def connected(self) -> None:
        """What the broker retains comes now."""
        self.heard_at = time.monotonic()

    def received(self, message: Received) -> None:
        """Keep what is wanted."""
        self._transport.acknowledge(message.token)
        self.heard_at = time.monotonic()
        if message.payload and self._is_wanted(message.topic):
            self._bytes += len(message.topic) + len(message.payload)
            self.is_full = self._bytes > MAX_BYTES
            if not self.is_full:
                self.found[message.topic] = message.payload


def find_retained(
    settings: BrokerSettings,
    client_id: str,
    filters: Sequence[str],
    is_wanted: Callable[[str], bool] = lambda _topic: True,
    *,
    remove: bool = False,
) -> dict[str, bytes]:
    """Return {topic: payload} of what a broker retains, by topic, and `remove` it if asked.

    Raises BrokerError, also where it retains more than `MAX_BYTES`: then so much of it is removed if asked.
    """
    transport = make_transport(settings, client_id=client_id, session=Session.NONE)
    finder = _Finder(transport, is_wanted)
    try:
        transport.open(finder, [(name, 1) for name in filters])
        transport.connect_now(settings.connect_timeout_s + 1.0)
        ends_at = time.monotonic() + LONGEST_S
        while time.monotonic() < min(ends_at, finder.heard_at + QUIET_S) and not finder.is_full:
            transport.poll(0.1)
        found = dict(sorted(finder.found.items()))
        if remove:
            finder.publish(transport, [(topic, b"") for topic in found], retain=True)
        if finder.is_full:
            much = f"the broker retains more than {MAX_BYTES >> 20} MiB in {', '.join(filters)}"
            if remove:
                raise BrokerError(f"{much}; {len(found):,} messages removed", "run this command again")
            raise BrokerError(much, "see who publishes there, and remove it")
    finally:
        transport.close()
    return found
