"""What `distree orchestrator status` shows, read from a store."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import pytest
from orchestrator_samples import (
    HASH,
    fill_store,
    fusion,
    known_device,
    meta,
    origin,
    stage,
    state,
    telemetry,
    write_config,
)

from distree.apps.cli import main
from distree.messages.plan import plan_hash
from distree.messages.telemetry import PipelineTelemetry
from orchestrator.config import load_config
from orchestrator.fleet import Fleet
from orchestrator.leadership import Role
from orchestrator.problems import SHARED_ID_S
from orchestrator.site_view import device_row
from orchestrator.status.text import render
from orchestrator.status.view import read_status
from orchestrator.store.database import Store
from orchestrator.store.records import Batch, PipelineRow


def command(*words):
    return main(["orchestrator", *map(str, words)])


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.fixture
def store_path(config):
    return load_config(config).store.path


def test_status_shows_devices_and_pipelines(config, store_path, capsys):
    command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4")
    with Store(store_path) as store:
        wanted = plan_hash(store.latest_plan("fashion").plan)
    fill_store(store_path, known_device("a", runtime="litert", follows=wanted), known_device("b"), at=1000.0)
    capsys.readouterr()
    text = render(read_status(load_config(config), now=1200.0))
    assert "orchestrator NOT running on this machine; newest data 3 min old" in text
    assert "messages refused: field 3" in text
    assert "\x1b" not in text
    assert "litert" in text
    assert "epoch 1 wanted, waiting for b" in text
    assert "fashion:1 (other plan)" in text
    assert re.search(r"max_softmax 0\.5 0\.4 \(model tiny \w+\), set by hand, by \S+@\S+ ", text)
    assert "0: 70.0% (140)   1: 20.0% (40)   2: 10.0% (20)" in text
    assert "confident: 90.0% (180)" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["a", "101", "100", "1", "1", "2", "4.0", "9.0", "20.0"] in lines
    assert ["0", "a", "100", "70", "30", "1", "2", "3", "4", "5", "1.0", "2.0"] in lines
    assert command("status", "-c", config) == 0
    assert "ready (silent)" in capsys.readouterr().out


def test_status_as_json_is_for_programs(config, store_path, capsys):
    fill_store(store_path, known_device("a"), at=time.time())
    assert command("status", "-c", config, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == "distree.orchestrator-status/1"
    assert shown["running"] is False
    assert shown["devices"][0]["serves"] == "fashion:0,origin"
    assert shown["pipelines"][0]["exits"][0] == {"name": "0", "count": 70, "share": 0.7}
    assert shown["pipelines"][0]["stages"][0]["report"]["received"] == 100
    assert shown["pipelines"][0]["plan"] is None


def board(name, *, stages=(0, 1, 2), branch=None, status="ready", fusions=(), wasted=0, **roles):
    """A board of a wide pipeline as the fleet knows it."""
    fleet = Fleet({"fashion": 3})
    fleet.saw_state(0.0, state(device=name, status=status))
    fleet.saw_meta(meta(device=name, stages=stages, branch=branch, **{"origin": False, **roles}))
    part = PipelineTelemetry(
        pipeline="fashion",
        epoch=1,
        plan_hash=HASH,
        revision="r1",
        stages=tuple(stage(k, wasted=wasted * k) for k in stages),
        origin=origin() if roles.get("origin") else None,
        fusions=tuple(fusions),
    )
    return fleet.saw_telemetry(0.0, telemetry(device=name, pipelines=(part,)))


@pytest.fixture
def wide(config, store_path):
    """A store of a wide pipeline of which branch 1 has no ready board at any stage."""
    fusions = [fusion(0), fusion(1, missing=(0, 2)), fusion(2, missing=(0, 0))]
    boards = (
        board("b0", branch=0, wasted=11),
        board("b0-too", branch=0, status="lost"),
        board("b1", branch=1, status="draining"),
        board("cam", stages=(), origin=True, fuser=True, fusions=fusions),
    )
    fill_store(store_path, *boards, at=1000.0)
    with Store(store_path) as store:
        store.save(Batch(pipelines=(PipelineRow(name="fashion", branches=(2, 2, 2)),)))
    return config


def test_status_shows_which_branch_is_where_and_which_has_no_board(wide):
    lines = render(read_status(load_config(wide), now=1001.0)).splitlines()
    for k in range(3):
        assert f"  stage {k} branch 0: b0, b0-too (not ready)" in lines
        assert f"  stage {k} branch 1: NO READY BOARD, b1 (not ready)" in lines
    words = [line.split() for line in lines]
    assert any(row[:3] == ["b0", "ready", "fashion:0.0,1.0,2.0"] for row in words)
    assert any(row[:3] == ["cam", "ready", "fashion:fuser,origin"] for row in words)


def test_status_shows_what_was_fused_and_what_was_run_in_vain(wide):
    words = [line.split() for line in render(read_status(load_config(wide), now=1001.0)).splitlines()]
    head = ["FUSION", "DEVICE", "FUSED", "EXITED", "FORWARDED", "FAILED", "EXPIRED", "LATE", "MISSING"]
    assert head in words
    assert ["0", "cam", "100", "60", "37", "1", "2", "4", "branch", "0:", "3"] in words
    assert ["1", "cam", "100", "60", "37", "1", "2", "4", "branch", "1:", "2"] in words
    assert ["2", "cam", "100", "60", "37", "1", "2", "4", "-"] in words
    (stages,) = [row for row in words if row[:2] == ["STAGE", "BRANCH"]]
    assert stages[-1] == "WASTED"
    rows = [row for row in words if len(row) == len(stages) and row[2] == "b0"]
    assert [(row[0], row[1], row[-1]) for row in rows] == [("0", "0", "0"), ("1", "0", "11"), ("2", "0", "22")]


def test_status_as_json_has_the_branches_too(wide, capsys):
    assert command("status", "-c", wide, "--json") == 0
    (shown,) = json.loads(capsys.readouterr().out)["pipelines"]
    assert shown["branches"][1] == {"stage": 0, "branch": 1, "boards": ["b1"], "ready": []}
    assert shown["fusions"][0]["report"]["missing"] == [3, 0]
    assert [(line["branch"], line["report"]["wasted"]) for line in shown["stages"][:2]] == [(0, 0), (0, 0)]


def test_a_branch_that_no_board_ever_held_is_shown(config, store_path):
    fill_store(store_path, board("cam", stages=(), origin=True, fuser=True), at=1000.0)
    with Store(store_path) as store:
        store.save(Batch(pipelines=(PipelineRow(name="fashion", branches=(0, 2, 0)),)))
    lines = render(read_status(load_config(config), now=1001.0)).splitlines()
    assert [line for line in lines if " branch " in line] == [
        "  stage 1 branch 0: NO READY BOARD",
        "  stage 1 branch 1: NO READY BOARD",
    ]


def test_a_chain_shows_nothing_of_branches(config, store_path):
    fill_store(store_path, known_device("a"), at=1000.0)
    text = render(read_status(load_config(config), now=1200.0))
    assert not any(word in text for word in (" branch ", "BRANCH", "WASTED", "FUSION"))


def test_status_says_where_inputs_cannot_go_on(config, store_path, capsys):
    fleet = Fleet({"fashion": 3})
    fleet.saw_state(0.0, state(device="b1"))
    other = fleet.saw_meta(meta(device="b1", stages=(1,), origin=False, revision="r2"))
    fill_store(store_path, known_device("cam"), other, at=1000.0)
    assert "  members " not in render(read_status(load_config(config), now=1001.0))  # No service told of stages yet.
    with Store(store_path) as store:
        store.save(Batch(pipelines=(PipelineRow(name="fashion", branches=(0, 0, 0)),)))
    assert [
        line for line in render(read_status(load_config(config), now=1001.0)).splitlines() if "members" in line
    ] == [
        "  members  no board serves stage 1 with bundle revision r1 (b1 has r2); put the same bundle on all boards of the "
        "pipeline",
        "  members  no board serves stage 2; start one that does",
    ]
    assert command("status", "-c", config, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pipelines"][0]["gaps"] == [
        {
            "stage": 1,
            "branch": None,
            "revision": "r1",
            "origins": ["cam"],
            "others": [{"device": "b1", "revision": "r2"}],
        },
        {"stage": 2, "branch": None, "revision": None, "origins": ["cam"], "others": []},
    ]


def test_status_shows_what_audits_cost_where_there_are_any(config, store_path, capsys):
    plain = known_device("a")
    fill_store(store_path, plain, at=1000.0)
    text = render(read_status(load_config(config), now=1001.0))
    assert not any(word in text for word in ("AUDITED", "DRAWN", "  audits"))
    part = PipelineTelemetry(
        pipeline="fashion",
        epoch=1,
        plan_hash=HASH,
        revision="r1",
        stages=(replace(stage(), audited=25),),
        origin=replace(origin(), audits_drawn=1234, audits_lost=6),
        fusions=(replace(fusion(), audited=7),),
    )
    fill_store(store_path, replace(plain, telemetry=telemetry(sequence=2, pipelines=(part,))), at=1000.0)
    words = [line.split() for line in render(read_status(load_config(config), now=1001.0)).splitlines()]
    assert ["0", "a", "100", "70", "30", "1", "2", "3", "4", "5", "1.0", "2.0", "25"] in words
    assert ["a", "101", "100", "1", "1", "2", "4.0", "9.0", "20.0", "1234", "6"] in words
    assert [row[-1] for row in words if row[:1] == ["FUSION"]] == ["AUDITED"]
    assert [row[-1] for row in words if row[:3] == ["0", "a", "100"]] == ["25", "7"]
    (told,) = [" ".join(row) for row in words if row[:1] == ["audits"]]
    assert "1,234 drawn, 6 lost" in told
    assert "25 of 125 segment runs (20%)" in told
    assert command("status", "-c", config, "--json") == 0
    (shown,) = json.loads(capsys.readouterr().out)["pipelines"]
    assert (shown["runs"], shown["audit_runs"], shown["tuning"]) == (125, 25, None)


def test_status_shows_what_a_spool_cannot_write(config, store_path):
    fill_store(store_path, known_device("a"), at=1000.0)
    assert "NOT ON DISK" not in render(read_status(load_config(config), now=1001.0))
    part = PipelineTelemetry(
        pipeline="fashion", epoch=1, plan_hash=HASH, revision="r1", stages=(), origin=replace(origin(), unspooled=1234)
    )
    fill_store(store_path, replace(known_device("a"), telemetry=telemetry(sequence=2, pipelines=(part,))), at=1000.0)
    assert "NOT ON DISK: inputs of a 1,234" in render(read_status(load_config(config), now=1001.0))


def test_status_says_of_late_that_two_boards_have_one_id(config, store_path, capsys):
    line = "two boards use the id a (boots b1, b2); give one of them another id"
    seen = device_row(known_device("a"), heard_at=1000.0, seen_at=1000.0, shared=line, shared_at=1000.0)
    with Store(store_path) as store:
        store.save(Batch(devices=(seen,)))
        store.save(Batch(devices=(replace(seen, shared=None, shared_at=None),)))
    assert line in render(read_status(load_config(config), now=1000.0 + SHARED_ID_S)).splitlines()
    assert line not in render(read_status(load_config(config), now=1001.0 + 2 * SHARED_ID_S))
    assert command("status", "-c", config, "--json") == 0
    assert json.loads(capsys.readouterr().out)["devices"][0]["shared"] == ""


def test_status_says_where_another_orchestrator_plans(config, store_path):
    command("set-thresholds", "-c", config, "--pipeline", "fashion", "0.5", "0.4")
    with Store(store_path) as store:
        store.save(Batch(pipelines=(PipelineRow(name="fashion", standing=Role.STANDBY.value),)))
    assert "STANDBY: another orchestrator plans for this site" in render(read_status(load_config(config)))
