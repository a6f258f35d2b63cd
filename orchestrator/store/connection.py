"""The SQLite file of a store: opened, read and written, with every failure as a StoreError that says what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from distree.errors import DistreeError, Problem
from distree.printable import printable
from distree.regular_files import kind_other_than_file

Row: TypeAlias = "tuple[Any, ...]"
T = TypeVar("T")

CACHE_KB = 512
"""SQLite keeps pages of the file in memory, by default up to 2 MB, which made the process grow for an hour."""

BUSY_TIMEOUT_S = 2.0
"""How long to wait for another process that is writing, in seconds."""

CHECK_STORE = "check store.path and its permissions"
"""The remedy for a store that cannot be opened or written."""


class StoreError(DistreeError):
    """The store cannot be opened, read or written."""


_UNREADABLE = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, DistreeError,
)  # fmt: skip
"""What reading a row raises whose values are not what was written."""


class Connection:
    """A connection to the file at `path`, used by one thread. Methods raise StoreError."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        self.read_only = read_only
        self._open: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file; create it where it is missing and may be written."""
        with self._guard():
            self._open = self._connect()
            self._open.execute(f"PRAGMA cache_size = -{CACHE_KB}")

    def close(self) -> None:
        """Close the file; harmless when it is not open."""
        connection, self._open = self._open, None
        if connection is not None:
            with self._guard():
                connection.close()

    def rows(self, statement: str, *values: object) -> list[Row]:
        """Run a statement and return its rows."""
        with self._guard():
            return self._sqlite.execute(statement, values).fetchall()

    def parsed(self, parse: Callable[[Row], T], statement: str, *values: object) -> tuple[T, ...]:
        """Run a statement and return its rows as `parse` reads them."""
        rows = self.rows(statement, *values)
        try:
            return tuple(map(parse, rows))
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            DistreeError,
        ) as error:
            raise self.damaged(f"a row cannot be read: {printable(str(error))}") from None

    def run(self, statement: str, *values: object) -> None:
        """Run a statement that returns nothing."""
        with self._guard():
            self._sqlite.execute(statement, values)

    def insert(self, statement: str, *values: object) -> int:
        """Run a statement that inserts one row, and return the row's id."""
        with self._guard():
            added = self._sqlite.execute(statement, values)
        assert added.lastrowid is not None  # noqa: S101 - as it is after an INSERT
        return added.lastrowid

    def run_for_each(self, statement: str, rows: Iterable[Row]) -> None:
        """Run a statement once for each row of values."""
        with self._guard():
            self._sqlite.executemany(statement, rows)

    def run_to_its_end(self, statement: str) -> None:
        """Run a statement that does its work step by step, as a vacuum does; outside of a transaction."""
        with self._guard():
            self._sqlite.executescript(f"{statement};")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything that the block writes, or nothing if it raises."""
        with self._guard():
            self._sqlite.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                # When the disk is full, SQLite has rolled back already.
                if self._sqlite.in_transaction:
                    self._sqlite.execute("ROLLBACK")
                raise
            self._sqlite.execute("COMMIT")

    def damaged(self, how: str) -> StoreError:
        """Return the error for a file that is damaged."""
        return StoreError(*_damage(how).at(str(self.path)))

    @property
    def _sqlite(self) -> sqlite3.Connection:
        if self._open is None:
            raise StoreError(f"{self.path}: the store is not open", "open it, or use it in a with block")
        return self._open

    def _connect(self) -> sqlite3.Connection:
        # SQLite would wait for a pipe.
        if self.path.exists() and (kind := kind_other_than_file(self.path.stat().st_mode)) is not None:
            raise OSError(errno.EINVAL, f"it is {kind}, not a file")
        if not self.read_only:
            if str(self.path) != ":memory:":
                self.path.parent.mkdir(parents=True, exist_ok=True)
            return sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        if not self.path.exists():
            raise no_store_yet(self.path)
        # Without its log the file is complete, and reading it as immutable needs no right to write beside it.
        complete = not Path(f"{self.path}-wal").exists() and not os.access(self.path.parent, os.W_OK)
        options = "mode=ro&immutable=1" if complete else "mode=ro"
        uri = f"{self.path.absolute().as_uri()}?{options}"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(*_problem(error).at(str(self.path))) from None
        except UnicodeDecodeError as error:
            raise self.damaged(f"text that is not UTF-8: {error.reason}") from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}", CHECK_STORE) from None


def no_store_yet(path: Path) -> StoreError:
    """Return the error for a store that no orchestrator has written yet."""
    return StoreError(f"{path}: there is no store yet", "run 'distree orchestrator run', which creates it")


_DAMAGED = ("malformed", "not a database", "Could not decode")


def _problem(error: sqlite3.Error) -> Problem:
    text = printable(str(error))  # it may hold a whole column
    if "locked" in text or "busy" in text:
        return Problem("locked by another process for longer than it should be", "find out who has it open")
    if "full" in text:
        return Problem("the disk is full", "make room, or lower store.max_mb")
    if isinstance(error, sqlite3.DatabaseError) and any(sign in text for sign in _DAMAGED):
        return _damage(text)
    return Problem(text, f"{CHECK_STORE}, and the disk")


def _damage(text: str) -> Problem:
    remedy = "move it away and start again: plans retained on the broker keep their epochs"
    return Problem(f"damaged ({text})", remedy)
