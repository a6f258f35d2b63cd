"""`distree tune` over recorded audits."""

from __future__ import annotations

import json

import numpy as np
import pytest
from audit_samples import arrays

from distree.apps.cli import main
from distree.exits_taken import exits_taken
from orchestrator.tuning.replay import load_recording
from orchestrator.tuning.tuners import TUNERS


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune") / "audits.npz"
    np.savez(path, **arrays())
    return path


def test_what_the_zoo_records_is_what_the_bundle_does(tmp_path, capsys) -> None:
    audits, figures = tmp_path / "audits.npz", tmp_path / "figures.json"
    evaluate = ["zoo", "evaluate", "fashion", "--limit", "200"]
    assert main([*evaluate, "--audits", str(audits), "--json", str(figures), "--per-input"]) == 0
    document = json.loads(figures.read_text())
    recording = load_recording(audits)
    taken = [int(exits_taken(audit.scores, document["thresholds"])) for audit in recording.audits]
    assert taken == [row["exit"] for row in document["results"]]
    answers = [audit.predictions[exit] for audit, exit in zip(recording.audits, taken, strict=True)]
    assert answers == [row["class_id"] for row in document["results"]]
    assert np.mean([recording.costs[exit] for exit in taken]) == pytest.approx(document["macs_per_input"])
    capsys.readouterr()
    assert main(["tune", "--replay", str(audits)]) == 0
    assert "gathering audits for a path, 200 more needed" in capsys.readouterr().out


def test_a_recording_that_cannot_be_written(capsys) -> None:
    assert main(["zoo", "evaluate", "fashion", "--limit", "1", "--audits", "/nowhere/audits.npz"]) != 0
    assert "/nowhere/audits.npz: cannot be written" in capsys.readouterr().err


def test_the_command_prints_writes_and_draws(recorded, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    plot, figures = tmp_path / "tuned.png", tmp_path / "tuned.json"
    options = ["--accuracy-drop", "5%", "--seed", "1", "--plot", str(plot), "--json", str(figures)]
    code = main(["tune", "--replay", str(recorded), *options])
    out = capsys.readouterr().out
    assert code == 0
    assert "never never" in out
    assert "steps certified" in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    document = json.loads(figures.read_text())
    assert document["steps"][0]["thresholds"] == ["never", "never"]
    assert document["audits"] == 1500


def test_a_seed_is_an_order(recorded, capsys) -> None:
    printed = []
    for seed in ("1", "1", "2"):
        assert main(["tune", "--replay", str(recorded), "--accuracy-drop", "5%", "--seed", seed]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_a_path_from_other_audits_leaves_all_of_these_to_certify(recorded, tmp_path, capsys) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, **arrays(seed=4))
    command = ["tune", "--replay", str(recorded), "--accuracy-drop", "5%", "--limit", "390"]
    assert main(command) == 0
    assert "gathering audits for a path, 10 more needed" in capsys.readouterr().out
    assert main([*command, "--prepare-from", str(other)]) == 0
    assert "certified on 390 audits" in capsys.readouterr().out


def test_other_tuners(recorded, capsys) -> None:
    assert main(["tune", "--replay", str(recorded), "--tuner", "static", "--thresholds", "0.6,never"]) == 0
    assert "0.6 never" in capsys.readouterr().out
    assert main(["tune", "--replay", str(recorded), "--tuner", "bandit"]) == 0
    assert "bandit: 1,500 audits" in capsys.readouterr().out


@pytest.mark.parametrize("name", TUNERS)
def test_every_tuner_is_replayed_and_says_whether_it_has_a_guarantee(recorded, tmp_path, capsys, name) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, **arrays(seed=4))
    given = ["--thresholds", "0.6,0.5"] if TUNERS[name].uses_given_thresholds else []
    command = ["tune", "--replay", str(recorded), "--tuner", name, "--prepare-from", str(other), *given]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "gathering" not in out
    assert (f"tuner {name} has no guarantee" in out) == (not TUNERS[name].has_guarantee)


def test_thresholds_are_of_the_criterion_that_scored(tmp_path, capsys) -> None:
    path = tmp_path / "named.npz"
    np.savez(path, **arrays(), criterion=np.array("max_softmax"))
    assert load_recording(path).criterion == "max_softmax"
    assert main(["tune", "--replay", str(path), "--tuner", "static", "--thresholds", "90,80"]) == 2
    assert "--thresholds 90,80: the threshold of exit 0 is 90" in capsys.readouterr().err
    np.savez(path, **arrays(), criterion=np.array("maxsoft"))
    assert main(["tune", "--replay", str(path)]) == 2
    assert "criterion: one of max_softmax," in capsys.readouterr().err


def test_labels_are_used_where_asked_for(recorded, tmp_path, capsys) -> None:
    assert main(["tune", "--replay", str(recorded), "--labels", "--accuracy-drop", "5%"]) == 0
    without = tmp_path / "without.npz"
    content = arrays()
    del content["label"]
    np.savez(without, **content)
    assert main(["tune", "--replay", str(without), "--labels"]) == 2
    assert "has no label" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--accuracy-drop", "2"], "--accuracy-drop 2: not a share between 0 and 1; write it as 0.01 or 1%"),
        (["--accuracy-drop", "nan"], "--accuracy-drop nan: not a share"),
        (["--confidence", "100%"], "--confidence 100%: not a share"),
        (["--limit", "0"], "--limit 0: is out of range; choose at least 1"),
        (["--thresholds", "0.5,0.5"], "goes with --tuner static"),
        (["--tuner", "static"], "goes with --tuner static"),
        (["--tuner", "static", "--thresholds", "0.5"], "not 2 numbers; give one per exit but the last"),
        (["--tuner", "static", "--thresholds", "0.5,inf"], "or 'never' in place of a number"),
        (["--tuner", "static", "--thresholds", "a,b"], "not 2 numbers; give one per exit but the last"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_line(recorded, capsys, options, said) -> None:
    assert main(["tune", "--replay", str(recorded), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
