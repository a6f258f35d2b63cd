"""Browsers: let in with the password alone, to read what is DistrEE's and to write nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import paho.mqtt.client as mqtt
import pytest

from broker_config.managed import WEBSOCKETS_USER, ManagedBroker, find_mosquitto
from distree.errors import BrokerError, ConfigError

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto")


@pytest.fixture
def broker() -> Iterator[ManagedBroker]:
    with ManagedBroker(engine="mosquitto", websockets_port=0) as broker:
        yield broker


def client(port: int, transport: str, user: str | None = None, password: str | None = None) -> mqtt.Client:
    made = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, transport=transport)  # type: ignore[arg-type]
    made.username_pw_set(user, password)
    made.user_data_set([])
    made.on_connect = lambda _client, heard, _flags, reason, _properties: heard.append(reason.is_failure)
    made.on_message = lambda _client, heard, message: heard.append((message.topic, message.payload))
    made.connect("127.0.0.1", port)
    return made


def turn(*clients: mqtt.Client, until: int) -> None:
    """Serve clients until the first has heard so much."""
    ends_at = time.monotonic() + 30
    while len(clients[0].user_data_get()) < until:
        assert time.monotonic() < ends_at
        for each in clients:
            each.loop(0.02)


def test_it_reads_what_is_distrees_and_writes_nothing(broker: ManagedBroker) -> None:
    assert broker.websockets_port
    page = client(broker.websockets_port, "websockets", WEBSOCKETS_USER, broker.websockets_password)
    board = client(broker.port, "tcp")
    turn(page, board, until=1)
    turn(board, page, until=1)
    assert page.user_data_get() == board.user_data_get() == [False]
    page.subscribe("#")
    board.subscribe("#")
    page.publish("distree/1/lab/pipeline/p/plan", b"of the page")
    for topic in ("other", "distree/1/lab/end"):
        for _ in range(20):  # the page's message has long reached the broker
            page.loop(0.01)
        board.publish(topic, b"of the board")
    turn(page, board, until=2)
    turn(board, page, until=3)
    assert page.user_data_get()[1:] == [("distree/1/lab/end", b"of the board")]
    assert [topic for topic, _ in board.user_data_get()[1:]] == ["other", "distree/1/lab/end"]


@pytest.mark.parametrize(("user", "password"), [(None, None), (WEBSOCKETS_USER, "wrong"), ("eva", "right")])
def test_nobody_else_is_let_in(broker: ManagedBroker, user: str | None, password: str | None) -> None:
    assert broker.websockets_port
    page = client(
        broker.websockets_port, "websockets", user, broker.websockets_password if password == "right" else password
    )
    turn(page, until=1)
    assert page.user_data_get() == [True]


def test_a_port_in_use_is_named(broker: ManagedBroker) -> None:
    with pytest.raises(BrokerError, match=f"port {broker.websockets_port} on this machine .*--websockets"):
        ManagedBroker(engine="mosquitto", websockets_port=broker.websockets_port).start()


def test_the_embedded_broker_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_config.managed.has_embedded", lambda: True)
    with pytest.raises(
        ConfigError, match="does not support persistence, users or websockets; run: apt install mosquitto"
    ):
        ManagedBroker(engine="embedded", websockets_port=0).start()
