"""The commands of docs/dashboards.md, run as they stand there against real boards on a real broker."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from broker_config.managed import find_mosquitto
from distree import topics
from distree.topics import Kind
from orchestrator.config import OrchestratorConfig

PAGE = (Path(__file__).parents[2] / "docs" / "dashboards.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]

PRINTS = [
    r'^\{"schema":"distree\.result/1","request":.*"clock_synced":(true|false)\}$',
    r"^\d+\.png: [A-Z].* \(0\.\d+\)$",
    r"^\d+\.png: [A-Z].*, last$",
    r"^cam1\t[012]\t\d+(\.\d+)?\t\d+(\.\d+)?$",
    r'^distree/1/test/device/cam1/state \{"schema":"distree\.state/1","device":"cam1",.*"state":"ready"\}$',
    r'^  "runtime": "[a-z].*",$',
    r'^\{"schema":"distree\.orchestrator/1","orchestrator":"[0-9a-f]+","running":true\}$',
    r"^warning cam1: refused .*\d+ bytes.*$",
    r"^cam1 distree/1/test/pipeline/fashion/input/cam1: .*\d+ bytes.*$",
]
"""A line that each command prints."""


@pytest.fixture(scope="module")
def tools():
    for tool in ("mosquitto_sub", "jq"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: apt install mosquitto-clients jq")
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")


def test_every_command_of_the_page_has_its_line():
    assert len(COMMANDS) == len(PRINTS)
    assert all(command.startswith("mosquitto_sub -h broker ") for command in COMMANDS)


@pytest.mark.any_broker
def test_the_commands_of_the_page_print_what_it_says(tools, site, bundle, images):
    config = {
        "site": "test",
        "broker": {"port": site.broker.port},
        "store": {"path": str(site.folder / "orchestrator.db")},
        "pipelines": [{"name": "fashion", "bundle": "fashion", "thresholds": ["never", "never"]}],
    }
    (site.folder / "orchestrator.yaml").write_text(yaml.safe_dump(config))
    site.start("orchestrator", "orchestrator", "run", "-c", str(site.folder / "orchestrator.yaml"))
    site.agent("cam1", [0, 1, 2], origin={"source": {"kind": "mqtt"}, "deadline_ms": 20000})
    inputs = topics.of_origin("test", "fashion", Kind.INPUT, "cam1")
    # By this plan no exit but the last is sure of anything.
    site.watch.until(
        lambda: "cam1" in site.watch.telemetry and site.watch.telemetry["cam1"].pipelines[0].epoch > 0, "the plan"
    )
    running = [subscribe(command, site.broker.port) for command in COMMANDS]
    try:
        for process in running:
            k = 0
            while process.poll() is None:
                # What a command waits for may have come before it was there: it comes until all have seen it.
                site.submit(f"r-{id(process)}-{k}", f"{k}.png", images[k % len(images)], origin="cam1")
                site.watch.publish(inputs, b"\x00short")
                site.watch.transport.poll(0.02)
                k += 1
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for command, process, line in zip(COMMANDS, running, PRINTS, strict=True):
        out, err = process.communicate()
        assert re.search(line, out, re.MULTILINE), (command, out[-2000:], err)


def subscribe(command: str, port: int) -> subprocess.Popen[str]:
    """Start a command as it stands, on the test's broker and site; it ends after some messages, a minute at most."""
    is_retained = any(word in command for word in ("/meta", "/orchestrator", "/state"))
    count = 1 if is_retained else 10
    here = command.replace("-h broker", f"-h 127.0.0.1 -p {port} -C {count} -W 60").replace("/1/lab/", "/1/test/")
    return subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", here], stdout=-1, stderr=-1, text=True, start_new_session=True
    )


def test_the_yaml_of_the_page_is_what_the_orchestrator_reads():
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    ours = [name for block in blocks for name in block if name != "scrape_configs"]
    assert ours == ["home_assistant", "metrics"]
    assert set(ours) <= set(OrchestratorConfig.__dataclass_fields__)
