"""Whether the broker holds back small messages (Nagle's algorithm), which makes a hop some 40 ms longer.

A broker that leaves TCP_NODELAY off sends the second of two small packets only when the first is acknowledged, and a
client's kernel puts that off by 40 ms in the hope of an answer to send along. An acknowledgement of a publish is hardly
ever the second packet, so those come at once, and only what others answer is late, as it would be of a slow board: what
passes anyway does not show it. So it is asked: two messages at once to a topic that comes back. On a line that is
merely long both echoes are late by the same; and a machine that is merely busy does not come upon the same gap again
and again (with eight busy processes on two cores, at most one echo of twenty was 25 ms late).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from distree.errors import LocalProtocolError
from distree.transport import connect_errors

if TYPE_CHECKING:
    from distree.broker_settings import BrokerSettings
    from distree.transport.base import Transport
    from distree.transport.probe import ProbeClient

ROUNDS = 20
_ENOUGH = 5
"""Other traffic, and a connection that was silent before, hide the delay in some rounds; little makes it up."""

_GAP_S, _GAP_MAX_S = 0.025, 0.060
"""Linux holds an acknowledgement back for 40 ms; less is left of it where the first echo was read late."""


class NagleTest:
    """Sends one pair of tiny messages after the other by `send_pair`; whoever hears an echo calls `heard`.

    `now` is of the monotonic clock, in seconds. `holds_back` is None until it is known; so it stays where echoes get
    lost, or none are allowed. `tell` is called if the broker does.
    """

    def __init__(self, send_pair: Callable[[], None], tell: Callable[[], None] = lambda: None) -> None:
        self.holds_back: bool | None = None
        self._send_pair = send_pair
        self._tell = tell
        self._sent_at = 0.0
        self._first_at: float | None = None
        self._quickest_s = float("inf")
        self._gaps: list[float] = []

    def start(self, now: float) -> None:
        """Send the first pair."""
        self._sent_at = now
        self._send_pair()

    def heard(self, now: float) -> bool:
        """An echo came: where it completes a pair, send the next one, or come to an end; return whether it is over."""
        if self.holds_back is not None:
            return True
        if self._first_at is None:
            self._first_at = now
            self._quickest_s = min(self._quickest_s, now - self._sent_at)
            return False
        self._gaps.append(now - self._first_at)
        self._first_at = None
        if len(self._gaps) < ROUNDS:
            self.start(now)
            return False
        # The acknowledgement that the broker waits for has a way to go.
        late = [gap for gap in self._gaps if _GAP_S <= gap <= _GAP_MAX_S + self._quickest_s]
        self.holds_back = len(late) >= _ENOUGH
        if self.holds_back:
            self._tell()
        return True


def over_transport(transport: Transport, settings: BrokerSettings, topic: str, payload: bytes) -> NagleTest:
    """Return a test by messages on `topic`, which this client subscribes to; it adds to the transport's notices.

    And it mends what can be mended from this end: who acknowledges at once is not made to wait, at the price of more
    packets.

    It is to be started while online, and takes about 1 s. All its calls want the transport's lock.
    """

    def send_pair() -> None:
        transport.cork()
        try:
            with contextlib.suppress(LocalProtocolError):  # then no echo comes
                for _ in range(2):
                    transport.publish(topic, payload, qos=0)
        finally:
            transport.uncork()

    def mend() -> None:
        transport.notices.append(connect_errors.holds_back(settings))
        transport.acknowledge_at_once()

    return NagleTest(send_pair, mend)


def over_probe(client: ProbeClient, topic: str, payload: bytes, until: float) -> bool | None:
    """Ask on a connection of its own, where nothing else is heard on `topic`; None where too little comes back."""
    client.subscribe(topic, until)
    test = NagleTest(lambda: client.publish_pair(topic, payload, until))
    test.start(time.monotonic())
    while test.holds_back is None:
        known = len(client.heard)
        if not client.listen(until, lambda known=known: len(client.heard) > known):  # type: ignore[misc]
            return None
        for message in client.heard[known:]:
            if message.topic == topic:
                test.heard(time.monotonic())
    return test.holds_back
