"""What every criterion promises, and each one's formula against an independent form in numpy."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from request_samples import stage_message

import distree.criteria
from distree.criteria import CRITERIA, LEAST_SURE, confidence, make_criterion, problem, threshold_problem
from distree.criteria.base import CriterionParameters, ExitEvidence
from distree.criteria.energy import Energy
from distree.criteria.feature_difference import MAX_REMEMBERED
from distree.errors import ConfigError
from distree.messages.codec import decode, encode
from distree.messages.limits import MAX_MEMORY
from distree.messages.request import StageMessage, Tensor
from distree.thresholds import NEVER

SHIFT_INVARIANT = ["max_softmax", "entropy", "margin", "patience"]
OF_LOGITS = ["max_softmax", "entropy", "margin", "energy"]
LEARNED = ["feature_difference", "gate"]

CLASSES, SIZES, EXITS = 3, (2, 3), 3
"""Classes, values of each branch's embedding and exits of the bundle whose parameters are `PARAMETERS`."""

_random = np.random.default_rng(5)
PARAMETERS = CriterionParameters(
    class_means=tuple(tuple(tuple(_random.normal(size=size).tolist()) for size in SIZES) for _ in range(CLASSES)),
    gate=tuple(tuple(_random.normal(size=CLASSES + 3 + exit).tolist()) for exit in range(EXITS)),
)

logit = st.floats(-30.0, 30.0)
logits_of_any_k = st.lists(logit, min_size=2, max_size=40)
extreme = st.one_of(
    st.floats(width=32),
    st.floats(),
    st.sampled_from([1e4, -1e4, math.inf, -math.inf, math.nan, 0.0, 1.7e308, -1.7e308]),
)
memory_of_a_peer = st.one_of(
    st.lists(st.floats(), max_size=3).map(tuple),
    # These look like memories of embeddings, or of earlier scores.
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, 0.5, -1.0, math.inf, math.nan, 1e300]), max_size=12).map(tuple),
)
value_of_a_branch = st.floats(-8.0, 8.0, width=16)
fitting_embeddings = st.tuples(
    *[st.none() | st.lists(value_of_a_branch, min_size=size, max_size=size) for size in SIZES]
)
embeddings_of_any_kind = st.one_of(
    st.just(()), fitting_embeddings, st.lists(st.none() | st.lists(extreme, max_size=4), max_size=4).map(tuple)
)
parameters_of_any_kind = st.sampled_from(
    [
        CriterionParameters(),
        PARAMETERS,
        CriterionParameters(class_means=(((),),), gate=((),)),
        CriterionParameters(class_means=(((1.0, math.nan), (0.0, 1.0, 0.0)),) * 3, gate=((math.inf,) * 6,) * 3),
        CriterionParameters(class_means=(((0.0, 0.0), (0.0,) * 3),), gate=((1e308,) * 6, (1e308,) * 7)),
        CriterionParameters(class_means=(((1.0, 0.0), (1.0,)), ((1.0,), (1.0,))), gate=((1e99,) * 6, (1e99,) * 7)),
    ]
)


@st.composite
def evidence_of_any_kind(draw):
    size = draw(st.sampled_from([(CLASSES, CLASSES), (2, 20)]))
    return ExitEvidence(
        logits=draw(st.lists(extreme, min_size=size[0], max_size=size[1])),
        exit=draw(st.integers(0, EXITS + 1)),
        embeddings=draw(embeddings_of_any_kind),
        memory=draw(memory_of_a_peer),
        left_s=0.25,
        rest_s=0.5,
    )


every = pytest.mark.parametrize("name", list(CRITERIA))


def value(name, logits, memory=()):
    return make_criterion(name).score(ExitEvidence(logits=logits, memory=memory)).value


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
    assert {name: make_criterion(name).name for name in CRITERIA} == {name: name for name in CRITERIA}
    assert set(CRITERIA) == {
        "max_softmax", "entropy", "margin", "patience", "energy", "deadline", "feature_difference", "gate",
    }  # fmt: skip


@every
def test_parameters_are_taken_by_those_who_need_them(name):
    assert make_criterion(name, PARAMETERS).name == make_criterion(name).name == name
    evidence = ExitEvidence(logits=[1.0, 0.0, 0.5], embeddings=([1.0, 2.0], None))
    alike = make_criterion(name, PARAMETERS).score(evidence) == make_criterion(name).score(evidence)
    assert alike is (name not in LEARNED)


@pytest.mark.parametrize(("name", "nearest"), [("max-softmax", "max_softmax"), ("entropie", "entropy")])
def test_an_unknown_name_is_told_its_nearest(name, nearest):
    with pytest.raises(ConfigError) as caught:
        make_criterion(name)
    assert str(caught.value) == (
        f"unknown criterion {name!r}; use one of max_softmax, entropy, margin, patience, energy, deadline, "
        f"feature_difference, gate ({nearest} is the nearest)"
    )
    assert problem(name) == caught.value.problem


@every
@given(evidence=evidence_of_any_kind(), parameters=parameters_of_any_kind)
def test_pure_and_deterministic(name, evidence, parameters):
    before = repr(evidence)
    criterion = make_criterion(name, parameters)
    score = criterion.score(evidence)
    assert score == criterion.score(evidence) == make_criterion(name, parameters).score(evidence)
    assert repr(evidence) == before
    as_tuples = replace(
        evidence,
        logits=tuple(evidence.logits),
        embeddings=[None if embedding is None else tuple(embedding) for embedding in evidence.embeddings],
    )
    assert criterion.score(as_tuples) == score


@every
@given(evidence=evidence_of_any_kind(), parameters=parameters_of_any_kind)
@example(evidence=ExitEvidence(logits=[1.7e308, -1.7e308, 0.0], left_s=-1.7e308), parameters=PARAMETERS)
def test_a_score_is_in_its_range_or_least_sure(name, evidence, parameters):
    score = make_criterion(name, parameters).score(evidence)
    possible = CRITERIA[name].range
    assert possible.least <= score.value <= possible.most or score.value == LEAST_SURE
    assert not score.value >= NEVER
    if name not in ["deadline", *LEARNED]:
        assert (score.value == LEAST_SURE) is not all(map(math.isfinite, evidence.logits))


@pytest.mark.parametrize("name", LEARNED)
@given(evidence=evidence_of_any_kind(), parameters=parameters_of_any_kind)
def test_logits_that_are_not_finite_are_never_sure(name, evidence, parameters):
    spoilt = replace(evidence, logits=[*evidence.logits[1:], math.nan])
    assert make_criterion(name, parameters).score(spoilt).value == LEAST_SURE


@every
@given(evidence=evidence_of_any_kind(), parameters=parameters_of_any_kind)
def test_memory_survives_the_network(name, evidence, parameters):
    kept = make_criterion(name, parameters).score(evidence).memory
    assert isinstance(kept, tuple)
    assert all(type(number) is float and math.isfinite(number) for number in kept)
    assert struct.unpack(f"<{len(kept)}d", struct.pack(f"<{len(kept)}d", *kept)) == kept
    assert decode(StageMessage, encode(message(kept))).progress.memory == kept


def message(memory):
    tensor = Tensor(dtype="int8", shape=(1,), codec="raw", payload=b"0")
    return stage_message(tensor, stage=1, memory=memory)


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
    got = Energy(temperature=temperature).score(ExitEvidence(logits=logits)).value
    assert got == pytest.approx(float(temperature * energy(np.asarray(logits) / temperature)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_makes_no_sense(temperature):
    with pytest.raises(ConfigError, match=r"temperature .* is out of range; choose a finite value above 0"):
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
    patience, memory, scores = make_criterion("patience"), (), []
    for logits in ([1.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [math.nan, 1.0], [0.0, 1.0]):
        score = patience.score(ExitEvidence(logits=logits, memory=memory))
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
    score = make_criterion("deadline").score(ExitEvidence(logits=[], left_s=left_s, rest_s=rest_s)).value
    assert (score >= 0.0) is (rest_s >= left_s)


@pytest.mark.parametrize(
    ("left_s", "rest_s"),
    [(math.inf, 0.0), (math.inf, math.inf), (math.nan, 1.0), (1.0, math.nan)],
)
def test_deadline_without_a_budget_or_an_estimate_says_go_on(left_s, rest_s):
    score = make_criterion("deadline").score(ExitEvidence(logits=[], left_s=left_s, rest_s=rest_s))
    assert score.value == LEAST_SURE


@given(logits=logits_of_any_k)
def test_margin_sees_a_tie(logits):
    assert value("margin", [*logits, max(logits)]) == 0.0


def distance(parts, other_parts):
    """The formula of feature difference between two sets of parts, in numpy."""
    unit = [np.concatenate(side).astype(np.longdouble) for side in (parts, other_parts)]
    unit = [vector / np.sqrt(np.sum(vector * vector)) for vector in unit]
    return float(np.sqrt(np.sum((unit[0] - unit[1]) ** 2)))


def heard(embeddings, branches):
    return [np.asarray(embeddings[b]) for b in branches]


def has_direction(embeddings, branches):
    return any(np.any(np.abs(part) > 1e-3) for part in heard(embeddings, branches))


def difference(embeddings, exit=0, memory=(), parameters=PARAMETERS):
    evidence = ExitEvidence(logits=[0.0, 1.0, 2.0], exit=exit, embeddings=embeddings, memory=memory)
    return make_criterion("feature_difference", parameters).score(evidence)


def moved(before, now, exit=1):
    """Score of embeddings after those of the exit before."""
    return difference(now, exit, difference(before, 0).memory).value


@given(embeddings=fitting_embeddings)
def test_feature_difference_at_the_first_exit(embeddings):
    present = [b for b, embedding in enumerate(embeddings) if embedding]
    score = difference(embeddings).value
    if not present or not has_direction(embeddings, present):
        assert score == LEAST_SURE or -2.0 <= score <= 0.0
        return
    means = PARAMETERS.class_means
    nearest = min(distance(heard(embeddings, present), heard(of_class, present)) for of_class in means)
    assert score == pytest.approx(-nearest, abs=1e-9)


@given(before=fitting_embeddings, now=fitting_embeddings, exit=st.integers(1, 5))
def test_feature_difference_between_two_exits(before, now, exit):
    common = [b for b, sides in enumerate(zip(before, now, strict=True)) if all(sides)]
    score = moved(before, now, exit)
    if not common:
        assert score == LEAST_SURE
        return
    if has_direction(before, common) and has_direction(now, common):
        assert score == pytest.approx(-distance(heard(before, common), heard(now, common)), abs=1e-9)
        assert -2.0 <= score <= 0.0


@pytest.mark.parametrize("values", [8, 128, 1000])
def test_feature_difference_of_many_values(values):
    random = np.random.default_rng(values)
    means = random.normal(size=(10, 2, values // 2))
    before = random.normal(size=(2, values // 2))
    now = before + random.normal(0.0, 0.01, size=before.shape)
    first = difference(before.tolist(), parameters=CriterionParameters(class_means=means.tolist()))
    assert first.value == pytest.approx(-min(distance(before, of_class) for of_class in means), abs=1e-9)
    second = difference(now.tolist(), 1, first.memory)
    assert second.value == pytest.approx(-distance(before, now), abs=1e-9)


@pytest.mark.parametrize(
    ("before", "now", "score"),
    [
        ([[3.0, 4.0]], [[3.0, 4.0]], 0.0),
        ([[3.0, 4.0]], [[30.0, 40.0]], 0.0),
        ([[3.0, 4.0]], [[4.0, 3.0]], -0.282842712),
        ([[1.0, 0.0]], [[0.0, 7.0]], -1.414213562),
        ([[1.0, 0.0]], [[-7.0, 0.0]], -2.0),
        # The branches are concatenated, not averaged.
        ([[1.0], [0.0]], [[0.0], [1.0]], -1.414213562),
        # Each side is normalised over the branches that are there at both.
        ([[3.0, 4.0], [9.0]], [[4.0, 3.0], None], -0.282842712),
        ([None, [5.0], [1.0]], [[2.0], [7.0], None], 0.0),
        ([[0.0, 0.0], [1.0]], [[0.0, 0.0], [2.0]], 0.0),
        ([[1e-60, 0.0]], [[0.0, 1e60]], -1.414213562),
        ([[1.0], None], [None, [1.0]], LEAST_SURE),
        ([[1.0], [0.0]], [None, [1.0]], LEAST_SURE),
        ([[1.0, 2.0]], [[0.0, 0.0]], LEAST_SURE),
        ([[0.0, 0.0]], [[1.0, 2.0]], LEAST_SURE),
        ([[1.0, 2.0]], [[1.0]], LEAST_SURE),
        ([[1.0, 2.0]], [[1.0, 2.0], None], LEAST_SURE),
        ([[1.0, 2.0]], [[1.0, math.nan]], LEAST_SURE),
        ([[1.0, math.inf]], [[1.0, 2.0]], LEAST_SURE),
        ([[1e200]], [[1e200]], LEAST_SURE),
        ([[1e-200]], [[1e-200]], LEAST_SURE),
        ([[1.0]], [], LEAST_SURE),
        ([], [[1.0]], LEAST_SURE),
        ([[1.0]], [[]], LEAST_SURE),
    ],
)
def test_known_feature_differences(before, now, score):
    assert moved(before, now) == score


@pytest.mark.parametrize(
    ("embeddings", "score"),
    [
        ([[3.0, 4.0], [0.0]], 0.0),
        ([[4.0, 3.0], [0.0]], -0.282842712),
        ([[4.0, 3.0], None], -0.282842712),
        ([[0.0, 0.0], [2.0]], 0.0),
        # The mean of class 0 is zero at branch 1, and is left out: that of class 1 alone is near or far.
        ([None, [2.0]], 0.0),
        ([None, [-2.0]], -2.0),
        ([None, None], LEAST_SURE),
        ([[0.0, 0.0], None], LEAST_SURE),
        ([[3.0], [0.0]], LEAST_SURE),
        ([[3.0, 4.0]], LEAST_SURE),
        ([[3.0, 4.0], [0.0], None], LEAST_SURE),
        ([[3.0, math.nan], [0.0]], LEAST_SURE),
    ],
)
def test_known_distances_to_class_means(embeddings, score):
    parameters = CriterionParameters(class_means=(((3.0, 4.0), (0.0,)), ((0.0, 0.0), (1.0,))))
    assert difference(embeddings, parameters=parameters).value == score


@pytest.mark.parametrize(
    "means",
    [
        (),
        (((), ()),),
        (((1.0, 2.0), (1.0,)), ((1.0, 2.0),)),
        (((1.0, 2.0), (1.0,)), ((1.0,), (1.0, 2.0))),
        (((1.0, math.inf), (1.0,)),),
        (((0.0, 0.0), (0.0,)),),
    ],
)
def test_class_means_that_are_none_are_never_near(means):
    assert difference([[1.0, 2.0], [1.0]], parameters=CriterionParameters(class_means=means)).value == LEAST_SURE


@pytest.mark.parametrize(
    "memory",
    [
        (),
        (2.0,),
        (2.0, 1.0),
        (2.0, 1.0, 2.0, 7.0),
        (1.0, 1.0, 2.0, 1.0),
        (-1.0, 1.0, 2.0),
        (1.5, 1.0, 2.0),
        (math.nan, 1.0, 2.0),
        (math.inf, 1.0, 2.0),
        (2.0, math.nan, 1.0),
        (2.0, math.inf, 1.0),
        (2.0, 1e300, 1e300),
        (2.0, 0.0, 0.0),
        (1.0, 1.0, 1.0, 1.0),
        (3.0, 1.0, 1.0, 1.0),
        (0.0,) * 1024,
        (1e300,),
    ],
)
def test_feature_difference_takes_a_spoilt_memory_for_none(memory):
    assert difference([[1.0, 2.0]], 1, (2.0, 1.0, 2.0)).value == 0.0
    assert difference([[1.0, 2.0]], 1, memory).value == LEAST_SURE


def test_feature_difference_follows_the_exits_one_by_one():
    memory, scores = (), []
    for exit, embeddings in enumerate(
        [([1.0, 0.0], [0.0]), ([0.0, 1.0], None), (None, [1.0]), ([1.0, 0.0], [1.0]), ([1.0, 0.0], [1.0])]
    ):
        score = difference(embeddings, exit, memory)
        memory = score.memory
        scores.append(score.value)
    assert scores[1:] == [-1.414213562, LEAST_SURE, 0.0, 0.0]
    assert memory == (2.0, 1.0, 0.0, 1.0, 1.0)


def test_what_cannot_be_carried_is_not_remembered():
    assert MAX_REMEMBERED == MAX_MEMORY
    assert difference([[1.0] * (MAX_REMEMBERED - 1)], 1).memory == (MAX_REMEMBERED - 1.0, *[1.0] * (MAX_REMEMBERED - 1))
    assert difference([[1.0] * MAX_REMEMBERED], 1).memory == ()
    assert difference([[1.0, math.nan]], 1).memory == ()
    assert difference([[0.0], None], 1).memory == ()


def test_every_set_of_missing_branches_has_class_means_of_its_own():
    branches = 7
    means = np.random.default_rng(3).normal(size=(4, branches, 2))
    embeddings = np.random.default_rng(4).normal(size=(branches, 2))
    criterion = make_criterion("feature_difference", CriterionParameters(class_means=means.tolist()))
    for _ in range(2):
        for mask in range(1, 1 << branches):
            present = [b for b in range(branches) if mask >> b & 1]
            given = [embeddings[b].tolist() if b in present else None for b in range(branches)]
            score = criterion.score(ExitEvidence(logits=[0.0, 1.0], embeddings=given)).value
            wanted = min(distance(embeddings[present], of_class[present]) for of_class in means)
            assert score == pytest.approx(-wanted, abs=1e-9)


def gate_of(*weights):
    return make_criterion("gate", CriterionParameters(gate=weights))


@given(logits=st.lists(st.lists(logit, min_size=CLASSES, max_size=CLASSES), min_size=EXITS, max_size=EXITS))
def test_formula_of_the_gate(logits):
    criterion, memory, wanted = make_criterion("gate", PARAMETERS), (), []
    for exit, of_exit in enumerate(logits):
        score = criterion.score(ExitEvidence(logits=of_exit, exit=exit, memory=memory))
        p, weights = softmax(of_exit), np.asarray(PARAMETERS.gate[exit])
        wanted.append(float(weights[:-1] @ np.array([*p, p.max(), entropy(of_exit), *wanted]) + weights[-1]))
        memory = score.memory
        assert score.value == pytest.approx(wanted[-1], rel=1e-9, abs=1e-9)
        assert memory[-1] == score.value
    assert memory == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@given(logits=st.lists(logit, min_size=CLASSES, max_size=CLASSES))
def test_a_gate_of_one_weight_is_the_criterion_that_it_weighs(logits):
    evidence = ExitEvidence(logits=logits)
    of_maximum, of_entropy = gate_of((0.0, 0.0, 0.0, 1.0, 0.0, 0.0)), gate_of((0.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    assert of_maximum.score(evidence).value == value("max_softmax", logits)
    assert of_entropy.score(evidence).value == value("entropy", logits)
    assert gate_of((1.0, 1.0, 1.0, 0.0, 0.0, -1.0)).score(evidence).value == pytest.approx(0.0, abs=1e-12)


def test_known_scores_of_the_gate():
    even = [0.0, 0.0]
    criterion = gate_of(
        (1.0, 3.0, 4.0, 5.0, 0.5), (0.0, 0.0, 0.0, 0.0, 2.0, 1.0), (0.0, 0.0, 0.0, 0.0, 1.0, 10.0, -1.0)
    )
    first = criterion.score(ExitEvidence(logits=even))
    # p = (1/2, 1/2), max p = 1/2, h = 0.
    assert first.value == 0.5 + 1.5 + 2.0 + 0.0 + 0.5
    second = criterion.score(ExitEvidence(logits=even, exit=1, memory=first.memory))
    assert (second.value, second.memory) == (10.0, (4.5, 10.0))
    assert criterion.score(ExitEvidence(logits=even, exit=2, memory=second.memory)).value == 4.5 + 100.0 - 1.0


@pytest.mark.parametrize(
    ("weights", "classes", "exit", "memory"),
    [
        ((), 2, 0, ()),
        (((1.0,) * 5,), 2, 1, (0.5,)),
        (((1.0,) * 5,), 3, 0, ()),
        (((1.0,) * 4,), 2, 0, ()),
        (((1.0,) * 6,), 2, 0, ()),
        (((),), 2, 0, ()),
        (((1.0, 1.0, math.nan, 1.0, 1.0),), 2, 0, ()),
        (((1.0, 1.0, math.inf, 1.0, 1.0),), 2, 0, ()),
        (((1e308,) * 5,), 2, 0, ()),
        # One class less and one score more: the right number of weights, but not what they are of.
        (((1.0,) * 5, (1.0,) * 7), 2, 1, (0.5, 0.5)),
        (((1.0,) * 5,), 2, 0, (0.5,)),
        (((1.0,) * 5, (1.0,) * 6), 2, 1, ()),
        (((1.0,) * 5, (1.0,) * 6), 2, 1, (math.nan,)),
        (((1.0,) * 5, (1.0,) * 6), 2, 1, (-math.inf,)),
        (((1.0,) * 5, (1.0,) * 6), 2, 1, (1e300,)),
        # What would be handed on could not be read there.
        (((1.0,) * 5, (1e100,) * 6), 2, 1, (1e100,)),
    ],
)
def test_a_gate_that_does_not_fit_is_never_sure(weights, classes, exit, memory):
    evidence = ExitEvidence(logits=[0.0] * classes, exit=exit, memory=memory)
    score = gate_of(*weights).score(evidence)
    assert (score.value, score.memory) == (LEAST_SURE, ())


def test_after_an_exit_that_could_not_be_scored_no_gate_opens():
    criterion, memory, scores = gate_of((1.0,) * 5, (1.0,) * 6, (1.0,) * 7), (), []
    for exit, logits in enumerate([[0.0, 1.0], [math.nan, 0.0], [0.0, 1.0]]):
        score = criterion.score(ExitEvidence(logits=logits, exit=exit, memory=memory))
        memory = score.memory
        scores.append(score.value)
    assert math.isfinite(scores[0])
    assert scores[1:] == [LEAST_SURE, LEAST_SURE]


@every
def test_without_a_problem_each_exit_gets_a_finite_score(name):
    assert problem(name, PARAMETERS, True, exits=EXITS, classes=CLASSES) is None
    criterion, memory = make_criterion(name, PARAMETERS), ()
    for exit in range(EXITS):
        embeddings = [[1.0 + exit] * size for size in SIZES]
        score = criterion.score(
            ExitEvidence(logits=[0.0, 1.0, 2.0], exit=exit, embeddings=embeddings, memory=memory, left_s=1.0)
        )
        memory = score.memory
        assert math.isfinite(score.value)


@every
def test_a_criterion_of_logits_has_no_problem_with_any_bundle(name):
    assert (problem(name) is None) is (name not in LEARNED)
    assert (problem(name, PARAMETERS, exits=EXITS, classes=CLASSES) is None) is (name != "feature_difference")


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("feature_difference", {}, "needs class_means"),
        ("feature_difference", {"class_means": PARAMETERS.class_means[1:]}, "of 2 classes, not 3"),
        ("feature_difference", {"class_means": (((1.0,),), ((1.0, 2.0),), ((1.0,),))}, "differ in size"),
        ("feature_difference", {"class_means": (((),),) * 3}, "are empty"),
        ("feature_difference", {"class_means": ((),) * 3}, "are empty"),
        ("feature_difference", {"class_means": (((1.0, math.nan),),) * 3}, "not all finite"),
        ("feature_difference", {"class_means": (((1.0,) * 512,) * 2,) * 3}, "2 embeddings of 1024 values"),
        ("gate", {}, "needs learned weights"),
        ("gate", {"gate": PARAMETERS.gate[:1]}, "sets of weights: 1 given, 2 needed"),
        ("gate", {"gate": ((1.0,) * 7, (1.0,) * 8)}, "weights of exit 0, bias included: 7 given, 6 needed"),
        ("gate", {"gate": ((1.0,) * 6, (1.0,) * 6)}, "weights of exit 1, bias included: 6 given, 7 needed"),
        ("gate", {"gate": ((1.0,) * 6, (math.inf,) * 7)}, "weights of exit 1 are not all finite"),
    ],
)
def test_a_problem_is_told_in_one_line(name, parameters, said):
    told = problem(name, CriterionParameters(**parameters), True, exits=EXITS, classes=CLASSES)
    assert told.what.startswith(name)
    assert said in told.what
    assert told.remedy
    assert "\n" not in str(told)


def test_a_chain_has_no_embeddings_to_compare():
    told = problem("feature_difference", PARAMETERS, False)
    assert told == ("feature_difference compares embeddings, which only wide stages have", "choose another criterion")


@pytest.mark.parametrize(
    "module", sorted({info.name for info in pkgutil.iter_modules(distree.criteria.__path__)} - {"base"})
)
def test_each_file_has_a_running_example(module):
    loaded = importlib.import_module(f"distree.criteria.{module}")
    failed, tried = doctest.testmod(loaded)
    assert failed == 0
    assert tried > 0


@pytest.mark.parametrize(
    ("name", "thresholds", "said"),
    [
        (
            "max_softmax",
            [0.5, 90.0],
            "exit 1 is 90, but scores of max_softmax are between 0 and 1; give 0.9 for 90%, or 'never'",
        ),
        (
            "entropy",
            [-0.1],
            "exit 0 is -0.1, but scores of entropy are between 0 and 1; give a number between 0 and 1, or 'never'",
        ),
        (
            "feature_difference",
            [0.7],
            "scores of feature_difference are between -2 and 0; give a number between -2 and 0, or",
        ),
        ("patience", [0.0], "scores of patience are between 1 and 32; give a number between 1 and 32, or"),
        ("energy", [math.nan], "exit 0 is nan, but scores of energy are any finite number; give one, or"),
        ("energy", [-math.inf], "exit 0 is -inf"),
        ("max_sofmax", [0.5], "unknown criterion 'max_sofmax'; use one of"),
    ],
)
def test_a_threshold_that_cannot_be_meant_is_told_in_one_line(name, thresholds, said):
    told = str(threshold_problem(name, thresholds))
    assert said in told
    assert "\n" not in told


@every
def test_both_ends_of_a_range_and_never_are_thresholds(name):
    possible = CRITERIA[name].range
    assert threshold_problem(name, [possible.least, possible.most, NEVER, math.inf]) is None
    assert possible.most < NEVER
