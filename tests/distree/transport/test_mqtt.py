"""MqttTransport against real brokers: mosquitto (MQTT 5) and the embedded one (MQTT 3.1.1)."""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from broker_config.managed import ManagedBroker, free_port
from distree.broker_settings import BrokerSettings, Session
from distree.errors import BrokerError, ConfigError, LocalProtocolError
from distree.lanes import Lane
from distree.transport import TRANSPORTS, make_transport
from distree.transport.base import Received, Transport

Make = Callable[..., Any]


def test_it_is_a_transport() -> None:
    transport: Transport = make_transport(BrokerSettings(), client_id="a")
    assert not transport.online


def test_a_transport_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"^broker\.transport: unknown 'pigeon'; choose one of mqtt$"):
        make_transport(BrokerSettings(transport="pigeon"), client_id="a")


def test_another_transport_is_a_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, object]] = []
    module = ModuleType("another_transport")
    module.Other = lambda settings, **named: made.append({"settings": settings, **named}) or "made"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(TRANSPORTS, "other", "another_transport:Other")
    settings = BrokerSettings(transport="other")
    assert make_transport(settings, client_id="a") == "made"
    assert (made[0]["settings"], made[0]["client_id"]) == (settings, "a")


def test_round_trip(broker: ManagedBroker, client: Make, pump: Make) -> None:
    a = client(broker.port, "rt-a")
    b = client(broker.port, "rt-b", [("rt/+", 1)])
    assert a.transport.protocol == ("5" if broker.engine == "mosquitto" else "3.1.1")
    with a.transport.lock:
        a.transport.publish("rt/1", b"one", qos=1, content_type="text/plain", expiry_s=9.5, token="t")
        a.transport.publish("rt/2", b"", qos=0)
        a.transport.publish("rt/3", bytes(300_000), qos=1)
    pump(lambda: len(b.messages) == 3 and a.tokens == ["t"], a, b)
    found = {message.topic: message for message in b.messages}
    assert found["rt/1"].payload == b"one"
    if broker.engine == "mosquitto":  # the embedded broker delivers at the subscription's QoS
        assert found["rt/2"].token is None
    assert len(found["rt/3"].payload) == 300_000
    assert b.events == ["connected"]


def test_retained(broker: ManagedBroker, client: Make, pump: Make) -> None:
    a = client(broker.port, "re-a")
    a.transport.publish("re/1", b"kept", qos=1, retain=True, token="t")
    pump(lambda: a.tokens, a)
    b = client(broker.port, "re-b", [("re/#", 1)])
    pump(lambda: b.messages, b)
    assert [(m.payload, m.retain) for m in b.messages] == [(b"kept", True)]


def test_will_of_a_client_that_dies_and_none_of_one_that_closes(
    broker: ManagedBroker, client: Make, pump: Make, cut: Make
) -> None:
    watcher = client(broker.port, "wi-w", [("wi/#", 1)])
    leaving = client(broker.port, "wi-l", will=("wi/l", b"lost"))
    dying = client(broker.port, "wi-d", will=("wi/d", b"lost"))
    leaving.transport.close()
    cut(dying)
    pump(lambda: watcher.messages, watcher)
    late = client(broker.port, "wi-late", [("wi/#", 1)])
    pump(lambda: late.messages, watcher, late)
    assert {m.topic for m in watcher.messages + late.messages} == {"wi/d"}
    assert late.messages[0].retain


def test_many_subscriptions_are_added_while_messages_go_on(
    broker: ManagedBroker, client: Make, pump: Make, cut: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distree.transport.mqtt._HOUSEKEEPING_S", 1e9)  # an answer is followed up at once
    names = [f"su/state/{index}" for index in range(100)]
    b = client(broker.port, "su-b")
    for name in names:
        b.transport.publish(name, b"here", qos=1, retain=True)
    a = client(broker.port, "su-a", [("su/own", 1)])
    for index, name in enumerate(names):
        a.transport.subscribe([(name, 1)])
        a.transport.publish("su/own", b"%d" % index, qos=1)
    pump(lambda: len(a.messages) == 200, a, b)
    assert sorted(m.topic for m in a.messages if m.retain) == sorted(names)
    assert [m.payload for m in a.messages if not m.retain] == [b"%d" % index for index in range(100)]
    a.transport.subscribe([(name, 1) for name in names])
    b.transport.publish(names[0], b"news", qos=1)
    pump(lambda: len(a.messages) == 201, a, b)
    assert not a.messages[-1].retain, "what is subscribed to is not asked for again"
    cut(a)
    pump(lambda: a.events == ["connected", "disconnected", "connected"], a)
    a.transport.publish("su/own", b"again", qos=1)
    for name in names:
        b.transport.publish(name, b"gone", qos=1, retain=True)
    pump(lambda: {m.topic for m in a.messages if m.payload == b"gone"} == {*names} and b"again" in a.payloads, a, b)
    assert a.events.count("connected") == 2
    assert not a.transport.notices
    for name in names:
        b.transport.publish(name, b"", qos=1, retain=True)
    pump(lambda: b.transport.idle, b)


def test_what_is_subscribed_to_offline_is_asked_for_later(broker: ManagedBroker, client: Make, pump: Make) -> None:
    a = client(broker.port, "sl-a", online=False)
    a.transport.subscribe([("sl/1", 1), ("sl/2", 1)])
    a.transport.unsubscribe(["sl/1"])
    a.transport.connect_now(30)
    b = client(broker.port, "sl-b")
    a.transport.subscribe([("sl/3", 1)])  # it is answered after those before it

    def heard() -> bool:
        for topic in ("sl/1", "sl/3", "sl/2"):
            b.transport.publish(topic, b"x", qos=1)
        return {m.topic for m in a.messages} >= {"sl/2", "sl/3"}

    pump(heard, a, b)
    assert {m.topic for m in a.messages} == {"sl/2", "sl/3"}


@pytest.mark.usefixtures("mosquitto_only")
def test_who_publishes_work_that_nobody_reads_is_told_by_mosquitto(client: Make, pump: Make) -> None:
    with ManagedBroker(engine="mosquitto") as running:
        a = client(running.port, "un-a")
        client(running.port, "un-b", [("un/read", 1)])
        a.transport.publish("un/read", b"1", qos=1, token="read")
        a.transport.publish("un/none", b"2", qos=1, token="owed", lane=Lane.OWED)
        a.transport.publish("un/none", b"3", qos=1, token="unread")
        assert not a.unread_messages, "out of poll alone"
        pump(lambda: len(a.tokens) == 3, a)
        assert a.unread_messages == [("un/none", b"3")]
        assert a.tokens == ["read", "owed", "unread"]
        assert a.transport.last_error is None


@pytest.mark.usefixtures("mosquitto_only")
def test_a_board_that_is_gone_reads_for_as_long_as_its_session_is_kept(
    client: Make, pump: Make, cut: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distree.transport.dialling.RESUME_S", 2)
    with ManagedBroker(engine="mosquitto") as running:
        a = client(running.port, "go-a")
        b = client(running.port, "go-b", [("go/1", 1)])
        cut(b)
        a.transport.publish("go/1", b"kept", qos=1, token="t")
        pump(lambda: a.tokens == ["t"], a)
        assert not a.unread_messages, "it may come back"

        def told() -> bool:
            if a.transport.idle:
                a.transport.publish("go/1", b"lost", qos=1)
            return bool(a.unread_messages)

        pump(told, a)
        assert a.unread_messages[0] == ("go/1", b"lost")


def test_since_when_the_broker_owes_an_acknowledgement(client: Make, pump: Make) -> None:
    scripted = ScriptedBroker([ACCEPT] * 2)
    a = client(scripted.port, "ow-a", online=False)
    a.transport.publish("ow", b"early", qos=1)
    assert a.transport.unacknowledged_since() == -math.inf
    pump(lambda: a.transport.online, a)
    pump(lambda: scripted.published[0], a)
    first = a.transport.unacknowledged_since()
    assert time.monotonic() - 20 < first < time.monotonic()
    a.transport.publish("ow", b"unowed", qos=0)
    a.transport.publish("ow", b"late", qos=1)
    assert a.transport.unacknowledged_since() == first
    scripted.send(b"\x40\x02\x00\x01")
    pump(lambda: a.transport.unacknowledged_since() > first, a)
    assert a.transport.unacknowledged_since() < time.monotonic()
    scripted.send(b"\x40\x02\x00\x02")
    pump(lambda: a.transport.unacknowledged_since() == math.inf, a)
    scripted.hang_up()
    pump(lambda: a.transport.unacknowledged_since() == -math.inf, a)
    a.transport.close()
    scripted.close()


def test_unacknowledged_messages_come_again_and_stale_tokens_do_nothing(
    broker: ManagedBroker, client: Make, pump: Make, cut: Make
) -> None:
    a = client(broker.port, "ma-a", [("ma/1", 1)], acknowledge=False, session=Session.DURABLE)
    for payload in (b"1", b"2", b"3"):
        a.transport.publish("ma/1", payload, qos=1)
    pump(lambda: len(a.messages) == 3, a)
    a.transport.acknowledge(a.messages[0].token)
    cut(a)
    pump(lambda: len(a.messages) == 5, a)
    assert a.payloads[3:] == [b"2", b"3"]
    assert a.events == ["connected", "disconnected", "connected"]
    for message in a.messages[:3]:
        a.transport.acknowledge(message.token)  # of the connection before
    cut(a)
    pump(lambda: len(a.messages) == 7, a)
    assert a.payloads[5:] == [b"2", b"3"]


def test_acknowledgements_go_out_in_order(broker: ManagedBroker, client: Make, pump: Make, cut: Make) -> None:
    """The embedded broker ends the connection of a client that acknowledges out of order."""
    a = client(broker.port, "or-a", [("or/1", 1)], acknowledge=False, session=Session.DURABLE)
    for payload in (b"1", b"2", b"3"):
        a.transport.publish("or/1", payload, qos=1)
    pump(lambda: len(a.messages) == 3, a)
    for message in reversed(a.messages):
        a.transport.acknowledge(message.token)
        a.transport.acknowledge(message.token)  # twice is harmless
    a.transport.publish("or/1", b"4", qos=1)
    pump(lambda: len(a.messages) == 4, a)
    assert a.events == ["connected"]
    cut(a)
    pump(lambda: len(a.messages) == 5, a)
    assert a.payloads[4] == b"4"


def test_a_killed_broker_comes_back_and_everything_goes_on(engine: str, client: Make, pump: Make) -> None:
    with ManagedBroker(engine=engine) as first:
        a = client(first.port, "kb-a")
        b = client(first.port, "kb-b", [("kb/#", 1)])
        os.kill(first.pid, signal.SIGKILL)
        pump(lambda: not a.transport.online and not b.transport.online, a, b)
    sent = [b"%d" % index for index in range(200)]
    for payload in sent:
        a.transport.publish("kb/1", payload, qos=1, token=payload.decode())
    with ManagedBroker(port=first.port, engine=engine):
        # The subscriber first, or its messages would have nobody to wait for.
        pump(lambda: b.transport.online, b)
        pump(lambda: len(b.messages) >= 200 and len(a.tokens) >= 200, a, b)
        assert b.payloads == sent
        assert a.tokens == [payload.decode() for payload in sent]
        assert a.events == b.events == ["connected", "disconnected", "connected"]
        a.transport.close()
        b.transport.close()


def test_nothing_listens_there(client: Make) -> None:
    port = free_port()
    a = client(port, "un-a", online=False)
    with pytest.raises(BrokerError, match=f"nothing listens on 127.0.0.1:{port}"):
        a.transport.connect_now(0.5)
    assert not a.transport.online


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_what_waiting_cannot_mend_is_said_at_once(client: Make, host: str) -> None:
    a = client(free_port(), "fast-a", online=False, settings={"host": host})
    begun = time.monotonic()
    with pytest.raises(BrokerError, match=host):
        a.transport.connect_now(300)
    assert time.monotonic() - begun < 100


def test_a_name_without_an_address(client: Make) -> None:
    a = client(1883, "dn-a", online=False, settings={"host": "no-such-host.invalid"})
    with pytest.raises(BrokerError, match=r"no-such-host\.invalid"):
        a.transport.connect_now(1)


def test_poll_returns_in_time_while_a_connection_hangs(client: Make) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)
        a = client(deaf.getsockname()[1], "de-a", online=False, settings={"connect_timeout_s": 0.3})
        longest = 0.0
        until = time.monotonic() + 20
        while a.transport.last_error is None and time.monotonic() < until:
            start = time.monotonic()
            a.transport.poll(0.02)
            longest = max(longest, time.monotonic() - start)
        assert "check that it is an MQTT broker" in str(a.transport.last_error)
        assert longest < 5


@pytest.mark.usefixtures("mosquitto_only")
def test_login(client: Make, tmp_path: Path) -> None:
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed")
    users, good, bad = tmp_path / "users", tmp_path / "good", tmp_path / "bad"
    subprocess.run([tool, "-b", "-c", str(users), "ann", "secret"], check=True)
    good.write_text("secret\n")
    bad.write_text("wrong\n")
    with ManagedBroker(engine="mosquitto", password_file=users) as guarded:
        login = {"username": "ann", "password_file": str(good)}
        assert client(guarded.port, "lo-a", settings=login).transport.online
        a = client(guarded.port, "lo-b", online=False, settings={**login, "password_file": str(bad)})
        with pytest.raises(BrokerError, match=r"refuses user 'ann' .*password_file"):
            a.transport.connect_now(20)
        a = client(guarded.port, "lo-c", online=False)
        with pytest.raises(BrokerError, match="requires a login"):
            a.transport.connect_now(20)


def test_password_file_that_cannot_be_used(tmp_path: Path, client: Make) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "latin").write_bytes("Gr\u00fc\u00dfe".encode("latin-1"))
    for name, remedy in (
        ("none", "no such file or directory; correct the path, or write the password into its first line"),
        ("empty", "the first line is empty; write the password there"),
        ("latin", "as UTF-8"),
        (".", "check the path and its permissions"),
    ):
        path = tmp_path / name
        settings = {"username": "ann", "password_file": str(path)}
        with pytest.raises(ConfigError, match=f"{path}.*{remedy}"):
            client(1883, "pf", online=False, settings=settings)


@pytest.mark.usefixtures("mosquitto_only")
def test_two_clients_of_one_id_are_told_so(client: Make, pump: Make) -> None:
    with ManagedBroker(engine="mosquitto") as running:
        twins = [client(running.port, "twin"), client(running.port, "twin")]
        pump(lambda: all("the id 'twin'" in str(t.transport.last_error) for t in twins), *twins)


def test_too_large_is_refused_here_and_the_connection_stays(broker: ManagedBroker, client: Make, pump: Make) -> None:
    a = client(broker.port, "la-a", [("la/1", 1)])
    with pytest.raises(LocalProtocolError, match="size"):
        a.transport.publish("la/1", bytes(3 << 20), qos=1)
    a.transport.publish("la/1", bytes(1_000_000), qos=1)
    pump(lambda: a.messages, a)
    assert len(a.payloads[0]) == 1_000_000
    assert a.events == ["connected"]


def test_offline_queue_is_bounded_in_items_and_bytes(client: Make) -> None:
    a = client(free_port(), "ob-a", online=False, offline_items=10, offline_bytes=1000).transport
    for _ in range(15):
        a.publish("t", b"x", qos=1)
    assert a.offline_dropped == 5
    a.publish("t", bytes(995), qos=1)
    assert a.offline_dropped == 5 + 8
    a.publish("t", b"x", qos=0)
    assert a.offline_dropped == 5 + 8 + 1


def test_what_expires_offline_is_dropped_and_counted(broker: ManagedBroker, client: Make, pump: Make) -> None:
    a = client(broker.port, "ex-a", [("ex/1", 1)], online=False)
    a.transport.publish("ex/1", b"stale", qos=1, expiry_s=0.0)
    a.transport.publish("ex/1", b"fresh", qos=1, expiry_s=60.0)
    pump(lambda: a.messages, a)
    assert a.payloads == [b"fresh"]
    assert a.transport.offline_dropped == 1


def test_an_exception_of_the_listener_comes_out_of_poll_and_harms_nothing(
    broker: ManagedBroker, client: Make, pump: Make
) -> None:
    a = client(broker.port, "li-a", [("li/1", 1)])
    heard = a.received

    def received(message: Received) -> None:
        heard(message)
        if message.payload == b"2":
            raise ArithmeticError("of the listener")

    a.received = received
    for payload in (b"1", b"2", b"3"):
        a.transport.publish("li/1", payload, qos=1, token=payload.decode())
    with pytest.raises(ArithmeticError):
        pump(lambda: len(a.messages) == 3, a)
    pump(lambda: len(a.messages) == 3 and len(a.tokens) == 3, a)
    assert a.payloads == [b"1", b"2", b"3"]
    assert a.events == ["connected"]


def test_wake_ends_a_wait(broker: ManagedBroker, client: Make) -> None:
    a = client(broker.port, "wa-a")
    took_s = []
    for _ in range(5):  # a busy machine may be late for some
        timer = threading.Timer(0.05, a.transport.wake)
        timer.start()
        start = time.monotonic()
        a.transport.poll(0.9)
        took_s.append(time.monotonic() - start)
        timer.join()
    assert min(took_s) < 0.8


def test_threads_publish_while_another_polls(broker: ManagedBroker, client: Make, pump: Make) -> None:
    a = client(broker.port, "th-a")
    b = client(broker.port, "th-b", [("th/#", 1)])

    def send(name: str) -> None:
        for index in range(300):
            with a.transport.lock:
                a.transport.publish(f"th/{name}", b"%d" % index, qos=1)

    threads = [threading.Thread(target=send, args=(name,), name=f"send-{name}") for name in "xy"]
    for thread in threads:
        thread.start()
    pump(lambda: len(b.messages) == 600, a, b)
    for thread in threads:
        thread.join()
    for name in "xy":
        assert [m.payload for m in b.messages if m.topic == f"th/{name}"] == [b"%d" % n for n in range(300)]
    assert a.transport.offline_dropped == 0


def test_close_sends_what_waits(broker: ManagedBroker, client: Make, pump: Make) -> None:
    b = client(broker.port, "cl-b", [("cl/1", 1)])
    a = client(broker.port, "cl-a")
    for index in range(200):
        a.transport.publish("cl/1", b"%d" % index, qos=1)
    a.transport.close()
    a.transport.close()
    a.transport.poll(0)
    a.transport.wake()
    pump(lambda: len(b.messages) == 200, b)
    assert a.transport.offline_dropped == 0


class ScriptedBroker:
    """Answers CONNECT as it is told and records PUBLISH packets, without acknowledging them."""

    def __init__(self, connacks: list[bytes], suback: bytes = b"") -> None:
        self.connacks = connacks
        self.suback = suback
        self.levels: list[int] = []
        self.published: list[list[bytes]] = []
        self.subscribed: list[bytes] = []
        self.unsubscribed: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="scripted-broker", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            while True:
                self._connection, _ = self._server.accept()
                self._talk(self._connection)
        except OSError:
            return

    def _talk(self, connection: socket.socket) -> None:
        published: list[bytes] = []
        with connection, connection.makefile("rb") as stream:
            while header := stream.read(1):
                length = stream.read(1)[0]
                assert length < 0x80
                body = stream.read(length)
                if header[0] >> 4 == 1:
                    self.levels.append(body[6])
                    self.published.append(published)
                    answer = self.connacks.pop(0)
                    connection.sendall(answer)
                    if answer[3]:
                        return
                elif header[0] >> 4 == 8:
                    self.subscribed.append(body)
                    answer = body[:2] + b"\x00" + self.suback
                    if self.suback:
                        connection.sendall(b"\x90" + bytes((len(answer),)) + answer)
                elif header[0] >> 4 == 10:
                    self.unsubscribed.append(body)
                elif header[0] >> 4 == 3:
                    published.append(body)

    def send(self, packet: bytes) -> None:
        assert self._connection is not None
        self._connection.sendall(packet)

    def hang_up(self) -> None:
        assert self._connection is not None
        self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


def test_a_broker_that_knows_no_mqtt_5_is_spoken_to_in_3_1_1(client: Make) -> None:
    scripted = ScriptedBroker([b"\x20\x02\x00\x01", b"\x20\x02\x00\x00"])
    a = client(scripted.port, "fb-a")
    assert scripted.levels == [5, 4]
    assert a.transport.protocol == "3.1.1"
    a.transport.close()
    scripted.close()


ACCEPT = b"\x20\x03\x00\x00\x00"


def test_a_refused_subscription_names_the_topic(client: Make) -> None:
    scripted = ScriptedBroker([ACCEPT] * 9, suback=b"\x01\x87")
    a = client(scripted.port, "rs-a", [("open/1", 1), ("shut/1", 1)], online=False)
    with pytest.raises(BrokerError, match=r"subscription to shut/1 .*ACL"):
        a.transport.connect_now(20)
    assert not a.transport.online
    a.transport.close()
    scripted.close()


def test_a_refused_subscription_that_was_added_is_done_without_and_said_once(client: Make, pump: Make) -> None:
    scripted = ScriptedBroker([ACCEPT] * 2, suback=b"\x87")
    a = client(scripted.port, "ra-a")
    a.transport.subscribe([("shut/1", 1)])
    pump(lambda: a.transport.notices, a)
    assert "refuses the subscription to shut/1 (Not authorized)" in str(a.transport.notices[0])
    scripted.hang_up()
    pump(lambda: a.events.count("connected") == 2 and len(scripted.subscribed) == 2, a)
    for _ in range(10):
        a.transport.poll(0.01)
    assert a.transport.online
    assert len(a.transport.notices) == 1
    a.transport.close()
    scripted.close()


def test_nothing_is_asked_for_while_a_message_goes_alone_to_see_who_is_hung_up_on(client: Make, pump: Make) -> None:
    scripted = ScriptedBroker([ACCEPT], suback=b"\x01")
    a = client(scripted.port, "al-a")
    a.transport._send_window.alone = True
    a.transport.subscribe([("later", 1)])
    a.transport.publish("al", b"x", qos=0)  # acknowledged for once, and sent when the other is
    for _ in range(10):
        a.transport.poll(0.05)
    assert not scripted.subscribed
    a.transport._send_window.alone = False
    pump(lambda: scripted.subscribed, a)
    a.transport.close()
    scripted.close()


def test_a_subscription_that_waits_for_the_one_before_it_can_be_forgotten(client: Make, pump: Make) -> None:
    scripted = ScriptedBroker([ACCEPT], suback=b"")
    a = client(scripted.port, "fo-a")
    a.transport.subscribe([("one", 1)])
    pump(lambda: len(scripted.subscribed) == 1, a)
    a.transport.subscribe([(f"more/{index}", 1) for index in range(9)])
    a.transport.unsubscribe([f"more/{index}" for index in range(8)])
    assert len(scripted.subscribed) == 1, "one after the other is answered"
    scripted.suback = b"\x01"
    scripted.send(b"\x90\x04\x00\x01\x00\x01")
    pump(lambda: len(scripted.subscribed) == 2, a)
    assert b"more/8" in scripted.subscribed[1]
    assert b"more/0" not in scripted.subscribed[1]
    assert not scripted.unsubscribed
    a.transport.unsubscribe(["one"])
    pump(lambda: scripted.unsubscribed, a)
    a.transport.close()
    scripted.close()


def test_a_takeover_that_the_broker_announces_names_the_id(client: Make, pump: Make) -> None:
    scripted = ScriptedBroker([ACCEPT] * 9)
    a = client(scripted.port, "to-a")
    scripted.send(b"\xe0\x05\x8e\x03\x1f\x00\x00")
    pump(lambda: a.transport.last_error is not None, a)
    assert "another client is using the id 'to-a'" in str(a.transport.last_error)
    a.transport.close()
    scripted.close()


def test_a_refused_publish_is_settled_and_said(client: Make, pump: Make) -> None:
    scripted = ScriptedBroker([ACCEPT])
    a = client(scripted.port, "rp-a")
    a.transport.publish("shut/1", b"x", qos=1, token="t")
    scripted.send(b"\x40\x03\x00\x01\x87")
    pump(lambda: a.transport.last_error is not None, a)
    assert "refuses publishes on shut/1" in str(a.transport.last_error)
    assert a.tokens == ["t"]
    a.transport.close()
    scripted.close()


def test_a_smaller_receive_maximum_after_a_reconnect_is_heeded(client: Make, pump: Make) -> None:
    def accept(receive_maximum: int) -> bytes:
        return b"\x20\x06\x00\x00\x03\x21" + receive_maximum.to_bytes(2, "big")

    scripted = ScriptedBroker([accept(5), accept(2)])
    a = client(scripted.port, "rm-a")
    for index in range(8):
        a.transport.publish("rm", b"%d" % index, qos=1)
    pump(lambda: len(scripted.published[0]) == 5, a)
    scripted.hang_up()
    pump(lambda: len(scripted.published) == 2 and len(scripted.published[1]) == 2, a)
    for _ in range(10):
        a.transport.poll(0.01)
    assert [packet[-1:] for packet in scripted.published[1]] == [b"0", b"1"]
    scripted.hang_up()
    a.transport.close()
    scripted.close()


def test_a_newer_paho_without_the_replaced_handlers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distree.transport.lean_client._REPLACED", ("_handle_gone",))
    with pytest.raises(BrokerError, match="pip install"):
        make_transport(BrokerSettings(), client_id="a")
