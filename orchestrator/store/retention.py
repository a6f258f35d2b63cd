"""What a store drops, so that neither time nor a large site fills the disk."""

from __future__ import annotations

from orchestrator.store import history
from orchestrator.store.connection import Connection

SAMPLES_KEPT = 20_000
"""Audit samples kept per pipeline, besides all that its tuning was not saved with."""
DAY_S = 86_400.0
OVERFLOW_ROUNDS = 20
SPARE_PAGES = 64


DEVICES_KEPT = 20_000
"""Devices that are kept, those that were seen last."""


def prune(sql: Connection, *, now: float, telemetry_days: float, max_bytes: int) -> None:
    """Drop what is older than `telemetry_days`, then the oldest reports until the file fits into `max_bytes`."""
    oldest = now - telemetry_days * DAY_S
    with sql.transaction():
        sql.run("DELETE FROM device WHERE seen_at < ?", oldest)
        # No more than an orchestrator knows at a time, whatever names somebody has made up.
        newest = "SELECT device FROM device ORDER BY seen_at DESC LIMIT ?"
        sql.run(f"DELETE FROM device WHERE device NOT IN ({newest})", DEVICES_KEPT)  # noqa: S608 - no text from outside
        for table in history.TABLES:
            _drop_before(sql, table, oldest)
        _drop_samples(sql)
    for _ in range(OVERFLOW_ROUNDS):
        if used_bytes(sql) <= max_bytes or not history.length(sql):
            break
        with sql.transaction():
            for table in history.TABLES:
                _drop_tenth(sql, table)
    # A few free pages are soon used again; giving them back would only wear out an SD card.
    if int(sql.rows("PRAGMA freelist_count")[0][0]) > SPARE_PAGES:
        sql.run_to_its_end("PRAGMA incremental_vacuum")


def used_bytes(sql: Connection) -> int:
    """Return the bytes in use in the file, without its free pages and its log."""
    pages, free, size = (
        int(sql.rows(f"PRAGMA {name}")[0][0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _drop_before(sql: Connection, table: str, at: float) -> None:
    # Rows stand in the order in which they came, so the search for the first one to keep ends early.
    sql.run(
        f"DELETE FROM {table} WHERE rowid < coalesce("  # noqa: S608
        f"(SELECT rowid FROM {table} WHERE at >= ? ORDER BY rowid LIMIT 1), 9223372036854775807)",
        at,
    )


def _drop_samples(sql: Connection) -> None:
    for pipeline, upto in sql.rows("SELECT pipeline, upto FROM tuning"):
        # What came after the tuning was last saved is needed to restore it.
        sql.run(
            "DELETE FROM audit WHERE pipeline = ?1 AND id <= min(?2, (SELECT id FROM audit WHERE pipeline = ?1 "
            "ORDER BY id DESC LIMIT 1 OFFSET ?3))",
            pipeline,
            upto,
            SAMPLES_KEPT,
        )


def _drop_tenth(sql: Connection, table: str) -> None:
    sql.run(
        f"DELETE FROM {table} WHERE rowid <= "  # noqa: S608
        f"(SELECT min(rowid) + (max(rowid) - min(rowid)) / 10 FROM {table})"
    )
