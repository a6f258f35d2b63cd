"""The hop is still measured: both stacks of `benchmarks.hop` answer what they are sent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("mosquitto_only")
def test_both_stacks_answer(tmp_path):
    path = tmp_path / "hop.json"
    few = ["--rounds", "1", "--starts", "1", "--inputs", "40", "--latency-inputs", "20"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.hop", *few, "--json", str(path)],
        cwd=ROOT, stdout=subprocess.DEVNULL, check=True, timeout=120,
    )  # fmt: skip
    figures = json.loads(path.read_text())["figures"]
    assert figures["latency_p50_ms"]["distree"] > 0.0
    assert figures["latency_p50_ms"]["bare"] > 0.0
