"""Samples out of bytes that come in pieces: raw numbers, or lines of CSV."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from distree.bundle.preprocessing import FULL_SCALE
from distree.errors import RemoteProtocolError
from distree.printable import quoted
from distree.tensors import Array

if TYPE_CHECKING:
    from distree.bundle.inputs import InputReader

SampleFormat = Literal["s16le", "f32le", "csv"]

MAX_LINE_BYTES = 4096
"""The longest line that is read."""

_NUMBERS = "send one line of numbers per sample, and nothing else but a header"


class Samples(Protocol):
    """What turns bytes into samples of the bundle's dtype: (samples,) or (samples, channels)."""

    def push(self, piece: bytes) -> Array:
        """Return the samples that bytes complete, perhaps none."""

    def end(self) -> Array:
        """Return those that the last bytes make up, now that no more come."""


def samples_of(format_: SampleFormat, reader: InputReader, tell_bad_line: Callable[[str, str], None]) -> Samples:
    """Make what reads a format as samples of a bundle; `tell_bad_line` is given what is wrong, and a remedy."""
    return CsvSamples(reader, tell_bad_line) if format_ == "csv" else RawSamples(format_, reader)


class RawSamples:
    """Little-endian numbers, channel by channel. Half a sample waits for its other half."""

    def __init__(self, format_: Literal["s16le", "f32le"], reader: InputReader) -> None:
        self._given = np.dtype("<i2" if format_ == "s16le" else "<f4")
        self._wanted = reader.dtype
        self._shape = (-1, *reader.shape[1:])
        self._sample_bytes = self._given.itemsize * math.prod(reader.shape[1:])
        self._kept = b""

    def push(self, piece: bytes) -> Array:
        """Return the samples that bytes complete; int16 becomes floats divided by 32,768, as in WAV files."""
        content = self._kept + piece
        whole = len(content) - len(content) % self._sample_bytes
        self._kept = content[whole:]
        samples = np.frombuffer(content[:whole], self._given).reshape(self._shape)
        if self._wanted.kind == "f" and self._given.kind == "i":
            return (samples / FULL_SCALE["int16"]).astype(self._wanted)
        return samples.astype(self._wanted)

    def end(self) -> Array:
        """Return nothing: half a sample is none."""
        return self.push(b"")


class CsvSamples:
    """Lines with one sample each. A line that is none is left out, counted and told."""

    def __init__(self, reader: InputReader, tell_bad_line: Callable[[str, str], None]) -> None:
        from distree.bundle.inputs.tables import LineTables

        self._reader = reader
        self._tell_bad_line = tell_bad_line
        self._tables = LineTables(reader.is_header)
        self._begun = b""
        self._is_too_long = False
        self._number = 0
        self._none = np.zeros((0, *reader.shape[1:]), reader.dtype)

    def push(self, piece: bytes) -> Array:
        """Return the samples of the lines that bytes complete."""
        *lines, self._begun = (self._begun + piece).split(b"\n")
        found = [sample for line in lines for sample in self._sample_of(line)]
        if len(self._begun) > MAX_LINE_BYTES:
            # Its end is left out as well, when it comes.
            self._begun, self._is_too_long = b"", True
        return np.concatenate(found) if found else self._none

    def end(self) -> Array:
        """Return the sample of a last line without an end."""
        return self.push(b"\n")

    def _sample_of(self, line: bytes) -> list[Array]:
        self._number += 1
        text = line.decode("utf-8", "replace").strip("\r\ufeff")
        if self._is_too_long or len(line) > MAX_LINE_BYTES:
            self._is_too_long = False
            self._tell_bad_line(f"one longer than {MAX_LINE_BYTES} bytes", "end each sample with a line feed")
            return []
        try:
            table = self._tables.read(self._number, text)
            return [] if table is None else [self._reader.samples_of(table)]
        except RemoteProtocolError as error:
            # The first may have begun before it was listened to.
            if self._number > 1:
                self._tell_bad_line(f"{quoted(text, 60)}: {error.detail}", error.remedy or _NUMBERS)
            return []
