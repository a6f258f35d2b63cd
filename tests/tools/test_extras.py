"""The check of all extras: told apart by a package index of its own, without a network."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from tools import extras

ROOT = Path(__file__).parents[2]


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """Put an empty package with these requirements into an index of files."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
    with zipfile.ZipFile(place / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(["Metadata-Version: 2.1", *metadata, ""]))
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    links = (f'<a href="{found.name}">{found.name}</a>' for found in sorted(place.glob("*.whl")))
    (place / "index.html").write_text("".join(links))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Make a project whose base and one extra need these; its index has versions 1 and 2 of `runtime`."""
    index = tmp_path / "index"
    for version in ("1.0", "2.0"):
        wheel(index, "runtime", version)
    wheel(index, "trainer", "1.0", "runtime==2.0")
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.as_uri())
    monkeypatch.setenv("UV_NO_CACHE", "1")

    def project(base: str, extra: str) -> Path:
        path = tmp_path / "pyproject.toml"
        path.write_text(
            '[project]\nname = "sample"\nversion = "1"\nrequires-python = ">=3.10"\n'
            f'dependencies = ["{base}"]\n[project.optional-dependencies]\nsmall = []\nlarge = ["{extra}"]\n'
        )
        return path

    return project


def test_extras_that_fit_the_base_pass(project, capsys):
    assert extras.check(project("runtime<3", "trainer")) == 0
    assert "all its extras resolve together, to 2 packages" in capsys.readouterr().out


def test_an_extra_that_contradicts_the_base_fails_with_the_reason(project, capsys):
    assert extras.check(project("runtime<2", "trainer")) == 1
    said = capsys.readouterr().out
    assert "the requirements contradict each other" in said
    assert "runtime==2.0" in said


def test_a_package_that_does_not_exist_fails(project, capsys):
    assert extras.check(project("runtime", "no-such-package")) == 1
    assert "no-such-package" in capsys.readouterr().out


def test_a_project_that_cannot_be_read_fails(project, capsys):
    path = project("runtime", "trainer")
    path.write_text("dependencies = [")
    assert extras.check(path) == 1
    assert "uv cannot read it" in capsys.readouterr().out


def test_without_an_index_it_says_so(project, capsys, monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    assert extras.check(project("runtime<2", "trainer")) == 0
    assert "not checked: no package index can be reached" in capsys.readouterr().out


def test_what_users_are_told_to_install_is_what_the_package_needs():
    required = re.search(r'"(ai-edge-litert[^;"]+);', (ROOT / "pyproject.toml").read_text())
    assert required is not None
    for place in ("distree/bundle/runtimes/tflite.py", "docs/howto/raspberry-pi.md"):
        assert f"pip install '{required[1]}'" in (ROOT / place).read_text(), place
