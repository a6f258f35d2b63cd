"""`distree broker run`: one line at the start, exit status 0 when stopped, 2 when it cannot start."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from broker_config.managed import answers_mqtt, find_mosquitto, has_embedded

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = (
    "import argparse, sys; from broker_config import cli; parser = argparse.ArgumentParser(); "
    "cli.add_arguments(parser); sys.exit(cli.run(parser.parse_args()))"
)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def port_of(line: str) -> int:
    found = re.search(r" on 127\.0\.0\.1:(\d+)", line)
    assert found, line
    return int(found.group(1))


needs_a_broker = pytest.mark.skipif(find_mosquitto() is None and not has_embedded(), reason="no broker installed")


@pytest.mark.any_broker
@needs_a_broker
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_runs_until_a_signal(number: signal.Signals) -> None:
    with start("--port", "0") as process:
        assert process.stdout is not None
        port = port_of(process.stdout.readline())
        assert answers_mqtt("127.0.0.1", port)
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output == ""
    assert not answers_mqtt("127.0.0.1", port)


@pytest.mark.any_broker
@needs_a_broker
def test_a_port_in_use_is_one_line_and_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with start("--port", str(port)) as process:
            output, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert f"port {port}" in errors


@pytest.mark.skipif(not has_embedded(), reason="iotcore is not installed")
def test_the_embedded_broker_refuses_persistence(tmp_path: Path) -> None:
    with start("--engine", "embedded", "--persistence", str(tmp_path)) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors.count("\n") == 1
