"""What goes through the links of one origin: its inputs and its results, by request, as the packets have it."""

from __future__ import annotations

import json
import threading
import time

import msgpack

from benchmarks.chaos.packets import PUBACK, PUBLISH, Packet


class Tap:
    """Hears an origin's proxy. Times are monotonic seconds; of what comes twice, the first counts.

    `delivered`: inputs that the broker handed to the origin. `taken`: those that the origin acknowledged, from when on
    the broker has forgotten them. `answered`: requests whose final result the broker acknowledged.
    """

    def __init__(self) -> None:
        self.delivered: dict[str, float] = {}
        self.taken: dict[str, float] = {}
        self.answered: dict[str, float] = {}
        self._lock = threading.Lock()
        self._inputs: dict[tuple[int, int], str] = {}
        self._results: dict[tuple[int, int], str] = {}

    def from_broker(self, link: int, packet: Packet) -> None:
        """An input, or the acknowledgement of a result."""
        with self._lock:
            if packet.kind == PUBLISH and "/input/" in packet.topic:
                request = msgpack.unpackb(packet.payload)["request"]
                self._inputs[link, packet.packet_id] = request
                self.delivered.setdefault(request, time.monotonic())
            elif packet.kind == PUBACK and (link, packet.packet_id) in self._results:
                self.answered.setdefault(self._results.pop((link, packet.packet_id)), time.monotonic())

    def from_client(self, link: int, packet: Packet) -> None:
        """A result, or the acknowledgement of an input."""
        with self._lock:
            if packet.kind == PUBLISH and "/result/" in packet.topic:
                fields = json.loads(packet.payload)
                if fields["final"]:
                    self._results[link, packet.packet_id] = fields["request"]
            elif packet.kind == PUBACK and (link, packet.packet_id) in self._inputs:
                self.taken.setdefault(self._inputs.pop((link, packet.packet_id)), time.monotonic())
