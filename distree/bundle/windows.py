"""Windows of a recording, cut by the manifest's `preprocess.window`, alike in training, `distree zoo` and on boards.

Window k begins at sample k · hop, as frames of `tf.signal.frame` do; samples at the end that do not fill a
window are left out. A recording shorter than a window is refused or padded with zeros, as the rule says.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from distree.bundle.manifest import WindowRule
from distree.errors import RemoteProtocolError
from distree.record import record
from distree.tensors import Array

MAX_WINDOWS = 1000
"""The most windows that a board reads from one file."""

_PART = "~"


@record
class Window:
    """One window of a recording: its values, a view where that is possible, and the sample at which it begins."""

    values: Array
    start: int


def cut(recording: Array, length: int, rule: WindowRule) -> list[Window]:
    """Cut a recording, (samples,) or (samples, channels), into windows of `length` samples.

    Raises RemoteProtocolError("size") if it is empty, or shorter or longer than the rule allows.

    >>> [window.start for window in cut(np.zeros(10), 4, WindowRule(hop=3))]
    [0, 3, 6]
    """
    count = len(recording)
    if count == 0:
        raise RemoteProtocolError("size", f"the recording has no samples; a window has {length}", "record it again")
    if count < length:
        if rule.short == "refuse":
            raise RemoteProtocolError(
                "size",
                f"the recording has {count} samples, fewer than a window, which has {length}",
                "record more, or declare window: {short: pad}",
            )
        padding = [(0, length - count), *[(0, 0)] * (recording.ndim - 1)]
        return [Window(values=np.pad(recording, padding), start=0)]
    if rule.hop is None:
        if count > length:
            raise RemoteProtocolError(
                "size",
                f"the recording has {count} samples, more than a window, which has {length}",
                "cut it, or declare window: {hop: SAMPLES}",
            )
        return [Window(values=recording, start=0)]
    starts = range(0, count - length + 1, rule.hop)
    return [Window(values=recording[start : start + length], start=start) for start in starts]


class WindowBuffer:
    """Windows of a stream that comes in pieces, such as a microphone's or a sensor's, by the same rule.

    >>> buffer = WindowBuffer(4, 3)
    >>> [window.tolist() for piece in ([0, 1, 2], [3, 4], [5, 6, 7]) for window in buffer.push(np.array(piece))]
    [[0, 1, 2, 3], [3, 4, 5, 6]]
    """

    def __init__(self, length: int, hop: int) -> None:
        self._length = length
        self._hop = hop
        self._kept: Array | None = None
        self._skip = 0

    def push(self, piece: Array) -> Iterator[Array]:
        """Add the next samples, (samples,) or (samples, channels); yield the windows that they complete."""
        kept = piece if self._kept is None else np.concatenate([self._kept, piece])
        skipped = min(self._skip, len(kept))
        self._skip -= skipped
        start = skipped
        while len(kept) - start >= self._length:
            yield kept[start : start + self._length].copy()
            start += self._hop
        self._skip += max(0, start - len(kept))
        self._kept = kept[start:].copy()

    def rest(self) -> Array | None:
        """Return the samples of the window that is not complete yet; None if there never were any."""
        return self._kept


def request_of(request: str, number: int, count: int) -> str:
    """Return the request id of a window, `number` from 1 of `count`; that of the file itself if it has only one.

    >>> request_of("clip", 2, 5), request_of("clip", 1, 1)
    ('clip~2/5', 'clip')
    """
    return request if count == 1 else f"{request}{_PART}{number}/{count}"


def count_of(request: str) -> tuple[str, int]:
    """Return the request id of the file that a window belongs to, and how many windows the file has.

    >>> count_of("clip~2/5"), count_of("clip")
    (('clip', 5), ('clip', 1))
    """
    whole, part, place = request.rpartition(_PART)
    number, slash, count = place.partition("/")
    is_window = bool(part) and slash == "/" and number.isdecimal() and count.isdecimal()
    return (whole, int(count)) if is_window else (request, 1)
