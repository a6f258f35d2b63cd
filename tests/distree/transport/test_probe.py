"""The probing client against a real mosquitto, and its parser against anything."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from setup_broker import PATIENCE_S, Mosquitto, users

from distree.errors import BrokerError
from distree.transport import probe
from distree.transport.probe import ProbeClient


def soon(seconds: float = PATIENCE_S) -> float:
    return time.monotonic() + seconds


@contextlib.contextmanager
def client(port: int, *, is_mqtt5: bool = True, user: str | None = None) -> Iterator[ProbeClient]:
    one = ProbeClient(socket.create_connection(("127.0.0.1", port), PATIENCE_S), is_mqtt5=is_mqtt5)
    try:
        greeting = one.connect(f"probe-{id(one)}", user, "secret" if user else None, soon())
        assert greeting.code == 0
        yield one
    finally:
        one.close()


@pytest.mark.parametrize("is_mqtt5", [True, False])
def test_what_is_withheld_reaches_nobody_until_it_is_released(tmp_path: Path, is_mqtt5: bool) -> None:
    with Mosquitto(tmp_path) as broker, client(broker.port, is_mqtt5=is_mqtt5) as one, client(broker.port) as other:
        for each in (one, other):
            assert each.subscribe("t/+", soon()) == 1
        assert one.withhold("t/1", b"held", soon()) < 0x80
        assert one.withhold("t/2", bytes(200_000), soon()) < 0x80
        assert not one.listen(soon(0.5), lambda: bool(one.heard))
        one.release("t/1", soon())
        for each in (one, other):
            assert each.listen(soon(), lambda each=each: bool(each.heard))
            assert [(message.topic, message.payload) for message in each.heard] == [("t/1", b"held")]
        one.close()
        assert not other.listen(soon(0.5), lambda: len(other.heard) > 1)


def test_refusals_have_codes(tmp_path: Path) -> None:
    acl = tmp_path / "acl"
    acl.write_text("user ann\ntopic readwrite ok/#\n")
    acl.chmod(0o600)
    with Mosquitto(tmp_path, users(tmp_path, ann="secret"), f"acl_file {acl}") as broker:
        with client(broker.port, user="ann") as one:
            assert one.withhold("ok/1", b"", soon()) < 0x80
            assert one.withhold("no/1", b"", soon()) == 0x87
        for is_mqtt5 in (True, False):
            one = ProbeClient(socket.create_connection(("127.0.0.1", broker.port)), is_mqtt5=is_mqtt5)
            assert one.connect("x", "ann", "wrong", soon()).code == 0x87
            one.close()


def test_limits_are_read_from_the_greeting(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, "max_packet_size 5000", "max_qos 1") as broker:
        one = ProbeClient(socket.create_connection(("127.0.0.1", broker.port)))
        greeting = one.connect("x", None, None, soon())
        assert (greeting.code, greeting.max_packet_bytes, greeting.max_qos) == (0, 5000, 1)
        one.close()


def test_what_is_heard_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_HEARD_BYTES", 1 << 20)
    with Mosquitto(tmp_path) as broker, client(broker.port) as one:
        one.subscribe("t", soon())
        for _ in range(50):
            one.publish("t", bytes(100_000), qos=0, until=soon())
        with pytest.raises(BrokerError, match="sent more than 1,048,576 bytes of messages"):
            one.listen(soon())
        assert len(one.heard) == 10


def test_a_silent_peer_ends_in_a_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        one = ProbeClient(socket.create_connection(deaf.getsockname()))
        with pytest.raises(TimeoutError):
            one.connect("x", None, None, soon(0.2))
        one.close()


@given(st.binary(max_size=200))
def test_any_answer_is_an_error_or_a_greeting(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # Whatever comes, then the end: nothing can wait for more.
        def reply() -> None:
            theirs.recv(1 << 16)
            theirs.sendall(answer)
            theirs.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=reply)
        thread.start()
        with contextlib.suppress(BrokerError, OSError):
            ProbeClient(ours).connect("x", None, None, soon())
        thread.join()
