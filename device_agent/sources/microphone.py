"""Windows of sound from a microphone, through arecord or ffmpeg."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from device_agent.sources import ffmpeg
from device_agent.sources.base import BaseSourceConfig, InputSink
from distree.errors import Problem
from distree.messages.events import EventKind
from distree.record import record
from distree.strict_yaml import Share, check_positive
from distree.transport.base import Transport

if TYPE_CHECKING:
    from device_agent.sources.output import Output
    from device_agent.sources.windowed import WindowedSource
    from distree.bundle.manifest import Manifest

_MEMORY_BYTES = 32 << 20
_OVERRUN = re.compile(r"overrun|xrun", re.IGNORECASE)


@record
class MicrophoneSourceConfig(BaseSourceConfig):
    """Windows of sound from a microphone, at the bundle's rate and with its channels; needs arecord or ffmpeg.

    If windows are not answered as fast as they come, the oldest are dropped. A microphone that fails is tried again.
    """

    kind: Literal["microphone"]
    """Sound from a microphone, through arecord (alsa-utils), or ffmpeg where there is none."""
    device: str = "default"
    """ALSA's name for the microphone, such as `plughw:1,0`; `arecord -l` lists them. `plug…` converts rates."""
    hop: int | None = None
    """Samples from the start of one window to the start of the next; by default the bundle's `window.hop`."""
    min_level: Share = Share(0)
    """Leave out windows that are quieter: the root mean square of their samples, as a share of the loudest possible."""
    silence_s: float = 10
    """After so long without a sample, the program is ended and started again."""

    path_is: ClassVar[str] = "microphone's name in ALSA"
    path_key: ClassVar[str] = "device"
    path_example: ClassVar[str] = "default"
    path_may_be_left_out: ClassVar[bool] = True
    runs_programs: ClassVar[bool] = True
    waiting_inputs: ClassVar[int] = 10

    def __post_init__(self) -> None:
        check_positive(silence_s=self.silence_s, **({} if self.hop is None else {"hop": self.hop}))

    @property
    def name(self) -> str:
        """What people call the source."""
        return f"microphone {self.device}"

    def make(self, sink: InputSink, topic: str, connection: Callable[[], Transport]) -> WindowedSource:  # noqa: ARG002
        """Make what takes the sound."""
        from device_agent.sources.windowed import WindowedSource, rules_for

        reader = sink.reader
        rate_hz = reader.rate_hz
        assert rate_hz is not None  # noqa: S101 - `misfits` says so before

        def note_line(line: str) -> None:
            if _OVERRUN.search(line):
                what, remedy = f"{self.name}: sound was lost ({line})", "give this board less to do"
                sink.tell(EventKind.SOURCE, what, remedy, like=f"{self.name} overrun")

        return WindowedSource(
            sink,
            self.name,
            rules_for(reader, "s16le", self.hop, min_level=self.min_level),
            lambda: self.open(rate_hz, math.prod(reader.shape[1:]), note_line),
            self.remedy_for,
            silence_s=self.silence_s,
        )

    def memory(self) -> dict[str, int]:
        """Return what the program takes that records."""
        return {"the program that records": _MEMORY_BYTES}

    def device_groups(self) -> tuple[str, ...]:
        """Return the group of sound cards."""
        return ("audio",)

    def devices(self) -> tuple[str, ...]:
        """Return what sound cards are, so that one may be unplugged and come back."""
        return ("char-alsa",)

    def misfits(self, manifest: Manifest) -> Iterator[Problem]:
        """Say why the microphone cannot deliver inputs of a bundle."""
        from device_agent.sources.windowed import misfits

        spec = manifest.input
        if spec.is_window and (spec.rate_hz is None or spec.channels):
            why = f"has channels {', '.join(spec.channels)}" if spec.channels else "has no rate_hz"
            yield Problem(
                f"kind: the bundle is not for sound: its input {why}", "choose kind: stream, or another bundle"
            )
            return
        yield from misfits(manifest, self.hop)

    def probe(self, manifest: Manifest, timeout_s: float) -> str:
        """Record for a moment; say how fast samples come."""
        from device_agent.sources.samples import RawSamples
        from device_agent.sources.windowed import try_samples
        from distree.bundle.inputs import InputReader

        reader = InputReader(manifest.input, manifest.preprocess)
        rate_hz = reader.rate_hz or 0.0
        samples = RawSamples("s16le", reader)
        found = try_samples(
            lambda: self.open(rate_hz, math.prod(reader.shape[1:]), None), samples, self.remedy_for, timeout_s
        )
        return f"{self.name}: {found}, by {self.program}; the bundle is for {rate_hz:,g}"

    @property
    def program(self) -> str:
        """The program that records: arecord, which has less to load, or ffmpeg where there is only that."""
        has_arecord, has_ffmpeg = shutil.which("arecord"), shutil.which(ffmpeg.PROGRAM)
        return ffmpeg.PROGRAM if has_ffmpeg and not has_arecord else "arecord"

    def open(self, rate_hz: float, channels: int, on_line: Callable[[str], None] | None) -> Output:
        """Start the program that records."""
        from device_agent.sources.child import Child, require

        if self.program == ffmpeg.PROGRAM:
            return Child(ffmpeg.sound_command(self.device, rate_hz, channels), on_line)
        require(self.program, "alsa-utils")
        rate, count = f"{rate_hz:.0f}", str(channels)
        return Child(["arecord", "-D", self.device, "-t", "raw", "-f", "S16_LE", "-r", rate, "-c", count, "-"], on_line)

    def remedy_for(self, reason: str) -> str:
        """Say what helps."""
        from device_agent.sources.remedies import remedy_for

        return remedy_for(reason, "the microphone", "audio", "arecord -l")
