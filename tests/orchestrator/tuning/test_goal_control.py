"""Goals for latency, energy and traffic: which of the certified thresholds follow from what is measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audit_samples import COSTS, load_report, stream, tuned
from hypothesis import given
from hypothesis import strategies as st
from orchestrator_samples import pipeline

from distree.errors import ConfigError
from distree.strict_yaml import Share
from distree.thresholds import NEVER
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.goal_control import FULL_QUEUE, GoalControl, outlook
from orchestrator.tuning.pipeline_tuning import PipelineTuning
from orchestrator.tuning.samples import AuditedInput, Sample
from orchestrator.tuning.tuners import Certified

LOSSES, SHARES = np.array([0.0, 0.004, 0.01]), np.array([1.0, 0.6, 0.4])


# ---------------------------------------------------------------- choosing


def test_without_goals_the_riskiest_is_chosen():
    assert GoalControl({}).choose(LOSSES, SHARES, 0.01) == 2


def test_while_a_goal_holds_nobody_leaves_without_need():
    control = GoalControl({"latency_p95_ms": 100.0})
    for _ in range(10):
        control.measured({"latency_p95_ms": 80.0})
    assert (control.pressure, control.choose(LOSSES, SHARES, 0.01)) == (0.0, 0)


def test_the_longer_a_goal_is_missed_the_earlier_inputs_leave():
    control, chosen = GoalControl({"latency_p95_ms": 100.0}), []
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
    control = GoalControl({goal: sizes[0]})
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
    control = GoalControl({"latency_p95_ms": 100.0, "bytes_per_input": 100.0})
    control.measured({"latency_p95_ms": 1e12, "bytes_per_input": 1e12})
    assert not control.is_overloaded


@given(st.lists(st.floats(0, 1e300), max_size=100))
def test_queues_are_bounded(values):
    control = GoalControl({"bytes_per_input": 10.0})
    for value in values:
        control.measured({"bytes_per_input": value, "unknown": 3.0})
    assert 0.0 <= control.pressure <= FULL_QUEUE


def test_the_outlook_of_vectors_is_what_a_look_at_each_audit_says():
    audits = [*stream(200, seed=1), AuditedInput(lost=True)]
    vectors = [(NEVER, NEVER), (0.7, 0.5), (0.0, 0.0)]
    losses, shares = outlook(vectors, audits, COSTS)
    assert (losses[0], shares[0]) == (0.0, 1.0)
    assert losses[2] == pytest.approx(np.mean([audit.losses()[0] for audit in audits[:-1]]))
    assert shares[2] == pytest.approx(COSTS[0] / COSTS[-1])
    empty = outlook(vectors, [], COSTS)
    assert [list(part) for part in empty] == [[0.0] * 3, [1.0] * 3]


# ---------------------------------------------------------------- both together


def learned(goal: Goal, audits: int = 2500) -> PipelineTuning:
    tuning = PipelineTuning(tuned(goal=goal).tuned)
    for audit in stream(audits, seed=3):
        tuning.apply(Sample(origin="a", request="r", missing=(), audit=audit))
    return tuning


LATENCY = Goal(accuracy_drop=Share(0.05), latency_p95_ms=100.0)


def test_only_certified_thresholds_are_ever_chosen_and_never_more_than_needed():
    tuning = learned(LATENCY)
    assert min(tuning.plan(pipeline().plan).thresholds) == NEVER
    tuning.measure([load_report(1)])
    for sequence in range(2, 40):
        tuning.measure([load_report(sequence, answered=(sequence, 0, 0), p95_s=0.3)])
        assert tuning.thresholds() in tuning.tuners[()].choices
    assert tuning.thresholds() == tuning.tuners[()].thresholds
    assert tuning.control.is_overloaded
    for sequence in range(40, 300):
        tuning.measure([load_report(sequence, answered=(sequence, 0, 0), p95_s=0.02)])
    assert min(tuning.thresholds()) == NEVER


def test_an_alarm_takes_the_choice_back():
    tuning = learned(LATENCY)
    tuning.measure([load_report(1)])
    for sequence in range(2, 40):
        tuning.measure([load_report(sequence, answered=(sequence, 0, 0), p95_s=0.3)])
    for audit in stream(400, seed=5):
        wrong = replace(audit, predictions=(1, 2, 3))
        tuning.apply(Sample(origin="a", request="r", missing=(), audit=wrong))
        assert tuning.thresholds() in tuning.tuners[()].choices
    assert tuning.tuners[()].alarms == 1
    assert min(tuning.thresholds()) == NEVER


def test_energy_is_reckoned_from_compute_and_traffic():
    goal = Goal(accuracy_drop=Share(0.05), energy_mj=1.0, mj_per_mmac=2.0, mj_per_kb=3.0)
    tuning = learned(goal, audits=0)
    tuning.measure([load_report(1)])
    tuning.measure([load_report(2, answered=(10, 0, 0), nbytes=10_000)])
    values = tuning._values(tuning.measured)
    assert values["energy_mj"] == pytest.approx(COSTS[0] / 1e6 * 2.0 + 1.0 * 3.0)
    assert tuning.control.pressure > 0


def test_pressure_survives_a_restart():
    tuning = learned(LATENCY)
    tuning.measure([load_report(1)])
    tuning.measure([load_report(2, answered=(5, 0, 0), p95_s=0.3)])
    other = PipelineTuning(tuned(goal=LATENCY).tuned)
    other.restore(tuning.snapshot())
    assert other.control.queues == tuning.control.queues == {"latency_p95_ms": 0.95}


def test_the_plan_without_such_goals_is_the_riskiest_that_is_proved():
    tuning = learned(Goal(accuracy_drop=Share(0.05)))
    offline = Certified(COSTS, 0.05, 1 - 0.95)
    for audit in stream(2500, seed=3):
        offline.observe(audit)
    assert tuning.thresholds() == offline.thresholds


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"latency_p95_ms": 0.0}, "latency_p95_ms: 0 is out of range"),
        ({"energy_mj": 1.0}, "energy_mj: also needs mj_per_mmac"),
        ({"bytes_per_input": float("inf")}, "bytes_per_input: inf is out of range"),
        ({"mj_per_kb": -1.0}, "mj_per_kb: -1 is out of range; choose 0 or more"),
    ],
)
def test_goals_that_cannot_be(changes, line):
    with pytest.raises(ConfigError, match=line):
        Goal(accuracy_drop=Share(0.01), **changes)
