"""For commands that publish and then end: what the broker says of each message."""

from __future__ import annotations

import time
from collections.abc import Sequence

from distree.errors import BrokerError, Problem
from distree.transport.base import QuietListener, Transport

CONFIRM_S = 10.0
"""Longest wait for the broker to confirm one more message."""

_AT_ONCE = 500
"""Most messages that wait for it: a transport drops what it has no room for."""


class Confirmations(QuietListener):
    """A transport's listener that publishes messages and sees what becomes of them."""

    def __init__(self) -> None:
        self.confirmed = 0
        """Messages of which the broker has said something, be it that it refuses them."""
        self.unread = 0
        """Messages that nobody subscribes to, as brokers with MQTT 5 say."""

    def published(self, token: str) -> None:  # noqa: ARG002 - the transport's form
        """Count a message that the broker has confirmed."""
        self.confirmed += 1

    def no_subscribers(self, topic: str, payload: bytes) -> None:  # noqa: ARG002 - the transport's form
        """Count a message that nobody reads."""
        self.unread += 1

    def publish(self, transport: Transport, messages: Sequence[tuple[str, bytes]], *, retain: bool = False) -> None:
        """Publish (topic, payload) at QoS 1 and wait until the broker has confirmed all; call it once.

        Raises BrokerError if the broker refuses one, or confirms none for `CONFIRM_S` seconds.
        """
        sent, known, ends_at = 0, 0, time.monotonic() + CONFIRM_S
        while self.confirmed < len(messages):
            with transport.lock:
                for topic, payload in messages[sent : self.confirmed + _AT_ONCE]:
                    transport.publish(topic, payload, qos=1, retain=retain, token=topic)
                    sent += 1
            transport.poll(0.1)
            if self.confirmed > known:
                known, ends_at = self.confirmed, time.monotonic() + CONFIRM_S
            elif time.monotonic() > ends_at:
                share = f"{known:,} of {len(messages):,} are confirmed"
                late = f"the broker has confirmed no message for {CONFIRM_S:g} s ({share})"
                raise BrokerError(*(transport.last_error or Problem(late, "check the broker's log")))
        if transport.last_error is not None:
            raise BrokerError(*transport.last_error)
