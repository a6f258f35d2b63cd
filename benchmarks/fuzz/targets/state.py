"""What agents and orchestrators left on disk: spool, journal of a folder, store."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.fuzz.made_messages import Maker
from benchmarks.fuzz.target import Form, Target, constant, from_file
from device_agent.sources.directory.identity import FileState
from device_agent.sources.directory.journal import Journal, SettledFile
from device_agent.spool import Spool
from distree import tensors
from distree.messages.device import DeviceMeta, DeviceStatus
from distree.messages.events import Event
from distree.messages.plan import Plan
from distree.messages.telemetry import Telemetry
from distree.node import AcceptedInput
from orchestrator.store.database import Store
from orchestrator.store.records import Batch, DeviceRow, EventRow, PipelineRow, PlanRow

_TOLD_MOST = 500


def _journals(folder: Path) -> Sequence[Form]:
    path = folder / "p.spool"
    spool = Spool(path, keeps_inputs=True)
    spool.recover()
    for k in range(6):
        tensor = tensors.encode(np.arange(12, dtype=np.uint8))
        spool.note_accepted(AcceptedInput(request=f"r{k}", name=f"picture {k}", tensor=tensor))
    spool.note_answer("r1", b"answer")
    spool.note_answer("r2", b"answer")
    spool.note_published("r2")
    spool.close()

    def read_spool() -> object:
        read = Spool(path, keeps_inputs=True)
        found = read.recover()
        for item in found.open:
            assert isinstance(item.request, str)
        told = [*read.notices]
        assert all(len(one.what) < _TOLD_MOST for one in told), told
        read.close()
        return found

    files, kept = folder / "p.files", path.read_bytes()
    journal = Journal(files, _tell)
    journal.load(lambda _file: True)
    journal.note(
        SettledFile(name=f"a{k}.png", state=FileState(k, 100, 1 << 60), request=f"r{k}", place="done") for k in range(6)
    )
    journal.close()

    def read_journal() -> object:
        read = Journal(files, _tell)
        found = read.load(lambda _file: True)
        read.close()
        return found

    return [
        Form("spool", constant(kept), from_file(path, read_spool), "packed"),
        Form("journal of a folder", constant(files.read_bytes()), from_file(files, read_journal), "packed"),
    ]


def _tell(_kind: object, what: str, remedy: str = "", **_more: object) -> None:
    assert len(what) < _TOLD_MOST, what
    assert len(remedy) < _TOLD_MOST, remedy


def _stores(folder: Path) -> Sequence[Form]:
    path = folder / "store.db"
    maker = Maker(random.Random(1))
    devices = tuple(
        DeviceRow(
            device=f"cam{k}", boot="b", seen_at=1.0, heard_at=1.0, period_s=2.0, status=DeviceStatus.READY,
            meta=maker.record(DeviceMeta), telemetry=maker.record(Telemetry), shared=None, shared_at=0.0,
        )
        for k in range(3)
    )  # fmt: skip
    with Store(path) as store:
        for epoch in range(1, 4):
            plan = dataclasses.replace(maker.record(Plan), pipeline="p", epoch=epoch, signed=None)
            store.append_plan(PlanRow(plan=plan, at=1.0))
        store.save(
            Batch(
                devices=devices,
                pipelines=(PipelineRow(name="p", highest_epoch=3, standing="leading", configured="x", branches=(0,)),),
                events=(EventRow(at=1.0, sender="cam1", event=maker.record(Event)),),
            )
        )
        store.sql.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        store.sql.rows("PRAGMA journal_mode = DELETE")

    def read() -> object:
        # What another run left beside it belongs to another file.
        for ending in ("-wal", "-shm", "-journal"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        with Store(path, read_only=True) as kept:
            return [
                kept.plans("p"), kept.pipeline("p"), kept.tuning("p"), kept.devices(), kept.service(), kept.events(9),
                kept.announced(), kept.history_length(), kept.used_bytes(),
            ]  # fmt: skip

    return [Form("store", constant(path.read_bytes()), from_file(path, read))]


JOURNALS = Target("journals", "files", 7, _journals, 64)
STORES = Target("stores", "files", 2, _stores, 64)
