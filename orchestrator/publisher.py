"""Publishes what the orchestrator has to say. Whatever the broker does not take is told, and ends nothing."""

from __future__ import annotations

from collections.abc import Callable

from distree.errors import LocalProtocolError, Problem
from distree.log_throttle import LogThrottle
from distree.transport.base import Transport
from orchestrator.addresses import Outgoing

REFUSED_INTERVAL_S = 600.0
"""Shortest time between two lines about the same thing that the broker refuses."""


class Publisher:
    """Publishes by a transport, with its lock held. What is wrong with the broker waits to be told, see `problems`."""

    def __init__(self, transport: Transport, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._clock = clock
        self._throttle = LogThrottle(REFUSED_INTERVAL_S)
        self._refused: dict[str, Problem] = {}
        """What the broker does not accept, by topic."""
        self._last: Problem | None = None

    def publish(self, message: Outgoing) -> None:
        """Publish a message as messages of its kind are; one that the broker does not accept is a problem to tell."""
        how = message.delivery
        try:
            self._transport.publish(
                message.topic,
                message.payload,
                qos=how.qos,
                retain=how.retain,
                content_type=how.content_type,
                lane=how.lane,
            )
        except LocalProtocolError as error:
            self._refused[message.topic] = Problem(error.detail, error.remedy)

    def lost(self, why: Problem) -> None:
        """The connection ended, and that was told."""
        self._last = why

    def problems(self) -> list[str]:
        """Return a line for each thing that is newly wrong with the broker; what it refuses, once in a while.

        By topic, since the lines themselves are published, and may be refused in their turn.
        """
        found = dict(self._refused)
        self._refused.clear()
        while self._transport.notices:
            notice = self._transport.notices.popleft()
            found[notice.what] = notice
        last, self._last = self._last, self._transport.last_error
        lines = []
        if self._last is not None and self._last != last:
            if self._transport.online:
                found[self._last.what] = self._last
            else:
                lines.append(f"broker: {self._last}")
        now = self._clock()
        told = [self._throttle.line(now, f"broker: {problem}", kind) for kind, problem in found.items()]
        return lines + [line for line in told if line is not None]
