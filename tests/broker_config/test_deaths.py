"""Boards die in every way, amid traffic, and the broker serves whoever is left: see broker_config.embedded."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from broker_config.managed import Engine, ManagedBroker
from distree import topics
from distree.topics import Kind

PATIENCE_S = 30.0
EXIT = topics.to_board("lab", "p", Kind.EXIT, "hub", "cam")
EXITS = topics.to_board("lab", "p", Kind.EXIT, "hub", "+")
MEMBERS = topics.member("lab", "p", 1, "+")


def stage_of(name: str) -> str:
    """Return the topic on which the origin sends to a board."""
    return topics.stage("lab", "p", 1, name, "cam")


def text(value: str) -> bytes:
    return struct.pack(">H", len(value)) + value.encode()


def packet(kind: int, body: bytes) -> bytes:
    assert len(body) < 1 << 14
    length = bytes((len(body),)) if len(body) < 128 else bytes((len(body) & 127 | 128, len(body) >> 7))
    return bytes((kind,)) + length + body


class Board:
    """A client of MQTT 3.1.1 that writes down which topics it hears, and acknowledges only if it is told to.

    `filters` are (filter, QoS). Without `clean` it forgets an earlier session first, as a process does when it starts.
    """

    def __init__(
        self,
        port: int,
        name: str,
        filters: list[tuple[str, int]],
        *,
        clean: bool = True,
        acknowledges: bool = True,
    ) -> None:
        self.port, self.name, self.filters, self.acknowledges = port, name, filters, acknowledges
        self.clean = clean
        self.heard: Counter[str] = Counter()
        self._answers: Counter[int] = Counter()
        if not clean:
            with self._dial(clean=True) as before:
                before.sendall(b"\xe0\x00")
        self.socket = self._dial(clean=clean)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if filters:
            asked = b"".join(text(name) + bytes((qos,)) for name, qos in filters)
            self.ask(packet(0x82, b"\x00\x01" + asked), 0x90)

    def _dial(self, *, clean: bool) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        connection.sendall(packet(0x10, b"\x00\x04MQTT\x04" + bytes((2 * clean,)) + b"\x00\x3c" + text(self.name)))
        answer = connection.recv(4, socket.MSG_WAITALL)
        assert answer[:1] == b"\x20"
        assert answer[3] == 0
        return connection

    def _read(self) -> None:
        with contextlib.suppress(OSError), self.socket.makefile("rb") as stream:
            while kind := stream.read(1):
                length = shift = 0
                while (byte := stream.read(1)[0]) & 128:
                    length, shift = length | (byte & 127) << shift, shift + 7
                body = stream.read(length | byte << shift)
                if kind[0] & 0xF0 == 0x30:
                    self._hear(kind[0], body)
                else:
                    self._answers[kind[0] & 0xF0] += 1

    def _hear(self, kind: int, body: bytes) -> None:
        end = 2 + int.from_bytes(body[:2], "big")
        self.heard[body[2:end].decode()] += 1
        if kind & 6 and self.acknowledges:
            self.socket.sendall(b"\x40\x02" + body[end : end + 2])

    def ask(self, request: bytes, answer: int) -> None:
        """Send, and wait for an answer of a kind."""
        before = self._answers[answer]
        self.socket.sendall(request)
        wait_for(lambda: self._answers[answer] > before)

    def publish(self, topic: str, payload: bytes = b"x") -> None:
        self.ask(packet(0x32, text(topic) + b"\x00\x07" + payload), 0x40)

    def stop(self) -> None:
        """Leave cleanly."""
        self.socket.sendall(b"\xe0\x00")
        self.end()

    def end(self) -> None:
        """End the connection, without a word."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(PATIENCE_S)
        self.socket.close()


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def reset(board: Board) -> None:
    board.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    board.end()


def unsubscribe_and_stop(board: Board) -> None:
    board.ask(packet(0xA2, b"\x00\x02" + b"".join(text(name) for name, _ in board.filters)), 0xB0)
    board.stop()


def half_a_packet(board: Board) -> None:
    board.socket.sendall(packet(0x32, text(stage_of(board.name)) + b"\x00\x07" + bytes(100))[:50])
    board.end()


def garbage(board: Board) -> None:
    with contextlib.suppress(OSError):
        board.socket.sendall(b"\xff" * 64)
    board.end()


def takeover(board: Board) -> None:
    Board(board.port, board.name, board.filters, clean=board.clean, acknowledges=False).end()
    board.end()


WAYS = {
    "killed": Board.end,
    "reset": reset,
    "stopped": Board.stop,
    "unsubscribed": unsubscribe_and_stop,
    "half a packet": half_a_packet,
    "garbage": garbage,
    "another of its name": takeover,
}


@contextlib.contextmanager
def traffic(port: int, *names: str) -> Iterator[None]:
    """Messages for each board and for the fusing one, one after the other, from a board that never rests."""
    origin, over, errors = Board(port, "cam", []), threading.Event(), []

    def publish() -> None:
        try:
            while not over.is_set():
                for name in names:
                    origin.publish(stage_of(name), bytes(300))
                origin.publish(EXIT, bytes(30))
        except (AssertionError, OSError) as error:
            errors.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        origin.stop()
    assert not errors


def subscriptions(name: str) -> list[tuple[str, int]]:
    """Return what a board subscribes to: what comes for it, and what others say."""
    return [(topics.stage("lab", "p", 1, name, "+"), 1), (EXITS, 1), (MEMBERS, 1)]


def hears(board: Board) -> None:
    before, stage = board.heard.copy(), stage_of(board.name)
    wait_for(lambda: board.heard[stage] > before[stage] and board.heard[EXIT] > before[EXIT])


@pytest.mark.parametrize("acknowledges", [True, False], ids=["acknowledges", "silent"])
@pytest.mark.parametrize("clean", [True, False], ids=["clean session", "session"])
@pytest.mark.parametrize("others", [0, 1], ids=["alone", "with another"])
def test_a_broker_outlives_its_boards(engine: Engine, others: int, clean: bool, acknowledges: bool) -> None:
    names = [f"b{k}" for k in range(1 + others)]
    with ManagedBroker(engine=engine) as broker:
        twins = [Board(broker.port, name, subscriptions(name)) for name in names[1:]]
        with traffic(broker.port, *names):
            for die in WAYS.values():
                board = Board(broker.port, "b0", subscriptions("b0"), clean=clean, acknowledges=acknowledges)
                hears(board)
                die(board)
                assert broker.running
                for twin in twins:
                    hears(twin)
            back = Board(broker.port, "b0", subscriptions("b0"))
            hears(back)
        for board in (back, *twins):
            board.stop()


@pytest.mark.parametrize("clean", [True, False], ids=["clean session", "session"])
@pytest.mark.parametrize("name", WAYS)
def test_a_broker_outlives_the_last_board_of_a_quiet_site(engine: Engine, name: str, clean: bool) -> None:
    stage = stage_of("b0")
    with ManagedBroker(engine=engine) as broker:
        origin = Board(broker.port, "cam", [])
        for _ in range(3):
            board = Board(broker.port, "b0", subscriptions("b0"), clean=clean, acknowledges=False)
            for _ in range(6):
                origin.publish(stage)
                origin.publish(EXIT)
            wait_for(lambda board=board: board.heard[stage] and board.heard[EXIT])  # type: ignore[misc]
            WAYS[name](board)
        late = Board(broker.port, "late", subscriptions("late"))
        origin.publish(stage_of("late"))
        origin.publish(EXIT)
        wait_for(lambda: late.heard[stage_of("late")] == late.heard[EXIT] == 1)
        late.stop()
        origin.stop()
