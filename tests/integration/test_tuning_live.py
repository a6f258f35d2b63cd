"""Thresholds tuned on real agents, a real broker and a real orchestrator."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from distree.messages.plan import Plan
from distree.thresholds import NEVER
from orchestrator.config import load_config
from orchestrator.pipeline_spec import load_spec
from orchestrator.store.connection import StoreError
from orchestrator.store.database import Store
from orchestrator.tuning.tuners import Certified

pytestmark = pytest.mark.any_broker

DROP, CONFIDENCE = 0.02, 0.9


def start_orchestrator(site, name: str = "orchestrator") -> Path:
    path = site.folder / "orchestrator.yaml"
    goal = {"accuracy_drop": DROP, "confidence": CONFIDENCE, "audit_rate": 0.5}
    config = {
        "site": "test",
        "broker": {"port": site.broker.port},
        "store": {"path": str(site.folder / "orchestrator.db")},
        "pipelines": [{"name": "fashion", "bundle": "fashion", "goal": goal}],
    }
    path.write_text(yaml.safe_dump(config))
    site.start(name, "orchestrator", "run", "-c", str(path))
    return path


def newest(site) -> Plan | None:
    try:
        with Store(site.folder / "orchestrator.db", read_only=True) as store:
            latest = store.latest_plan("fashion")
    except StoreError:  # not made yet
        return None
    return latest.plan if latest else None


def is_open(plan: Plan | None) -> bool:
    return plan is not None and min(plan.thresholds) < NEVER


@pytest.fixture
def tuned(site, samples_path):
    config = start(site, samples_path, repeat=True)
    return site, config


def start(site, samples_path, *, repeat: bool, rate_hz: float = 300) -> Path:
    config = start_orchestrator(site)
    site.watch.until(lambda: newest(site) is not None and newest(site).epoch > 0, "the first plan")
    site.agent("b1", [1])
    site.agent("b2", [2])
    source = {"kind": "replay", "path": str(samples_path), "rate_hz": rate_hz, "repeat": repeat}
    # What is counted once shall not be sent again because the machine is busy.
    patience = {"deadline_ms": 5000} if repeat else {"deadline_ms": 60000, "min_retry_ms": 30000}
    site.agent("cam", [0], origin={"source": source, **patience})
    return config


def test_thresholds_are_what_the_offline_tuner_certifies_on_the_same_audits(tuned):
    site, config = tuned
    site.watch.until(lambda: is_open(newest(site)), "exits to open")
    site.watch.until(lambda: any(r.final and r.exit == 0 for r in site.watch.results), "early answers")
    # By the first plan nobody leaves early.
    assert {result.reason for result in site.watch.results if result.epoch == 1} == {"last"}
    process = site.processes["orchestrator"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    pipeline = load_spec(load_config(config).pipelines[0])
    offline = Certified(pipeline.costs, DROP, 1.0 - CONFIDENCE)
    with Store(site.folder / "orchestrator.db", read_only=True) as store:
        samples, plans = store.samples("fashion"), store.plans("fashion")
        state, later = store.tuning("fashion")
    told = {tuple(min(NEVER, value) for value in offline.thresholds)}
    for row in samples:
        offline.observe(row.sample.audit)
        told.add(tuple(min(NEVER, value) for value in offline.thresholds))
    assert {row.plan.thresholds for row in plans} <= told
    assert state["audits"] + len(later) == len(samples)
    # What is left out by the pause between two plans is at most a second's.
    assert plans[0].plan.thresholds in offline.choices


def test_a_killed_orchestrator_goes_on_where_it_stood(tuned):
    site, _ = tuned
    site.watch.until(lambda: is_open(newest(site)), "exits to open")
    site.kill("orchestrator")
    before = newest(site)
    answered = len(site.watch.results)
    site.watch.until(lambda: len(site.watch.results) > answered + 100, "answers without an orchestrator")
    start_orchestrator(site, "again")
    site.watch.until(lambda: "connected to the broker" in site.log("again"), "the second life")
    site.watch.until_reported("cam", "b1", "b2")
    after = newest(site)
    assert after.epoch >= before.epoch
    # Never tighter than what was proved: nothing is learned twice and nothing forgotten.
    assert all(new <= old for new, old in zip(after.thresholds, before.thresholds, strict=True))
    assert "tuning begins anew" not in site.log("again")


def test_images_that_change_shut_the_exits_on_every_board(site, samples_path):
    """Inverted images: the first exit stays sure of itself, and is wrong by what the last one says."""
    with np.load(samples_path) as arrays:
        images, labels = arrays["input"], arrays["label"]
    path = site.folder / "inverted.npz"
    np.savez(path, input=np.concatenate([images] * 2 + [255 - images] * 9), label=np.tile(labels, 11))
    start(site, path, repeat=False)
    site.watch.until(lambda: is_open(newest(site)), "exits to open")
    opened = newest(site).epoch
    site.watch.until(lambda: newest(site).epoch > opened and not is_open(newest(site)), "exits to shut")
    shut = newest(site).epoch
    boards = ("cam", "b1", "b2")
    site.watch.until(lambda: all(site.watch.telemetry[board].pipelines[0].epoch >= shut for board in boards), "epochs")
    heard = len(site.watch.results)
    site.watch.until(lambda: len(site.watch.results) > heard + 50, "more answers")
    by_it = [result for result in site.watch.results[heard:] if result.epoch == shut]
    assert {result.reason for result in by_it} == {"last"}


def test_audits_do_not_show_in_the_counters_of_traffic(site, samples_path):
    start(site, samples_path, repeat=False, rate_hz=150)
    site.watch.until(lambda: len(site.watch.final()) == 1000, "all answers")
    site.watch.until_reported("cam", "b1", "b2")

    def have_arrived() -> bool:
        # An audit may still be on its way when its input has long been answered. Those that a busy machine is too slow
        # for are lost, and counted.
        lost = site.watch.telemetry["cam"].pipelines[0].origin.audits_lost
        return 0 < site.watch.stages("cam")[0].audited <= site.watch.stages("b2")[2].audited + lost

    site.watch.until(have_arrived, "the last audits")
    origin = site.watch.telemetry["cam"].pipelines[0].origin
    first, last = site.watch.stages("cam")[0], site.watch.stages("b2")[2]
    assert sum(origin.exits) == first.received == 1000
    assert last.received == last.exited == origin.exits[2]
    # What went to the last exit anyway was not run twice.
    assert 0 < last.audited <= first.audited <= origin.exits[0] + origin.exits[1]
    assert origin.audits_drawn >= last.audited + 400 - origin.audits_lost
    assert first.audited <= last.audited + origin.audits_lost
    assert origin.audits_lost < origin.audits_drawn / 10
