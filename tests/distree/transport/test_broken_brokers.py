"""MqttTransport at brokers that break the protocol: one line says so, nothing grows, and it goes on once they are well."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt import properties

from benchmarks.chaos.packets import CONNECT, SUBSCRIBE, Packet, Reader
from distree.errors import BrokerError
from distree.transport import receive_window
from distree.transport.lean_client import MAX_UNSENT_PACKETS
from distree.transport.packets import publish

Make = Callable[..., Any]
Pump = Callable[..., None]

CONNACK = b"\x20\x03\x00\x00\x00"
PINGREQ = 12
PUBCOMP = 0x70


class BrokenBroker:
    """Answers CONNECT, SUBSCRIBE and PINGREQ as a broker should, or as `answers` says, by the kind of packet.

    After its answer to a packet of a kind in `last` it closes the connection.
    """

    def __init__(self) -> None:
        self.answers: dict[int, Callable[[Packet], bytes]] = {}
        self.last: set[int] = set()
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        reader = Reader()
        with client, contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                for packet, _ in reader.feed(data):
                    client.sendall(self._answer(packet))
                    if packet.kind in self.last:
                        return

    def _answer(self, packet: Packet) -> bytes:
        if packet.kind in self.answers:
            return self.answers[packet.kind](packet)
        if packet.kind == CONNECT:
            return CONNACK
        if packet.kind == SUBSCRIBE:
            return suback(packet, len(packet.filters))
        return b"\xd0\x00" if packet.kind == PINGREQ else b""

    def close(self) -> None:
        self._listener.close()


def suback(packet: Packet, codes: int) -> bytes:
    return b"\x90" + bytes((3 + codes,)) + packet.body[:2] + b"\x00" + b"\x01" * codes


@pytest.fixture
def broken() -> Iterator[BrokenBroker]:
    with contextlib.closing(BrokenBroker()) as broker:
        yield broker


def heal(broken: BrokenBroker, recorder: Any, pump: Pump) -> None:
    broken.answers.clear()
    broken.last.clear()
    pump(lambda: recorder.transport.online, recorder)


MALFORMED = {
    "a length of five bytes": b"\x30\xff\xff\xff\xff\x01",
    "a topic longer than its packet": b"\x32\x05\x00\x10a/b",
    "QoS 2": b"\x34\x08\x00\x03a/b\x00\x07\x00",
    "no type": bytes(4),
    "an unknown reason": b"\x60\x04\x00\x01\x4b\x00",
    "an unknown property": b"\x90\x05\x00\x01\x01\x7f\x00",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_packet_right_after_the_subscription_is_named_as_such(
    broken: BrokenBroker, client: Make, pump: Pump, what: str
) -> None:
    broken.answers[SUBSCRIBE] = lambda packet: suback(packet, 1) + MALFORMED[what]
    a = client(broken.port, "a", [("a/#", 1)], online=False)
    pump(lambda: a.transport.last_error is not None, a)
    assert "sent a packet that is not valid MQTT" in str(a.transport.last_error)
    heal(broken, a, pump)


@pytest.mark.parametrize(
    "error", [KeyError(251), IndexError(), ValueError("x"), struct.error(), properties.MQTTException("x")]
)
def test_whatever_paho_raises_while_it_parses_ends_the_connection_and_nothing_else(
    broken: BrokenBroker, client: Make, pump: Pump, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """paho 2.1 lets all of these out."""

    def parse(_client: paho.Client) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(paho.Client, "_packet_handle", parse)
        a = client(broken.port, "a", [("a/#", 1)], online=False)
        pump(lambda: a.transport.last_error is not None, a)
        assert "answers with something other than MQTT" in str(a.transport.last_error)
    heal(broken, a, pump)


def test_a_connection_that_ends_right_after_the_subscription_is_reported(
    broken: BrokenBroker, client: Make, pump: Pump
) -> None:
    broken.last.add(SUBSCRIBE)
    a = client(broken.port, "a", [("a/#", 1)], online=False)
    pump(lambda: a.transport.last_error is not None, a)
    heal(broken, a, pump)


def test_what_is_left_of_a_connection_does_not_keep_the_loop_busy(broken: BrokenBroker, client: Make) -> None:
    broken.answers[CONNECT] = lambda _packet: CONNACK + bytes(50_000)
    a = client(broken.port, "a", [("a/#", 1)], online=False)
    ends_at, turns = time.monotonic() + 3.0, 0
    while time.monotonic() < ends_at:
        a.transport.poll(1.0)
        turns += 1
    assert turns < 200


def test_answers_to_a_broker_that_sends_and_does_not_read_do_not_pile_up(
    broken: BrokenBroker, client: Make, pump: Pump
) -> None:
    a = client(broken.port, "a", [("a/#", 1)])
    with a.transport.lock:
        a.transport._client._out_packet.extend([{"command": PUBCOMP}] * (MAX_UNSENT_PACKETS + 1))
        a.transport._client.keep_alive(reads=True)
        assert not a.transport.online
        assert "has stopped answering" in str(a.transport.last_error)
    heal(broken, a, pump)


@pytest.mark.parametrize("codes", [0, 1])
def test_a_filter_that_is_left_out_of_the_answer_is_not_taken_for_subscribed(
    broken: BrokenBroker, client: Make, pump: Pump, codes: int
) -> None:
    broken.answers[SUBSCRIBE] = lambda packet: suback(packet, codes)
    a = client(broken.port, "a", [("a", 1), ("b", 1)], online=False)
    with pytest.raises(BrokerError, match=r"refuses the subscription to .*b \(no answer\)"):
        a.transport.connect_now(20.0)
    assert not a.transport.online
    heal(broken, a, pump)


def test_messages_without_end_before_the_subscription_is_answered_are_not_all_kept(
    broken: BrokenBroker, client: Make, pump: Pump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive_window, "MAX_EARLY_BYTES", 1 << 20)
    one = publish("a/b", bytes(1000), mid=None, properties=b"\x00")
    broken.answers[SUBSCRIBE] = lambda _packet: one * 3000
    a = client(broken.port, "a", [("a/#", 1)], online=False)
    most = 0

    def is_told() -> bool:
        nonlocal most
        most = max(most, len(a.transport._receive_window.early))
        return a.transport.last_error is not None

    pump(is_told, a)
    assert "before it answered the subscriptions" in str(a.transport.last_error)
    assert 500 < most < 1000
    for _ in range(3):
        a.transport.last_error = None
        pump(is_told, a)
    assert not a.transport.notices, "no filter is to blame"
    heal(broken, a, pump)
    assert not a.messages


def test_a_topic_that_is_not_utf_8_does_not_end_the_connection(broken: BrokenBroker, client: Make, pump: Pump) -> None:
    """A broker that does not check topics may even retain it."""
    broken.answers[SUBSCRIBE] = lambda packet: suback(packet, 1) + b"\x30\x08\x00\x04a/\xff\xfe\x00x"
    a = client(broken.port, "a", [("a/#", 1)])
    pump(lambda: bool(a.messages), a)
    assert a.messages[0].topic == "a/\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert a.transport.online


def test_a_server_keep_alive_is_heeded(broken: BrokenBroker, client: Make, pump: Pump) -> None:
    broken.answers[CONNECT] = lambda _packet: b"\x20\x06\x00\x00\x03\x13\x00\x01"
    pings: list[float] = []
    broken.answers[PINGREQ] = lambda _packet: pings.append(time.monotonic()) or b"\xd0\x00"  # type: ignore[func-returns-value]
    a = client(broken.port, "a", [("a/#", 1)])
    pump(lambda: len(pings) == 2, a, patience_s=10.0)
    assert broken.connections == 1
