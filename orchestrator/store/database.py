"""The orchestrator's memory: one SQLite file with plans, devices, audits and the history of reports.

Write-ahead log and `synchronous=NORMAL`: a power cut may cost the last seconds of telemetry, never the file. Reports
are written in one transaction per call of `save`, which the service makes at most once a second, because every
transaction wears an SD card. The command line reads the same file, and adds plans, while the service runs. Times are
Unix seconds of this machine's clock, for people; they decide only what is too old to keep.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from distree.messages.plan import Plan, next_epoch, same_decision
from orchestrator.store import history, retention, schema
from orchestrator.store.connection import Connection, StoreError
from orchestrator.store.records import (
    PIPELINE_COLUMNS,
    PLAN_COLUMNS,
    AuditSample,
    Batch,
    DeviceRow,
    EventRow,
    PipelineRow,
    PlanRow,
    ServiceRow,
    device_row,
    device_values,
    event_row,
    event_values,
    pipeline_row,
    pipeline_values,
    plan_row,
    plan_values,
    sample_row,
    sample_values,
    service_row,
    service_values,
)

PLANS_KEPT = 1000
EVENTS_KEPT = 1000

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
_SAVE_EVENT = "INSERT INTO event (at, sender, event) VALUES (?, ?, ?)"
_OF_PIPELINE, _OF_PLAN = ", ".join(PIPELINE_COLUMNS), ", ".join(PLAN_COLUMNS)
_SAVE_PIPELINE = f"REPLACE INTO pipeline ({_OF_PIPELINE}) VALUES ({', '.join('?' * len(PIPELINE_COLUMNS))})"  # noqa: S608
_READ_PIPELINE = f"SELECT {_OF_PIPELINE} FROM pipeline WHERE name = ?"  # noqa: S608 - as above
_READ_PLANS = f"SELECT id, {_OF_PLAN} FROM plan WHERE pipeline = ? ORDER BY id DESC LIMIT ?"  # noqa: S608 - as above
_ADD_PLAN = f"INSERT INTO plan ({_OF_PLAN}) VALUES ({', '.join('?' * len(PLAN_COLUMNS))})"  # noqa: S608 - as above
_DROP_OLD_PLANS = (
    "DELETE FROM plan WHERE pipeline = ?1 AND id <= "
    "(SELECT id FROM plan WHERE pipeline = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)"
)
_SAVE_SERVICE = "REPLACE INTO service (id, pid, started_at, online, refused) VALUES (1, ?, ?, ?, ?)"
_SAVE_SAMPLE = (
    "INSERT INTO audit (pipeline, at, origin, request, missing, scores, predictions, label) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_SAVE_TUNING = (
    "REPLACE INTO tuning (pipeline, upto, state) "
    "VALUES (?1, (SELECT coalesce(max(id), 0) FROM audit WHERE pipeline = ?1), ?2)"
)
_SAVE_SEQUENCE = "REPLACE INTO sequence (key, last) VALUES (?, ?)"
_SAVE_ANNOUNCED = (
    "INSERT INTO announced VALUES (?, ?) ON CONFLICT (topic) DO UPDATE SET payload = excluded.payload "
    "WHERE payload IS NOT excluded.payload"
)


class Store:
    """The file, opened by `open` or a `with` block; used by one thread. Methods raise StoreError.

    >>> with Store(Path(":memory:")) as store:
    ...     store.latest_plan("fashion") is None
    True
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.sql = Connection(path, read_only=read_only)
        self._version_seen = -1

    def __enter__(self) -> Store:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Open the file, and create it where it is missing and may be written."""
        self.sql.open()
        try:
            schema.check(self.sql)
            if not self.sql.read_only:
                schema.bring_up_to_date(self.sql)
        except StoreError:
            self.close()
            raise

    def check(self) -> None:
        """Read the whole file once; StoreError if it is damaged."""
        verdict = str(self.sql.rows("PRAGMA quick_check(1)")[0][0])
        if verdict != "ok":
            raise self.sql.damaged(verdict)

    def close(self) -> None:
        """Close the file; harmless when it is not open."""
        self.sql.close()

    def changed(self) -> bool:
        """Whether another process wrote since the last call. Cheap: it reads one counter in memory."""
        version = int(self.sql.rows("PRAGMA data_version")[0][0])
        before, self._version_seen = self._version_seen, version
        return version != before

    def save(self, batch: Batch) -> None:
        """Write all of a batch in one transaction."""
        sql = self.sql
        with sql.transaction():
            sql.run_for_each(_SAVE_DEVICE, map(device_values, batch.devices))
            for row in batch.reported:
                if row.telemetry is not None:
                    history.add(sql, row.seen_at, row.telemetry)
            sql.run_for_each("DELETE FROM device WHERE device = ?", [(name,) for name in batch.forgotten])
            sql.run_for_each(_SAVE_PIPELINE, map(pipeline_values, batch.pipelines))
            sql.run_for_each(_SAVE_SERVICE, [service_values(batch.service)] if batch.service is not None else ())
            sql.run_for_each(_SAVE_SAMPLE, map(sample_values, batch.samples))
            sql.run_for_each(_SAVE_TUNING, [(row.pipeline, json.dumps(row.state)) for row in batch.tunings])
            sql.run_for_each(_SAVE_SEQUENCE, batch.sequences)
            if batch.events:
                sql.run_for_each(_SAVE_EVENT, map(event_values, batch.events))
                sql.run("DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?", EVENTS_KEPT)

    # ------------------------------------------------------------ plans

    def latest_plan(self, pipeline: str) -> PlanRow | None:
        """Return the plan of a pipeline that was written last: the one that is wanted."""
        return next(iter(self.sql.parsed(plan_row, _READ_PLANS, pipeline, 1)), None)

    def plans(self, pipeline: str) -> tuple[PlanRow, ...]:
        """Return the plans of a pipeline that are kept, the newest first."""
        return self.sql.parsed(plan_row, _READ_PLANS, pipeline, PLANS_KEPT)

    def record_plan(self, row: PlanRow, *, after: int) -> int | None:
        """Write a plan before it is published, and return the id of its row.

        None, and nothing is written, if somebody has written a plan of the pipeline after the row with the id `after`.
        The latest decision with another share of audits, or other times of stages, gets no row of its own.
        """
        with self.sql.transaction():
            latest = self.latest_plan(row.plan.pipeline)
            if latest is None or (latest.id == after and not _is_of(latest, row.plan)):
                return self._insert_plan(row)
            if latest.id != after:
                return None
            if latest.plan != row.plan:
                hints = row.plan.audit_rate, json.dumps(row.plan.rest_s)
                self.sql.run("UPDATE plan SET audit_rate = ?, rest_s = ? WHERE id = ?", *hints, latest.id)
            return latest.id

    def append_plan(self, row: PlanRow) -> Plan:
        """Write a plan that somebody wants from now on; return it with its epoch, the next one if it has none."""
        name, plan = row.plan.pipeline, row.plan
        with self.sql.transaction():
            latest, known = self.latest_plan(name), self.pipeline(name)
            if not plan.epoch:
                highest = max(latest.plan.epoch if latest else 0, known.highest_epoch)
                plan = replace(plan, epoch=next_epoch(highest))
            self._insert_plan(replace(row, plan=plan))
            if row.is_reset:
                # For an orchestrator that starts later; one that runs finds the row.
                self.sql.run("UPDATE pipeline SET highest_epoch = ?, alarm = '' WHERE name = ?", plan.epoch, name)
        return plan

    def _insert_plan(self, row: PlanRow) -> int:
        number = self.sql.insert(_ADD_PLAN, *plan_values(row))
        self.sql.run(_DROP_OLD_PLANS, row.plan.pipeline, PLANS_KEPT)
        return number

    def pipeline(self, name: str) -> PipelineRow:
        """Return what is known of a pipeline; a row of defaults where nothing is."""
        rows = self.sql.parsed(pipeline_row, _READ_PIPELINE, name)
        return rows[0] if rows else PipelineRow(name=name)

    # ------------------------------------------------------------ tuning

    def tuning(self, pipeline: str) -> tuple[dict[str, Any] | None, tuple[AuditSample, ...]]:
        """Return the state with which the tuning of a pipeline was last saved, and the samples since."""
        saved = self.sql.parsed(
            lambda row: (int(row[0]), json.loads(row[1])), "SELECT upto, state FROM tuning WHERE pipeline = ?", pipeline
        )
        upto, state = saved[0] if saved else (0, None)
        later = "SELECT * FROM audit WHERE pipeline = ? AND id > ? ORDER BY id"
        return state, self.sql.parsed(sample_row, later, pipeline, upto)

    def samples(self, pipeline: str) -> tuple[AuditSample, ...]:
        """Return the samples of a pipeline that are kept, the oldest first."""
        return self.sql.parsed(sample_row, "SELECT * FROM audit WHERE pipeline = ? ORDER BY id", pipeline)

    # ------------------------------------------------------------ devices and the service

    def devices(self) -> tuple[DeviceRow, ...]:
        """Return all devices, by id."""
        return self.sql.parsed(device_row, "SELECT * FROM device ORDER BY device")

    def service(self) -> ServiceRow | None:
        """Return the service that wrote last; None if none ever did."""
        rows = self.sql.parsed(service_row, "SELECT pid, started_at, online, refused FROM service")
        return rows[0] if rows else None

    def events(self, count: int) -> tuple[EventRow, ...]:
        """Return the last `count` events, the oldest first."""
        rows = self.sql.parsed(event_row, "SELECT at, sender, event FROM event ORDER BY id DESC LIMIT ?", count)
        return rows[::-1]

    # ------------------------------------------------------------ what other systems were told

    def next_sequence(self, key: str, least: int) -> int:
        """Return the number of the next message signed with a key: at least `least`, and never the same twice."""
        with self.sql.transaction():
            known = self.sql.rows("SELECT last FROM sequence WHERE key = ?", key)
            number = max(least, int(known[0][0]) + 1) if known else least
            self.sql.run(_SAVE_SEQUENCE, key, number)
            return number

    def sequences(self) -> dict[str, int]:
        """Return the numbers of the last signed messages, of those who are known."""
        return {str(key): int(last) for key, last in self.sql.rows("SELECT key, last FROM sequence")}

    def announced(self) -> dict[str, bytes]:
        """Return the retained messages by which other systems were told of this site, by topic."""
        return dict(self.sql.rows("SELECT topic, payload FROM announced"))

    def announce(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Write messages before they are published; an empty one takes back what its topic said."""
        with self.sql.transaction():
            for topic, payload in messages:
                if payload:
                    self.sql.run(_SAVE_ANNOUNCED, topic, payload)
                else:
                    self.sql.run("DELETE FROM announced WHERE topic = ?", topic)

    # ------------------------------------------------------------ retention

    def history_length(self) -> int:
        """Return how many reports of stages, fusions and origins are kept."""
        return history.length(self.sql)

    def used_bytes(self) -> int:
        """Return the bytes in use in the file, without its free pages and its log."""
        return retention.used_bytes(self.sql)

    def prune(self, *, now: float, telemetry_days: float, max_bytes: int) -> None:
        """Drop what is older than `telemetry_days`, then the oldest reports until the file fits into `max_bytes`."""
        retention.prune(self.sql, now=now, telemetry_days=telemetry_days, max_bytes=max_bytes)


def _is_of(row: PlanRow, plan: Plan) -> bool:
    """Whether a plan is the decision of a row, under the same number."""
    return row.plan.epoch == plan.epoch and same_decision(row.plan, plan)
