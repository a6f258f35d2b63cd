"""systemd's notify protocol, against real datagram sockets."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket

import pytest

from device_agent.watchdog import SystemdNotifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """(what NOTIFY_SOCKET says, the socket of the service manager)."""
    name = f"/distree-test-{secrets.token_hex(8)}"
    address, shown = (str(tmp_path / "n"), str(tmp_path / "n"))
    if request.param == "abstract":
        address, shown = f"\0{name}", f"@{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(10)
        yield shown, listener


def test_messages_arrive_one_by_one(manager):
    shown, listener = manager
    notifier = SystemdNotifier({"NOTIFY_SOCKET": shown})
    for message in ("READY=1", "WATCHDOG=1", "STOPPING=1"):
        notifier.send(message)
        assert listener.recv(100) == message.encode()


@pytest.mark.parametrize("address", ["", "/does/not/exist", "@nobody-is-here", "/" + "x" * 300, "vsock:2:1"])
def test_a_manager_that_is_not_there_is_no_error(address):
    SystemdNotifier({"NOTIFY_SOCKET": address}).send("READY=1")
    SystemdNotifier({}).send("READY=1")


def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "n"))
        notifier = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "n")})
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
            flood.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    flood.sendto(b"x", str(tmp_path / "n"))
        notifier.send("WATCHDOG=1")


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid())}, 0.0005),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_interval_is_half_of_what_systemd_waits_for_this_process(environ, interval_s):
    assert SystemdNotifier(environ).interval_s == interval_s


def test_the_environment_of_the_process_is_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert SystemdNotifier().interval_s == 2.0


def test_a_hung_interpreter_is_neither_fed_nor_waited_for_in_a_busy_loop(monkeypatch):
    from memory_transport import MemoryBroker

    from device_agent.agent import Agent
    from device_agent.config import AgentConfig, AgentPipelineConfig

    pipelines = (AgentPipelineConfig(name="fashion", bundle="fashion", stages=(0,)),)
    config = AgentConfig(site="lab", device="b0", pipelines=pipelines, inference_timeout_s=30.0)
    agent = Agent(config, transport=MemoryBroker().transport("b0"))
    sent = []
    monkeypatch.setattr(agent._notifier, "interval_s", 5.0)
    monkeypatch.setattr(agent._notifier, "send", sent.append)
    for busy_s, expected in ((0.0, ["WATCHDOG=1"]), (40.0, [])):
        monkeypatch.setattr(agent.workers, "busy_s", lambda busy_s=busy_s: busy_s)
        sent.clear()
        agent.reporting.report_soon()
        agent._watchdog_at = 0.0
        agent._tick(1000.0)
        assert sent == expected
        assert agent._due_at() > 1000.0
