"""One command shows it: `distree demo --dashboard`."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import pytest

from broker_config.managed import WEBSOCKETS_USER, answers_mqtt, find_mosquitto

ROOT = Path(__file__).parents[4]
COUNT = 90


def line_with(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"the demo ended without a line like {pattern}")


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto")
def test_the_demo_can_be_watched(page_at: Any) -> None:
    command = [sys.executable, "-u", "-m", "distree", "demo", "--dashboard", "0", "--inputs", str(COUNT)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url, user, password = line_with(process, r"^dashboard: (\S+) user (\S+), password (\S+)$").groups()
            assert user == WEBSOCKETS_USER
            port = int(line_with(process, r"^broker: mosquitto \S+ on 127\.0\.0\.1:(\d+)$").group(1))
            page = page_at(url)
            page.log_in(user, password)
            page.until(lambda: page.text("#online") == "3 of 3 ready", "the boards")
            page.until(lambda: page.number("total") > 5, "results")
            page.until(lambda: "in force on 3 of 3 boards" in page.text(".plan"), "the plan")
            pictures = "return [...document.querySelectorAll('.thumb img')].filter((i) => i.naturalWidth === 28).length"
            page.until(lambda: page.driver.execute_script(pictures) > 5, "pictures")
            line_with(process, rf"^{COUNT} of {COUNT} answered")
            line_with(process, r"^the dashboard stays until Ctrl-C$")
            assert page.number("refused") == 0
            assert page.errors() == []
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.terminate()
    page.until(lambda: page.state == "lost", "the end")
    assert not answers_mqtt("127.0.0.1", port)


def test_a_broker_of_ones_own_has_a_dashboard_of_its_own() -> None:
    done = forked.run(["demo", "--dashboard", "--broker", "127.0.0.1:1883"])
    assert done.returncode == 2
    assert done.stderr.startswith(
        "distree: --dashboard: only for the broker that the demo starts; run `distree dashboard"
    )
