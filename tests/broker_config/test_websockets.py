"""Browsers: let in with the password alone, to read what dashboards show and to write nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from broker_config.access.dynamic_security import find_plugin
from broker_config.managed import WEBSOCKETS_USER, ManagedBroker, find_mosquitto, free_port
from broker_config.site import control
from broker_config.site.broker import SiteBroker
from broker_config.site.config import SiteConfig, UserConfig
from broker_config.site.folder import SiteFolder
from distree.errors import BrokerError, ConfigError

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto")


@pytest.fixture
def broker() -> Iterator[ManagedBroker]:
    with ManagedBroker(engine="mosquitto", websockets_port=0) as broker:
        yield broker


def client(
    port: int, transport: str, user: str | None = None, password: str | None = None, ca_file: Path | None = None
) -> mqtt.Client:
    made = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, transport=transport)  # type: ignore[arg-type]
    made.username_pw_set(user, password)
    if ca_file is not None:
        made.tls_set(str(ca_file))
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


def test_it_reads_what_dashboards_show_and_writes_nothing(broker: ManagedBroker) -> None:
    assert broker.websockets_port
    page = client(broker.websockets_port, "websockets", WEBSOCKETS_USER, broker.websockets_password)
    board = client(broker.port, "tcp")
    turn(page, board, until=1)
    turn(board, page, until=1)
    assert page.user_data_get() == board.user_data_get() == [False]
    page.subscribe("#")
    board.subscribe("#")
    page.publish("distree/1/lab/pipeline/p/plan", b"of the page")
    for topic in ("other", "distree/1/lab/pipeline/p/audit/cam", "distree/1/lab/site-event"):
        for _ in range(20):  # the page's message has long reached the broker
            page.loop(0.01)
        board.publish(topic, b"of the board")
    turn(page, board, until=2)
    turn(board, page, until=4)
    assert page.user_data_get()[1:] == [("distree/1/lab/site-event", b"of the board")]
    assert [topic for topic, _ in board.user_data_get()[1:]] == [
        "other", "distree/1/lab/pipeline/p/audit/cam", "distree/1/lab/site-event",
    ]  # fmt: skip


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


@pytest.mark.parametrize("login", ["passwords", "certificates"])
@pytest.mark.parametrize("access", ["dynamic-security", "files"])
def test_the_dashboard_of_a_site(tmp_path: Path, login: str, access: str) -> None:
    """It asks for all sites, as the page does, by TLS and with a password, whatever others log in with."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    if access == "dynamic-security" and find_plugin() is None:
        pytest.skip("mosquitto's dynamic security plugin is not installed")
    users = (
        UserConfig(name="dashboard", roles=("dashboard",)),
        UserConfig(name="orchestrator", roles=("orchestrator",)),
    )
    config = SiteConfig(
        site="lab", host="127.0.0.1", port=free_port(), login=login, tls=True, access=access,  # type: ignore[arg-type]
        websockets=free_port(), users=users,
    )  # fmt: skip
    folder = SiteFolder(tmp_path / "broker")
    folder.create(config)
    own = folder.user_folder("dashboard")
    with SiteBroker(folder.path, listen_on="127.0.0.1"):
        assert config.websockets
        password = (own / "dashboard.secret").read_text().strip()
        for given, is_refused in (("wrong", True), (password, False)):
            page = client(config.websockets, "websockets", "dashboard", given, own / "ca.crt")
            turn(page, until=1)
            assert page.user_data_get() == [is_refused]
        page.subscribe("distree/1/+/site-event")
        page.subscribe("distree/1/+/pipeline/+/audit/+")
        orchestrator = control.log_in(
            control.settings_of(config, folder.user_folder("orchestrator"), "orchestrator"), "o", time.monotonic() + 20
        )
        for _ in range(20):  # the page's subscriptions have long reached the broker
            page.loop(0.01)
        orchestrator.publish("distree/1/lab/site-event", b"an event", qos=1, until=time.monotonic() + 20)
        turn(page, until=2)
        assert page.user_data_get()[1:] == [("distree/1/lab/site-event", b"an event")]
        orchestrator.close()
