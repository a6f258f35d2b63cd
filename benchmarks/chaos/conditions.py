"""What a link does to the bytes on it: late, slow, stalling, broken now and then, or gone without a word."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.chaos.packets import Packet

MAX_WAITING_BYTES = 64 << 10
"""What a direction holds; beyond that nothing is read, as if the buffers of a modem were full."""

_PIECE_BYTES = 512
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a link is now; the default is a good one.

    `delay_s` is added to every byte, more or less `jitter_s`, in order. `bits_per_s` is shared by all connections, in
    each direction. For the first `stalled_s` of every `stall_every_s` nothing moves, and nothing is lost.
    `reset_every_s` is the mean time between resets of one connection, drawn at random. `half_open`: connections that
    exist now, or are made now, swallow every byte for the rest of their life, and neither end hears of it.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bits_per_s: float = 0.0
    stall_every_s: float = 0.0
    stalled_s: float = 0.0
    reset_every_s: float = 0.0
    half_open: bool = False


GOOD = Conditions()


class Line:
    """One direction of a link, shared by all connections: only so many bytes fit through it a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int, bits_per_s: float) -> float:
        """Reserve the line for so many bytes; return when the last of them is through, in monotonic seconds."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + 8 * count / bits_per_s
            return self._free_at


@dataclass(frozen=True, slots=True)
class _Chunk:
    due: float
    data: bytes
    packets: tuple[Packet, ...]


class Carrier:
    """Carries one direction of a connection to `target`, as `conditions` has it at the time; in a thread, `run`.

    `passes` is called with the packets of each chunk just before it is handed over.
    """

    def __init__(
        self,
        target: socket.socket,
        line: Line,
        conditions: Callable[[], Conditions],
        passes: Callable[[tuple[Packet, ...]], None],
    ) -> None:
        self._target = target
        self._line = line
        self._conditions = conditions
        self._passes = passes
        self._draw = random.Random(1)
        self._changed = threading.Condition()
        self._chunks: deque[_Chunk] = deque()
        self._bytes = 0
        self._last_due = 0.0
        self._closed = False

    def put(self, data: bytes, packets: tuple[Packet, ...]) -> None:
        """Have something carried; wait while too much waits. OSError once the other end is gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._bytes < MAX_WAITING_BYTES)
            if self._closed:
                raise ConnectionError
            now = self._conditions()
            delay = now.delay_s + self._draw.uniform(-now.jitter_s, now.jitter_s)
            self._last_due = max(self._last_due, time.monotonic() + delay)
            self._chunks.append(_Chunk(self._last_due, data, packets))
            self._bytes += len(data)
            self._changed.notify_all()

    def run(self) -> None:
        """Carry until `close`, or until the target is gone."""
        try:
            while (chunk := self._next()) is not None:
                # Before, for the answer to it may be on its way back before `sendall` returns.
                self._passes(chunk.packets)
                self._send(chunk.data)
        except OSError:
            pass
        finally:
            self.close()

    def flush(self, patience_s: float) -> None:
        """Wait until all was carried."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._bytes, patience_s)

    def close(self) -> None:
        """Drop what waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next(self) -> _Chunk | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._chunks))
            if self._closed:
                return None
            chunk = self._chunks[0]
        self._wait_until(chunk.due)
        while not self._closed and self._stalls():
            time.sleep(_LOOK_S)
        return None if self._closed else chunk

    def _send(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self._closed:
            rate = self._conditions().bits_per_s
            piece = data[at : at + _PIECE_BYTES] if rate else data[at:]
            if rate:
                self._wait_until(self._line.take(len(piece), rate))
            self._target.sendall(piece)
            at += len(piece)
        with self._changed:
            self._chunks.popleft()
            self._bytes -= len(data)
            self._changed.notify_all()

    def _stalls(self) -> bool:
        now = self._conditions()
        return bool(now.stall_every_s) and time.monotonic() % now.stall_every_s < now.stalled_s

    def _wait_until(self, due: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, max(0.0, due - time.monotonic()))
