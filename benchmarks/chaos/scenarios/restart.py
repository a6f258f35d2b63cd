"""An agent is restarted while inputs come, and with another configuration: stages, branch, source."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos import expected
from benchmarks.chaos.broker import make_broker
from benchmarks.chaos.report import Report
from benchmarks.chaos.scenarios.outages import start_chain
from benchmarks.chaos.site import (
    TINY_WIDE,
    Flow,
    Images,
    Options,
    Publisher,
    Site,
    closing_all,
    images,
    open_site,
    tiny_images,
)

MQTT: dict[str, Any] = {"deadline_ms": 5000, "source": {"kind": "mqtt"}}
COUNT = 200
RATE_HZ = 100.0


def run(report: Report, case: str, options: Options) -> None:
    with make_broker(options.broker) as broker, open_site(broker.port, options) as site:
        publisher = Publisher(broker.port)
        with closing_all(publisher):
            CASES[case](report, site, publisher)
        report.note(dead_letters=_dead(site), broker_dropped=site.observer.broker_dropped())
        report.check(not site.observer.dead, f"dead letters: {_dead(site)}")
        report.check(not site.observer.differing(), "requests with two different final results")


def _dead(site: Site) -> dict[str, int]:
    return {f"{device} {reason}": count for (device, reason), count in site.observer.dead.items()}


def _while_running(report: Report, site: Site, publisher: Publisher) -> None:
    """SIGTERM and a start while inputs are published."""
    flow = _start(site, publisher)
    flow.start("r", RATE_HZ)
    time.sleep(1.5)
    asked_at = time.monotonic()
    status = site.terminate("cam")
    site.start("cam")
    report.note(exit_status=status, away_s=time.monotonic() - asked_at)
    time.sleep(1.5)
    flow.stop()
    _all_labelled(report, site, flow, publisher)


def _while_away(report: Report, site: Site, publisher: Publisher) -> None:
    """All but some inputs are published while the agent is stopped."""
    flow = _start(site, publisher)
    flow.send(20, "first", rate_hz=RATE_HZ)
    site.terminate("cam")
    flow.send(400, "away", rate_hz=RATE_HZ)
    site.start("cam")
    _all_labelled(report, site, flow, publisher)


def _while_paused(report: Report, site: Site, publisher: Publisher) -> None:
    """The agent's process stands still for 15 s, longer than the broker waits for a word of it."""
    flow = _start(site, publisher)
    flow.send(20, "first", rate_hz=RATE_HZ)
    site.processes["cam"].send_signal(signal.SIGSTOP)
    try:
        flow.send(400, "paused", rate_hz=400 / 15.0)
    finally:
        site.processes["cam"].send_signal(signal.SIGCONT)
    _all_labelled(report, site, flow, publisher)


def _start(site: Site, publisher: Publisher) -> Flow:
    start_chain(site, max_pending=512, deadline_ms=5000)
    return Flow(publisher, "cam", images())


def _all_labelled(report: Report, site: Site, flow: Flow, publisher: Publisher) -> None:
    """Publish what is left of 500 inputs, and check that all of them have a label."""
    flow.send(500 - len(flow.requests), "rest", rate_hz=RATE_HZ)
    publisher.settle()
    observer = site.observer
    observer.until(lambda: all(observer.finals.get(request) for request in flow.requests), 20.0)
    labelled, never = observer.labelled(flow.requests), observer.unanswered(flow.requests)
    report.note(inputs=len(flow.requests), labelled=labelled, without_a_result=len(never))
    report.check(labelled == len(flow.requests), f"{len(flow.requests) - labelled} of 500 without a label")


def _stages(report: Report, site: Site, publisher: Publisher) -> None:
    """An origin that served all stages serves the first alone."""
    site.agent("mid", [1])
    site.agent("last", [2])
    site.agent("cam", [0, 1, 2], origin=MQTT)
    flow = Flow(publisher, "cam", images())
    _answered(report, "before", site, flow, images(), 50)
    site.terminate("cam")
    site.agent("cam", [0], origin=MQTT)
    _answered(report, "after", site, flow, images())


def _branch(report: Report, site: Site, publisher: Publisher) -> None:
    """Two boards of a wide bundle change places."""
    pool = tiny_images()
    for board, branch in (("left", 0), ("right", 1)):
        site.agent(board, [0, 1, 2], bundle=TINY_WIDE, branch=branch)
    site.agent("cam", bundle=TINY_WIDE, origin=MQTT)
    flow = Flow(publisher, "cam", pool)
    _answered(report, "before", site, flow, pool, 50, TINY_WIDE)
    for board in ("left", "right"):
        site.terminate(board)
    site.agent("left", [0, 1, 2], bundle=TINY_WIDE, branch=1)
    # One that comes in between shifts whose turn it is, where the broker still counts the boards at their old places.
    flow.send(1, "between")
    site.agent("right", [0, 1, 2], bundle=TINY_WIDE, branch=0)
    _answered(report, "after", site, flow, pool, COUNT, TINY_WIDE)


def _source(report: Report, site: Site, publisher: Publisher) -> None:
    """An origin's inputs come by MQTT, then from a folder, then by MQTT again."""
    start_chain(site, deadline_ms=5000)
    flow, pool = Flow(publisher, "cam", images()), images()
    _answered(report, "by MQTT", site, flow, pool, 50)
    site.terminate("cam")
    inbox = site.folder / "inbox"
    site.agent("cam", [0], origin={"deadline_ms": 5000, "source": {"kind": "directory", "path": str(inbox)}})
    names = [_put(inbox, index, image) for index, image in enumerate(pool[:COUNT])]
    observer = site.observer
    observer.until(lambda: all(observer.by_name.get(name) for name in names), 30.0)
    with observer.lock:
        found = [[(a.class_id, a.exit) for a in observer.by_name.get(name, ())] for name in names]
    right = sum(one == [want] for one, want in zip(found, expected.answers(pool[:COUNT]), strict=True))
    report.note(from_a_folder=f"{right} of {COUNT} as evaluated")
    report.check(right == COUNT, f"from a folder: {right} of {COUNT} answered once and as evaluated")
    site.terminate("cam")
    start_origin = {"deadline_ms": 5000, "source": {"kind": "mqtt"}}
    site.agent("cam", [0], origin=start_origin)
    _answered(report, "by MQTT again", site, flow, pool)


def _put(inbox: Path, index: int, image: Images) -> str:
    """Hand a file over in one step."""
    name = f"{index:04}.npy"
    inbox.mkdir(exist_ok=True)
    hidden = inbox / f".{name}"
    np.save(hidden, image)
    hidden.rename(inbox / name)
    return name


def _answered(
    report: Report,
    when: str,
    site: Site,
    flow: Flow,
    pool: Images,
    count: int = COUNT,
    bundle: str | Path = "fashion",
) -> None:
    """Publish inputs and check that each is answered as evaluated."""
    first = len(flow.requests)
    wanted = expected.answers(np.concatenate([pool] * 2)[first % len(pool) :][:count], bundle)
    requests = flow.send(count, when.replace(" ", "-"), rate_hz=RATE_HZ)
    observer = site.observer
    observer.until(lambda: all(observer.finals.get(request) for request in requests), 20.0)
    with observer.lock:
        found = [observer.finals.get(request, []) for request in requests]
    right = sum(
        bool(answers) and (answers[0].class_id, answers[0].exit) == want
        for answers, want in zip(found, wanted, strict=True)
    )
    labelled = sum(any(answer.label is not None for answer in answers) for answers in found)
    name = when.replace(" ", "_")
    report.note(**{name: f"{right} of {count} as evaluated, {labelled} labelled"})
    report.check(right == count, f"{when}: {count - right} of {count} not answered as evaluated, {labelled} labelled")


CASES = {
    "running": _while_running,
    "away": _while_away,
    "paused": _while_paused,
    "stages": _stages,
    "branch": _branch,
    "source": _source,
}
