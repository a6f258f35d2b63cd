"""What every live tuner fulfils: the contract in orchestrator/tuning/live_tuner.py."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import replace

import pytest
from audit_samples import COSTS, GOAL, LOST, stream, tuned, tuned_wide

from distree.errors import ConfigError
from distree.messages.plan import MaskedThresholds
from distree.strict_yaml import Share
from distree.thresholds import NEVER
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.live_tuner import LiveTuner, TunerSetup
from orchestrator.tuning.pipeline_tuning import PipelineTuning
from orchestrator.tuning.samples import AuditedInput, Sample
from orchestrator.tuning.tuners import DEFAULT, TUNERS

SETUP = TunerSetup(costs=COSTS, accuracy_drop=0.05, confidence=0.95, thresholds=(0.9, 0.8), seed=3)
AUDITS = stream(2500)
every_tuner = pytest.mark.parametrize("cls", TUNERS.values(), ids=TUNERS)


def learned(cls: type[LiveTuner], audits, **changes) -> LiveTuner:
    tuner = cls.create(replace(SETUP, **changes))
    for audit in audits:
        tuner.observe(audit)
    return tuner


def checked(tuner: LiveTuner) -> LiveTuner:
    """Hold what a tuner says to the contract."""
    for vector in tuner.choices:
        assert len(vector) == len(COSTS) - 1
        assert all(threshold <= NEVER for threshold in vector)
    assert tuner.thresholds in tuner.choices
    assert tuner.offers_choice or len(tuner.choices) == 1
    said = tuner.explain()
    assert said.thresholds == tuner.thresholds
    assert said.alarms == tuner.alarms
    assert min(said.audits, said.gathering, said.alarms) >= 0
    assert not said.gathering or set(said.thresholds) == {NEVER}
    assert said.progress
    assert "\n" not in said.progress
    for remark in said.remarks:
        assert remark.label
        assert remark.text
    for figure in said.figures:
        assert figure.name.isidentifier()
        assert figure.name == figure.name.lower()
        assert math.isfinite(figure.value)
        assert figure.meaning.endswith(".")
    assert len({figure.name for figure in said.figures}) == len(said.figures)
    return tuner


def test_the_table_has_every_tuner_under_its_name() -> None:
    assert {name: cls.name for name, cls in TUNERS.items()} == {name: name for name in TUNERS}
    assert set(TUNERS.values()) == set(LiveTuner.__subclasses__())
    assert TUNERS[DEFAULT].has_guarantee


@every_tuner
def test_thresholds_are_in_range_and_explained_at_any_time(cls) -> None:
    tuner = checked(cls.create(SETUP))
    for audit in [*AUDITS[:800], LOST, *AUDITS[800:]]:
        tuner.observe(audit)
        if audit.lost or audit.scores[0] > 0.9:
            checked(tuner)
    checked(tuner)


@every_tuner
def test_a_tuner_that_uses_given_thresholds_starts_from_them_and_others_from_none(cls) -> None:
    expected = SETUP.thresholds if cls.uses_given_thresholds else (NEVER, NEVER)
    assert cls.create(SETUP).thresholds == expected


@every_tuner
@pytest.mark.parametrize("at", [0, 30, 399, 400, 401, 450, 1650])
def test_a_restored_tuner_goes_on_as_if_nothing_had_happened(cls, at: int) -> None:
    whole, first = learned(cls, AUDITS[:at]), learned(cls, AUDITS[:at])
    second = cls.create(SETUP)
    second.restore(json.loads(json.dumps(first.snapshot())))
    assert json.dumps(second.snapshot()) == json.dumps(first.snapshot())
    assert second.explain() == first.explain()
    for audit in AUDITS[at : at + 600]:
        whole.observe(audit)
        second.observe(audit)
        assert whole.choices == second.choices
    assert json.dumps(second.snapshot()) == json.dumps(whole.snapshot())


@every_tuner
def test_what_is_no_snapshot_of_the_same_setup_is_refused_and_changes_nothing(cls) -> None:
    kept = json.loads(json.dumps(learned(cls, AUDITS[:900]).snapshot()))
    spoilt = [{}, *({key: value for key, value in kept.items() if key != name} for name in kept)]
    spoilt += [kept | {name: "nonsense"} for name in kept]
    for data in spoilt:
        tuner = learned(cls, AUDITS[:450])
        before = copy.deepcopy(tuner.snapshot())
        with pytest.raises((ValueError, LookupError, TypeError)):
            tuner.restore(data)
        assert tuner.snapshot() == before


@every_tuner
def test_another_goal_or_other_thresholds_take_nothing_over(cls) -> None:
    kept = learned(cls, AUDITS[:900]).snapshot()
    change = {"thresholds": (0.5, 0.5)} if cls.uses_given_thresholds else {"accuracy_drop": 0.02}
    with pytest.raises(ValueError):
        cls.create(replace(SETUP, **change)).restore(kept)


@every_tuner
def test_memory_is_bounded(cls) -> None:
    tuner = learned(cls, stream(3000))
    size = len(json.dumps(tuner.snapshot()))
    for audit in stream(3000, seed=1):
        tuner.observe(audit)
    assert len(json.dumps(tuner.snapshot())) < 1.2 * size


@every_tuner
def test_a_change_of_thresholds_is_rare_for_it_is_a_plan_to_every_board(cls) -> None:
    tuner, seen = cls.create(SETUP), []
    for audit in AUDITS:
        tuner.observe(audit)
        seen.append(tuner.thresholds)
    changes = sum(before != after for before, after in itertools.pairwise(seen))
    assert changes <= len(AUDITS) / 10


@every_tuner
def test_lost_audits_alone_let_nobody_leave_early(cls) -> None:
    tuner = checked(learned(cls, [LOST] * 3000))
    if not cls.uses_given_thresholds:
        assert tuner.thresholds == (NEVER, NEVER)


@every_tuner
def test_a_guarantee_survives_lost_audits(cls) -> None:
    tuner = learned(cls, (LOST if k % 10 == 0 else audit for k, audit in enumerate(AUDITS)))
    if cls.has_guarantee:
        assert tuner.thresholds == (NEVER, NEVER)
    checked(tuner)


@every_tuner
def test_earlier_audits_replace_those_that_would_be_gathered(cls) -> None:
    tuner = cls.create(replace(SETUP, earlier=tuple(stream(500, seed=8))))
    assert tuner.explain().gathering == 0
    checked(tuner)


@every_tuner
def test_exits_that_know_nothing_are_learned_from_without_harm(cls) -> None:
    ignorant = AuditedInput(scores=(-math.inf, -math.inf), predictions=(0, 0, 0))
    checked(learned(cls, [ignorant] * 900))


# ---------------------------------------------------------------- as part of a pipeline's tuning


def tuning(cls: type[LiveTuner], make=tuned, **changes) -> PipelineTuning:
    spec = make(goal=replace(GOAL, tuner=cls.name), thresholds=(0.9, 0.8))
    return PipelineTuning(replace(spec.tuned, **changes))


def feed(made: PipelineTuning, audits, missing=()) -> PipelineTuning:
    for audit in audits:
        made.apply(Sample(origin="a", request="r", missing=() if audit.lost else missing, audit=audit))
    return made


@every_tuner
def test_each_set_of_missing_branches_has_a_tuner_of_its_own(cls) -> None:
    masked = (MaskedThresholds(missing=(0,), thresholds=(0.7, NEVER)),)
    made = feed(tuning(cls, make=tuned_wide, masked=masked), AUDITS[:600])
    feed(made, AUDITS[:50], missing=(1,))
    feed(made, [LOST])
    given = {(0,)} if cls.uses_given_thresholds else set()
    assert set(made.tuners) == {(), (1,)} | given
    for tuner in made.tuners.values():
        checked(tuner)
    if cls.uses_given_thresholds:
        assert made.thresholds((0,)) == (0.7, NEVER)
    # A set that nothing is known of stays shut.
    assert made.thresholds((1,)) == (NEVER, NEVER)
    plan = made.plan(tuned_wide().plan)
    assert {row.missing for row in plan.masked} == set(made.tuners) - {()}
    assert made.explain().sets[0].tuner == made.tuners[()].explain()


@every_tuner
def test_a_restored_tuning_wants_the_same_plan_and_says_the_same(cls) -> None:
    made = feed(feed(tuning(cls, make=tuned_wide), AUDITS[:900]), AUDITS[:450], missing=(1,))
    other = tuning(cls, make=tuned_wide)
    other.restore(json.loads(json.dumps(made.snapshot())))
    assert other.explain() == made.explain()
    assert other.plan(tuned_wide().plan) == made.plan(tuned_wide().plan)


def test_another_tuner_takes_nothing_over() -> None:
    for one, other in itertools.permutations(TUNERS.values(), 2):
        with pytest.raises(ValueError, match="it was tuned for"):
            tuning(other).restore(tuning(one).snapshot())


def test_a_goal_names_a_tuner_that_there_is_and_that_can_do_what_it_asks() -> None:
    drop = Share(0.01)
    assert Goal(accuracy_drop=drop).tuner == DEFAULT
    with pytest.raises(ConfigError, match=r"tuner: expected one of .*, received 'certifed'; write certified"):
        Goal(accuracy_drop=drop, tuner="certifed")
    for name, cls in TUNERS.items():
        if cls.offers_choice:
            assert Goal(accuracy_drop=drop, tuner=name, latency_p95_ms=5.0).limits()
        else:
            with pytest.raises(
                ConfigError, match=f"latency_p95_ms: tuner {name} cannot weigh it; remove it, or use tuner certified"
            ):
                Goal(accuracy_drop=drop, tuner=name, latency_p95_ms=5.0)


@every_tuner
def test_a_goal_says_whether_it_is_guaranteed(cls) -> None:
    text = Goal(accuracy_drop=Share(0.01), tuner=cls.name).text()
    assert ("without a guarantee" in text) == (not cls.has_guarantee)
    assert ("with 95% confidence" in text) == cls.has_guarantee
