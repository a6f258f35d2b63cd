"""For commands that publish and then end: what the broker says of each message."""

from __future__ import annotations

import time
from collections.abc import Iterable

from distree.errors import BrokerError, Problem
from distree.transport.base import QuietListener, Transport

CONFIRM_S = 10.0
"""Longest wait for the broker to confirm what was published."""


class Confirmations(QuietListener):
    """A listener that notes what becomes of messages that are published with a token, at QoS 1."""

    def __init__(self) -> None:
        self.settled: set[str] = set()
        """Tokens of the messages that the broker has confirmed, be it by refusing them."""
        self.unread = 0
        """Messages that nobody subscribes to, as brokers with MQTT 5 say."""

    def published(self, token: str) -> None:
        """Note that the broker has confirmed a message."""
        self.settled.add(token)

    def no_subscribers(self, topic: str, payload: bytes) -> None:  # noqa: ARG002 - the transport's form
        """Note that nobody reads a message."""
        self.unread += 1

    def wait_for(self, transport: Transport, tokens: Iterable[str]) -> None:
        """Wait until the broker has confirmed messages; BrokerError if it refuses one, or after `CONFIRM_S` seconds."""
        wanted, ends_at = set(tokens), time.monotonic() + CONFIRM_S
        while not wanted <= self.settled:
            transport.poll(0.1)
            if time.monotonic() > ends_at:
                late = Problem(f"the broker did not confirm within {CONFIRM_S:g} s", "check the broker's log")
                raise BrokerError(*(transport.last_error or late))
        if transport.last_error is not None:
            raise BrokerError(*transport.last_error)
