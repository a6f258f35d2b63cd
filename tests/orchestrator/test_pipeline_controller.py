"""One pipeline as the orchestrator runs it, by itself and beside others."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import groupby

import pytest
from audit_samples import GOAL
from orchestrator_samples import SITE, meta, pipeline, plan, stage, state, telemetry
from orchestrator_site import Heard, OrchestratorSite

from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.codec import decode
from distree.messages.plan import Plan
from distree.thresholds import NEVER
from orchestrator.controllers import Controllers
from orchestrator.fleet import Fleet
from orchestrator.leadership import Role
from orchestrator.pipeline_controller import ESTIMATE_S, MEASURE_S, RETRY_S, DuePlan, PipelineController
from orchestrator.planner import SETTLE_S, Planner
from orchestrator.store.connection import StoreError
from orchestrator.store.records import PlanRow
from orchestrator.tuning.goal import Goal
from orchestrator.tuning.pipeline_tuning import PipelineTuning
from orchestrator.tuning.tuners import TUNERS

TUNED = replace(pipeline(), goal=Goal(accuracy_drop=0.02), costs=(1.0, 2.0, 3.0), origins=("a",))
OTHER = replace(pipeline(pipeline="other"), name="other")

ROW = AuditRow(
    request="r", origin="a", boot="b1", sequence=1, revision="r1", epoch=1, criterion="max_softmax",
    scores=(0.5, 0.5), predictions=(1, 1, 1),
)  # fmt: skip


def controller(spec=None, **changes):
    spec = spec or pipeline(**changes)
    tuning = PipelineTuning(spec.tuned) if spec.tuned is not None else None
    return PipelineController(spec, Planner(spec.plan, highest_epoch=3), tuning)


def leading(spec=None):
    """A controller that has settled and published its plan, at 1 s."""
    one = controller(spec)
    one.connected(0.0)
    one.published(SETTLE_S, one.due(SETTLE_S))
    return one


def boards(compute_s, pipeline="fashion"):
    """A fleet whose one board takes so long at each stage."""
    fleet = Fleet({"fashion": 3, "other": 3})
    fleet.saw_state(0.0, state())
    fleet.saw_meta(meta())
    stages = tuple(replace(stage(k), queue_s=0.0, compute_s=compute_s) for k in range(3))
    part = replace(telemetry().pipelines[0], pipeline=pipeline, stages=stages)
    fleet.saw_telemetry(0.0, telemetry(pipelines=(part,)))
    return fleet


# ---------------------------------------------------------------- one of them


def test_what_names_no_pipeline_here_is_refused():
    controllers = Controllers([controller()])
    assert controllers.of("fashion").name == "fashion"
    for find, name, words in (
        (controllers.of, "other", "'other' is not a pipeline of this orchestrator"),
        (controllers.tuned, "other", "'other' is not a pipeline that is tuned here"),
        (controllers.tuned, "fashion", "'fashion' is not a pipeline that is tuned here"),
    ):
        with pytest.raises(RemoteProtocolError, match=words):
            find(name)


def test_a_pipeline_settles_after_each_connect():
    one = controller()
    controllers = Controllers([one])
    assert not controllers.are_settling
    one.connected(10.0)
    assert controllers.are_settling
    assert one.due(10.0) is None
    due = one.due(10.0 + SETTLE_S)
    assert (due.is_new, due.plan.epoch) == (True, 4)
    assert not controllers.are_settling
    one.disconnected()
    assert one.row(Role.OFFLINE).standing == "offline"
    assert one.row(Role.STANDBY).standing == "standby"


def test_a_report_tells_what_died_with_an_agent_and_moves_no_number():
    one, other, fleet, learned = controller(TUNED), controller(OTHER), Fleet({"fashion": 3}), []
    for boot in ("b1", "b2"):
        fleet.saw_state(0.0, state(boot=boot))
        fleet.saw_meta(meta(boot=boot))
        if boot == "b1":
            learned += one.take_audit(0.0, ROW, fleet.get("a"))
        (part,) = telemetry().pipelines
        part = replace(part, epoch=9, origin=replace(part.origin, audits_drawn=4 if boot == "b1" else 0))
        report = telemetry(boot=boot, pipelines=(part,))
        device = fleet.saw_telemetry(0.0, report)
        learned += one.reported(0.0, device, report) + other.reported(0.0, device, report)
    assert [sample.audit.lost for sample in learned] == [False, True, True, True]
    assert (one.unsaved, one.tuning.audits, one.tuning.lost) == (4, 4, 3)
    assert (one.planner.highest_epoch, other.planner.highest_epoch) == (3, 3)


def test_rows_of_a_board_that_is_no_origin_are_refused():
    fleet = Fleet({"fashion": 3})
    fleet.saw_meta(meta(origin=False))
    for device in (None, fleet.get("a")):
        with pytest.raises(RemoteProtocolError, match="not known as an origin"):
            controller(TUNED).take_audit(0.0, ROW, device)


def written(number, *, is_reset=False, **content):
    return PlanRow(plan=plan(**content), at=0.0, id=number, is_reset=is_reset)


def test_a_plan_from_the_store_counts_only_where_it_was_written_later():
    one = controller()
    one.row_id = 7
    one.follow(None)
    one.follow(written(7, epoch=900, thresholds=(0.1, 0.1)))
    assert one.planner.wanted == plan()
    one.follow(written(8, epoch=5, thresholds=(0.1, 0.1)))
    assert (one.row_id, one.planner.wanted) == (8, plan(epoch=5, thresholds=(0.1, 0.1)))
    one.follow(written(9, epoch=1, thresholds=(0.1, 0.1), is_reset=True))
    assert (one.planner.wanted.epoch, one.planner.highest_epoch) == (1, 1)


@pytest.mark.parametrize("is_reset", [True, False])
def test_what_is_tuned_goes_on_whatever_is_written_to_the_store(is_reset):
    one = controller(TUNED)
    one.follow(written(1, epoch=1, thresholds=(0.1, 0.1), is_reset=is_reset))
    one.adjust(0.0, [])
    assert one.planner.wanted.thresholds == (NEVER, NEVER)


def test_only_another_decision_is_worth_a_line_in_the_log():
    one, told = controller(), []
    one.connected(0.0)
    for wanted in (plan(epoch=1), replace(plan(epoch=1), rest_s=(0.1, 0.1)), plan(epoch=2), plan(epoch=1)):
        one.planner.want(wanted)
        due = one.due(SETTLE_S)
        told.append((due.is_new, due.is_other_decision))
        one.published(SETTLE_S, due)
    one.started(boards(0.5).get("a"))
    told.append((one.due(60.0).is_new, one.due(60.0).is_other_decision))
    assert told == [(True, True), (True, False), (True, True), (True, True), (False, False)]


def test_a_plan_that_could_not_be_recorded_is_due_again_after_a_pause():
    one = controller()
    one.connected(0.0)
    due = one.due(SETTLE_S)
    one.failed(SETTLE_S)
    assert one.due(SETTLE_S + 0.5 * RETRY_S) is None
    assert one.due(SETTLE_S + RETRY_S) == due


def test_a_board_that_starts_has_the_recorded_plan_published_again():
    one, fleet = leading(), Fleet({"fashion": 3})
    fleet.saw_meta(meta())
    one.started(fleet.get("a"))
    assert one.due(60.0) == DuePlan(plan=one.planner.wanted, is_new=False, is_other_decision=False)
    one.published(60.0, one.due(60.0))
    assert one.due(61.0) is None
    one.started(Fleet({"other": 3}).saw_meta(meta(name="other", stages=(), origin=False)))
    assert one.due(120.0) is None


def test_boards_that_are_not_ready_say_nothing_of_times():
    one, fleet = leading(), boards(0.5)
    fleet.saw_state(0.0, state(status="lost"))
    one.adjust(10.0, fleet)
    assert one.planner.wanted.rest_s == ()
    fleet.saw_state(0.0, state())
    one.adjust(10.0 + MEASURE_S, fleet)
    assert one.planner.wanted.rest_s == (0.5, 0.5)


@pytest.mark.parametrize("name", TUNERS)
def test_whoever_starts_a_tuner_without_a_guarantee_is_warned(name):
    one = controller(replace(TUNED, goal=replace(GOAL, tuner=name)))
    warned = list(one.warnings())
    assert bool(warned) == (not TUNERS[name].has_guarantee)
    if warned:
        assert f"tuner {name} has no guarantee: nothing keeps the accuracy drop within 5%" in warned[0]
    assert list(controller().warnings()) == []


def test_whoever_lists_no_origins_is_told_that_any_board_counts():
    (line,) = controller(replace(TUNED, origins=())).warnings()
    assert "list them as origins: [...] in orchestrator.yaml" in line


# ---------------------------------------------------------------- one beside another


def test_times_that_flap_make_a_plan_once_in_a_while_for_their_own_pipeline_alone():
    flapping, calm = leading(), leading(OTHER)
    plans = {"fashion": [], "other": []}
    for step in range(200):
        now_s = 10.0 + step
        # One pipeline's boards report ever other times; the other's change once, at 100 s.
        flapping.adjust(now_s, boards(0.01 * 5 ** (step % 4)))
        calm.adjust(now_s, boards(0.010 if step < 100 else 0.050, pipeline="other"))
        for one in (flapping, calm):
            if (due := one.due(now_s)) is not None:
                one.published(now_s, due)
                plans[one.name].append((now_s, due.plan.rest_s))
    assert len(plans["fashion"]) == pytest.approx(200 / ESTIMATE_S, abs=1)
    first, second = plans["other"]
    assert first[0] <= 10.0 + MEASURE_S
    assert second[0] <= 110.0 + MEASURE_S
    assert second[1] == (0.050, 0.050)


@pytest.fixture
def two(tmp_path):
    with contextlib.closing(OrchestratorSite(tmp_path / "x.db", others=(OTHER,))) as made:
        yield made


def published(site, name):
    payload = site.broker.retained(topics.plan(SITE, name))
    return decode(Plan, payload) if payload else None


def test_a_pipeline_whose_boards_flap_delays_no_plan_of_another(two):
    """The service's turns, with both pipelines' boards on one broker."""

    def say(sequence, name, compute_s):
        stages = tuple(replace(stage(k), queue_s=0.0, compute_s=compute_s) for k in range(3))
        part = replace(telemetry().pipelines[0], pipeline=name, stages=stages)
        two.peer.say(telemetry(device=f"board-{name}", sequence=sequence, pipelines=(part,)))

    heard = {name: Heard(two, topics.plan(SITE, name)) for name in ("fashion", "other")}
    for name in heard:
        two.peer.say(state(device=f"board-{name}"), meta(device=f"board-{name}", name=name))
    two.pass_time()
    for sequence in range(1, 60):
        # The one that flaps comes first in the configuration.
        say(sequence, "fashion", 0.01 * 5 ** (sequence % 4))
        say(sequence, "other", 0.010 if sequence < 30 else 0.050)
        two.pass_time(2.0)
        if sequence == 5:
            assert published(two, "other").rest_s == (0.010, 0.010)
        if sequence == 32:
            assert published(two, "other").rest_s == (0.050, 0.050)
    # The same plan is published again for boards that report another one.
    plans = {name: [payload for payload, _ in groupby(one.since())] for name, one in heard.items()}
    # At first without times, then with those of either half.
    assert len(plans["other"]) == 3
    assert len(plans["fashion"]) == pytest.approx(1 + 120 / ESTIMATE_S, abs=1)
    assert {published(two, name).epoch for name in heard} == {1}


def test_a_pipeline_whose_plan_cannot_be_recorded_keeps_no_other_from_its_own(two, monkeypatch, caplog):
    record = two.store.record_plan

    def fail(row, *, after):
        if row.plan.pipeline == "fashion":
            raise StoreError("x.db: no room", "make some")
        return record(row, after=after)

    monkeypatch.setattr(two.store, "record_plan", fail)
    two.pass_time(10.0)
    assert published(two, "fashion") is None
    assert published(two, "other") == plan(epoch=1, pipeline="other")
    told = [record.getMessage() for record in caplog.records if "no room" in record.getMessage()]
    assert told == ["pipeline fashion: publishing its plan: x.db: no room; make some"]
    monkeypatch.undo()
    two.pass_time(2.0)
    assert published(two, "fashion") == plan(epoch=1)


def test_a_pipeline_whose_plan_cannot_be_read_keeps_no_other_from_following(two, monkeypatch):
    two.pass_time()
    latest = two.store.latest_plan

    def fail(name):
        if name == "fashion":
            raise StoreError("x.db: damaged", "move it away")
        return latest(name)

    monkeypatch.setattr(two.store, "latest_plan", fail)
    two.store.append_plan(PlanRow(plan=plan(pipeline="other", thresholds=(0.5, 0.4)), at=0.0))
    for one in two.service.controllers:
        one.is_unread = True
    two.pass_time()
    assert published(two, "other").thresholds == (0.5, 0.4)


def test_a_tuner_without_a_guarantee_is_logged_at_the_start(tmp_path, caplog):
    spec = replace(TUNED, goal=replace(TUNED.goal, tuner="bandit"))
    with contextlib.closing(OrchestratorSite(tmp_path / "y.db", make=lambda: spec)):
        warned = [record.getMessage() for record in caplog.records]
    assert warned == [
        "pipeline fashion: tuner bandit has no guarantee: nothing keeps the accuracy drop within 2%; "
        "tuner certified does"
    ]
