from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from input_bundles import motion_bundle, sound_bundle, sounds, wav

from distree.bundle.loading import Bundle
from model_zoo import cli
from model_zoo.data import LabelledExamples, write_samples

Zoo = Callable[..., int]


def test_list_names_the_bundle(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        [name, "3 stages"] for name in ("cifar10-wide", "fashion", "spoken-digits", "wrist-exercises")
    ]


def test_show_gives_the_manifests_figures(zoo: Zoo, capsys, fashion: Bundle) -> None:
    assert zoo("show", "fashion") == 0
    out = capsys.readouterr().out
    assert fashion.revision in out
    assert f"{100 * fashion.manifest.measured.accuracy[2]:.2f}" in out
    assert "stage 2     stage2.tflite" in out


def test_verify_passes(zoo: Zoo, capsys) -> None:
    assert zoo("verify", "fashion") == 0
    assert "golden vectors are correct" in capsys.readouterr().out


def test_verify_catches_a_changed_segment(zoo: Zoo, capsys, copied: Path) -> None:
    segment = copied / "stage1.tflite"
    segment.write_bytes(segment.read_bytes() + b"\0")
    assert zoo("verify", copied) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "stage1.tflite" in err


def test_evaluate_says_which_data_and_prints_all_figures(zoo: Zoo, capsys) -> None:
    assert zoo("evaluate", "fashion", "--limit", 50) == 0
    out = capsys.readouterr().out
    for part in ("shipped samples", "50 inputs", "accuracy %", "share %", "strict", "loose", "feature bytes"):
        assert part in out


def test_json_holds_the_figures_and_each_input(zoo: Zoo, tmp_path: Path, samples, fashion: Bundle) -> None:
    path = tmp_path / "figures.json"
    assert zoo("evaluate", "fashion", "--limit", 40, "--json", path, "--per-input") == 0
    document = json.loads(path.read_text())
    results = document["results"]
    assert [row["index"] for row in results] == list(range(40))
    assert [row["source_index"] for row in results] == samples.index[:40].tolist()
    assert [row["truth"] for row in results] == samples.labels[:40].tolist()
    assert [row["label"] for row in results] == [fashion.labels[row["class_id"]] for row in results]
    right = np.mean([row["truth"] == row["class_id"] for row in results])
    assert document["accuracy_at_thresholds"] == pytest.approx(right)
    for row in results:
        assert row["exit"] == 2 or row["score"] >= fashion.thresholds[row["exit"]]


def test_json_to_stdout_is_json_alone(zoo: Zoo, capsys) -> None:
    assert zoo("evaluate", "fashion", "--limit", 5, "--json", "-") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["inputs"] == 5
    assert "results" not in document


def test_evaluate_reads_a_sample_file_and_a_bundle_folder(zoo: Zoo, capsys, copied: Path, tmp_path, samples) -> None:
    few: LabelledExamples = samples.head(7)
    write_samples(few, tmp_path / "few.npz")
    assert zoo("evaluate", copied, "--data", tmp_path / "few.npz") == 0
    assert "few.npz, 7 inputs" in capsys.readouterr().out


def test_thresholds_and_criterion_are_taken(zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    given = ("--criterion", "margin", "--thresholds", "0,0")
    assert zoo("evaluate", "fashion", "--limit", 5, "--json", path, *given) == 0
    document = json.loads(path.read_text())
    assert document["criterion"] == "margin"
    assert document["exit_share"] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("show", "fashoin"), "not found"),
        (("evaluate", "fashion", "--data", "/nowhere"), "does not exist"),
        (("evaluate", "fashion", "--data", "."), "ubyte"),
        (("evaluate", "fashion", "--thresholds", "a,b"), "not a list of numbers"),
        (("evaluate", "fashion", "--thresholds", "0.5"), "1 given"),
        (("evaluate", "fashion", "--criterion", "margin"), "give --thresholds"),
        (("evaluate", "fashion", "--criterion", "margn", "--thresholds", "0,0"), "margin"),
        (("evaluate", "fashion", "--limit", "0"), "at least 1"),
        (("evaluate", "fashion", "--limit", "1", "--json", "/nowhere/f.json"), "cannot be written"),
        (("build", "fashin"), "name 'fashion', the nearest one"),
        (("build", "fashion", "--data", "/nowhere"), "dataset-fashion-mnist"),
        (("build", "fashion", "--epochs", "0"), "at least 1"),
    ],
)
def test_faults_are_one_clear_line_and_status_2(zoo: Zoo, capsys, monkeypatch, tmp_path, arguments, why) -> None:
    monkeypatch.chdir(tmp_path)
    assert zoo(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert why in captured.err
    assert captured.out == ""


def test_every_help_has_an_example(capsys) -> None:
    parser = argparse.ArgumentParser(prog="distree zoo")
    cli.add_arguments(parser)
    for command in ("list", "show", "verify", "evaluate", "build"):
        with pytest.raises(SystemExit):
            parser.parse_args([command, "--help"])
        assert f"example:\n  distree zoo {command}" in capsys.readouterr().out


def test_all_but_build_import_no_torch() -> None:
    """In a fresh interpreter in which torch cannot be imported, as on a board."""
    code = """
import argparse, sys
for name in ("torch", "litert_torch", "ai_edge_quantizer"):
    sys.modules[name] = None
from model_zoo import cli
parser = argparse.ArgumentParser()
cli.add_arguments(parser)
for line in ("list", "show fashion", "verify fashion", "evaluate fashion --limit 2"):
    assert cli.run(parser.parse_args(line.split())) == 0, line
assert cli.run(parser.parse_args(["build", "fashion", "--data", "."])) == 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install torch==" in done.stderr


def test_recordings_in_folders_are_evaluated_window_by_window(zoo: Zoo, capsys, tmp_path) -> None:
    bundle = sound_bundle(tmp_path / "sound")
    for name, content in (("Bag/a.wav", wav(sounds(3).ravel())), ("sneaker/b.wav", wav(sounds(1)[0]))):
        path = tmp_path / "recordings" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    out = tmp_path / "out.json"
    assert zoo("evaluate", bundle.path, "--data", tmp_path / "recordings", "--per-input", "--json", out) == 0
    rows = json.loads(out.read_text())["results"]
    assert [row["input"] for row in rows][:2] == ["Bag/a.wav@0s", "sneaker/b.wav"]
    assert [bundle.labels[row["truth"]] for row in rows] == ["Bag", "Sneaker", *["Bag"] * 4]
    assert "on recordings, 6 inputs" in capsys.readouterr().out
    assert zoo("evaluate", bundle.path, "--data", tmp_path / "recordings", "--limit", "2") == 0
    assert "on recordings, 2 inputs" in capsys.readouterr().out


def test_show_says_what_the_bundle_takes(zoo: Zoo, capsys, tmp_path) -> None:
    for bundle, told in (
        ("fashion", "image files: other aspect ratios: crop; transparent parts: black"),
        (sound_bundle(tmp_path / "sound").path, "recordings: at 16,000 Hz; a window every 240 samples"),
        (
            motion_bundle(tmp_path / "motion").path,
            "recordings: at 100 Hz; channels ax, ay, az, gx; a window every 98 samples",
        ),
    ):
        assert zoo("show", bundle) == 0
        assert f"\n            {told}\n" in capsys.readouterr().out
