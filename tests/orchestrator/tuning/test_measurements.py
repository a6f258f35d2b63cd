"""What boards did between two measurements, by their reports."""

from __future__ import annotations

from dataclasses import replace

import pytest
from audit_samples import load_report
from hypothesis import given
from hypothesis import strategies as st
from orchestrator_samples import HASH, stage, telemetry

from distree.messages.telemetry import PipelineTelemetry, Telemetry
from orchestrator.tuning.measurements import LoadMeter, rest_s


def test_what_was_done_between_two_measurements():
    load = LoadMeter("fashion", (1.0, 3.0, 6.0))
    assert load.measure([load_report(1, answered=(10, 0, 0))]) is None
    measured = load.measure([load_report(2, answered=(20, 5, 5), p95_s=0.5, nbytes=2000, audited=4, shed=3)])
    assert (measured.inputs, measured.latency_p95_s, measured.shed) == (20, 0.5, 3)
    assert measured.macs_per_input == pytest.approx((10 * 1 + 5 * 3 + 5 * 6 + 4 * 1) / 20)
    assert measured.bytes_per_input == pytest.approx(100.0)


def test_a_report_counts_once_and_a_new_boot_from_its_next_report_on():
    load = LoadMeter("fashion", (1.0, 3.0, 6.0))
    load.measure([load_report(1, answered=(10, 0, 0))])
    assert load.measure([load_report(2, answered=(20, 0, 0))]).inputs == 10
    assert load.measure([load_report(2, answered=(20, 0, 0))]) is None
    assert load.measure([load_report(1, answered=(7, 0, 0), boot="b2")]) is None
    assert load.measure([load_report(2, answered=(9, 0, 0), boot="b2")]).inputs == 2
    assert load.measure([]) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1 << 53), st.integers(0, 1 << 53)), max_size=20))
def test_counters_that_run_backwards_do_no_harm(reports):
    load = LoadMeter("fashion", (1.0, 3.0, 6.0))
    for sequence, answered, nbytes in reports:
        measured = load.measure([load_report(sequence, answered=(answered, 0, 0), nbytes=nbytes)])
        if measured is not None:
            assert measured.inputs > 0
            assert measured.bytes_per_input >= 0
            assert measured.macs_per_input >= 0


def staged(device: str, *stages: tuple[int, float, float]) -> Telemetry:
    parts = tuple(replace(stage(k), queue_s=queue_s, compute_s=compute_s) for k, queue_s, compute_s in stages)
    part = PipelineTelemetry(pipeline="fashion", epoch=1, plan_hash=HASH, revision="r1", stages=parts, origin=None)
    return telemetry(device=device, pipelines=(part,))


def test_what_a_request_takes_to_the_next_exit():
    boards = [staged("a", (0, 0.5, 0.5)), staged("b", (1, 0.1, 0.2)), staged("c", (1, 0.3, 0.2), (2, 0.0, 0.4))]
    assert rest_s(boards, "fashion", 3) == pytest.approx((0.4, 0.4))
    assert rest_s(boards, "other", 3) == ()
    assert rest_s(boards[:2], "fashion", 3) == ()


def test_no_board_can_make_a_plan_that_cannot_be_sent():
    boards = [staged("a", (1, 1e15, 1e15), (2, 0.0, 1.0))]
    assert rest_s(boards, "fashion", 3) == (3600.0, 1.0)
