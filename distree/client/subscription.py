"""What arrives on some topics, in a bounded queue, for programs that iterate over it with `for` or `async for`."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar
from uuid import uuid4

from distree.broker_settings import BrokerSettings, Session
from distree.client.lifetime import Lifetime
from distree.client.waiting import WaitQueue
from distree.errors import BrokerError, ClosedError, DistreeError, Problem, RemoteProtocolError, ResultTimeoutError
from distree.lanes import Lane
from distree.printable import printable
from distree.transport import make_transport
from distree.transport.base import QuietListener, Received

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 1.0
LOG_INTERVAL_S = 10.0
"""Shortest time between two log lines about what was dropped."""


class Subscription(Lifetime, Generic[T]):
    """A queue of what `decode` makes of each message on `topics`, filled by a thread of its own; `with` runs it, once.

    `decode` raises RemoteProtocolError for what is malformed, which is counted in `malformed`, and returns None for
    what is not wanted. Beyond `queue` items the oldest is dropped and counted in `dropped`: a slow reader sees the
    newest. The broker keeps nothing for it: what is published while the connection is down is missed, and
    `interruptions` counts those times. Entering returns once the broker has confirmed the subscription, or raises
    BrokerError after `connect_timeout_s` seconds; where nothing listens at all it waits only if `patient`.
    Any thread and any event loop may read; each item goes to one of them.

    The broker may refuse `optional_topics`. `unread` makes an item of a message that is published here, when the broker
    says that nobody subscribes to its topic, as brokers with MQTT 5 can.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        topics: Sequence[str],
        decode: Callable[[Received], T | None],
        *,
        queue: int = 1024,
        timeout_s: float | None = None,
        connect_timeout_s: float = 10.0,
        patient: bool = False,
        optional_topics: Sequence[str] = (),
        unread: Callable[[str, bytes], T | None] | None = None,
    ) -> None:
        self.dropped = 0
        """Items that were dropped unread because the queue was full."""
        self.malformed = 0
        """Messages that broke the protocol; the log says how."""
        self.interruptions = 0
        """How often the connection was lost."""
        self._transport = make_transport(
            broker, client_id=f"distree-{uuid4().hex[:12]}", session=Session.NONE, receive_maximum=64
        )
        self._topics = [(topic, 1) for topic in topics]
        self._optional_topics = [(topic, 1) for topic in optional_topics]
        self._unread = unread
        self._decode = decode
        self._items: deque[T] = deque()
        self._bound = queue
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._patient = patient
        self._waiting = WaitQueue(self._transport.lock)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._was_opened = self._is_open = False
        self._says_at = 0.0

    # ------------------------------------------------------------ life

    def _open(self) -> None:
        if self._was_opened:
            raise ClosedError(f"this {type(self).__name__} has been used before", "make a new one")
        self._was_opened = True
        try:
            self._transport.open(_Listener(self), self._topics)
            self._transport.connect_now(self._connect_timeout_s, patient=self._patient)
            if self._optional_topics:
                with self._transport.lock:
                    self._transport.subscribe(self._optional_topics)
        except BaseException:
            self._transport.close()
            raise
        self._is_open = True
        self._thread = threading.Thread(target=self._serve, name="distree-subscription", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while self._is_open:
                self._transport.poll(POLL_S)
        except BaseException as error:  # noqa: BLE001 - raised by whoever reads
            self._failure = error
        self._shut()

    def _shut(self) -> None:
        with self._transport.lock:
            self._is_open = False
            self._waiting.notify_all()

    def close(self) -> None:
        """Close it, from any thread: iterating ends. Harmless the second time."""
        if self._thread is None or self._is_forked:
            return
        self._shut()
        self._transport.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._transport.close()

    @property
    def subscribed(self) -> bool:
        """Whether the broker has confirmed the subscription, and the connection is up."""
        return self._is_open and self._transport.online

    # ------------------------------------------------------------ reading

    def get(self, timeout_s: float | None = None) -> T:
        """Return the next item; ResultTimeoutError after `timeout_s` seconds (None: never), ClosedError at the end."""
        self._check_process()
        with self._transport.lock:
            self._waiting.wait_for(lambda: bool(self._items) or not self._is_open, timeout_s)
            return self._take(timeout_s)

    async def get_async(self, timeout_s: float | None = None) -> T:
        """Like `get`, but without blocking the event loop."""
        self._check_process()
        ends_at = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._transport.lock:
                if self._items or not self._is_open:
                    return self._take(timeout_s)
                waiter = self._waiting.join()
            left_s = None if ends_at is None else max(0.0, ends_at - time.monotonic())
            if not await self._waiting.wait(waiter, left_s):
                with self._transport.lock:
                    return self._take(timeout_s)

    def _take(self, timeout_s: float | None) -> T:
        if self._items:
            return self._items.popleft()
        if self._is_open:
            raise ResultTimeoutError(f"nothing arrived within {timeout_s:g} s", "check that the origin is running")
        name = type(self).__name__
        if isinstance(self._failure, DistreeError):
            raise ClosedError(*self._failure.problem)
        if self._failure is not None:
            raise ClosedError(f"this {name} failed ({self._failure})", "report this as a bug")
        if self._was_opened:
            raise ClosedError(f"this {name} is closed", "make a new one")
        raise ClosedError(f"this {name} has not been entered", "use it in a with block")

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """Return the next item; ResultTimeoutError after the constructor's `timeout_s`."""
        try:
            return self.get(self._timeout_s)
        except ClosedError:
            if self._failure is None and self._was_opened:
                raise StopIteration from None
            raise

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        """Return the next item; ResultTimeoutError after the constructor's `timeout_s`."""
        try:
            return await self.get_async(self._timeout_s)
        except ClosedError:
            if self._failure is None and self._was_opened:
                raise StopAsyncIteration from None
            raise

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish at QoS 1 on the same connection; while that is down it waits, within the transport's bounds.

        If the broker refuses it, reading raises ClosedError, which says so.
        """
        self._check_process()
        with self._transport.lock:
            # Only of work the transport says that nobody reads it.
            lane = Lane.OWED if self._unread is None else Lane.WORK
            self._transport.publish(topic, payload, qos=1, token=uuid4().hex, lane=lane)

    # ------------------------------------------------------------ what comes in

    def _note_interruption(self, why: Problem) -> None:
        self.interruptions += 1
        log.warning("%s", why)

    def _receive(self, message: Received) -> None:
        """Decode and queue."""
        self._transport.acknowledge(message.token)
        try:
            item = self._decode(message)
        except RemoteProtocolError as error:
            self.malformed += 1
            self._say(f"ignored a malformed message on {printable(message.topic)} ({self.malformed} so far): {error}")
            return
        if item is not None:
            self._put(item)

    def _note_published(self) -> None:
        """Fail if the broker has refused what was published here: whoever reads would wait for an answer in vain."""
        if self._transport.last_error is not None:
            raise BrokerError(*self._transport.last_error)

    def _note_unread(self, topic: str, payload: bytes) -> None:
        item = None if self._unread is None else self._unread(topic, payload)
        if item is not None:
            self._put(item)

    def _put(self, item: T) -> None:
        if len(self._items) >= self._bound:
            self._items.popleft()
            self.dropped += 1
            self._say(f"the reader is too slow: {self.dropped} dropped so far, the oldest of more than {self._bound}")
        self._items.append(item)
        self._waiting.notify()

    def _say(self, what: str) -> None:
        if time.monotonic() >= self._says_at:
            self._says_at = time.monotonic() + LOG_INTERVAL_S
            log.warning("%s", what)


class _Listener(QuietListener):
    """What the transport calls, kept off what users see."""

    def __init__(self, of: Subscription[Any]) -> None:
        self._of = of

    def disconnected(self, why: Problem) -> None:
        self._of._note_interruption(why)

    def received(self, message: Received) -> None:
        self._of._receive(message)

    def published(self, token: str) -> None:  # noqa: ARG002 - the transport's form
        self._of._note_published()

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        self._of._note_unread(topic, payload)
