"""A camera loop: frames are submitted, answers printed as they come, frames for which there is no room left out.

python examples/python/camera.py --broker mqtt://127.0.0.1 --frames 50

The "camera" shows the bundle's sample images; take yours from picamera2, OpenCV or a file. This board runs stages 0, 1
and 2; with `--stages 0` others go on with what stage 0 is not sure of.
"""

import argparse
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

from device_agent import Origin
from distree import Result
from distree.bundle.loading import find_bundle
from distree.errors import OverloadError


def frames(count: int, rate_hz: float) -> Iterator[npt.NDArray[Any]]:
    """Give so many images, uint8 (28, 28, 1), at a rate."""
    with np.load(find_bundle("fashion").parents[1] / "samples" / "fashion.npz") as samples:
        images = samples["input"]
    for k in range(count):
        yield images[k % len(images)]
        time.sleep(1 / rate_hz)


def show(future: Future[Result]) -> None:
    """Print an answer; called by the origin, so it is short."""
    if not future.cancelled() and future.exception() is None:
        result = future.result()
        print(f"{result.input}: {result.label} {result.confidence:.0%}, exit {result.exit}, {result.latency_s:.4f} s")


parser = argparse.ArgumentParser()
parser.add_argument("--broker", default="mqtt://127.0.0.1")
parser.add_argument("--frames", type=int, default=50)
parser.add_argument("--rate", type=float, default=30.0)
parser.add_argument("--deadline", type=float, default=1.0)
parser.add_argument("--stages", type=int, nargs="*", default=[0, 1, 2])
args = parser.parse_args()

left_out = 0
where = {"site": "lab", "device": "camera", "pipeline": "fashion", "broker": args.broker}
with Origin("fashion", stages=args.stages, deadline_s=args.deadline, **where) as origin:
    for number, frame in enumerate(frames(args.frames, args.rate)):
        try:
            origin.submit(frame, f"frame {number}", timeout_s=0).add_done_callback(show)
        except OverloadError:
            left_out += 1  # the next frame is fresher anyway
print(f"{args.frames - left_out} submitted, {left_out} left out")
