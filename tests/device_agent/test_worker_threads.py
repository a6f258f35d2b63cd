"""The worker threads: one job at a time, and always somebody at the network."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from device_agent import worker_threads
from device_agent.worker_threads import PATIENCE_S, WorkerThreads

LONG_S = 30.0
"""Bound of what must come at all; nothing depends on how fast it comes."""


class Stage:
    """Worker threads around a bell (the network) and jobs that are callables."""

    def __init__(self, wait_s=0.01):
        self.lock = threading.RLock()
        self.wait_s = wait_s
        self.waits = 0
        self.polls = 0
        self.poll_s = 0.0
        self.on_poll_once = lambda: None
        self.waited_by = set()
        self.at_network = 0
        self.most_at_network = 0
        self.computed = []
        self.faults = []
        self.at_once = 0
        self.most_at_once = 0
        self.trouble = None
        self._bell = threading.Event()
        self._counter = threading.Lock()
        self.workers = WorkerThreads(self._wait, self._poll_once, self._compute, self.lock, self.faults.append)

    def _wait(self):
        self.waited_by.add(threading.get_ident())
        self.waits += 1
        with self._network():
            self._bell.wait(self.wait_s)
        self._bell.clear()
        if self.trouble is not None:
            raise self.trouble

    def _poll_once(self):
        with self._network():
            self.polls += 1
            self.on_poll_once()
            time.sleep(self.poll_s)

    @contextlib.contextmanager
    def _network(self):
        with self._counter:
            self.at_network += 1
            self.most_at_network = max(self.most_at_network, self.at_network)
        yield
        with self._counter:
            self.at_network -= 1

    def _compute(self, job):
        with self._counter:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            job()
        finally:
            with self._counter:
                self.at_once -= 1
                self.computed.append(job)

    def put(self, job, run_jobs=False):
        with self.lock:
            self.workers.put(job)
        self._bell.set()
        if run_jobs:
            self.workers.run_jobs()

    def until(self, condition, what):
        ends_at = time.monotonic() + LONG_S
        while not condition():
            assert time.monotonic() < ends_at, f"waited in vain for {what}"
            time.sleep(0.001)


@pytest.fixture
def stage():
    stage = Stage()
    stage.workers.start()
    yield stage
    stage.workers.stop(LONG_S)


def test_each_job_is_computed_once_and_in_order(stage):
    jobs = [lambda index=index: index for index in range(500)]
    for job in jobs:
        stage.put(job)
    stage.until(lambda: len(stage.computed) == 500, "all jobs")
    assert stage.computed == jobs
    assert stage.faults == []


def test_never_are_two_jobs_computed_at_a_time_whoever_brings_them(stage):
    def bring():
        for _ in range(200):
            stage.put(lambda: time.sleep(0), run_jobs=True)

    threads = [threading.Thread(target=bring) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    stage.until(lambda: len(stage.computed) == 800, "all jobs")
    assert stage.most_at_once == 1
    assert len(set(map(id, stage.computed))) == 800


def test_jobs_that_jobs_bring_are_computed_too(stage):
    done = threading.Event()

    def countdown(left):
        stage.put((lambda: countdown(left - 1)) if left else done.set)

    stage.put(lambda: countdown(50))
    assert done.wait(LONG_S)


def test_a_job_that_blocks_leaves_somebody_at_the_network(stage):
    blocked, release = threading.Event(), threading.Event()

    def block():
        blocked.set()
        release.wait(LONG_S)

    stage.put(block)
    assert blocked.wait(LONG_S)
    waits = stage.waits
    started_at = time.monotonic()
    stage.until(lambda: stage.waits > waits + 3, "turns at the network while a job blocks")
    # Bounded generously: the machine may be busy, but not for good.
    assert time.monotonic() - started_at < LONG_S / 2
    assert stage.workers.busy_s() > 0
    # What comes meanwhile waits its turn.
    stage.put(lambda: None)
    assert stage.computed == []
    release.set()
    stage.until(lambda: len(stage.computed) == 2, "both jobs")
    stage.until(lambda: stage.workers.busy_s() == 0, "rest")


def test_the_lead_changes_hands_again_and_again(stage):
    for _ in range(20):
        waits, computed = stage.waits, len(stage.computed)
        release = threading.Event()
        stage.put(lambda release=release: release.wait(LONG_S))
        stage.until(lambda waits=waits: stage.waits > waits + 2, "turns at the network")
        release.set()
        stage.until(lambda computed=computed: len(stage.computed) == computed + 1, "the job")
    assert len(stage.waited_by) == 2
    assert stage.faults == []


def test_slow_jobs_one_after_the_other_never_leave_the_network_alone(stage):
    slow = 2 * PATIENCE_S
    for _ in range(10):
        stage.put(lambda: time.sleep(slow))
    waits = []
    while len(stage.computed) < 10:
        waits.append(stage.waits)
        time.sleep(slow)
    assert waits[-1] > waits[0]
    assert stage.most_at_once == 1


def test_a_leader_that_computes_sees_to_the_network_where_a_job_asks_for_it(stage):
    seen = []
    stage.on_poll_once = lambda: seen.append("news")

    def job(index, looks):
        seen.append(index)
        if looks:
            stage.workers.poll_between_jobs()

    with stage.lock:
        for index in range(4):
            stage.workers.put(lambda index=index: job(index, index in (1, 2)))
    stage.until(lambda: len(stage.computed) == 4, "all jobs")
    assert seen == [0, 1, "news", 2, "news", 3]


def test_what_a_look_brings_is_work_for_the_same_thread(stage):
    order = []
    stage.on_poll_once = lambda: stage.workers.put(lambda: order.append(threading.get_ident()))

    def first():
        order.append(threading.get_ident())
        stage.workers.poll_between_jobs()

    stage.put(first)
    stage.until(lambda: len(order) == 2, "the job that the network brought")
    assert order[0] == order[1]


def test_nobody_looks_while_another_thread_is_at_the_network(stage):
    # The worker threads wait; this one computes.
    stage.until(lambda: stage.waits > 0, "the leader at the network")
    with stage.lock:
        stage.workers.put(stage.workers.poll_between_jobs)
        stage.workers.run_jobs()
    assert len(stage.computed) == 1
    assert stage.polls == 0


def test_never_are_two_threads_at_the_network(stage):
    stage.wait_s = 0.001
    # Glances that outlast the stand-by's patience, and jobs that do, which hand the lead over.
    stage.poll_s = 2 * PATIENCE_S

    def job(seconds):
        time.sleep(seconds)
        stage.workers.poll_between_jobs()

    with stage.lock:
        for seconds in (0.0, 0.0, 2 * PATIENCE_S, 0.0, 2 * PATIENCE_S, 0.0, 0.0, 0.0):
            stage.workers.put(lambda seconds=seconds: job(seconds))
    stage.until(lambda: len(stage.computed) == 8, "the first jobs")
    assert stage.polls >= 1
    for _ in range(20):
        stage.put(lambda: job(0.0), run_jobs=True)
    stage.until(lambda: len(stage.computed) == 28, "all jobs")
    assert stage.most_at_network == 1
    assert stage.most_at_once == 1
    assert stage.faults == []


def test_an_exception_out_of_a_look_is_told(stage):
    def fail():
        raise OSError("of the look")

    stage.on_poll_once = fail
    stage.put(stage.workers.poll_between_jobs)
    stage.until(lambda: stage.faults, "the fault")
    assert str(stage.faults[0]) == "of the look"


def test_an_exception_out_of_a_job_is_told(stage):
    def fail():
        raise ValueError("of a job")

    stage.put(fail)
    stage.until(lambda: stage.faults, "the fault")
    assert str(stage.faults[0]) == "of a job"


def test_an_exception_out_of_waiting_is_told(stage):
    stage.trouble = OSError("of the network")
    stage.until(lambda: stage.faults, "the fault")
    assert str(stage.faults[0]) == "of the network"


def test_stopping_ends_both_threads():
    stage = Stage()
    before = set(threading.enumerate())
    stage.workers.start()
    mine = [thread for thread in threading.enumerate() if thread not in before]
    assert sorted(thread.name for thread in mine) == ["serve-0", "serve-1"]
    assert stage.workers.stop(LONG_S)
    assert not any(thread.is_alive() for thread in mine)


def test_stopping_beside_a_hung_job_is_bounded_and_says_so():
    stage, hung, release = Stage(), threading.Event(), threading.Event()
    stage.workers.start()

    def hang():
        hung.set()
        release.wait(LONG_S)

    stage.put(hang)
    assert hung.wait(LONG_S)
    started_at = time.monotonic()
    assert not stage.workers.stop(0.2)
    assert time.monotonic() - started_at < LONG_S / 2
    release.set()
    assert stage.workers.stop(LONG_S)


def test_idle_threads_do_not_spin(monkeypatch):
    stage = Stage(wait_s=LONG_S)
    stand_by = 0
    real = WorkerThreads._stand_by

    def counted(self, me):
        nonlocal stand_by
        stand_by += 1
        real(self, me)

    monkeypatch.setattr(worker_threads.WorkerThreads, "_stand_by", counted)
    stage.workers.start()
    try:
        stage.put(lambda: None)
        stage.until(lambda: stage.computed, "the job")
        # The stand-by looks a few times more, then sleeps until there is work again.
        stage.until(lambda: not stage.workers._active.is_set(), "the stand-by's sleep")
        waits, looks = stage.waits, stand_by
        assert not threading.Event().wait(10 * PATIENCE_S)
        assert stage.waits == waits
        assert stand_by <= looks + 1
    finally:
        stage._bell.set()
        stage.wait_s = 0.0
        stage.workers.stop(LONG_S)
