"""MQTT by paho-mqtt: a connection that heals itself.

paho's network thread is not used: `poll` waits on the socket, and a publish from any thread goes straight to the
socket under `lock`, without a hand-over. Lock, loop and client are here; what an event leads to is decided in modules
that have none of them: `connection`, `send_window` and `receive_window`.

Whoever calls into the paho client holds `MqttTransport.lock`. The dialling thread is the one exception: while
it runs, nobody else touches the client.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from distree.broker_settings import BrokerSettings, Session
from distree.errors import BrokerError, ConfigError, LocalProtocolError, Problem
from distree.lanes import Lane
from distree.transport import connect_errors, packets
from distree.transport.base import Listener, Transport
from distree.transport.connection import Connection, Step
from distree.transport.dialling import Dialler
from distree.transport.lean_client import LeanClient
from distree.transport.listener_calls import ListenerCalls
from distree.transport.negotiation import Version
from distree.transport.outbox import Outbox, Publication
from distree.transport.poller import Poller
from distree.transport.receive_window import MAX_EARLY_BYTES, ReceiveWindow
from distree.transport.send_window import OVERHEAD_BYTES, SendWindow

_HOUSEKEEPING_S = 0.25
_CLOSE_S = 1.0
_MAX_NOTICES = 16

_transports: weakref.WeakSet[MqttTransport] = weakref.WeakSet()
"""Those that are open, for a child process that is forked from this one."""


class MqttTransport:
    """`Transport` over MQTT 5, or over MQTT 3.1.1 where the broker speaks nothing else.

    Its parameters are those of `make_transport`. `last_error` is why there is no connection, or what was refused;
    `notices` are what the broker does not support, and this goes on without: whoever shows them takes them out.
    `diagnosing` says whether the last connection ended in the course of finding out what the broker hangs up on, which
    a notice will report.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        client_id: str,
        will: tuple[str, bytes] | None,
        receive_maximum: int,
        session: Session,
        trial_payload: bytes,
        offline_items: int,
        offline_bytes: int,
    ) -> None:
        self.lock = threading.RLock()
        self.online = False
        self.diagnosing = False
        self.last_error: Problem | None = None
        self.notices: deque[Problem] = deque(maxlen=_MAX_NOTICES)
        self._settings = settings
        self._address = settings.address
        self._outbox = Outbox(offline_items, offline_bytes)
        self._connection = Connection(settings, client_id, has_will=will is not None, notices=self.notices)
        self._send_window = SendWindow(settings, self._connection.limits, self._outbox, trial_payload, self.notices)
        self._receive_window = ReceiveWindow(self.notices)
        self._dialler = Dialler(settings, client_id, will, receive_maximum, session)
        self._client = self._dialler.make_client(self, self.protocol)
        self._poller = Poller()
        self._housekeeping_at = 0.0
        self._paused = False
        self._listener_calls = ListenerCalls()

    @property
    def protocol(self) -> Version:
        """The version of MQTT that is spoken, or tried next."""
        return self._connection.handshake.version

    @property
    def offline_dropped(self) -> int:
        """Messages given up, of all lanes."""
        return self._outbox.dropped.total()

    @property
    def retains(self) -> bool:
        """Whether the broker takes retained messages, as far as it has said, or hung up on them."""
        return self._send_window.retains

    @property
    def reports_no_subscribers(self) -> bool:
        """Whether the broker may report that nobody reads a message: MQTT 3.1.1 has no way to."""
        return self.protocol == "5"

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent, or to be acknowledged by the broker."""
        return self._send_window.idle

    # Life: open, connect, close.

    def open(self, listener: Listener, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Remember listener and subscriptions (QoS 2 counts as 1); ConfigError for a bad password file, or TLS's."""
        with self.lock:
            self._dialler.read_files()
            self._client = self._new_client()
            self._listener_calls.open(listener)
            self._poller.open()
            self._connection.open(subscriptions)
            _transports.add(self)

    def connect_now(self, timeout_s: float, *, patient: bool = False) -> None:
        """Poll until online; BrokerError with the reason after `timeout_s`, or at once if it cannot heal."""
        until, connection = time.monotonic() + timeout_s, self._connection
        while not self.online:
            left = until - time.monotonic()
            with self.lock:  # the dialling thread sets what is wrong, and how bad it is, in one go
                if left <= 0 or connection.is_hopeless or (connection.is_absent and not patient):
                    raise BrokerError(*(self.last_error or connect_errors.unanswered(self._address, timeout_s)))
            self.poll(min(left, 0.1))

    def subscribe(self, subscriptions: Sequence[tuple[str, int]]) -> None:
        """Ask for these too, in the next turn of `poll`, and once online on later connections; with the lock held."""
        if self._connection.filters.add(subscriptions) and self.online:
            self._listener_calls.add(self._ask_for_more)
            self.wake()

    def unsubscribe(self, names: Sequence[str]) -> None:
        """Unsubscribe from these filters; called with the lock held."""
        known = self._connection.filters.remove(names)
        if self.online and known:
            self._client.unsubscribe(known)
            self.wake()

    def pause(self, *, paused: bool) -> None:
        """Stop reading from the socket, or go on; the connection is kept alive meanwhile. With the lock held.

        Whatever else comes on this connection waits too: acknowledgements, and the news that it was lost.
        """
        self._paused = paused

    def close(self) -> None:
        """Send what waits, disconnect without the will, and end a session of this process; within about 1 s."""
        until = time.monotonic() + _CLOSE_S
        while self.online and not self.idle and time.monotonic() < until:
            self._poller.wait_to_read(20)
            with self.lock:
                if self.online:
                    self._client.read()
                    self._client.loop_write()
                    self._flush()
        with self.lock:
            self.online = False
            self._listener_calls.calls.clear()
            if self._connection.close():
                self._dialler.disconnect(self._client, self.protocol)
            _transports.discard(self)
            self._poller.close()

    def _leave(self) -> None:
        """Leave the connection to the process from which this one was forked."""
        self.lock = threading.RLock()  # whoever held it is not in this process
        self.online = False
        self.last_error = connect_errors.forked(self._settings)
        self._send_window.leave()
        self._connection.close()
        self._client.let_go()
        self._poller.leave()

    # Sending.

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
        """Send now, or queue where offline, backed up or at the window's bound; see `Transport.publish`.

        At QoS 0 a message is dropped and counted where it could not be sent at once. QoS 2 counts as 1.
        """
        sender, client = self._send_window, self._client
        nbytes = len(topic) + len(payload)
        if nbytes + OVERHEAD_BYTES > sender.limits.max_packet_bytes or sender.hangups.refusals:
            sender.check(topic, nbytes, time.monotonic())
        free = self.online and not client.backed_up()
        if qos == 0 and not sender.wants_acknowledged(topic):
            if free:
                client.send_packet(sender.packet_at_qos_0(topic, payload, retain, content_type, expiry_s))
            else:
                self._outbox.dropped[Lane.LOSSY] += 1
        else:
            now = time.monotonic()
            expires_at = None if expiry_s is None else now + expiry_s
            item = sender.prepare(topic, payload, qos, retain, content_type, expires_at, token, lane, now)
            if free and sender.has_room(item):
                self._send(item, now, expiry_s)
            else:
                self._outbox.put(item)
                self._listener_calls.given_up(self._outbox.casualties)
        if client.backed_up():
            self.wake()  # the polling thread waits for reading alone

    def _send(self, item: Publication, now: float, expiry_s: float | None) -> None:
        sender, client = self._send_window, self._client
        if sender.takes_qos_1:
            client.send_packet(sender.put_under_way(item, client.fresh_mid(sender.under_way), now, expiry_s))
        else:
            client.send_packet(sender.put_under_way(item, None, now, expiry_s))
            if item.token is not None:
                self._listener_calls.published(item.token)

    def _flush(self) -> None:
        """Send what waits, as far as window and socket allow; drop what has expired or would not be taken."""
        now = time.monotonic()
        while self.online and not self._client.backed_up() and (item := self._send_window.take_next(now)) is not None:
            try:
                if not item.strikes:  # else it goes out to be judged
                    self._send_window.check(item.topic, item.size, now)
            except LocalProtocolError as error:
                self.last_error = Problem(error.detail, error.remedy)
                self._outbox.drop(item)
            else:
                self._send(item, now, None if item.expires_at is None else item.expires_at - now)
        self._listener_calls.given_up(self._outbox.casualties)

    def unacknowledged_since(self) -> float:
        """Return since when the broker has owed an acknowledgement, see `Transport`; it owes none without QoS 1."""
        return self._send_window.oldest_since() if self.online else -math.inf

    def acknowledge_at_once(self) -> None:
        """Have the kernel acknowledge what arrives at once, on this connection and later ones."""
        self._client.acknowledges_at_once = True

    def acknowledge(self, token: object) -> None:
        """Acknowledge a received message; harmless for QoS 0, twice, and after a reconnect."""
        pubacks = self._receive_window.acknowledge(token)
        if pubacks:
            self._client.send_packet(pubacks)
            if self._client.backed_up():
                self.wake()

    def cork(self) -> None:
        """Gather what is sent from here on; calls may nest."""
        self._client.corked += 1

    def uncork(self) -> None:
        """Send what was gathered, in one write."""
        self._client.uncork()
        if self._client.backed_up():
            self.wake()

    def wake(self) -> None:
        """Make a waiting `poll` return early; callable from any thread, without the lock."""
        self._poller.wake()

    # The loop.

    def poll(self, timeout_s: float) -> None:
        """Wait at most `timeout_s`, serve the connection, call the listener; its exceptions come out here."""
        if self._connection.state == "waiting":
            self._dial_if_due()
        come = self._poller.wait(math.ceil(self._patience_s(timeout_s) * 1000))
        with self.lock:
            readable = self._poller.is_ready(come)
            if self._connection.has_socket:
                self._serve(readable)
            self._listener_calls.tell()
            sock = self._client.socket() if self._connection.has_socket else None
            self._poller.watch(sock, reads=not self._paused, writes=self._client.want_write())

    def _patience_s(self, timeout_s: float) -> float:
        """Return how long to wait for the network: never past what housekeeping or the next attempt needs."""
        state = self._connection.state
        reads_ahead = self._connection.has_socket and self._client.reads_ahead() and not self._paused
        if self._listener_calls.calls or state == "closed" or reads_ahead:
            return 0.0
        if state == "waiting":
            timeout_s = min(timeout_s, self._connection.retry_at - time.monotonic())
        return max(0.0, min(timeout_s, 1.0))

    def _serve(self, readable: bool) -> None:
        client = self._client
        if readable or (client.reads_ahead() and not self._paused):
            client.read()
        if client.want_write():
            client.loop_write()
        if self._outbox.count or self._send_window.hangups.trials:
            self._flush()
        now = time.monotonic()
        if now >= self._housekeeping_at:
            self._housekeeping_at = now + _HOUSEKEEPING_S
            client.keep_alive(reads=not self._paused)
            if (overdue := self._connection.overdue(now) or self._send_window.tick(now)) is not None:
                self._hang_up(overdue)
            self._ask_for_more()

    # Connecting.

    def _new_client(self) -> LeanClient:
        client = self._dialler.make_client(self, self.protocol)
        client.acknowledges_at_once = self._client.acknowledges_at_once
        return client

    def _dial_if_due(self) -> None:
        with self.lock:
            if self._connection.dial(time.monotonic()):
                threading.Thread(target=self._connect, name="distree-dial", daemon=True).start()

    def _connect(self) -> None:
        """Connect and send CONNECT: seconds at worst, so in a thread of its own."""
        client, connection, sender = self._client, self._connection, self._send_window
        error: Exception | None = None
        try:
            will_flags = (int(sender.takes_qos_1), sender.retains) if connection.handshake.with_will else None
            self._dialler.connect(client, connection, will_flags)
        except (OSError, ValueError, ConfigError) as caught:
            error = caught
        with self.lock:
            if connection.state == "closed":
                client.disconnect()
            elif error is not None:
                self._ended(connection.unreachable(error))
            elif client.socket() is None:
                self._ended(connection.unanswered(client.ended_by))
            elif connection.state == "dialling":
                connection.connect_sent(time.monotonic())
                self._housekeeping_at = 0.0
            self.wake()

    def _hang_up(self, why: Problem | None) -> None:
        """Close a connection that is of no use."""
        client = self._client
        self._ended(why)
        client.hang_up()

    def _ended(self, why: Problem | None, *, soon: bool = False) -> None:
        """Enter the wait for the next attempt. Idempotent: paho may report one end twice."""
        now, version, diagnosing = time.monotonic(), self.protocol, self._send_window.alone
        # Finding out what the broker hangs up on is quick: no need to hold off for long.
        if not self._connection.ended(now, soon=soon, diagnosing=diagnosing):
            return
        self.online, self.diagnosing = False, diagnosing
        if version != self.protocol:
            self._client = self._new_client()
        self._send_window.lost(now)
        self._listener_calls.given_up(self._outbox.casualties)
        self._receive_window.forget()
        if why is not None:
            self.last_error = why
        self._listener_calls.disconnected(self.last_error or connect_errors.breaks_by_itself(self._settings))
        self.wake()

    def _go_on(self, step: Step, why: Problem | None) -> None:
        """Do what an answer of the broker leads to, and note what is wrong."""
        if why is not None:
            self.last_error = why
        match step:
            case "subscribe" if self._connection.filters.asked:  # else the connection has ended meanwhile
                self._client.subscribe(self._connection.filters.asked)
            case "go online":
                self._go_online()
            case "reconnect":
                self._ended(None, soon=True)
                self._client.disconnect()
                self._client = self._new_client()
            case "hang up":
                self._hang_up(why)
        self._ask_for_more()

    def _go_online(self) -> None:
        if not self._connection.go_online(time.monotonic()):
            return
        self.online = True
        self.last_error = None
        self._flush()
        self._listener_calls.connected(self._receive_window.early)

    def _ask_for_more(self) -> None:
        """Subscribe to what was added, a few at a time, unless a message is sent alone to see what is hung up on."""
        if not self._send_window.alone and self._connection.ask_for_more(time.monotonic()):
            self._client.subscribe(self._connection.filters.asked)

    # What the client calls, with `lock` held.

    def on_connack(self, limits: object) -> None:
        """The broker accepted this client."""
        self._listener_calls.add(self._go_on, *self._connection.on_connack(limits))

    def on_refusal(self, reason: str) -> None:
        """The broker refused this client."""
        self._listener_calls.add(self._go_on, *self._connection.on_refusal(reason))

    def on_suback(self, refusals: Sequence[str | None]) -> None:
        """The broker answered a SUBSCRIBE."""
        self._listener_calls.add(self._go_on, *self._connection.on_suback(refusals))

    def on_lost(self, said: str | None) -> None:
        """The connection ended."""
        if self._connection.has_socket:
            self._ended(self._connection.why_lost(said, self._client.ended_by, time.monotonic()))

    def on_publish(self, packet: packets.Published) -> None:
        """Queue a received message for the listener."""
        message = self._receive_window.on_publish(packet)
        if self.online:
            self._listener_calls.received(message)
        elif not self._receive_window.keep_early(message):
            self._listener_calls.add(self._hang_up, self._connection.flooded(MAX_EARLY_BYTES))

    def on_puback(self, mid: int, code: int) -> None:
        """Note the broker's answer to a publish; a refusal is final, except of a result for lack of room."""
        item = self._send_window.on_puback(mid, time.monotonic(), code)
        if item is None:
            return
        if self._outbox.casualties:
            self._listener_calls.given_up(self._outbox.casualties)
        if code >= packets.REFUSED:
            self.last_error = connect_errors.refuses_publish(self._address, item.topic, code)
        elif code == packets.NO_SUBSCRIBERS and item.lane is Lane.WORK and item.trial != "size":
            self._listener_calls.no_subscribers(item.topic, item.payload)
        if item.token is not None:
            self._listener_calls.published(item.token)

    def on_oversized(self, topic: str, nbytes: int, mid: int | None) -> None:
        """Acknowledge a message that is too large to be read, so that it is not delivered again."""
        pubacks = self._receive_window.skip(topic, nbytes, mid, time.monotonic())
        if pubacks:
            self._client.send_packet(pubacks)


if TYPE_CHECKING:
    _is_a_transport: Callable[..., Transport] = MqttTransport


def _leave_to_the_parent() -> None:
    for transport in list(_transports):
        transport._leave()
    _transports.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)
