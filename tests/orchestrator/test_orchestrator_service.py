import contextlib
import logging
import sqlite3
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_transport import MemoryBroker
from message_samples import EVENT
from orchestrator_samples import MASKED, SITE, meta, plan, stage, state, telemetry, wide_pipeline
from orchestrator_site import PLAN, Heard, OrchestratorSite
from thoroughness import often

from distree import topics
from distree.errors import SAME_BUNDLE
from distree.messages.codec import decode, encode
from distree.messages.device import DeviceStatus
from distree.messages.events import Event
from distree.messages.limits import EPOCH_STEP, MAX_EPOCH
from distree.messages.member import Call
from distree.messages.plan import plan_hash
from distree.topics import Kind
from orchestrator.leadership import CLAIM_S, PATIENCE_S
from orchestrator.planner import ALARM_S, CALM_S, REASSERT_S, SETTLE_S
from orchestrator.store.database import Store
from orchestrator.store.journal import EVENTS_WAITING
from orchestrator.store.records import PlanRow


@pytest.fixture
def site(tmp_path):
    made = OrchestratorSite(tmp_path / "orchestrator.db")
    yield made
    made.stop()


def test_the_configured_plan_is_published_after_a_short_wait(site):
    site.service.turn(0.0)
    assert site.published is None
    site.pass_time(SETTLE_S + 0.5)
    assert site.published == plan(epoch=1)
    assert site.store.latest_plan("fashion").plan == plan(epoch=1)


def test_a_retained_plan_of_the_same_content_is_adopted(site):
    site.peer.say(plan(epoch=40))
    site.pass_time()
    assert site.published == plan(epoch=40)
    assert site.store.latest_plan("fashion").plan == plan(epoch=40)


def test_the_plan_of_a_wide_pipeline_has_thresholds_for_missing_branches_and_survives_a_restart(tmp_path):
    with contextlib.closing(OrchestratorSite(tmp_path / "x.db", make=wide_pipeline)) as site:
        site.pass_time()
        assert site.published == plan(epoch=1, masked=MASKED)
        site.stop()
        site.start()
        site.pass_time()
        assert site.published == plan(epoch=1, masked=MASKED)
        assert site.store.pipeline("fashion").branches == (2, 2, 2)
        # The same without them is another content.
        site.peer.say(plan(epoch=7))
        site.pass_time()
        assert site.published == plan(epoch=1, masked=MASKED)


def test_a_retained_plan_with_the_same_thresholds_for_missing_branches_is_adopted(tmp_path):
    with contextlib.closing(OrchestratorSite(tmp_path / "x.db", make=wide_pipeline)) as site:
        site.peer.say(plan(epoch=40, masked=MASKED))
        site.pass_time()
        assert site.published == plan(epoch=40, masked=MASKED)


def test_plans_tell_how_long_stages_take_and_no_oftener_than_worth_it(site, caplog):
    caplog.set_level(logging.INFO)

    def say(sequence, compute_s):
        stages = tuple(replace(stage(k), queue_s=0.0, compute_s=compute_s) for k in range(3))
        part = replace(telemetry().pipelines[0], stages=stages)
        site.peer.say(telemetry(sequence=sequence, pipelines=(part,)))
        site.pass_time(3.0)

    site.pass_time()
    site.peer.say(state(), meta())
    say(1, 0.010)
    assert site.published == replace(plan(epoch=1), rest_s=(0.010, 0.010))
    for sequence in range(2, 20):
        say(sequence, 0.015)
    assert site.published.rest_s == (0.010, 0.010)
    say(20, 0.030)
    assert site.published.rest_s == (0.030, 0.030)
    say(21, 0.001)
    assert site.published.rest_s == (0.030, 0.030)
    site.stop()
    site.start()
    site.pass_time()
    # All of that is one decision.
    assert site.published == replace(plan(epoch=1), rest_s=(0.030, 0.030))
    assert len(site.store.plans("fashion")) == 1
    published = [r.getMessage() for r in caplog.records if "published epoch" in r.getMessage()]
    assert published == ["pipeline fashion: published epoch 1: max_softmax 0.9 0.8"] * 2


def test_a_restart_publishes_the_same_epoch(site):
    site.pass_time()
    site.stop()
    site.broker.stop(forget=True)
    site.broker.start()
    site.start()
    site.pass_time()
    assert site.published == plan(epoch=1)


def test_thresholds_set_from_outside_are_published_at_once_and_survive_a_restart(site):
    site.pass_time()
    with Store(site.path) as other:
        other.append_plan(PlanRow(plan=plan(thresholds=(0.5, 0.4)), at=0.0))
    site.pass_time(0.5)
    assert site.published == plan(epoch=2, thresholds=(0.5, 0.4))
    site.stop()
    site.start()
    site.pass_time()
    assert site.published == plan(epoch=2, thresholds=(0.5, 0.4))


def test_an_edited_configuration_takes_effect_at_the_next_start(site):
    site.pass_time()
    with Store(site.path) as other:
        other.append_plan(PlanRow(plan=plan(thresholds=(0.5, 0.4)), at=0.0))
    site.pass_time()
    site.stop()
    site.start(thresholds=(0.6, 0.6))
    site.pass_time()
    assert site.published == plan(epoch=3, thresholds=(0.6, 0.6))


def test_a_new_bundle_takes_effect_at_the_next_start(site):
    site.pass_time()
    site.stop()
    site.start(revision="r2")
    site.pass_time()
    assert site.published == plan(epoch=2, revision="r2")


def test_a_plan_set_while_away_takes_effect_at_the_first_start(tmp_path):
    path = tmp_path / "x.db"
    with Store(path) as store:
        store.append_plan(PlanRow(plan=plan(thresholds=(0.5, 0.4)), at=0.0))
    site = OrchestratorSite(path)
    site.pass_time()
    assert site.published == plan(epoch=1, thresholds=(0.5, 0.4))
    site.stop()


def fight(site, count=20, pause_s=0.5):
    for _ in range(count):
        site.peer.say(plan(epoch=site.published.epoch + 1, thresholds=(0.1, 0.1)))
        site.pass_time(pause_s)


def test_who_is_overruled_again_and_again_raises_an_alarm_and_keeps_trying(site, caplog):
    site.pass_time()
    fight(site)
    assert site.published.thresholds == (0.1, 0.1)
    warnings = [r.getMessage() for r in caplog.records if "foreign plan" in r.getMessage()]
    assert len(warnings) == 2
    assert "PREEMPTED" in warnings[1]
    site.pass_time()
    known = site.store.pipeline("fashion")
    assert known.standing == "preempted"
    assert "distree orchestrator reset-plan --pipeline fashion" in known.alarm
    site.pass_time(REASSERT_S)
    assert site.published == plan(epoch=1)
    fight(site, count=1, pause_s=ALARM_S)
    assert len([r for r in caplog.records if "PREEMPTED" in r.getMessage()]) == 2
    site.pass_time(CALM_S)
    assert site.store.pipeline("fashion").standing == "leading"
    assert site.store.pipeline("fashion").alarm == ""


def reset(site):
    wanted = site.store.latest_plan("fashion").plan
    with Store(site.path) as other:
        other.append_plan(PlanRow(plan=replace(wanted, epoch=1), at=0.0, is_reset=True))


def test_a_reset_is_published_at_once_whatever_others_did(site):
    site.pass_time()
    with Store(site.path) as other:
        other.append_plan(PlanRow(plan=plan(thresholds=(0.5, 0.4)), at=0.0))
    site.pass_time()
    fight(site)
    site.peer.raw(PLAN, b"garbage", retain=True)
    site.pass_time()
    reset(site)
    site.pass_time(1.5)
    assert site.published == plan(epoch=1, thresholds=(0.5, 0.4))
    known = site.store.pipeline("fashion")
    assert (known.standing, known.alarm, known.highest_epoch) == ("leading", "", 1)


def test_a_forged_plan_is_replaced_whatever_its_number(site):
    site.pass_time()
    for epoch in (1, 2, EPOCH_STEP + 1, MAX_EPOCH):
        site.peer.say(plan(epoch=epoch, thresholds=(0.0, 0.0)))
        site.pass_time(CALM_S + 1.0)
        assert site.published == plan(epoch=1)
    site.stop()
    site.peer.say(plan(epoch=MAX_EPOCH, thresholds=(0.0, 0.0)))
    site.start()
    site.pass_time()
    assert site.published == plan(epoch=1)


def test_a_plan_with_an_impossible_number_is_no_plan(site, caplog):
    site.pass_time()
    for epoch in (0, MAX_EPOCH + 1, 1 << 53):
        site.peer.say(plan(epoch=epoch, thresholds=(0.0, 0.0)))
        site.pass_time(1.0)
        assert site.published == plan(epoch=1)
    assert f"epoch: expected an integer from 1 to {MAX_EPOCH}" in caplog.text


def both(one, other, seconds=5.0):
    for _ in range(int(seconds / 0.25)):
        one.clock.now += 0.25
        other.clock.now = one.clock.now
        one.service.turn(0.0)
        other.service.turn(0.0)


@pytest.fixture
def second(site, tmp_path):
    """An orchestrator of other thresholds that comes later."""
    site.pass_time()
    made = OrchestratorSite(tmp_path / "other.db", broker=site.broker, client_id="a-second", thresholds=(0.2, 0.2))
    yield made
    made.stop()


def test_a_second_orchestrator_publishes_nothing_and_says_so_in_one_line(site, second, caplog):
    both(site, second, 60.0)
    assert site.published == plan(epoch=1)
    assert second.store.pipeline("fashion").standing == "standby"
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        "another orchestrator (orchestrator) runs this site: this one (a-second) publishes nothing and stands by; "
        "stop one of them, or leave this one to take over"
    ]


def test_who_stands_by_takes_over_when_the_leader_stops(site, second):
    both(site, second)
    site.stop()
    second.pass_time()
    assert second.published == plan(epoch=2, thresholds=(0.2, 0.2))
    # The first one comes back, and now it is the one that stands by.
    site.start()
    both(second, site)
    assert site.store.pipeline("fashion").standing == "standby"
    assert second.published == plan(epoch=2, thresholds=(0.2, 0.2))


def test_who_stands_by_takes_over_when_the_leader_dies(site, second):
    both(site, second)
    site.broker.drop(site.client_id)
    second.pass_time()
    assert second.published == plan(epoch=2, thresholds=(0.2, 0.2))


def test_who_stands_by_takes_over_when_the_leader_is_silent_for_long(site, second):
    both(site, second)
    second.pass_time(PATIENCE_S - CLAIM_S - 1.0)
    assert second.published == plan(epoch=1)
    second.pass_time(CLAIM_S + 3.0)
    assert second.published == plan(epoch=2, thresholds=(0.2, 0.2))


def test_of_two_that_start_at_once_one_stays(tmp_path):
    broker = MemoryBroker()
    one = OrchestratorSite(tmp_path / "one.db", broker=broker, client_id="one")
    two = OrchestratorSite(tmp_path / "two.db", broker=broker, client_id="two", thresholds=(0.2, 0.2))
    both(one, two, 30.0)
    assert {one.store.pipeline("fashion").standing, two.store.pipeline("fashion").standing} == {"leading", "standby"}
    assert one.published.epoch <= 3
    one.stop()
    two.stop()


def test_devices_their_reports_and_their_end_are_kept(site):
    site.pass_time()
    site.peer.say(state(), meta(), telemetry(epoch=1))
    site.pass_time()
    (seen,) = site.store.devices()
    assert (seen.meta, seen.telemetry) == (meta(), telemetry(epoch=1))
    assert site.store.history_length() == 2
    site.peer.raw(topics.device(SITE, "a", Kind.STATE), b"", retain=True)
    site.pass_time()
    assert site.store.devices() == ()
    assert len(site.service.view.fleet) == 0


def test_reports_are_written_once_a_second_at_most(site, monkeypatch):
    written = []
    save = site.store.save
    monkeypatch.setattr(site.store, "save", lambda batch: (written.append(site.clock.now), save(batch)))
    for sequence in range(40):
        site.peer.say(telemetry(sequence=sequence))
        site.pass_time(0.25)
    gaps = [later - earlier for earlier, later in pairwise(written)]
    assert 5 <= len(written) <= 11
    assert min(gaps) >= 1.0
    quiet = len(written)
    site.pass_time(60.0)
    assert len(written) <= quiet + 1


def test_a_device_that_follows_another_plan_is_published_this_one_again(site):
    site.pass_time(10.0)
    heard = Heard(site, PLAN)
    heard.since()
    site.peer.say(state(), meta(), telemetry(epoch=30, follows=plan_hash(plan(thresholds=(0.1, 0.1)))))
    site.pass_time()
    assert heard.since() == [(PLAN, encode(plan(epoch=1)))]


def test_no_report_uses_up_numbers(site):
    site.pass_time()
    for sequence in range(1, 9):
        site.peer.say(telemetry(sequence=sequence, epoch=MAX_EPOCH - sequence, follows="forged"))
        site.pass_time(40.0)
    assert site.store.pipeline("fashion").highest_epoch == 1


def test_a_board_that_holds_a_number_far_below_gets_one_that_it_takes(site):
    site.stop()
    with Store(site.path) as other:
        other.append_plan(PlanRow(plan=plan(epoch=5 + EPOCH_STEP), at=0.0))
    site.start()
    site.pass_time(10.0)
    assert site.published == plan(epoch=5 + EPOCH_STEP)
    site.peer.say(state(), meta(), telemetry(epoch=3, follows="another"))
    site.pass_time()
    assert site.published == plan(epoch=1)


def test_a_lost_connection_and_a_forgetful_broker_heal(site, caplog):
    site.pass_time()
    site.broker.stop(forget=True)
    site.pass_time()
    assert site.store.service().online is False
    site.broker.start()
    site.pass_time()
    assert site.published == plan(epoch=1)
    assert site.store.service().online is True
    assert len([r for r in caplog.records if "broker stopped" in r.getMessage()]) == 1


@pytest.mark.parametrize("phase_s", [0.0, 0.25, 0.5, 0.75])
def test_the_store_says_within_a_turn_whether_plans_can_be_published(site, phase_s):
    site.pass_time(2.0 + phase_s)
    for change, online in ((site.broker.stop, False), (site.broker.start, True)):
        change()
        site.service.turn(0.0)
        assert site.store.service().online is online


def test_a_locked_store_ends_nothing_and_is_told_once(site, caplog):
    site.pass_time()
    with contextlib.closing(sqlite3.connect(site.path, isolation_level=None)) as other:
        site.store.sql.run("PRAGMA busy_timeout = 1")
        other.execute("BEGIN IMMEDIATE")
        site.peer.say(state(), telemetry())
        site.pass_time(5.0)
        other.execute("ROLLBACK")
    assert len([r for r in caplog.records if "locked" in r.getMessage()]) == 1
    site.pass_time()
    assert site.store.devices()[0].telemetry == telemetry()


def test_silence_is_told(site, caplog):
    caplog.set_level(logging.INFO)
    site.pass_time()
    site.peer.say(state(), telemetry())
    site.pass_time(60.0)
    site.peer.say(telemetry(sequence=2))
    site.pass_time(6.0)
    told = [r.getMessage() for r in caplog.records if "telemetry" in r.getMessage()]
    assert told == [
        "board a: no more telemetry, although the broker still counts it as connected; see whether it is overloaded or "
        "its network is bad",
        "board a: telemetry has resumed after 30 s",
    ]


def test_where_inputs_cannot_go_on_is_told_once(site, caplog):
    site.peer.say(meta(), state())
    site.pass_time(2.0)
    site.peer.say(meta(device="b1", stages=(1, 2), origin=False, revision="r2"), state(device="b1"))
    site.pass_time(60.0)
    told = [r.getMessage() for r in caplog.records if "stage" in r.getMessage()]
    assert told == [
        f"pipeline fashion: no board serves stage {k} with bundle revision r1 (b1 has r2); {SAME_BUNDLE}"
        for k in (1, 2)
    ]


def test_a_board_that_starts_is_published_the_plan_again(site):
    site.pass_time(10.0)
    heard = Heard(site, PLAN)
    heard.since()
    site.peer.say(meta(), state())
    site.peer.say(meta(device="b"), state(device="b"))
    site.pass_time(1.0)
    assert heard.since() == [(PLAN, encode(plan(epoch=1)))]
    # Neither a reconnect nor a description makes a start; boards that start together need but one.
    site.peer.say(state(status="lost"), state(), meta())
    site.pass_time(20.0)
    assert heard.since() == []
    for k in range(8):
        site.peer.say(state(device=f"c{k}"))
        site.pass_time(0.5)
    site.pass_time(20.0)
    assert heard.since() == [(PLAN, encode(plan(epoch=1)))] * 2
    assert site.store.pipeline("fashion").standing == "leading"


def test_a_board_of_another_pipeline_starts_without_the_plan(site):
    site.pass_time(10.0)
    heard = Heard(site, PLAN)
    heard.since()
    site.peer.say(meta(name="other"), state())
    site.pass_time(10.0)
    assert heard.since() == []


def test_a_board_that_is_behind_is_published_the_plan_again_ever_less_often(site):
    site.pass_time(10.0)
    heard = Heard(site, PLAN)
    site.peer.say(state(), meta())
    site.pass_time(10.0)
    heard.since()
    for sequence in range(1, 31):
        site.peer.say(telemetry(sequence=sequence, follows="another"))
        site.pass_time(2.0)
    assert heard.since() == [(PLAN, encode(plan(epoch=1)))] * 3
    site.peer.say(telemetry(sequence=31, epoch=1))
    site.pass_time(60.0)
    assert heard.since() == []
    # Who reports that it follows, and later that it does not, has missed another one.
    site.peer.say(telemetry(sequence=32, follows="another"))
    site.pass_time(1.0)
    assert len(heard.since()) == 1
    assert site.store.plans("fashion")[0].plan.epoch == 1


def test_a_store_that_is_locked_keeps_no_plan_from_a_board_that_starts(site):
    site.pass_time(10.0)
    heard = Heard(site, PLAN)
    heard.since()
    with contextlib.closing(sqlite3.connect(site.path, isolation_level=None)) as other:
        site.store.sql.run("PRAGMA busy_timeout = 1")
        other.execute("BEGIN IMMEDIATE")
        site.peer.say(state())
        site.pass_time(5.0)
        other.execute("ROLLBACK")
    assert len(heard.since()) == 1


def test_who_stands_by_publishes_no_plan_again_and_calls_nobody(site, second):
    both(site, second, 20.0)
    site.peer.say(meta(), state(), telemetry(follows="another"))
    heard, calls = Heard(site, PLAN), Heard(site, topics.call(SITE, "fashion", "+"))
    heard.since()
    both(site, second, 4.0)
    assert heard.since() == [(PLAN, encode(plan(epoch=1)))]
    site.broker.stop(forget=True)
    site.broker.start()
    calls.transport.connect_now(1.0)
    both(site, second, 30.0)
    assert {decode(Call, payload).caller for _, payload in calls.since()} == {site.client_id}


def test_boards_are_asked_what_they_are_where_nothing_is_retained_and_until_one_says_it(site):
    topic = topics.call(SITE, "fashion", site.client_id)
    calls = Heard(site, topic)
    site.pass_time(0.5)
    assert calls.since() == []
    site.pass_time(15.0)
    assert calls.since() == [(topic, encode(Call(caller=site.client_id)))] * 2
    site.peer.say(state(), meta())
    site.pass_time(30.0)
    assert calls.since() == []
    site.stop()
    site.start()
    site.pass_time(30.0)
    assert calls.since() == []  # The broker has retained it.


def test_two_boards_of_one_name_are_told_of_once_kept_and_refused_nothing(site, caplog):
    site.pass_time()
    for sequence in range(1, 40):
        for boot in ("b1", "b2"):
            site.peer.say(state(boot=boot), telemetry(boot=boot, sequence=sequence))
        site.pass_time(0.5)
    site.pass_time()
    line = "two boards use the id a (boots b1, b2); give one of them another id"
    assert [r.getMessage() for r in caplog.records if "use the id" in r.getMessage()] == [line]
    assert site.store.devices()[0].shared == line
    assert site.service.refused == {}
    assert site.service.view.fleet.get("a").telemetry.sequence == 39


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        (topics.device(SITE, "a", Kind.STATE), b"{", "encoding"),
        (topics.device(SITE, "a", Kind.STATE), encode(state(device="b")), "device"),
        (topics.device(SITE, "a", Kind.TELEMETRY), encode(telemetry(device="b")), "device"),
        (topics.device(SITE, "a", Kind.TELEMETRY), encode(plan()), "kind"),
        (topics.device(SITE, "A_", Kind.TELEMETRY), b"", "topic"),
        (PLAN, encode(plan(pipeline="other", epoch=9)), "pipeline"),
        (PLAN, b"garbage", "encoding"),
        (PLAN, b"", "encoding"),
    ],
)
def test_what_breaks_the_protocol_is_counted_and_told_once(site, caplog, topic, payload, reason):
    site.pass_time()
    for _ in range(2):
        site.peer.raw(topic, payload, retain=topic == PLAN)
        site.pass_time()
    assert site.service.refused == {reason: 2}
    assert len([r for r in caplog.records if "refused a message" in r.getMessage()]) == 1
    assert site.published == plan(epoch=1)
    site.peer.say(state())
    site.pass_time()
    assert {entry.reason: entry.count for entry in site.store.service().refused} == {reason: 2}


TOPICS = [topics.device(SITE, "a", kind) for kind in (Kind.STATE, Kind.META, Kind.TELEMETRY)] + [PLAN]
REAL = [encode(state()), encode(telemetry()), encode(plan(epoch=7))]
SPLICED = st.builds(
    lambda real, at, junk: real[: at % len(real)] + junk + real[at % len(real) + len(junk) :],
    st.sampled_from(REAL),
    st.integers(0, 1000),
    st.binary(min_size=1, max_size=4),
)


@settings(max_examples=often(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(TOPICS), st.one_of(st.binary(max_size=60), SPLICED)), max_size=12))
def test_whatever_bytes_come_it_lives_and_counts(site, messages):
    for topic, payload in messages:
        site.peer.raw(topic, payload)
    site.pass_time(3.0)
    sequence = 1 + (getattr(getattr(site.service.view.fleet.get("z"), "telemetry", None), "sequence", 0) or 0)
    site.peer.say(telemetry(device="z", sequence=sequence))
    site.pass_time(1.0)
    assert site.service.view.fleet.get("z").telemetry.sequence == sequence
    assert "z" in [row.device for row in site.store.devices()]


# ---------------------------------------------------------------- events


def test_a_lost_board_is_logged_published_and_kept(site, caplog):
    caplog.set_level(logging.INFO)
    ear = Heard(site, topics.site_event(SITE))
    site.pass_time(SETTLE_S + 0.5)
    site.peer.say(state())
    site.pass_time(1.0)
    site.peer.say(state(status=DeviceStatus.LOST))
    site.pass_time(2.0)
    site.peer.say(state(boot="b2"))
    site.pass_time(2.0)
    told = [decode(Event, payload) for _, payload in ear.since()]
    assert [(one.device, one.severity.value, one.what.split(":")[0]) for one in told] == [
        ("a", "info", "has started"),
        ("a", "warning", "lost"),
        ("a", "info", "is back after 2 s"),
    ]
    assert [row.event for row in site.store.events(10)] == told
    assert {row.sender for row in site.store.events(10)} == {""}
    assert "board a: is back after 2 s" in caplog.text


def test_what_boards_tell_is_kept_and_no_more_than_so_much(site):
    said = replace(EVENT, device="a")
    site.pass_time(1.0)
    topic = topics.device(SITE, "a", Kind.EVENT)
    site.peer.transport.publish(topic, encode(said), qos=1)
    site.peer.transport.publish(topic, encode(replace(said, device="b")), qos=1)
    site.pass_time(2.0)
    (row,) = (row for row in site.store.events(10) if row.sender)
    assert (row.sender, row.event) == ("a", said)
    assert site.service.refused == {"device": 1}
    for k in range(EVENTS_WAITING + 20):
        site.peer.transport.publish(topic, encode(replace(said, what=f"event {k}")), qos=1)
    site.pass_time(2.0)
    kept = site.store.events(1000)
    assert len(kept) <= EVENTS_WAITING + 1 + 1  # and that the message of another board was refused
    assert f"event {EVENTS_WAITING + 19}" in {row.event.what for row in kept}


def test_of_two_orchestrators_only_the_leader_tells_of_boards(site, second):
    both(site, second)
    ear = Heard(site, topics.site_event(SITE))
    site.peer.say(state())
    both(site, second)
    site.peer.say(state(status=DeviceStatus.LOST))
    both(site, second)
    told = [decode(Event, payload).what.split(":")[0] for _, payload in ear.since()]
    assert told == ["has started", "lost"]
    # The other one has it in its own store all the same.
    assert "lost" in {row.event.what.split(":")[0] for row in second.store.events(10)}
