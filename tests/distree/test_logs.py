"""Log lines have a time, unless the journal of systemd adds it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

PROGRAM = "import logging; from distree.logs import start_logging; start_logging(logging.INFO); logging.info('hello')"
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "


@pytest.mark.parametrize(("to_journal", "stamp"), [(True, ""), (False, STAMP)])
def test_a_line_has_a_time_where_nobody_else_adds_it(tmp_path, to_journal, stamp):
    path = tmp_path / "log"
    with path.open("wb") as log:
        found = os.fstat(log.fileno())
        inode = found.st_ino + (not to_journal)
        environ = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{inode}"}
        subprocess.run([sys.executable, "-c", PROGRAM], env=environ, stderr=log, check=True, timeout=60)
    assert re.fullmatch(rf"{stamp}INFO root: hello\n", path.read_text())


HOSTILE = "import logging; from distree.logs import MOST, start_logging; start_logging(logging.INFO); "


def logged(program):
    done = subprocess.run([sys.executable, "-c", HOSTILE + program], stderr=subprocess.PIPE, check=True, timeout=60)
    return done.stderr.decode()


def test_whatever_is_in_a_message_it_is_one_printable_line_of_bounded_length():
    told = logged(r"logging.warning('rejected on %s', 'a\x1b[2J\n\u202e\x9b' + 'x' * 60_000)")
    line, nothing = told.split("\n")
    assert nothing == ""
    assert line.isprintable()
    assert r"rejected on a\x1b[2J\n\u202e\x9bxxx" in line
    assert 900 < len(line) < 1100


def test_a_bug_keeps_its_traceback():
    told = logged("""
try:
    1 / 0
except ZeroDivisionError:
    logging.critical('a bug', exc_info=True)
""")
    assert told.endswith("ZeroDivisionError: division by zero\n")
    assert len(told.splitlines()) > 3
