"""Somebody makes up boards by the thousand: those that work are not forgotten, and nothing grows without end."""

from __future__ import annotations

import contextlib

import pytest
from orchestrator_samples import meta, state, telemetry
from orchestrator_site import OrchestratorSite

from orchestrator.fleet import MAX_DEVICES
from orchestrator.service import TOO_MANY
from orchestrator.store import retention

FORGED = 1000


@pytest.fixture
def crowded(tmp_path):
    with contextlib.closing(OrchestratorSite(tmp_path / "x.db")) as site:
        site.service.view.fleet._limit = 100
        site.pass_time(1.0)
        site.peer.say(state(), meta(), telemetry())
        for k in range(FORGED):
            site.peer.say(state(device=f"forged-{k}"))
            if k % 100 == 0:
                site.pass_time(1.0)
        site.pass_time(2.0)
        yield site


def test_a_board_that_works_is_not_forgotten_and_a_new_one_finds_a_place(crowded):
    view = crowded.service.view
    assert view.fleet.get("a").meta is not None
    crowded.peer.say(state(device="late"), meta(device="late"), telemetry(device="late"))
    crowded.pass_time(1.0)
    assert view.fleet.get("late").telemetry is not None
    assert len(view.fleet) == 100


def test_it_is_counted_and_told(crowded, caplog):
    assert crowded.service.refused["fleet-full"] == FORGED + 1 - 100
    told = [record.getMessage() for record in caplog.get_records("setup") if TOO_MANY in record.getMessage()]
    assert 1 <= len(told) <= 10


def test_the_store_forgets_them_too(crowded, monkeypatch):
    assert len(crowded.store.devices()) == 100
    assert retention.DEVICES_KEPT > MAX_DEVICES
    monkeypatch.setattr(retention, "DEVICES_KEPT", 10)
    crowded.store.prune(now=crowded.clock.now, telemetry_days=7, max_bytes=1 << 30)
    assert len(crowded.store.devices()) == 10
