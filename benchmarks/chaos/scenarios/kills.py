"""An origin with a spool is killed a hundred times while inputs are published; no answer is lost, none differs."""

from __future__ import annotations

import random
import time
from collections import Counter

from benchmarks.chaos.broker import make_broker
from benchmarks.chaos.report import Report
from benchmarks.chaos.scenarios.outages import start_chain
from benchmarks.chaos.site import Flow, Options, Publisher, closing_all, images, open_site
from distree.thresholds import NEVER

RATE_HZ = 200.0


def run(report: Report, options: Options) -> None:
    draw = random.Random(3)
    with make_broker(options.broker) as broker, open_site(broker.port, options) as site:
        publisher = Publisher(broker.port)
        with closing_all(publisher):
            site.plan(publisher, (NEVER, NEVER))
            start_chain(site, spool=True, max_pending=512)
            observer, flow = site.observer, Flow(publisher, "cam", images())
            flow.start("k", RATE_HZ)
            for _ in range(options.kills):
                time.sleep(draw.uniform(0.05, 1.0))
                site.kill("cam")
                site.start("cam")
            flow.stop()
            publisher.settle()
            owed = [request for request in flow.requests if request in publisher.acknowledged]
            observer.until(lambda: all(observer.finals.get(request) for request in owed), 30.0, 0.2)
            never, differing = observer.unanswered(owed), observer.differing()
            with observer.lock:
                finals = sum(len(found) for found in observer.finals.values())
                shed = sum(found[-1].reason == "shed" for found in observer.finals.values())
                exits = Counter(str(found[-1].exit) for found in observer.finals.values())
                examples = [[answer.gist for answer in observer.finals[request]] for request in differing[:3]]
            report.note(
                kills=options.kills,
                acknowledged=len(owed),
                final_results=finals,
                without_one=len(never),
                differing=len(differing),
                shed=shed,
                exits=dict(sorted(exits.items())),
                dead_letters=sum(observer.dead.values()),
                broker_dropped=observer.broker_dropped(),
            )
            report.check(len(owed) == len(flow.requests), f"{len(flow.requests) - len(owed)} not acknowledged")
            report.check(not never, f"{len(never)} acknowledged requests without a final result, such as {never[:3]}")
            report.check(not differing, f"{len(differing)} requests with final results that differ, such as {examples}")
