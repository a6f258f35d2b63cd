"""Odd WAV and CSV files, made of a window as the bundle takes it, or of one like it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from distree.tensors import Array

_GUID = bytes.fromhex("000000001000800000aa00389b71")


def wav(data: bytes, rate: int, *, bits: int = 16, channels: int = 1, encoding: int = 1, extra: bytes = b"") -> bytes:
    """Write a WAV file by its specification."""
    return _riff(_chunk(b"fmt ", _form(rate, bits, channels, encoding) + extra), _chunk(b"data", data))


def _form(rate: int, bits: int, channels: int, encoding: int) -> bytes:
    block = channels * bits // 8
    return struct.pack("<HHIIHH", encoding, channels, rate, rate * block, block, bits)


def _chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + bytes(len(body) % 2)


def _riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def sounds(samples: Array, rate: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of WAV files of `samples`, int16 (n,)."""
    data = samples.astype("<i2").tobytes()
    wide = samples.astype(np.int64)
    form, body = _chunk(b"fmt ", _form(rate, 16, 1, 1)), _chunk(b"data", data)
    yield "mono.wav", wav(data, rate)
    yield "stereo.wav", wav(np.repeat(samples, 2).astype("<i2").tobytes(), rate, channels=2)
    yield "8-bit.wav", wav((wide // 256 + 128).astype(np.uint8).tobytes(), rate, bits=8)
    yield "24-bit.wav", wav(b"".join(struct.pack("<i", value << 8)[:3] for value in wide.tolist()), rate, bits=24)
    yield "32-bit.wav", wav((wide << 16).astype("<i4").tobytes(), rate, bits=32)
    yield (
        "extensible.wav",
        wav(data, rate, encoding=0xFFFE, extra=struct.pack("<HHI", 22, 16, 4) + struct.pack("<H", 1) + _GUID),
    )
    yield "extensible-float.wav", wav(
        (wide / 32768).astype("<f4").tobytes(), rate, bits=32, encoding=0xFFFE,
        extra=struct.pack("<HHI", 22, 32, 4) + struct.pack("<H", 3) + _GUID,
    )  # fmt: skip
    yield "float.wav", wav((wide / 32768).astype("<f4").tobytes(), rate, bits=32, encoding=3)
    yield "mu-law.wav", wav(bytes(len(samples)), rate, bits=8, encoding=7)
    yield "other-rate.wav", wav(data, 2 * rate)
    yield "cut.wav", wav(data, rate)[:-1000]
    yield "header-only.wav", wav(data, rate)[:40]
    yield "no-samples.wav", wav(b"", rate)
    yield "odd-chunk.wav", _riff(form, _chunk(b"LIST", b"INFOISFT\x05\0\0\0odd!\0"), _chunk(b"junk", b"abc"), body)
    yield "chunk-before.wav", _riff(_chunk(b"bext", bytes(602)), form, body)
    yield "chunk-after.wav", _riff(form, body, _chunk(b"id3 ", b"ID3\3" + bytes(9)))
    yield "piped.wav", _riff(form, _chunk(b"data", data, 0xFFFFFFFF))
    yield "big-endian.wav", b"RIFX" + wav(data, rate)[4:]
    yield "short.wav", wav(data[: len(data) // 2], rate)
    yield "long.wav", wav(data * 2, rate)
    yield "sound.flac", b"fLaC" + bytes(100)
    yield "sound.mp3", b"ID3\3" + bytes(100)
    yield "sound.m4a", b"\0\0\0\x20ftypM4A " + bytes(100)


def _rows(table: Array, separator: str = ",", decimal: str = ".", end: str = "\n") -> str:
    return "".join(separator.join(map(repr, row)).replace(".", decimal) + end for row in table.tolist())


def tables(window: Array, names: Sequence[str], rate: float) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of CSV files of a window, float (samples, channels)."""
    window = window.astype(np.float64)
    times = np.arange(len(window))[:, None] / rate
    timed = np.hstack([1e3 * times, window])
    head = ",".join(names) + "\n"
    order = list(range(len(names)))[::-1]
    plain = head + _rows(window)
    yield "plain.csv", plain.encode()
    yield "no-header.csv", _rows(window).encode()
    yield "time.csv", ("time (ms)," + head + _rows(timed)).encode()
    yield "other-rate.csv", ("time (ms)," + head + _rows(np.hstack([10e3 * times, window]))).encode()
    yield "semicolons.csv", (head.replace(",", ";") + _rows(window, ";")).encode()
    yield "decimal-commas.csv", (head.replace(",", ";") + _rows(window, ";", ",")).encode()
    yield "tabs.tsv", (head.replace(",", "\t") + _rows(window, "\t")).encode()
    yield "crlf.csv", plain.replace("\n", "\r\n").encode()
    yield "bom.csv", b"\xef\xbb\xbf" + plain.encode()
    yield "utf16-le.csv", b"\xff\xfe" + plain.encode("utf-16-le")
    yield "utf16-be.csv", b"\xfe\xff" + plain.encode("utf-16-be")
    yield "quoted.csv", (",".join(f'"{name}"' for name in names) + "\n" + _rows(window)).encode()
    yield "shuffled.csv", (",".join(names[at] for at in order) + "\n" + _rows(window[:, order])).encode()
    yield "units.csv", (",".join(f"{name} (m/s^2)" for name in names) + "\n" + _rows(window)).encode()
    yield "label.csv", (head[:-1] + ",label\n" + _rows(window).replace("\n", ",walk\n")).encode()
    yield (
        "row-numbers.csv",
        ("," + head + "".join(f"{k},{line}\n" for k, line in enumerate(_rows(window).splitlines()))).encode(),
    )
    yield "one-row.csv", _rows(window.reshape(1, -1)).encode()
    yield "nan.csv", plain.replace(repr(window[3, 0].item()), "nan").encode()
    yield "empty-cell.csv", (head + _rows(window[:5]) + "," * (len(names) - 1) + "\n").encode()
    yield "ragged.csv", (plain + "1\n").encode()
    yield "column-missing.csv", (",".join(names[1:]) + "\n" + _rows(window[:, 1:])).encode()
    yield "column-more.csv", (head[:-1] + ",extra\n" + _rows(np.hstack([window, times]))).encode()
    yield "header-only.csv", head.encode()
    yield "short.csv", (head + _rows(window[: len(window) // 2])).encode()
    yield "long.csv", (head + _rows(np.vstack([window, window]))).encode()
