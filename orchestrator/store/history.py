"""The history of boards' reports: a table per kind of report part, with a column for each of its fields.

Tables follow the declarations in `distree.messages.telemetry`: a field that is declared there later becomes a column of
an existing store, and rows written before have the field's default in it.
"""

from __future__ import annotations

import json
from typing import Any

from distree.messages.layout import REQUIRED, Field, layout_of
from distree.messages.telemetry import FusionTelemetry, OriginTelemetry, StageTelemetry, Telemetry
from orchestrator.store.connection import Connection

TABLES: dict[str, type] = {
    "stage_report": StageTelemetry,
    "fusion_report": FusionTelemetry,
    "origin_report": OriginTelemetry,
}

HEAD = ("at", "device", "boot", "sequence", "pipeline", "epoch", "revision")
"""The first columns of every table: when a report came (Unix seconds), whose it was, and of what."""


def columns(table: str) -> tuple[str, ...]:
    """Return the columns of a table."""
    return (*HEAD, *(field.name for field in layout_of(TABLES[table]).fields))


def match_tables(sql: Connection) -> None:
    """Create the tables that are missing, and the columns that existing tables lack."""
    for table, cls in TABLES.items():
        sql.run(f"CREATE TABLE IF NOT EXISTS {table} ({', '.join(columns(table))})")
        known = {row[1] for row in sql.rows(f"PRAGMA table_info({table})")}
        for field in layout_of(cls).fields:
            if field.name not in known:
                sql.run(f"ALTER TABLE {table} ADD COLUMN {field.name} DEFAULT {_before(field)}")


def add(sql: Connection, at: float, report: Telemetry) -> None:
    """Add a report that came at `at`, in Unix seconds."""
    for part in report.pipelines:
        head = at, report.device, report.boot, report.sequence, part.pipeline, part.epoch, part.revision
        origins = (part.origin,) if part.origin is not None else ()
        for table, rows in (("stage_report", part.stages), ("fusion_report", part.fusions), ("origin_report", origins)):
            names = columns(table)
            insert = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608
            sql.run_for_each(insert, [(*head, *_values(row)) for row in rows])


def length(sql: Connection) -> int:
    """Return how many parts of reports are kept."""
    return sum(int(sql.rows(f"SELECT count(*) FROM {table}")[0][0]) for table in TABLES)  # noqa: S608


def _values(row: Any) -> list[Any]:
    values = [getattr(row, field.name) for field in layout_of(type(row)).fields]
    return [json.dumps(value) if isinstance(value, tuple | dict) else value for value in values]


def _before(field: Field) -> str:
    """Return what a column holds in rows that were written before it existed."""
    if field.default is REQUIRED:
        return "NULL"
    return f"'{json.dumps(field.default)}'" if isinstance(field.default, tuple) else repr(field.default)
