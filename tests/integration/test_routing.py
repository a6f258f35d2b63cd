"""Boards that go, stall and come back under a stream of inputs: who stands in for them, and what is sent again."""

from __future__ import annotations

import signal
import time
from functools import partial

import forked
import pytest

from benchmarks.routing.paced import pace
from distree.messages.result import MissingBranch
from distree.thresholds import NEVER

pytestmark = pytest.mark.any_broker

RATE_HZ = 60.0
SETTLED_S = 1.0
"""So long after a fault nothing of it is to be felt any more."""

UNDER_WAY_S = 1.0
"""An input that was sent so long before a fault has its answer."""

ROUTED_S = 0.5
"""For an input that was sent so long before a board came back, the origin chose its route before that."""

ORIGIN = {"deadline_ms": 5000, "min_retry_ms": 400, "max_pending": 512, "source": {"kind": "mqtt"}}
"""A silence above this machine's own pauses, so that what is repeated is repeated for what the test does."""


class Stream:
    """Inputs at a steady rate, published as the test waits; when each was sent, and when something was done."""

    def __init__(self, site, images):
        self.site, self.images = site, images
        self.sent = []
        self.began_at = time.monotonic()

    def wait(self, condition, what):
        def pumped():
            due = int((time.monotonic() - self.began_at) * RATE_HZ)
            # What this test's own pauses have kept back comes soon, but not in a burst that boards have no room for, and
            # not as if it had been sent in time.
            for index in range(len(self.sent), min(due, len(self.sent) + 2)):
                self.site.submit(f"r{index}", f"r{index}", self.images[index % len(self.images)])
                self.sent.append(time.monotonic())
            return condition()

        self.site.watch.until(pumped, what)

    def run_for(self, seconds):
        ends_at = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > ends_at, "the time to pass")

    def begin(self, boards):
        """Let it run until all of these boards take part."""
        self.wait(lambda: boards <= self.seen(0), f"answers of {boards}")
        self.run_for(UNDER_WAY_S)

    def settled_s(self):
        """So long after a fault nothing of it is to be felt any more: longer where this machine is busy with others."""
        latest = sorted(result.latency_s for result in self.site.watch.results[-100:])
        return SETTLED_S + min(4.0, 10.0 * latest[len(latest) // 2])

    def until_used(self, board):
        before = len(self.site.watch.results)
        self.wait(lambda: board in self.seen(before), f"answers of {board}")

    def seen(self, since):
        """The boards in the answers since the one of that number."""
        return {hop.device for result in self.site.watch.results[since:] for hop in result.hops if result.final}

    def end(self):
        """The final results in the order of the inputs, one of each."""
        watch = self.site.watch
        watch.until(lambda: len(watch.final()) == len(self.sent), f"{len(self.sent)} answers")
        assert sum(result.final for result in watch.results) == len(self.sent)
        final = watch.final()
        return [final[f"r{index}"] for index in range(len(self.sent))]


def paced_agent(site, device, stages, pace_ms, *, ready=True, **changes):
    """An agent of which each segment takes so long, so that there is always something under way."""
    config = site.agent_config(device, stages, **changes)
    site.processes[device] = forked.start(
        ["agent", "run", "-c", str(config)], stderr=site.folder / f"{device}.log", before=partial(pace, pace_ms)
    )
    if ready:
        site.until_ready(device)


def faults_of(stream, site, board, again):
    """Pause a board, let it go on, have it stop, start it anew, kill it.

    Return from when to when no input was to be sent to it.
    """
    away = []
    process = site.processes[board]

    def fault(act, undo, seconds):
        stream.until_used(board)
        settled_s = stream.settled_s()
        went_at = time.monotonic()
        act()
        stream.run_for(settled_s + seconds)
        away.append((went_at + settled_s, time.monotonic()))
        stream.run_for(ROUTED_S)
        undo()

    try:
        fault(lambda: process.send_signal(signal.SIGSTOP), lambda: None, 4.0)
    finally:
        process.send_signal(signal.SIGCONT)
    fault(process.terminate, lambda: again(ready=False), 0.5)
    assert process.wait(10) == 0, site.log(board)
    stream.until_used(board)
    stream.run_for(UNDER_WAY_S)
    fault(lambda: site.kill(board), lambda: None, 0.5)
    return away


def too_late(stream, board, away, requests=None):
    """How long after it was to get no more inputs came that were sent to a board all the same; of some requests alone."""
    found = []
    for message in stream.site.watch.sent:
        context = message.context
        if context.audit or not any(board in stop.boards for stop in context.route):
            continue
        if requests is None or context.request in requests:
            sent_at = stream.sent[int(context.request[1:])]
            found += [sent_at - from_at for from_at, back_at in away if from_at < sent_at < back_at]
    return found


def by_themselves(stream, results, board):
    """The answers that were repeated though the board was not to run them: this machine's pauses."""
    with_it = {
        message.context.request
        for message in stream.site.watch.sent
        if any(board in stop.boards for stop in message.context.route)
    }
    return [result for result in results if result.attempt > 1 and result.request not in with_it]


def test_inputs_under_way_alone_are_repeated_when_one_of_two_boards_goes(site, bundle, images):
    site.plan(bundle, 1, (NEVER, NEVER))
    site.watch.follow()
    for board in ("a", "b"):
        paced_agent(site, board, [1], 12)
    site.agent("last", [2])
    site.agent("cam", [0], origin=ORIGIN)
    stream = Stream(site, images)
    stream.begin({"a", "b", "last"})
    away = faults_of(stream, site, "a", lambda **how: paced_agent(site, "a", [1], 12, **how))
    settled_s = stream.settled_s()
    results = stream.end()
    assert {result.reason for result in results} == {"last"}
    assert too_late(stream, "a", away) == []
    repeated = [result for result in results if result.attempt > 1]
    assert 0 < len(repeated) < 3 * settled_s * RATE_HZ / 2 + len(by_themselves(stream, results, "a"))
    assert len(by_themselves(stream, results, "a")) < len(results) / 10
    assert not site.watch.dead


def test_a_twin_of_a_branch_stands_in_for_it(site, tiny_wide, tiny_images):
    site.bundle = str(tiny_wide.path)
    site.watch.follow()
    for board, branch in {"b0": 0, "b1": 1, "twin": 1}.items():
        paced_agent(site, board, [0, 1, 2], 5, branch=branch)
    site.agent("cam", [], origin=ORIGIN, branch_timeout_ms=400)
    stream = Stream(site, tiny_images)
    stream.begin({"b0", "b1", "twin"})
    away = faults_of(stream, site, "twin", lambda **how: paced_agent(site, "twin", [0, 1, 2], 5, branch=1, **how))
    results = stream.end()
    assert {result.reason for result in results} <= {"confident", "last"}
    assert too_late(stream, "twin", away) == []
    without = {result.request for result in results if MissingBranch(branch=1, device="twin") in result.missing}
    assert too_late(stream, "twin", away, without) == []
    # Of what was missing the board is told that was to run it, and it is never nobody.
    told = {(one.branch, one.device) for result in results for one in result.missing}
    assert told <= {(0, "b0"), (1, "b1"), (1, "twin")}
    assert told or any(result.attempt > 1 for result in results)
    assert not site.watch.dead


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_of_one_board_is_waited_for_while_it_restarts(site, bundle, images, how):
    site.plan(bundle, 1, (NEVER, NEVER))
    boards = {"first": 1, "only": 2}
    for board, stage in boards.items():
        site.agent(board, [stage])
    # Nobody is there to stand in: what makes it wait is the board's going, not its silence.
    site.agent("cam", [0], origin={**ORIGIN, "deadline_ms": 10_000})
    stream = Stream(site, images)
    stream.begin(boards.keys())
    process = site.processes["only"]
    process.send_signal(how)
    process.wait(10)
    site.agent("only", [2], ready=False)
    stream.until_used("only")
    stream.run_for(0.5)
    results = stream.end()
    assert {result.reason for result in results} == {"last"}
    assert {result.hops[-1].device for result in results} == {"only"}
    assert not site.watch.dead


def test_a_board_that_is_slower_than_its_twin_is_used_less(site, bundle, images):
    site.plan(bundle, 1, (NEVER, NEVER))
    # The quick one alone could not do it all.
    for board, pace_ms in {"quick": 18, "slow": 72}.items():
        paced_agent(site, board, [1], pace_ms)
    site.agent("last", [2])
    site.agent("cam", [0], origin=ORIGIN)
    stream = Stream(site, images)
    stream.begin({"quick", "slow", "last"})
    before = len(stream.sent)
    stream.wait(lambda: len(stream.sent) >= before + 300, "300 more inputs")
    results = stream.end()[before:]
    used = [result.hops[1].device for result in results]
    assert 0 < used.count("slow") < used.count("quick") / 2
    assert {result.reason for result in results} == {"last"}
