"""A proxy between MQTT clients and a broker that cuts, refuses and hangs up, as links and old brokers do.

It reads the packets that clients send and asks a rule about each of them; what the broker sends it reads only to
count. Threads and plain sockets, nothing of the project: it can be wrong about MQTT in other ways than the code under
test.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HOST = "127.0.0.1"

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE = 1, 2, 3, 4, 8

MAX_PACKET_BYTES = 4 << 20
"""Longest packet that is kept until it is whole; whoever sends a longer one is hung up on."""

MAX_CONNECTIONS = 64
"""Most connections at a time; another one is refused."""

_READ_BYTES = 1 << 16
_SEND_LIMIT_S = 10.0
_LINGER_RESET = struct.pack("ii", 1, 0)

REFUSED_PROTOCOL = b"\x20\x02\x00\x01"
"""CONNACK of MQTT 3.1.1: unacceptable protocol version."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A control packet of MQTT: its type, the flags of its first byte, and what follows the length.

    `level` is the protocol level of the connection that it belongs to: 4 is MQTT 3.1.1, 5 is MQTT 5. What a packet of
    its type does not have is empty, 0 or False.
    """

    kind: int
    flags: int
    body: bytes
    size: int
    level: int

    @property
    def dup(self) -> bool:
        """Whether a PUBLISH is sent again."""
        return self.kind == PUBLISH and bool(self.flags & 8)

    @property
    def qos(self) -> int:
        """The quality of service of a PUBLISH."""
        return (self.flags >> 1) & 3 if self.kind == PUBLISH else 0

    @property
    def retain(self) -> bool:
        """Whether a PUBLISH is to be retained."""
        return self.kind == PUBLISH and bool(self.flags & 1)

    @property
    def topic(self) -> str:
        """The topic of a PUBLISH."""
        return _text(self.body, 0)[0] if self.kind == PUBLISH else ""

    @property
    def has_will(self) -> bool:
        """Whether a CONNECT has a will."""
        return bool(self._connect_flags & 0x04)

    @property
    def will_retain(self) -> bool:
        """Whether a CONNECT has a will that is to be retained."""
        return self.has_will and bool(self._connect_flags & 0x20)

    @property
    def _connect_flags(self) -> int:
        return self.body[_text(self.body, 0)[1] + 1] if self.kind == CONNECT else 0

    @property
    def filters(self) -> list[str]:
        """The filters of a SUBSCRIBE."""
        if self.kind != SUBSCRIBE:
            return []
        at = 2
        if self.level >= 5:
            length, used = _varint(self.body, at)
            at += used + length
        found = []
        while at < len(self.body):
            name, at = _text(self.body, at)
            found.append(name)
            at += 1
        return found


def _text(body: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + int.from_bytes(body[at : at + 2], "big")
    return body[at + 2 : end].decode("utf-8", "replace"), end


def _varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """Return a length and how many bytes tell it; IndexError where some are still to come."""
    value = used = 0
    while True:
        byte = data[at + used]
        value |= (byte & 127) << (7 * used)
        used += 1
        if not byte & 128:
            return value, used
        if used == 4:
            raise ValueError("no packet of MQTT")


class Reader:
    """Cuts a stream of bytes into packets."""

    def __init__(self) -> None:
        self.level = 0
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Packet, bytes]]:
        """Give each packet that is whole now, with its bytes. ValueError for what is too long, or no MQTT."""
        self._data += data
        while len(self._data) >= 2:
            try:
                length, used = _varint(self._data, 1)
            except IndexError:
                return
            end = 1 + used + length
            if end > MAX_PACKET_BYTES:
                raise ValueError(f"a packet of {end} bytes")
            if len(self._data) < end:
                return
            whole = bytes(self._data[:end])
            del self._data[:end]
            body = whole[1 + used :]
            if whole[0] >> 4 == CONNECT:
                _, at = _text(body, 0)
                self.level = body[at]
            yield Packet(whole[0] >> 4, whole[0] & 15, body, end, self.level), whole


HangUp = bytes
"""What a rule returns to have the connection closed: the bytes to send before, b"" for none."""

Rule = Callable[[Packet], HangUp | None]
"""Looks at a packet from a client: None lets it pass."""


def hangs_up_if(dislikes: Callable[[Packet], bool]) -> Rule:
    """Return the rule that closes the connection, without a word, on packets for which `dislikes` is true."""
    return lambda packet: b"" if dislikes(packet) else None


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, broker: socket.socket) -> None:
        self.client = client
        self.broker = broker
        for end in (client, broker):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A time-out of the whole socket would end links that are merely quiet.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_SEND_LIMIT_S), 0))

    def end(self, *, abruptly: bool = False) -> None:
        """Close both ways; the threads that read them return."""
        for end in (self.client, self.broker):
            with contextlib.suppress(OSError):
                if abruptly:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
                end.shutdown(socket.SHUT_RDWR)

    def free(self) -> None:
        self.client.close()
        self.broker.close()


class Proxy:
    """Listens on a free port of 127.0.0.1 (`port`) and passes on to a broker on another.

    `rule` is asked about each packet from a client. `cut` ends all links and refuses new ones until `restore`.
    `opened_at` are the times (monotonic seconds) at which clients connected, `hangups` counts what the rule ended,
    `sent` and `received` count clients' and the broker's packets by type, `repeated` the broker's repeated PUBLISHes,
    and `filters` are the filters of the longest SUBSCRIBE.
    """

    def __init__(self, upstream: int, rule: Rule | None = None) -> None:
        self.rule = rule
        self.opened_at: list[float] = []
        self.hangups = 0
        self.repeated = 0
        self.sent: Counter[int] = Counter()
        self.received: Counter[int] = Counter()
        self.filters: list[str] = []
        self._upstream = upstream
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.port = 0
        self.restore()

    @property
    def connections(self) -> int:
        """How often clients connected."""
        return len(self.opened_at)

    def cut(self) -> None:
        """End all links, as a cable does, and refuse connections."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # `accept` does not return at `close` alone
            listener.close()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.end(abruptly=True)

    def restore(self) -> None:
        """Take connections again, on the same port."""
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, self.port))
        listener.listen(16)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def close(self) -> None:
        """Cut, and wait for the threads; safe to call twice."""
        self.cut()
        ends_at = time.monotonic() + 5.0
        for thread in self._threads:
            thread.join(max(0.0, ends_at - time.monotonic()))

    def _start(self, target: Callable[..., None], *args: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.opened_at.append(time.monotonic())
            try:
                broker = socket.create_connection((HOST, self._upstream), timeout=5.0)
                broker.settimeout(None)
            except OSError:
                client.close()
                continue
            link = _Link(client, broker)
            with self._lock:
                full = len(self._links) >= MAX_CONNECTIONS
                if not full:
                    self._links.add(link)
            if full or self._listener is not listener:
                link.end()
                link.free()
                with self._lock:
                    self._links.discard(link)
                continue
            self._start(self._serve, link)

    def _serve(self, link: _Link) -> None:
        """Carry a link's packets both ways until it ends."""
        back = threading.Thread(target=self._carry_back, args=(link,), daemon=True)
        back.start()
        try:
            self._carry(link)
        except (OSError, ValueError, IndexError):
            pass
        finally:
            link.end()
            back.join()
            link.free()
            with self._lock:
                self._links.discard(link)

    def _carry(self, link: _Link) -> None:
        reader = Reader()
        while data := link.client.recv(_READ_BYTES):
            passing = bytearray()
            for packet, whole in reader.feed(data):
                self.sent[packet.kind] += 1
                if packet.kind == SUBSCRIBE and len(packet.filters) > len(self.filters):
                    self.filters = packet.filters
                answer = self.rule(packet) if self.rule is not None else None
                if answer is not None:
                    self.hangups += 1
                    link.broker.sendall(passing)
                    link.client.sendall(answer)
                    return
                passing += whole
            link.broker.sendall(passing)

    def _carry_back(self, link: _Link) -> None:
        reader = Reader()
        with contextlib.suppress(OSError, ValueError, IndexError):
            while data := link.broker.recv(_READ_BYTES):
                link.client.sendall(data)
                for packet, _ in reader.feed(data):
                    self.received[packet.kind] += 1
                    self.repeated += packet.kind == PUBLISH and packet.dup
        link.end()
