"""Whether the broker holds back small messages (Nagle's algorithm), which makes a hop some 40 ms longer.

A broker that leaves TCP_NODELAY off sends the second of two small packets only when the first is acknowledged, and a
client's kernel puts that off by 40 ms in the hope of an answer to send along. An acknowledgement of a publish is hardly
ever the second packet, so those arrive at once, and only other boards' answers are late, just as they would be from a
slow board: ordinary traffic does not show the difference. So this tests it with two messages at once to a topic that
comes back. On a line that is merely long both echoes are equally late; and a machine that is merely busy does not
produce the same gap again and again (with eight busy processes on two cores, at most one echo of twenty was 25 ms
late).
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
"""Other traffic, and a connection that was silent before, hide the delay in some rounds; little else looks like it."""

_GAP_S, _GAP_MAX_S = 0.025, 0.060
"""Linux holds an acknowledgement back for 40 ms; less is left of it where the first echo was read late."""


class NagleTest:
    """Sends one pair of tiny messages after the other by `send_pair`; whoever receives an echo calls `heard`.

    `now` is of the monotonic clock, in seconds. `holds_back` is None until it is known, and stays None where echoes get
    lost, or are not allowed. `tell` is called if the broker does hold messages back.
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
        """An echo came: if it completes a pair, send the next pair or finish; return whether the test is over."""
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
        # The acknowledgement that the broker waits for takes a trip, too.
        late = [gap for gap in self._gaps if _GAP_S <= gap <= _GAP_MAX_S + self._quickest_s]
        self.holds_back = len(late) >= _ENOUGH
        if self.holds_back:
            self._tell()
        return True


def over_transport(transport: Transport, settings: BrokerSettings, topic: str, payload: bytes) -> NagleTest:
    """Return a test by messages on `topic`, which this client subscribes to; it adds to the transport's notices.

    It also does what can be done from this end: a client that acknowledges at once is not made to wait, at the price of
    more packets.

    Start it while online; it takes about 1 s. All its calls need the transport's lock.
    """

    def send_pair() -> None:
        transport.cork()
        try:
            with contextlib.suppress(LocalProtocolError):  # then no echo comes
                for _ in range(2):
                    transport.publish(topic, payload, qos=0)
        finally:
            transport.uncork()

    def note_and_avoid() -> None:
        transport.notices.append(connect_errors.holds_back(settings))
        transport.acknowledge_at_once()

    return NagleTest(send_pair, note_and_avoid)


def over_probe(client: ProbeClient, topic: str, payload: bytes, until: float) -> bool | None:
    """Test on a connection of its own, where nothing else arrives on `topic`; None where too little comes back."""
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
