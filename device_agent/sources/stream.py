"""Windows of samples from any program, FIFO, serial device or file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from device_agent.sources.base import BaseSourceConfig, InputSink
from distree.errors import ConfigError, Problem
from distree.printable import printable, without_credentials
from distree.record import record
from distree.strict_yaml import check_positive
from distree.transport.base import Transport

if TYPE_CHECKING:
    from device_agent.sources.output import Output
    from device_agent.sources.samples import SampleFormat
    from device_agent.sources.windowed import WindowedSource
    from distree.bundle.inputs import InputReader
    from distree.bundle.manifest import Manifest

_MEMORY_BYTES = 64 << 20


@record
class StreamSourceConfig(BaseSourceConfig):
    """Windows of samples from a program, a FIFO, a serial device or a file: raw numbers, or lines of CSV.

    Samples must come at the bundle's rate: time is counted in samples. What fails is tried again.
    """

    kind: Literal["stream"]
    """Samples from a program, a FIFO, a serial device or a file."""
    command: tuple[str, ...] = ()
    """A program, with its arguments, that writes samples to its standard output. No shell takes part."""
    path: Path | None = None
    """Instead of `command`: a FIFO, a serial device (`/dev/ttyUSB0`) or a file. A file is read once, as fast as its
    windows are answered."""
    baud: int | None = None
    """Speed of a serial device; if left out, it stays as it is."""
    format: Literal["s16le", "f32le", "csv"] | None = None
    """Samples as raw numbers, 16-bit integers or 32-bit floats, little-endian, with the channels of one sample after
    another; or one sample per line. By default s16le if the bundle's inputs are int16, else csv."""
    hop: int | None = None
    """Samples from the start of one window to the start of the next; by default the bundle's `window.hop`."""
    live: bool = True
    """Samples come whether or not there is time for them: if windows are not answered as fast as they come, the oldest
    are dropped, and a program that ends is started again. If false, reading waits, and the end of the program is the
    end."""
    silence_s: float = 10
    """After so long without a sample, it is told; a program is ended and started again."""

    path_is: ClassVar[str] = "FIFO, serial device or file"
    path_example: ClassVar[str] = "/dev/ttyUSB0"
    runs_programs: ClassVar[bool] = True
    waiting_inputs: ClassVar[int] = 10

    def __post_init__(self) -> None:
        from device_agent.sources.opened_path import check_baud

        if bool(self.command) == (self.path is not None):
            raise ConfigError("path: give either this or command", "name a FIFO, a serial device or a file")
        if self.baud is not None:
            check_baud(self.baud)
        check_positive(silence_s=self.silence_s, **({} if self.hop is None else {"hop": self.hop}))

    @property
    def name(self) -> str:
        """What people call the source."""
        return f"stream {printable(without_credentials(self.command[0] if self.command else str(self.path)), 80)}"

    def make(self, sink: InputSink, topic: str, connection: Callable[[], Transport]) -> WindowedSource:  # noqa: ARG002
        """Make what takes the samples."""
        from device_agent.sources.windowed import WindowedSource, rules_for

        is_live = self.live and not (self.path is not None and self.path.is_file())
        return WindowedSource(
            sink,
            self.name,
            rules_for(sink.reader, self.format_for(sink.reader), self.hop, is_live=is_live),
            self.open,
            self.remedy_for,
            silence_s=self.silence_s,
        )

    def format_for(self, reader: InputReader) -> SampleFormat:
        """Return the format of samples for a bundle."""
        return self.format or ("s16le" if reader.dtype == "int16" else "csv")

    def memory(self) -> dict[str, int]:
        """Return what the program takes that writes samples; nobody knows it, so it is assumed."""
        return {"the program of the stream": _MEMORY_BYTES} if self.command else {}

    def read_files(self) -> tuple[Path, ...]:
        """Return the file that is read."""
        return (self.path,) if self.path is not None and not self._is_device else ()

    @property
    def _is_device(self) -> bool:
        return self.path is not None and self.path.is_relative_to("/dev")

    def device_groups(self) -> tuple[str, ...]:
        """Return the group of serial devices; what programs read is not known."""
        return ("dialout",) if self._is_device else ()

    def devices(self) -> tuple[str, ...]:
        """Return what the device is, so that it may be unplugged and come back; /dev/ttyUSB0 is a char-ttyUSB."""
        if self.path is None or not self._is_device:
            return ()
        name = self.path.resolve().name.rstrip("0123456789")
        return (f"char-{name}",) if name.startswith("tty") else (str(self.path),)

    def misfits(self, manifest: Manifest) -> Iterator[Problem]:
        """Say why the stream cannot deliver inputs of a bundle."""
        from device_agent.sources.windowed import misfits

        yield from misfits(manifest, self.hop)
        dtype = manifest.input.dtype
        if self.format == "f32le" and dtype == "int16":
            yield Problem("format: f32le does not become the bundle's int16", "let the program write s16le")

    def probe(self, manifest: Manifest, timeout_s: float) -> str:
        """Read for a moment; say how fast samples come."""
        from device_agent.sources.samples import samples_of
        from device_agent.sources.windowed import try_samples
        from distree.bundle.inputs import InputReader

        reader = InputReader(manifest.input, manifest.preprocess)
        samples = samples_of(self.format_for(reader), reader, lambda *_: None)
        found = try_samples(self.open, samples, self.remedy_for, timeout_s)
        rate = manifest.input.rate_hz
        return f"{self.name}: {found}" + (f"; the bundle is for {rate:,g}" if rate else "")

    def open(self) -> Output:
        """Start the program, or open the path."""
        if self.path is not None:
            from device_agent.sources.opened_path import OpenedPath

            return OpenedPath(self.path, self.baud)
        from device_agent.sources.child import Child, require

        require(self.command[0])
        return Child(self.command)

    def remedy_for(self, reason: str) -> str:
        """Say what helps."""
        from device_agent.sources.remedies import remedy_for

        return remedy_for(reason, "the device", "dialout", "ls -l /dev/serial/by-id")
