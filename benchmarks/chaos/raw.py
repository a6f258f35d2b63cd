"""MQTT 3.1.1 by hand, for what no client library would send."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from benchmarks.chaos.site import HOST, ShortfallError


def publish_packet(topic: str, payload: bytes) -> bytes:
    """Return a PUBLISH of MQTT 3.1.1 at QoS 0."""
    name = topic.encode()
    length, packed = 2 + len(name) + len(payload), bytearray(b"\x30")
    while True:
        length, low = divmod(length, 128)
        packed.append(low | (128 if length else 0))
        if not length:
            return bytes(packed) + len(name).to_bytes(2, "big") + name + payload


@contextlib.contextmanager
def raw_client(port: int, name: bytes = b"chaos-raw") -> Iterator[socket.socket]:
    """Log in by MQTT 3.1.1; give the socket."""
    with socket.create_connection((HOST, port), timeout=120.0) as connection:
        body = b"\x00\x04MQTT\x04\x02\x00\x00" + len(name).to_bytes(2, "big") + name
        connection.sendall(bytes((0x10, len(body))) + body)
        if connection.recv(4)[:1] != b"\x20":
            raise ShortfallError("the broker refuses a raw client")
        yield connection
        connection.sendall(b"\xe0\x00")
