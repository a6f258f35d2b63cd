"""60,000 messages that are none on an origin's input topic and as many on its outcome topic, while inputs flow."""

from __future__ import annotations

import random
import threading

import msgpack

from benchmarks.chaos.books import at_rest, check_next
from benchmarks.chaos.broker import make_broker
from benchmarks.chaos.report import Report
from benchmarks.chaos.scenarios.outages import start_chain
from benchmarks.chaos.site import PIPELINE, SITE, Flow, Options, Publisher, closing_all, images, input_topic, open_site

COUNT = 60_000
FLOW_HZ = 50.0

OUTCOME = {
    "v": 2, "kind": "outcome", "request": "never", "token": bytes(8), "reason": "confident", "guess": [0, 3, 0.5],
    "spent_s": 0.1, "hops": [],
}  # fmt: skip
INPUT = {"v": 1, "kind": "input", "request": "never", "name": "never", "payload": b"\0" * 100}


def junk(fields: dict[str, object], draw: random.Random) -> bytes:
    """Random bytes, a message that is cut short, or one with a wrong field."""
    match draw.randrange(3):
        case 0:
            return draw.randbytes(draw.randrange(1, 300))
        case 1:
            whole: bytes = msgpack.packb(fields)
            return whole[: draw.randrange(1, len(whole))]
    wrong: object = draw.choice([{"a": 1}, ["x"], [[[{}]]], -1, "", None, "x" * 200])
    packed: bytes = msgpack.packb(fields | {draw.choice(list(fields)): wrong})
    return packed


def run(report: Report, options: Options) -> None:
    with make_broker(options.broker) as broker, open_site(broker.port, options) as site:
        publishers = [Publisher(broker.port, name=f"chaos-{name}") for name in ("flow", "input", "outcome")]
        with closing_all(*publishers):
            start_chain(site)
            observer = site.observer
            before = site.memory()["cam"]["VmRSS"]
            flow = Flow(publishers[0], "cam", images())
            outcome_topic = f"distree/1/{SITE}/pipeline/{PIPELINE}/outcome/cam/mid"
            streams = [
                threading.Thread(target=_pour, args=(publishers[1], input_topic("cam"), INPUT, 1), daemon=True),
                threading.Thread(target=_pour, args=(publishers[2], outcome_topic, OUTCOME, 2), daemon=True),
            ]
            flow.start("flow", FLOW_HZ)
            _through(streams)
            flow.stop()
            publishers[0].settle()
            books, rested = at_rest(observer, "cam", 180.0)
            unanswered = len(observer.unanswered(flow.requests))
            labelled = observer.labelled(flow.requests)
            by_broker = observer.broker_dropped()
            after = site.memory().get("cam", {}).get("VmRSS", 0)
            report.note(
                junk=2 * COUNT,
                inputs=len(flow.requests),
                labelled=labelled,
                without_a_result=unanswered,
                **books.figures(),
                dead_letters=sum(observer.dead.values()),
                broker_dropped=by_broker,
                log_lines=len(site.log("cam").splitlines()),
                grew_mib=(after - before) / 1024,
            )
            report.check(rested, f"not at rest after three minutes, {books.pending} pending")
            report.check(books.accepted == books.answered, f"accepted {books.accepted}, answered {books.answered}")
            report.check(
                books.offered >= len(flow.requests) - by_broker,
                f"{len(flow.requests)} inputs sent, {books.offered} in the books",
            )
            report.check(
                unanswered <= books.dropped + by_broker,
                f"{unanswered} inputs without a result, {books.dropped} owned up to, {by_broker} lost by the broker",
            )
            report.check(not observer.differing(), "requests with two different final results")
            report.check(len(site.alive()) == 3, f"of three agents only {site.alive()} live")
            check_next(report, "junk", observer, flow)


def _pour(publisher: Publisher, topic: str, fields: dict[str, object], seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(COUNT):
        publisher.publish(topic, junk(fields, draw))
    publisher.settle()


def _through(streams: list[threading.Thread]) -> None:
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join(300.0)
