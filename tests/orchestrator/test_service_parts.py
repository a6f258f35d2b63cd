"""The parts of the orchestrator's service, each by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from orchestrator_samples import SITE, meta, pipeline, plan, state, telemetry

from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.audit import AuditRow
from distree.messages.codec import decode
from distree.messages.member import Call
from distree.messages.site import Claim
from distree.topics import Kind
from orchestrator import addresses
from orchestrator.caller import PAUSE_S as CALL_PAUSE_S
from orchestrator.caller import WAIT_S, Caller
from orchestrator.complaints import NAMESAKE_RETURNS, NAMESAKE_S, REFUSALS_TOLD, Lasting, Namesakes, Refusals, Troubles
from orchestrator.config import GoalConfig
from orchestrator.controllers import Pipelines
from orchestrator.fleet import Device, Fleet
from orchestrator.leadership import Role
from orchestrator.pipeline_controller import PlannedPipeline
from orchestrator.plan_resend import PAUSE_S as REMIND_PAUSE_S
from orchestrator.plan_resend import Reminder
from orchestrator.planner import SETTLE_S, Planner
from orchestrator.restore import OtherTuningError, restored_pipeline, restored_tuning
from orchestrator.store.database import Store
from orchestrator.store.journal import FORGOTTEN_KEPT, Unsaved
from orchestrator.store.records import Batch, Observation, PipelineRow, PlanRow, Refused, ServiceRow, TuningRow
from orchestrator.tuning.pipeline_tuning import Tuning

TUNED = replace(pipeline(), goal=GoalConfig(accuracy_drop=0.02), costs=(1.0, 2.0, 3.0))

ROW = AuditRow(
    request="r", origin="a", boot="b1", sequence=1, revision="r1", epoch=1, criterion="max_softmax",
    scores=(0.5, 0.5), predictions=(1, 1, 1),
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "x.db") as opened:
        yield opened


# ---------------------------------------------------------------- complaints


def test_each_reason_of_a_topic_is_told_once_and_every_refusal_counted():
    refusals = Refusals()
    lines = [refusals.add(topic, RemoteProtocolError(reason, "why")) for topic in "aab" for reason in ("kind", "topic")]
    assert [line is not None for line in lines] == [True, True, False, False, True, True]
    assert refusals.counts == {"kind": 3, "topic": 3}


def test_of_endlessly_many_topics_only_the_first_are_told():
    refusals = Refusals()
    lines = [refusals.add(str(k), RemoteProtocolError("kind", "why")) for k in range(REFUSALS_TOLD + 10)]
    assert sum(line is not None for line in lines) == REFUSALS_TOLD
    assert refusals.counts["kind"] == REFUSALS_TOLD + 10


def test_a_trouble_is_told_when_it_begins_and_again_only_after_it_was_over():
    troubles = Troubles()
    told = [troubles.note("history", trouble) for trouble in ("locked", "locked", "full", None, "full")]
    assert told == ["history: locked", None, "history: full", None, "history: full"]
    assert troubles.note("plans", "full") == "plans: full"


def test_what_is_wrong_for_a_moment_is_not_told_and_what_lasts_is_told_once():
    lasting = Lasting()
    looks = [{1: "one"}, {2: "two"}, {2: "two, still"}, {2: "two", 3: "three"}, {3: "three"}, {}, {3: "three"}]
    assert [lasting.note("p", look) for look in looks] == [[], [], ["two, still"], [], ["three"], [], []]
    assert lasting.note("q", {3: "three"}) == []
    assert lasting.note("p", {3: "three"}) == ["three"]


def in_turns(fleet, namesakes, times, start_s=0.0, every_s=1.0):
    """Have two runs speak in turns; return what is told."""
    says = [(start_s + k * every_s, ("b1", "b2")[k % 2]) for k in range(times)]
    return [line for at_s, boot in says if (line := namesakes.note(at_s, fleet.saw_state(at_s, state(boot=boot))))]


def test_two_boards_of_one_name_are_told_of_once_in_a_while():
    fleet, namesakes = Fleet({"fashion": 3}), Namesakes()
    assert in_turns(fleet, namesakes, NAMESAKE_RETURNS + 1) == []
    line = "two boards call themselves a (boots b1, b2): give one another id"
    assert in_turns(fleet, namesakes, 200, start_s=10.0)[:1] == [line]
    assert in_turns(fleet, namesakes, 300, start_s=210.0) == []
    assert len(in_turns(fleet, namesakes, 300, start_s=NAMESAKE_S + 10.0)) == 1


def test_wills_that_come_late_are_no_second_board():
    fleet, namesakes = Fleet({"fashion": 3}), Namesakes()
    for k in range(100):
        for boot in (f"b{k + 1}", f"b{k}", f"b{k + 1}"):
            at_s = k * (NAMESAKE_S + 1.0)
            assert namesakes.note(at_s, fleet.saw_state(at_s, state(boot=boot))) is None
    assert fleet.get("a").returns == 199


# ---------------------------------------------------------------- what the store lacks

ROWS = (PipelineRow(name="fashion", floor=1),)
SERVICE = ServiceRow(pid=1, started_at=0.0, online=True)


def seen(device="a"):
    return Observation(device=Device(device=device, boot="b1"), heard_at=1.0, seen_at=1.0)


def test_what_was_saved_is_not_written_again():
    unsaved = Unsaved()
    unsaved.add_device(seen(), reported=True)
    batch = unsaved.batch(ROWS, SERVICE, ())
    assert batch == Batch(devices=(seen(),), reported=(seen(),), pipelines=ROWS, service=SERVICE)
    assert unsaved.batch(ROWS, SERVICE, ()) == batch  # until it is known to be saved
    unsaved.saved(batch)
    assert unsaved.batch(ROWS, SERVICE, ()) == Batch()


def test_refusals_alone_cause_no_write_and_ride_with_the_next_device():
    unsaved = Unsaved()
    unsaved.saved(unsaved.batch(ROWS, SERVICE, ()))
    refusing = replace(SERVICE, refused=(Refused(reason="kind", count=3),))
    assert unsaved.batch(ROWS, refusing, ()) == Batch()
    unsaved.add_device(seen())
    assert unsaved.batch(ROWS, refusing, ()).service == refusing


def test_that_a_name_is_shared_is_not_lost_to_the_next_message():
    unsaved = Unsaved()
    unsaved.add_device(replace(seen(), shared="two boards", shared_at=1.0))
    unsaved.add_device(replace(seen(), seen_at=2.0))
    (kept,) = unsaved.batch(ROWS, SERVICE, ()).devices
    assert (kept.seen_at, kept.shared, kept.shared_at) == (2.0, "two boards", 1.0)


def test_a_device_is_either_written_or_forgotten_and_no_list_grows_for_ever():
    unsaved = Unsaved()
    unsaved.add_device(seen(), reported=True)
    unsaved.forget("a")
    assert unsaved.batch((), SERVICE, ()) == Batch(forgotten=("a",), service=SERVICE)
    unsaved.add_device(seen())
    assert unsaved.batch((), SERVICE, ()) == Batch(devices=(seen(),), service=SERVICE)
    for k in range(FORGOTTEN_KEPT + 10):
        unsaved.forget(str(k))
    assert len(unsaved.batch((), SERVICE, ()).forgotten) == FORGOTTEN_KEPT


# ---------------------------------------------------------------- pipelines


def planned(configured=None, **changes):
    configured = configured or pipeline(**changes)
    tuning = Tuning(configured) if configured.goal is not None else None
    return PlannedPipeline(configured, Planner(configured.plan, floor=3), tuning, author="config")


def test_what_names_no_pipeline_here_is_refused():
    pipelines = Pipelines([planned()])
    assert pipelines.planned("fashion").name == "fashion"
    for find, name, words in (
        (pipelines.planned, "other", "'other' is not a pipeline of this orchestrator"),
        (pipelines.tuned, "other", "'other' is not a pipeline that is tuned here"),
        (pipelines.tuned, "fashion", "'fashion' is not a pipeline that is tuned here"),
    ):
        with pytest.raises(RemoteProtocolError, match=words):
            find(name)


def test_pipelines_settle_after_each_connect():
    one = planned()
    pipelines = Pipelines([one])
    assert not pipelines.are_settling
    pipelines.connected(10.0)
    assert pipelines.are_settling
    assert one.planner.step(10.0 + SETTLE_S).epoch == 4
    assert not pipelines.are_settling
    pipelines.disconnected()
    assert one.row(Role.OFFLINE).standing == "offline"
    assert one.row(Role.STANDBY).standing == "standby"


def test_a_report_tells_epochs_and_what_died_with_an_agent():
    one, other = planned(TUNED), planned(replace(pipeline(), name="other"))
    pipelines, fleet, learned = Pipelines([one, other]), Fleet({"fashion": 3}), []
    for boot in ("b1", "b2"):
        fleet.saw_state(0.0, state(boot=boot))
        fleet.saw_meta(meta(boot=boot))
        if boot == "b1":
            learned += one.take_audit(0.0, ROW, fleet.get("a"))
        (part,) = telemetry().pipelines
        part = replace(part, epoch=9, origin=replace(part.origin, audits_drawn=4 if boot == "b1" else 0))
        report = telemetry(boot=boot, pipelines=(part,))
        learned += pipelines.take_report(0.0, fleet.saw_telemetry(0.0, report), report)
    assert [(name, sample.audit.lost) for name, sample in learned] == [("fashion", False)] + [("fashion", True)] * 3
    assert (one.unsaved, one.tuning.audits, one.tuning.lost) == (4, 4, 3)
    assert (one.planner.floor, other.planner.floor) == (9, 3)


def test_a_plan_from_the_store_counts_only_where_it_is_newer():
    one = planned()
    one.follow(PlanRow(plan=plan(epoch=0, thresholds=(0.1, 0.1)), author="set-thresholds", at=0.0))
    assert (one.author, one.planner.wanted) == ("config", plan())
    one.follow(PlanRow(plan=plan(epoch=5, thresholds=(0.1, 0.1)), author="set-thresholds", at=0.0))
    assert (one.author, one.planner.wanted) == ("set-thresholds", plan(epoch=5, thresholds=(0.1, 0.1)))


@pytest.mark.parametrize(("configured", "wanted"), [(None, (0.1, 0.1)), (TUNED, (0.9, 0.8))])
def test_who_loses_an_epoch_yields_to_a_person_and_goes_on_with_what_is_tuned(configured, wanted):
    one = planned(configured)
    one.give_way(plan(epoch=4), plan(epoch=4, thresholds=(0.1, 0.1)))
    assert one.planner.wanted.thresholds == wanted
    assert one.planner.floor == 4


# ---------------------------------------------------------------- once more


def test_a_board_that_stays_behind_has_the_plan_published_ever_less_often():
    reminder, at = Reminder(), []
    reminder.published(-10.0, 3)
    for now_s in range(0, 4000, 2):
        reminder.reported(now_s, "a", is_behind=True)
        if reminder.is_due(now_s):
            at.append(now_s)
            reminder.published(now_s, 3)
    gaps = [later - earlier for earlier, later in pairwise(at)]
    assert gaps[:3] == [10, 20, 40]
    assert set(gaps[6:]) == {600}


def test_who_stays_behind_holds_up_no_other_and_a_new_plan_or_a_start_counts_anew():
    reminder = Reminder()

    def is_published(now_s, epoch=3):
        if due := reminder.is_due(now_s):
            reminder.published(now_s, epoch)
        return due

    for now_s in range(100):
        reminder.reported(now_s, "a", is_behind=True)
        is_published(now_s)
    reminder.reported(100.0, "a", is_behind=True)
    assert not is_published(100.0)
    reminder.reported(100.0, "b", is_behind=True)
    assert is_published(100.0)
    reminder.reported(101.0, "c", is_behind=True)  # Sent before the publish, for all that is known.
    assert not is_published(101.0 + REMIND_PAUSE_S)
    reminder.reported(110.0, "b", is_behind=False)
    reminder.reported(111.0, "b", is_behind=True)
    assert is_published(111.0)
    reminder.published(120.0, 4)
    reminder.reported(130.0, "a", is_behind=True)
    assert is_published(130.0, 4)
    reminder.started("a")
    reminder.started("b")
    assert not is_published(131.0, 4)
    assert is_published(130.0 + REMIND_PAUSE_S, 4)
    assert not is_published(200.0, 4)


def test_boards_are_called_until_one_answers_and_only_where_nothing_is_retained():
    caller = Caller()
    calls = [caller.step(0.0)]
    caller.connected(10.0)
    caller.heard(retained=False)  # A board that happens to start.
    calls += [caller.step(10.0 + at_s) for at_s in (0.5, WAIT_S, 2.0, WAIT_S + CALL_PAUSE_S)]
    caller.heard(retained=False)
    calls.append(caller.step(100.0))
    assert calls == [False, False, True, False, True, False]
    caller.connected(200.0)
    caller.heard(retained=True)
    assert not caller.step(300.0)
    caller.connected(400.0)
    caller.disconnected()
    assert not caller.step(500.0)


# ---------------------------------------------------------------- what a start goes on with


def test_a_first_start_begins_with_the_configuration(store):
    one = restored_pipeline(store, pipeline())
    assert (one.planner.wanted, one.planner.floor, one.tuning, one.author) == (plan(), 0, None, "config")
    tuned = restored_pipeline(store, TUNED)
    assert (tuned.author, tuned.unsaved) == ("tuner", 0)


def test_a_later_start_goes_on_with_the_last_plan_and_its_author(store):
    store.append_plan(PlanRow(plan=plan(thresholds=(0.5, 0.4)), author="set-thresholds", at=0.0))
    one = restored_pipeline(store, pipeline())
    assert (one.planner.wanted, one.author) == (plan(epoch=1, thresholds=(0.5, 0.4)), "set-thresholds")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: kept | {"of": ["another"]},
        lambda kept: {name: value for name, value in kept.items() if name != "tuners"},
        lambda kept: kept | {"tuners": 3},
        lambda kept: kept | {"intake": [["a"]]},
    ],
)
def test_a_tuning_that_cannot_be_restored_begins_anew_and_is_saved_soon(store, spoil, caplog):
    state_kept = json.loads(json.dumps(Tuning(TUNED).snapshot()))
    store.save(Batch(tunings=(TuningRow(pipeline="fashion", state=spoil(state_kept)),)))
    with pytest.raises(OtherTuningError, match="which the orchestrator begins anew"):
        restored_tuning(store, TUNED)
    one = restored_pipeline(store, TUNED)
    assert one.is_save_due
    assert one.tuning.snapshot() == Tuning(TUNED).snapshot()
    assert "tuning begins anew" in caplog.text


# ---------------------------------------------------------------- addresses


def test_an_orchestrator_reads_audits_only_of_what_it_tunes_and_births_only_where_asked():
    read = [topic for topic, _ in addresses.subscriptions(SITE, ("one", "two"), ("two",), None)]
    assert {topics.plan(SITE, "one"), topics.plan(SITE, "two"), topics.label(SITE, "two")} <= set(read)
    assert topics.label(SITE, "one") not in read
    assert topics.of_origin(SITE, "one", Kind.AUDIT, "+") not in read
    births = addresses.subscriptions(SITE, ("one", "two"), ("two",), "homeassistant/status")
    assert [topic for topic, _ in births] == [*read, "homeassistant/status"]


def test_a_call_names_who_calls_on_a_topic_of_its_own_and_is_not_retained():
    call = addresses.call(SITE, "fashion", "a1")
    address = topics.parse(call.topic)
    assert (address.kind, address.pipeline, address.sender) == (Kind.CALL, "fashion", "a1")
    assert decode(Call, call.payload) == Call(caller="a1")
    assert not call.delivery.retain


def test_the_will_is_the_claim_taken_back():
    back = addresses.claim(SITE, "a1", running=False)
    assert addresses.will_of(SITE, "a1") == (back.topic, back.payload)
    assert decode(Claim, back.payload) == Claim(orchestrator="a1", running=False)
    assert back.delivery.retain
