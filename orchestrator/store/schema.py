"""The tables of a store, and how a file of an earlier version is brought up to date."""

from __future__ import annotations

import itertools

from orchestrator.store import history
from orchestrator.store.connection import Connection, StoreError, no_store_yet

SCHEMA_VERSION = 10

_TUNING_TABLES = (
    "CREATE TABLE audit (id INTEGER PRIMARY KEY AUTOINCREMENT, pipeline, at REAL, origin, request, missing, scores, "
    "predictions, label INTEGER)",
    "CREATE INDEX audit_pipeline ON audit (pipeline, id)",
    "CREATE TABLE tuning (pipeline PRIMARY KEY, upto INTEGER, state) WITHOUT ROWID",
)
_ANNOUNCED_TABLE = "CREATE TABLE announced (topic PRIMARY KEY, payload BLOB) WITHOUT ROWID"
_PLAN_TABLE = (
    "CREATE TABLE plan (id INTEGER PRIMARY KEY AUTOINCREMENT, pipeline, epoch INTEGER, model, revision, criterion, "
    "thresholds, masked, audit_rate REAL, rest_s, reason, author, at REAL, is_reset INTEGER)",
    "CREATE INDEX plan_pipeline ON plan (pipeline, id)",
)
_EVENT_TABLE = ("CREATE TABLE event (id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL, sender, event BLOB)",)
_SEQUENCE_TABLE = "CREATE TABLE sequence (key PRIMARY KEY, last INTEGER) WITHOUT ROWID"
_SCHEMA = (
    *_PLAN_TABLE,
    "CREATE TABLE pipeline (name PRIMARY KEY, highest_epoch INTEGER, standing, alarm, configured, branches) "
    "WITHOUT ROWID",
    "CREATE TABLE device (device PRIMARY KEY, boot, status, meta, telemetry, heard_at REAL, period_s REAL, "
    "seen_at REAL, shared, shared_at REAL) WITHOUT ROWID",
    "CREATE TABLE service (id INTEGER PRIMARY KEY CHECK (id = 1), pid, started_at REAL, online, refused)",
    *_TUNING_TABLES,
    _ANNOUNCED_TABLE,
    *_EVENT_TABLE,
    _SEQUENCE_TABLE,
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
    # Epochs may begin at 1 again, so rows are told apart by ids. Reports have the hash of the plan in force.
    7: (
        "ALTER TABLE plan RENAME TO plan_by_epoch",
        *_PLAN_TABLE,
        "INSERT INTO plan (pipeline, epoch, model, revision, criterion, thresholds, masked, audit_rate, rest_s, "
        "reason, author, at, is_reset) SELECT pipeline, epoch, model, revision, criterion, thresholds, masked, "
        "audit_rate, rest_s, '', author, at, 0 FROM plan_by_epoch ORDER BY pipeline, epoch",
        "DROP TABLE plan_by_epoch",
        "ALTER TABLE pipeline RENAME COLUMN floor TO highest_epoch",
        "ALTER TABLE pipeline ADD COLUMN alarm DEFAULT ''",
        "UPDATE device SET telemetry = NULL",
    ),
    8: _EVENT_TABLE,
    9: (_SEQUENCE_TABLE,),
}
"""From each version to the next. The tables of the history are matched to the declarations of reports instead."""


def check(sql: Connection) -> None:
    """Raise StoreError if the file is of a newer version or of something else, or read-only and not up to date."""
    version = _version(sql)
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{sql.path}: written by a newer DistrEE (schema {version}, this one knows {SCHEMA_VERSION})",
            "upgrade, or name another file in store.path",
        )
    if version == 0 and sql.rows("SELECT name FROM sqlite_master LIMIT 1"):
        raise StoreError(f"{sql.path}: not a database of the orchestrator", "name another file in store.path")
    if 0 < version < SCHEMA_VERSION and sql.read_only:
        raise StoreError(
            f"{sql.path}: written by an older DistrEE (schema {version}, this one reads {SCHEMA_VERSION})",
            "run 'distree orchestrator run', which upgrades it",
        )
    if version == 0 and sql.read_only:
        raise no_store_yet(sql.path)


def bring_up_to_date(sql: Connection) -> None:
    """Create the tables of an empty file, or change those of an earlier version to this one's."""
    # Without effect once there is a table.
    sql.run("PRAGMA auto_vacuum = INCREMENTAL")
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "journal_size_limit = 4194304"):
        sql.run(f"PRAGMA {pragma}")
    with sql.transaction():
        version = _version(sql)
        history.match_tables(sql)
        if version < SCHEMA_VERSION:
            steps = [_SCHEMA] if version == 0 else [_MIGRATIONS[k] for k in range(version, SCHEMA_VERSION)]
            for statement in itertools.chain.from_iterable(steps):
                sql.run(statement)
            sql.run(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _version(sql: Connection) -> int:
    return int(sql.rows("PRAGMA user_version")[0][0])
