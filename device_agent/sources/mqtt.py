"""Inputs from the origin's input topic."""

from __future__ import annotations

import queue
import threading

from device_agent.sources.base import Inlet
from distree import wire
from distree.errors import RemoteProtocolError
from distree.protocols import Received

WAITING = 256


class Mqtt:
    """Takes what the agent received on the input topic.

    Deliveries are acknowledged once they are in custody. The source never waits for room, since outcomes come in
    through the same window of unacknowledged deliveries: when the books are full, the input is answered `shed`.
    """

    def __init__(self, inlet: Inlet) -> None:
        self._inlet = inlet
        self._waiting: queue.Queue[Received] = queue.Queue(WAITING)

    def put(self, message: Received) -> None:
        """Take a delivery from the network's thread; beyond the bound the oldest is dead-lettered."""
        while True:
            try:
                self._waiting.put_nowait(message)
                return
            except queue.Full:
                self._drop(self._waiting.get_nowait())

    def _drop(self, message: Received) -> None:
        self._inlet.reject("input", "overflow", f"more than {WAITING} inputs wait to be decoded", message.payload)
        self._inlet.acknowledge(message.token)

    def run(self, stop: threading.Event) -> None:
        """Decode and hand over, one by one."""
        while not stop.is_set():
            try:
                message = self._waiting.get(timeout=0.5)
            except queue.Empty:
                continue
            self._take(message)

    def _take(self, message: Received) -> None:
        try:
            request, name, payload = None, "", message.payload
            if len(payload) != self._inlet.preprocessor.nbytes and wire.is_input(payload):
                named = wire.decode_input(payload)
                request, name, payload = named.request, named.name, named.payload
            raw = self._inlet.preprocessor.from_bytes(payload)
            self._inlet.submit(name, raw, request)
        except RemoteProtocolError as error:
            self._inlet.reject("input", error.reason, error.detail, message.payload)
        self._inlet.acknowledge(message.token)

    def answered(self, request: str) -> None:
        """Nothing to do: the delivery was acknowledged when the input was accepted."""
