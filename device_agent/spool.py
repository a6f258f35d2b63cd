"""Accepted inputs on disk, so that an origin that dies answers them when it is back.

An append-only journal of msgpack records, bounded in bytes: [1, request, name, dtype, shape, payload] when an input
is accepted, [0, request] when its result is with the broker. Nothing is forced to the medium: the journal survives
the death of the process, and as much of a power cut as the kernel has written. On a small board put `state_dir` on a
tmpfs to spare the SD card, at the price of the power cut.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path

import msgpack

from distree.node import Accepted
from distree.types import Tensor

log = logging.getLogger(__name__)

LIMIT_BYTES = 4 << 20

REMEMBERED = 1024
"""Answered requests that a rewritten journal still names, so that one delivered again is not answered again."""


class Spool:
    """The journal of one pipeline's origin. A disk that fails is logged once; answering goes on without it."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._open: dict[str, Accepted] = {}
        self._answered: deque[str] = deque(maxlen=REMEMBERED)
        self._file: int | None = None
        self._size = 0

    def recover(self) -> tuple[tuple[Accepted, ...], tuple[str, ...]]:
        """Read what an earlier run left open, and the requests it answered last; start afresh with just that."""
        for record in _records(self._path):
            if accepted := _accepted(record):
                self._open[accepted.request] = accepted
            elif type(record) is tuple and len(record) == 2 and type(record[1]) is str:
                self._open.pop(record[1], None)
                self._answered.append(record[1])
        self._rewrite()
        return tuple(self._open.values()), tuple(self._answered)

    def accepted(self, item: Accepted) -> None:
        """Note an accepted input."""
        self._open[item.request] = item
        self._append(_pack(item))

    def answered(self, request: str) -> None:
        """Note that the broker has a request's result."""
        if self._open.pop(request, None) is None:
            return
        self._answered.append(request)
        if self._size > self._limit_bytes:
            self._rewrite()
        else:
            self._append(msgpack.packb((0, request)))

    def close(self) -> None:
        """Close the file; what is open in it stays for the next run."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, record: bytes) -> None:
        if self._file is None:
            return
        try:
            written = os.write(self._file, record)
        except OSError as error:
            self._give_up(error)
            return
        self._size += written
        if written < len(record):
            # Later records would be read as the rest of this one.
            self._rewrite()

    def _rewrite(self) -> None:
        """Replace the journal by one of just the open inputs, in one step that a crash cannot halve."""
        self.close()
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            closed = [msgpack.packb((0, request)) for request in self._answered]
            content = b"".join((*closed, *map(_pack, self._open.values())))
            fresh.write_bytes(content)
            fresh.replace(self._path)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._size = len(content)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.error(
            "spool %s: %s; going on without it: a crash of this agent would lose its inputs",
            self._path,
            error,
        )
        self.close()
        # Nothing is appended any more, so there is nothing to rewrite either.
        self._size = 0


def _pack(item: Accepted) -> bytes:
    tensor = item.tensor
    packed: bytes = msgpack.packb((1, item.request, item.name, tensor.dtype, tensor.shape, bytes(tensor.payload)))
    return packed


def _records(path: Path) -> list[object]:
    """Read the records up to the first that a crash cut short."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=max(1, len(content)))
    unpacker.feed(content)
    records: list[object] = []
    try:
        records.extend(unpacker)
    except (ValueError, msgpack.UnpackException) as error:
        log.warning("spool %s: damaged after %d records: %s", path, len(records), error)
    return records


def _accepted(record: object) -> Accepted | None:
    match record:
        case (
            1,
            str(request),
            str(name),
            ("int8" | "uint8" | "float16" | "float32") as dtype,
            tuple(shape),
            bytes(payload),
        ):
            tensor = Tensor(dtype=dtype, shape=shape, codec="raw", payload=payload)
            return Accepted(request=request, name=name, tensor=tensor)
    return None
