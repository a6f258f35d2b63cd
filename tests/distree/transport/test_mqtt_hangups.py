"""MqttTransport behind a proxy that hangs up, before a real mosquitto: the rest goes on, and one line says what does not."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from benchmarks.chaos.broker import RawBroker
from benchmarks.chaos.packets import CONNECT, Packet
from benchmarks.chaos.proxy import REFUSED_PROTOCOL, Proxy, hangs_up_if
from broker_config.managed import ManagedBroker, find_mosquitto
from distree.broker_settings import Session
from distree.errors import LocalProtocolError
from distree.lanes import Lane

Make = Callable[..., Any]

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

TRIAL = b"of no meaning"


def old_and_small(packet: Packet) -> bytes | None:
    if packet.kind == CONNECT and packet.level == 5:
        return REFUSED_PROTOCOL
    return b"" if packet.size > 1500 else None


RULES: dict[str, tuple[Callable[[Packet], bytes | None], str, set[str]]] = {
    "MQTT 5, and large packets": (old_and_small, "hangs up on messages of 1,8", {"large"}),
    "a topic": (hangs_up_if(lambda p: p.topic == "h/large"), "on publishes on h/large", {"large"}),
    "a small topic": (hangs_up_if(lambda p: p.topic == "h/3"), "on publishes on h/3", {"3"}),
    "a topic at QoS 0": (
        hangs_up_if(lambda p: p.topic == "h/telemetry"),
        "on publishes on h/telemetry",
        {"telemetry"},
    ),
    "a will": (hangs_up_if(lambda p: p.has_will), "login with a will", set()),
    "more than 8 filters": (hangs_up_if(lambda p: len(p.filters) > 8), "", set()),
    "a filter": (
        hangs_up_if(lambda p: "own/4" in p.filters),
        "hangs up on the subscription to own/4",
        set(),
    ),
    "retained messages": (hangs_up_if(lambda p: p.retain), "hangs up on retained messages", set()),
    "QoS 1": (hangs_up_if(lambda p: p.qos == 1), "hangs up on publishes at QoS 1", set()),
}


@pytest.mark.parametrize("name", RULES)
def test_a_hang_up_costs_what_it_is_about_and_is_said_once(client: Make, pump: Make, name: str) -> None:
    rule, line, lost = RULES[name]
    with ManagedBroker(engine="mosquitto") as broker, closing(Proxy(broker.port, rule)) as proxy:
        reader = client(broker.port, "reader", [("h/#", 1)])
        a = client(
            proxy.port,
            "agent",
            [(f"own/{index}", 1) for index in range(20)],
            online=False,
            will=("h/will", b"lost"),
            trial_payload=TRIAL,
        )
        transport, sent, due = a.transport, 0, 0.0
        expected = {"state", "large", "telemetry", *(str(index) for index in range(40))} - lost

        def heard() -> set[str]:
            return {topic.removeprefix("h/") for m in reader.messages if m.payload != TRIAL for topic in [m.topic]}

        notices: list[str] = []

        def go_on() -> bool:
            nonlocal sent, due
            with transport.lock:
                if not sent:
                    transport.publish("h/state", b"ready", qos=1, retain=True, token="state", lane=Lane.LATEST)
                    transport.publish("h/large", bytes(1850), qos=1, token="large", lane=Lane.WORK)
                if sent < 40:
                    transport.publish(f"h/{sent}", bytes(300), qos=1, token=str(sent), lane=Lane.OWED)
                    sent += 1
                if transport.online and time.monotonic() > due:
                    due = time.monotonic() + 0.2
                    try:
                        transport.publish("h/telemetry", bytes(700), qos=0)
                    except LocalProtocolError:
                        assert "telemetry" in lost
            while transport.notices:
                notices.append(str(transport.notices.popleft()))
            told = len(a.tokens) + len(a.given_up_tokens) == 42
            return (
                sent == 40
                and told
                and transport.online
                and expected <= heard()
                and (not line or any(line in one for one in notices))
            )

        pump(go_on, a, reader, patience_s=60.0)
        assert sorted({*a.given_up_tokens}) == sorted(lost - {"telemetry"})
        assert sum(line in one for one in notices) == bool(line), notices
        # Of a broker that hangs up on QoS 1, the first thing seen is that it hangs up on a topic.
        assert len(notices) <= (2 if name == "QoS 1" else 1)
        # It is quiet from here on.
        connections = a.events.count("connected")
        for _ in range(20):
            pump(lambda: True, a)
            with transport.lock:
                transport.publish("h/more", b"x", qos=1)
        pump(lambda: transport.idle, a)
        assert a.events.count("connected") == connections


def test_an_added_filter_that_is_hung_up_on_is_done_without_and_no_message_is_blamed(client: Make, pump: Make) -> None:
    rule = hangs_up_if(lambda p: any(name in ("m/3", "m/14") for name in p.filters))
    with ManagedBroker(engine="mosquitto") as broker, closing(Proxy(broker.port, rule)) as proxy:
        reader = client(broker.port, "reader", [("h/#", 1)])
        a = client(proxy.port, "origin", [("own", 1)], trial_payload=TRIAL)
        a.transport.subscribe([(f"m/{index}", 1) for index in range(20)])
        sent = 0

        def go_on() -> bool:
            nonlocal sent
            if sent < 500:
                sent += 1
                a.transport.publish(f"h/{sent % 7}", b"%d" % sent, qos=1, token=str(sent))
            return len(a.tokens) == 500 and a.transport.online and len(a.transport.notices) == 2

        pump(go_on, a, reader, patience_s=60.0)
        for name in ("m/3", "m/14"):
            assert [f"hangs up on the subscription to {name}," in str(line) for line in a.transport.notices].count(
                True
            ) == 1
        assert {int(payload) for payload in reader.payloads} == set(range(1, 501))
        assert not a.given_up_tokens
        connections = a.events.count("connected")
        others = {f"m/{index}" for index in range(20)} - {"m/3", "m/14"}
        for name in others:
            reader.transport.publish(name, b"y", qos=1, retain=True)
        pump(lambda: {m.topic for m in a.messages} == others, a, reader)
        assert a.events.count("connected") == connections


def test_what_is_sent_to_find_something_out_may_go_unread(client: Make, pump: Make) -> None:
    rule = hangs_up_if(lambda p: p.size > 1500)
    with ManagedBroker(engine="mosquitto") as broker, closing(Proxy(broker.port, rule)) as proxy:
        a = client(proxy.port, "board", trial_payload=TRIAL)
        a.transport.publish("nobody/1", b"small", qos=1, token="small")
        pump(lambda: a.tokens == ["small"], a)
        a.transport.publish("nobody/2", bytes(1850), qos=1, token="large")
        pump(lambda: a.given_up_tokens == ["large"] and a.transport.idle and a.transport.notices, a)
        pump(lambda: a.transport.online, a)
        assert "hangs up on messages of 1,8" in str(a.transport.notices[0])
        assert a.unread_messages == [("nobody/1", b"small")]


def test_a_forked_child_is_told_and_the_parents_connection_is_left_alone(client: Make, pump: Make) -> None:
    with ManagedBroker(engine="mosquitto") as broker:
        a = client(broker.port, "parent", [("f/#", 1)])
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            try:
                with a.transport.lock:
                    a.transport.publish("f/1", b"x", qos=1)
                theirs.sendall(b"published")
            except LocalProtocolError as error:
                theirs.sendall(str(error).encode())
            finally:
                a.transport.close()
                os._exit(0)
        ours.settimeout(30)
        assert b"forked" in ours.recv(1000)
        os.waitpid(child, 0)
        a.transport.publish("f/1", b"ours", qos=1)
        pump(lambda: a.messages, a)
        assert a.events == ["connected"]
        ours.close()
        theirs.close()


def raw_publish(port: int, packet: bytes, *, patience_s: float = 60.0) -> None:
    """Send a packet as a client that nobody has written with care."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as sock:
        sock.sendall(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05rough")
        assert sock.recv(4) == b"\x20\x02\x00\x00"
        sock.sendall(packet)
        assert sock.recv(4)[:1] == b"\x40"


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


@pytest.mark.parametrize("version", ["auto", "3.1.1"])
def test_a_packet_beyond_all_reason_is_not_read_and_costs_no_memory(client: Make, pump: Make, version: str) -> None:
    with RawBroker("max_packet_size 268435455") as broker:
        a = client(broker.port, "small", [("big/#", 1)], settings={"mqtt_version": version}, session=Session.DURABLE)
        body = b"\x00\x05big/1\x00\x01" + bytes(100_000_000)
        raw_publish(broker.port, b"\x32" + varint(len(body)) + body)
        del body
        a.transport.publish("big/2", b"after", qos=1)
        pump(lambda: any(m.topic == "big/2" for m in a.messages), a)
        assert [m.topic for m in a.messages] == ["big/2"]
        if version == "3.1.1":  # with MQTT 5 the broker knows what is too large, and sends nothing
            assert "ignored a message" in str(a.transport.notices[0])
        assert a.events == ["connected"]


@pytest.mark.parametrize(
    ("option", "line"),
    [("retain_available false", "does not support retained messages"), ("max_qos 0", "at QoS 0 only")],
)
def test_a_broker_that_was_mended_is_believed_again(client: Make, pump: Make, option: str, line: str) -> None:
    broken, mended = RawBroker(option), RawBroker()
    mended.port = broken.port
    with broken:
        a = client(broken.port, "mender", will=("m/will", b"lost"))
        a.transport.publish("m/1", b"early", qos=1, retain=True, token="early", lane=Lane.LATEST)
        pump(lambda: a.tokens == ["early"], a)
        assert [line in str(one) for one in a.transport.notices] == [True]
    a.transport.notices.clear()
    with mended:
        pump(lambda: a.events.count("connected") == 2, a)
        a.transport.publish("m/1", b"late", qos=1, retain=True, token="late", lane=Lane.LATEST)
        pump(lambda: "late" in a.tokens, a)
        reader = client(mended.port, "reader", [("m/1", 1)])
        pump(lambda: reader.messages, reader)
        assert [(m.payload, m.retain, m.token is not None) for m in reader.messages] == [(b"late", True, True)]
        assert not a.transport.notices
        a.transport.close()
        reader.transport.close()
