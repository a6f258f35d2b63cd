"""A proxy before a broker that reads MQTT as it passes, and ends the connection on packets that it does not like."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from distree.transport.packets import frame

CONNECT, PUBLISH, SUBSCRIBE = 1, 3, 8
_CONNECTIONS = 64
_MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Packet:
    """A packet from a client. `size` counts all of its bytes."""

    kind: int
    header: int
    body: bytes
    size: int
    version: int
    """5 or 4 (which is 3.1.1), as the connection said in its CONNECT."""

    @property
    def has_will(self) -> bool:
        return self.kind == CONNECT and bool(self.body[7] & 0x04)

    @property
    def will_retained(self) -> bool:
        return self.has_will and bool(self.body[7] & 0x20)

    @property
    def topic(self) -> str:
        """The topic of a PUBLISH, "" of others."""
        return self._text(0)[0] if self.kind == PUBLISH else ""

    @property
    def qos(self) -> int:
        return self.header >> 1 & 3 if self.kind == PUBLISH else 0

    @property
    def retained(self) -> bool:
        return self.kind == PUBLISH and bool(self.header & 1)

    @property
    def filters(self) -> list[str]:
        """The filters of a SUBSCRIBE."""
        if self.kind != SUBSCRIBE:
            return []
        at = 2
        if self.version == 5:  # without properties, as the clients here send it
            length = self.body[at]
            assert length < 0x80
            at += 1 + length
        found = []
        while at < len(self.body):
            name, at = self._text(at)
            found.append(name)
            at += 1  # the options
        return found

    def _text(self, at: int) -> tuple[str, int]:
        end = at + 2 + int.from_bytes(self.body[at : at + 2], "big")
        return self.body[at + 2 : end].decode(), end


@dataclass
class HangUpProxy:
    """Passes everything on to `broker_port` but packets that `dislikes`, which end their connection.

    `hung_up` gathers what was disliked. Ends, with all connections, at the end of the `with` block.
    """

    broker_port: int
    dislikes: Callable[[Packet], bool]
    hung_up: list[Packet] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> HangUpProxy:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for sock in self._open:
                _shut(sock)
        for thread in list(self._threads):
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                crowded = len(self._open) > 2 * _CONNECTIONS
            if crowded:
                client.close()
                continue
            try:
                broker = socket.create_connection(("127.0.0.1", self.broker_port), 5)
            except OSError:
                client.close()
                continue
            for sock in (client, broker):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, broker}
                if self._closing:
                    _shut(client)
                    _shut(broker)
            thread = threading.Thread(target=self._carry, args=(client, broker))
            self._threads = [each for each in self._threads if each.is_alive()] + [thread]
            thread.start()

    def _carry(self, client: socket.socket, broker: socket.socket) -> None:
        back = threading.Thread(target=_copy, args=(broker, client))
        back.start()
        try:
            self._read(client, broker)
        except OSError:
            pass
        finally:
            _shut(client)
            _shut(broker)
            back.join(10)
            with self._lock:
                self._open -= {client, broker}
                client.close()
                broker.close()

    def _read(self, client: socket.socket, broker: socket.socket) -> None:
        ahead, version = b"", 4
        while more := client.recv(1 << 16):
            ahead += more
            while (found := frame(ahead, 0) if ahead else None) is not None:
                body = ahead[found[0] : found[1]]
                if ahead[0] >> 4 == CONNECT:
                    version = body[6]
                packet = Packet(kind=ahead[0] >> 4, header=ahead[0], body=body, size=found[1], version=version)
                if self.dislikes(packet):
                    self.hung_up.append(packet)
                    return
                broker.sendall(ahead[: found[1]])
                ahead = ahead[found[1] :]
            if len(ahead) > _MAX_BYTES:
                return


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while more := source.recv(1 << 16):
            target.sendall(more)
    _shut(target)


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
