"""The pages of the documentation are done as they stand: commands, files and what is printed."""

from __future__ import annotations

import os
import re
import sys

import pytest

from broker_config.managed import ManagedBroker, find_mosquitto, free_port
from tools.pages import ROOT, PageError, Runner, is_missing, pattern, steps

DOCS = ROOT / "docs"
PORTS = (1883, 1884, 8080, 8883, 9001, 9469)
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if any(step.verb in ("run", "terminal") for step in steps(path.read_text(encoding="utf-8")))
)
LONG = pytest.mark.timeout(1200)
OURS = [path for folder in ("tutorial", "howto") for path in sorted((DOCS / folder).glob("*.md"))]


def _marks(page):
    """Pages that train exit heads take half a minute each; those that use tools for training take minutes."""
    text = page.read_text(encoding="utf-8")
    marks = [pytest.mark.slow] if "\ndistree zoo split" in text else []
    return [*marks, LONG] if "<!-- needs module" in text else marks


@pytest.fixture
def environment(tmp_path):
    """Programs of this tree under the names that an installation gives them."""
    programs = tmp_path / ".bin"
    programs.mkdir()
    for name, command in {"distree": "-m distree", "python3": "", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        (programs / name).chmod(0o755)
    path = os.pathsep.join([str(programs), os.environ["PATH"], "/usr/sbin"])
    share = str(tmp_path / ".share")  # where bundles of one's own go
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "XDG_DATA_HOME": share}


@pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto: apt install mosquitto")
@pytest.mark.parametrize("page", [pytest.param(path, id=path.stem, marks=_marks(path)) for path in PAGES])
def test_a_page_can_be_done(page, tmp_path, environment):
    pytest.importorskip("PIL", reason="the pages send images: pip install 'distree[images]'")
    told = list(steps(page.read_text(encoding="utf-8")))
    for step in told:
        if step.verb == "needs" and is_missing(step.what, environment["PATH"]):
            pytest.skip(f"needs {step.what}; make test-tools has the modules")
    broker = ManagedBroker(engine="mosquitto") if any(step.verb == "broker" for step in told) else None
    if broker is not None:
        broker.start()
    try:
        ports = {port: free_port() for port in PORTS}
        if broker is not None:
            ports[1883] = broker.port
        with Runner(tmp_path, ports, environment) as runner:
            runner.play(page)
    finally:
        if broker is not None:
            broker.stop()


@pytest.mark.parametrize("page", OURS, ids=[path.stem for path in OURS])
def test_every_command_of_a_page_is_done_or_says_why_not(page):
    for step in steps(page.read_text(encoding="utf-8")):
        if step.language == "bash":
            assert step.verb in ("run", "terminal", "install", "not run"), f"{page.name}:{step.line}"
            assert step.verb != "not run" or step.what, f"{page.name}:{step.line}: say why"


def test_what_is_shown_is_compared_line_by_line():
    shown = pattern("p50 1.25 ms, … of 4\n…\nend\n")
    assert shown.search("p50 80.1 ms, 3 of 4\none\ntwo\nend\n")
    assert not shown.search("p50 80.1 ms, 3 of 5\nend\n")
    assert not shown.search("p50 one ms, 3 of 4\nend\n")
    assert not pattern("4 boards\n").search("14 boards\n")


def test_a_page_that_shows_what_is_not_printed_fails(tmp_path, environment):
    page = tmp_path / "page.md"
    text = "<!-- run -->\n```bash\necho one\n```\n\n<!-- output -->\n```text\none\n```\n"
    page.write_text(text)
    with Runner(tmp_path, {}, environment) as runner:
        runner.play(page)
        page.write_text(text.replace("\none\n", "\ntwo\n"))
        with pytest.raises(PageError, match=re.escape("page.md:7")):
            runner.play(page)
        page.write_text("<!-- run -->\n```bash\nfalse\necho on\n```\n")
        with pytest.raises(PageError, match="status 1"):
            runner.play(page)


def test_a_terminal_is_awaited_and_ended(tmp_path, environment):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- terminal a -->\n```bash\npython3 -c 'import time; time.sleep(0.3); print(7); time.sleep(600)'\n```\n"
        "<!-- output -->\n```text\n7\n```\n<!-- stop a -->\n"
    )
    with Runner(tmp_path, {}, environment) as runner:
        runner.play(page)
        assert not runner._terminals
    assert "KeyboardInterrupt" in (tmp_path / ".a.log").read_text()


def test_what_is_run_again_may_take_its_time(tmp_path, environment):
    page = tmp_path / "page.md"
    text = "<!-- run again -->\n```bash\necho x >> seen\ngrep -c x seen\n```\n\n<!-- output -->\n```text\n3\n```\n"
    page.write_text(text)
    with Runner(tmp_path, {}, environment) as runner:
        runner.play(page)
    assert (tmp_path / "seen").read_text() == "x\nx\nx\n"
    page.write_text(text.replace("run again", "run"))
    with Runner(tmp_path, {}, environment) as runner, pytest.raises(PageError, match="the page shows"):
        runner.play(page)


def test_what_a_page_needs_is_a_program_or_a_module():
    assert not is_missing("sh", "/bin:/usr/bin")
    assert is_missing("no-such-program", "/bin:/usr/bin")
    assert not is_missing("module json", None)
    assert is_missing("module no_such_module", None)


def test_a_program_of_the_checkout_gives_what_readers_have(tmp_path, environment):
    page, program = tmp_path / "page.md", tmp_path / "program.py"
    page.write_text(f"<!-- given {os.path.relpath(program, ROOT)} -->\n<!-- run -->\n```bash\ngrep made given\n```\n")
    with Runner(tmp_path, {}, environment) as runner:
        program.write_text("open('given', 'w').write('made')")
        runner.play(page)
        program.write_text("raise SystemExit(3)")
        with pytest.raises(PageError, match=re.escape("page.md:1: status 3")):
            runner.play(page)
