"""The page in a real browser, on a real broker: what it shows, what it survives, and how it can be used."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from message_samples import EVENT

from benchmarks.browser import missing, prefer, resize
from benchmarks.dashboard import WARM_UP_S, faults, lines, soak
from broker_config.managed import WEBSOCKETS_USER, find_mosquitto
from device_agent.thumbnails import png
from distree import topics
from distree.messages.codec import encode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus, HeldStage
from distree.messages.events import EventKind, Severity, Thumbnail
from distree.messages.plan import MaskedThresholds, Plan, plan_hash
from distree.messages.request import Hop
from distree.messages.result import MissingBranch, Result, Stamp
from distree.messages.site import Claim
from distree.messages.telemetry import PipelineTelemetry, StageTelemetry, Telemetry
from distree.topics import Kind

SITE, PIPELINE = "lab", "fashion"
DASH = "\u2013"
RESULT_TOPIC = topics.of_origin(SITE, PIPELINE, Kind.RESULT, "cam1")
THUMBNAIL_TOPIC = topics.of_origin(SITE, PIPELINE, Kind.THUMBNAIL, "cam1")
RESULT = Result(
    request="r-1", site=SITE, pipeline=PIPELINE, origin="cam1", input="boot.png", label="Ankle boot", class_id=9,
    confidence=0.875, exit=0, reason="confident", final=True, late=False, attempt=1, latency_s=0.004, epoch=4,
    model="fashion", revision="4ab1fe8ae806", hops=(Hop(device="cam1", stage=0, queue_s=0.0005, compute_s=0.001),),
)  # fmt: skip
PLAN = Plan(
    pipeline=PIPELINE, epoch=4, model="fashion", revision="4ab1fe8ae806", criterion="max_softmax",
    thresholds=(0.9125, 1e300), masked=(MaskedThresholds(missing=(0, 2), thresholds=(1.0, 0.5)),), audit_rate=0.05,
    rest_s=(2.0, 0.001),
)  # fmt: skip
META = DeviceMeta(
    device="cam1", boot="b0", version="0.1.0", python="3.11", runtime="x 1", machine="armv7l", memory_mb=512,
    stages=(HeldStage(pipeline=PIPELINE, stage=0, model="fashion", revision="4ab1fe8ae806", branch=1),),
    origins=(PIPELINE,),
)  # fmt: skip


def encoded(result: Result) -> bytes:
    return encode(result, Stamp(time="2026-01-15T09:30:00.123+00:00", clock_synced=True))


def telemetry(device: str, plan: Plan) -> bytes:
    stage = StageTelemetry(
        stage=0, received=9, exited=0, forwarded=0, shed=0, expired=0, failed=0, duplicate=0, waiting=3, bytes_out=0,
        queue_s=0.0, compute_s=0.0,
    )  # fmt: skip
    part = PipelineTelemetry(
        pipeline=PIPELINE, epoch=plan.epoch, plan_hash=plan_hash(plan), revision=plan.revision, stages=(stage,),
        origin=None,
    )  # fmt: skip
    return encode(
        Telemetry(
            device=device, boot="b0", sequence=1, uptime_s=300.0, rss_bytes=54_000_000, dead_letters=2,
            offline_dropped=0, pipelines=(part,),
        )
    )  # fmt: skip


def announce(publisher: Any, device: str, status: DeviceStatus) -> None:
    state = encode(DeviceState(device=device, boot="b0", status=status))
    publisher.publish(Kind.STATE, topics.device(SITE, device, Kind.STATE), state)


def rows(page: Any) -> list[dict[str, str]]:
    script = """
      return [...document.querySelectorAll('#rows > li')].map((row) => Object.fromEntries(
        ['label', 'what .dim', 'sure .number', 'chip', 'reason', 'took', 'from'].map(
          (name) => [name, row.querySelector('.' + name).textContent])))
    """
    found: list[dict[str, str]] = page.driver.execute_script(script)
    return found


# ---------------------------------------------------------------- what it shows


def test_it_shows_results_newest_first(page: Any, publisher: Any) -> None:
    page.connect()
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(RESULT))
    later = replace(
        RESULT, request="r-2", input="", label=None, class_id=None, confidence=0.0, exit=None, reason="deadline",
        latency_s=12.5, hops=(),
    )  # fmt: skip
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(later))
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, final=False, late=True)))
    page.until(lambda: page.number("total") == 2 and page.number("late") == 1, "two results and a late one")
    first, second = rows(page)
    assert first.pop("from").startswith("fashion · cam1")
    assert second.pop("from").startswith("fashion · cam1")
    assert first == {
        "label": "no answer", "what .dim": "r-2", "sure .number": DASH, "chip": "no exit", "reason": "deadline",
        "took": "12.5 s",
    }  # fmt: skip
    assert second == {
        "label": "Ankle boot", "what .dim": "boot.png", "sure .number": "88 %", "chip": "exit 0",
        "reason": "confident", "took": "4.00 ms",
    }  # fmt: skip
    assert page.errors() == []


def test_it_keeps_a_bounded_list(page: Any, publisher: Any) -> None:
    page.connect()
    for k in range(100):
        publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, request=f"r-{k}", input=f"{k}.png")))
    page.until(lambda: page.number("total") == 100, "100 results")
    page.until(lambda: rows(page)[0]["what .dim"] == "99.png", "the newest")
    shown = [row["what .dim"] for row in rows(page)]
    assert len(shown) == 30
    assert shown == sorted(shown, key=lambda name: -int(name.split(".")[0]))


def test_it_shows_exits_with_thresholds_flow_and_where_time_went(page: Any, publisher: Any) -> None:
    page.connect()
    publisher.publish(Kind.PLAN, topics.plan(SITE, PIPELINE), encode(PLAN))
    # The number of a plan tells nothing: what boards follow is told by its hash.
    for device, held in (("cam1", replace(PLAN, epoch=9)), ("hub", replace(PLAN, thresholds=(0.5, 0.5)))):
        announce(publisher, device, DeviceStatus.READY)
        publisher.publish(Kind.TELEMETRY, topics.device(SITE, device, Kind.TELEMETRY), telemetry(device, held))
    for k in range(6):
        publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, request=f"a{k}")))
    # Two branches of stage 1 at a time: the slower counts. 10 = 1 (queue) + 5 (compute) + 4.
    hops = (
        Hop(device="cam1", stage=0, queue_s=0.0, compute_s=0.001),
        Hop(device="hub", stage=1, queue_s=0.001, compute_s=0.004),
        Hop(device="hub-b", stage=1, queue_s=0.0, compute_s=0.003),
    )
    for k in range(2):
        # The first of them lacks a branch, too, that nobody was there to run.
        lacking = (MissingBranch(branch=1, device="hub-b"), MissingBranch(branch=3, device=None))[: 2 - k]
        deep = replace(RESULT, request=f"b{k}", exit=2, reason="last", latency_s=0.01, hops=hops, missing=lacking)
        publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(deep))
    page.until(lambda: page.number("total") == 8 and "of 2 boards" in page.text(".plan"), "results and reports")
    page.until(lambda: page.text("tbody tr:nth-child(3) .count") == "2", "the table")
    assert page.text("h3") == "fashion"
    assert page.text(".card .bar .dim") == "fashion · 4ab1fe8ae806"
    assert page.text(".plan") == "max_softmax · epoch 4, in force on 1 of 2 boards · 5.0 % audited"
    table = page.driver.execute_script(
        "return [...document.querySelectorAll('tbody tr')].map((row) => [...row.children].map((c) => c.textContent))"
    )
    assert table == [
        ["0", "≥ 0.9125", "75 %", "6", "4.00 ms", "0.50 + 1.00 + 2.50 ms"],
        ["1", "never", "0 %", "0", DASH, ""],
        ["2", "last", "25 %", "2", "10.0 ms", "1.00 + 5.00 + 4.00 ms"],
    ]
    assert [row["reason"] for row in rows(page)[:2]] == [
        "last, branch 1 (hub-b) missing", "last, 2 branches missing",
    ]  # fmt: skip
    titles = page.driver.execute_script("return [...document.querySelectorAll('.reason')].map((cell) => cell.title)")
    assert titles[:3] == ["branch 1 (hub-b)", "branch 1 (hub-b), branch 3 (no board)", ""]


def test_without_a_plan_it_says_whose_thresholds_hold(page: Any, publisher: Any) -> None:
    page.connect()
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, epoch=0)))
    page.until(lambda: page.text(".plan") != "", "the pipeline")
    assert page.text(".plan") == "Thresholds of the bundle; no plan is published. Epoch 0"


def test_it_shows_devices_and_who_went_offline(page: Any, publisher: Any) -> None:
    page.connect()
    publisher.publish(Kind.META, topics.device(SITE, "cam1", Kind.META), encode(META))
    announce(publisher, "cam1", DeviceStatus.READY)
    announce(publisher, "hub", DeviceStatus.INIT)
    publisher.publish(Kind.TELEMETRY, topics.device(SITE, "cam1", Kind.TELEMETRY), telemetry("cam1", PLAN))
    claim = encode(Claim(orchestrator="o1", running=True))
    publisher.publish(Kind.ORCHESTRATOR, topics.orchestrator(SITE), claim)
    page.until(lambda: "MB · up" in page.text("#devices") and "o1" in page.text("#devices"), "the devices")
    page.until(lambda: page.text("#online") == "1 of 2 ready", "the count")
    assert page.text("#devices .name").split("\n") == ["cam1", "hub", "orchestrator"]
    assert page.text("#devices .pill").split("\n") == ["ready", "starting", "ready"]
    assert page.text("#devices li:first-child .serves") == "fashion: origin, stage 0, branch 1"
    assert page.text("#devices li:first-child .figures") == "54 MB · up 5 min · 3 waiting · 2 dead letters"
    announce(publisher, "cam1", DeviceStatus.LOST)
    publisher.publish(Kind.STATE, topics.device(SITE, "hub", Kind.STATE), b"")
    page.until(lambda: page.text("#devices .pill").split("\n") == ["offline", "ready"], "the will, and a device less")


def test_it_shows_events_newest_first_and_what_to_do(page: Any, publisher: Any) -> None:
    page.connect()
    publisher.publish(Kind.EVENT, topics.device(SITE, "cam1", Kind.EVENT), encode(EVENT))
    lost = replace(
        EVENT,
        device="b1",
        kind=EventKind.BOARD,
        severity=Severity.INFO,
        pipeline=None,
        what="is back after 9 s",
        remedy="",
        unsaid=0,
    )
    publisher.publish(Kind.SITE_EVENT, topics.site_event(SITE), encode(lost))
    publisher.publish(Kind.SITE_EVENT, topics.site_event(SITE), encode(replace(lost, device=None, what="all is well")))
    page.until(lambda: "all is well" in page.text("#events"), "the events")
    assert page.text("#events .about").split("\n") == ["orchestrator", "b1", "cam1 / fashion"]
    assert page.text("#events .pill").split("\n") == ["info", "info", "warning"]
    assert page.text("#events li:last-child .told") == "the camera is gone (and 2 times before)"
    assert page.text("#events li:last-child .remedy") == "plug it in"
    for k in range(30):
        publisher.publish(Kind.SITE_EVENT, topics.site_event(SITE), encode(replace(lost, what=f"event {k}")))
    page.until(lambda: "event 29" in page.text("#events"), "many events")
    assert len(page.text("#events .told").split("\n")) == 20


def test_it_shows_the_picture_of_an_input_whichever_comes_first(page: Any, publisher: Any) -> None:
    page.connect()
    picture = png(np.full((28, 20, 3), 200, np.uint8))

    def send_picture(request: str) -> None:
        publisher.publish(Kind.THUMBNAIL, THUMBNAIL_TOPIC, encode(Thumbnail(request=request, png=picture)))

    send_picture("before")
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, request="before")))
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, request="after")))
    page.until(lambda: len(rows(page)) == 2, "two results")
    send_picture("after")
    sizes = "return [...document.querySelectorAll('.thumb img')].map((i) => i.hidden ? 0 : [i.naturalWidth, i.naturalHeight])"
    page.until(lambda: page.driver.execute_script(sizes) == [[20, 28], [20, 28]], "two pictures")
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, request="none")))
    page.until(lambda: page.driver.execute_script(sizes) == [0, [20, 28], [20, 28]], "a result without one")
    assert page.errors() == []


# ---------------------------------------------------------------- connection


def test_a_broker_that_goes_and_comes_back(page: Any, publisher: Any) -> None:
    page.connect()
    announce(publisher, "cam1", DeviceStatus.READY)
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(RESULT))
    page.until(lambda: page.number("total") == 1 and page.text("#devices .pill") == "ready", "a result and a device")
    page.broker.stop()
    page.until(lambda: page.state == "lost", "the loss")
    assert page.line.startswith("Connection lost at ")
    assert page.line.endswith("; trying again")
    page.until(lambda: page.text("#devices .pill") == "not heard", "the device that is not heard")
    page.broker.start()
    page.until(lambda: page.state == "connected", "the recovery")
    publisher.connect()
    announce(publisher, "cam1", DeviceStatus.READY)
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, request="r-2")))
    page.until(lambda: page.number("total") == 2 and page.text("#devices .pill") == "ready", "what comes then")
    assert page.errors() == []


@pytest.mark.parametrize(
    ("user", "password", "told"),
    [
        (WEBSOCKETS_USER, "wrong", f"The broker refused user {WEBSOCKETS_USER}: wrong user name or password."),
        ("", "", "The broker requires a user name and a password."),
    ],
)
def test_a_refused_login_says_so_and_can_be_mended(page: Any, user: str, password: str, told: str) -> None:
    page.log_in(user, password)
    page.until(lambda: page.state == "refused", "the refusal")
    assert page.line == told
    assert page.find("#login").is_displayed()
    time.sleep(2.5)  # longer than it takes to try again, which must not happen by itself
    assert page.state == "refused"
    page.log_in()
    page.until(lambda: page.state == "connected", "the connection")
    assert not page.find("#login").is_displayed()
    assert page.driver.current_url == page.url
    page.find("#leave").click()
    page.until(lambda: page.state == "idle", "the end of the connection")
    assert page.find("#login").is_displayed()


def test_no_broker_says_so_and_comes_when_it_does(page: Any) -> None:
    page.broker.stop()
    page.log_in()
    page.until(lambda: page.state == "lost", "the failure")
    assert page.line.startswith(f"No answer from ws://127.0.0.1:{page.broker.websockets_port}; trying again.")
    page.broker.start()
    page.until(lambda: page.state == "connected", "the connection")


def test_another_site_begins_with_an_empty_page(page: Any, publisher: Any) -> None:
    page.connect()
    announce(publisher, "cam1", DeviceStatus.READY)
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(RESULT))
    page.until(lambda: page.number("total") == 1 and len(rows(page)) == 1, "a result")
    page.find("#leave").click()
    page.until(lambda: page.state == "idle", "the end of the connection")
    assert len(rows(page)) == 1
    page.find("#form button[type=submit]").click()
    page.until(lambda: page.state == "connected" and page.text("#devices .pill") == "ready", "the same again")
    assert page.number("total") == 1
    page.find("#leave").click()
    page.find("#site").send_keys("elsewhere")
    page.find("#form button[type=submit]").click()
    page.until(lambda: page.state == "connected", "another site")
    page.until(lambda: page.number("total") == 0 and page.text("#devices") == "", "an empty page")
    assert (rows(page), page.text("#pipelines")) == ([], "")
    assert page.errors() == []


# ---------------------------------------------------------------- hostile messages


def changed(payload: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(payload), **changes}).encode()


def repacked(payload: bytes, **changes: Any) -> bytes:
    packed: bytes = msgpack.packb({**msgpack.unpackb(payload), **changes})
    return packed


GOOD, GOOD_PLAN, GOOD_REPORT = encoded(RESULT), encode(PLAN), telemetry("cam1", PLAN)
PICTURE = png(np.zeros((8, 8, 1), np.uint8))
HUGE_PICTURE = PICTURE[:16] + struct.pack(">II", 60_000, 60_000) + PICTURE[24:]
BAD_STATE = {"schema": "distree.state/1", "device": "cam1", "boot": "b0"}


def thumbnail(picture: bytes) -> bytes:
    packed: bytes = msgpack.packb({"v": 1, "kind": "thumbnail", "request": "r-1", "png": picture})
    return packed


HOSTILE: list[tuple[str, bytes]] = [
    *[
        (RESULT_TOPIC, payload)
        for payload in (
            b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 30_000, GOOD[:-1], GOOD + b"x", b"x" * 40_000,
            changed(GOOD, schema="distree.result/2"), changed(GOOD, site="other"), changed(GOOD, origin="<b>cam1</b>"),
            changed(GOOD, confidence=float("nan")), changed(GOOD, latency_ms=float("inf")), changed(GOOD, confidence=-1),
            changed(GOOD, latency_ms="1"), changed(GOOD, exit=1.5), changed(GOOD, exit=32), changed(GOOD, exit=-1),
            changed(GOOD, label={"toString": "x"}), changed(GOOD, label="x" * 65), changed(GOOD, input="a\u202eb"),
            changed(GOOD, label="a\nb"), changed(GOOD, hops=[{}]), changed(GOOD, hops=[None] * 33), changed(GOOD, hops=7),
            changed(GOOD, reason="constructor"), changed(GOOD, final=1), changed(GOOD, epoch=2**53),
            b'{"__proto__": {"schema": "distree.result/1"}}',
        )
    ],
    *[
        (topics.plan(SITE, PIPELINE), payload)
        for payload in (
            b"\xc1", b"\x91" * 60_000, GOOD_PLAN[:-3], GOOD_PLAN + b"\x00", repacked(GOOD_PLAN, pipeline="other"),
            repacked(GOOD_PLAN, thresholds=[float("nan")]), repacked(GOOD_PLAN, thresholds=[0.5] * 33),
            repacked(GOOD_PLAN, criterion="<script>" * 9), repacked(GOOD_PLAN, v=2), b"\xdf\xff\xff\xff\xff",
            msgpack.packb({"__proto__": 1, "v": 1, "kind": "plan"}),
        )
    ],
    *[
        (topics.device(SITE, "cam1", Kind.TELEMETRY), payload)
        for payload in (
            b"\xdd\xff\xff\xff\xff", repacked(GOOD_REPORT, uptime_s=float("nan")), repacked(GOOD_REPORT, rss_bytes=-1),
            repacked(GOOD_REPORT, device="hub"), repacked(GOOD_REPORT, pipelines=[[]]), GOOD_REPORT + bytes(262_144),
        )
    ],
    (topics.device(SITE, "cam1", Kind.STATE), json.dumps({**BAD_STATE, "state": "<i>"}).encode()),
    (topics.device(SITE, "cam1", Kind.STATE), json.dumps({**BAD_STATE, "state": "ready", "device": "x"}).encode()),
    (topics.device(SITE, "cam1", Kind.META), b'{"schema": "distree.meta/1", "stages": "x"}'),
    *[
        (topic, payload)
        for topic in (topics.device(SITE, "cam1", Kind.EVENT), topics.site_event(SITE))
        for payload in (
            b"", b"{}", changed(encode(EVENT), severity="fatal"), changed(encode(EVENT), what="x" * 513),
            changed(encode(EVENT), what=None), changed(encode(EVENT), unsaid=-1), changed(encode(EVENT), device="<b>"),
        )
    ],
    (topics.device(SITE, "b1", Kind.EVENT), encode(EVENT)),
    (topics.orchestrator(SITE), b'{"schema": "distree.orchestrator/1", "orchestrator": "<b>", "running": true}'),
    *[
        (THUMBNAIL_TOPIC, payload)
        for payload in (
            thumbnail(b""), thumbnail(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>" * 3),
            thumbnail(b"GIF89a" + bytes(200)), thumbnail(b"\xff\xd8\xff\xe0" + bytes(200)), thumbnail(HUGE_PICTURE),
            thumbnail(PICTURE[:30]), thumbnail(PICTURE + bytes(70_000)), thumbnail("text" * 40),  # type: ignore[arg-type]
        )
    ],
]  # fmt: skip


def test_hostile_messages_do_nothing_but_count(page: Any, publisher: Any) -> None:
    page.connect()
    # What is refused must not have been the topic's fault: the same ones carry good messages at the end.
    for topic, payload in HOSTILE:
        publisher.publish(Kind.RESULT, topic, payload)
    publisher.publish(Kind.RESULT, f"distree/1/<b>{SITE}/pipeline/{PIPELINE}/plan", GOOD_PLAN)
    publisher.publish(Kind.RESULT, f"distree/1/{SITE}/pipeline/__proto__/plan", GOOD_PLAN)
    page.until(lambda: page.number("refused") == len(HOSTILE) + 2, f"{len(HOSTILE) + 2} refusals")
    assert (page.number("total"), rows(page), page.text("#devices"), page.text("#pipelines")) == (0, [], "", "")
    for topic, payload in (
        (RESULT_TOPIC, GOOD),
        (THUMBNAIL_TOPIC, thumbnail(PICTURE)),
        (topics.plan(SITE, PIPELINE), GOOD_PLAN),
        (topics.device(SITE, "cam1", Kind.TELEMETRY), GOOD_REPORT),
    ):
        publisher.publish(Kind.RESULT, topic, payload)
    page.until(lambda: page.number("total") == 1 and "epoch 4" in page.text(".plan"), "a good message after them")
    assert page.number("refused") == len(HOSTILE) + 2
    assert page.errors() == []


def test_markup_is_text(page: Any, publisher: Any) -> None:
    page.connect()
    markup = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"
    before = page.driver.execute_script("return document.querySelectorAll('main *').length")
    hostile = replace(RESULT, label=markup, input=markup, model=markup, revision=markup, request=markup)
    publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(hostile))
    publisher.publish(Kind.PLAN, topics.plan(SITE, PIPELINE), encode(replace(PLAN, criterion=markup, model=markup)))
    meta = replace(META, runtime=markup, origins=("<b>x</b>",), fusers=("<i>y</i>",))
    publisher.publish(Kind.META, topics.device(SITE, "cam1", Kind.META), encode(meta))
    told = replace(EVENT, what=markup, remedy=markup)
    publisher.publish(Kind.EVENT, topics.device(SITE, "cam1", Kind.EVENT), encode(told))
    page.until(lambda: markup in page.text(".plan") and "<i>y</i>" in page.text("#devices"), "the markup as text")
    page.until(lambda: markup in page.text("#events"), "the event's as well")
    assert rows(page)[0]["label"] == rows(page)[0]["what .dim"] == markup
    assert page.driver.execute_script("return document.querySelectorAll('main b, main i, main [onerror]').length") == 0
    assert page.driver.execute_script("return document.querySelectorAll('main *').length") > before
    assert page.driver.title == "DistrEE"
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 1280
    assert page.errors() == []


def test_broken_pictures_are_hidden_and_counted(page: Any, publisher: Any) -> None:
    page.connect()
    broken = PICTURE[:25] + b"\x09" + PICTURE[26:]  # a colour type that PNG does not have
    publisher.publish(Kind.THUMBNAIL, THUMBNAIL_TOPIC, thumbnail(broken))
    publisher.publish(Kind.RESULT, RESULT_TOPIC, GOOD)
    page.until(lambda: page.number("total") == 1 and page.number("refused") == 1, "a result without its picture")
    assert page.driver.execute_script("return document.querySelector('.thumb img').hidden") is True


def test_more_devices_and_pipelines_than_fit_are_counted(page: Any, publisher: Any) -> None:
    page.connect()
    for k in range(300):
        announce_at = topics.device(SITE, f"b{k:03}", Kind.STATE)
        state = DeviceState(device=f"b{k:03}", boot="b0", status=DeviceStatus.READY)
        publisher.publish(Kind.STATE, announce_at, encode(state))
    page.until(lambda: page.number("refused") == 300 - 256, "the devices")
    for k in range(70):
        publisher.publish(Kind.PLAN, topics.plan(SITE, f"p{k}"), encode(replace(PLAN, pipeline=f"p{k}")))
    page.until(lambda: page.number("refused") == 300 - 256 + 70 - 64, "the pipelines")
    page.until(lambda: page.text("#online") == "256 of 256 ready", "the count")


def test_made_up_devices_push_out_none_that_reports(page: Any, publisher: Any) -> None:
    page.connect()
    states = {name: topics.device(SITE, name, Kind.STATE) for name in ("cam1", *(f"b{k:03}" for k in range(300)))}
    for name, topic in states.items():
        publisher.publish(Kind.STATE, topic, encode(DeviceState(device=name, boot="b0", status=DeviceStatus.READY)))
        if name == "cam1":
            publisher.publish(Kind.TELEMETRY, topics.device(SITE, "cam1", Kind.TELEMETRY), telemetry("cam1", PLAN))
    page.until(lambda: page.number("refused") == 301 - 256, "the devices")
    shown = page.text("#devices")
    assert "cam1" in shown
    assert "b299" in shown
    assert "b000" not in shown


def test_a_flood_is_told_of(page: Any, publisher: Any) -> None:
    page.connect()
    # In bursts no larger than what a broker queues for one subscriber (mosquitto: 1,000), which drops the rest unseen.
    for sent in range(0, 2000, 500):
        for k in range(sent, sent + 500):
            publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, request=f"r-{k}")))
        page.until(lambda expected=sent + 500: page.number("total") == expected, "the burst")
    page.until(lambda: page.number("rate") == 0, "the end of the flood")
    # Shut eyes for a while: what waits to be drawn is bounded, and what is not drawn is told of.
    page.find("#pause").click()
    for k in range(100):
        publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, request=f"s-{k}", input=f"{k}")))
    before = page.number("dropped")
    page.until(lambda: page.number("total") == 2100, "100 results more")
    dropped = page.number("dropped")
    assert dropped >= max(before, 70)
    page.until(lambda: page.text("#skipped") == f"paused · 30 new · {dropped:,} results not shown", "the line")
    page.find("#pause").click()
    page.until(lambda: page.text("#skipped") == f"{dropped:,} results not shown", "the line")
    page.until(lambda: [row["what .dim"] for row in rows(page)] == [str(k) for k in range(99, 69, -1)], "the newest")


# ---------------------------------------------------------------- how it can be used


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(page: Any, publisher: Any, scheme: str) -> None:
    resize(page.driver, 320, 640, mobile=True)
    prefer(page.driver, scheme)
    page.driver.get(page.url)
    wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    assert page.driver.execute_script(wide) == [320, 320]
    page.connect()
    long = "x" * 64
    publisher.publish(Kind.PLAN, topics.plan(SITE, PIPELINE), encode(replace(PLAN, criterion=long)))
    publisher.publish(
        Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, label=long, input=long * 8, model=long, revision=long))
    )
    publisher.publish(Kind.META, topics.device(SITE, "d" * 32, Kind.META), encode(replace(META, device="d" * 32)))
    announce(publisher, "d" * 32, DeviceStatus.READY)
    publisher.publish(Kind.THUMBNAIL, THUMBNAIL_TOPIC, thumbnail(PICTURE))
    page.until(lambda: page.number("total") == 1 and "stage 0" in page.text("#devices"), "long words")
    assert page.driver.execute_script(wide) == [320, 320]
    script = """
      return [...document.querySelectorAll('body *')].filter((node) => {
        const box = node.getBoundingClientRect();
        return box.width > 1 && !node.closest('.skip') && (box.right > 320.5 || box.left < -0.5);
      }).map((node) => node.outerHTML.slice(0, 80))
    """
    inside = [html for html in page.driver.execute_script(script) if "<thead" not in html and "<th" not in html]
    assert [html for html in inside if 'role="row"' not in html] == []


CONTRAST = """
const rgb = (text) => text.match(/[0-9.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const colour = rgb(getComputedStyle(node).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const bad = [];
for (const node of document.querySelectorAll('body *')) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  if (!own || !node.getClientRects().length) continue;
  const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) bad.push([node.className || node.tagName, node.textContent.slice(0, 30), ratio]);
}
return bad;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(page: Any, publisher: Any, scheme: str) -> None:
    """4.5 to 1 or more, as WCAG 2 asks of text at level AA."""
    prefer(page.driver, scheme)
    page.driver.get(page.url)
    assert page.driver.execute_script(CONTRAST) == []
    page.connect()
    publisher.publish(Kind.PLAN, topics.plan(SITE, PIPELINE), GOOD_PLAN)
    for k, reason in enumerate(("confident", "deadline", "shed")):
        publisher.publish(Kind.RESULT, RESULT_TOPIC, encoded(replace(RESULT, request=f"r-{k}", reason=reason)))  # type: ignore[arg-type]
    for k, status in enumerate(DeviceStatus):
        announce(publisher, f"b{k}", status)
    page.until(lambda: len(rows(page)) == 3 and page.text("#online") == "1 of 5 ready", "something of each kind")
    assert page.driver.execute_script(CONTRAST) == []
    ground = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground.removeprefix("rgb(").rstrip(")").split(","))) < 200) == (scheme == "dark")


def test_a_keyboard_is_enough(page: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    page.driver.get(page.url)

    def press(*keys: str) -> None:
        ActionChains(page.driver).send_keys(*keys).perform()

    def focused() -> tuple[str, bool]:
        name, outlined = page.driver.execute_script(
            "const a = document.activeElement; return [a.id || a.className || a.textContent, "
            "a.matches(':focus-visible') && getComputedStyle(a).outlineStyle !== 'none']"
        )
        return name, outlined

    order = []
    for _ in range(8):
        press(Keys.TAB)
        order.append(focused())
    assert order == [
        (name, True)
        for name in ("skip", "broker", "site", "user", "password", "primary", "pause", "MQTT.js")
    ]  # fmt: skip
    page.driver.get(page.url)
    press(
        Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB, WEBSOCKETS_USER, Keys.TAB, page.broker.websockets_password, Keys.ENTER
    )
    page.until(lambda: page.state == "connected", "the connection")
    assert focused()[0] == "leave"
    press(Keys.TAB, Keys.SPACE)
    assert page.find("#pause").get_attribute("aria-pressed") == "true"
    page.driver.execute_script("document.querySelector('.skip').focus()")
    press(Keys.ENTER)
    assert focused()[0] == "results"


def test_it_says_what_it_is_to_a_screen_reader(page: Any) -> None:
    page.driver.get(page.url)
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node.get("ignored")}
    assert {
        ("banner", ""), ("main", ""), ("contentinfo", ""), ("status", ""), ("heading", "DistrEE"),
        ("region", "Connect to a broker"), ("region", "Exits, last minute"), ("region", "Results"), ("region", "Devices"),
        ("textbox", "User"), ("textbox", "Password"), ("button", "Connect"), ("button", "Pause"),
    } <= found  # fmt: skip
    assert page.find("#state").get_attribute("aria-live") == "polite"
    assert page.find("#password").get_attribute("type") == "password"


def test_it_asks_nobody_but_its_server_and_its_broker(page: Any, publisher: Any) -> None:
    page.connect()
    publisher.publish(Kind.RESULT, RESULT_TOPIC, GOOD)
    page.until(lambda: page.number("total") == 1, "a result")
    asked = page.driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked
    assert {url for url in asked if not url.startswith(page.url)} == set()
    # The policy holds: another broker is out of reach whatever the page's code would do.
    blocked = page.driver.execute_async_script(
        "const done = arguments[0]; document.addEventListener('securitypolicyviolation', (e) => done(e.blockedURI));"
        "try { new WebSocket('ws://127.0.0.1:1'); } catch (error) { done(String(error)); }"
    )
    assert "127.0.0.1:1" in blocked
    kept = "return [localStorage.length, sessionStorage.length, document.cookie, location.search, location.hash]"
    assert page.driver.execute_script(kept) == [0, 0, "", "", ""]


def test_fifty_results_a_second_leave_nothing_behind() -> None:
    problem = missing() or (None if find_mosquitto() else "mosquitto is not installed: apt install mosquitto")
    if problem is not None:
        pytest.skip(problem)
    figures = soak(10.0, 50.0)
    assert figures["sent"] > 50 * (WARM_UP_S + 5)
    assert faults(figures) == [], "\n".join(lines(figures))
