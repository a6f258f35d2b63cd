import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from orchestrator_samples import HASH, MASKED, fusion, meta, origin, plan, stage, state, telemetry

from distree.messages.limits import MAX_EPOCH
from distree.messages.telemetry import PipelineTelemetry
from orchestrator.fleet import Fleet
from orchestrator.site_view import device_row
from orchestrator.store.connection import StoreError
from orchestrator.store.database import PLANS_KEPT, Store
from orchestrator.store.lock import ServiceLock, is_served
from orchestrator.store.records import Batch, PipelineRow, PlanRow, Refused, ServiceRow
from orchestrator.store.retention import SPARE_PAGES

DAY_S = 86_400.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "orchestrator.db"


def row(**content):
    return PlanRow(plan=replace(plan(**content), reason="as configured", author="orchestrator.yaml"), at=5.0)


def record(store, **content):
    """Write a plan as whoever has read the last one does."""
    latest = store.latest_plan("fashion")
    return store.record_plan(row(**content), after=latest.id if latest else 0)


def seen(at=100.0, device="a", sequence=1, boot="b1", **kwargs):
    fleet = Fleet({"fashion": 3})
    fleet.saw_state(0.0, state(device=device, boot=boot))
    fleet.saw_meta(meta(device=device, boot=boot))
    known = fleet.saw_telemetry(0.0, telemetry(device=device, sequence=sequence, boot=boot, **kwargs))
    return device_row(known, heard_at=at, seen_at=at)


def batch(*observations):
    return Batch(devices=observations, reported=observations)


def test_a_restart_keeps_everything(path):
    service = ServiceRow(pid=7, started_at=3.0, online=True, refused=(Refused(reason="field", count=2),))
    pipeline = PipelineRow(name="fashion", highest_epoch=9, standing="leading", configured="x")
    with Store(path) as store:
        record(store, epoch=3)
        store.save(Batch(devices=(seen(),), reported=(seen(),), pipelines=(pipeline,), service=service))
        before = store.devices()
    with Store(path) as store:
        assert store.latest_plan("fashion") == replace(row(epoch=3), id=1)
        assert store.devices() == before
        assert before[0].telemetry == telemetry()
        assert before[0].meta == meta()
        assert store.pipeline("fashion") == pipeline
        assert store.service() == service
        assert store.history_length() == 2


def test_what_is_of_wide_stages_is_kept_too(path):
    part = PipelineTelemetry(
        pipeline="fashion",
        epoch=1,
        plan_hash=HASH,
        revision="r1",
        stages=(stage(0, wasted=5),),
        origin=origin(),
        fusions=(fusion(0), fusion(1, missing=(0, 7))),
    )
    observed = seen(pipelines=(part,))
    pipeline = PipelineRow(name="fashion", highest_epoch=9, standing="leading", configured="x", branches=(0, 2, 2))
    with Store(path) as store:
        record(store, epoch=3, masked=MASKED)
        store.save(Batch(devices=(observed,), reported=(observed,), pipelines=(pipeline,)))
    with Store(path) as store:
        assert store.latest_plan("fashion").plan == row(epoch=3, masked=MASKED).plan
        assert store.pipeline("fashion") == pipeline
        assert store.devices()[0].telemetry.pipelines == (part,)
        assert store.history_length() == 1 + 2 + 1
        assert store.sql.rows("SELECT stage, fused, late, missing FROM fusion_report") == [
            (0, 100, 4, "[3, 0]"),
            (1, 100, 4, "[0, 7]"),
        ]
        assert store.sql.rows("SELECT wasted FROM stage_report") == [(5,)]
        store.prune(now=1e9, telemetry_days=1.0, max_bytes=1 << 20)
        assert store.history_length() == 0


def version_1(path):
    """Make a store as version 1 of the schema had it, with a plan, a pipeline and a report."""
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.executescript(
            """
            CREATE TABLE plan (pipeline, epoch INTEGER, model, revision, criterion, thresholds, author, at REAL,
                PRIMARY KEY (pipeline, epoch)) WITHOUT ROWID;
            CREATE TABLE pipeline (name PRIMARY KEY, floor INTEGER, standing, configured) WITHOUT ROWID;
            CREATE TABLE device (device PRIMARY KEY, boot, status, meta, telemetry, heard_at REAL, period_s REAL,
                seen_at REAL) WITHOUT ROWID;
            CREATE TABLE stage_report (at, device, boot, sequence, pipeline, epoch, revision, stage, received, exited,
                forwarded, shed, expired, failed, duplicate, waiting, bytes_out, queue_s, compute_s);
            CREATE TABLE origin_report (at, device, boot, sequence, pipeline, epoch, revision, accepted, answered,
                resent, late, pending, latency_p50_s, latency_p95_s, latency_max_s, exits, reasons);
            CREATE TABLE service (id INTEGER PRIMARY KEY CHECK (id = 1), pid, started_at REAL, online, refused);
            INSERT INTO plan VALUES ('fashion', 3, 'fashion', 'r1', 'max_softmax', '[0.9, 0.8]', 'config', 5.0);
            INSERT INTO pipeline VALUES ('fashion', 9, 'leading', 'x');
            INSERT INTO stage_report (at, stage, received) VALUES (1.0, 0, 12);
            PRAGMA user_version = 1;
            """
        )


def test_a_store_of_the_first_schema_is_brought_up_to_date_by_whoever_writes(path):
    version_1(path)
    pipeline = PipelineRow(name="fashion", highest_epoch=9, standing="leading", configured="x")
    with pytest.raises(
        StoreError, match=r"written by an older DistrEE .*; run 'distree orchestrator run', which upgrades it"
    ):
        Store(path, read_only=True).open()
    first = PlanRow(plan=replace(plan(epoch=3), author="config"), at=5.0, id=1)
    for _ in range(2):
        with Store(path) as store:
            assert (store.latest_plan("fashion"), store.pipeline("fashion")) == (first, pipeline)
            assert store.sql.rows("SELECT received, wasted FROM stage_report") == [(12, 0)]
    with Store(path) as store:
        assert store.append_plan(row(masked=MASKED)).epoch == 10
        store.save(batch(seen()))
        assert store.latest_plan("fashion") == replace(row(epoch=10, masked=MASKED), id=2)
        assert store.history_length() == 3


def test_who_has_not_seen_the_last_plan_writes_none(path):
    with Store(path) as store:
        assert record(store, epoch=3) == 1
        assert store.append_plan(row(thresholds=(0.1, 0.1))).epoch == 4
        assert store.record_plan(row(epoch=4), after=1) is None
        assert store.record_plan(row(epoch=4), after=2) == 3
        assert [(kept.id, kept.plan.epoch) for kept in store.plans("fashion")] == [(3, 4), (2, 4), (1, 3)]
        assert store.latest_plan("other") is None


def test_the_same_decision_with_other_times_is_no_new_plan(path):
    with Store(path) as store:
        record(store, epoch=3)
        later = replace(row(epoch=3).plan, rest_s=(0.1, 0.2), audit_rate=0.5)
        assert store.record_plan(PlanRow(plan=later, at=99.0), after=1) == 1
        assert store.plans("fashion") == (PlanRow(plan=later, at=5.0, id=1),)
        # Under another number it is one.
        assert record(store, epoch=8) == 2


def test_numbers_go_on_after_the_highest_known_and_begin_anew_by_a_reset(path):
    with Store(path) as store:
        record(store, epoch=3)
        store.save(Batch(pipelines=(PipelineRow(name="fashion", highest_epoch=20),)))
        assert store.append_plan(row(thresholds=(0.2, 0.2))).epoch == 21
        reset = replace(row(epoch=1), is_reset=True)
        assert store.append_plan(reset) == reset.plan
        assert store.pipeline("fashion").highest_epoch == 1
        assert store.latest_plan("fashion") == replace(reset, id=3)
        assert store.append_plan(row(thresholds=(0.3, 0.3))).epoch == 2
        store.save(Batch(pipelines=(PipelineRow(name="fashion", highest_epoch=MAX_EPOCH),)))
        assert store.append_plan(row(thresholds=(0.4, 0.4))).epoch == 1


def test_plans_are_bounded(path):
    with Store(path) as store:
        for epoch in range(1, PLANS_KEPT + 11):
            record(store, epoch=epoch)
        kept = [entry.plan.epoch for entry in store.plans("fashion")]
    assert (len(kept), kept[0], kept[-1]) == (PLANS_KEPT, PLANS_KEPT + 10, 11)


def test_what_is_retained_again_after_a_restart_does_not_undo_what_was_heard(path):
    known = Fleet({"fashion": 3}).saw_state(0.0, state(), retained=True)
    with Store(path) as store:
        store.save(batch(seen(at=100.0)))
        store.save(Batch(devices=(device_row(known, heard_at=None, seen_at=200.0),)))
        (kept,) = store.devices()
        assert (kept.heard_at, kept.seen_at, kept.telemetry) == (100.0, 200.0, telemetry())
        newer = Fleet({"fashion": 3}).saw_state(0.0, state(boot="b2"), retained=True)
        store.save(Batch(devices=(device_row(newer, heard_at=None, seen_at=300.0),)))
        assert store.devices()[0].telemetry is None
        store.save(Batch(forgotten=("a",)))
        assert store.devices() == ()


def test_a_boot_id_that_is_no_proper_text_is_kept(path):
    known = Fleet({}).saw_state(0.0, state(boot="\ud800\0"))
    with Store(path) as store:
        store.save(Batch(devices=(device_row(known, heard_at=None, seen_at=1.0),)))
        assert store.devices()[0].boot == "\ud800\0"


def test_old_reports_and_devices_go(path):
    with Store(path) as store:
        store.save(batch(seen(at=1.0, device="old")))
        store.save(batch(seen(at=9 * DAY_S, device="new")))
        store.prune(now=10 * DAY_S, telemetry_days=7, max_bytes=1 << 30)
        assert [entry.device for entry in store.devices()] == ["new"]
        assert store.history_length() == 2


def test_the_file_stays_below_its_bound_and_the_newest_stay(path):
    with Store(path) as store:
        for sequence in range(600):
            store.save(batch(*(seen(at=float(sequence), device=f"d{k}", sequence=sequence) for k in range(10))))
        full, bound = store.used_bytes(), 1 << 18
        store.prune(now=600.0, telemetry_days=7, max_bytes=bound)
        assert store.used_bytes() <= bound
        assert store.history_length() > 0
        assert len(store.devices()) == 10
    assert full > bound
    assert path.stat().st_size < bound + (SPARE_PAGES << 13)
    with contextlib.closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT max(at) FROM stage_report").fetchone() == (599.0,)


def test_a_reader_sees_what_the_writer_wrote_and_is_told_that_something_changed(path):
    with Store(path) as writer, Store(path, read_only=True) as reader:
        reader.changed()
        assert not reader.changed()
        record(writer, epoch=1)
        assert reader.changed()
        assert not reader.changed()
        assert reader.latest_plan("fashion") == replace(row(epoch=1), id=1)
        assert not writer.changed() or not writer.changed()
        with pytest.raises(StoreError, match="readonly"):
            record(reader, epoch=2)


def test_reading_and_writing_at_once(path):
    failures = []

    def read():
        try:
            for _ in range(60):
                with Store(path, read_only=True) as reader:
                    reader.devices()
        except StoreError as error:
            failures.append(error)

    with Store(path) as writer:
        record(writer, epoch=1)
        thread = threading.Thread(target=read, name="reader")
        thread.start()
        for sequence in range(60):
            writer.save(batch(seen(sequence=sequence)))
        thread.join()
    assert failures == []


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at " * 100])
def test_a_file_that_is_no_database_is_one_clear_line(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"damaged.*move it away") as caught:
            Store(path, read_only=read_only).open()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_damaged_database_is_found_by_the_check(path):
    with Store(path) as store:
        for sequence in range(200):
            store.save(batch(seen(sequence=sequence)))
    content = bytearray(path.read_bytes())
    content[8192 : len(content) - 4096] = b"\x5a" * (len(content) - 12288)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"), Store(path) as store:
        store.check()


def test_a_newer_schema_or_another_database_is_refused(path):
    with Store(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"newer DistrEE.*99"):
        Store(path).open()
    other = path.parent / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as raw:
        raw.execute("CREATE TABLE recipes (name)")
    with pytest.raises(StoreError, match="not a database of the orchestrator"):
        Store(other).open()


def test_a_locked_database_is_one_clear_line(path, monkeypatch):
    monkeypatch.setattr("orchestrator.store.connection.BUSY_TIMEOUT_S", 0.05)
    with Store(path) as store, contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            record(store, epoch=1)
        other.execute("ROLLBACK")
        assert record(store, epoch=1)


def test_a_missing_store_or_folder_is_one_clear_line(tmp_path):
    with pytest.raises(StoreError, match="no store yet"):
        Store(tmp_path / "none.db", read_only=True).open()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.*check store\.path"):
        Store(tmp_path / "file" / "x.db").open()
    with pytest.raises(StoreError, match="not open"):
        Store(tmp_path / "none.db").devices()


def test_one_service_serves_a_store_and_others_can_tell(path):
    assert not is_served(path)
    with ServiceLock(path):
        assert is_served(path)
        with pytest.raises(StoreError, match="another orchestrator is already using this store"):
            ServiceLock(path).acquire()
    assert not is_served(path)


def test_the_lock_dies_with_its_process(path):
    path.parent.mkdir()
    code = (
        "import sys, time, pathlib; from orchestrator.store.lock import ServiceLock\n"
        "lock = ServiceLock(pathlib.Path(sys.argv[1])); lock.acquire()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        assert process.stdout.readline() == b"held\n"
        assert is_served(path)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert not is_served(path)
