"""A camera in a program of your own: frames are submitted, answers printed as they come, frames without room left out.

python examples/python/camera.py --input /dev/video0 --format v4l2 --broker mqtt://127.0.0.1

Without `--input` it shows a test picture. An agent does as much by itself, with `source: {kind: camera}`; this is for
programs that do more with the frames. With `--stages 0`, other boards go on with what stage 0 is not sure of.
"""

import argparse
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from device_agent import Origin
from distree import Result
from distree.errors import OverloadError


def frames(name: str, kind: str, rate_hz: float) -> Iterator[npt.NDArray[np.uint8]]:
    """Give the frames of an input of ffmpeg, uint8 (28, 28, 1), at a rate, until it ends."""
    fit = f"fps={rate_hz:g},scale=28:28:force_original_aspect_ratio=increase:flags=area,crop=28:28"
    made = ["-vf", fit, "-pix_fmt", "gray", "-f", "rawvideo", "-"]
    command = ["ffmpeg", "-v", "error", "-nostdin", "-re", "-f", kind, "-i", name, *made]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.stdout and len(frame := process.stdout.read(28 * 28)) == 28 * 28:
            yield np.frombuffer(frame, np.uint8).reshape(28, 28, 1)


def show(future: Future[Result]) -> None:
    """Print an answer; called by the origin, so it is short."""
    if not future.cancelled() and future.exception() is None:
        result = future.result()
        print(f"{result.input}: {result.label} {result.confidence:.0%}, exit {result.exit}, {result.latency_s:.4f} s")


parser = argparse.ArgumentParser()
parser.add_argument("--broker", default="mqtt://127.0.0.1")
parser.add_argument("--input", default="testsrc=rate=100", help="a device, a URL or a file")
parser.add_argument("--format", default="lavfi", help="what ffmpeg calls its format: v4l2, rtsp, mp4 …")
parser.add_argument("--frames", type=int, default=50)
parser.add_argument("--rate", type=float, default=30.0)
parser.add_argument("--deadline", type=float, default=1.0)
parser.add_argument("--stages", type=int, nargs="*", default=[0, 1, 2])
args = parser.parse_args()

submitted = left_out = 0
where: dict[str, Any] = {"site": "lab", "device": "camera", "pipeline": "fashion", "broker": args.broker}
with Origin("fashion", stages=args.stages, deadline_s=args.deadline, **where) as origin:
    for frame in islice(frames(args.input, args.format, args.rate), args.frames):
        try:
            origin.submit(frame, f"frame {submitted + left_out}", timeout_s=0).add_done_callback(show)
            submitted += 1
        except OverloadError:
            left_out += 1  # the next frame is fresher anyway
print(f"{submitted} submitted, {left_out} left out")
