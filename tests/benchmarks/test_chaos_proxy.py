"""The proxy of `make chaos` reads MQTT as clients write it, and cuts, refuses and hangs up as it is told."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from benchmarks.chaos.proxy import CONNECT, PUBLISH, REFUSED_PROTOCOL, SUBSCRIBE, Proxy, Reader
from benchmarks.chaos.site import publish_packet

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
