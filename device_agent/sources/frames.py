"""Pictures out of a program's output, and the newest of them for whoever wants one."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import numpy as np

from distree.errors import RemoteProtocolError
from distree.printable import printable
from distree.tensors import Array

MAX_FRAME_BYTES = 4 << 20
"""The largest picture that is taken in."""

_HEADER = re.compile(rb"P([56])\s+(\d{1,5})\s+(\d{1,5})\s+255\s")
_LONGEST_HEADER = 32
_PPM = "let the program write PPM pictures (P6) of at most 4 MiB, one after the other"


class FrameReader:
    """Cuts an output into pictures, PPM or PGM with 8 bits. Each says its size, which changes with a camera's mode.

    `take_frame` is given each, uint8 (height, width, 3 or 1).
    """

    def __init__(self, take_frame: Callable[[Array], None]) -> None:
        self._take_frame = take_frame
        self._buffer = bytearray()
        self._shape: tuple[int, int, int] | None = None
        self._header_bytes = 0

    def take(self, piece: bytes) -> bool:
        """Take in bytes; whether they completed a picture.

        Raises RemoteProtocolError if they begin none; behind a whole picture, only at the next call.
        """
        self._buffer += piece
        completed = False
        while True:
            if self._shape is None:
                try:
                    self._read_header()
                except RemoteProtocolError:
                    if completed:
                        return True
                    raise
            if self._shape is None:
                return completed
            ends_at = self._header_bytes + self._shape[0] * self._shape[1] * self._shape[2]
            if len(self._buffer) < ends_at:
                return completed
            pixels = np.frombuffer(bytes(memoryview(self._buffer)[self._header_bytes : ends_at]), np.uint8)
            del self._buffer[:ends_at]
            self._take_frame(pixels.reshape(self._shape))
            self._shape, completed = None, True

    def end(self) -> None:
        """Nothing is made of half a picture."""

    def _read_header(self) -> None:
        found = _HEADER.match(self._buffer)
        if found is None:
            # What cannot become a header is none, however little of it there is.
            if len(self._buffer) > _LONGEST_HEADER or bytes(self._buffer[:1]) not in (b"", b"P"):
                begin = printable(bytes(self._buffer[:16]).decode("latin-1"))
                raise RemoteProtocolError("source", f"its output is no picture in PPM (it begins with '{begin}')", _PPM)
            return
        channels = 3 if found[1] == b"6" else 1
        width, height = int(found[2]), int(found[3])
        if not 0 < width * height * channels <= MAX_FRAME_BYTES:
            raise RemoteProtocolError("source", f"a picture has {width}x{height} pixels, too many or none", _PPM)
        self._shape, self._header_bytes = (height, width, channels), found.end()


class NewestFrame:
    """The newest picture: one that comes before the last was taken replaces it, and is counted."""

    def __init__(self) -> None:
        self._frame: Array | None = None
        self._changed = threading.Condition()
        self._is_over = False
        self.arrived = 0
        self.replaced = 0

    def put(self, frame: Array) -> None:
        """Keep a picture in place of the last."""
        with self._changed:
            self.arrived += 1
            self.replaced += self._frame is not None
            self._frame = frame
            self._changed.notify()

    def clear(self) -> None:
        """Forget a picture that nobody took, which is old by the time that others come."""
        with self._changed:
            self.replaced += self._frame is not None
            self._frame = None

    def close(self) -> None:
        """No more pictures come."""
        with self._changed:
            self._is_over = True
            self._changed.notify()

    @property
    def is_over(self) -> bool:
        """Whether there is no picture, and none will come."""
        with self._changed:
            return self._is_over and self._frame is None

    def take(self, timeout_s: float) -> Array | None:
        """Return the newest picture, once; None if none comes in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._is_over, timeout_s)
            frame, self._frame = self._frame, None
            return frame
