"""`distree demo`: the first thing anybody runs, and it must clean up after itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from broker_config.managed import ManagedBroker, find_mosquitto, has_embedded
from distree.transport.paho import PahoTransport
from distree.types import BrokerSettings

ROOT = Path(__file__).resolve().parents[2]
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}
COUNT = 200


def command(*arguments):
    return [sys.executable, "-m", "distree", *map(str, arguments)]


def distree(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, env=ENVIRON, capture_output=True, text=True, timeout=180)


@pytest.fixture(scope="session")
def offline(tmp_path_factory, samples_path):
    """(class id, exit) of each of the first samples, by `distree zoo evaluate` at the bundle's thresholds."""
    path = tmp_path_factory.mktemp("offline") / "evaluation.json"
    done = distree("zoo", "evaluate", "fashion", "--limit", COUNT, "--per-input", "--json", path)
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())["results"]
    with np.load(samples_path) as arrays:
        assert [result["truth"] for result in results] == arrays["label"][:COUNT].tolist()
    return [(result["class_id"], result["exit"]) for result in results]


def skip_without(engine):
    if engine == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    if engine == "embedded" and not has_embedded():
        pytest.skip("iotcore, the embedded broker, is not installed")


@pytest.mark.parametrize("engine", ["mosquitto", "embedded"])
def test_the_demo_answers_all_inputs_as_the_offline_evaluation_does(engine, tmp_path, bundle, samples_path, offline):
    skip_without(engine)
    path = tmp_path / "demo.json"
    done = distree("demo", "--inputs", COUNT, "--engine", engine, "--json", path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    answers = figures["results"]
    assert [answer["index"] for answer in answers] == list(range(COUNT))
    assert [(answer["class_id"], answer["exit"]) for answer in answers] == offline
    assert [answer["label"] for answer in answers] == [bundle.labels[class_id] for class_id, _ in offline]
    last = len(bundle.stages) - 1
    assert [answer["reason"] for answer in answers] == ["last" if exit == last else "confident" for _, exit in offline]

    with np.load(samples_path) as arrays:
        truth = arrays["label"][:COUNT]
    assert (figures["inputs"], figures["answered"], figures["duplicates"]) == (COUNT, COUNT, 0)
    assert figures["accuracy"] == pytest.approx(np.mean(truth == [class_id for class_id, _ in offline]))
    shares = np.bincount([exit for _, exit in offline], minlength=last + 1) / COUNT
    assert figures["exit_share"] == pytest.approx(shares.tolist())
    latency = figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]
    assert latency["p50"] == pytest.approx(np.median([answer["latency_ms"] for answer in answers]))
    # At the least the features themselves travel.
    sent = sum(np.prod(bundle.stages[k].features.shape) for _, exit in offline for k in range(exit)) / COUNT
    assert sent < figures["bytes_per_input"] < figures["bytes_per_input_no_early_exit"]
    assert figures["wall_s"] > 0
    assert {"mosquitto": "mosquitto ", "embedded": "iotcore "}[engine] in figures["broker"]
    assert f"{COUNT} of {COUNT} answered" in done.stdout
    assert f"accuracy {100 * figures['accuracy']:.1f} %" in done.stdout


def processes_with(text):
    """{pid: command line} of the processes that have `text` in their command line or environment."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            line = (entry / "cmdline").read_bytes()
            if state != "Z" and text.encode() in line + (entry / "environ").read_bytes():
                found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


@contextlib.contextmanager
def demo_in_mid_stream(tmp_path, samples_path, *arguments):
    """A demo that has begun to answer and will not be done for a while, with all its files in `tmp_path`."""
    with np.load(samples_path) as arrays:
        many = {name: np.tile(arrays[name], (40,) + (1,) * (arrays[name].ndim - 1)) for name in ("input", "label")}
    np.savez(tmp_path / "many.npz", **many)
    folder = tmp_path / "scratch"
    folder.mkdir()
    environ = {**ENVIRON, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    argv = command("demo", "--inputs", len(many["label"]), "--data", tmp_path / "many.npz", *arguments)
    process = subprocess.Popen(argv, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = threading.Timer(120, process.kill)
    end.start()
    try:
        while " answered" not in (line := process.stdout.readline()) or line.split()[0] == "0":
            assert line, process.stderr.read()
        yield process, folder
    finally:
        end.cancel()
        process.kill()
        # Whoever is left holds the pipes open, and reading them would not end.
        for pid in processes_with(str(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def await_end(text):
    ends_at = time.monotonic() + 20
    while left := processes_with(text):
        assert time.monotonic() < ends_at, left
        time.sleep(0.02)


def test_ctrl_c_leaves_nothing_behind(tmp_path, samples_path):
    with demo_in_mid_stream(tmp_path, samples_path) as (process, folder):
        running = processes_with(str(folder))
        assert len(running) >= 1 + 1 + 1 + 3, running  # the demo, a broker, an orchestrator and three agents
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in errors
        assert not processes_with(str(folder))
        assert not list(folder.iterdir())


def test_children_end_with_a_demo_that_is_killed(tmp_path, samples_path):
    with demo_in_mid_stream(tmp_path, samples_path) as (process, folder):
        process.kill()
        process.wait()
        await_end(str(folder))


@pytest.mark.parametrize("engine", ["mosquitto", "embedded"])
def test_a_broker_that_was_there_is_used_and_left_as_it_was(engine, tmp_path):
    skip_without(engine)
    path = tmp_path / "demo.json"
    with ManagedBroker(engine=engine) as broker:
        done = distree("demo", "--inputs", 50, "--broker", f"127.0.0.1:{broker.port}", "--json", path)
        assert done.returncode == 0, done.stderr
        figures = json.loads(path.read_text())
        assert figures["answered"] == 50
        assert str(broker.port) in figures["broker"]
        assert broker.running
        assert retained(broker.port) == []


def test_ctrl_c_leaves_nothing_on_a_broker_that_was_there(tmp_path, samples_path):
    with (
        ManagedBroker() as broker,
        demo_in_mid_stream(tmp_path, samples_path, "--broker", f"127.0.0.1:{broker.port}") as (process, _),
    ):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert retained(broker.port) == []


class Retained:
    def __init__(self):
        self.found, self.done = [], False

    def connected(self):
        pass

    def disconnected(self, why):
        pass

    def published(self, token):
        pass

    def received(self, message):
        self.transport.acknowledge(message.token)
        if message.topic == "the/last":
            self.done = True
        elif message.retain and message.payload:
            self.found.append((message.topic, message.payload))


def retained(port):
    """What a newcomer finds at the broker; a message of its own, sent after the subscription, marks the end."""
    listener = Retained()
    listener.transport = transport = PahoTransport(BrokerSettings(port=port), client_id="newcomer", clean=True)
    transport.open(listener, [("distree/#", 1), ("the/last", 1)])
    try:
        transport.connect_now(10)
        with transport.lock:
            transport.publish("the/last", b"x", qos=1)
        ends_at = time.monotonic() + 20
        while not listener.done:
            assert time.monotonic() < ends_at
            transport.poll(0.05)
    finally:
        transport.close()
    return listener.found


@pytest.mark.parametrize(("count", "status"), [("0", 2), ("-1", 2), ("1001", 2)])
def test_a_number_of_inputs_that_is_not_there_is_one_line(count, status):
    done = distree("demo", f"--inputs={count}")
    assert done.returncode == status
    assert done.stderr == f"distree: --inputs: expected 1 to 1000 (the samples in fashion.npz), received {count}\n"


def test_figures_that_cannot_be_written_are_one_line(tmp_path):
    done = distree("demo", "--inputs", "5", "--json", tmp_path / "none" / "demo.json")
    ours = [line for line in done.stderr.splitlines() if line.startswith("distree: ")]
    assert (done.returncode, len(ours)) == (2, 1)
    assert "demo.json: cannot be written: No such file or directory" in ours[0]
    assert "Traceback" not in done.stderr


def test_an_agent_that_cannot_start_is_told_with_its_own_words(tmp_path, bundle):
    damaged = Path(shutil.copytree(bundle.path, tmp_path / "fashion"))
    np.savez(tmp_path / "wrong.npz", input=np.zeros((3, 5, 5, 1), np.uint8), label=np.zeros(3, int))
    done = distree("demo", "--inputs", "3", "--bundle", damaged, "--data", tmp_path / "wrong.npz")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "distree: board0 ended with status 2: distree: " in done.stderr
    assert "input is uint8 (3, 5, 5, 1), the bundle takes uint8 (n, 28, 28, 1)" in done.stderr
