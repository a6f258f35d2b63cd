"""The hop is still measured: all stacks of `benchmarks.hop` answer what they are sent."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


FEW = ["--rounds", "1", "--starts", "1", "--inputs", "40", "--latency-inputs", "20"]


@pytest.mark.usefixtures("mosquitto_only")
@pytest.mark.parametrize(
    ("options", "stacks"),
    [([], {"distree", "bare"}), (["--secured"], {"certificates", "passwords", "open"})],
    ids=["bare loop", "secured"],
)
def test_all_stacks_answer(tmp_path, options, stacks):
    if options and shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "hop.json"
    command = [sys.executable, "-m", "benchmarks.hop", *FEW, *options, "--json", str(path)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True, timeout=120)
    figures = json.loads(path.read_text())["figures"]
    assert figures["latency_p50_ms"].keys() == stacks
    assert all(one["median"] > 0.0 for one in figures["latency_p50_ms"].values())
