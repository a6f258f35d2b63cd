"""A split bundle on real agents answers as `distree zoo evaluate` says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import whole_networks as whole

from broker_config.managed import find_mosquitto
from model_zoo.data import LabelledExamples, load_examples, write_samples

ROOT = Path(__file__).parents[3]
COUNT = 60


def distree(*arguments):
    command = [sys.executable, "-m", "distree", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)


@pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto: apt install mosquitto")
def test_agents_answer_as_the_evaluation_does(zoo, tmp_path, hurried):
    (tmp_path / "net.tflite").write_bytes(whole.fashion())
    samples = load_examples(ROOT / "model_zoo" / "samples" / "fashion.npz")
    order = np.random.default_rng(0).permutation(len(samples))
    np.savez(tmp_path / "data.npz", x=samples.inputs[order[:300]], y=samples.labels[order[:300]])
    options = ("--data", tmp_path / "data.npz", "--range=-1..1", "--hidden", 16, "--max-drop", "0.2%", "--force")
    assert zoo("split", tmp_path / "net.tflite", *options, "--out", tmp_path / "mine") == 0
    test = order[300 : 300 + COUNT]
    write_samples(LabelledExamples(samples.inputs[test], samples.labels[test], test, "test"), tmp_path / "test.npz")
    told = ("--data", tmp_path / "test.npz", "--json")
    done = distree("zoo", "evaluate", tmp_path / "mine", "--per-input", *told, tmp_path / "evaluated.json")
    assert done.returncode == 0, done.stderr
    done = distree("demo", "--bundle", tmp_path / "mine", "--inputs", COUNT, *told, tmp_path / "served.json")
    assert done.returncode == 0, done.stderr
    served, evaluated = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("served", "evaluated"))
    answers = [(answer["class_id"], answer["exit"]) for answer in served["results"]]
    assert answers == [(result["class_id"], result["exit"]) for result in evaluated["results"]]
    assert len({exit for _, exit in answers}) > 1
