"""The self-test: a child process finds out what would otherwise take the agent along, or give wrong answers."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from device_agent import selftest
from device_agent.selftest import self_test
from distree.bundle import load_bundle
from distree.errors import BundleError, RuntimeUnavailableError
from distree.runtimes.tflite import TFLiteRuntime


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("fashion")


@pytest.fixture
def instead(monkeypatch):
    """Have the child use another interpreter."""

    def instead(make):
        monkeypatch.setattr(selftest, "TFLiteRuntime", make)

    return instead


def children():
    """Process ids of this process's children, dead ones that nobody waited for included."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.fixture(autouse=True)
def no_process_stays():
    # Other tests' brokers may be among them.
    before = children()
    yield
    assert children() <= before


class Off:
    """The real thing, with each output spoilt by a function."""

    def __init__(self, spoil):
        self._spoil = spoil

    def __call__(self, bundle, stages, num_threads):
        self._runtime = TFLiteRuntime(bundle, stages, num_threads)
        self.name = "spoilt 1.0"
        return self

    def run(self, stage, tensor):
        return self._spoil(stage, self._runtime.run(stage, tensor))


def spoil_logits(steps, stage=0):
    def spoil(k, output):
        scale = load_bundle("fashion", verify=()).stages[k].logits.scale
        logits = [logit + (steps * scale if k == stage else 0) for logit in output.logits]
        return type(output)(features=output.features, logits=logits)

    return Off(spoil)


def spoil_features(k, output):
    if output.features is None:
        return output
    features = output.features.astype(np.int16)
    features.ravel()[-1] += np.int16(50) if features.ravel()[-1] < 0 else np.int16(-50)
    return type(output)(features=features.astype(np.int8), logits=output.logits)


@pytest.mark.parametrize("stages", [(0,), (1, 2), (0, 1, 2)])
def test_a_good_bundle_on_a_good_interpreter_passes(bundle, stages):
    self_test(bundle, stages, 1)


def test_logits_that_are_off_are_told_with_stage_and_steps(bundle, instead):
    instead(spoil_logits(7, stage=1))
    with pytest.raises(
        RuntimeUnavailableError, match=r"stage 1 is off by 7 quantisation steps, \d+ allowed; spoilt 1.0"
    ):
        self_test(bundle, (0, 1), 1)


def test_logits_within_the_tolerance_pass(bundle, instead):
    instead(spoil_logits(bundle.manifest.golden.tolerance))
    self_test(bundle, (0,), 1)


def test_features_that_are_off_are_told(bundle, instead):
    instead(Off(spoil_features))
    with pytest.raises(RuntimeUnavailableError, match="stage 0 is off by 50 quantisation steps"):
        self_test(bundle, (0,), 1)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGILL, signal.SIGBUS])
def test_a_crash_is_told_with_its_signal(bundle, instead, number):
    def crash(*_):
        faulthandler.disable()  # pytest's: its report would look like a failure of this test
        os.kill(os.getpid(), number)

    instead(crash)
    with pytest.raises(RuntimeUnavailableError, match=rf"crashed \({number.name}\).*install another version"):
        self_test(bundle, (0,), 1)


def test_a_hang_is_killed_at_the_time_out(bundle, instead):
    instead(lambda *_: time.sleep(600))
    started_at = time.monotonic()
    with pytest.raises(RuntimeUnavailableError, match=r"no answer within 0\.2 s; the interpreter hangs"):
        self_test(bundle, (0,), 1, timeout_s=0.2)
    assert time.monotonic() - started_at < 60


def test_an_exception_of_any_kind_is_told(bundle, instead):
    def fail(*_):
        raise MemoryError("no room")

    instead(fail)
    with pytest.raises(RuntimeUnavailableError, match="self-test of bundle fashion: MemoryError: no room"):
        self_test(bundle, (0,), 1)


def test_an_error_of_ours_keeps_its_words(bundle, instead):
    def fail(*_):
        raise BundleError("stage0.tflite: of another revision")

    instead(fail)
    with pytest.raises(RuntimeUnavailableError, match=r"^stage0.tflite: of another revision$"):
        self_test(bundle, (0,), 1)


def test_a_silent_exit_is_told_with_its_status(bundle, instead):
    instead(lambda *_: os._exit(3))
    with pytest.raises(RuntimeUnavailableError, match="exit status 3"):
        self_test(bundle, (0,), 1)


@pytest.mark.parametrize("words", ["x" * 100_000, "caf\udce9: a path that is not UTF-8"])
def test_the_child_never_returns_into_the_parents_code(bundle, instead, words):
    parent = os.getpid()

    def fail(*_):
        raise BundleError(words)

    instead(fail)
    try:
        with pytest.raises(RuntimeUnavailableError):
            self_test(bundle, (0,), 1)
    finally:
        if os.getpid() != parent:
            os._exit(99)
