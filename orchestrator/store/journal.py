"""What the service has learned and its store does not have yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from orchestrator.store.records import AuditSample, Batch, DeviceRow, EventRow, PipelineRow, ServiceRow, TuningRow
from orchestrator.store.retention import SAMPLES_KEPT

FORGOTTEN_KEPT = 10_000
"""Devices that are remembered as waiting to be removed from the store."""


EVENTS_WAITING = 100
"""Events that wait to be written; a board that tells more in a second has nothing new to say."""

_NO_SEQUENCES: Mapping[str, int] = MappingProxyType({})


class SavesBatches(Protocol):
    """The part of a store that a journal needs."""

    def save(self, batch: Batch) -> None:
        """Write all of a batch in one transaction; StoreError if it cannot be written."""


class Journal:
    """Collects what has to be written, and writes it in one transaction.

    Of pipelines and the service, only what differs from what was last written is written again.
    """

    def __init__(self, store: SavesBatches) -> None:
        self._store = store
        self._devices: dict[str, DeviceRow] = {}
        self._reported: dict[str, DeviceRow] = {}
        self._forgotten: set[str] = set()
        self._samples: list[AuditSample] = []
        self._events: deque[EventRow] = deque(maxlen=EVENTS_WAITING)
        self._saved_pipelines: tuple[PipelineRow, ...] = ()
        self._saved_service: ServiceRow | None = None
        self._saved_sequences: dict[str, int] = {}

    def add_device(self, row: DeviceRow, *, reported: bool = False) -> None:
        """Have a device written; `reported` says that its report is a new one, which joins the history."""
        before = self._devices.get(row.device)
        if before is not None and row.shared is None:
            # That an id is shared is found once, and must not be lost to the next message.
            row = replace(row, shared=before.shared, shared_at=before.shared_at)
        self._devices[row.device] = row
        self._forgotten.discard(row.device)
        if reported:
            self._reported[row.device] = row

    def forget(self, device: str) -> None:
        """Have a device removed from the store."""
        if len(self._forgotten) < FORGOTTEN_KEPT:
            self._forgotten.add(device)
        self._devices.pop(device, None)
        self._reported.pop(device, None)

    def add_samples(self, samples: Iterable[AuditSample]) -> None:
        """Have samples written that a tuning has learned from."""
        self._samples += samples

    def add_event(self, row: EventRow) -> None:
        """Have an event written; of very many since the last write, the oldest are not."""
        self._events.append(row)

    def write(
        self,
        pipelines: Iterable[PipelineRow],
        service: ServiceRow,
        tunings: Iterable[TuningRow],
        sequences: Mapping[str, int] = _NO_SEQUENCES,
    ) -> None:
        """Write everything that the store lacks, given how things stand now.

        `sequences` are the numbers of the last signed messages that samples depend on, by whose they are.

        Raises StoreError; then all of it is kept for the next time, but for the oldest samples, which have been learned
        from already and must not fill the memory.
        """
        rows = tuple(pipelines)
        batch = Batch(
            devices=tuple(self._devices.values()),
            reported=tuple(self._reported.values()),
            forgotten=tuple(self._forgotten),
            pipelines=rows if rows != self._saved_pipelines else (),
            service=service if self._is_new(service) else None,
            samples=tuple(self._samples),
            tunings=tuple(tunings),
            events=tuple(self._events),
            sequences=tuple(pair for pair in sequences.items() if self._saved_sequences.get(pair[0]) != pair[1]),
        )
        if batch == Batch():
            return
        del self._samples[:-SAMPLES_KEPT]
        self._store.save(batch)
        self._saved(batch)

    def _saved(self, batch: Batch) -> None:
        self._devices.clear()
        self._reported.clear()
        self._forgotten.clear()
        self._samples.clear()
        self._events.clear()
        self._saved_sequences |= dict(batch.sequences)
        self._saved_pipelines = batch.pipelines or self._saved_pipelines
        self._saved_service = batch.service or self._saved_service

    def _is_new(self, service: ServiceRow) -> bool:
        # Refused messages on their own cause no write: they are written along with the next device.
        saved = self._saved_service
        return saved is None or saved.online != service.online or (bool(self._devices) and saved != service)
