"""The self-test: a child process finds out what would otherwise take the agent along, or give wrong answers."""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from device_agent import selftest
from device_agent.selftest import self_test
from distree.bundle.loading import load_bundle
from distree.bundle.runtimes import make_runtime
from distree.errors import BundleError, RuntimeUnavailableError


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("fashion")


@pytest.fixture
def instead(monkeypatch):
    """Have the child use another interpreter."""

    def instead(make):
        monkeypatch.setattr(selftest, "make_runtime", make)

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

    def __call__(self, bundle, stages, num_threads, **wide):
        self._runtime = make_runtime(bundle, stages, num_threads, **wide)
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
        RuntimeUnavailableError, match=r"stage 1 is off by 7 quantisation steps \(\d+ allowed\), so spoilt 1.0"
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
    def crash(*_, **__):
        faulthandler.disable()  # pytest's: its report would look like a failure of this test
        os.kill(os.getpid(), number)

    instead(crash)
    with pytest.raises(RuntimeUnavailableError, match=rf"crashed \({number.name}\).*install another version"):
        self_test(bundle, (0,), 1)


def test_a_hang_is_killed_at_the_time_out(bundle, instead):
    instead(lambda *_, **__: time.sleep(600))
    started_at = time.monotonic()
    with pytest.raises(RuntimeUnavailableError, match=r"no answer within 0\.2 s, so the interpreter hangs"):
        self_test(bundle, (0,), 1, timeout_s=0.2)
    assert time.monotonic() - started_at < 60


def test_an_exception_of_any_kind_is_told(bundle, instead):
    def fail(*_, **__):
        raise MemoryError("no room")

    instead(fail)
    with pytest.raises(RuntimeUnavailableError, match="self-test of bundle fashion: MemoryError: no room"):
        self_test(bundle, (0,), 1)


def test_an_error_of_ours_keeps_its_words(bundle, instead):
    def fail(*_, **__):
        raise BundleError("stage0.tflite: of another revision", "copy it")

    instead(fail)
    with pytest.raises(RuntimeUnavailableError, match=r"^stage0.tflite: of another revision; copy it$"):
        self_test(bundle, (0,), 1)


def test_a_silent_exit_is_told_with_its_status(bundle, instead):
    instead(lambda *_, **__: os._exit(3))
    with pytest.raises(RuntimeUnavailableError, match="exit status 3"):
        self_test(bundle, (0,), 1)


@pytest.mark.parametrize("words", ["x" * 100_000, "caf\udce9: a path that is not UTF-8"])
def test_the_child_never_returns_into_the_parents_code(bundle, instead, words):
    parent = os.getpid()

    def fail(*_, **__):
        raise BundleError(words, "")

    instead(fail)
    try:
        with pytest.raises(RuntimeUnavailableError):
            self_test(bundle, (0,), 1)
    finally:
        if os.getpid() != parent:
            os._exit(99)


# ---------------------------------------------------------------- wide stages

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize(
    ("name", "stages", "branch", "fuse"),
    [
        ("tiny-wide", (0, 1, 2), 0, False),
        ("tiny-wide", (0, 1, 2), 1, True),
        ("tiny-wide", (), None, True),
        ("tiny-mixed", (0, 1, 2), 2, False),
        ("tiny-mixed", (0, 3), None, True),
    ],
)
def test_a_board_of_wide_stages_passes(name, stages, branch, fuse):
    self_test(load_bundle(DATA / name), stages, 1, branch=branch, fuse=fuse)


class OffWide(Off):
    """The real thing, with embeddings, features of branches and logits of fusion heads spoilt by functions."""

    def __init__(self, of_branch=None, of_fusion=None):
        super().__init__(of_branch or (lambda k, output: output))
        self._of_fusion = of_fusion or (lambda k, output: output)

    def fuse(self, stage, embeddings):
        return self._of_fusion(stage, self._runtime.fuse(stage, embeddings))


def off_at(stage, part, steps=9):
    """Spoil one value of one output of a stage, away from the bounds of int8."""

    def spoil(k, output):
        if k != stage:
            return output
        if part == "logits":
            scale = load_bundle(DATA / "tiny-wide", verify=()).stages[k].logits.scale
            return dataclasses.replace(output, logits=[output.logits[0] + steps * scale, *output.logits[1:]])
        array = getattr(output, part).astype(np.int16)
        array.ravel()[0] += np.int16(steps if array.ravel()[0] < 0 else -steps)
        return dataclasses.replace(output, **{part: array.astype(np.int8)})

    return spoil


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        (OffWide(of_branch=off_at(1, "embedding")), "branch 1 of stage 1 is off by 9 quantisation steps"),
        (OffWide(of_branch=off_at(0, "features")), "branch 1 of stage 0 is off by 9 quantisation steps"),
        (OffWide(of_fusion=off_at(2, "logits")), "the fusion head of stage 2 is off by 9 quantisation steps"),
    ],
)
def test_what_is_off_in_a_wide_stage_is_told(instead, spoilt, why):
    instead(spoilt)
    with pytest.raises(RuntimeUnavailableError, match=why):
        self_test(load_bundle(DATA / "tiny-wide"), (0, 1, 2), 1, branch=1, fuse=True)


def test_features_of_a_fusion_head_are_compared(instead):
    instead(OffWide(of_fusion=off_at(2, "features")))
    with pytest.raises(RuntimeUnavailableError, match="the fusion head of stage 2 is off by 9"):
        self_test(load_bundle(DATA / "tiny-mixed"), (), 1, fuse=True)


def test_a_board_that_does_not_fuse_needs_no_fusion_heads(instead):
    instead(OffWide(of_fusion=off_at(0, "logits")))
    self_test(load_bundle(DATA / "tiny-wide"), (0, 1, 2), 1, branch=0)


def test_a_wide_stage_without_a_branch_is_told(bundle):
    with pytest.raises(RuntimeUnavailableError, match="no branch of stage 0 was named; name one from 0 to 1"):
        self_test(load_bundle(DATA / "tiny-wide"), (0,), 1)
