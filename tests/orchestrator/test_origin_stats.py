"""Rates and shares of origins, between two of their reports."""

from __future__ import annotations

from dataclasses import replace

from orchestrator_samples import HASH, origin, telemetry

from distree.messages.telemetry import PipelineTelemetry
from orchestrator.origin_stats import origin_stats


def report(sequence, exits, answered, name="fashion", **changes):
    made = replace(origin(exits=exits), answered=answered)
    part = PipelineTelemetry(pipeline=name, epoch=3, plan_hash=HASH, revision="r1", stages=(), origin=made)
    return telemetry(sequence=sequence, pipelines=(part,), **changes)


def test_figures_are_of_the_time_between_two_reports():
    reports = [report(1, (70, 20, 10), 100), report(2, (71, 20, 13), 105), report(3, (71, 20, 13), 105)]
    (first,) = origin_stats(None, reports[0])
    assert (first.rate_hz, first.early_share, first.answered) == (10.0, 0.9, 100)  # 10 s after its start
    (second,) = origin_stats(reports[0], reports[1])
    assert (second.rate_hz, second.early_share, second.latency_p95_s) == (0.5, 0.2, 0.009)
    (idle,) = origin_stats(reports[1], reports[2])
    assert (idle.rate_hz, idle.early_share, idle.latency_p50_s) == (0.0, None, None)


def test_a_pipeline_that_the_last_report_did_not_have_is_counted_from_the_start():
    (new,) = origin_stats(report(1, (70, 20, 10), 100, name="other"), report(2, (10, 5, 5), 20))
    assert (new.rate_hz, new.early_share) == (1.0, 0.75)


def test_counters_that_run_backwards_and_clocks_that_stand_do_no_harm():
    (back,) = origin_stats(report(1, (70, 20, 10), 100), report(2, (1, 0, 0), 1))
    assert (back.rate_hz, back.early_share) == (0.0, None)
    (still,) = origin_stats(report(1, (0, 0, 0), 0, uptime_s=5.0), report(2, (1, 0, 0), 1, uptime_s=5.0))
    assert (still.rate_hz, still.early_share) == (0.0, 1.0)
