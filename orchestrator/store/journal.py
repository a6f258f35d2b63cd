"""What the orchestrator knows and its store does not have yet. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from orchestrator.store.database import SAMPLES_KEPT
from orchestrator.store.records import AuditSample, Batch, Observation, PipelineRow, ServiceRow, TuningRow

FORGOTTEN_KEPT = 1000
"""Devices of which it is kept in mind that they are to be taken out of the store."""


class Unsaved:
    """Gathers what is to be written; `batch` gives it, and `saved` says that it was.

    Of pipelines and the service only what differs from what was saved last is written again.
    """

    def __init__(self) -> None:
        self._devices: dict[str, Observation] = {}
        self._reported: dict[str, Observation] = {}
        self._forgotten: set[str] = set()
        self._samples: list[AuditSample] = []
        self._saved_pipelines: tuple[PipelineRow, ...] = ()
        self._saved_service: ServiceRow | None = None

    def add_device(self, seen: Observation, *, reported: bool = False) -> None:
        """Have a device written; its report joins the history where it is a new one."""
        name = seen.device.device
        before = self._devices.get(name)
        if before is not None and seen.shared is None:
            # It is said once, and must not be lost to the next message.
            seen = replace(seen, shared=before.shared, shared_at=before.shared_at)
        self._devices[name] = seen
        self._forgotten.discard(name)
        if reported:
            self._reported[name] = seen

    def forget(self, device: str) -> None:
        """Have a device taken out of the store."""
        if len(self._forgotten) < FORGOTTEN_KEPT:
            self._forgotten.add(device)
        self._devices.pop(device, None)
        self._reported.pop(device, None)

    def add_samples(self, samples: Iterable[AuditSample]) -> None:
        """Have samples written that a tuning has learned from."""
        self._samples += samples

    def drop_old_samples(self) -> None:
        """Where the store is out of order, memory is not to fill: what is lost so is learned already."""
        del self._samples[:-SAMPLES_KEPT]

    def batch(self, pipelines: Iterable[PipelineRow], service: ServiceRow, tunings: Iterable[TuningRow]) -> Batch:
        """Return what is to be written, given how things stand now; an empty batch where nothing is."""
        rows = tuple(pipelines)
        return Batch(
            devices=tuple(self._devices.values()),
            reported=tuple(self._reported.values()),
            forgotten=tuple(self._forgotten),
            pipelines=rows if rows != self._saved_pipelines else (),
            service=service if self._is_news(service) else None,
            samples=tuple(self._samples),
            tunings=tuple(tunings),
        )

    def saved(self, batch: Batch) -> None:
        """Note that the batch which `batch` returned just now is in the store."""
        self._devices.clear()
        self._reported.clear()
        self._forgotten.clear()
        self._samples.clear()
        self._saved_pipelines = batch.pipelines or self._saved_pipelines
        self._saved_service = batch.service or self._saved_service

    def _is_news(self, service: ServiceRow) -> bool:
        # Refusals alone cause no write: they ride with the next one.
        saved = self._saved_service
        return saved is None or saved.online != service.online or (bool(self._devices) and saved != service)
