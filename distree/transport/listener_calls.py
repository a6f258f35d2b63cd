"""Calls of the listener that wait to be made; pure, without clock or socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from distree.errors import Problem
from distree.transport.base import Listener, Received


class ListenerCalls:
    """Calls, mostly of the listener, that wait in `calls` until paho has returned, which holds locks of its own.

    Without a listener nobody is called.
    """

    def __init__(self) -> None:
        self.calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._listener: Listener | None = None
        self._announced = False
        """Whether the listener believes that it is connected."""

    def open(self, listener: Listener) -> None:
        """Remember whom to call."""
        self._listener = listener

    def add(self, call: Callable[..., None], *arguments: Any) -> None:
        """Queue a call after those that wait."""
        self.calls.append((call, arguments))

    def tell(self) -> None:
        """Make the calls that wait."""
        calls = self.calls
        while calls:  # a call leaves the queue first: it may raise
            call, arguments = calls.popleft()
            call(*arguments)

    def connected(self, early: list[Received]) -> None:
        """Report now that there is a connection, and next, before all that waits, the messages that came `early`."""
        listener = self._listener
        if listener is not None:
            self.calls.extendleft((listener.received, (message,)) for message in reversed(early))
            early.clear()
            self._announced = True
            listener.connected()

    def disconnected(self, why: Problem) -> None:
        """Report that the connection is gone, if it was reported that there is one."""
        if self._announced and self._listener is not None:
            self._announced = False
            self.calls.append((self._listener.disconnected, (why,)))

    def received(self, message: Received) -> None:
        """Report a message."""
        if self._listener is not None:
            self.calls.append((self._listener.received, (message,)))

    def published(self, token: str) -> None:
        """Report that a message is settled."""
        if self._listener is not None:
            self.calls.append((self._listener.published, (token,)))

    def given_up(self, casualties: deque[str]) -> None:
        """Report that these messages were given up; none is left in `casualties`."""
        while casualties:
            token = casualties.popleft()
            if self._listener is not None:
                self.calls.append((self._listener.given_up, (token,)))

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        """Report that nobody subscribes to a message's topic."""
        if self._listener is not None:
            self.calls.append((self._listener.no_subscribers, (topic, payload)))
