"""How ffmpeg is called: as a list of arguments, never through a shell."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

PROGRAM = "ffmpeg"
MEMORY_BYTES = 128 << 20
"""What an ffmpeg takes that decodes H.264 with 1080 lines on four cores, roughly; see docs/results/camera.md."""

PLAIN_PIXELS = 640 * 480
"""Pictures of so many pixels are handed over as they are, so that they become the same inputs as files do."""

MOST_PIXELS = 1 << 20
"""No picture has more, so that memory is bounded; for colour, that is 3 MiB."""

_QUIET = ("-hide_banner", "-nostdin", "-nostats", "-loglevel", "error")
"""Errors alone: progress, which nobody reads, has filled the pipes of others."""

_FIRST_WITH_FPS_MODE = (5, 1)


def version() -> str:
    """Return ffmpeg's version; "" if it does not say."""
    try:
        done = subprocess.run([PROGRAM, "-version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"version n?(\d[\w.]*)", done.stdout)
    return found[1] if found else ""


def is_url(text: str) -> bool:
    """Whether something names a stream in the network."""
    return "://" in text


def is_file(name: str, options: Sequence[str]) -> bool:
    """Whether an input is a file: no URL, no device, and no input of another format."""
    return not (is_url(name) or name.startswith("/dev/") or "-f" in options)


def input_arguments(name: str, options: Sequence[str], *, repeat: bool = False) -> list[str]:
    """Return the arguments that open an input: a device, a URL, a file, or whatever `-f` among the options says.

    There is no timeout among them: its name and its unit have changed between versions (`-stimeout`, `-timeout`), and
    ffmpeg hangs in spite of it, as users of every recorder have found. A stream that is silent is noticed by whoever
    reads it.
    """
    derived: list[str] = []
    if is_url(name):
        # By the clock, not by the stream's own times, which jump, or are made up by ffmpeg where there are none.
        derived += ["-fflags", "nobuffer", "-use_wallclock_as_timestamps", "1"]
        if name.startswith(("rtsp://", "rtsps://")):
            derived += ["-rtsp_transport", "tcp"]  # over UDP, each lost packet is a damaged picture
    elif name.startswith("/dev/") and "-f" not in options:
        derived += ["-f", "v4l2"]
    elif is_file(name, options):
        derived += ["-re", *(["-stream_loop", "-1"] if repeat else [])]
    return [*derived, *options, "-i", name]


def picture_command(
    name: str, options: Sequence[str], size: tuple[int, int], period_s: float, *, repeat: bool
) -> list[str]:
    """Return the command that writes PPM pictures: at most one in `period_s` seconds, no larger than is of use.

    `size` is the network's, (width, height). Pictures keep their aspect, so that they can be cropped or padded later.
    """
    return [
        PROGRAM, *_QUIET, *input_arguments(name, options, repeat=repeat),
        "-an", "-sn", "-dn", "-vf", f"{_thinned(period_s)},{_shrunk(size)}", *_as_they_come(),
        "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1",
    ]  # fmt: skip


def sound_command(device: str, rate_hz: float, channels: int) -> list[str]:
    """Return the command that writes raw samples of an ALSA device, int16."""
    return [
        PROGRAM, *_QUIET, "-f", "alsa", "-channels", str(channels), "-sample_rate", f"{rate_hz:.0f}", "-i", device,
        "-ac", str(channels), "-ar", f"{rate_hz:.0f}", "-f", "s16le", "pipe:1",
    ]  # fmt: skip


def _thinned(period_s: float) -> str:
    """Leave out pictures that come too fast, before they cost anything; those without a time are kept."""
    kept = f"isnan(t)+isnan(prev_selected_t)+lt(t,prev_selected_t)+gte(t-prev_selected_t,{period_s:.6f})"
    return f"select='{kept}'"


def _shrunk(size: tuple[int, int]) -> str:
    """Shrink what is large, averaging pixels: to twice the network's size, but no more than to 640 x 480."""
    width, height = size
    wanted = f"max(sqrt({PLAIN_PIXELS}/(iw*ih)),max({2 * width}/iw,{2 * height}/ih))"
    factor = f"min(1,min(sqrt({MOST_PIXELS}/(iw*ih)),{wanted}))"
    return f"scale=w='max(1,trunc(iw*{factor}))':h='max(1,trunc(ih*{factor}))':flags=area"


def _as_they_come() -> tuple[str, str]:
    """Return the option that repeats no picture to fill a gap, by its name in this version."""
    numbers = re.match(r"(\d+)\.(\d+)", version())
    is_old = numbers is not None and (int(numbers[1]), int(numbers[2])) < _FIRST_WITH_FPS_MODE
    return ("-vsync", "0") if is_old else ("-fps_mode", "passthrough")
