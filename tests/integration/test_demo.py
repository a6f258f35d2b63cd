"""`distree demo`: the first thing anybody runs, and it must clean up after itself."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked
import numpy as np
import pytest
from input_bundles import motion_bundle, motions, sound_bundle, sounds, wav

from broker_config.managed import ManagedBroker, find_mosquitto, has_embedded
from distree.broker_settings import BrokerSettings, Session
from distree.transport import make_transport

ROOT = Path(__file__).resolve().parents[2]
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}
COUNT = 200


def command(*arguments):
    return [sys.executable, "-m", "distree", *map(str, arguments)]


def distree(*arguments):
    return forked.run(arguments, timeout=180)


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


# ---------------------------------------------------------------- wide stages


@functools.cache
def evaluated(bundle, data):
    """{index: (class id, exit)} by `distree zoo evaluate`."""
    path = data.with_suffix(f".{bundle.name}.json")
    done = distree("zoo", "evaluate", bundle, "--data", data, "--per-input", "--json", path)
    assert done.returncode == 0, done.stderr
    return {row["index"]: (row["class_id"], row["exit"]) for row in json.loads(path.read_text())["results"]}


def demo_of(bundle, data, tmp_path, *options, count=120):
    path = tmp_path / "demo.json"
    done = distree("demo", "--bundle", bundle, "--data", data, "--inputs", count, "--json", path, *options)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


@pytest.mark.any_broker
@pytest.mark.parametrize(
    ("options", "fuser"),
    [(["--mode", "gated"], "origin"), (["--mode", "eager"], "origin"), (["--fuser", "board"], "fuser")],
)
def test_a_demo_of_wide_stages_answers_as_the_offline_evaluation_does(tmp_path, tiny_wide, tiny_path, options, fuser):
    expected = evaluated(tiny_wide.path, tiny_path)
    figures, told = demo_of(tiny_wide.path, tiny_path, tmp_path, *options)
    answers = {answer["index"]: (answer["class_id"], answer["exit"]) for answer in figures["results"]}
    assert answers == {index: expected[index] for index in range(120)}
    assert {tuple(answer["missing"]) for answer in figures["results"]} == {()}
    assert (figures["missing"], figures["fuser"]) == ([0, 0], fuser)
    reach = [sum(exit >= k for _, exit in answers.values()) for k in range(3)]
    messages, sizes = figures["messages"], figures["bytes"]
    assert messages["stage 0"] == messages["exit 0"] == 2 * 120
    assert messages.get("outcome", 0) == (120 if fuser == "fuser" else 0)
    embedding = int(np.prod(tiny_wide.branch(0, 0).embedding.shape))
    assert all(sizes[f"exit {k}"] > embedding * messages[f"exit {k}"] for k in range(3))
    assert figures["bytes_per_input"] == pytest.approx(sum(sizes.values()) / 120)
    runs, wasted = sum(figures["branch_runs"]), sum(figures["wasted_runs"])
    if "eager" in options:
        assert figures["mode"] == "eager"
        assert messages["exit 2"] >= 2 * reach[2]
        assert runs - wasted == 2 * sum(reach)
        assert wasted > 0
        assert f"runs of branches that no answer needed: {wasted:,} of {runs:,}" in told
    else:
        assert figures["mode"] == "gated"
        assert (runs, wasted) == (2 * sum(reach), 0)
        assert [messages[f"exit {k}"] for k in range(3)] == [2 * count for count in reach]
        # A word to go on or to stop for each branch at each exit but the last.
        assert messages["decision"] == 2 * (reach[0] + reach[1])
        assert figures["bytes_per_input"] < figures["bytes_per_input_no_early_exit"]
        assert "runs of branches" not in told
    assert f"fused at {fuser}" in told
    assert "of them embeddings and decisions: decision " in told
    assert "answers without a branch: none" in told


@pytest.mark.parametrize("engine", ["mosquitto", "embedded"])
def test_a_demo_of_plain_and_wide_stages_answers_as_the_offline_evaluation_does(
    tmp_path, tiny_mixed, tiny_path, engine
):
    skip_without(engine)
    expected = evaluated(tiny_mixed.path, tiny_path)
    figures, told = demo_of(tiny_mixed.path, tiny_path, tmp_path, "--engine", engine)
    assert [(row["index"], row["class_id"], row["exit"]) for row in figures["results"]] == [
        (index, *expected[index]) for index in range(120)
    ]
    reach = [sum(row["exit"] >= k for row in figures["results"]) for k in range(4)]
    messages = figures["messages"]
    assert [messages[hop] for hop in ("stage 1", "exit 1", "exit 2", "stage 3", "outcome")] == [
        3 * reach[1], 3 * reach[1], 3 * reach[2], reach[3], reach[3],
    ]  # fmt: skip
    table = [line.split()[:4] for line in told.splitlines()]
    assert ["0", "board0"] in [row[:2] for row in table]
    assert ["1", "fused", "at", "board0"] in table
    assert ["3", "board3"] in [row[:2] for row in table]


@pytest.mark.any_broker
def test_a_branch_may_be_killed_during_a_demo(tmp_path, tiny_wide, tiny_images):
    count = 1500  # six seconds of them
    arrays = {"input": np.tile(tiny_images, (4, 1, 1, 1))[:count], "label": np.zeros(count, int)}
    np.savez(tmp_path / "many.npz", **arrays)
    folder, path = tmp_path / "scratch", tmp_path / "demo.json"
    folder.mkdir()
    where = ["--bundle", tiny_wide.path, "--data", tmp_path / "many.npz", "--inputs", count, "--json", path]
    environ = {**ENVIRON, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command("demo", *where), cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = threading.Timer(120, process.kill)
    end.start()
    try:
        while " answered" not in (line := process.stdout.readline()) or line.split()[0] == "0":
            assert line, process.stderr.read()
        (branch,) = [pid for pid, line in processes_with(str(folder)).items() if "branch1.yaml" in line]
        os.kill(branch, signal.SIGKILL)
        told, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    finally:
        end.cancel()
        process.kill()
        for pid in processes_with(str(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
    assert "branch1 was killed; the others go on without it" in told
    figures = json.loads(path.read_text())
    missing = figures["missing"][1]
    assert figures["answered"] == count
    assert 0 < missing == sum([one["branch"] for one in row["missing"]] == [1] for row in figures["results"])
    assert figures["missing"][0] == 0
    assert f"answers without a branch: branch 1 in {missing}" in told


@pytest.fixture
def jpeg_path(tmp_path):
    """A file of JPEG images, 30 to train on and 50 to test with, sorted by class."""
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    noise, files = np.random.default_rng(4), []
    for _ in range(80):
        stream = io.BytesIO()
        # Coarse, so that JPEG leaves differences between the images.
        coarse = noise.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        pillow.fromarray(coarse.repeat(4, 0).repeat(4, 1)).save(stream, "JPEG", quality=75)
        files.append(np.frombuffer(stream.getvalue(), np.uint8))
    path = tmp_path / "images.npz"
    np.savez(
        path,
        jpeg=np.concatenate(files),
        offset=np.cumsum([0, *map(len, files)]),
        label=np.concatenate([np.arange(30) % 4, np.sort(np.arange(50) % 4)]).astype(np.uint8),
        is_test=np.arange(80) >= 30,
        classes=np.array(["north", "east", "south", "west"]),
    )
    return path


def test_the_test_images_of_a_file_of_jpegs_are_shown_in_a_fixed_order(tmp_path, tiny_wide, jpeg_path):
    expected = evaluated(tiny_wide.path, jpeg_path)
    assert len(expected) == 50
    few = [demo_of(tiny_wide.path, jpeg_path, tmp_path, count=20)[0] for _ in range(2)]
    taken = [[row["index"] for row in figures["results"]] for figures in few]
    assert taken[0] == taken[1]
    assert len(set(taken[0])) == 20
    # Of several classes, though the file is sorted by class; each answer at the place that the evaluation gives it.
    assert max(taken[0]) > 30
    for figures in few:
        assert {row["index"]: (row["class_id"], row["exit"]) for row in figures["results"]} == {
            index: expected[index] for index in taken[0]
        }
    truth = np.sort(np.arange(50) % 4)
    right = np.mean([row["class_id"] == truth[row["index"]] for row in few[0]["results"]])
    assert few[0]["accuracy"] == pytest.approx(right)
    done = distree("demo", "--bundle", tiny_wide.path, "--data", jpeg_path, "--inputs", 51)
    assert done.returncode == 2
    assert done.stderr == "distree: --inputs: 51 is out of range; choose 1 to 50, the number of samples in images.npz\n"


def test_names_in_a_file_of_samples_must_differ(tmp_path, tiny_wide, tiny_images):
    arrays = {"input": tiny_images[:6], "label": np.arange(6) % 4}
    np.savez(tmp_path / "named.npz", **arrays, name=np.array(["f", "e", "d", "c", "b", "a"]))
    figures, _ = demo_of(tiny_wide.path, tmp_path / "named.npz", tmp_path, count=6)
    assert [row["index"] for row in figures["results"]] == list(range(6))
    np.savez(tmp_path / "twice.npz", **arrays, name=np.array([1, 2, 3, 1, 5, 6]))
    done = distree("demo", "--bundle", tiny_wide.path, "--data", tmp_path / "twice.npz", "--inputs", 6)
    assert done.returncode == 2
    assert "twice.npz: two inputs have the same name" in done.stderr


@pytest.fixture
def sound_folder(tmp_path):
    """WAV files of one window and of several, in a folder for each of two classes of the bundle."""
    for number, samples in enumerate(sounds(12)):
        folder = tmp_path / "recordings" / ("Bag" if number % 3 else "ankle_boot")
        folder.mkdir(parents=True, exist_ok=True)
        recording = samples if number else np.concatenate([samples, *sounds(2, seed=3)])
        (folder / f"{number}.wav").write_bytes(wav(recording))
    return tmp_path / "recordings"


def test_a_demo_of_sound_answers_wav_files_as_the_offline_evaluation_does(tmp_path, sound_folder):
    bundle = sound_bundle(tmp_path / "sound")
    expected = evaluated(bundle.path, sound_folder)
    assert len(expected) == 16  # one of the recordings has five windows
    figures, told = demo_of(bundle.path, sound_folder, tmp_path, count=16)
    answers = {row["index"]: (row["class_id"], row["exit"]) for row in figures["results"]}
    assert answers == expected
    assert 0 <= figures["accuracy"] <= 1
    assert "accuracy" in told


def test_a_demo_of_unlabelled_inputs_says_no_accuracy(tmp_path):
    bundle = motion_bundle(tmp_path / "motion")
    np.save(tmp_path / "windows.npy", motions(10))
    figures, told = demo_of(bundle.path, tmp_path / "windows.npy", tmp_path, count=10)
    assert (figures["answered"], figures["accuracy"]) == (10, None)
    assert "accuracy" not in told
    done = distree("demo", "--bundle", bundle.path, "--data", tmp_path / "windows.npy", "--inputs", 0)
    assert (done.returncode, done.stderr) == (
        2,
        "distree: --inputs: 0 is out of range; choose 1 to 10, the number of samples in windows.npy\n",
    )
    done = distree("zoo", "evaluate", bundle.path, "--data", tmp_path / "windows.npy")
    assert done.returncode == 2
    assert "windows.npy: has no labels; give an .npz file with x and y" in done.stderr


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
        time.sleep(0.2)  # looking takes a while itself


@pytest.mark.any_broker
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


@pytest.mark.any_broker
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


@pytest.mark.any_broker
def test_ctrl_c_leaves_nothing_on_a_broker_that_was_there(tmp_path, samples_path):
    with (
        ManagedBroker() as broker,
        demo_in_mid_stream(tmp_path, samples_path, "--broker", f"127.0.0.1:{broker.port}") as (process, _),
    ):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        assert retained(broker.port) == []


@pytest.mark.any_broker
def test_boards_that_have_to_be_killed_leave_nothing_either(tmp_path, samples_path):
    """Their wills come only when they are dead, which is after the demo has begun to clean up."""
    with (
        ManagedBroker() as broker,
        demo_in_mid_stream(tmp_path, samples_path, "--broker", f"127.0.0.1:{broker.port}") as (process, folder),
    ):
        for pid, line in processes_with(str(folder)).items():
            if " agent run " in line:
                os.kill(pid, signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=90)
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

    def given_up(self, token):
        pass

    def no_subscribers(self, topic, payload):
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
    listener.transport = transport = make_transport(
        BrokerSettings(port=port), client_id="newcomer", session=Session.NONE
    )
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


@pytest.mark.parametrize(
    ("denied", "told"),
    [
        ("member/#", "no board serves stage 1, or the broker does not pass on {topics}/member/1/+"),
        ("stage/#", "the broker does not pass on {topics}/stage/1/+/board0"),
        ("outcome/#", "stage 1 got its inputs, but no answer came back, perhaps because the broker does not pass on "
                      "{topics}/outcome/board0/+"),
    ],
)  # fmt: skip
def test_inputs_that_were_to_travel_and_did_not_are_no_success(tmp_path, denied, told):
    skip_without("mosquitto")
    rules = tmp_path / "rules"
    rules.write_text(f"topic readwrite #\ntopic deny distree/1/+/pipeline/+/{denied}\n")
    with ManagedBroker(engine="mosquitto", acl_file=rules) as broker:
        done = distree("demo", "--inputs", 24, "--broker", f"127.0.0.1:{broker.port}", "--json", tmp_path / "demo.json")
    assert "24 of 24 answered" in done.stdout
    assert done.returncode == 1
    reasons = json.loads((tmp_path / "demo.json").read_text())["reasons"]
    lost = reasons.get("fallback", 0) + reasons.get("deadline", 0)
    assert lost > 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("distree: ")]
    topics = re.search(r"distree/1/demo-[0-9a-f]+/pipeline/demo", line)[0]
    why = told.format(topics=topics)
    remedy = "allow this topic in the broker's ACL"
    assert line == f"distree: {lost} inputs had to go beyond board0, and none did: {why}; {remedy}"


def test_a_demo_of_inputs_that_the_first_exit_is_sure_of_is_a_success(tmp_path):
    skip_without("mosquitto")
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite #\ntopic deny distree/1/+/pipeline/+/stage/#\n")
    with ManagedBroker(engine="mosquitto", acl_file=rules) as broker:
        done = distree("demo", "--inputs", 3, "--broker", f"127.0.0.1:{broker.port}")
    assert (done.returncode, [line for line in done.stderr.splitlines() if line.startswith("distree: ")]) == (0, [])
    assert "3 of 3 answered" in done.stdout
    assert "(3 confident)" in done.stdout


@pytest.mark.parametrize(("count", "status"), [("0", 2), ("-1", 2), ("1001", 2)])
def test_a_number_of_inputs_that_is_not_there_is_one_line(count, status):
    done = distree("demo", f"--inputs={count}")
    assert done.returncode == status
    assert (
        done.stderr
        == f"distree: --inputs: {count} is out of range; choose 1 to 1000, the number of samples in fashion.npz\n"
    )


def test_figures_that_cannot_be_written_are_one_line(tmp_path):
    done = distree("demo", "--inputs", "5", "--json", tmp_path / "none" / "demo.json")
    ours = [line for line in done.stderr.splitlines() if line.startswith("distree: ")]
    assert (done.returncode, len(ours)) == (2, 1)
    assert "demo.json: cannot be written (No such file or directory)" in ours[0]
    assert "Traceback" not in done.stderr


def test_an_agent_that_cannot_start_is_told_with_its_own_words(tmp_path, bundle):
    damaged = Path(shutil.copytree(bundle.path, tmp_path / "fashion"))
    with np.load(damaged / "golden.npz") as arrays:
        vectors = {name: array + 30 if name == "stage2_logits" else array for name, array in arrays.items()}
    np.savez(damaged / "golden.npz", **vectors)
    manifest = (damaged / "bundle.yaml").read_text()
    digest = hashlib.sha256((damaged / "golden.npz").read_bytes()).hexdigest()
    (damaged / "bundle.yaml").write_text(manifest.replace(bundle.manifest.golden.sha256, digest))
    done = distree("demo", "--inputs", "3", "--bundle", damaged)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"distree: board2 ended with status \d: distree: .*is off by 30 quantisation steps", done.stderr)


def test_data_that_are_no_inputs_of_the_bundle_are_told_before_anything_starts(tmp_path):
    np.savez(tmp_path / "wrong.npz", input=np.zeros((3, 5, 5, 1), np.uint8), label=np.zeros(3, int))
    done = distree("demo", "--inputs", "3", "--data", tmp_path / "wrong.npz")
    assert (done.returncode, done.stdout) == (2, "")
    assert "wrong.npz: input: inputs are 5 x 5 x 1, but must be 28 x 28 x 1" in done.stderr
    assert done.stderr.startswith("distree: --data ")
