"""What an agent loads and keeps running: no more than its work needs, for boards are small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_ON_A_BOARD = {
    "asyncio", "http.server", "jinja2", "jsonschema", "matplotlib", "multiprocessing", "networkx", "PIL",
    "prometheus_client", "pydoc", "rich", "selenium", "sqlite3", "unittest", "xml",
    "broker_config", "distree.apps.demo", "distree.bundle.inputs", "model_zoo", "orchestrator", "tools",
}  # fmt: skip
"""What other parts and extras use. An agent that loaded it would pay for it in memory and at every start."""

LOADED = """
import sys
from pathlib import Path
from device_agent.agent import Agent
from device_agent.config import load_agent_config
agent = Agent(load_agent_config(Path(sys.argv[1])))
agent.prepare()
print(*sys.modules)
"""
LINUX = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts what Linux' /proc says")


@pytest.mark.any_broker
def test_an_agent_loads_nothing_of_other_parts_or_extras(site):
    path = site.agent_config("cam", [0, 1, 2], origin={"source": {"kind": "mqtt"}})
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "device_agent.agent" in loaded
    assert not loaded & NOT_ON_A_BOARD


@pytest.mark.any_broker
@LINUX
def test_an_idle_agent_sleeps_in_few_threads(site):
    agent = site.agent("cam", [0, 1, 2], origin={"source": {"kind": "mqtt"}}, telemetry_interval_s=1.0)
    site.watch.until_reported("cam")
    tasks = list(Path(f"/proc/{agent.pid}/task").iterdir())
    # The receiver, the worker, the watchdog, and what the interpreter keeps per core.
    assert len(tasks) <= 4 + (os.cpu_count() or 1), [(task / "comm").read_text() for task in tasks]
    first, before = site.watch.telemetry["cam"], waits(agent.pid)
    site.watch.until(lambda: site.watch.telemetry["cam"].uptime_s >= first.uptime_s + 4, "reports")
    passed_s = site.watch.telemetry["cam"].uptime_s - first.uptime_s
    # Some a second for keeping time, against the hundreds of a loop that polls.
    assert waits(agent.pid) - before <= 25 * (passed_s + 2)


def waits(pid: int) -> int:
    """How often the threads of a process have gone to sleep."""
    lines = [
        line for task in Path(f"/proc/{pid}/task").iterdir() for line in (task / "status").read_text().splitlines()
    ]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
