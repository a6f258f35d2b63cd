"""The middle one of three boards is killed for 20 s while all inputs travel; every input must have a label."""

from __future__ import annotations

import itertools
import statistics
import time

from benchmarks.chaos.broker import make_broker
from benchmarks.chaos.report import Report
from benchmarks.chaos.scenarios.outages import start_chain
from benchmarks.chaos.site import Answer, Flow, Options, Publisher, closing_all, images, open_site
from distree.thresholds import NEVER

RATE_HZ = 60.0
BEFORE_S, DOWN_S, AFTER_S = 8.0, 20.0, 20.0


def run(report: Report, options: Options) -> None:
    with make_broker(options.broker) as broker, open_site(broker.port, options) as site:
        publisher = Publisher(broker.port)
        with closing_all(publisher):
            site.plan(publisher, (NEVER, NEVER))
            start_chain(site, deadline_ms=10_000, max_pending=64)
            observer, flow = site.observer, Flow(publisher, "cam", images())
            flow.start("n", RATE_HZ)
            time.sleep(BEFORE_S)
            killed_at = time.monotonic()
            site.kill("mid")
            time.sleep(DOWN_S)
            back_at = time.monotonic()
            site.start("mid")
            time.sleep(AFTER_S)
            flow.stop()
            publisher.settle()
            observer.until(lambda: all(observer.finals.get(request) for request in flow.requests), 20.0)
            labelled = observer.labelled(flow.requests)
            with observer.lock:
                answers = sorted((found[0] for found in observer.finals.values()), key=lambda answer: answer.at)
            report.note(inputs=len(flow.requests), labelled=labelled)
            periods = {
                "before": [a for a in answers if a.at < killed_at],
                "during": [a for a in answers if killed_at <= a.at < back_at],
                "after": [a for a in answers if a.at >= back_at],
            }
            for name, found in periods.items():
                report.note(**{name: _summary(found)})
            last = [answer.at - back_at for answer in periods["after"] if answer.exit == 2]
            quiet = _longest_gap([killed_at, *(a.at for a in answers if a.at >= killed_at and a.label is not None)])
            report.note(
                first_last_after_s=last[0] if last else "never",
                longest_without_an_answer_s=quiet,
                warnings={device: len(site.grave(device)) for device in ("cam", "last")},
            )
            report.check(labelled == len(flow.requests), f"{len(flow.requests) - labelled} inputs without a label")
            report.check(bool(last), "no answer of the last exit after the board was back")
            report.check(not observer.differing(), "requests with two different final results")


def _summary(answers: list[Answer]) -> dict[str, object]:
    latencies = sorted(answer.latency_ms for answer in answers)
    if not latencies:
        return {"answers": 0}
    reasons: dict[str, int] = {}
    for answer in answers:
        reasons[answer.reason] = reasons.get(answer.reason, 0) + 1
    return {
        "answers": len(latencies),
        "p50_ms": statistics.median(latencies),
        "p95_ms": latencies[int(len(latencies) * 0.95)],
        "max_ms": latencies[-1],
        **reasons,
    }


def _longest_gap(times: list[float]) -> float:
    return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)
