"""Watches what this board publishes about itself as it comes back from the broker.

That shows whether the broker keeps retained messages for boards that come later, what an earlier run has left behind,
whether another board uses the same name, and whether the broker delays small messages.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection

from device_agent.config import AgentConfig
from device_agent.reporting import REFUSED_LOG_INTERVAL_S, REPUBLISH_S, Reporting
from distree import topics
from distree.errors import RESTRICT, Problem, RemoteProtocolError
from distree.log_throttle import LogThrottle
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceStatus, Echo
from distree.messages.member import Member
from distree.topics import DELIVERY, Kind
from distree.transport import connect_errors, nagle
from distree.transport.base import Received, Transport

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""A retained message comes back within this many seconds of the subscription, or the broker does not retain."""

TRIAL_S = 1.0
"""Small messages are tested this long after the first connection, when other boards have connected too."""

_ENDED = (DeviceStatus.LOST, DeviceStatus.DISCONNECTED)


class Echoes:
    """Takes the board's own announcements and states, as others receive them. All with the lock held.

    `announced` are the topics on which this run announces itself, and `announce` does it again. They are subscribed to
    after that, so whatever comes back was retained, and is delivered to wildcard subscriptions.
    """

    def __init__(
        self,
        config: AgentConfig,
        boot: str,
        transport: Transport,
        reporting: Reporting,
        announced: Collection[str],
        announce: Callable[[], None],
    ) -> None:
        self.filter = topics.member(config.site, "+", "+", config.device)
        self._config = config
        self._boot = boot
        self._transport = transport
        self._reporting = reporting
        self._announced = frozenset(announced)
        self._announce = announce
        self._is_judged = not announced
        """Whether it is known if announcements are retained, or this board makes none."""
        self._announced_at = self._republished_at = -math.inf
        self._judge_at = self._republish_at = self._nagle_test_at = math.inf
        self.echo_topic = topics.device(config.site, config.device, Kind.ECHO)
        """The topic on which this board sends to itself, for a moment."""
        self._nagle_test: nagle.NagleTest | None = None
        self._told_of_version = False
        self._throttle = LogThrottle(interval_s=REFUSED_LOG_INTERVAL_S)

    def connected(self, now: float) -> None:
        """This board has connected, and announced itself: see what comes back of it."""
        self._transport.subscribe([(self.filter, DELIVERY[Kind.MEMBER].qos)])
        if not self._is_judged and self._transport.retains:  # else the transport has reported it
            self._announced_at, self._judge_at = now, now + PATIENCE_S
        if self._nagle_test is None:
            payload = encode(Echo(device=self._config.device))
            self._nagle_test = nagle.over_transport(self._transport, self._config.broker, self.echo_topic, payload)
            self._transport.subscribe([(self.echo_topic, DELIVERY[Kind.ECHO].qos)])
            self._nagle_test_at = now + TRIAL_S
        if not self._transport.reports_no_subscribers and not self._told_of_version:
            self._told_of_version = True
            log.info("%s", connect_errors.tells_no_unread(self._config.broker, is_mqtt5=False))

    # ------------------------------------------------------------ what comes back

    def on_own_member(self, message: Received, _sender: str = "") -> None:
        """Take what is announced in this board's name; RemoteProtocolError for anything else."""
        self._transport.acknowledge(message.token)
        if message.topic not in self._announced:
            if message.payload:
                # An earlier run served that stage, or that pipeline; this one does not.
                self._reporting.publish(Kind.MEMBER, message.topic, b"")
            return
        due_at, self._republish_at = self._republish_at, max(time.monotonic(), self._republished_at + REPUBLISH_S)
        if not message.payload:
            return  # cleared by somebody
        said = decode(Member, message.payload)
        if said.device != self._config.device:
            raise RemoteProtocolError("sender", f"claims to be from {said.device}", RESTRICT)
        if message.retain:
            self._is_judged, self._judge_at = True, math.inf
        if said.boot == self._boot:
            self._republish_at = due_at  # nothing to repair
        elif not message.retain:
            self._note_namesake(said.boot)

    def on_own_state(self, message: Received, _sender: str = "") -> None:
        """Take what claims to be this board's state; RemoteProtocolError for anything that is not a state."""
        self._transport.acknowledge(message.token)
        other = self._reporting.check_own_state(message.payload)
        if other is not None and other.device != self._config.device:
            raise RemoteProtocolError("device", f"{other.device} on another board's topic", RESTRICT)
        # An earlier run's last message is no sign of another board, nor is what that run has left behind.
        if other is not None and other.boot != self._boot and other.status not in _ENDED and not message.retain:
            self._note_namesake(other.boot)

    def on_echo(self, message: Received, _sender: str = "") -> None:
        """Take what this board sent to itself; RemoteProtocolError for anything else."""
        self._transport.acknowledge(message.token)
        decode(Echo, message.payload)
        if self._nagle_test is not None and self._nagle_test.heard(time.monotonic()):
            self._transport.unsubscribe([self.echo_topic])

    def _note_namesake(self, boot: str) -> None:
        device = self._config.device
        problem = Problem(
            f"another board uses the name {device} (boot {boot})", "give one of the two another device id"
        )
        if (told := self._throttle.line(time.monotonic(), str(problem), "namesake")) is not None:
            log.warning("%s", told)

    # ------------------------------------------------------------ what is due

    def due_at(self) -> float:
        """When `tick` is next worth a call; infinity if never."""
        return min(self._judge_at, self._republish_at, self._nagle_test_at)

    def tick(self, now: float) -> None:
        """Report what the broker does not keep, and announce this board again if that was overwritten."""
        if now >= self._republish_at:
            self._republished_at, self._republish_at = now, math.inf
            self._announce()
        if now >= self._nagle_test_at:
            self._nagle_test_at = math.inf
            if self._nagle_test is not None and self._transport.online:
                self._nagle_test.start(now)
        if now < self._judge_at:
            return
        if not self._transport.online:
            self._judge_at = math.inf  # until this board is connected again
        elif self._transport.unacknowledged_since() <= self._announced_at:
            self._judge_at = now + 1.0  # what was announced may still be on its way to the broker
        else:
            self._is_judged, self._judge_at = True, math.inf
            log.warning("%s", connect_errors.keeps_no_announcement(self._config.broker, self.filter))
