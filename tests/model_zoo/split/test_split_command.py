"""`distree zoo split` from the file to the bundle: what is written, and that nothing is written otherwise."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import whole_networks as whole

from distree.bundle.loading import find_bundle, load_bundle
from model_zoo.data import LabelledExamples, load_examples
from model_zoo.evaluation import collect_logits, costs_of, score_exits, summarise
from model_zoo.split.heads import HeadTraining
from model_zoo.split.running import Runner
from model_zoo.verification import check_golden

ZOO = Path(__file__).parents[3] / "model_zoo"


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    return tmp_path / "share" / "distree" / "bundles"


@pytest.fixture
def fashion_files(tmp_path):
    """The shipped bundle as one network, and the shipped samples as data and as test inputs."""
    (tmp_path / "fashion-whole.tflite").write_bytes(whole.fashion())
    samples = load_examples(ZOO / "samples" / "fashion.npz")
    order = np.random.default_rng(0).permutation(len(samples))
    names = load_bundle("fashion", verify=()).labels
    for name, part in (("data", order[:600]), ("test", order[600:])):
        np.savez(tmp_path / f"{name}.npz", x=samples.inputs[part], y=samples.labels[part], classes=names)
    return tmp_path


def split(zoo, folder, *more, model="fashion-whole.tflite"):
    return zoo("split", folder / model, *more)


def fashion_range(*more):
    # The shipped bundle's own preprocessing is none of those that are tried: -1..1 is near it.
    return ("--range=-1..1", "--hidden", 8, *more)


def test_a_bundle_of_ones_own(zoo, fashion_files, own_folder, hurried, capsys):
    """Whole in, stages out: served as every bundle is, with the whole network's own answers at the last exit."""
    before = {path: path.read_bytes() for path in fashion_files.glob("*.*")}
    options = ("--data", fashion_files / "data.npz", "--test", fashion_files / "test.npz", "--max-drop", "5%")
    assert split(zoo, fashion_files, *options, *fashion_range("--rule", "mean", "--licence", "MIT")) == 0
    out = capsys.readouterr()
    assert "stages and whole network differ on 0" in out.err
    assert "only 600 inputs: if exits change 4 %" in out.out
    assert out.out.splitlines()[-1] == "next: distree zoo show fashion-whole, then distree init --bundle fashion-whole"
    assert {path: path.read_bytes() for path in fashion_files.glob("*.*")} == before
    assert [path.name for path in own_folder.iterdir()] == ["fashion-whole"]

    bundle = load_bundle("fashion-whole")
    manifest = bundle.manifest
    assert find_bundle("fashion-whole") == own_folder / "fashion-whole"
    assert bundle.labels == load_bundle("fashion", verify=()).labels
    assert manifest.license == "MIT"
    check_golden(bundle)
    origin = manifest.split_from
    assert origin.file == "fashion-whole.tflite"
    assert origin.sha256 == hashlib.sha256((fashion_files / "fashion-whole.tflite").read_bytes()).hexdigest()
    assert (origin.thresholds_from.data, origin.thresholds_from.inputs, origin.thresholds_from.labelled) == (
        "data.npz",
        600,
        True,
    )
    assert origin.tested_on.data == "test.npz"
    assert len(origin.after) == len(origin.heads) == len(bundle.stages) - 1
    assert 0 < origin.promise.saved < 1

    # What the manifest says was measured is what `zoo evaluate` measures.
    test = load_examples_of(fashion_files / "test.npz")
    scored = score_exits(collect_logits(bundle, test), bundle.criterion)
    evaluation = summarise(scored, costs_of(bundle.stages), bundle.criterion, bundle.thresholds)
    assert manifest.measured.accuracy == pytest.approx(evaluation.accuracy, abs=1e-6)
    assert manifest.measured.macs_per_input == pytest.approx(evaluation.macs_per_input, abs=0.1)
    assert manifest.measured.accuracy_at_thresholds == pytest.approx(evaluation.accuracy_at_thresholds, abs=1e-6)

    # The last exit answers as the whole network does.
    from distree.bundle.preprocessing import Preprocessor

    prepared, network = Preprocessor(manifest), Runner((fashion_files / "fashion-whole.tflite").read_bytes())
    theirs = [int(network(prepared.tensor(image))[0].argmax()) for image in test.inputs[:100]]
    assert scored.classes[:100, -1].tolist() == theirs


def load_examples_of(path):
    with np.load(path) as arrays:
        return LabelledExamples(arrays["x"], arrays["y"], np.arange(len(arrays["y"])), path.name)


def test_without_labels_the_network_is_right(zoo, fashion_files, own_folder, hurried, capsys):
    with np.load(fashion_files / "data.npz") as arrays:
        np.savez(fashion_files / "bare.npz", x=arrays["x"][:200])
    assert (
        split(zoo, fashion_files, "--data", fashion_files / "bare.npz", *fashion_range("--stages", 2, "--force")) == 0
    )
    bundle = load_bundle("fashion-whole")
    assert bundle.manifest.measured is None
    assert not bundle.manifest.split_from.thresholds_from.labelled
    assert bundle.labels[0] == "class0"
    assert len(bundle.stages) == 2
    capsys.readouterr()
    assert zoo("show", "fashion-whole") == 0
    out = capsys.readouterr().out
    assert "unlabelled: the whole network's answers" in out
    assert "measured    nothing, since no labelled inputs were given" in out
    assert zoo("list") == 0
    assert "fashion-whole  2 stages" in capsys.readouterr().out


@pytest.mark.parametrize("make", [whole.yes_or_no, lambda: whole.yes_or_no("float32"), lambda: whole.chain("float32")])
def test_other_kinds_of_networks_are_served(zoo, tmp_path, hurried, make, own_folder):
    """Float32 segments have no scale to be divided by, and one sigmoid becomes two classes."""
    content = make()
    (tmp_path / "net.tflite").write_bytes(content)
    generator = np.random.default_rng(0)
    runner = Runner(content)
    inputs = generator.random((120, 8, 8, 3)).astype(np.float32)
    is_float = runner._interpreter.get_input_details()[0]["dtype"] == np.float32
    if not is_float:
        inputs = generator.integers(-128, 128, (120, 8, 8, 3)).astype(np.int8)
    outputs = [runner(one[None])[0].ravel() for one in inputs]
    single, half = len(outputs[0]) == 1, 0.5 if is_float else 0
    labels = [int(one[0] > half) if single else int(one.argmax()) for one in outputs]
    np.savez(tmp_path / "data.npz", x=inputs, y=np.asarray(labels))
    options = ("--range", "as-it-is", "--force", "--stages", 2, "--hidden", 4)
    assert split(zoo, tmp_path, "--data", tmp_path / "data.npz", *options, model="net.tflite") == 0
    bundle = load_bundle("net")
    report = check_golden(bundle)
    assert report.worst_steps <= report.tolerance
    assert len(bundle.labels) == (2 if single else 4)
    for stage in bundle.stages:
        for spec in (stage.input, stage.features, stage.logits):
            assert spec is None or spec.dtype != "float32" or (spec.scale, spec.zero_point) == (1.0, 0)
    from device_agent.selftest import self_test

    self_test(bundle, range(len(bundle.stages)), 1)


def test_list_needs_no_data_and_writes_nothing(zoo, fashion_files, own_folder, capsys):
    before = sorted(fashion_files.rglob("*"))
    assert split(zoo, fashion_files, "--list") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "fashion-whole.tflite: 17 operators, 7.410 MMACs, input 1x28x28x1 int8, 10 classes"
    assert out[6].split()[:2] == ["4", "CONV_2D"]
    assert sorted(fashion_files.rglob("*")) == before


def refused(zoo, capsys, *arguments):
    assert zoo("split", *arguments) == 2
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err
    return last


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "--data is missing"),
        (("--data", "/nowhere.npz"), "/nowhere.npz: no such file"),
        (("--data", "data.npz", "--after", "9"), "2 tensors cross there"),
        (("--data", "data.npz", "--after", "a"), "--after a: not a list of whole numbers"),
        (("--data", "data.npz", "--after", "4", "--stages", "2"), "give only one of them"),
        (("--data", "data.npz", "--stages", "9"), "--stages: 9 is out of range; choose 2 to 8"),
        (("--data", "data.npz", "--labels", "a,b"), "--labels: 2 classes, but the network has 10"),
        (("--data", "data.npz", "--max-drop", "200%"), "--max-drop 200%: not a share"),
        (("--data", "data.npz", "--max-drop", "much"), "--max-drop much: not a share"),
        (("--data", "data.npz", "--range", "0..2"), "--range 0..2: unknown; use one of"),
        (("--data", "data.npz", "--name", "Über"), "--name: 'Über' is not an id"),
        (
            ("--data", "data.npz", "--name", "fashion"),
            "fashion: a shipped bundle has this name; choose another one by --name",
        ),
        (("--data", "data.npz", "--hidden", "0"), "--hidden: 0 is out of range; choose 1 to 4096"),
        (("--data", "data.npz", "--seed", "-1"), "--seed: -1 is out of range"),
        (("--data", "fashion-whole.tflite"), "expected an image file, 784 raw bytes"),
        (("--data", "data.npz", "--out", "data.npz"), "data.npz: already exists"),
        (("--data", "data.npz", "--out", "/proc/x"), "/proc/x: /proc cannot be written to"),
        (("--data", "data.npz", "--unlabelled", "few.npz", "--range=-1..1"), "few.npz: inputs are uint8 (5,)"),
        (("--data", "few.npz"), "few.npz: 9 inputs are too few; give at least 50"),
        (("--data", "wrong.npz", "--range=-1..1"), "no better than guessing"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(zoo, fashion_files, own_folder, hurried, monkeypatch, capsys, options, why):
    monkeypatch.chdir(fashion_files)
    np.savez("few.npz", x=np.zeros((9, 5), np.uint8))
    with np.load("data.npz") as arrays:
        np.savez("wrong.npz", x=arrays["x"], y=np.random.default_rng(0).permutation(arrays["y"]))
    before = {path: path.stat().st_mtime_ns for path in fashion_files.rglob("*") if path.is_file()}
    if os.geteuid() == 0 and "/proc/x" in options:
        pytest.skip("root may write anywhere")
    assert why in refused(zoo, capsys, "fashion-whole.tflite", *options)
    assert {path: path.stat().st_mtime_ns for path in fashion_files.rglob("*") if path.is_file()} == before
    assert not own_folder.exists()


def test_exits_that_save_nothing_are_written_by_force_alone(
    zoo, fashion_files, own_folder, hurried, monkeypatch, capsys
):
    monkeypatch.setattr("model_zoo.split.job.HeadTraining", lambda **_: HeadTraining(samples=1000, peak_rate=0.0))
    options = ("--data", fashion_files / "data.npz", "--max-drop", "0%", *fashion_range("--stages", 2))
    assert "exits save nothing within an accuracy drop of 0 points" in refused(
        zoo, capsys, fashion_files / "fashion-whole.tflite", *options
    )
    assert not own_folder.exists()
    assert split(zoo, fashion_files, *options, "--force") == 0
    assert load_bundle("fashion-whole").manifest.split_from.promise.saved <= 0


@pytest.mark.slow
def test_a_bundle_that_is_there_is_replaced_by_force_alone_and_as_a_whole(
    zoo, fashion_files, own_folder, hurried, monkeypatch, capsys
):
    options = ("--data", fashion_files / "data.npz", "--max-drop", "5%", *fashion_range("--stages", 2))
    assert split(zoo, fashion_files, *options) == 0
    first = load_bundle("fashion-whole").revision
    path = fashion_files / "fashion-whole.tflite"
    assert "already exists" in refused(zoo, capsys, path, *options)

    # Whatever ends a run half way, the old bundle stays and nothing lies beside it.
    from model_zoo.split import bundle as writing

    whole_finish = writing.finish
    monkeypatch.setattr(writing, "finish", lambda *_: os.abort())
    assert "writing the bundle: the interpreter crashed (SIGABRT)" in refused(zoo, capsys, path, *options, "--force")
    assert [entry.name for entry in own_folder.iterdir()] == ["fashion-whole"]
    assert load_bundle("fashion-whole").revision == first

    monkeypatch.setattr(writing, "finish", whole_finish)
    assert split(zoo, fashion_files, *options, "--force", "--seed", 2) == 0
    assert load_bundle("fashion-whole").revision != first
    assert [entry.name for entry in own_folder.iterdir()] == ["fashion-whole"]


def test_a_folder_that_is_no_bundle_is_not_replaced(zoo, fashion_files, capsys):
    (fashion_files / "mine").mkdir()
    (fashion_files / "mine" / "precious.txt").write_text("x")
    options = ("--data", fashion_files / "data.npz", "--out", fashion_files / "mine", "--force")
    assert "is not a bundle, so it is not replaced" in refused(
        zoo, capsys, fashion_files / "fashion-whole.tflite", *options
    )
    assert (fashion_files / "mine" / "precious.txt").exists()


def test_damaged_networks_are_one_line_and_never_a_crash(zoo, tmp_path, capsys):
    """Truncated, with bits flipped, with words of zeros and of ones; some damage goes unnoticed."""
    content, path = whole.chain(), tmp_path / "net.tflite"
    generator = np.random.default_rng(0)
    refusals = 0
    for number in range(60):
        damaged = bytearray(content)
        if number % 3 == 0:
            damaged = damaged[: int(generator.integers(0, len(content)))]
        elif number % 3 == 1:
            for place in generator.integers(0, len(content), 6):
                damaged[place] ^= 1 << int(generator.integers(0, 8))
        else:
            place = 4 * int(generator.integers(0, len(content) // 4))
            damaged[place : place + 4] = generator.choice([bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f"])
        path.write_bytes(bytes(damaged))
        status = zoo("split", path, "--list")
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        assert status in (0, 2)
        if status == 2:
            refusals += 1
            assert captured.err.count("\n") == 1
            assert captured.err.startswith(f"distree zoo split: {path}: ")
    assert refusals > 20
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["net.tflite"]


def test_what_is_no_file_is_told(zoo, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("nothing", "no such file"), (".", "is not a file"), ("pipe", "is not a file")):
        assert why in refused(zoo, capsys, tmp_path / name, "--list")
    assert "is not a file" in refused(zoo, capsys, "/dev/zero", "--list")
