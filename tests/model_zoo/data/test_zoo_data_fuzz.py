"""A thousand damaged files of all forms: each is read or refused in one line that names it, soon and in little memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz_data import forms, run
from distree.bundle.manifest import Preprocess
from model_zoo.data import load_examples

pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'distree[images]'")


def test_a_thousand_damaged_files(tmp_path: Path) -> None:
    tally = run(1000, 20, tmp_path)
    assert tally.failures == []
    assert tally.counts["refused"] > 200
    assert tally.counts["read"] > 100
    assert tally.slowest_s < 5
    assert tally.grown_mb < 200


@pytest.mark.parametrize("form", forms(), ids=lambda form: form.name)
def test_what_is_damaged_there_was_good(tmp_path: Path, form) -> None:  # type: ignore[no-untyped-def]
    for name, content in ((form.name, form.content), *form.beside):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    path = tmp_path if form.at == "." else tmp_path / (form.at or form.name)
    from benchmarks.fuzz_data import NAMES, RULES

    assert isinstance(RULES, Preprocess)
    found = load_examples(path, spec=form.spec, preprocess=RULES, labels=NAMES)
    assert len(found) > 0
    assert found.inputs.shape[1:] == form.spec.shape
