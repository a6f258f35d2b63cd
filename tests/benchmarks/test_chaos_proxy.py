"""The proxy of `make chaos` reads MQTT as clients write it, cuts, refuses and hangs up as told, and spoils links."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest

from benchmarks.chaos.conditions import GOOD, Conditions, Line
from benchmarks.chaos.packets import CONNECT, PUBACK, PUBLISH, SUBSCRIBE, Packet, Reader
from benchmarks.chaos.proxy import REFUSED_PROTOCOL, Proxy
from benchmarks.chaos.raw import publish_packet
from benchmarks.chaos.site import packed_input
from benchmarks.chaos.tap import Tap

CONNECT_4 = bytes.fromhex("100d00044d5154540402000f000161")
SUBSCRIBE_5 = b"\x82\x0e\x00\x01\x00\x00\x03a/b\x01\x00\x02c/\x00"
LIMIT_S = 5.0


class Echo:
    """Stands for a broker: says what it hears, until it is closed."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self.threads[-1].start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(LIMIT_S)


@pytest.fixture
def broker():
    with contextlib.closing(Echo()) as echo:
        yield echo


def dial(port):
    connection = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
    connection.settimeout(LIMIT_S)
    return connection


def hear(connection, count):
    """So many bytes, or fewer if the connection ends before."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        while len(heard) < count and (data := connection.recv(count - len(heard))):
            heard += data
    return heard


def test_a_reader_gives_packets_once_they_are_whole():
    reader, found = Reader(), []
    big = publish_packet("a/b", bytes(20_000))
    for byte in range(0, len(CONNECT_4 + big), 7):
        found += reader.feed((CONNECT_4 + big)[byte : byte + 7])
    assert [(packet.kind, packet.size) for packet, _ in found] == [(CONNECT, len(CONNECT_4)), (PUBLISH, len(big))]
    assert [packet.level for packet, _ in found] == [4, 4]
    assert found[1][0].topic == "a/b"
    assert found[1][1] == big
    assert not found[0][0].has_will
    with pytest.raises(ValueError, match="bytes"):
        list(Reader().feed(b"\x30\xff\xff\xff\x7f"))


def test_a_reader_knows_the_filters_of_a_subscribe():
    reader = Reader()
    list(reader.feed(CONNECT_4[:8] + b"\x05" + CONNECT_4[9:]))
    ((packet, _),) = reader.feed(SUBSCRIBE_5)
    assert packet.kind == SUBSCRIBE
    assert packet.filters == ["a/b", "c/"]


def test_a_rule_hangs_up_with_its_answer(broker):
    with contextlib.closing(Proxy(broker.port, lambda p: REFUSED_PROTOCOL if p.kind == PUBLISH else None)) as proxy:
        with dial(proxy.port) as connection:
            connection.sendall(CONNECT_4)
            assert hear(connection, len(CONNECT_4)) == CONNECT_4
            connection.sendall(publish_packet("a", b"b"))
            assert hear(connection, 100) == REFUSED_PROTOCOL
        assert proxy.hangups == proxy.connections == 1
        assert proxy.sent == {CONNECT: 1, PUBLISH: 1}


def test_a_cut_ends_links_and_refuses_until_restored(broker):
    with contextlib.closing(Proxy(broker.port)) as proxy:
        with dial(proxy.port) as connection:
            connection.sendall(CONNECT_4)
            assert hear(connection, len(CONNECT_4)) == CONNECT_4
            proxy.cut()
            assert hear(connection, 1) == b""
        with pytest.raises(ConnectionRefusedError):
            dial(proxy.port)
        proxy.restore()
        with dial(proxy.port) as connection:
            connection.sendall(CONNECT_4)
            assert hear(connection, len(CONNECT_4)) == CONNECT_4


def sent_and_back(connection, data=CONNECT_4):
    """Seconds until the broker's echo is here."""
    started_at = time.monotonic()
    connection.sendall(data)
    assert hear(connection, len(data)) == data
    return time.monotonic() - started_at


def is_silent(connection, seconds=0.3):
    """Whether nothing is heard, and the connection stays open."""
    connection.settimeout(seconds)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(LIMIT_S)
    return False


def test_a_delayed_link_is_late_both_ways_and_keeps_the_order(broker):
    with contextlib.closing(Proxy(broker.port)) as proxy, dial(proxy.port) as connection:
        sent_and_back(connection)
        proxy.become(Conditions(delay_s=0.15, jitter_s=0.05))
        assert sent_and_back(connection) >= 0.2
        packets = b"".join(publish_packet("a", bytes([number])) for number in range(50))
        for packet in range(0, len(packets), 8):
            connection.sendall(packets[packet : packet + 8])
        assert hear(connection, len(packets)) == packets
        proxy.become(GOOD)
        assert sent_and_back(connection) < 0.2


def test_a_slow_link_carries_so_many_bits_a_second_and_no_more(broker):
    with contextlib.closing(Proxy(broker.port)) as proxy, dial(proxy.port) as connection:
        sent_and_back(connection)
        proxy.become(Conditions(bits_per_s=64_000))
        big = publish_packet("a", bytes(2_000))
        # The echo of a piece comes back while the next one goes out.
        assert sent_and_back(connection, big) >= 8 * 2_000 / 64_000


def test_all_connections_share_a_slow_line():
    line = Line()
    begun_at = time.monotonic()
    ends = [line.take(1_000, 8_000) for _ in range(3)]
    assert [round(end - begun_at, 1) for end in ends] == [1.0, 2.0, 3.0]


def test_a_stalling_link_stands_still_and_loses_nothing(broker):
    with contextlib.closing(Proxy(broker.port)) as proxy, dial(proxy.port) as connection:
        sent_and_back(connection)
        proxy.become(Conditions(stall_every_s=1e9, stalled_s=1e9))
        waiting = publish_packet("a", b"waits")
        connection.sendall(waiting)
        assert is_silent(connection)
        proxy.become(GOOD)
        assert hear(connection, len(waiting)) == waiting


def test_a_half_open_link_swallows_all_and_says_nothing(broker):
    with contextlib.closing(Proxy(broker.port)) as proxy, dial(proxy.port) as connection:
        sent_and_back(connection)
        proxy.become(Conditions(half_open=True))
        connection.sendall(CONNECT_4)
        assert is_silent(connection)
        with dial(proxy.port) as another:
            another.sendall(CONNECT_4)
            assert is_silent(another)
            proxy.become(GOOD)
            # What was there is gone for good; what comes now is well.
            for lost in (connection, another):
                lost.sendall(CONNECT_4)
                assert is_silent(lost)
        with dial(proxy.port) as third:
            sent_and_back(third)


def test_the_broker_does_not_hear_that_a_half_open_link_has_ended():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(LIMIT_S)
        with contextlib.closing(Proxy(listener.getsockname()[1])) as proxy:
            with dial(proxy.port) as connection:
                connection.sendall(CONNECT_4)
                at_broker, _ = listener.accept()
                at_broker.settimeout(LIMIT_S)
                assert hear(at_broker, len(CONNECT_4)) == CONNECT_4
                proxy.become(Conditions(half_open=True))
            assert is_silent(at_broker)
            at_broker.close()


def test_a_resetting_link_resets_without_a_goodbye(broker):
    with contextlib.closing(Proxy(broker.port)) as proxy, dial(proxy.port) as connection:
        sent_and_back(connection)
        proxy.become(Conditions(reset_every_s=0.05))
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        assert proxy.resets >= 1
        proxy.become(GOOD)
        with dial(proxy.port) as another:
            sent_and_back(another)


def test_a_tap_follows_inputs_and_results_by_their_requests():
    tap, root = Tap(), "distree/1/s/pipeline/p"
    given = publish_1(f"{root}/input/cam", packed_input("r1", np.zeros((2, 2), np.uint8)), 7)
    final, early = (json.dumps({"request": "r1", "final": final}).encode() for final in (True, False))
    tap.from_broker(1, given)
    assert tap.delivered.keys() == {"r1"}
    tap.from_client(2, puback(7))
    assert not tap.taken
    tap.from_client(1, puback(7))
    assert tap.taken.keys() == {"r1"}
    tap.from_client(1, publish_1(f"{root}/result/cam", early, 8))
    tap.from_broker(1, puback(8))
    assert not tap.answered
    tap.from_client(1, publish_1(f"{root}/result/cam", final, 9))
    assert not tap.answered
    tap.from_broker(1, puback(9))
    assert tap.answered.keys() == {"r1"}


def publish_1(topic, payload, number, level=5):
    """A PUBLISH at QoS 1, with a property where the level has any."""
    name, properties = topic.encode(), b"\x02\x01\x00" if level >= 5 else b""
    body = len(name).to_bytes(2, "big") + name + number.to_bytes(2, "big") + properties + payload
    packet = Packet(kind=PUBLISH, flags=2, body=body, size=len(body), level=level)
    assert (packet.topic, packet.packet_id, packet.payload) == (topic, number, payload)
    return packet


def puback(number):
    return Packet(kind=PUBACK, flags=0, body=number.to_bytes(2, "big"), size=4, level=5)
