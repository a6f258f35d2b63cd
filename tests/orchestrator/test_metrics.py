"""What a scrape of a running endpoint gives, read by Prometheus's own parser."""

from __future__ import annotations

import importlib.util
import math
import re
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from audit_samples import GOAL, stream, tuned
from orchestrator_samples import HASH, fusion, meta, origin, plan, stage, state, telemetry

from distree.errors import ConfigError
from distree.messages.plan import MaskedThresholds, plan_hash
from distree.messages.telemetry import PipelineTelemetry
from distree.thresholds import NEVER
from orchestrator.config import MetricsConfig
from orchestrator.fleet import Fleet
from orchestrator.metrics import PipelineSnapshot, Snapshot, serving
from orchestrator.tuning.live_tuner import Figure, TunerExplanation
from orchestrator.tuning.pipeline_tuning import GoalQueue, PipelineTuning, SetExplanation, TuningExplanation
from orchestrator.tuning.samples import Sample
from orchestrator.tuning.tuners import TUNERS

is_installed = importlib.util.find_spec("prometheus_client") is not None
needs_client = pytest.mark.skipif(not is_installed, reason="prometheus-client is not installed")

TUNER = TunerExplanation(
    thresholds=(0.9, NEVER), audits=512, gathering=0, alarms=1, progress="trial 2",
    figures=(
        Figure(name="trial", value=2, meaning="Number of the trial, from 1."),
        Figure(name="steps", value=31, meaning="Steps of the path on trial."),
        Figure(name="certified", value=7, meaning="Steps of the path that are certified."),
    ),
)  # fmt: skip
TUNING = TuningExplanation(
    audits=900,
    lost=4,
    queues=(GoalQueue(goal="latency_p95_ms", length=2.5),),
    sets=(SetExplanation(missing=(), tuner=TUNER, choices=((0.9, NEVER),)),),
)
PLAN = plan(
    epoch=5,
    thresholds=(0.9, NEVER),
    masked=(MaskedThresholds(missing=(0, 2), thresholds=(0.95, 0.7)),),
)


def device(name="a", *, status="ready", branch=None, follows=None, heard_at_s=10.0, stages=None, fusions=()):
    fleet = Fleet({"fashion": 3})
    fleet.saw_state(heard_at_s, state(device=name, status=status))
    fleet.saw_meta(meta(device=name, branch=branch))
    part = PipelineTelemetry(
        pipeline="fashion",
        epoch=5,
        plan_hash=follows or plan_hash(replace(PLAN, audit_rate=0.05)),
        revision="r1",
        stages=stages or (replace(stage(), audited=9),),
        origin=replace(origin(), audits_drawn=12, audits_lost=3, unspooled=7),
        fusions=fusions,
    )
    return fleet.saw_telemetry(heard_at_s, telemetry(device=name, pipelines=(part,)))


def snapshot(*devices, tuning=TUNING, online=True):
    pipeline = PipelineSnapshot(plan=replace(PLAN, audit_rate=0.05), tuning=tuning)
    return Snapshot(now_s=12.5, online=online, refused={"revision": 3}, devices=tuple(devices), pipelines=(pipeline,))


def scrape(port):
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples, name, **labels):
    return samples[f"distree_{name}", frozenset((key, str(word)) for key, word in labels.items())]


@pytest.fixture
def scraped():
    seen = snapshot(device(fusions=(fusion(),)), device("b", branch=1, follows=HASH), device("c", status="lost"))
    with serving(MetricsConfig(port=0), lambda: seen) as port:
        yield scrape(port)


@needs_client
def test_plans_and_who_follows_them(scraped):
    assert value(scraped, "orchestrator_online") == 1
    assert value(scraped, "refused_messages_total", reason="revision") == 3
    assert value(scraped, "plan_epoch", pipeline="fashion") == 5
    assert value(scraped, "plan_behind", pipeline="fashion") == 1  # b; c is not ready
    assert value(scraped, "plan_preempted", pipeline="fashion") == 0
    assert value(scraped, "plan_audit_rate", pipeline="fashion") == 0.05
    assert value(scraped, "plan_threshold", pipeline="fashion", missing="", exit=0) == 0.9
    assert value(scraped, "plan_threshold", pipeline="fashion", missing="", exit=1) == math.inf
    assert value(scraped, "plan_threshold", pipeline="fashion", missing="0,2", exit=1) == 0.7
    assert value(scraped, "device_epoch", pipeline="fashion", device="b") == 5


@needs_client
def test_the_queries_in_docs_ask_for_what_is_there(scraped):
    page = (Path(__file__).parents[2] / "docs" / "dashboards.md").read_text(encoding="utf-8")
    asked = set(re.findall(r"\bdistree_[a-z0-9_]+", page))
    assert len(asked) >= 14
    assert asked <= {name for name, _ in scraped}


@needs_client
def test_devices(scraped):
    assert value(scraped, "device_state", device="a", state="ready") == 1
    assert value(scraped, "device_state", device="c", state="ready") == 0
    assert value(scraped, "device_state", device="c", state="lost") == 1
    assert value(scraped, "device_rss_bytes", device="a") == 30_000_000
    assert value(scraped, "device_silence_seconds", device="a") == 2.5
    assert value(scraped, "device_dead_letters_total", device="a") == 2


@needs_client
def test_stages_fusions_and_origins(scraped):
    of_a = {"pipeline": "fashion", "device": "a"}
    assert value(scraped, "stage_received_total", **of_a, stage=0, branch="") == 100
    assert value(scraped, "stage_shed_total", **of_a, stage=0, branch="") == 1
    assert value(scraped, "stage_audited_total", **of_a, stage=0, branch="") == 9
    assert value(scraped, "stage_queue_seconds", **of_a, stage=0, branch="") == 0.001
    assert value(scraped, "stage_compute_seconds", pipeline="fashion", device="b", stage=0, branch=1) == 0.002
    assert value(scraped, "fusion_fused_total", **of_a, stage=0) == 100
    assert value(scraped, "fusion_missing_total", **of_a, stage=0, branch=0) == 3
    assert value(scraped, "origin_answered_by_exit_total", **of_a, exit=1) == 20
    assert value(scraped, "origin_answered_by_reason_total", **of_a, reason="confident") == 90
    assert value(scraped, "origin_audits_drawn_total", **of_a) == 12
    assert value(scraped, "origin_audits_lost_total", **of_a) == 3
    assert value(scraped, "origin_unspooled", **of_a) == 7
    assert value(scraped, "origin_latency_p50_seconds", **of_a) == 0.004
    assert value(scraped, "origin_latency_p95_seconds", **of_a) == 0.009


@needs_client
def test_tuners(scraped):
    all_heard = {"pipeline": "fashion", "missing": ""}
    assert value(scraped, "tuning_audits_total", pipeline="fashion") == 900
    assert value(scraped, "tuning_lost_audits_total", pipeline="fashion") == 4
    assert value(scraped, "goal_queue", pipeline="fashion", goal="latency_p95_ms") == 2.5
    assert value(scraped, "tuner_trial", **all_heard) == 2
    assert value(scraped, "tuner_alarms_total", **all_heard) == 1
    assert value(scraped, "tuner_certified", **all_heard) == 7
    assert value(scraped, "tuner_steps", **all_heard) == 31
    assert value(scraped, "tuner_audits", **all_heard) == 512


@needs_client
@pytest.mark.parametrize("name", TUNERS)
def test_every_tuner_says_its_figures(name):
    tuning = PipelineTuning(tuned(goal=replace(GOAL, tuner=name)).tuned)
    for audit in stream(600):
        tuning.apply(Sample(origin="a", request="r", missing=(), audit=audit))
    with serving(MetricsConfig(port=0), lambda: snapshot(tuning=tuning.explain())) as port:
        samples = scrape(port)
    (of_set,) = tuning.explain().sets
    assert value(samples, "tuner_audits", pipeline="fashion", missing="") == of_set.tuner.audits
    for figure in of_set.tuner.figures:
        assert value(samples, f"tuner_{figure.name}", pipeline="fashion", missing="") == pytest.approx(figure.value)


@needs_client
def test_what_is_not_known_is_left_out():
    fleet = Fleet({"fashion": 3})
    silent = fleet.saw_state(0.0, state(device="new", status="init"), retained=True)
    seen = snapshot(silent, tuning=None, online=False)
    with serving(MetricsConfig(port=0), lambda: seen) as port:
        samples = scrape(port)
    assert value(samples, "orchestrator_online") == 0
    assert value(samples, "device_state", device="new", state="init") == 1
    names = {name for name, _ in samples}
    assert not any("tuner" in name or "tuning" in name or "rss" in name or "silence" in name for name in names)


@needs_client
def test_each_scrape_is_of_one_snapshot_taken_for_it():
    taken = []

    def read():
        taken.append(threading.current_thread())
        return snapshot(*(device(f"d{k}") for k in range(len(taken))))

    with serving(MetricsConfig(port=0), read) as port:
        assert not taken  # serving alone asks for nothing
        for count in (1, 2, 3):
            samples = scrape(port)
            assert sum(name == "distree_device_rss_bytes" for name, _ in samples) == count
    assert len(taken) == 3
    assert threading.main_thread() not in taken
    assert not any(thread.name == "metrics" for thread in threading.enumerate())
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)


@needs_client
def test_no_metric_of_the_process_or_of_another_registry_is_mixed_in(scraped):
    assert all(name.startswith("distree_") for name, _ in scraped)


@needs_client
def test_a_port_that_is_taken_is_one_clear_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = rf"metrics: 127.0.0.1:{port}: Address already in use; choose another"
        with pytest.raises(ConfigError, match=told), serving(MetricsConfig(port=port), snapshot):
            pass


def test_without_the_client_it_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "prometheus_client" else find(name))
    with (
        pytest.raises(ConfigError, match=r"pip install 'distree\[metrics\]'"),
        serving(MetricsConfig(port=0), snapshot),
    ):
        pass
