"""The orchestrator's memory: one SQLite file with plans, devices, audits and the history of reports.

Write-ahead log and `synchronous=NORMAL`: a power cut may cost the last seconds of telemetry, never the file. Reports
are written in one transaction per call of `save`, which the service makes at most once a second, because every
transaction wears an SD card. The command line reads the same file, and adds plans, while the service runs. Times are
Unix seconds of this machine's clock, for people; they decide only what is too old to keep.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from distree.messages.plan import Plan
from orchestrator.store import history, retention, schema
from orchestrator.store.connection import Connection, StoreError
from orchestrator.store.records import (
    AuditSample,
    Batch,
    DeviceRow,
    PipelineRow,
    PlanRow,
    ServiceRow,
    device_row,
    device_values,
    pipeline_row,
    pipeline_values,
    plan_row,
    plan_values,
    sample_row,
    sample_values,
    service_row,
    service_values,
    with_epoch,
)

PLANS_KEPT = 1000

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
_SAVE_SERVICE = "REPLACE INTO service (id, pid, started_at, online, refused) VALUES (1, ?, ?, ?, ?)"
_SAVE_SAMPLE = (
    "INSERT INTO audit (pipeline, at, origin, request, missing, scores, predictions, label) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_SAVE_TUNING = (
    "REPLACE INTO tuning (pipeline, upto, state) "
    "VALUES (?1, (SELECT coalesce(max(id), 0) FROM audit WHERE pipeline = ?1), ?2)"
)
_SAVE_PLAN = "INSERT INTO plan VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DROP_OLD_PLANS = (
    "DELETE FROM plan WHERE pipeline = ? AND epoch <= "
    "(SELECT epoch FROM plan WHERE pipeline = ? ORDER BY epoch DESC LIMIT 1 OFFSET ?)"
)
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
        """Write all of a batch in one transaction. It never lowers an epoch of a pipeline."""
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

    # ------------------------------------------------------------ plans

    def latest_plan(self, pipeline: str) -> PlanRow | None:
        """Return the plan with the highest epoch of a pipeline."""
        latest = "SELECT * FROM plan WHERE pipeline = ? ORDER BY epoch DESC LIMIT 1"
        return next(iter(self.sql.parsed(plan_row, latest, pipeline)), None)

    def plans(self, pipeline: str) -> tuple[PlanRow, ...]:
        """Return the plans of a pipeline that are kept, the newest first."""
        return self.sql.parsed(plan_row, "SELECT * FROM plan WHERE pipeline = ? ORDER BY epoch DESC", pipeline)

    def record_plan(self, row: PlanRow) -> bool:
        """Write a plan before it is published; False if its epoch already names another content."""
        with self.sql.transaction():
            return self._insert_plan(row)

    def append_plan(self, row: PlanRow) -> Plan:
        """Write a plan under the next free epoch of its pipeline and return it with that epoch."""
        name = row.plan.pipeline
        with self.sql.transaction():
            latest, known = self.latest_plan(name), self.pipeline(name)
            epoch = 1 + max(latest.plan.epoch if latest else 0, known.floor)
            stamped = with_epoch(row, epoch)
            self._insert_plan(stamped)
        return stamped.plan

    def _insert_plan(self, row: PlanRow) -> bool:
        plan = row.plan
        same_epoch = "SELECT * FROM plan WHERE pipeline = ? AND epoch = ?"
        if before := self.sql.parsed(plan_row, same_epoch, plan.pipeline, plan.epoch):
            return before[0].plan == plan
        self.sql.run(_SAVE_PLAN, *plan_values(row))
        self.sql.run(_DROP_OLD_PLANS, plan.pipeline, plan.pipeline, PLANS_KEPT)
        return True

    def pipeline(self, name: str) -> PipelineRow:
        """Return what is known of a pipeline; a row of defaults where nothing is."""
        rows = self.sql.parsed(pipeline_row, "SELECT * FROM pipeline WHERE name = ?", name)
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

    # ------------------------------------------------------------ what other systems were told

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
