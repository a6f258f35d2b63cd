"""Recorded audits played to a tuner, by the command line as by Python."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from audit_samples import COSTS, stream

from distree.apps.cli import main
from distree.criteria import NEVER
from distree.errors import ConfigError
from orchestrator.tuning.replay import load_recording, replay, thinned
from orchestrator.tuning.tuners import Certified, Static
from orchestrator.tuning.tuners.audits import exits_taken


def arrays(count: int = 1500, seed: int = 0) -> dict[str, np.ndarray]:
    audits = stream(count, seed)
    return {
        "score": np.array([(*audit.scores, 1.0) for audit in audits]),
        "prediction": np.array([audit.predictions for audit in audits]),
        "mac": np.array(COSTS),
        "label": np.array([audit.predictions[-1] for audit in audits]),
    }


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("replay") / "audits.npz"
    np.savez(path, **arrays())
    return path


def test_a_recording_is_read_as_it_was_written(recorded) -> None:
    recording = load_recording(recorded)
    assert recording.costs == COSTS
    assert [audit.scores for audit in recording.audits] == [audit.scores for audit in stream(1500)]
    assert [audit.predictions for audit in recording.audits] == [audit.predictions for audit in stream(1500)]
    assert recording.audits[3].label == recording.audits[3].predictions[-1]


def test_inputs_are_answered_by_the_thresholds_before_they_were_seen(recorded) -> None:
    recording = load_recording(recorded)
    everybody_first = replay(Static((0.0, 0.0)), recording)
    wrong = np.mean([audit.predictions[0] != audit.predictions[-1] for audit in recording.audits])
    assert everybody_first.answered_loss == pytest.approx(wrong)
    assert everybody_first.answered_saved == pytest.approx(1 - COSTS[0] / COSTS[-1])
    nobody = replay(Static((NEVER, NEVER)), recording)
    assert (nobody.answered_loss, nobody.answered_saved) == (0.0, 0.0)
    assert [step.audits for step in nobody.steps] == [0]


def test_a_replay_tells_every_change_of_thresholds(recorded) -> None:
    recording = load_recording(recorded)
    told = replay(Certified(COSTS, 0.05, 0.05, path_audits=100), recording)
    again, changes = Certified(COSTS, 0.05, 0.05, path_audits=100), [(0, (NEVER, NEVER))]
    for count, audit in enumerate(recording.audits, start=1):
        again.observe(audit)
        if again.thresholds != changes[-1][1]:
            changes.append((count, again.thresholds))
    assert [(step.audits, step.thresholds) for step in told.steps] == changes
    assert len(changes) > 2
    assert told.steps[-1].saved > 0.1


def test_thinning_keeps_both_ends(recorded) -> None:
    steps = replay(Certified(COSTS, 0.05, 0.05, path_audits=100), load_recording(recorded)).steps
    few = thinned(steps, 3)
    assert (few[0], few[-1], len(few)) == (steps[0], steps[-1], 3)
    assert thinned(steps, 1000) == list(steps)


# ---------------------------------------------------------------- the command


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
    assert "200 more audits are wanted for a path" in capsys.readouterr().out


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
    assert document["steps"][0]["thresholds"] == [None, None]
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
    assert "10 more audits are wanted for a path" in capsys.readouterr().out
    assert main([*command, "--path-from", str(other)]) == 0
    assert "certified by 390 audits" in capsys.readouterr().out


def test_other_tuners(recorded, capsys) -> None:
    assert main(["tune", "--replay", str(recorded), "--tuner", "static", "--thresholds", "0.6,inf"]) == 0
    assert "0.6 never" in capsys.readouterr().out
    assert main(["tune", "--replay", str(recorded), "--tuner", "bandit"]) == 0
    assert "bandit: 1500 audits" in capsys.readouterr().out


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
        (["--accuracy-drop", "2"], "--accuracy-drop 2: must be a share between 0 and 1, such as 0.01 or 1%"),
        (["--accuracy-drop", "nan"], "--accuracy-drop nan: must be"),
        (["--confidence", "100%"], "--confidence 100%: must be"),
        (["--limit", "0"], "--limit 0: must be at least 1"),
        (["--thresholds", "0.5,0.5"], "goes with --tuner static"),
        (["--tuner", "static"], "goes with --tuner static"),
        (["--tuner", "static", "--thresholds", "0.5"], "2 numbers separated by commas are needed"),
        (["--tuner", "static", "--thresholds", "a,b"], "2 numbers separated by commas are needed"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_one_line(recorded, capsys, options, said) -> None:
    assert main(["tune", "--replay", str(recorded), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def changed(**changes):
    content = arrays(5)
    for name, value in changes.items():
        if value is None:
            del content[name]
        else:
            content[name] = value
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed(score=None), "has no 'score'"),
        (changed(score=np.zeros((5, 1))), "two exits or more"),
        (changed(score=np.zeros((0, 3))), "two exits or more"),
        (changed(score=np.zeros((5, 3), int)), "floats of shape"),
        (changed(score=np.full((5, 3), math.nan)), "row 0 holds NaN"),
        (changed(prediction=np.zeros((5, 3))), "integers of shape"),
        (changed(prediction=np.zeros((4, 3), int)), "integers of shape"),
        (changed(mac=np.array([1, 1, 2])), "growing from exit to exit"),
        (changed(mac=np.array([1, 2])), "3 numbers are needed"),
        (changed(mac=np.array([1, 2, math.nan])), "growing from exit to exit"),
        (changed(label=np.zeros(4, int)), "label: integers"),
    ],
)
def test_a_file_that_is_no_recording(tmp_path, content, said) -> None:
    path = tmp_path / "audits.npz"
    np.savez(path, **content)
    with pytest.raises(ConfigError, match=said):
        load_recording(path)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_bytes_that_are_no_npz(tmp_path, content) -> None:
    path = tmp_path / "audits.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"not an \.npz of arrays"):
        load_recording(path)


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_recording(tmp_path / "audits.npz")
