"""The life of a connection: its states, what the broker is greeted with, and when the next attempt is due.

Pure, without clock or socket; `now` is of the monotonic clock, in seconds. One connection follows another:

    closed ── waiting ── dialling ── connecting ── subscribing ── online ── waiting ── …

as CONNECTION_TRANSITIONS lists; `python -m distree.transport.connection` prints it.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Literal

from distree.broker_settings import BrokerSettings
from distree.errors import ConfigError, Problem
from distree.transport import connect_errors
from distree.transport.connect_errors import GaveUp
from distree.transport.limits import Limits
from distree.transport.negotiation import MAX_FILTERS_PER_SUBSCRIBE, Handshake, Subscriptions, Version

ConnectionState = Literal["closed", "waiting", "dialling", "connecting", "answered", "subscribing", "online"]
ConnectionEvent = Literal["open", "dial", "connect", "accept", "decline", "go online", "end", "close"]

CONNECTION_TRANSITIONS: dict[tuple[ConnectionState, ConnectionEvent], ConnectionState] = {
    ("closed", "open"): "waiting",
    # A thread resolves the name and connects.
    ("waiting", "dial"): "dialling",
    # CONNECT is sent; from here on there is a socket to serve.
    ("dialling", "connect"): "connecting",
    ("dialling", "end"): "waiting",
    # SUBSCRIBE is sent, if there is anything to subscribe to.
    ("connecting", "accept"): "subscribing",
    # Answered, but not with anything to go on with.
    ("connecting", "decline"): "answered",
    ("connecting", "end"): "waiting",
    ("answered", "end"): "waiting",
    ("subscribing", "go online"): "online",
    ("subscribing", "end"): "waiting",
    ("online", "end"): "waiting",
    ("closed", "close"): "closed",
    ("waiting", "close"): "closed",
    ("dialling", "close"): "closed",
    ("connecting", "close"): "closed",
    ("answered", "close"): "closed",
    ("subscribing", "close"): "closed",
    ("online", "close"): "closed",
}

_WITH_SOCKET = frozenset({"connecting", "answered", "subscribing", "online"})

_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.2, 5.0
_STABLE_S = 5.0
"""A connection that lasted this long resets the back-off: two clients of one id must not fight at full speed."""

Step = Literal["subscribe", "go online", "reconnect", "hang up", "wait"]
"""What an answer of the broker leads to: subscribe to `Connection.filters.asked`, be online, end the connection and
reconnect at once, end it, or wait until the broker does."""


class Connection:
    """One connection after the other, to the broker of `settings`. What that broker supports is in `limits`.

    `has_socket` says whether there is a socket to serve, `is_known` whether the broker has accepted this client before.
    `is_hopeless` says that the last attempt failed for a reason that waiting does not cure, `is_absent` that nothing
    listens where the broker should be, or that its name is not known. `retry_at` is when the next attempt is due. What
    the broker does not support is added to `notices`, except for a client without a will: that one only reads, or
    submits inputs, and misses nothing.
    """

    def __init__(self, settings: BrokerSettings, client_id: str, *, has_will: bool, notices: deque[Problem]) -> None:
        versions: tuple[Version, ...] = ("5", "3.1.1")
        if settings.mqtt_version != "auto":
            versions = ("5",) if settings.mqtt_version == 5 else ("3.1.1",)
        self.state: ConnectionState = "closed"
        self.has_socket = False
        self.handshake = Handshake(versions, has_will=has_will)
        self.filters = Subscriptions((), MAX_FILTERS_PER_SUBSCRIBE)
        self.limits = Limits()
        self.is_known = False
        self.is_hopeless = False
        self.is_absent = False
        self.is_wary = False
        """Whether the broker hung up on CONNECT over TLS, so that the next attempt first hears what it objects to."""
        self.retry_at = 0.0
        self._settings = settings
        self._address = settings.address
        self._client_id = client_id
        self._has_will = has_will
        self._notices = notices
        self._warned: set[Problem] = set()
        self._refused: list[str] = []
        """Filters whose refusal is still to be reported."""
        self._refused_before: set[str] = set()
        self._random = random.Random()  # noqa: S311 - jitter
        self._failures = 0
        self._answer_until = 0.0
        self._online_since = 0.0

    def open(self, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Make the first attempt due at once; QoS 2 of a subscription counts as 1."""
        self._move("open")
        self.filters = Subscriptions(subscriptions, MAX_FILTERS_PER_SUBSCRIBE)
        self.retry_at = 0.0

    def close(self) -> bool:
        """Stop connecting; return whether there is a socket to close. Harmless when closed."""
        had_socket = self.has_socket
        self._move("close")
        return had_socket

    def dial(self, now: float) -> bool:
        """Begin the next attempt, if it is due."""
        if self.state != "waiting" or now < self.retry_at:
            return False
        self._move("dial")
        self.is_hopeless = self.is_absent = False
        return True

    def unreachable(self, error: Exception) -> Problem:
        """The attempt failed before a CONNECT could be sent; return why."""
        self.is_hopeless = isinstance(error, ssl.SSLError | ConfigError)
        self.is_absent = isinstance(error, ConnectionRefusedError | socket.gaierror)
        return connect_errors.unreachable(self._settings, error)

    def unanswered(self, ended_by: ssl.SSLError | GaveUp | None) -> Problem | None:
        """The broker hung up on CONNECT; return why, None where the next attempt will know more."""
        was_wary, self.is_wary = self.is_wary, self._settings.tls is not None
        self.is_hopeless = isinstance(ended_by, ssl.SSLError)
        if self.is_wary and not was_wary and ended_by is None:
            return None
        return connect_errors.no_mqtt(self._settings, ended_by)

    def connect_sent(self, now: float) -> None:
        """CONNECT was sent: the broker has `connect_timeout_s` from now to accept client and subscriptions."""
        self._move("connect")
        self._answer_until = now + self._settings.connect_timeout_s

    def on_connack(self, limits: object) -> tuple[Step, Problem | None]:
        """The broker accepted with these properties in its CONNACK, see `Limits.learn`; return as `on_refusal` does."""
        if self.state != "connecting":
            return "wait", None
        if self.handshake.answered() == "confirm":
            self._move("decline")
            return "reconnect", None
        self._move("accept")
        self.is_known, self.is_wary = True, False
        self.limits.learn(limits, is_mqtt5=self.handshake.version == "5")
        self._warn_while(connect_errors.hangs_up_on_will(self._settings), on=not self.handshake.with_will)
        self._warn_of_limits()
        self.filters.begin()
        return self._subscribe(), None

    def on_refusal(self, reason: str) -> tuple[Step, Problem | None]:
        """The broker refused; return what follows, and what is wrong, if no other way to connect would help."""
        if self.state != "connecting":
            return "wait", None
        self._move("decline")
        if reason == "Retain not supported" and self.limits.retains:
            self.limits.retains = False
        elif reason == "QoS not supported" and self.limits.takes_qos_1:
            self.limits.takes_qos_1 = False
        elif reason != "Unsupported protocol version" or not self.handshake.other_version():
            self.is_hopeless = reason in connect_errors.REFUSED_LOGIN
            return "wait", connect_errors.refusal(self._settings, self._client_id, reason)
        self._warn_of_limits()
        return "reconnect", None

    def on_suback(self, refusals: Sequence[str | None]) -> tuple[Step, Problem | None]:
        """The broker answered a SUBSCRIBE, with None for each filter that it accepted; return as `on_refusal` does."""
        if self.state not in ("subscribing", "online") or not self.filters.asked:
            return "wait", None
        answers = self.filters.answered(refusals)
        refused = {name: f"{name} ({why})" for name, why in answers.items() if why is not None}
        missed = [text for name, text in refused.items() if self.filters.is_needed(name)]
        if missed:
            self.is_hopeless = True
            return "hang up", connect_errors.refuses_needed_subscribe(self._address, missed)
        self._refused += [text for name, text in refused.items() if name not in self._refused_before]
        self._refused_before = (self._refused_before - answers.keys()) | refused.keys()
        return ("wait" if self.state == "online" else self._subscribe()), None

    def ask_for_more(self, now: float) -> bool:
        """Whether to subscribe to `filters.asked`, beyond what was needed to be online; one packet at a time."""
        if self.state != "online" or self.filters.asked:
            return False
        self.filters.try_again(now)
        if self.filters.ask(for_more=True):
            return True
        if self._refused:
            self._notices.append(connect_errors.refuses_subscribe(self._settings, self._refused))
            self._refused = []
        return False

    def _subscribe(self) -> Step:
        return "subscribe" if self.filters.ask() else "go online"

    def _warn_of_limits(self) -> None:
        self._warn_while(connect_errors.takes_no_retained(self._settings), on=not self.limits.retains)
        self._warn_while(connect_errors.takes_no_qos_1(self._settings), on=not self.limits.takes_qos_1)

    def _warn_while(self, problem: Problem, *, on: bool) -> None:
        """Report something that lasts, once."""
        if not on:
            self._warned.discard(problem)
        elif self._has_will and problem not in self._warned:
            self._warned.add(problem)
            self._notices.append(problem)

    def go_online(self, now: float) -> bool:
        """Go online; False where the connection has ended meanwhile."""
        if self.state != "subscribing":
            return False
        self._move("go online")
        self._online_since = now
        return True

    def overdue(self, now: float) -> Problem | None:
        """Return that the broker did not answer in time; None while it still may."""
        if self.has_socket and self.state != "online" and now > self._answer_until:
            return connect_errors.mute(self._address)
        return None

    def flooded(self, nbytes: int) -> Problem:
        """Return that more came than is kept before the subscriptions were answered; no filter is to blame."""
        self.filters.acquit()
        return connect_errors.floods(self._settings, nbytes)

    def why_lost(self, said: str | None, ended_by: ssl.SSLError | GaveUp | None, now: float) -> Problem | None:
        """Return why the connection ended, None if that was reported already.

        `said` is the reason that the broker gave, `ended_by` the one that TLS gave, or that of this side.
        """
        if said is not None:
            return connect_errors.refusal(self._settings, self._client_id, said)
        if isinstance(ended_by, str) and self.state in ("subscribing", "online"):
            return connect_errors.gave_up(self._settings, ended_by)
        if self.state == "online":
            at_once = now - self._online_since < _STABLE_S
            return connect_errors.lost(self._address, self._client_id, at_once=at_once)
        if self.state == "connecting":
            return self.unanswered(ended_by)
        if self.state == "subscribing" and self.filters.asked:
            return connect_errors.lost_while_subscribing(self._address, self.filters.asked[0][0])
        if self.state == "subscribing":  # all was answered; it ended before anybody was told
            return connect_errors.lost(self._address, self._client_id, at_once=True)
        return None

    def ended(self, now: float, *, soon: bool, diagnosing: bool) -> bool:
        """Enter the wait for the next attempt; False where there was no connection, or its end is known.

        The next attempt is due at once if it is to be `soon`, and after the shortest wait at most while `diagnosing`
        what the broker hangs up on.
        """
        if self.state in ("closed", "waiting"):
            return False
        was = self.state
        self._move("end")
        if was == "online" and now - self._online_since >= _STABLE_S:
            self._failures = 0
        elif was == "connecting":
            soon = self.handshake.unanswered() or soon
        without = self.filters.unanswered(now)
        if without is not None:
            self._notices.append(connect_errors.hangs_up_on_subscribe(self._settings, [without]))
        delay = min(_BACKOFF_MAX_S, _BACKOFF_MIN_S * 2.0 ** (0 if diagnosing else min(self._failures, 10)))
        self._failures += 0 if soon or diagnosing else 1
        self.retry_at = now if soon else now + delay * self._random.uniform(0.5, 1.0)
        return True

    def _move(self, event: ConnectionEvent) -> None:
        """Follow the table; a KeyError here is a bug in this program."""
        self.state = CONNECTION_TRANSITIONS[self.state, event]
        self.has_socket = self.state in _WITH_SOCKET


def transition_table() -> str:
    """Return the transition table as text, one line per transition."""
    lines = ["A connection to the broker:"]
    lines += [f"  {state:<11} {event:<9} -> {after}" for (state, event), after in CONNECTION_TRANSITIONS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(transition_table())  # noqa: T201
