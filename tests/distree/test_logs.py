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
