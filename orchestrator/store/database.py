"""The orchestrator's memory: one SQLite file with plans, devices and the history of their reports.

Write-ahead log and `synchronous=NORMAL`: a power cut may cost the last seconds of telemetry, never the
file. Reports are written in one transaction per call of `save`, which the service calls at most once a
second, because each transaction wears an SD card. The command line reads the same file, and adds plans,
while the service runs. Times are Unix seconds of this machine's clock, for people; they decide only what
is too old to keep.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from distree.errors import DistreeError, Problem
from distree.messages.plan import Plan
from orchestrator.store import history
from orchestrator.store.records import (
    AuditSample,
    Batch,
    Observation,
    PipelineRow,
    PlanRow,
    Refused,
    Row,
    ServiceRow,
    device_values,
    observation,
    pipeline_row,
    pipeline_values,
    plan_row,
    plan_values,
    sample_row,
    sample_values,
    with_epoch,
)

SCHEMA_VERSION = 7
BUSY_TIMEOUT_S = 2.0
PLANS_KEPT = 1000
SAMPLES_KEPT = 20_000
"""Audit samples kept of each pipeline, and all that its tuning was not saved with."""
DAY_S = 86_400.0
OVERFLOW_ROUNDS = 20
SPARE_PAGES = 64

_TUNING_TABLES = (
    "CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, pipeline, at REAL, origin, request, missing, scores, "
    "predictions, label INTEGER)",
    "CREATE INDEX audit_pipeline ON audit (pipeline, id)",
    "CREATE TABLE tuning (pipeline PRIMARY KEY, upto INTEGER, state) WITHOUT ROWID",
)
_ANNOUNCED_TABLE = "CREATE TABLE announced (topic PRIMARY KEY, payload BLOB) WITHOUT ROWID"
_SCHEMA = (
    "CREATE TABLE plan (pipeline, epoch INTEGER, model, revision, criterion, thresholds, author, at REAL, "
    "masked DEFAULT '[]', audit_rate REAL DEFAULT 0, rest_s DEFAULT '[]', PRIMARY KEY (pipeline, epoch)) WITHOUT ROWID",
    "CREATE TABLE pipeline (name PRIMARY KEY, floor INTEGER, standing, configured, branches DEFAULT '[]') "
    "WITHOUT ROWID",
    "CREATE TABLE device (device PRIMARY KEY, boot, status, meta, telemetry, heard_at REAL, period_s REAL, "
    "seen_at REAL, shared, shared_at REAL) WITHOUT ROWID",
    "CREATE TABLE service (id INTEGER PRIMARY KEY CHECK (id = 1), pid, started_at REAL, online, refused)",
    *_TUNING_TABLES,
    _ANNOUNCED_TABLE,
)
_MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE plan ADD COLUMN masked DEFAULT '[]'",
        "ALTER TABLE pipeline ADD COLUMN branches DEFAULT '[]'",
    ),
    2: (
        "ALTER TABLE plan ADD COLUMN audit_rate REAL DEFAULT 0",
        "ALTER TABLE plan ADD COLUMN rest_s DEFAULT '[]'",
        *_TUNING_TABLES,
    ),
    3: (_ANNOUNCED_TABLE,),
    4: (),
    # Reports came in version 1 of the messages; boards soon send others.
    5: ("UPDATE device SET telemetry = NULL",),
    6: ("ALTER TABLE device ADD COLUMN shared", "ALTER TABLE device ADD COLUMN shared_at REAL"),
}
"""From each schema to the next; what has the history of reports is matched to their declarations."""
_SAVE_DEVICE = """
INSERT INTO device VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device) DO UPDATE SET
    status = CASE WHEN boot = excluded.boot THEN coalesce(excluded.status, status) ELSE excluded.status END,
    meta = CASE WHEN boot = excluded.boot THEN coalesce(excluded.meta, meta) ELSE excluded.meta END,
    telemetry = CASE WHEN boot = excluded.boot THEN coalesce(excluded.telemetry, telemetry)
        ELSE excluded.telemetry END,
    heard_at = coalesce(excluded.heard_at, heard_at),
    boot = excluded.boot, period_s = excluded.period_s, seen_at = excluded.seen_at,
    shared = coalesce(excluded.shared, shared), shared_at = coalesce(excluded.shared_at, shared_at)
"""
_SAVE_PIPELINE = """
INSERT INTO pipeline (name, floor, standing, configured, branches) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET
    floor = max(floor, excluded.floor), standing = excluded.standing, configured = excluded.configured,
    branches = excluded.branches
"""


CHECK_STORE = "check store.path and its permissions"
"""The remedy for a store that cannot be opened or written."""

NO_STORE = "start one with 'distree orchestrator run'"


class StoreError(DistreeError):
    """The store cannot be opened, read or written."""


class Store:
    """The file, opened by `open` or a `with` block; used by one thread. Methods raise StoreError.

    >>> with Store(Path(":memory:")) as store:
    ...     store.latest_plan("fashion") is None
    True
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._connection: sqlite3.Connection | None = None
        self._version_seen = -1

    def __enter__(self) -> Store:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Open the file, and make it where it is missing and may be written."""
        with self._guard():
            self._connection = self._connect()
        try:
            with self._guard():
                self._check_version()
                if not self._read_only:
                    self._prepare()
        except StoreError:
            self.close()
            raise

    def check(self) -> None:
        """Read the whole file once; StoreError if it is damaged."""
        with self._guard():
            verdict = str(self._rows("PRAGMA quick_check(1)")[0][0])
            if verdict != "ok":
                raise sqlite3.DatabaseError(f"malformed: {verdict}")

    def close(self) -> None:
        """Close the file; harmless when it is not open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with self._guard():
                connection.close()

    # ------------------------------------------------------------ plans

    def latest_plan(self, pipeline: str) -> PlanRow | None:
        """Return the plan with the highest epoch of a pipeline."""
        rows = self._rows("SELECT * FROM plan WHERE pipeline = ? ORDER BY epoch DESC LIMIT 1", pipeline)
        return plan_row(rows[0]) if rows else None

    def plans(self, pipeline: str) -> tuple[PlanRow, ...]:
        """Return the plans of a pipeline that are kept, the newest first."""
        rows = self._rows("SELECT * FROM plan WHERE pipeline = ? ORDER BY epoch DESC", pipeline)
        return tuple(map(plan_row, rows))

    def record_plan(self, row: PlanRow) -> bool:
        """Write a plan before it is published; False if its epoch already names another content."""
        with self._transaction():
            return self._insert_plan(row)

    def append_plan(self, row: PlanRow) -> Plan:
        """Write a plan under the next free epoch of its pipeline and return it with that epoch."""
        name = row.plan.pipeline
        with self._transaction():
            latest, known = self.latest_plan(name), self.pipeline(name)
            epoch = 1 + max(latest.plan.epoch if latest else 0, known.floor)
            stamped = with_epoch(row, epoch)
            self._insert_plan(stamped)
        return stamped.plan

    def pipeline(self, name: str) -> PipelineRow:
        """Return what is known of a pipeline; a row of defaults where nothing is."""
        rows = self._rows("SELECT * FROM pipeline WHERE name = ?", name)
        return pipeline_row(rows[0]) if rows else PipelineRow(name=name)

    def changed(self) -> bool:
        """Whether another process wrote since the last call. Cheap: it reads one counter in memory."""
        version = int(self._rows("PRAGMA data_version")[0][0])
        before, self._version_seen = self._version_seen, version
        return version != before

    # ------------------------------------------------------------ tuning

    def tuning(self, pipeline: str) -> tuple[dict[str, Any] | None, tuple[AuditSample, ...]]:
        """Return where the tuning of a pipeline stood when it was last saved, and the samples since."""
        rows = self._rows("SELECT upto, state FROM tuning WHERE pipeline = ?", pipeline)
        upto, state = rows[0] if rows else (0, "null")
        later = self._rows("SELECT * FROM audit WHERE pipeline = ? AND id > ? ORDER BY id", pipeline, upto)
        return json.loads(state), tuple(map(sample_row, later))

    def samples(self, pipeline: str) -> tuple[AuditSample, ...]:
        """Return the samples of a pipeline that are kept, the oldest first."""
        return tuple(map(sample_row, self._rows("SELECT * FROM audit WHERE pipeline = ? ORDER BY id", pipeline)))

    # ------------------------------------------------------------ devices and their reports

    def save(self, batch: Batch) -> None:
        """Write all of a batch in one transaction. An epoch of a pipeline never goes down by it."""
        with self._transaction():
            self._sql.executemany(_SAVE_DEVICE, map(device_values, batch.devices))
            for seen in batch.reported:
                if seen.device.telemetry is not None:
                    history.add(self._sql, seen.seen_at, seen.device.telemetry)
            gone = [(name,) for name in batch.forgotten]
            self._sql.executemany("DELETE FROM device WHERE device = ?", gone)
            self._sql.executemany(_SAVE_PIPELINE, map(pipeline_values, batch.pipelines))
            if batch.service is not None:
                self._save_service(batch.service)
            self._sql.executemany(
                "INSERT INTO audit (pipeline, at, origin, request, missing, scores, predictions, label) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                map(sample_values, batch.samples),
            )
            self._sql.executemany(
                "REPLACE INTO tuning (pipeline, upto, state) "
                "VALUES (?1, (SELECT coalesce(max(id), 0) FROM audit WHERE pipeline = ?1), ?2)",
                [(row.pipeline, json.dumps(row.state)) for row in batch.tunings],
            )

    def devices(self) -> tuple[Observation, ...]:
        """Return all devices, by id."""
        return tuple(map(observation, self._rows("SELECT * FROM device ORDER BY device")))

    def service(self) -> ServiceRow | None:
        """Return the service that wrote last; None if none ever did."""
        rows = self._rows("SELECT pid, started_at, online, refused FROM service")
        if not rows:
            return None
        pid, started_at, online, refused = rows[0]
        counts = tuple(Refused(reason=reason, count=count) for reason, count in json.loads(refused).items())
        return ServiceRow(pid=pid, started_at=started_at, online=bool(online), refused=counts)

    # ------------------------------------------------------------ what other systems were told

    def announced(self) -> dict[str, bytes]:
        """Return the retained messages by which other systems were told of this site, by topic."""
        return dict(self._rows("SELECT topic, payload FROM announced"))

    def announce(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Write messages before they are published; an empty one takes back what its topic said."""
        with self._transaction():
            for topic, payload in messages:
                if payload:
                    self._sql.execute(
                        "INSERT INTO announced VALUES (?, ?) ON CONFLICT (topic) DO UPDATE SET payload = "
                        "excluded.payload WHERE payload IS NOT excluded.payload",
                        (topic, payload),
                    )
                else:
                    self._sql.execute("DELETE FROM announced WHERE topic = ?", (topic,))

    # ------------------------------------------------------------ retention

    def history_length(self) -> int:
        """Return how many reports of stages, fusions and origins are kept."""
        return sum(int(self._rows(f"SELECT count(*) FROM {table}")[0][0]) for table in history.TABLES)  # noqa: S608

    def used_bytes(self) -> int:
        """Return the bytes in use in the file, without its free pages and its log."""
        pages, free, size = (
            int(self._rows(f"PRAGMA {name}")[0][0]) for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def prune(self, *, now: float, telemetry_days: float, max_bytes: int) -> None:
        """Drop what is older than `telemetry_days`, then the oldest reports until `max_bytes` suffice."""
        oldest = now - telemetry_days * DAY_S
        with self._transaction():
            self._sql.execute("DELETE FROM device WHERE seen_at < ?", (oldest,))
            for table in history.TABLES:
                self._drop_before(table, oldest)
            self._drop_samples()
        for _ in range(OVERFLOW_ROUNDS):
            if self.used_bytes() <= max_bytes or not self.history_length():
                break
            with self._transaction():
                for table in history.TABLES:
                    self._drop_tenth(table)
        self._give_back()

    def _give_back(self) -> None:
        # A few free pages are soon used again; giving them back would only wear the card.
        if int(self._rows("PRAGMA freelist_count")[0][0]) > SPARE_PAGES:
            with self._guard():
                # Unlike `execute`, this runs the statement to its end; it frees one page a step.
                self._sql.executescript("PRAGMA incremental_vacuum;")

    def _drop_before(self, table: str, at: float) -> None:
        # Rows stand in the order of their arrival, so the search for the first one to keep ends early.
        self._sql.execute(
            f"DELETE FROM {table} WHERE rowid < coalesce("  # noqa: S608
            f"(SELECT rowid FROM {table} WHERE at >= ? ORDER BY rowid LIMIT 1), 9223372036854775807)",
            (at,),
        )

    def _drop_samples(self) -> None:
        for pipeline, upto in self._rows("SELECT pipeline, upto FROM tuning"):
            # What came after the tuning was last saved is needed to restore it.
            self._sql.execute(
                "DELETE FROM audit WHERE pipeline = ?1 AND id <= min(?2, (SELECT id FROM audit WHERE pipeline = ?1 "
                "ORDER BY id DESC LIMIT 1 OFFSET ?3))",
                (pipeline, upto, SAMPLES_KEPT),
            )

    def _drop_tenth(self, table: str) -> None:
        self._sql.execute(
            f"DELETE FROM {table} WHERE rowid <= "  # noqa: S608
            f"(SELECT min(rowid) + (max(rowid) - min(rowid)) / 10 FROM {table})"
        )

    # ------------------------------------------------------------ SQL

    @property
    def _sql(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.path}: the store is not open", "open it, or use it in a with block")
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        if not self._read_only:
            if str(self.path) != ":memory:":
                self.path.parent.mkdir(parents=True, exist_ok=True)
            return sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        if not self.path.exists():
            raise StoreError(f"{self.path}: no store yet", NO_STORE)
        # Without its log the file is complete, and reading it as immutable needs no right to write beside it.
        complete = not Path(f"{self.path}-wal").exists() and not os.access(self.path.parent, os.W_OK)
        options = "mode=ro&immutable=1" if complete else "mode=ro"
        uri = f"{self.path.absolute().as_uri()}?{options}"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)

    def _prepare(self) -> None:
        # Before the first table, or it has no effect.
        self._sql.execute("PRAGMA auto_vacuum = INCREMENTAL")
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "journal_size_limit = 4194304"):
            self._sql.execute(f"PRAGMA {pragma}")
        with self._transaction():
            version = self._user_version()
            history.match_tables(self._sql)
            if version < SCHEMA_VERSION:
                steps = [_SCHEMA] if version == 0 else [_MIGRATIONS[k] for k in range(version, SCHEMA_VERSION)]
                for statement in itertools.chain.from_iterable(steps):
                    self._sql.execute(statement)
                self._sql.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check_version(self) -> None:
        version = self._user_version()
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: written by a newer DistrEE (schema {version}, this one knows {SCHEMA_VERSION})",
                "upgrade, or name another file in store.path",
            )
        if version == 0 and self._rows("SELECT name FROM sqlite_master LIMIT 1"):
            raise StoreError(f"{self.path}: not a database of the orchestrator", "name another in store.path")
        if version == 0 and self._read_only:
            raise StoreError(f"{self.path}: no store yet", NO_STORE)

    def _user_version(self) -> int:
        return int(self._rows("PRAGMA user_version")[0][0])

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(*_explain(error).at(str(self.path))) from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}", CHECK_STORE) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._guard():
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")

    def _rows(self, statement: str, *values: object) -> list[Row]:
        with self._guard():
            return self._sql.execute(statement, values).fetchall()

    def _insert_plan(self, row: PlanRow) -> bool:
        plan = row.plan
        before = self._rows("SELECT * FROM plan WHERE pipeline = ? AND epoch = ?", plan.pipeline, plan.epoch)
        if before:
            return plan_row(before[0]).plan == plan
        self._sql.execute(
            "INSERT INTO plan VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            plan_values(row),
        )
        self._sql.execute(
            "DELETE FROM plan WHERE pipeline = ? AND epoch <= "
            "(SELECT epoch FROM plan WHERE pipeline = ? ORDER BY epoch DESC LIMIT 1 OFFSET ?)",
            (plan.pipeline, plan.pipeline, PLANS_KEPT),
        )
        return True

    def _save_service(self, row: ServiceRow) -> None:
        refused = json.dumps({entry.reason: entry.count for entry in row.refused})
        self._sql.execute(
            "REPLACE INTO service (id, pid, started_at, online, refused) VALUES (1, ?, ?, ?, ?)",
            (row.pid, row.started_at, row.online, refused),
        )


def _explain(error: sqlite3.Error) -> Problem:
    text = str(error)
    if "locked" in text or "busy" in text:
        return Problem("locked by another process for longer than it should be", "see who has it open")
    if "full" in text:
        return Problem("the disk is full", "make room, or lower store.max_mb")
    if isinstance(error, sqlite3.DatabaseError) and ("malformed" in text or "not a database" in text):
        return Problem(f"damaged ({text})", "move it away and start again: the brokers' retained plans keep the epochs")
    return Problem(text, f"{CHECK_STORE}, and the disk")
