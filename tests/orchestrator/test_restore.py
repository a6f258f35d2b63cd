"""What an orchestrator that starts goes on with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from orchestrator_samples import pipeline, plan

from orchestrator.restore import OtherTuningError, restored_controller, restored_tuning
from orchestrator.store.connection import StoreError
from orchestrator.store.database import Store
from orchestrator.store.records import Batch, PlanRow, TuningRow
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.pipeline_tuning import PipelineTuning
from orchestrator.tuning.tuners import TUNERS

TUNED = replace(pipeline(), goal=Goal(accuracy_drop=0.02), costs=(1.0, 2.0, 3.0))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "x.db") as opened:
        yield opened


def test_a_first_start_begins_with_the_configuration(store):
    one = restored_controller(store, pipeline())
    assert (one.planner.wanted, one.planner.highest_epoch, one.tuning) == (plan(), 0, None)
    assert restored_controller(store, TUNED).unsaved == 0


def test_a_later_start_goes_on_with_the_last_plan_whoever_made_it(store):
    by_hand = replace(plan(thresholds=(0.5, 0.4)), reason="set by hand", author="alice@lab")
    store.append_plan(PlanRow(plan=by_hand, at=0.0))
    one = restored_controller(store, pipeline())
    assert (one.planner.wanted, one.row_id) == (replace(by_hand, epoch=1), 1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: kept | {"of": ["another"]},
        lambda kept: {name: value for name, value in kept.items() if name != "tuners"},
        lambda kept: kept | {"tuners": 3},
        lambda kept: kept | {"intake": [["a"]]},
    ],
)
def test_a_tuning_that_cannot_be_restored_starts_from_nothing_and_is_saved_soon(store, spoil, caplog):
    state_kept = json.loads(json.dumps(PipelineTuning(TUNED.tuned).snapshot()))
    store.save(Batch(tunings=(TuningRow(pipeline="fashion", state=spoil(state_kept)),)))
    with pytest.raises(OtherTuningError, match="the orchestrator starts this one from scratch"):
        restored_tuning(store, TUNED.tuned)
    one = restored_controller(store, TUNED)
    assert one.is_save_due
    assert one.tuning.snapshot() == PipelineTuning(TUNED.tuned).snapshot()
    assert "tuning starts from scratch" in caplog.text


@pytest.mark.parametrize("name", TUNERS)
def test_a_tuner_that_is_exchanged_starts_from_nothing(store, name):
    store.save(Batch(tunings=(TuningRow(pipeline="fashion", state=PipelineTuning(TUNED.tuned).snapshot()),)))
    spec = replace(TUNED, goal=replace(TUNED.goal, tuner=name))
    assert restored_controller(store, spec).is_save_due == (name != TUNED.goal.tuner)


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE tuning SET state = '{'",
        "INSERT INTO audit (pipeline, at, origin, request, missing, scores, predictions) VALUES ('fashion', 1, 'a', 'r', '', '', '')",
        "INSERT INTO plan (pipeline, epoch, thresholds) VALUES ('fashion', 9, 'x')",
        "INSERT INTO pipeline (name, highest_epoch, standing, configured, branches) VALUES ('fashion', 0, '', '', '{')",
    ],
)
def test_a_row_that_cannot_be_read_is_a_damaged_store_whoever_asks(store, spoil):
    store.save(Batch(tunings=(TuningRow(pipeline="fashion", state=PipelineTuning(TUNED.tuned).snapshot()),)))
    store.sql.run(spoil)
    with pytest.raises(StoreError, match=r"damaged \(a row cannot be read: .*move it away"):
        restored_controller(store, TUNED)
