"""The examples in examples/python and the blocks of docs/python-api.md, run as a user runs them."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from live_sink import needs_ffmpeg

from broker_config.managed import ManagedBroker
from distree.bundle.loading import find_bundle

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "python"
PAGE = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
PATIENCE_S = 100


@pytest.fixture(scope="module")
def broker():
    with ManagedBroker() as running:
        yield running


@pytest.fixture
def start(tmp_path):
    """Starts a Python program in an empty folder; it is gone when the test ends."""
    started = []
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return out


def test_examples_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) == 3
    assert max(lengths.values()) <= 60


@needs_ffmpeg
@pytest.mark.any_broker
def test_a_camera_and_a_listener(broker, start, tmp_path):
    url = f"mqtt://127.0.0.1:{broker.port}"
    listener = start(EXAMPLES / "listen.py", "results.csv", "--broker", url, "--count", "30")
    assert listener.stdout.readline() == "listening\n"
    camera = ended(start(EXAMPLES / "camera.py", "--broker", url, "--frames", "30", "--rate", "50", "--deadline", "60"))
    *answers, summary = camera.splitlines()
    assert summary == "30 submitted, 0 left out"
    assert all(re.fullmatch(r"frame \d+: .+ \d+%, exit [012], \d+\.\d+ s", line) for line in answers)
    counts = ended(listener).splitlines()
    assert sum(int(line.rsplit(": ", 1)[1]) for line in counts) == 30
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["input"] for row in rows} == {f"frame {k}" for k in range(30)}
    assert sorted(line.split(" ", 2)[2].rsplit(" ", 5)[0] for line in answers) == sorted(row["label"] for row in rows)


@pytest.mark.any_broker
def test_many_inputs_in_flight(broker, start, tmp_path):
    (tmp_path / "agent.yaml").write_text(
        f"site: lab\ndevice: many\nbroker: {{port: {broker.port}}}\npipelines:\n  - name: fashion\n    bundle: fashion\n"
        "    stages: [0, 1, 2]\n    origin: {deadline_ms: 60000, max_pending: 16, source: {kind: python}}\n"
    )
    first, *exits = ended(start(EXAMPLES / "many.py", "agent.yaml")).splitlines()
    said = re.fullmatch(r"200 answered, (\d+\.\d)% right", first)
    assert said
    assert float(said[1]) > 85
    assert sum(int(line.rsplit(": ", 1)[1]) for line in exits) == 200


def as_a_program(block, port):
    """A block of the page, on the test's broker, with an image at hand; what listens hears what is submitted."""
    image = find_bundle("fashion").parents[1] / "samples" / "fashion.npz"
    before = f"import numpy as np\nimage = np.load({str(image)!r})['input'][0]\n"
    return before + block.replace('broker="mqtt://hub"', f'broker="mqtt://127.0.0.1:{port}", deadline_s=60').replace(
        "mqtt://hub", f"mqtt://127.0.0.1:{port}"
    )


@pytest.mark.any_broker
@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_the_blocks_of_the_page_run(broker, start, tmp_path, index):
    (tmp_path / "agent.yaml").write_text(
        f"site: lab\ndevice: yaml\nbroker: {{port: {broker.port}}}\npipelines:\n  - name: fashion\n    bundle: fashion\n"
        "    stages: [0, 1, 2]\n    origin: {deadline_ms: 60000, source: {kind: python}}\n"
    )
    out = ended(start("-c", as_a_program(BLOCKS[index], broker.port)))
    assert re.search(r"(boot|Trouser|Pullover|Dress|Coat|Sandal|Shirt|Sneaker|Bag|T-shirt)", out)


def test_types_are_as_a_user_sees_them(tmp_path):
    """mypy, strict, with nothing of this repository's own configuration but where the packages are."""
    pytest.importorskip("mypy", reason="types are checked with mypy: pip install mypy")
    assert all((ROOT / package / "py.typed").is_file() for package in ("distree", "device_agent"))
    (tmp_path / "wrong.py").write_text(
        "from distree import Results\nfor result in Results(site='lab'):\n    reveal_type(result)\n    result.lable\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--follow-imports", "silent"]
    checked = [*map(str, EXAMPLES.glob("*.py")), str(tmp_path / "wrong.py")]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache"), "--explicit-package-bases", *checked],
        capture_output=True, text=True, cwd=tmp_path, env=env, timeout=PATIENCE_S,
    )  # fmt: skip
    assert 'Revealed type is "distree.messages.result.Result"' in done.stdout
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout
    assert '"Result" has no attribute "lable"' in errors[0]
