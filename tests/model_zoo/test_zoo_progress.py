"""What a long run tells."""

from __future__ import annotations

import io
import os

from model_zoo.progress import Progress
from model_zoo.training.machine import processor


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_alone_where_nobody_watches() -> None:
    stream = io.StringIO()
    progress = Progress(stream)
    progress.step(0, 10, 100)
    progress.line("epoch 1/2  loss 1.0")
    assert stream.getvalue() == "epoch 1/2  loss 1.0\n"


def test_one_line_is_drawn_again_on_a_terminal() -> None:
    stream = Terminal()
    progress = Progress(stream)
    progress.step(2, 50, 100)
    progress.step(2, 100, 100)
    progress.line("epoch 3/5  loss 1.0")
    progress.line("done")
    first, second, line = stream.getvalue().split("\r\x1b[K")
    assert first == "epoch 3 [###############...............] 50/100"
    assert second == "epoch 3 [##############################] 100/100"
    assert line == "epoch 3/5  loss 1.0\ndone\n"


def test_the_machine_is_told_without_its_name() -> None:
    words = processor()
    assert words.split()[0] == str(len(os.sched_getaffinity(0)))
    assert os.uname().nodename not in words
