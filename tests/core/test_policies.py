"""What every criterion promises, and each one's formula against an independent form in numpy."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import distree.policies
from distree.errors import ConfigError
from distree.policies import LEAST_SURE, NEVER, POLICIES, confidence, make_policy
from distree.policies.energy import Energy
from distree.protocols import Evidence

SHIFT_INVARIANT = ["max_softmax", "entropy", "margin", "patience"]
OF_LOGITS = ["max_softmax", "entropy", "margin", "energy"]

logit = st.floats(-30.0, 30.0)
logits_of_any_k = st.lists(logit, min_size=2, max_size=40)
extreme = st.one_of(
    st.floats(width=32),
    st.floats(),
    st.sampled_from([1e4, -1e4, math.inf, -math.inf, math.nan, 0.0, 1.7e308, -1.7e308]),
)
memory_of_a_peer = st.lists(st.floats(), max_size=3).map(tuple)

every = pytest.mark.parametrize("name", list(POLICIES))


def value(name, logits, memory=()):
    return make_policy(name).score(Evidence(logits=logits, memory=memory)).value


def softmax(logits):
    z = np.asarray(logits, dtype=np.longdouble)
    weights = np.exp(z - z.max())
    return weights / weights.sum()


def entropy(logits):
    p = softmax(logits)
    return 1 + np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0)) / np.log(len(p))


def energy(logits):
    return np.logaddexp.reduce(np.asarray(logits, dtype=np.longdouble))


FORMULAS = {
    "max_softmax": lambda logits: softmax(logits).max(),
    "entropy": entropy,
    "margin": lambda logits: np.subtract(*np.sort(softmax(logits))[:-3:-1]),
    "energy": energy,
}


def test_the_registry_names_each_criterion_by_its_own_name():
    assert {name: make_policy(name).name for name in POLICIES} == {name: name for name in POLICIES}
    assert set(POLICIES) == {"max_softmax", "entropy", "margin", "patience", "energy", "deadline"}


@pytest.mark.parametrize(("name", "nearest"), [("max-softmax", "max_softmax"), ("entropie", "entropy")])
def test_an_unknown_name_is_told_its_nearest(name, nearest):
    with pytest.raises(ConfigError) as caught:
        make_policy(name)
    assert str(caught.value) == (
        f"unknown criterion {name!r}; nearest: {nearest}; "
        "known: max_softmax, entropy, margin, patience, energy, deadline"
    )


@every
@given(logits=st.lists(extreme, min_size=2, max_size=20), memory=memory_of_a_peer)
def test_pure_and_deterministic(name, logits, memory):
    before = struct.pack(f"{len(logits)}d", *logits)
    policy = make_policy(name)
    evidence = Evidence(logits=logits, memory=memory, left_s=0.25, rest_s=0.5)
    assert policy.score(evidence) == policy.score(evidence) == make_policy(name).score(evidence)
    assert struct.pack(f"{len(logits)}d", *logits) == before
    assert policy.score(Evidence(logits=tuple(logits), memory=memory, left_s=0.25, rest_s=0.5)) == (
        policy.score(evidence)
    )


@every
@given(logits=st.lists(extreme, min_size=2, max_size=20), memory=memory_of_a_peer)
def test_a_score_is_finite_or_least_sure(name, logits, memory):
    policy = make_policy(name)
    score = policy.score(Evidence(logits=logits, memory=memory, left_s=1.0, rest_s=0.5))
    assert math.isfinite(score.value) or score.value == LEAST_SURE
    assert not score.value >= NEVER
    if name != "deadline":
        assert (score.value == LEAST_SURE) is not all(map(math.isfinite, logits))


@every
@given(logits=st.lists(extreme, min_size=2, max_size=20), memory=memory_of_a_peer)
def test_memory_survives_the_network(name, logits, memory):
    kept = make_policy(name).score(Evidence(logits=logits, memory=memory)).memory
    assert isinstance(kept, tuple)
    assert all(type(number) is float and math.isfinite(number) for number in kept)
    assert struct.unpack(f"<{len(kept)}d", struct.pack(f"<{len(kept)}d", *kept)) == kept


@every
@given(others=st.lists(logit, min_size=1, max_size=30), steps=st.lists(st.floats(0.0, 5.0), max_size=10))
def test_raising_the_best_logit_never_scores_lower(name, others, steps):
    best, last = max(others), -math.inf
    for step in [0.0, *steps]:
        best += step
        score = value(name, [best, *others])
        assert score >= last - 1e-12
        last = max(last, score)


@pytest.mark.parametrize("name", ["max_softmax", "entropy", "margin"])
@given(logits=logits_of_any_k, factor=st.floats(1.0, 10.0))
def test_sharpening_never_scores_lower(name, logits, factor):
    assert value(name, [z * factor for z in logits]) >= value(name, logits) - 1e-9


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
@given(logits=st.lists(st.integers(-30, 30).map(float), min_size=2, max_size=40), shift=st.integers(-1000, 1000))
def test_a_shift_of_all_logits_changes_nothing(name, logits, shift):
    assert value(name, [z + shift for z in logits]) == value(name, logits)


@given(logits=logits_of_any_k, shift=st.floats(-100, 100))
def test_energy_follows_a_shift(logits, shift):
    shifted = value("energy", [z + shift for z in logits])
    assert shifted == pytest.approx(value("energy", logits) + shift, abs=1e-9)


@pytest.mark.parametrize("name", [*OF_LOGITS])
@given(logits=logits_of_any_k)
def test_formula(name, logits):
    assert value(name, logits) == pytest.approx(float(FORMULAS[name](logits)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", [*OF_LOGITS])
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_formula_for_many_classes(name, classes):
    logits = np.random.default_rng(classes).normal(0.0, 4.0, classes).tolist()
    assert value(name, logits) == pytest.approx(float(FORMULAS[name](logits)), rel=1e-12)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_ends_of_the_scales(classes):
    uniform, sure = [0.5] * classes, [0.0] * (classes - 1) + [1e4]
    assert value("max_softmax", uniform) == pytest.approx(1 / classes)
    assert value("entropy", uniform) == pytest.approx(0.0, abs=1e-12)
    assert value("margin", uniform) == 0.0
    assert value("energy", uniform) == pytest.approx(0.5 + math.log(classes))
    assert [value(name, sure) for name in ("max_softmax", "entropy", "margin")] == [1.0, 1.0, 1.0]
    assert value("energy", sure) == 1e4


@given(logits=logits_of_any_k, temperature=st.floats(0.1, 100.0))
def test_energy_at_a_temperature(logits, temperature):
    got = Energy(temperature=temperature).score(Evidence(logits=logits)).value
    assert got == pytest.approx(float(temperature * energy(np.asarray(logits) / temperature)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_makes_no_sense(temperature):
    with pytest.raises(ConfigError, match="temperature must be finite and above 0"):
        Energy(temperature=temperature)


@given(logits=logits_of_any_k)
def test_confidence_is_the_argmax_and_the_max_softmax_score(logits):
    class_id, probability = confidence(logits)
    assert class_id == int(np.argmax(logits))
    assert probability == value("max_softmax", logits)


@given(logits=st.lists(extreme, min_size=1, max_size=20))
def test_confidence_is_always_a_class_and_a_probability(logits):
    class_id, probability = confidence(logits)
    assert 0 <= class_id < len(logits)
    assert 0.0 <= probability <= 1.0
    assert (probability == 0.0) is not all(map(math.isfinite, logits))


@pytest.mark.parametrize(
    ("logits", "class_id"),
    [([math.nan, 1.0, 2.0], 2), ([1.0, math.inf, math.inf], 1), ([math.nan] * 3, 0), ([-math.inf, -1e4], 1)],
)
def test_confidence_of_logits_that_are_not_finite(logits, class_id):
    assert confidence(logits) == (class_id, 0.0)


def test_patience_counts_a_streak_and_starts_anew():
    patience, memory, scores = make_policy("patience"), (), []
    for logits in ([1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [math.nan, 1.0], [0.0, 1.0]):
        score = patience.score(Evidence(logits=logits, memory=memory))
        memory = score.memory
        scores.append(score.value)
    assert scores == [1.0, 2.0, 1.0, 2.0, LEAST_SURE, 1.0]


@pytest.mark.parametrize(
    "memory", [(0.0,), (0.0, math.nan), (0.0, math.inf), (0.0, -5.0), (math.nan, 1.0), (0.0, 1.0, 1.0)]
)
def test_patience_takes_a_spoilt_memory_for_none(memory):
    assert value("patience", [1.0, 0.0], memory) == 1.0


@given(left_s=st.floats(-10, 1e6), rest_s=st.floats(0, 1e6))
def test_deadline_says_now_when_the_rest_does_not_fit(left_s, rest_s):
    score = make_policy("deadline").score(Evidence(logits=[], left_s=left_s, rest_s=rest_s)).value
    assert (score >= 0.0) is (rest_s >= left_s)


@pytest.mark.parametrize(
    ("left_s", "rest_s"),
    [(math.inf, 0.0), (math.inf, math.inf), (math.nan, 1.0), (1.0, math.nan)],
)
def test_deadline_without_a_budget_or_an_estimate_says_go_on(left_s, rest_s):
    score = make_policy("deadline").score(Evidence(logits=[], left_s=left_s, rest_s=rest_s))
    assert score.value == LEAST_SURE


@given(logits=logits_of_any_k)
def test_margin_sees_a_tie(logits):
    assert value("margin", [*logits, max(logits)]) == 0.0


@pytest.mark.parametrize("module", [info.name for info in pkgutil.iter_modules(distree.policies.__path__)])
def test_each_file_has_a_running_example(module):
    loaded = importlib.import_module(f"distree.policies.{module}")
    failed, tried = doctest.testmod(loaded)
    assert failed == 0
    assert tried > 0
