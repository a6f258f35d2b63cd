"""A broker inside the process: sessions, retained messages, wills and injected loss.

Nothing here starts a thread or opens a socket. What a client receives depends on the seed and on the order of
the calls alone, so that a failing test fails again.
"""

from __future__ import annotations

import functools
import math
import random
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from distree.errors import BrokerError, LocalProtocolError, Problem
from distree.lanes import Lane
from distree.transport.base import Listener, Received
from distree.transport.outbox import Outbox, Publication


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    token: str | None = None
    lane: Lane = Lane.OWED


@dataclass(slots=True)
class _Delivery:
    """One message on its way to one client. Its identity is the token that the client acknowledges."""

    message: _Message
    qos: int
    retain: bool


@dataclass(slots=True)
class _Session:
    """What the broker keeps of a client id, connected or not."""

    client_id: str
    subscriptions: dict[str, int] = field(default_factory=dict)
    waiting: deque[_Delivery] = field(default_factory=deque)
    unacknowledged: OrderedDict[int, _Delivery] = field(default_factory=OrderedDict)
    owner: MemoryTransport | None = None


def matches(topic_filter: str, topic: str) -> bool:
    """Tell whether a filter matches a topic; no wildcard stands for a first level that begins with `$`."""
    if topic.startswith("$") and topic_filter[:1] in ("+", "#"):
        return False
    levels, parts = topic_filter.split("/"), topic.split("/")
    for index, level in enumerate(levels):
        if level == "#":
            return True
        if index >= len(parts) or level not in ("+", parts[index]):
            return False
    return len(levels) == len(parts)


class MemoryBroker:
    """A broker for transports of one process.

    `loss` is the probability that a delivery at QoS 0 vanishes; `loss_qos1` the probability that a delivery
    at QoS 1 misses its turn and comes later, after its successors. `reports_no_subscribers` says whether it tells that nobody
    subscribes to a topic, as mosquitto does; a client that is away keeps its subscriptions, until `expire`. Without
    `retains` nothing is retained.
    """

    def __init__(
        self,
        seed: int = 0,
        loss: float = 0.0,
        loss_qos1: float = 0.0,
        max_packet_bytes: int = 268_435_455,
        *,
        reports_no_subscribers: bool = True,
        retains: bool = True,
    ) -> None:
        self.reports_no_subscribers = reports_no_subscribers
        self.max_packet_bytes = max_packet_bytes
        self.lock = threading.RLock()
        self.running = True
        self._random = random.Random(seed)
        self._loss = loss
        self._loss_qos1 = loss_qos1
        self._retains = retains
        self._sessions: dict[str, _Session] = {}
        self._retained: dict[str, _Message] = {}

    def transport(
        self,
        client_id: str,
        will: tuple[str, bytes] | None = None,
        *,
        receive_maximum: int = 8,
        offline_items: int = 4096,
        offline_bytes: int = 8 << 20,
    ) -> MemoryTransport:
        """Return a transport of this broker; it connects at its first poll after `open`."""
        return MemoryTransport(self, client_id, will, receive_maximum, offline_items, offline_bytes)

    def retained(self, topic: str) -> bytes | None:
        """Return the payload retained on a topic, or None."""
        message = self._retained.get(topic)
        return None if message is None else message.payload

    def drop(self, client_id: str) -> None:
        """Cut a client off as if its board had died: its will is published, its session stays."""
        session = self._sessions.get(client_id)
        if session is not None and session.owner is not None:
            self._cut(session, Problem("the connection was dropped", ""))

    def expire(self, client_id: str) -> None:
        """End the session of a client that is away, with what waits in it."""
        with self.lock:
            session = self._sessions.get(client_id)
            if session is not None and session.owner is None:
                del self._sessions[client_id]

    def stop(self, *, forget: bool = False) -> None:
        """Cut every client off, without wills. `forget` loses sessions and retained messages."""
        with self.lock:
            self.running = False
            for session in self._sessions.values():
                if session.owner is not None:
                    session.owner.lose(Problem("the broker stopped", "start it"))
                    session.owner = None
            if forget:
                self._sessions.clear()
                self._retained.clear()

    def start(self) -> None:
        """Start again after `stop`; clients reconnect at their next poll."""
        self.running = True

    def _cut(self, session: _Session, why: Problem) -> None:
        with self.lock:
            owner, session.owner = session.owner, None
            if owner is not None:
                owner.lose(why)
                if owner.will is not None:
                    topic, payload = owner.will
                    self.route(_Message(topic=topic, payload=payload, qos=1, retain=True))

    # What transports call.

    def attach(self, owner: MemoryTransport, subscriptions: Sequence[tuple[str, int]]) -> _Session:
        """Connect a client: an older one of the same id is cut off, unacknowledged messages come again."""
        with self.lock:
            session = self._sessions.setdefault(owner.client_id, _Session(owner.client_id))
            if session.owner is not None and session.owner is not owner:
                self._cut(session, Problem(f"another client uses the id {owner.client_id!r}", "give it another"))
            session.owner = owner
            # Copies: a token of the connection before must not acknowledge the redelivery.
            again = [replace(delivery) for delivery in session.unacknowledged.values()]
            session.waiting.extendleft(reversed(again))
            session.unacknowledged.clear()
            self.subscribe(session, subscriptions)
            return session

    def detach(self, owner: MemoryTransport) -> None:
        """Disconnect a client cleanly: no will."""
        with self.lock:
            session = self._sessions.get(owner.client_id)
            if session is not None and session.owner is owner:
                session.owner = None

    def forget(self, session: _Session, names: Sequence[str]) -> None:
        """End subscriptions of a client."""
        with self.lock:
            for name in names:
                session.subscriptions.pop(name, None)

    def subscribe(self, session: _Session, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Begin subscriptions of a client, with what is retained."""
        with self.lock:
            for subscription, qos in subscriptions:
                session.subscriptions[subscription] = qos = min(qos, 1)
                for message in self._retained.values():
                    if matches(subscription, message.topic):
                        self._offer(session, message, qos, retain=True)

    def route(self, message: _Message) -> bool:
        """Retain a message where asked and offer it to every client that it concerns; return whether there is one."""
        with self.lock:
            if message.retain and self._retains:
                self._retain(message)
            receivers = list(self._receivers(message.topic))
            for session, qos in receivers:
                self._offer(session, message, qos, retain=False)
            return bool(receivers)

    def _retain(self, message: _Message) -> None:
        if message.payload:
            self._retained[message.topic] = message
        else:
            self._retained.pop(message.topic, None)

    def _receivers(self, topic: str) -> Iterator[tuple[_Session, int]]:
        for session in self._sessions.values():
            levels = [qos for name, qos in session.subscriptions.items() if matches(name, topic)]
            if levels:
                yield session, max(levels)

    def _offer(self, session: _Session, message: _Message, qos: int, *, retain: bool) -> None:
        level = min(qos, message.qos)
        if level == 0 and (session.owner is None or self._random.random() < self._loss):
            return
        session.waiting.append(_Delivery(message, level, retain))
        if session.owner is not None:
            session.owner.wake()

    def take(self, session: _Session, receive_maximum: int) -> _Delivery | None:
        """Take a client's next delivery, or None: nothing waits, or too much is unacknowledged."""
        with self.lock:
            for _ in range(len(session.waiting)):
                delivery = session.waiting[0]
                if delivery.qos and len(session.unacknowledged) >= receive_maximum:
                    return None
                session.waiting.popleft()
                if delivery.qos == 0:
                    return delivery
                if self._random.random() < self._loss_qos1:
                    session.waiting.append(delivery)
                    continue
                session.unacknowledged[id(delivery)] = delivery
                return delivery
            return None

    def acknowledged(self, session: _Session, token: object) -> None:
        """Forget a delivery; a token that is not of this connection is ignored."""
        with self.lock:
            if session.unacknowledged.pop(id(token), None) is not None and session.owner is not None:
                session.owner.wake()


class MemoryTransport:
    """`Transport` of a MemoryBroker. `poll` waits only where nothing is queued and its time-out is not 0."""

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        will: tuple[str, bytes] | None,
        receive_maximum: int,
        offline_items: int,
        offline_bytes: int,
    ) -> None:
        self.lock = threading.RLock()
        self.online = False
        self.client_id = client_id
        self.will = will
        self.last_error: Problem | None = None
        self._broker = broker
        self._receive_maximum = receive_maximum
        self.notices: deque[Problem] = deque()
        self.diagnosing = False
        self.outbox = Outbox(offline_items, offline_bytes)
        self._listener: Listener | None = None
        self._subscriptions: tuple[tuple[str, int], ...] = ()
        self._session: _Session | None = None
        self._events: deque[Callable[[], None]] = deque()
        self._bell = threading.Event()
        self._paused = False

    def open(self, listener: Listener, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Remember listener and subscriptions; the next `poll` connects."""
        self._listener = listener
        self._subscriptions = tuple(subscriptions)
        self._bell.set()

    def connect_now(self, timeout_s: float, *, patient: bool = False) -> None:
        """Poll until online; raise BrokerError where the broker is stopped."""
        for _ in range(2):  # the first may have to tell of a lost connection
            self.poll(0.0)
        if not self.online:
            raise BrokerError("the in-process broker is stopped", "start it")

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
        """Hand a message to the broker, or to the offline queue; raise LocalProtocolError("size")."""
        size = len(topic) + len(payload)
        if size > self._broker.max_packet_bytes:
            limit = self._broker.max_packet_bytes
            raise LocalProtocolError("size", f"{size} bytes on {topic} exceed the broker's {limit}")
        if self.online:
            self._send(_Message(topic=topic, payload=payload, qos=qos, retain=retain, token=token, lane=lane))
        elif qos == 0:
            self.outbox.dropped[Lane.LOSSY] += 1
        else:
            self.outbox.put(Publication(topic, payload, retain, token=token, lane=lane))
            self._mourn()

    def _mourn(self) -> None:
        while self.outbox.casualties:
            token, listener = self.outbox.casualties.popleft(), self._listener
            if listener is not None:
                self._events.append(functools.partial(listener.given_up, token))
                self._bell.set()

    @property
    def offline_dropped(self) -> int:
        """Messages given up, of all lanes."""
        return self.outbox.dropped.total()

    def acknowledge_at_once(self) -> None:
        """Nothing is held back here."""

    @property
    def retains(self) -> bool:
        """Whether this broker keeps retained messages is not told by it."""
        return True

    @property
    def reports_no_subscribers(self) -> bool:
        """Whether this broker says that nobody reads a message."""
        return self._broker.reports_no_subscribers

    def unacknowledged_since(self) -> float:
        """Return infinity, as the broker acknowledges at once; minus infinity while not online."""
        return math.inf if self.online else -math.inf

    def subscribe(self, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Ask for these filters too, those that are new."""
        known = dict(self._subscriptions)
        added = {name: qos for name, qos in subscriptions if name not in known}
        self._subscriptions += tuple(added.items())
        if self.online and self._session is not None:
            self._broker.subscribe(self._session, list(added.items()))

    def unsubscribe(self, names: Sequence[str]) -> None:
        """Ask for no more messages of these filters."""
        self._subscriptions = tuple(pair for pair in self._subscriptions if pair[0] not in names)
        if self._session is not None:
            self._broker.forget(self._session, names)

    def _send(self, message: _Message) -> None:
        is_read = self._broker.route(message)
        listener, token = self._listener, message.token
        if not message.qos or listener is None:
            return
        if not is_read and message.lane is Lane.WORK and self._broker.reports_no_subscribers:
            self._events.append(functools.partial(listener.no_subscribers, message.topic, message.payload))
            self._bell.set()
        if token is not None:
            self._events.append(functools.partial(listener.published, token))
            self._bell.set()

    def pause(self, *, paused: bool) -> None:
        """Stop taking in messages, or go on."""
        self._paused = paused

    def cork(self) -> None:
        """Nothing to gather: sending costs nothing here."""

    def uncork(self) -> None:
        """Nothing was gathered."""

    def acknowledge(self, token: object) -> None:
        """Acknowledge a received message; harmless for QoS 0 and after a reconnect."""
        if self._session is not None and self.online:
            self._broker.acknowledged(self._session, token)

    def poll(self, timeout_s: float) -> None:
        """Connect where needed, then deliver what is queued for this client."""
        if timeout_s > 0:
            self._bell.wait(timeout_s)
        self._bell.clear()
        with self.lock:
            if self._listener is not None:
                self._connect(self._listener)
                self._deliver(self._listener)

    def _connect(self, listener: Listener) -> None:
        if self.online or not self._broker.running or self._events:
            return
        self._session = self._broker.attach(self, self._subscriptions)
        self.online = True
        self._bell.set()
        self._events.append(listener.connected)
        while (item := self.outbox.pop(0.0)) is not None:
            self._send(
                _Message(
                    topic=item.topic,
                    payload=item.payload,
                    qos=1,
                    retain=item.retain,
                    token=item.token,
                    lane=item.lane,
                )
            )

    def _deliver(self, listener: Listener) -> None:
        # Bounded by what waits now, so that two clients that answer each other cannot hold one poll for ever.
        waiting = 0 if self._session is None else len(self._session.waiting)
        for _ in range(len(self._events) + 1):
            if self._events:
                self._events.popleft()()
        for _ in range(waiting):
            if not self.online or self._session is None or self._paused:
                break
            delivery = self._broker.take(self._session, self._receive_maximum)
            if delivery is None:
                break
            listener.received(_received(delivery))
        if self._events or (self._session is not None and self._session.waiting):
            self._bell.set()

    def wake(self) -> None:
        """Make a waiting `poll` return early."""
        self._bell.set()

    def lose(self, why: Problem) -> None:
        """Cut this client off (called by the broker); the next poll tells the listener."""
        self.online = False
        self.last_error = why
        listener = self._listener
        if listener is not None:
            self._events.append(lambda: listener.disconnected(why))
        self._bell.set()

    def close(self) -> None:
        """Disconnect cleanly; the will is not sent."""
        with self.lock:
            self._broker.detach(self)
            self.online = False
            self._listener = None
            self._events.clear()


def _received(delivery: _Delivery) -> Received:
    message = delivery.message
    token = delivery if delivery.qos else None
    return Received(topic=message.topic, payload=message.payload, retain=delivery.retain, token=token)
