"""CSV files as data sets: recordings cut into windows that never cross a label, windows in rows, bad rows by line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_forms import AS_IT_IS, MOTION, csv, write

from distree.bundle.manifest import InputSpec, Preprocess, WindowRule
from model_zoo.data import Examples, load_examples
from model_zoo.errors import DataError

FIVES = Preprocess(layout="nhwc", window=WindowRule(hop=5))


def load(tmp_path: Path, text: str, **options: object) -> Examples:
    write(tmp_path, {"set.csv": text})
    return load_examples(tmp_path / "set.csv", **{"spec": MOTION, "preprocess": FIVES, **options})  # type: ignore[arg-type]


def test_one_recording_with_a_column_of_labels(tmp_path: Path) -> None:
    found = load(tmp_path, csv(20, label="walk") + csv(13, 20, "run", header=False)).labelled()
    assert (found.names, found.labels.tolist()) == (("run", "walk"), [1, 1, 1, 0])
    assert found.inputs[:, 0, 0].tolist() == [0, 5, 10, 20]
    assert found.files == ("set.csv@0s", "set.csv@0.1s", "set.csv@0.2s", "set.csv")
    assert (found.inputs.shape, found.inputs.dtype, found.source) == ((4, 10, 3), np.float32, "set.csv")


def test_windows_cross_neither_labels_nor_pauses(tmp_path: Path) -> None:
    text = (
        csv(15, label="a")
        + csv(7, 15, "b", header=False)
        + csv(30, 22, "a", header=False)
        + csv(12, 500, "a", header=False)
    )
    found = load(tmp_path, text).labelled()
    assert set(found.labels.tolist()) == {0}
    assert found.inputs[:, 0, 0].tolist() == [0, 5, 22, 27, 32, 37, 42, 500]
    assert (np.diff(found.inputs[:, :, 0], axis=1) == 1).all()
    assert found.source == "set.csv (1 recordings shorter than a window left out)"


def test_labels_are_matched_with_the_bundles(tmp_path: Path) -> None:
    found = load(tmp_path, csv(10, label="Walk"), labels=("run", "walk")).labelled()
    assert (found.labels.tolist(), found.names) == ([1], ("run", "walk"))
    with pytest.raises(DataError, match=r"set\.csv: the bundle has no class 'Walk', only run, jump"):
        load(tmp_path, csv(10, label="Walk"), labels=("run", "jump"))


def test_a_window_in_each_row(tmp_path: Path) -> None:
    spec = InputSpec(dtype="float32", shape=(2, 3))
    text = "a,b,c,d,e,f,class\n1,2,3,4,5,6,x\n7,8,9,10,11,12,y\n0,0,0,0,0,0,x\n"
    found = load(tmp_path, text, spec=spec, preprocess=AS_IT_IS).labelled()
    assert found.inputs.tolist() == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]], [[0] * 3] * 2]
    assert (found.labels.tolist(), found.files) == ([0, 1, 0], ("set.csv@line 2", "set.csv@line 3", "set.csv@line 4"))


def test_without_labels_there_are_none_and_a_limit_holds(tmp_path: Path) -> None:
    assert load(tmp_path, csv(100)).labels is None
    assert len(load(tmp_path, csv(100), limit=4)) == 4
    assert len(load(tmp_path, csv(100))) == 19


def test_tabs_and_any_ending_will_do(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text(csv(10).replace(",", "\t"))
    (tmp_path / "log.dat").write_text(csv(10))
    for name in ("log.tsv", "log.dat"):
        assert load_examples(tmp_path / name, spec=MOTION).inputs.shape == (1, 10, 3)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (csv(9), r"has no recording as long as a window, which is 10 rows \(too short: 1\); record longer ones, or declare window"),
        (csv(10).replace(",3,", ",x,"), "line 5: 'x' in column 'ax' is not a finite number"),
        (csv(10) + "200,1,2\n", "line 12: it has 3 cells, but the first line has 4"),
        (csv(10).replace("(ms)", "(s)"), "line 2: sampled at 0.05 Hz, but the bundle expects 50 Hz; resample it"),
        (csv(10).replace("ax,ay,az", "ax,ay,label"), "2 columns of values|is not a finite"),
        ("t,ax,ay\n" + "0,1,2\n" * 12, r"2 columns of values \(ax, ay\), but the bundle expects 3"),
    ],
)  # fmt: skip
def test_faults_are_told_with_file_and_line(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        load(tmp_path, text, preprocess=AS_IT_IS)
    assert str(caught.value).startswith(f"{tmp_path / 'set.csv'}: ")
    assert "\n" not in str(caught.value)


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model_zoo.data.tables.MAX_BYTES", 1000)
    with pytest.raises(DataError, match="read fewer of them"):
        load(tmp_path, csv(200))
