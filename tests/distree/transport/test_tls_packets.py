"""Packets over TLS, which come and go in records: whole, in order, and at once."""

from __future__ import annotations

import os
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from setup_broker import Certificates, Mosquitto

from distree.broker_settings import BrokerSettings, TlsSettings
from distree.transport import credentials, nagle
from distree.transport.credentials import tls_context

Make = Callable[..., Any]

RECORD = 1 << 14
SIZES = [0, 1, *(edge + by for edge in (RECORD, 4 * RECORD, 8 * RECORD) for by in (-40, -1, 0, 1, 40)), 1 << 20]
"""Payloads about as long as records, and as what is read ahead; the longest that is allowed."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def broker(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("broker"), *certificates.listener(), "max_queued_messages 0") as running:
        yield running


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def tls(request: pytest.FixtureRequest, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def of_one_version(tls: TlsSettings) -> ssl.SSLContext:
        context = tls_context(tls)
        context.maximum_version = ssl.TLSVersion[request.param]
        return context

    monkeypatch.setattr(credentials, "tls_context", of_one_version)
    return {"tls": TlsSettings(ca_file=certificates.ca)}


def test_messages_of_any_size_come_whole_and_in_order(
    request: pytest.FixtureRequest, broker: Mosquitto, client: Make, pump: Make, tls: dict[str, Any]
) -> None:
    a = client(broker.port, "tls-a", settings=tls)
    b = client(broker.port, "tls-b", [("tls/sizes", 1)], settings=tls)
    sent = [os.urandom(size) for size in (*SIZES, *reversed(SIZES))]
    for number, payload in enumerate(sent):
        a.transport.publish("tls/sizes", payload, qos=1, token=str(number))
    pump(lambda: len(b.messages) == len(a.tokens) == len(sent), a, b)
    assert b.payloads == sent
    assert a.events == b.events == ["connected"]
    assert b.transport._client.socket().version() == request.node.callspec.params["tls"].replace("_", ".")


def test_a_burst_of_small_messages_comes_whole_and_in_order(
    broker: Mosquitto, client: Make, pump: Make, tls: dict[str, Any]
) -> None:
    a = client(broker.port, "tls-c", settings=tls)
    b = client(broker.port, "tls-d", [("tls/burst", 1)], settings=tls)
    sent = [b"%d " % number * (number % 7) for number in range(3000)]
    for start in range(0, len(sent), 100):
        a.transport.cork()
        for payload in sent[start : start + 100]:
            a.transport.publish("tls/burst", payload, qos=1)
        a.transport.uncork()
    pump(lambda: len(b.messages) == len(sent), a, b)
    assert b.payloads == sent


def test_what_a_broker_does_not_take_yet_is_sent_again_and_is_whole(
    broker: Mosquitto, client: Make, pump: Make, tls: dict[str, Any]
) -> None:
    a = client(broker.port, "tls-e", settings=tls)
    b = client(broker.port, "tls-f", [("tls/stalled", 1)], settings=tls)
    sent = [b"%d:" % number + os.urandom(1_000_000 + number) for number in range(12)]
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        for payload in sent:
            a.transport.publish("tls/stalled", payload, qos=1)
            a.transport.poll(0.0)
        assert a.transport._client.backed_up()
        began = time.process_time()
        ends_at = time.monotonic() + 0.5
        while time.monotonic() < ends_at:
            a.transport.poll(0.1)
        assert time.process_time() - began < 0.25, "it waits, and does not try again and again"
    finally:
        os.kill(broker.pid, signal.SIGCONT)
    pump(lambda: len(b.messages) == len(sent), a, b)
    assert b.payloads == sent
    assert a.events == b.events == ["connected"]


def test_a_broker_that_holds_small_messages_back_is_not_made_to_wait(
    certificates: Certificates, client: Make, held_back: Make, tls: dict[str, Any], tmp_path: Any
) -> None:
    with Mosquitto(tmp_path, *certificates.listener(), nodelay=False) as broker:
        a = client(broker.port, "tls-g", [("na/own", 1)], settings=tls)

        def run() -> bool | None:
            return held_back(a, nagle.over_transport(a.transport, BrokerSettings(port=broker.port), "na/own", b"x"))

        # A busy machine can hide it, so that it is looked for again.
        assert any(run() for _ in range(3))
        assert run() is False
