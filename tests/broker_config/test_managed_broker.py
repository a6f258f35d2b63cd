"""A managed broker answers, says what it is, and never outlives whoever started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker_config import managed
from broker_config.managed import Engine, ManagedBroker, answers_mqtt, find_mosquitto, free_port
from distree.broker_settings import BrokerSettings, Session
from distree.errors import BrokerError, ConfigError, Problem
from distree.transport import make_transport
from distree.transport.base import Received

ROOT = Path(__file__).resolve().parents[2]


def wait_for(condition: Callable[[], Any], patience_s: float = 30.0) -> Any:
    until = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def lives(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_life(engine: Engine) -> None:
    with ManagedBroker(engine=engine) as broker:
        assert answers_mqtt(broker.host, broker.port)
        assert broker.running
        name = {"mosquitto": "mosquitto", "embedded": "iotcore"}[engine]
        assert broker.describe().startswith(f"{name} ")
        assert broker.describe().endswith(f" on 127.0.0.1:{broker.port}")
        assert "?" not in broker.describe()
        pid = broker.pid
    assert not lives(pid)
    assert not broker.running
    assert not answers_mqtt(broker.host, broker.port)
    broker.stop()


def test_listens_on_loopback_alone(engine: Engine) -> None:
    with ManagedBroker(engine=engine) as broker:
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        addresses = {
            fields[1].split(":")[0]
            for fields in map(str.split, listening.splitlines()[1:])
            if fields[3] == "0A" and fields[1].endswith(f":{broker.port:04X}")
        }
        assert addresses == {"0100007F"}


def test_ends_with_a_parent_that_is_killed(engine: Engine) -> None:
    program = (
        "from broker_config.managed import ManagedBroker; import time; "
        f"b = ManagedBroker(engine={engine!r}); b.start(); print(b.pid, b.port, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        assert answers_mqtt("127.0.0.1", port)
        parent.kill()
    wait_for(lambda: not lives(pid))


def test_a_port_in_use_is_named(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} .*--port"):
            ManagedBroker(port, engine).start()


def test_a_broker_that_dies_at_its_start_is_reported(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ManagedBroker, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit(7)"])
    broker = ManagedBroker(engine=engine)
    with pytest.raises(BrokerError, match="status 7"):
        broker.start()
    assert not broker.running


def test_a_variable_names_the_mosquitto(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "mosquitto"
    other.write_text("#!/bin/sh")
    monkeypatch.setenv("DISTREE_MOSQUITTO", str(other))
    assert find_mosquitto() is None  # it cannot be run
    other.chmod(0o755)
    assert find_mosquitto() == str(other)
    monkeypatch.setenv("DISTREE_MOSQUITTO", "")
    assert find_mosquitto() is None
    with pytest.raises(BrokerError, match="DISTREE_MOSQUITTO does not name a program"):
        ManagedBroker(engine="mosquitto").start()


@pytest.mark.any_broker
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTREE_MOSQUITTO", raising=False)
    monkeypatch.setattr(managed, "find_mosquitto", lambda: None)
    with pytest.raises(BrokerError, match="apt install mosquitto"):
        ManagedBroker(engine="mosquitto").start()
    monkeypatch.setattr(managed, "has_embedded", lambda: True)
    with pytest.raises(ConfigError, match="apt install mosquitto"):
        ManagedBroker(persistence=Path("kept")).start()
    monkeypatch.setattr(managed, "has_embedded", lambda: False)
    with pytest.raises(BrokerError, match=r"apt install mosquitto, or: pip install 'distree\[broker\]'"):
        ManagedBroker().start()


class Silent:
    def __init__(self) -> None:
        self.messages: list[Received] = []

    def connected(self) -> None: ...

    def disconnected(self, why: Problem) -> None: ...

    def published(self, token: str) -> None: ...

    def given_up(self, token: str) -> None:
        pass

    def no_subscribers(self, topic: str, payload: bytes) -> None:
        pass

    def received(self, message: Received) -> None:
        self.messages.append(message)


def session(broker: ManagedBroker, retain: bytes | None = None) -> list[bytes]:
    """Connect, retain a message if given, and return what is retained after a round trip."""
    ear = Silent()
    transport = make_transport(BrokerSettings(port=broker.port), client_id="keeper", session=Session.NONE)
    transport.open(ear, [("kept/#", 1)])
    transport.connect_now(20)
    if retain is not None:
        transport.publish("kept/1", retain, qos=1, retain=True)
    transport.publish("kept/end", b"end", qos=1)
    until = time.monotonic() + 20
    while not any(m.payload == b"end" for m in ear.messages) and time.monotonic() < until:
        transport.poll(0.05)
        for message in ear.messages:
            transport.acknowledge(message.token)
    transport.close()
    return [m.payload for m in ear.messages if m.topic == "kept/1"]


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_persistence_keeps_retained_messages(tmp_path: Path) -> None:
    directory = tmp_path / "broker"
    for retain in (b"here", None):
        with ManagedBroker(engine="mosquitto", persistence=directory) as broker:
            assert session(broker, retain) == [b"here"]
    with ManagedBroker(engine="mosquitto") as broker:
        assert session(broker) == []


def test_it_starts_again_on_its_port(engine: Engine) -> None:
    broker = ManagedBroker(free_port(), engine)
    with broker:
        os.kill(broker.pid, signal.SIGKILL)
        wait_for(lambda: not broker.running)
        broker.stop()
        broker.start()
        assert answers_mqtt(broker.host, broker.port)
