"""What a transport is: the contract between a connection to a broker and who listens to it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from distree.errors import Problem
from distree.lanes import Lane
from distree.record import record


@record
class Received:
    """A message as it came off the broker. `token` is the transport's own, for `Transport.acknowledge`."""

    topic: str
    payload: bytes
    retain: bool
    token: object


class Listener(Protocol):
    """What a transport calls. Every call comes with `Transport.lock` held, from inside `Transport.poll`."""

    def connected(self) -> None:
        """The broker accepted this client and what it was opened with; called again after each reconnect."""

    def disconnected(self, why: Problem) -> None:
        """The connection is gone; the transport reconnects by itself."""

    def received(self, message: Received) -> None:
        """A message arrived. It stays unacknowledged until `Transport.acknowledge(message.token)`."""

    def published(self, token: str) -> None:
        """The broker has settled a publish that carried this token; if it refused it, `last_error` says why."""

    def given_up(self, token: str) -> None:
        """A publish that carried this token was given up: its lane was full, it expired, or the broker refuses it."""

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        """The broker took a message in lane WORK and reports that nobody subscribes to its topic; few brokers do."""


class QuietListener:
    """A `Listener` that does nothing, for those that need few of the calls."""

    def connected(self) -> None:
        """Nothing is done about it, as below."""

    def disconnected(self, why: Problem) -> None:
        """The transport reconnects by itself."""

    def received(self, message: Received) -> None:
        """Whoever subscribes to something takes it, and acknowledges it."""

    def published(self, token: str) -> None:
        """Nothing waits for it."""

    def given_up(self, token: str) -> None:
        """Nothing waits for it."""

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        """Nothing is done about it."""


class Transport(Protocol):
    """A connection to a broker that heals itself.

    One thread calls `poll` in a loop. Everything else may be called from any thread, with `lock` held. Outgoing
    messages at QoS 1 survive a lost connection in lanes with bounds of their own (see `Lane`); messages at QoS 0 do
    not. What is given up is counted in `offline_dropped`. `notices` are what the broker does not support, for whoever
    shows them to take out; `diagnosing` says that the last connection was lost in the course of finding one of them
    out.
    """

    lock: threading.RLock
    online: bool
    last_error: Problem | None
    notices: deque[Problem]
    diagnosing: bool

    @property
    def offline_dropped(self) -> int:
        """Messages given up."""

    @property
    def retains(self) -> bool:
        """Whether the broker takes retained messages, as far as it has said."""

    @property
    def reports_no_subscribers(self) -> bool:
        """Whether the broker may report that nobody reads a message, as it cannot with MQTT 3.1.1."""

    def open(self, listener: Listener, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Remember the listener and the (filter, QoS) pairs; `poll` then connects and keeps connected."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        content_type: str | None = None,
        expiry_s: float | None = None,
        token: str | None = None,
        lane: Lane = Lane.WORK,
    ) -> None:
        """Hand a message over. Raises LocalProtocolError if the broker would refuse it, for instance for its size.

        With a `token` the listener is told what became of it, by one call of `published` or `given_up`.
        """

    def subscribe(self, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Ask for these (filter, QoS) pairs too, now and on later connections, soon after `Listener.connected`.

        What is subscribed to already is not asked for again. What the broker refuses is reported in `notices`, and the
        connection goes on without it.
        """

    def unsubscribe(self, names: Sequence[str]) -> None:
        """Unsubscribe from these filters."""

    def unacknowledged_since(self) -> float:
        """Return since when the broker has owed an acknowledgement, of monotonic time.

        Infinity where it owes none; minus infinity while there is no connection.
        """

    def acknowledge_at_once(self) -> None:
        """Have the kernel acknowledge what arrives at once: a broker that holds back small messages waits for that."""

    def cork(self) -> None:
        """Gather what is published and acknowledged until `uncork`, to send it in one go; both with the lock held."""

    def uncork(self) -> None:
        """Send what was gathered since `cork`."""

    def acknowledge(self, token: object) -> None:
        """Acknowledge a received message (QoS 1); harmless for QoS 0 and after a reconnect."""

    def connect_now(self, timeout_s: float, *, patient: bool = False) -> None:
        """Poll until online; BrokerError with the reason after `timeout_s`, or at once if waiting cannot help.

        Where nothing listens at all, only `patient` callers wait: programs that may start before their broker does.
        """

    def poll(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` for the network, then handle what arrived, with `lock` held, and return."""

    def pause(self, *, paused: bool) -> None:
        """Stop reading messages, or go on; for a connection that does nothing else, with the lock held."""

    def wake(self) -> None:
        """Make a waiting `poll` return early; callable from any thread, without the lock."""

    def close(self) -> None:
        """Disconnect cleanly (the will is not sent); bounded in time."""
