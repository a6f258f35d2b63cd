"""Recordings in WAV files: PCM of 8, 16, 24 or 32 bits, any number of channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from distree.errors import RemoteProtocolError
from distree.record import record
from distree.tensors import Array

MAX_CHANNELS = 64

_PCM, _EXTENSIBLE = 1, 0xFFFE
_OTHERS = {2: "ADPCM", 3: "floating-point numbers", 6: "A-law", 7: "µ-law", 17: "IMA ADPCM", 80: "MPEG", 85: "MP3"}
_OTHER_KINDS = {b"RIFX": "it is big-endian (RIFX)", b"RF64": "it is in the format for more than 4 GiB (RF64)"}
_UNKNOWN_SIZE = 0xFFFFFFFF
"""What a program writes that did not know yet how much would follow, as into a pipe."""


@record
class Sound:
    """The content of a WAV file: `samples` int32 (samples, channels), of `bits` bits each; rate in hertz."""

    samples: Array
    bits: int
    rate_hz: int

    def as_int16(self) -> Array:
        """Return the samples as int16: shorter ones are scaled up, longer ones keep their upper 16 bits."""
        shift = self.bits - 16
        scaled = self.samples >> shift if shift >= 0 else self.samples << -shift
        return scaled.astype(np.int16)

    def as_float32(self) -> Array:
        """Return the samples as float32 from −1 to 1."""
        return (self.samples / float(1 << (self.bits - 1))).astype(np.float32)


def looks_like_wav(content: bytes) -> bool:
    """Whether bytes begin as a WAV file does."""
    return content[:4] in (b"RIFF", b"RIFX", b"RF64") and content[8:12] == b"WAVE"


def read_wav(content: bytes) -> Sound:
    """Read a WAV file. Raises RemoteProtocolError("wav") for a damaged one, or an encoding other than PCM."""
    if content[:4] in _OTHER_KINDS:
        raise _refused(_OTHER_KINDS[content[:4]])
    form, data = b"", None
    for name, begin, size in _chunks(content):
        if name == b"fmt ":
            form = content[begin : begin + size]
        elif name == b"data":
            data = begin, size
            break
    if data is None:
        raise _refused("it is cut off before its samples")
    if len(form) < 16:
        raise _refused("it does not say before its samples what they are")
    encoding, channels, rate, width = _format(form)
    if encoding != _PCM:
        raise _refused(f"its samples are {_OTHERS.get(encoding, f'in encoding {encoding}')}")
    if not (1 <= channels <= MAX_CHANNELS and 1 <= width <= 4 and rate > 0):
        raise _refused(f"{channels} channels of {8 * width} bits at {rate} Hz are not supported")
    begin, size = data
    there = len(content) - begin
    frame = channels * width
    if size == _UNKNOWN_SIZE:
        size = there - there % frame
    if there < size:
        raise _refused(f"it is cut off after {there:,} of {size:,} bytes of samples")
    samples = _integers(content[begin : begin + size - size % frame], width)
    return Sound(samples=samples.reshape(-1, channels), bits=8 * width, rate_hz=rate)


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, beginning and size of each chunk; sizes are odd or even, but chunks begin at even places."""
    at = 12
    while at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        yield content[at : at + 4], at + 8, size
        at += 8 + size + size % 2


def _format(form: bytes) -> tuple[int, int, int, int]:
    """Return encoding, channels, rate in hertz, and bytes per sample."""
    encoding = int.from_bytes(form[0:2], "little")
    if encoding == _EXTENSIBLE and len(form) >= 26:
        encoding = int.from_bytes(form[24:26], "little")
    channels, bits = int.from_bytes(form[2:4], "little"), int.from_bytes(form[14:16], "little")
    return encoding, channels, int.from_bytes(form[4:8], "little"), (bits + 7) // 8


def _integers(data: bytes, width: int) -> Array:
    """Return little-endian samples of `width` bytes as int32; those of one byte are unsigned."""
    if width == 1:
        return np.frombuffer(data, np.uint8).astype(np.int32) - 128
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        shifted: Array = wide.view("<i4")[:, 0].astype(np.int32) >> 8
        return shifted
    return np.frombuffer(data, f"<i{width}").astype(np.int32)


def _refused(why: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        "wav", f"not a WAV file of PCM samples: {why}"[:300], "convert it: ffmpeg -i IN -c:a pcm_s16le OUT.wav"
    )
