"""Whatever becomes of the child, its parent says so in a line and lives."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import pytest

from model_zoo.errors import DataError, SplitError
from model_zoo.split.supervision import limit_memory, supervise


class Screen:
    def __init__(self):
        self.told = []

    def print(self, text):
        self.told.append(("print", text))

    def line(self, text):
        self.told.append(("line", text))

    def bar(self, what, done, total):
        self.told.append(("bar", what, done, total))


def children():
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.fixture(autouse=True)
def no_process_stays():
    before = children()
    yield
    assert children() <= before


def test_what_the_child_tells_is_shown_in_order():
    screen = Screen()

    def work(tell):
        tell.phase("counting", 10.0)
        tell.step(1, 1)
        tell.line("half way\nthere")
        tell.print("3")

    supervise(work, "net.tflite", screen)
    assert screen.told == [("bar", "counting", 1, 1), ("line", "half way\nthere"), ("print", "3")]


def segfault(_):
    ctypes.string_at(0)


def abort(_):
    os.abort()


def leave(_):
    os._exit(3)


def hang(tell):
    tell.phase("reading", 0.3)
    while True:
        time.sleep(1)


def hang_with_deaf_ears(tell):
    tell.phase("reading", 0.3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


def too_much(_):
    limit_memory(100 << 20)
    bytearray(1 << 30)


def oops(_):
    raise ValueError("first line\nsecond line")


def refuse(_):
    raise SplitError("has two inputs", "give one")


def refuse_data(_):
    raise DataError("data.npz: no such file", "check the path")


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (segfault, "net.tflite: starting: the interpreter crashed (SIGSEGV)"),
        (abort, "net.tflite: starting: the interpreter crashed (SIGABRT)"),
        (leave, "net.tflite: starting: ended with status 3"),
        (hang, "net.tflite: reading: not done after 0 s"),
        (hang_with_deaf_ears, "net.tflite: reading: not done after 0 s"),
        (too_much, "net.tflite: needs more memory than is available"),
        (oops, "net.tflite: is damaged or has an unknown form (ValueError: first line second line)"),
        (refuse, "net.tflite: has two inputs"),
        (refuse_data, "data.npz: no such file"),
    ],
)
def test_what_goes_wrong_is_one_line(work, why):
    with pytest.raises((SplitError, DataError)) as caught:
        supervise(work, "net.tflite", Screen())
    assert str(caught.value).startswith(why)
    assert "\n" not in str(caught.value)


def test_a_child_that_writes_to_stderr_is_not_heard(capfd):
    supervise(lambda _: os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate\n"), "net.tflite", Screen())
    assert capfd.readouterr().err == ""


def test_what_is_still_to_be_printed_is_not_printed_twice(capfd):
    print("before", end="")
    supervise(lambda tell: tell.print("during"), "net.tflite", Screen())
    print(" after")
    assert capfd.readouterr().out == "before after\n"
