"""Brokers, clients and the loop that drives them; what is waited for is a condition, never a time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from broker_config.managed import ManagedBroker, find_mosquitto, has_embedded
from distree.broker_settings import BrokerSettings
from distree.errors import Problem
from distree.transport import make_transport
from distree.transport.base import Received
from distree.transport.nagle import NagleTest

PATIENCE_S = 30.0


class Recorder:
    """A listener that writes down what it hears. `acknowledge` False leaves messages unacknowledged."""

    def __init__(self, transport: Any, *, acknowledge: bool = True) -> None:
        self.transport = transport
        self.acknowledge = acknowledge
        self.events: list[str] = []
        self.messages: list[Received] = []
        self.tokens: list[str] = []
        self.given_up_tokens: list[str] = []
        self.unread_messages: list[tuple[str, bytes]] = []

    def connected(self) -> None:
        self.events.append("connected")

    def disconnected(self, why: Problem) -> None:
        assert why
        self.events.append("disconnected")

    def received(self, message: Received) -> None:
        self.messages.append(message)
        if self.acknowledge:
            self.transport.acknowledge(message.token)

    def published(self, token: str) -> None:
        self.tokens.append(token)

    def given_up(self, token: str) -> None:
        self.given_up_tokens.append(token)

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        self.unread_messages.append((topic, payload))

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]


def pump_until(condition: Callable[[], bool], *recorders: Recorder, patience_s: float = PATIENCE_S) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, [(r.events, r.transport.last_error) for r in recorders]
        for recorder in recorders:
            recorder.transport.poll(0.01)


def sever(recorder: Recorder) -> None:
    """Cut the connection as a board that dies does: the broker sees an end without DISCONNECT."""
    recorder.transport._client.socket().shutdown(socket.SHUT_RDWR)


def find_whether_held_back(recorder: Recorder, test: NagleTest) -> bool | None:
    """Drive a test whose echoes come to a listener."""
    heard = len(recorder.messages)
    test.start(time.monotonic())
    while test.holds_back is None:
        recorder.transport.poll(0.05)
        for _ in recorder.messages[heard:]:
            heard += 1
            test.heard(time.monotonic())
    return test.holds_back


@pytest.fixture
def held_back() -> Callable[[Recorder, NagleTest], bool | None]:
    return find_whether_held_back


@pytest.fixture(scope="session", params=["mosquitto", "embedded"])
def engine(request: pytest.FixtureRequest) -> str:
    installed = find_mosquitto() is not None if request.param == "mosquitto" else has_embedded()
    if not installed:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture(scope="session")
def broker(engine: str) -> Iterator[ManagedBroker]:
    """One broker for many tests, each with topics and client ids of its own."""
    with ManagedBroker(engine=engine) as running:
        yield running


@pytest.fixture
def client() -> Iterator[Callable[..., Recorder]]:
    """Make clients that are online when they are returned, and closed after the test."""
    made: list[Recorder] = []

    def make(
        port: int,
        client_id: str,
        subscriptions: Sequence[tuple[str, int]] = (),
        *,
        acknowledge: bool = True,
        online: bool = True,
        settings: dict[str, Any] | None = None,
        **options: Any,
    ) -> Recorder:
        transport = make_transport(BrokerSettings(port=port, **(settings or {})), client_id=client_id, **options)
        recorder = Recorder(transport, acknowledge=acknowledge)
        made.append(recorder)
        transport.open(recorder, subscriptions)
        if online:
            transport.connect_now(PATIENCE_S)
        return recorder

    yield make
    for recorder in made:
        recorder.transport.close()


@pytest.fixture
def pump() -> Callable[..., None]:
    return pump_until


@pytest.fixture
def cut() -> Callable[[Recorder], None]:
    return sever
