"""Recorded audits played to a tuner."""

from __future__ import annotations

import math

import numpy as np
import pytest
from audit_samples import COSTS, arrays, stream

from distree.errors import ConfigError
from distree.thresholds import NEVER
from orchestrator.tuning.replay import load_recording, replay, thinned
from orchestrator.tuning.tuners import Certified, Static


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
    with pytest.raises(ConfigError, match=r"not a readable \.npz archive"):
        load_recording(path)


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_recording(tmp_path / "audits.npz")
