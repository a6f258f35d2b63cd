"""A store whose bytes were damaged where text is stored is told as damaged."""

from __future__ import annotations

import os

import pytest

from orchestrator.store.connection import StoreError
from orchestrator.store.database import Store


def test_text_that_is_not_utf8_is_damage(tmp_path):
    path = tmp_path / "store.db"
    with Store(path) as store:
        store.sql.run("INSERT INTO pipeline (name, standing, branches) VALUES ('p', 'leading', '[]')")
        store.sql.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        store.sql.rows("PRAGMA journal_mode = DELETE")
    content = path.read_bytes()
    assert content.count(b"leading") == 1
    path.write_bytes(content.replace(b"leading", b"\xa2\xffading"))
    with Store(path, read_only=True) as store, pytest.raises(StoreError, match="damaged"):
        store.pipeline("p")


def test_a_pipe_is_not_waited_for(tmp_path):
    path = tmp_path / "store.db"
    os.mkfifo(path)
    for read_only in (True, False):
        with pytest.raises(StoreError, match="it is a pipe, not a file"), Store(path, read_only=read_only):
            pass
