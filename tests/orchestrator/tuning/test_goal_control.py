"""Goals of latency, energy and traffic: what is measured, and which certified thresholds follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audit_samples import COSTS, stream
from hypothesis import given
from hypothesis import strategies as st
from orchestrator_samples import meta, origin, pipeline, stage, telemetry
from test_tuning import tuned

from distree.errors import ConfigError
from distree.messages.device import DeviceStatus
from distree.messages.telemetry import PipelineTelemetry
from distree.strict_yaml import Share
from orchestrator.config import NEVER_SENT, GoalConfig
from orchestrator.fleet import Device
from orchestrator.tuning.goal_control import MOST, Control, outlook
from orchestrator.tuning.measurements import Load, rest_s
from orchestrator.tuning.pipeline_tuning import Sample, Tuning
from orchestrator.tuning.tuners import Audit, Certified

LOSSES, SHARES = np.array([0.0, 0.004, 0.01]), np.array([1.0, 0.6, 0.4])


def board(sequence: int, *, answered=(0, 0, 0), p95_s=0.01, nbytes=0, audited=0, shed=0, boot="b1") -> Device:
    part = PipelineTelemetry(
        pipeline="fashion",
        epoch=1,
        revision="r1",
        stages=(replace(stage(), bytes_out=nbytes, audited=audited, shed=shed),),
        origin=replace(origin(exits=answered), answered=sum(answered), latency_p95_s=p95_s),
    )
    report = telemetry(sequence=sequence, boot=boot, pipelines=(part,))
    return Device(device="a", boot=boot, meta=meta(), telemetry=report)


# ---------------------------------------------------------------- measuring


def test_what_was_done_between_two_looks():
    load = Load("fashion", (1.0, 3.0, 6.0))
    assert load.look([board(1, answered=(10, 0, 0))]) is None
    measured = load.look([board(2, answered=(20, 5, 5), p95_s=0.5, nbytes=2000, audited=4, shed=3)])
    assert (measured.inputs, measured.latency_p95_s, measured.shed) == (20, 0.5, 3)
    assert measured.macs_per_input == pytest.approx((10 * 1 + 5 * 3 + 5 * 6 + 4 * 1) / 20)
    assert measured.bytes_per_input == pytest.approx(100.0)


def test_a_report_counts_once_and_a_new_boot_from_its_next_report_on():
    load = Load("fashion", (1.0, 3.0, 6.0))
    load.look([board(1, answered=(10, 0, 0))])
    assert load.look([board(2, answered=(20, 0, 0))]).inputs == 10
    assert load.look([board(2, answered=(20, 0, 0))]) is None
    assert load.look([board(1, answered=(7, 0, 0), boot="b2")]) is None
    assert load.look([board(2, answered=(9, 0, 0), boot="b2")]).inputs == 2
    assert load.look([]) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1 << 53), st.integers(0, 1 << 53)), max_size=20))
def test_counters_that_run_backwards_do_no_harm(reports):
    load = Load("fashion", (1.0, 3.0, 6.0))
    for sequence, answered, nbytes in reports:
        measured = load.look([board(sequence, answered=(answered, 0, 0), nbytes=nbytes)])
        if measured is not None:
            assert measured.inputs > 0
            assert measured.bytes_per_input >= 0
            assert measured.macs_per_input >= 0


def staged(device: str, *stages: tuple[int, float, float], status=DeviceStatus.READY) -> Device:
    parts = tuple(replace(stage(k), queue_s=queue_s, compute_s=compute_s) for k, queue_s, compute_s in stages)
    part = PipelineTelemetry(pipeline="fashion", epoch=1, revision="r1", stages=parts, origin=None)
    return Device(device=device, boot="b", status=status, telemetry=telemetry(device=device, pipelines=(part,)))


def test_what_a_request_takes_to_the_next_exit():
    boards = [staged("a", (0, 0.5, 0.5)), staged("b", (1, 0.1, 0.2)), staged("c", (1, 0.3, 0.2), (2, 0.0, 0.4))]
    assert rest_s(boards, "fashion", 3) == pytest.approx((0.4, 0.4))
    assert rest_s(boards, "other", 3) == ()
    assert rest_s(boards[:2], "fashion", 3) == ()
    gone = staged("b", (1, 9.0, 9.0), status=DeviceStatus.LOST)
    assert rest_s([gone, *boards], "fashion", 3) == pytest.approx((0.4, 0.4))


def test_no_board_can_make_a_plan_that_cannot_be_sent():
    boards = [staged("a", (1, 1e15, 1e15), (2, 0.0, 1.0))]
    assert rest_s(boards, "fashion", 3) == (3600.0, 1.0)


# ---------------------------------------------------------------- choosing


def test_without_goals_the_riskiest_is_chosen():
    assert Control({}).choose(LOSSES, SHARES, 0.01) == 2


def test_while_a_goal_holds_nobody_leaves_without_need():
    control = Control({"latency_p95_ms": 100.0})
    for _ in range(10):
        control.measured({"latency_p95_ms": 80.0})
    assert (control.pressure, control.choose(LOSSES, SHARES, 0.01)) == (0.0, 0)


def test_the_longer_a_goal_is_missed_the_earlier_inputs_leave():
    control, chosen = Control({"latency_p95_ms": 100.0}), []
    for _ in range(30):
        control.measured({"latency_p95_ms": 150.0})
        chosen.append(control.choose(LOSSES, SHARES, 0.01))
    assert chosen == sorted(chosen)
    assert {0, 1, 2} >= set(chosen) >= {1, 2}
    assert control.is_overloaded
    for _ in range(200):  # one missed period in twenty is forgiven
        control.measured({"latency_p95_ms": 60.0})
    assert control.choose(LOSSES, SHARES, 0.01) == 0


def follow(goal: str, sizes: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A plant whose measurement grows with the compute that inputs cost, and a goal that changes in mid-run."""
    losses, shares = np.linspace(0.0, 0.01, 40), np.linspace(1.0, 0.3, 40)
    noise, halves = np.random.default_rng(0), []
    control = Control({goal: sizes[0]})
    for size in sizes:
        control._goals[goal] = size
        measured = []
        for _ in range(400):
            share = shares[control.choose(losses, shares, 0.01)]
            measured.append(150.0 * share * noise.uniform(0.9, 1.1))
            control.measured({goal: measured[-1]})
        halves.append(np.array(measured[100:]))
    return halves[0], halves[1]


def test_the_mean_of_what_is_measured_follows_its_goal():
    first, second = follow("bytes_per_input", (100.0, 50.0))
    assert np.mean(first) == pytest.approx(100.0, rel=0.05)
    assert np.mean(second) == pytest.approx(50.0, rel=0.05)


def test_a_percentile_lies_above_its_goal_in_one_period_of_twenty():
    first, second = follow("latency_p95_ms", (100.0, 50.0))
    assert np.mean(first > 100.0) == pytest.approx(0.05, abs=0.02)
    assert np.mean(second > 50.0) == pytest.approx(0.05, abs=0.02)


def test_one_wild_measurement_is_no_overload():
    control = Control({"latency_p95_ms": 100.0, "bytes_per_input": 100.0})
    control.measured({"latency_p95_ms": 1e12, "bytes_per_input": 1e12})
    assert not control.is_overloaded


@given(st.lists(st.floats(0, 1e300), max_size=100))
def test_queues_are_bounded(values):
    control = Control({"bytes_per_input": 10.0})
    for value in values:
        control.measured({"bytes_per_input": value, "unknown": 3.0})
    assert 0.0 <= control.pressure <= MOST


def test_the_outlook_of_vectors_is_what_a_look_at_each_audit_says():
    audits = [*stream(200, seed=1), Audit(lost=True)]
    vectors = [(NEVER_SENT, NEVER_SENT), (0.7, 0.5), (0.0, 0.0)]
    losses, shares = outlook(vectors, audits, COSTS)
    assert (losses[0], shares[0]) == (0.0, 1.0)
    assert losses[2] == pytest.approx(np.mean([audit.losses()[0] for audit in audits[:-1]]))
    assert shares[2] == pytest.approx(COSTS[0] / COSTS[-1])
    empty = outlook(vectors, [], COSTS)
    assert [list(part) for part in empty] == [[0.0] * 3, [1.0] * 3]


# ---------------------------------------------------------------- both together


def learned(goal: GoalConfig, audits: int = 2500) -> Tuning:
    tuning = Tuning(tuned(goal=goal))
    for audit in stream(audits, seed=3):
        tuning.apply(Sample(origin="a", request="r", missing=(), audit=audit))
    return tuning


LATENCY = GoalConfig(accuracy_drop=Share(0.05), latency_p95_ms=100.0)


def test_only_certified_thresholds_are_ever_chosen_and_never_more_than_needed():
    tuning = learned(LATENCY)
    assert min(tuning.plan(pipeline().plan).thresholds) == NEVER_SENT
    tuning.look([board(1)])
    for sequence in range(2, 40):
        tuning.look([board(sequence, answered=(sequence, 0, 0), p95_s=0.3)])
        assert tuning.thresholds() in tuning.tuners[()].certified
    assert tuning.thresholds() == tuning.tuners[()].thresholds
    assert tuning.control.is_overloaded
    for sequence in range(40, 300):
        tuning.look([board(sequence, answered=(sequence, 0, 0), p95_s=0.02)])
    assert min(tuning.thresholds()) == float("inf")


def test_an_alarm_takes_the_choice_back():
    tuning = learned(LATENCY)
    tuning.look([board(1)])
    for sequence in range(2, 40):
        tuning.look([board(sequence, answered=(sequence, 0, 0), p95_s=0.3)])
    for audit in stream(400, seed=5):
        wrong = replace(audit, predictions=(1, 2, 3))
        tuning.apply(Sample(origin="a", request="r", missing=(), audit=wrong))
        assert tuning.thresholds() in tuning.tuners[()].certified
    assert tuning.tuners[()].alarms == 1
    assert min(tuning.thresholds()) == float("inf")


def test_energy_is_reckoned_from_compute_and_traffic():
    goal = GoalConfig(accuracy_drop=Share(0.05), energy_mj=1.0, mj_per_mmac=2.0, mj_per_kb=3.0)
    tuning = learned(goal, audits=0)
    tuning.look([board(1)])
    tuning.look([board(2, answered=(10, 0, 0), nbytes=10_000)])
    values = tuning._values(tuning.measured)
    assert values["energy_mj"] == pytest.approx(COSTS[0] / 1e6 * 2.0 + 1.0 * 3.0)
    assert tuning.control.pressure > 0


def test_pressure_survives_a_restart():
    tuning = learned(LATENCY)
    tuning.look([board(1)])
    tuning.look([board(2, answered=(5, 0, 0), p95_s=0.3)])
    other = Tuning(tuned(goal=LATENCY))
    other.restore(tuning.snapshot())
    assert other.control.queues == tuning.control.queues == {"latency_p95_ms": 0.95}


def test_the_plan_without_such_goals_is_the_riskiest_that_is_proved():
    tuning = learned(GoalConfig(accuracy_drop=Share(0.05)))
    offline = Certified(COSTS, 0.05, 1 - 0.95)
    for audit in stream(2500, seed=3):
        offline.observe(audit)
    assert tuning.thresholds() == offline.thresholds


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"latency_p95_ms": 0.0}, "latency_p95_ms: must be above 0"),
        ({"energy_mj": 1.0}, "energy_mj: needs mj_per_mmac"),
        ({"bytes_per_input": float("inf")}, "bytes_per_input: must be above 0"),
        ({"mj_per_kb": -1.0}, "mj_per_kb: must be 0 or more"),
    ],
)
def test_goals_that_cannot_be(changes, line):
    with pytest.raises(ConfigError, match=line):
        GoalConfig(accuracy_drop=Share(0.01), **changes)
