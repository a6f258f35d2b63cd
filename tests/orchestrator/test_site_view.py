"""One view of a site, live and out of a store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from orchestrator_samples import HASH, meta, origin, stage, state, telemetry

from distree.errors import RemoteProtocolError
from distree.messages.codec import encode
from distree.messages.telemetry import PipelineTelemetry
from distree.topics import Kind
from orchestrator.fleet import Fleet, ages_s
from orchestrator.site_view import (
    FollowedPlan,
    SiteView,
    answered_by_exit,
    board_view,
    device_row,
    serves_text,
    stored_devices,
)
from orchestrator.store.database import Store
from orchestrator.store.records import Batch


@pytest.fixture
def view():
    return SiteView({"fashion": 3})


def say(view, message, now_s=0.0, *, retained=False):
    kind = {"DeviceState": Kind.STATE, "DeviceMeta": Kind.META, "Telemetry": Kind.TELEMETRY}[type(message).__name__]
    return view.take(now_s, kind, message.device, encode(message), retained=retained)


def report(sequence, *, exits=(70, 20, 10), ran=100, device="a", boot="b1", **changes):
    made = replace(origin(exits=exits), answered=sum(exits))
    stages = (replace(stage(), exited=ran // 2, forwarded=ran - ran // 2, waiting=4),)
    part = PipelineTelemetry(pipeline="fashion", epoch=3, plan_hash=HASH, revision="r1", stages=stages, origin=made)
    return telemetry(device=device, boot=boot, sequence=sequence, pipelines=(part,), **changes)


@pytest.mark.parametrize(
    ("about", "text"),
    [
        ({"stages": (0, 1)}, "fashion:0,1,origin"),
        ({"stages": (0, 1), "branch": 1, "origin": False}, "fashion:0.1,1.1"),
        ({"stages": (), "fuser": True}, "fashion:fuser,origin"),
        ({"stages": (), "origin": False}, ""),
    ],
)
def test_what_a_board_serves_is_written_in_one_way(about, text):
    assert serves_text(meta(**about)) == text
    assert serves_text(None) == ""


def test_a_board_is_what_it_said(view):
    say(view, state())
    say(view, meta())
    (unheard,) = view.boards(0.0)
    assert (unheard.state, unheard.follows, unheard.waiting, view.rates("a")) == ("ready", (), None, None)
    say(view, report(1), 1.0)
    (board,) = view.boards(4.0)
    assert (board.state, board.is_silent, board.heard_s) == ("ready", False, 3.0)
    assert (board.serves, board.waiting, board.rss_bytes) == ("fashion:0,origin", 4, 30_000_000)
    assert board.follows == (FollowedPlan(pipeline="fashion", epoch=3, plan_hash=HASH),)
    assert view.boards(1.0 + 30.1)[0].is_silent


def test_rates_are_of_the_time_between_two_reports_of_one_run(view):
    say(view, report(1))
    rates = view.rates("a")
    assert (rates.runs_hz, rates.answers_hz, rates.early_share) == (10.0, 10.0, 0.9)
    say(view, report(2, exits=(75, 20, 15), ran=130))
    rates = view.rates("a")
    assert (rates.runs_hz, rates.answers_hz, rates.early_share) == (3.0, 1.0, 0.5)
    # A restarted board is counted from its start, and a run that is heard again from its own last report.
    say(view, report(1, exits=(4, 0, 0), ran=8, boot="b2", uptime_s=4.0))
    assert view.rates("a").runs_hz == 2.0
    say(view, report(3, exits=(75, 20, 15), ran=140))
    assert view.rates("a").runs_hz == 1.0
    view.forget("a")
    assert (view.boards(0.0), view.rates("a"), view.stats("fashion")) == ((), None, ())


def test_origins_of_a_pipeline_are_summed_up(view):
    say(view, report(1))
    say(view, report(1, device="b", exits=(10, 40)))
    assert answered_by_exit("fashion", view.fleet) == (80, 60, 10)
    assert answered_by_exit("other", view.fleet) == ()
    assert [one.origin for one in view.stats("fashion")] == ["a", "b"]
    assert view.stats("other") == ()


def test_a_start_is_told_from_what_is_retained(view):
    assert not say(view, state(), retained=True).has_started
    assert say(view, state(boot="b2")).has_started
    assert not say(view, state(boot="b2", status="lost")).has_started


def test_who_speaks_for_another_is_refused(view):
    for kind, message in ((Kind.STATE, state()), (Kind.META, meta()), (Kind.TELEMETRY, telemetry())):
        with pytest.raises(RemoteProtocolError, match="'a' on the topic of 'b'"):
            view.take(0.0, kind, "b", encode(message), retained=False)
    assert view.take(0.0, Kind.DEAD, "a", b"x", retained=False) is None
    assert len(view.fleet) == 0


def test_a_store_gives_the_same_view_as_the_live_site(view, tmp_path):
    say(view, state())
    say(view, meta())
    say(view, report(1))
    device = view.fleet.get("a")
    with Store(tmp_path / "x.db") as store:
        store.save(Batch(devices=(device_row(device, seen_at=100.0, heard_at=100.0),)))
        (stored,) = stored_devices(store)
    assert (stored.heard_at, stored.seen_at, stored.shared) == (100.0, 100.0, None)
    assert board_view(stored.device, 3.0) == view.boards(3.0)[0]


def test_a_board_that_only_the_broker_remembers_is_silent_after_the_longest_time():
    fleet = Fleet({"fashion": 3})
    device = fleet.saw_state(0.0, state(), retained=True)
    assert not board_view(device, *ages_s(device, 900.0)).is_silent
    assert board_view(device, *ages_s(device, 901.0)).is_silent
