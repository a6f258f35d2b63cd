"""Brokers that hang up on what they do not like, or lack a feature; only what has to pass there may suffer."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.chaos import expected
from benchmarks.chaos.broker import RawBroker, make_broker
from benchmarks.chaos.packets import CONNECT, Packet
from benchmarks.chaos.proxy import REFUSED_PROTOCOL, HangUp, Proxy, Rule
from benchmarks.chaos.report import Report
from benchmarks.chaos.site import (
    PIPELINE,
    SAMPLES,
    Flow,
    Options,
    Publisher,
    Site,
    closing_all,
    images,
    open_site,
    stage_topic,
)

COUNT = 400
RATE_HZ = 60.0
ONLINE_S = 15.0
WATCHED_S = 12.0
"""After the last input, connections of so many seconds are counted: an agent that has settled makes none."""

MOST_LINES = 8
MOST_LATE_CONNECTIONS = 1


def _old(packet: Packet) -> HangUp | None:
    """A broker that knows no MQTT 5, and closes on packets over 1,500 bytes without a word."""
    if packet.kind == CONNECT and packet.level >= 5:
        return REFUSED_PROTOCOL
    return b"" if packet.size > 1500 else None


def _no_stage(packet: Packet) -> HangUp | None:
    return b"" if packet.topic == stage_topic(1, "far", "cam") else None


def _eight_filters(packet: Packet) -> HangUp | None:
    return b"" if len(packet.filters) > 8 else None


def _filter(name: str) -> Rule:
    def rule(packet: Packet) -> HangUp | None:
        return b"" if any(f.endswith(name) for f in packet.filters) else None

    return rule


def _no_will(packet: Packet) -> HangUp | None:
    return b"" if packet.has_will else None


def _no_retained(packet: Packet) -> HangUp | None:
    return b"" if packet.retain else None


def _no_qos(packet: Packet) -> HangUp | None:
    return b"" if packet.qos else None


@dataclass(frozen=True, slots=True)
class Case:
    """What is broken. `travel` says whether inputs can leave the board, `replay` that they do not come by MQTT.

    `lines` are mosquitto's, for what it can break by itself; `pipelines` are so many further ones on the board.
    """

    what: str
    rule: Rule | None = None
    lines: tuple[str, ...] = ()
    travel: bool = True
    replay: bool = False
    qos: int = 1
    pipelines: int = 0


KINDS: dict[str, Case] = {
    "old": Case("refuses MQTT 5, closes on packets over 1,500 bytes", _old, travel=False),
    "stage": Case("closes on PUBLISH to stage/1", _no_stage, travel=False),
    "filters": Case("closes on SUBSCRIBE with more than 8 filters", _eight_filters, pipelines=4),
    "plan": Case("closes on SUBSCRIBE to the plan", _filter("/plan")),
    "own-stage": Case("closes on SUBSCRIBE to the stage that the board serves", _filter("/stage/0/cam/+")),
    "members": Case("closes on SUBSCRIBE to announcements", _filter("/member/1/+"), travel=False),
    "will": Case("closes on CONNECT with a will", _no_will),
    "retained": Case("closes on retained PUBLISH", _no_retained),
    "qos": Case("closes on PUBLISH at QoS 1", _no_qos),
    "retain-available": Case("mosquitto with retain_available false", lines=("retain_available false",)),
    "max-qos": Case("mosquitto with max_qos 0", lines=("max_qos 0",), qos=0),
    "max-packet": Case(
        "mosquitto with max_packet_size 700",
        lines=("max_packet_size 700",),
        travel=False,
        replay=True,
        pipelines=2,  # so that telemetry is longer too
    ),
}
CASES = tuple(KINDS)


def run(report: Report, name: str, options: Options) -> None:
    case = KINDS[name]
    report.note(broker=case.what)
    with (
        RawBroker(*case.lines) if case.lines else make_broker(options.broker) as broker,
        open_site(broker.port, options, qos=case.qos) as site,
    ):
        proxy, publisher = Proxy(broker.port, case.rule), Publisher(broker.port)
        with closing_all(proxy, publisher):
            # A broker without a feature is without it for both; one that hangs up does so to the origin alone.
            site.agent("far", [1, 2], ready=not case.lines)
            _play(report, case, site, proxy, publisher)


def _play(report: Report, case: Case, site: Site, proxy: Proxy, publisher: Publisher) -> None:
    pool, observer = images()[:COUNT], site.observer
    origin: dict[str, Any] = {"deadline_ms": 3000, "source": {"kind": "mqtt"}}
    if case.replay:
        origin["source"] = {"kind": "replay", "path": str(SAMPLES), "rate_hz": RATE_HZ, "max_inputs": COUNT}
    more = [{"name": f"spare{k}", "bundle": PIPELINE, "stages": [0]} for k in range(case.pipelines)]
    site.agent("cam", [0], origin=origin, port=proxy.port, more=more, ready=False)
    # Where states cannot be retained, or published at all, an answer is what tells.
    is_ready = observer.until(lambda: observer.ready("cam"), ONLINE_S)
    names = [str(index) for index in range(COUNT)]
    if case.replay:
        time.sleep(COUNT / RATE_HZ)
    else:
        names = Flow(publisher, "cam", pool).send(COUNT, "h", rate_hz=RATE_HZ, qos=case.qos)
        with contextlib.suppress(Exception):
            publisher.settle(10.0)
    observer.until(lambda: all(observer.by_name.get(each) for each in names), 10.0)
    late_from = time.monotonic()
    time.sleep(WATCHED_S)
    with observer.lock:
        found = [observer.by_name.get(each, []) for each in names]
        books = observer.books.get("cam")
    exits = Counter(str(answers[0].exit) for answers in found if answers)
    wanted = expected.answers(pool)
    may_travel = np.array([case.travel or exit == 0 for _, exit in wanted])
    labelled = np.array([any(answer.label is not None for answer in answers) for answers in found])
    right = np.array(
        [
            bool(answers) and (answers[0].class_id, answers[0].exit) == want
            for answers, want in zip(found, wanted, strict=True)
        ]
    )
    lines = site.grave("cam")
    late = sum(at >= late_from for at in proxy.opened_at)
    owed = int(may_travel.sum())
    report.note(
        ready=is_ready,
        answered=sum(bool(answers) for answers in found),
        labelled=int(labelled.sum()),
        owed=owed,
        as_evaluated=int((right & may_travel).sum()),
        exits=dict(sorted(exits.items())),
        warnings=len(lines),
        connections=proxy.connections,
        late_connections=late,
        hangups=proxy.hangups,
        longest_subscribe=len(proxy.filters),
        books="none" if books is None else f"{books.accepted}/{books.answered}/{books.pending}",
    )
    if lines:
        report.note(first_warning=repr(lines[0][:160]))
    unserved = int((may_travel & ~labelled).sum())
    report.check(not unserved, f"{unserved} of {owed} inputs that need not pass there have no label")
    wrong = int((may_travel & labelled & ~right).sum())
    report.check(not wrong, f"{wrong} of {owed} inputs that need not pass there are not answered as evaluated")
    report.check(len(lines) <= MOST_LINES, f"{len(lines)} log lines of WARNING or above")
    report.check(bool(lines) or bool(right.all()), "inputs suffer, and no log line of WARNING or above says so")
    report.check(late <= MOST_LATE_CONNECTIONS, f"{late} connections in the last {WATCHED_S:g} s: it does not settle")
    report.check("cam" in site.alive(), f"the agent has ended; its log ends: {site.log('cam')[-200:]!r}")
