"""`distree zoo build` and `report`: what they refuse before they train for hours."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "cifar.npz"
    np.savez(path, jpeg=np.zeros(3, np.uint8))
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "cifar10-wide"), "--data: missing; give an npz with jpeg"),
        (("build", "cifar10-wide", "--data", "/nowhere.npz"), "--data /nowhere.npz: no such file; give an npz"),
        (("build", "fashion", "--branches", 2), "--branches: fashion is not a wide recipe; leave it out"),
        (("build", "fashion", "--variant", "small"), "--variant: fashion is not a wide recipe; leave it out"),
        (("build", "fashion", "--data", "/nowhere"), "--data /nowhere: no such folder; install Debian's package"),
        (("build", "cifar10-wide", "--samples", "x"), "--samples: images of CIFAR-10 may not be redistributed"),
        (("build", "cifar10-wide", "--epochs", 0), "--epochs: 0 is out of range; choose at least 1"),
        (("build", "cifar10-wid"), "name 'cifar10-wide', the nearest one"),
        (
            ("report", "fashion", "--data", "x", "--work", "y"),
            "fashion is not a wide recipe, so there is no report; name one of cifar10-wide",
        ),
        (("report", "cifar10-wide", "--data", "/nowhere", "--work", "y"), "--data /nowhere: no such file"),
        (
            ("report", "cifar10-wide", "--data", "x", "--work", "y", "--seeds", "1,two"),
            "--seeds 1,two: not a list of whole numbers; separate them by commas",
        ),
    ],
)
def test_one_line_says_what_is_wrong(zoo, capsys, arguments, message) -> None:
    assert zoo(*arguments) == 2
    assert message in last_line(capsys)


def test_building_without_torch_says_how_to_get_it(zoo, capsys, data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("model_zoo.build.wide")]:
        monkeypatch.delitem(sys.modules, name)
    assert zoo("build", "cifar10-wide", "--data", data, "--out", tmp_path / "out") == 2
    line = last_line(capsys)
    assert "building needs torch" in line
    assert "pip install torch==2.13.0 && pip install 'distree[zoo]'" in line


def test_a_report_names_every_network_that_is_missing(zoo, capsys, data: Path, tmp_path: Path) -> None:
    arguments = ("--data", data, "--work", tmp_path / "work", "--seeds", "1,2", "--branches", "2")
    assert zoo("report", "cifar10-wide", *arguments, "--out", tmp_path / "out") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "missing: full, 2 branches, seed 1: not trained"
    assert len(lines) == 7
    assert lines[-1].startswith("0 networks evaluated, 6 missing; see ")
    words = (tmp_path / "out" / "cifar10-wide.md").read_text()
    assert words.count(": not trained") == 6


@pytest.mark.parametrize("command", ["build", "report"])
def test_help_has_an_example(zoo, capsys, command: str) -> None:
    with pytest.raises(SystemExit):
        zoo(command, "--help")
    assert f"distree zoo {command} cifar10-wide --data" in capsys.readouterr().out
