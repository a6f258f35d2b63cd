"""Odd arrays, raw values and wrapped inputs, made of an input of the bundle; and what is none of these."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from distree.tensors import Array


def npy(array: Any, version: tuple[int, int] | None = None) -> bytes:
    """Return an .npy file."""
    with io.BytesIO() as file:
        npy_format.write_array(file, np.asanyarray(array), version=version, allow_pickle=True)
        return file.getvalue()


def _npz(array: Array) -> bytes:
    with io.BytesIO() as file:
        np.savez(file, input=array)
        return file.getvalue()


def _header(text: bytes, data: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def arrays(raw: Array) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of .npy files, and of raw values."""
    content = raw.tobytes()
    other = np.float32 if raw.dtype != np.float32 else np.float64
    yield "right.npy", npy(raw)
    yield "fortran.npy", npy(np.asfortranarray(raw))
    yield "big-endian.npy", npy(raw.astype(raw.dtype.newbyteorder(">")))
    yield "version2.npy", npy(raw, (2, 0))
    yield "version3.npy", npy(raw, (3, 0))
    yield "other-dtype.npy", npy(raw.astype(other))
    yield "float16.npy", npy(raw.astype(np.float16))
    yield "int64.npy", npy(raw.astype(np.int64))
    yield "bool.npy", npy(raw > 0)
    yield "batch.npy", npy(raw[None])
    yield "channels-first.npy", npy(np.moveaxis(raw, -1, 0))
    yield "no-channels.npy", npy(raw[..., 0])
    yield "flat.npy", npy(raw.ravel())
    yield "empty.npy", npy(raw[:0])
    yield "scalar.npy", npy(raw.ravel()[0])
    yield "objects.npy", npy(np.array([{"a": 1}], object))
    yield "records.npy", npy(np.zeros(3, [("a", "u1"), ("b", "f4")]))
    yield "text.npy", npy(np.array(["a", "b"]))
    yield "cut.npy", npy(raw)[:-1]
    yield "more.npy", npy(raw) + b"x"
    yield "header-cut.npy", npy(raw)[:20]
    yield "header-code.npy", _header(b"__import__('os').system('true')\n", content)
    yield "huge.npy", _header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,)}\n", b"")
    if raw.dtype.kind == "f":
        spoiled = raw.copy()
        spoiled.flat[7] = np.nan
        yield "nan.npy", npy(spoiled)
        yield "nan.bin", spoiled.tobytes()
    yield "archive.npz", _npz(raw)
    yield "pickle.pkl", pickle.dumps(raw)
    yield "raw.bin", content
    yield "raw-short.bin", content[:-1]
    yield "raw-long.bin", content + b"\0"
    yield from of_the_right_length(content)


def of_the_right_length(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield what has exactly as many bytes as the raw values, but begins as something else does."""
    starts = {
        "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0", "png": b"\x89PNG\r\n\x1a\n", "wav": b"RIFF\0\1\0\0WAVEfmt ",
        "npy": b"\x93NUMPY\1\0", "pdf": b"%PDF-1.7\n", "zip": b"PK\3\4", "heic": b"\0\0\0\x18ftypheic",
    }  # fmt: skip
    for name, start in starts.items():
        yield f"as-long-{name}.bin", start + raw[len(start) :]
    filler = b"The page that you have asked for is not here. "
    yield "as-long-html.bin", (b"<!DOCTYPE html><html><body>" + filler * (len(raw) // len(filler) + 1))[: len(raw)]
    yield "as-long-text.bin", (filler * (len(raw) // len(filler) + 1))[: len(raw)]
    head = b'{"temperature": 21.5, "note": "'
    yield "as-long-json.bin", head + b"x" * (len(raw) - len(head) - 2) + b'"}'


def wrapped(raw: Array, file: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield JSON, base64 and data URLs with an input in them; `file` is one that the bundle takes."""
    text = base64.b64encode(file).decode()
    yield "image.json", json.dumps({"camera": "door", "image": text}).encode()
    yield "data-url.json", json.dumps({"image": f"data:application/octet-stream;base64,{text}"}).encode()
    yield "nested.json", json.dumps({"payload": {"data": text}}).encode()
    yield "raw.json", json.dumps({"data": base64.b64encode(raw.tobytes()).decode()}).encode()
    yield "cut.json", json.dumps({"image": text}).encode()[:-20]
    yield "foreign.json", b'{"temperature": 21.5, "humidity": 40, "battery": 97}'
    yield "not-base64.json", b'{"image": "http://hub/a.jpg"}'
    yield "numbers.json", json.dumps({"values": raw.astype(np.float64).tolist()}).encode()
    yield "base64.txt", base64.encodebytes(file)
    yield "data-url.txt", f"data:image/png;base64,{text}".encode()


def others() -> Iterator[tuple[str, bytes]]:
    """Yield what is no input at all."""
    yield "empty", b""
    yield "zeros", bytes(100)
    yield "hello.txt", b"hello"
    yield "page.jpg", b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body></body></html>"
    yield "paper.pdf", b"%PDF-1.7\n" + bytes(100)
    yield "packed.gz", b"\x1f\x8b\x08" + bytes(100)
    yield "photo.zip", b"PK\3\4" + bytes(100)
