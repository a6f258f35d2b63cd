"""What the store lacks is written once, and nothing of it is lost to a store that fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.store.connection import StoreError
from orchestrator.store.journal import FORGOTTEN_KEPT, Journal
from orchestrator.store.records import AuditSample, Batch, DeviceRow, PipelineRow, Refused, ServiceRow
from orchestrator.store.retention import SAMPLES_KEPT
from orchestrator.tuning.samples import AuditedInput, Sample

ROWS = (PipelineRow(name="fashion", highest_epoch=1),)
SERVICE = ServiceRow(pid=1, started_at=0.0, online=True)
SAMPLE = AuditSample(
    pipeline="fashion", sample=Sample(origin="a", request="r", missing=(), audit=AuditedInput(lost=True)), at=1.0
)


class Batches:
    """A store that keeps what it is given to save, while it works."""

    def __init__(self):
        self.saved = []
        self.works = True

    def save(self, batch):
        if not self.works:
            raise StoreError("full", "make room")
        self.saved.append(batch)


@pytest.fixture
def store():
    return Batches()


@pytest.fixture
def journal(store):
    return Journal(store)


def row(device="a", **changes):
    return DeviceRow(**{"device": device, "boot": "b1", "heard_at": 1.0, "seen_at": 1.0, "period_s": 10.0, **changes})


def test_what_was_written_is_not_written_again(store, journal):
    journal.add_device(row(), reported=True)
    journal.write(ROWS, SERVICE, ())
    journal.write(ROWS, SERVICE, ())
    assert store.saved == [Batch(devices=(row(),), reported=(row(),), pipelines=ROWS, service=SERVICE)]


def test_what_could_not_be_written_is_kept_for_the_next_time_within_bounds(store, journal):
    store.works = False
    journal.add_device(row(), reported=True)
    journal.forget("b")
    journal.add_samples([SAMPLE] * (SAMPLES_KEPT + 10))
    with pytest.raises(StoreError):
        journal.write(ROWS, SERVICE, ())
    store.works = True
    journal.write(ROWS, SERVICE, ())
    (batch,) = store.saved
    assert (batch.devices, batch.reported, batch.forgotten) == ((row(),), (row(),), ("b",))
    assert (batch.pipelines, batch.service) == (ROWS, SERVICE)
    assert len(batch.samples) == SAMPLES_KEPT


def test_refusals_alone_cause_no_write_and_go_along_with_the_next_device(store, journal):
    journal.write(ROWS, SERVICE, ())
    refusing = replace(SERVICE, refused=(Refused(reason="kind", count=3),))
    journal.write(ROWS, refusing, ())
    assert len(store.saved) == 1
    journal.add_device(row())
    journal.write(ROWS, refusing, ())
    assert store.saved[-1].service == refusing


def test_that_an_id_is_shared_is_not_lost_to_the_next_message(store, journal):
    journal.add_device(row(shared="two boards", shared_at=1.0))
    journal.add_device(row(seen_at=2.0))
    journal.write(ROWS, SERVICE, ())
    (kept,) = store.saved[0].devices
    assert (kept.seen_at, kept.shared, kept.shared_at) == (2.0, "two boards", 1.0)


def test_a_device_is_either_written_or_forgotten_and_no_list_grows_for_ever(store, journal):
    journal.add_device(row(), reported=True)
    journal.forget("a")
    journal.write((), SERVICE, ())
    journal.forget("a")
    journal.add_device(row())
    journal.write((), SERVICE, ())
    assert store.saved == [Batch(forgotten=("a",), service=SERVICE), Batch(devices=(row(),))]
    for k in range(FORGOTTEN_KEPT + 10):
        journal.forget(str(k))
    journal.write((), SERVICE, ())
    assert len(store.saved[-1].forgotten) == FORGOTTEN_KEPT
