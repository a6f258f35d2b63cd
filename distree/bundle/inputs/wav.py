"""Recordings in WAV files: PCM of 8, 16, 24 or 32 bits, any number of channels."""

from __future__ import annotations

import io
import wave

import numpy as np

from distree.errors import RemoteProtocolError
from distree.record import record
from distree.tensors import Array

MAX_CHANNELS = 64

_EXTENSIBLE = b"\xfe\xff"
_PCM = b"\x01\x00"
_OTHERS = {2: "ADPCM", 3: "floating-point numbers", 6: "A-law", 7: "µ-law", 17: "IMA ADPCM", 85: "MP3"}


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
    try:
        with wave.open(io.BytesIO(_plain(content))) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            count = file.getnframes()
            if not (1 <= channels <= MAX_CHANNELS and 1 <= width <= 4 and rate > 0):
                raise _refused(f"{channels} channels of {8 * width} bits at {rate} Hz are not supported")
            data = file.readframes(min(count, len(content)))
    except RemoteProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - the reader raises many kinds for damaged files
        raise _refused(_why(content, error)) from None
    if len(data) != count * channels * width:
        raise _refused(
            f"it is cut off: {len(data)} bytes of samples, but its header promises {count * channels * width}"
        )
    return Sound(samples=_integers(data, width).reshape(-1, channels), bits=8 * width, rate_hz=rate)


def _plain(content: bytes) -> bytes:
    """Turn the header of extensible PCM, which Python's reader accepts from 3.12 on, into the plain one."""
    if content[12:16] == b"fmt " and content[20:22] == _EXTENSIBLE and content[44:46] == _PCM:
        return content[:20] + _PCM + content[22:]
    return content


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


def _why(content: bytes, error: Exception) -> str:
    encoding = int.from_bytes(content[20:22], "little") if content[12:16] == b"fmt " else 1
    if encoding in _OTHERS:
        return f"its samples are {_OTHERS[encoding]}"
    return str(error) or "it is cut off"


def _refused(why: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        "wav", f"not a WAV file of PCM samples: {why}"[:300], "convert it: ffmpeg -i IN -c:a pcm_s16le OUT.wav"
    )
