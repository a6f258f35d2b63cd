"""Recordings in WAV files: every width of PCM, written byte by byte here, and what is refused."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest

from distree.bundle.inputs.wav import looks_like_wav, read_wav
from distree.errors import RemoteProtocolError


def wav(data, width=2, channels=1, rate=16000, encoding=1, extra=b""):
    """A WAV file, by its specification."""
    block = channels * width
    form = struct.pack("<HHIIHH", encoding, channels, rate, rate * block, block, 8 * width) + extra
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def extensible(data, width, subformat=1):
    guid = struct.pack("<H", subformat) + bytes.fromhex("000000001000800000aa00389b71")
    return wav(data, width, encoding=0xFFFE, extra=struct.pack("<HHI", 22, 8 * width, 4) + guid)


# The same five values in each width: least, -1/2, 0, 1/2, largest.
DATA = {
    1: bytes([0x00, 0x40, 0x80, 0xC0, 0xFF]),
    2: struct.pack("<5h", -0x8000, -0x4000, 0, 0x4000, 0x7FFF),
    3: bytes.fromhex("000080" "0000c0" "000000" "000040" "ffff7f"),
    4: struct.pack("<5i", -0x80000000, -0x40000000, 0, 0x40000000, 0x7FFFFFFF),
}  # fmt: skip


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("make", [wav, extensible])
def test_all_widths_are_the_same_sound(width, make):
    sound = read_wav(make(DATA[width], width))
    assert (sound.bits, sound.rate_hz, sound.samples.shape) == (8 * width, 16000, (5, 1))
    assert sound.as_int16().dtype == np.int16
    largest = 0x7F00 if width == 1 else 0x7FFF
    assert sound.as_int16()[:, 0].tolist() == [-0x8000, -0x4000, 0, 0x4000, largest]
    floats = sound.as_float32()
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats[:4, 0], [-1, -0.5, 0, 0.5], rtol=0, atol=0)
    assert 0.99 < floats[4, 0] <= 1.0


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_what_pythons_writer_wrote_comes_back(width):
    data = np.random.default_rng(width).integers(0, 256, 600, dtype=np.uint8).tobytes()
    with io.BytesIO() as file:
        with wave.open(file, "wb") as writer:
            writer.setnchannels(2)
            writer.setsampwidth(width)
            writer.setframerate(8000)
            writer.writeframes(data)
        sound = read_wav(file.getvalue())
    assert sound.samples.shape == (300 // width, 2)
    for at in (0, 7, 49):
        piece = data[2 * width * at : 2 * width * at + width]
        expected = piece[0] - 128 if width == 1 else int.from_bytes(piece, "little", signed=True)
        assert sound.samples[at, 0] == expected


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (wav(bytes(8), 4, encoding=3), "its samples are floating-point numbers"),
        (wav(bytes(8), 1, encoding=7), "its samples are µ-law"),
        (wav(bytes(8), 2, encoding=85), "its samples are MP3"),
        (extensible(bytes(8), 4, subformat=3), "its samples are floating-point numbers"),
        (wav(DATA[2])[:-3], "it is cut off after 7 of 10 bytes of samples"),
        (wav(DATA[2])[:30], "it is cut off"),
        (wav(DATA[2])[:12], "it is cut off before its samples"),
        (b"RIFX" + wav(DATA[2])[4:], "big-endian"),
        (wav(DATA[2], channels=0), "0 channels of"),
        (wav(DATA[2], channels=300, width=2), "300 channels of 16 bits"),
        (wav(DATA[2], rate=0), "at 0 Hz are not supported"),
        (wav(bytes(40), width=5), "40 bits|sample width"),
    ],
)
def test_what_cannot_be_read_says_why_and_what_to_do(content, why):
    with pytest.raises(RemoteProtocolError, match=why) as caught:
        read_wav(content)
    assert caught.value.reason == "wav"
    assert "ffmpeg -i IN -c:a pcm_s16le OUT.wav" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_that_promises_gigabytes_takes_none():
    content = bytearray(wav(DATA[2]))
    content[40:44] = b"\xff\xff\xff\x7f"
    with pytest.raises(RemoteProtocolError, match="it is cut off"):
        read_wav(bytes(content))


def test_wav_files_are_known_by_their_first_bytes():
    assert looks_like_wav(wav(b""))
    assert not looks_like_wav(b"RIFF\0\0\0\0WEBP")
    assert not looks_like_wav(b"RIFF")


def test_damaged_files_are_read_or_refused():
    random = np.random.default_rng(5)
    content = wav(random.integers(0, 256, 400, dtype=np.uint8).tobytes(), 2, 2)
    refused = 0
    for _ in range(500):
        damaged = bytearray(content[: random.integers(1, len(content) + 1)])
        for at in random.integers(0, min(60, len(damaged)), 2):
            damaged[at] = random.integers(0, 256)
        try:
            read_wav(bytes(damaged))
        except RemoteProtocolError:
            refused += 1
    assert refused > 100
