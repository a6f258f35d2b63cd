"""A broker that holds back small messages is told from one that is far away, or busy."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from benchmarks.chaos.broker import RawBroker
from distree.broker_settings import BrokerSettings
from distree.transport import nagle
from distree.transport.nagle import ROUNDS, NagleTest
from distree.transport.probe import ProbeClient

Make = Callable[..., Any]


def verdict(rounds: Iterable[tuple[float, float]]) -> tuple[bool | None, int, int]:
    """Run a test whose echoes come (after the sending, after one another); return what it says, sends and tells."""
    pairs, told = 0, 0

    def send_pair() -> None:
        nonlocal pairs
        pairs += 1

    def tell() -> None:
        nonlocal told
        told += 1

    test, now = NagleTest(send_pair, tell), 100.0
    test.start(now)
    for first, gap in rounds:
        now += first
        test.heard(now)
        now += gap
        test.heard(now)
    return test.holds_back, pairs, told


@pytest.mark.parametrize(
    ("rounds", "holds_back"),
    [
        ([(0.001, 0.043)] * ROUNDS, True),
        ([(0.001, 0.0)] * ROUNDS, False),
        ([(0.040, 0.0)] * ROUNDS, False),  # a long line
        ([(0.040, 0.083)] * ROUNDS, True),  # a long line, and a broker that waits for an acknowledgement over it
        ([(0.001, 0.083)] * ROUNDS, False),  # late for some other reason
        ([(0.001, 0.2)] * ROUNDS, False),
        ([(0.001, 0.010)] * ROUNDS, False),
        ([(0.001, 0.043)] * 5 + [(0.001, 0.0)] * (ROUNDS - 5), True),  # other traffic hides it
        ([(0.001, 0.043)] * 4 + [(0.001, 0.0)] * (ROUNDS - 4), False),  # a busy machine
        ([(0.001, 0.043)] * (ROUNDS - 1), None),  # an echo was lost
    ],
)
def test_what_the_gaps_between_echoes_say(rounds: list[tuple[float, float]], holds_back: bool | None) -> None:
    assert verdict(rounds) == (holds_back, ROUNDS, int(bool(holds_back)))


def test_it_is_said_once_and_no_more_is_sent() -> None:
    assert verdict([(0.001, 0.043)] * (3 * ROUNDS)) == (True, ROUNDS, 1)


@pytest.mark.usefixtures("mosquitto_only")
@pytest.mark.parametrize(("options", "notices"), [((), 1), (("set_tcp_nodelay true",), 0)])
def test_mosquitto_with_and_without_tcp_nodelay(
    client: Make, held_back: Make, options: tuple[str, ...], notices: int
) -> None:
    with RawBroker(*options) as broker:
        a = client(broker.port, "na-a", [("na/own", 1)])
        # A busy machine can hide it, so that it is looked for again.
        for _ in itertools.repeat(None, 3):
            if held_back(a, nagle.over_transport(a.transport, BrokerSettings(port=broker.port), "na/own", b"x")):
                break
        assert [f"127.0.0.1:{broker.port} delays small messages" in line.what for line in a.transport.notices] == [
            True
        ] * notices
        assert all("add set_tcp_nodelay true to mosquitto.conf" in line.remedy for line in a.transport.notices)
        if notices:
            # From then on this end does not let the broker wait, here as on later connections.
            again = nagle.over_transport(a.transport, BrokerSettings(port=broker.port), "na/own", b"x")
            assert held_back(a, again) is False
        with socket.create_connection(("127.0.0.1", broker.port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            probe, until = ProbeClient(sock), time.monotonic() + 30
            probe.connect("na-b", None, None, until)
            found = [nagle.over_probe(probe, "na/probe", b"x", until) for _ in range(3)]
            assert any(found) == bool(notices)
            assert nagle.over_probe(probe, "$SYS/na", b"x", time.monotonic() + 0.5) is None, "no echo, no verdict"
