"""A proxy between MQTT clients and a broker: a link that is cut or bad, or a broker that refuses and hangs up.

It reads the packets that clients send and asks a rule about each of them; what the broker sends it reads only to
count, and for whoever listens. Threads and plain sockets, nothing of the project.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from benchmarks.chaos.conditions import GOOD, Carrier, Conditions, Line
from benchmarks.chaos.packets import PUBLISH, SUBSCRIBE, Packet, Reader

HOST = "127.0.0.1"

MAX_CONNECTIONS = 64
"""Most connections at a time; another one is refused."""

_READ_BYTES = 1 << 14
_SEND_LIMIT_S = 10.0
_LINGER_RESET = struct.pack("ii", 1, 0)

REFUSED_PROTOCOL = b"\x20\x02\x00\x01"
"""CONNACK of MQTT 3.1.1: unacceptable protocol version."""

HangUp = bytes
"""What a rule returns to have the connection closed: the bytes to send before, b"" for none."""

Rule = Callable[[Packet], HangUp | None]
"""Looks at a packet from a client: None lets it pass."""


def hangs_up_if(dislikes: Callable[[Packet], bool]) -> Rule:
    """Return the rule that closes the connection, without a word, on packets for which `dislikes` is true."""
    return lambda packet: b"" if dislikes(packet) else None


class Listener(Protocol):
    """Hears of each packet just before it is handed over. `link` is the number of its connection."""

    def from_client(self, link: int, packet: Packet) -> None:
        """A client's packet goes to the broker."""

    def from_broker(self, link: int, packet: Packet) -> None:
        """A packet of the broker goes to the client."""


class _Link:
    """One connection through the proxy, by its number."""

    def __init__(self, number: int, client: socket.socket, broker: socket.socket) -> None:
        self.number = number
        self.client = client
        self.broker = broker
        self.level = 0
        self.dead = False
        """Whether it swallows every byte; then one end does not hear of the other's."""
        self.reset = False
        for end in (client, broker):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A time-out of the whole socket would end links that are merely quiet.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_SEND_LIMIT_S), 0))

    def end(self, *, abruptly: bool = False) -> None:
        """Close both ways; the threads that read them return. Abruptly means by a reset, once it is freed."""
        self.reset |= abruptly
        for end in (self.client, self.broker):
            with contextlib.suppress(OSError):
                if self.reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
                # Both ways would say goodbye by a FIN before the reset.
                end.shutdown(socket.SHUT_RD if self.reset else socket.SHUT_RDWR)

    def free(self) -> None:
        self.client.close()
        self.broker.close()


class Proxy:
    """Listens on a free port of 127.0.0.1 (`port`) and passes on to a broker on another.

    `rule` is asked about each packet from a client, `listener` hears of each packet that is passed on. `cut` ends all
    links and refuses new ones until `restore`; `become` sets the conditions of all links.
    `opened_at` are the times (monotonic seconds) at which clients connected, `hangups` counts what the rule ended,
    `resets` what the conditions did,
    `sent` and `received` count clients' and the broker's packets by type, `repeated` the broker's repeated PUBLISHes,
    and `filters` are the filters of the longest SUBSCRIBE.
    """

    def __init__(self, upstream: int, rule: Rule | None = None, listener: Listener | None = None) -> None:
        self.rule = rule
        self.opened_at: list[float] = []
        self.hangups = 0
        self.resets = 0
        self.repeated = 0
        self.sent: Counter[int] = Counter()
        self.received: Counter[int] = Counter()
        self.filters: list[str] = []
        self._upstream = upstream
        self._hears = listener
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._conditions = GOOD
        self._up, self._down = Line(), Line()
        self._draw = random.Random(3)
        self.port = 0
        self.restore()

    @property
    def connections(self) -> int:
        """How often clients connected."""
        return len(self.opened_at)

    def become(self, conditions: Conditions) -> None:
        """Set the conditions of all links, those that exist and those to come."""
        with self._lock:
            self._conditions = conditions
            for link in self._links:
                link.dead |= conditions.half_open
        if conditions.reset_every_s:
            self._start(self._reset_at_random, conditions)

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
        self.become(GOOD)
        self.cut()
        ends_at = time.monotonic() + 5.0
        for thread in self._threads:
            thread.join(max(0.0, ends_at - time.monotonic()))

    def _start(self, target: Callable[..., None], *args: object) -> threading.Thread:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _reset_at_random(self, conditions: Conditions) -> None:
        """End one connection after the other by a reset, while the conditions last."""
        while self._conditions is conditions:
            time.sleep(self._draw.expovariate(1.0 / conditions.reset_every_s))
            with self._lock:
                links = sorted(self._links, key=lambda link: link.number)
            if links and self._conditions is conditions:
                self.resets += 1
                self._draw.choice(links).end(abruptly=True)

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
            link = _Link(len(self.opened_at), client, broker)
            with self._lock:
                full = len(self._links) >= MAX_CONNECTIONS
                link.dead = self._conditions.half_open
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
        up = Carrier(link.broker, self._up, lambda: self._conditions, lambda found: self._passes_up(link, found))
        down = Carrier(link.client, self._down, lambda: self._conditions, lambda found: self._passes_down(link, found))
        threads = [
            self._start(self._carry_back, link, down),
            self._start(self._run, link, up),
            self._start(self._run, link, down),
        ]
        with contextlib.suppress(OSError, ValueError, IndexError):
            self._carry(link, up)
        up.flush(_SEND_LIMIT_S)
        self._end(link)
        for carrier in (up, down):
            carrier.close()
        for thread in threads:
            thread.join()
        link.free()
        with self._lock:
            self._links.discard(link)

    def _end(self, link: _Link) -> None:
        """End a link, since one end has; of a dead one the broker shall not hear until it looks by itself."""
        if link.dead and not link.reset:
            with contextlib.suppress(OSError):
                link.client.shutdown(socket.SHUT_RDWR)
            return
        link.end()

    def _run(self, link: _Link, carrier: Carrier) -> None:
        carrier.run()
        self._end(link)

    def _carry(self, link: _Link, up: Carrier) -> None:
        reader = Reader()
        while data := link.client.recv(_READ_BYTES):
            if link.dead:
                continue
            passing, packets = bytearray(), list[Packet]()
            for packet, whole in reader.feed(data):
                link.level = reader.level
                self.sent[packet.kind] += 1
                if packet.kind == SUBSCRIBE and len(packet.filters) > len(self.filters):
                    self.filters = packet.filters
                answer = self.rule(packet) if self.rule is not None else None
                if answer is not None:
                    self.hangups += 1
                    up.put(bytes(passing), tuple(packets))
                    up.flush(_SEND_LIMIT_S)
                    link.client.sendall(answer)
                    return
                passing += whole
                packets.append(packet)
            if passing:
                up.put(bytes(passing), tuple(packets))

    def _carry_back(self, link: _Link, down: Carrier) -> None:
        reader = Reader()
        with contextlib.suppress(OSError, ValueError, IndexError):
            while data := link.broker.recv(_READ_BYTES):
                if link.dead:
                    continue
                reader.level = link.level
                down.put(data, tuple(packet for packet, _ in reader.feed(data)))
        if not link.dead:
            down.flush(_SEND_LIMIT_S)
            link.end()

    def _passes_up(self, link: _Link, packets: tuple[Packet, ...]) -> None:
        if self._hears is not None:
            for packet in packets:
                self._hears.from_client(link.number, packet)

    def _passes_down(self, link: _Link, packets: tuple[Packet, ...]) -> None:
        for packet in packets:
            self.received[packet.kind] += 1
            self.repeated += packet.kind == PUBLISH and packet.dup
            if self._hears is not None:
                self._hears.from_broker(link.number, packet)
