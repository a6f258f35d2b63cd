"""Bills of materials and audits: what is said of what the two tools report."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tools import dependencies
from tools.dependencies import Package, packages_of, verdict

CLEAN = {"name": "numpy", "version": "2.0", "vulns": []}
SKIPPED = {"name": "msgpack", "skip_reason": "Dependency not found on PyPI"}
FAULTY = {"name": "pyyaml", "version": "5.3", "vulns": [{"id": "PYSEC-1", "fix_versions": ["5.4", "6.0"]}]}


def test_packages_have_their_licences_however_these_are_stated() -> None:
    bom = {
        "components": [
            {"name": "b", "version": "2", "licenses": [{"expression": "MIT OR Apache-2.0"}]},
            {"name": "A", "version": "1", "licenses": [{"license": {"id": "MIT"}}, {"license": {"id": "MIT"}}]},
            {"name": "c", "version": "3", "licenses": [{"license": {"name": "BSD License\nRedistribution and use"}}]},
            {"name": "d", "version": "4"},
        ]
    }
    assert packages_of(bom) == [
        Package("A", "1", ("MIT",)),
        Package("b", "2", ("MIT OR Apache-2.0",)),
        Package("c", "3", ("BSD License",)),
        Package("d", "4", ()),
    ]


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ([CLEAN], 0, "nothing is known against any of 1 packages"),
        ([CLEAN, FAULTY], 1, "pyyaml 5.3: PYSEC-1, fixed in 5.4, 6.0"),
        # pip-audit itself ends with status 0 and "No known vulnerabilities found" here.
        ([CLEAN, SKIPPED], 1, "1 of 2 packages were not looked up (msgpack)"),
        ([FAULTY, SKIPPED], 1, "PYSEC-1"),
    ],
)
def test_only_what_was_looked_up_is_clean(parts: list[dict], status: int, words: str) -> None:
    text, found = verdict([{"dependencies": parts}, {"dependencies": parts}])
    assert found == status
    assert words in text
    assert len(text.splitlines()) == 1 + (FAULTY in parts and SKIPPED in parts)


@pytest.mark.parametrize("answer", ["", "Traceback", json.dumps({"dependencies": [SKIPPED]})])
def test_an_audit_without_a_list_of_vulnerabilities_fails_in_one_line(
    answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def install(extra: str, folder: Path) -> Path:
        (folder / extra / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        return folder / extra / "bin" / "python"

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, answer, "no network")

    monkeypatch.setattr(dependencies, "install", install)
    monkeypatch.setattr(dependencies.subprocess, "run", run)
    assert dependencies.main(["audit", "--extras"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("audit: ")
