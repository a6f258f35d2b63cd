"""`distree simulate`: the same report for the same seed, values set on the command line, and one line a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distree.apps.cli import main
from distree.strict_yaml import Share
from orchestrator.simulator.overrides import load_fleet
from orchestrator.tuning.tuners import TUNERS

EXAMPLE = Path(__file__).parents[3] / "examples" / "fleet.yaml"

FLEET = """\
seed: 7
duration_s: 6
traffic: {rate_hz: 8, bursts: {every_s: 2, for_s: 0.5, times: 3}, tensor_bytes: [784, 1568, 784]}
boards:
  - {name: cam, count: 3, origin: true, stages: [0], macs_per_s: 500e6}
  - {name: hub, count: 2, stages: [1], macs_per_s: 500e6}
  - {name: box, stages: [2], stage_ms: [20]}
agents: {deadline_ms: 400, spool: true}
links: {latency_ms: 3, jitter_ms: 2, kbit_per_s: 2000, loss: 2%}
goal: {accuracy_drop: 10%}
drift:
  - {kind: predictions, at_s: 3, share: 20%}
failures:
  - {kind: boards, boards: hub, share: 50%, at_s: 1, for_s: 1, notice_s: 0.5}
  - {kind: orchestrator, at_s: 2, for_s: 1}
"""


@pytest.fixture
def fleet(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return path


def simulate(fleet, path, *more, hashes="0"):
    subprocess.run(
        [sys.executable, "-m", "distree", "simulate", "-c", str(fleet), "--json", str(path), *more],
        check=True,
        capture_output=True,
        env={"PYTHONHASHSEED": hashes, "PYTHONPATH": str(EXAMPLE.parents[1])},
    )
    return path.read_bytes()


def test_the_same_seed_gives_the_same_report_in_any_process(fleet, tmp_path):
    one = simulate(fleet, tmp_path / "one.json", hashes="1")
    assert simulate(fleet, tmp_path / "two.json", hashes="2") == one
    assert json.loads(one)["inputs"]["accepted"] > 100
    assert simulate(fleet, tmp_path / "three.json", "--set", "seed=8") != one


def test_the_summary_tells_what_happened(fleet, capsys):
    assert main(["simulate", "-c", str(fleet)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    lines = told.out.splitlines()
    assert lines[0].startswith("6 boards for 6 s: ")
    assert ", 0 twice, " in lines[1]
    assert any("1 board killed; orchestrator killed 1 time" in line for line in lines)
    assert any(line.startswith("latency ms: p50 ") for line in lines)


@pytest.mark.parametrize("name", TUNERS)
def test_every_tuner_is_simulated(fleet, capsys, name):
    given = ["--set", "thresholds=[0.9, 0.8]"] if TUNERS[name].uses_given_thresholds else []
    assert main(["simulate", "-c", str(fleet), "--set", f"goal.tuner={name}", *given]) == 0
    plans = capsys.readouterr().out.split("EPOCH")[1]
    assert ("0.9 0.8" in plans) == TUNERS[name].uses_given_thresholds


def test_plots_and_the_report_come_into_a_folder(fleet, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "what" / "if"
    assert main(["simulate", "-c", str(fleet), "--out", str(folder)]) == 0
    names = {path.name for path in folder.iterdir()}
    plots = {f"{name}.png" for name in ("latency", "exits", "thresholds", "accuracy", "utilisation")}
    assert names == plots | {"report.json"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in plots)
    capsys.readouterr()
    (tmp_path / "file").write_text("")
    assert main(["simulate", "-c", str(fleet), "--out", str(tmp_path / "file")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_example_runs(capsys):
    small = ["--set", "duration_s=3", "--set", "boards.cam.count=8", "--set", "failures=[]", "--set", "drift=[]"]
    assert main(["simulate", "-c", str(EXAMPLE), *small]) == 0
    assert capsys.readouterr().out.startswith("16 boards for 3 s: ")


# ------------------------------------------------------------ values set on the command line


def test_values_are_set_by_their_path(fleet):
    read = load_fleet(
        fleet,
        [
            "seed=3", "traffic.rate_hz=0.5", "boards.hub.count=9", "boards.0.jitter=20%", "links={latency_ms: 7}",
            "failures.0.at_s=0.25", "traffic.synthetic.classes=4", "drift=[]",
        ],
    )  # fmt: skip
    assert (read.seed, read.traffic.rate_hz, read.boards[1].count) == (3, 0.5, 9)
    assert read.boards[0].jitter == Share(0.2)
    assert (read.links.latency_ms, read.links.loss) == (7.0, 0.0)
    assert read.failures[0].at_s == 0.25
    assert read.traffic.synthetic is not None
    assert read.traffic.synthetic.classes == 4
    assert read.drift == ()
    # What is not set stays as it is.
    assert (read.duration_s, read.agents.deadline_ms, read.boards[0].count) == (6.0, 400.0, 3)


def test_a_relative_path_is_from_the_folder_of_the_file(fleet):
    assert load_fleet(fleet, ["traffic.recorded=audits.npz"]).traffic.recorded == fleet.parent / "audits.npz"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("traffic.rate_hzz=3", "--set traffic.rate_hzz=3: traffic.rate_hzz: unknown key (received 3); rename it to rate_hz"),
        ("trafic.rate_hz=3", "--set trafic.rate_hz=3: trafic: unknown key (received a mapping); rename it to traffic"),
        ("traffic.rate_hz=fast", "--set traffic.rate_hz=fast: traffic.rate_hz: expected a number, received 'fast'"),
        ("traffic.rate_hz=-1", "--set traffic.rate_hz=-1: traffic.rate_hz: -1 is out of range"),
        ("seed", "--set seed: expected KEY=VALUE"),
        ("seed=[", "--set seed=[: the value is not YAML"),
        ("seed.x=1", "--set seed.x=1: '7' has no keys"),
        ("boards.hubs.count=1", "--set boards.hubs.count=1: the list has no entry hubs; name one of its entries: cam"),
        ("failures.5.at_s=1", "--set failures.5.at_s=1: the list has no entry 5; name one of its entries: 0, 1"),
        ("links.loss=150%", "--set links.loss=150%: links.loss: expected a share from 0% to 100%"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_clear_line(fleet, capsys, override, told):
    assert main(["simulate", "-c", str(fleet), "--set", override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"distree: {told}")


# ------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["duration_s=0"], "duration_s: 0 is out of range; choose"),
        (["goal=null"], "goal: thresholds are either tuned for a goal or given"),
        (["thresholds=[0.9, 0.8]"], "goal: thresholds are either tuned for a goal or given"),
        (["goal.tuner=static"], "goal: tuner static keeps given thresholds; add thresholds"),
        (["goal.labels_wait_s=3"], "labels that users publish are not simulated"),
        (["boards.hub.name=cam"], "boards: cam given twice"),
        (["boards.cam.origin=false"], "none has inputs; set origin: true for some of them"),
        (["boards.cam.count=20000"], "boards: there are 20003; simulate at most 10000"),
        (["boards.hub.stages=[]"], "stages: these boards have nothing to do; give stages, or origin: true"),
        (["boards.hub.stages=[0]"], "boards: none has stage 1; have boards serve all stages, 0 to 2"),
        (["boards.hub.stages=[3]"], "boards: hub has stage 3, which does not exist; give stages from 0 to 2"),
        (
            ["boards.hub.branch=0"],
            "fleet.yaml: boards: cam: all stages of a wide network are wide; give a branch and all 3 stages",
        ),
        (["boards.hub.stage_ms=[3]"], "macs_per_s: the speed of these boards is given twice; give either"),
        (["boards.box.stage_ms=[3, 4]"], "stage_ms: 2 given; give 1, one per stage"),
        (["traffic.tensor_bytes=[]"], "tensor_bytes is needed where links have kbit_per_s; give the bytes"),
        (["traffic.tensor_bytes=[1]"], "traffic: tensor_bytes: 1 given; give 3, one per stage"),
        (["traffic.bursts.for_s=3"], "for_s: 3 is not below every_s (2); shorten"),
        (["links.loss=95%"], "loss: 95% is out of range; choose at most 90%"),
        (["goal=null", "failures=[]", "thresholds=[0.5]"], "thresholds: 1 given; give 2, one per exit but the last"),
        (["goal=null", "thresholds=[0.5, 0.5]"], "failures: without a goal there is no orchestrator to fail"),
        (["failures.0.boards=hubs"], "failures: there are no boards hubs; name one of cam, hub, box"),
        (["failures.0.kind=board"], "expected one of boards, broker, orchestrator, received 'board'; write boards"),
        (["drift.0={kind: classes, at_s: 1, classes: [77]}"], "drift: classes: there are no inputs of these classes"),
        (["traffic.recorded=none.npz"], "none.npz: No such file or directory"),
    ],
)
def test_a_mistake_is_one_clear_line(fleet, capsys, overrides, told):
    options = [part for override in overrides for part in ("--set", override)]
    assert main(["simulate", "-c", str(fleet), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_file_that_is_no_recording_is_told(fleet, tmp_path, capsys):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    assert main(["simulate", "-c", str(fleet), "--set", "traffic.recorded=other.npz"]) == 2
    assert "other.npz: has no 'score'" in capsys.readouterr().err
