"""Pictures from a camera, a video stream or a video file, through ffmpeg."""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from device_agent.sources import ffmpeg
from device_agent.sources.base import BaseSourceConfig, InputSink
from distree.errors import ConfigError, Problem, RemoteProtocolError
from distree.formatting import counted
from distree.printable import without_credentials
from distree.record import record
from distree.strict_yaml import Share, check_positive
from distree.tensors import Array
from distree.transport.base import Transport

if TYPE_CHECKING:
    from device_agent.sources.output import Output
    from distree.bundle.manifest import Manifest

log = logging.getLogger(__name__)

_TURN_S = 0.5
_MOTION_SIZE = (32, 24)
_PILLOW = "run: pip install 'distree[images]'"


@record
class CameraSourceConfig(BaseSourceConfig):
    """Pictures from a camera, a video stream or a video file; needs ffmpeg and the extra `images`.

    Of pictures that come faster than they are wanted or answered, the newest is taken. A camera that fails is tried
    again.
    """

    kind: Literal["camera"]
    """Pictures from a camera, through ffmpeg."""
    input: str | None = None
    """The camera's device (`/dev/video0`), a URL (`rtsp://…`, `http://…`) or a video file, which is played once."""
    input_options: tuple[str, ...] = ()
    """More options of ffmpeg for the input, such as `[-input_format, mjpeg, -video_size, 640x480]`. With `-f`, `input`
    is whatever that format takes."""
    command: tuple[str, ...] = ()
    """Instead of `input`: a program, with its arguments, that writes PPM pictures to its standard output."""
    rate_hz: float = 1
    """Most pictures per second."""
    motion: Share | None = None
    """Leave out a picture that differs from the last one taken by less: the mean difference of their brightness, with
    both shrunk to 32 x 24, as a share of the difference between black and white. If left out, all are taken."""
    max_gap_s: float = 60
    """With `motion`: the longest time after which a picture is taken even if nothing has moved."""
    silence_s: float = 10
    """After so long without a picture, ffmpeg is ended and started again."""
    repeat: bool = False
    """Play a video file again and again."""

    path_is: ClassVar[str] = "camera's device, URL or video file"
    path_key: ClassVar[str] = "input"
    path_example: ClassVar[str] = "/dev/video0"
    runs_programs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.input is not None) == bool(self.command):
            raise ConfigError("input: give either this or command", "name the camera, such as /dev/video0")
        if self.command and (self.input_options or self.repeat):
            raise ConfigError("command: takes neither input_options nor repeat", "put them into the command itself")
        check_positive(rate_hz=self.rate_hz, max_gap_s=self.max_gap_s, silence_s=self.silence_s)

    @property
    def name(self) -> str:
        """What people call the source."""
        return f"camera {without_credentials(self.input or self.command[0])}"

    @property
    def is_file(self) -> bool:
        """Whether it is a video file."""
        return self.input is not None and ffmpeg.is_file(self.input, self.input_options)

    def make(self, sink: InputSink, topic: str, connection: Callable[[], Transport]) -> CameraSource:  # noqa: ARG002
        """Make what takes the pictures."""
        return CameraSource(self, sink)

    def in_folder(self, folder: Path) -> CameraSourceConfig:
        """Return the same with a video file's path from `folder`."""
        return replace(self, input=str(folder / (self.input or ""))) if self.is_file else self

    def memory(self) -> dict[str, int]:
        """Return what pictures may take, and ffmpeg."""
        from device_agent.sources.frames import MAX_FRAME_BYTES

        # One that comes, the newest, and one that is being fitted, each with a copy.
        return {"pictures": 6 * MAX_FRAME_BYTES, "ffmpeg": ffmpeg.MEMORY_BYTES}

    def read_files(self) -> tuple[Path, ...]:
        """Return the video file."""
        return (Path(self.input or ""),) if self.is_file else ()

    @property
    def _is_device(self) -> bool:
        return self.input is not None and self.input.startswith("/dev/")

    def device_groups(self) -> tuple[str, ...]:
        """Return the group of cameras."""
        return ("video",) if self.command or self._is_device else ()

    def devices(self) -> tuple[str, ...]:
        """Return what cameras are, so that one may be unplugged and come back; those of a Pi take more than one."""
        if self.command:
            return ("char-video4linux", "char-media", "char-dma_heap")
        return ("char-video4linux",) if self._is_device else ()

    def misfits(self, manifest: Manifest) -> Iterator[Problem]:
        """Say what is missing: images as inputs, and Pillow, which fits them."""
        spec = manifest.input
        if not spec.is_image:
            yield Problem(
                f"kind: a camera gives images, but inputs of the bundle are {spec.dtype} {spec.shape}",
                "choose another source, or a bundle for images",
            )
        elif importlib.util.find_spec("PIL") is None:
            yield Problem("kind: a camera's pictures are fitted by Pillow, which is not installed", _PILLOW)

    def probe(self, manifest: Manifest, timeout_s: float) -> str:
        """Take some pictures; say their size and how fast they come."""
        from device_agent.sources.frames import FrameReader
        from device_agent.sources.trial import try_output

        sizes: list[tuple[int, ...]] = []
        reader = FrameReader(lambda frame: sizes.append(frame.shape))
        opened = try_output(lambda: self.open(manifest.input.shape), reader, "picture", self.remedy_for, timeout_s)
        height, width, _ = sizes[-1]
        by = f" by ffmpeg {ffmpeg.version()}" if self.input else ""
        return f"{self.name}: pictures of {width}x{height} pixels{by}, {opened.words(len(sizes))}"

    # ------------------------------------------------------------ the program

    def open(self, shape: tuple[int, ...]) -> Output:
        """Start the program that writes pictures for a network whose inputs have this shape."""
        from device_agent.sources.child import Child, require

        if self.input is None:
            require(self.command[0])
            return Child(self.command)
        require(ffmpeg.PROGRAM, "ffmpeg")
        # Often enough for the newest to be new, and for silence to be noticed.
        period_s = min(0.5 / self.rate_hz, 1.0, self.silence_s / 4)
        size = (shape[1], shape[0])
        return Child(ffmpeg.picture_command(self.input, self.input_options, size, period_s, repeat=self.repeat))

    def remedy_for(self, reason: str) -> str:
        """Say what helps."""
        from device_agent.sources.remedies import remedy_for

        return remedy_for(reason, "the camera", "video", "ls /dev/video*")


class CameraSource:
    """Submits pictures at most at the configured rate, always the newest, and only once there is room for it.

    The program's output is read in a thread of its own, always as fast as it comes: pictures that wait in pipes are
    old ones, and a decoder that has to wait falls behind its camera.
    """

    def __init__(self, config: CameraSourceConfig, sink: InputSink) -> None:
        from device_agent.sources.frames import NewestFrame
        from device_agent.sources.supervision import Supervision

        self._config = config
        self._sink = sink
        self.ready = True
        self.taken = 0
        self.still = 0
        """Pictures that were left out because nothing had moved."""
        self.newest = NewestFrame()
        self._gate = None if config.motion is None else MotionGate(config.motion, config.max_gap_s)
        self._supervision = Supervision(
            sink,
            config.name,
            lambda: config.open(sink.reader.shape),
            config.remedy_for,
            expects="picture",
            silence_s=config.silence_s,
            is_live=config.repeat or not config.is_file,
        )
        self._fault: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        """Take pictures until `stop`, or the end of a video file."""
        reading = threading.Thread(target=self._read, args=(stop,), name="camera", daemon=True)
        reading.start()
        due_at = time.monotonic()
        while not stop.is_set() and not self.newest.is_over:
            now = time.monotonic()
            if now < due_at:
                stop.wait(min(due_at - now, _TURN_S))
            elif self._sink.wait_for_room(_TURN_S):
                frame = self.newest.take(_TURN_S)
                if frame is not None:
                    due_at = _next_due(due_at, 1 / self._config.rate_hz, time.monotonic())
                    self._submit(frame)
        reading.join()
        log.info("%s: %s", self._config.name, self.counts())
        if self._fault is not None:
            raise self._fault

    def counts(self) -> str:
        """Say what became of the pictures."""
        seen = self.newest
        return (
            f"{counted(seen.arrived, 'picture')} came: {self.taken} taken, {self.still} without motion, "
            f"{seen.replaced} replaced by newer ones"
        )

    def note_answered(self, request: str) -> None:
        """Nothing to do: a picture that was not answered is not taken again."""

    def _read(self, stop: threading.Event) -> None:
        from device_agent.sources.frames import FrameReader

        def make_reader() -> FrameReader:
            self.newest.clear()
            return FrameReader(self.newest.put)

        try:
            self._supervision.run(stop, make_reader)
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            self._fault = error
        finally:
            self.newest.close()

    def _submit(self, frame: Array) -> None:
        if self._gate is not None and not self._gate.lets_through(frame, time.monotonic()):
            self.still += 1
            return
        name = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        try:
            self._sink.submit(name, self._sink.reader.of_picture(frame))
        except RemoteProtocolError as error:
            self._sink.reject(name, error, b"")
            return
        self.taken += 1
        self._sink.run_jobs()


def _next_due(due_at: float, period_s: float, now: float) -> float:
    """Return when the next picture is due: in step with the last, unless that came late by a whole period."""
    return due_at + period_s if due_at + period_s > now else now + period_s


class MotionGate:
    """Lets a picture through that differs enough from the last one that it let through, or comes long after it."""

    def __init__(self, threshold: float, max_gap_s: float) -> None:
        self._threshold = threshold
        self._max_gap_s = max_gap_s
        self._last: Array | None = None
        self._passed_at = 0.0

    def lets_through(self, frame: Array, now: float) -> bool:
        """Whether to take a picture, uint8 (height, width, 3 or 1), at a time in monotonic seconds."""
        shrunk = shrunk_grey(frame)
        is_still = self._last is not None and difference(shrunk, self._last) < self._threshold
        if is_still and now - self._passed_at < self._max_gap_s:
            return False
        self._last, self._passed_at = shrunk, now
        return True


def shrunk_grey(frame: Array) -> Array:
    """Return a picture in grey, shrunk to 32 x 24 by averaging: uint8 (24, 32). Noise of single pixels is gone."""
    from PIL import Image

    image = Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame)
    return np.asarray(image.resize(_MOTION_SIZE, Image.Resampling.BOX).convert("L"))


def difference(one: Array, other: Array) -> float:
    """Return the mean absolute difference of two grey pictures of one size, from 0 to 1.

    >>> difference(np.zeros((24, 32), np.uint8), np.full((24, 32), 51, np.uint8))
    0.2
    """
    return float(np.abs(one.astype(np.int16) - other).mean()) / 255
