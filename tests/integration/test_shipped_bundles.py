"""Every shipped bundle served by agents: what they answer is what `distree zoo evaluate` says."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from input_bundles import wav

from distree.bundle.loading import load_bundle, zoo_folder
from model_zoo.data import load_examples, shipped_samples
from model_zoo.recipes import get_whole_recipe, whole_recipe_names

SHIPPED = sorted(path.name for path in zoo_folder().iterdir() if path.is_dir())
COUNT = 100

pytestmark = pytest.mark.any_broker


def distree(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "distree", *map(str, arguments)],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(path):
    return json.loads(path.read_text())["results"]


@pytest.mark.parametrize("name", SHIPPED)
def test_one_command_shows_any_bundle(name, tmp_path):
    samples = load_examples(shipped_samples(name))
    told = distree("demo", "--bundle", name, "--json", tmp_path / "demo.json")
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert figures["answered"] == figures["inputs"] == len(samples)
    assert f"inputs: {len(samples):,} shipped samples: " in told
    if samples.labels is None:
        assert "without labels" in told
        assert "accuracy" not in told
    else:
        assert figures["accuracy"] > 0.5


def many(name):
    """Labelled windows that are none of the samples: these, varied as training does it."""
    bundle, samples = load_bundle(name), load_examples(shipped_samples(name))
    generator = np.random.default_rng(7)
    chosen = np.arange(COUNT) % len(samples)
    inputs = np.stack([get_whole_recipe(name).vary(samples.inputs[place], generator) for place in chosen])
    return bundle, inputs, samples.labels[chosen]


@pytest.mark.parametrize("name", whole_recipe_names())
def test_a_hundred_windows_are_answered_as_the_evaluation_says(name, tmp_path):
    _, inputs, labels = many(name)
    data = tmp_path / "windows.npz"
    np.savez(data, x=inputs, y=labels)
    distree("zoo", "evaluate", name, "--data", data, "--per-input", "--json", tmp_path / "evaluated.json")
    distree("demo", "--bundle", name, "--data", data, "--json", tmp_path / "served.json")
    evaluated, served = (
        [(row["class_id"], row["exit"]) for row in rows(tmp_path / f"{which}.json")]
        for which in ("evaluated", "served")
    )
    assert len(served) == COUNT
    assert served == evaluated
    assert len({exit for _, exit in served}) > 1


def sound(recording):
    return "wav", wav(recording, 8000)


def motion(recording):
    header = "time (s)," + ",".join(load_bundle("wrist-exercises").manifest.input.channels)
    lines = [f"{k / 50:.2f}," + ",".join(map(repr, row)) for k, row in enumerate(recording.tolist())]
    return "csv", ("\n".join([header, *lines]) + "\n").encode()


@pytest.mark.parametrize(("name", "written"), [("spoken-digits", sound), ("wrist-exercises", motion)])
def test_a_stream_of_files_is_answered_window_by_window_as_the_evaluation_says(name, written, site, tmp_path):
    bundle, inputs, labels = many(name)
    inbox, data = site.folder / "inbox", tmp_path / "data"
    inbox.mkdir()
    site.bundle = name
    site.agent(
        "ear",
        [0, 1, 2],
        origin={"deadline_ms": 20000, "source": {"kind": "directory", "path": "inbox", "quiet_ms": 20}},
    )
    # Three windows end to end are a recording; by its hop it has five.
    for number, begin in enumerate(range(0, 30, 3)):
        kind, content = written(np.concatenate(inputs[begin : begin + 3]))
        folder = data / bundle.labels[labels[begin]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.{kind}").write_bytes(content)
        (inbox / f".{number}").write_bytes(content)
        (inbox / f".{number}").rename(inbox / f"{number}.{kind}")
    distree("zoo", "evaluate", name, "--data", data, "--per-input", "--json", tmp_path / "evaluated.json")
    expected = {
        row["input"].rpartition("/")[2]: (row["class_id"], row["exit"]) for row in rows(tmp_path / "evaluated.json")
    }
    assert len(expected) == 50
    site.watch.until(lambda: len(site.watch.results) == len(expected), "an answer to every window")
    assert {result.input: (result.class_id, result.exit) for result in site.watch.results} == expected
