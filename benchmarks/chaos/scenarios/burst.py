"""40,000 inputs at QoS 0 in a second."""

from __future__ import annotations

import time

from benchmarks.chaos.books import at_rest, check_next
from benchmarks.chaos.broker import make_broker
from benchmarks.chaos.raw import publish_packet, raw_client
from benchmarks.chaos.report import Report
from benchmarks.chaos.scenarios.outages import start_chain
from benchmarks.chaos.site import Flow, Options, Publisher, closing_all, images, input_topic, open_site, packed_input

INPUTS = 40_000
_PIECE = 400


def run(report: Report, options: Options) -> None:
    pool = images()
    requests = [f"burst-{index}" for index in range(INPUTS)]
    packets = [
        publish_packet(input_topic("cam"), packed_input(request, pool[index % len(pool)]))
        for index, request in enumerate(requests)
    ]
    with make_broker(options.broker) as broker, open_site(broker.port, options) as site:
        start_chain(site)
        observer = site.observer
        dropped_before = observer.broker_dropped()
        with raw_client(broker.port) as connection:
            started_at = time.monotonic()
            for at in range(0, INPUTS, _PIECE):
                time.sleep(max(0.0, started_at + at / INPUTS - time.monotonic()))
                connection.sendall(b"".join(packets[at : at + _PIECE]))
            report.note(sent=INPUTS, in_s=time.monotonic() - started_at)
        books, rested = at_rest(observer, "cam")
        by_broker = observer.broker_dropped() - dropped_before
        unanswered = len(observer.unanswered(requests))
        with observer.lock:
            real = sum(any(answer.reason != "shed" for answer in found) for found in observer.finals.values())
        report.note(
            broker_dropped=by_broker,
            **books.figures(),
            results=real,
            without_a_result=unanswered,
            dead_letters=sum(observer.dead.values()),
        )
        report.check(rested, f"not at rest after a minute and a half, {books.pending} pending")
        report.check(
            INPUTS - by_broker <= books.offered <= INPUTS,
            f"sent {INPUTS}, dropped by the broker {by_broker}, offered {books.offered}: "
            f"{INPUTS - by_broker - books.offered} are in nobody's books",
        )
        report.check(books.accepted == books.answered, f"accepted {books.accepted}, answered {books.answered}")
        told = len(observer.finals)
        report.check(
            told == books.accepted + books.shed,
            f"accepted {books.accepted} and shed {books.shed}, requests with a result {told}",
        )
        report.check(
            unanswered <= by_broker + books.dropped,
            f"{unanswered} without a result: broker {by_broker}, owned up to {books.dropped}",
        )
        report.check(not observer.differing(), "requests with two different final results")
        publisher = Publisher(broker.port)
        with closing_all(publisher):
            check_next(report, "burst", observer, Flow(publisher, "cam", pool))
        report.check(len(site.alive()) == 3, f"of three agents only {site.alive()} live")
