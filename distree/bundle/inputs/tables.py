"""Tables of samples in text: CSV as Edge Impulse, phone loggers, pandas and spreadsheets write it.

One row is one point of time, with a number per channel; columns are separated by commas, semicolons or tabs, and after
the latter two a decimal comma is read too. A header row names them. Columns of time (`time`, `timestamp`, `t`,
`seconds_elapsed` …), of labels (`label`, `class`, `activity`, `target`, `gesture`) and of row numbers (`index`, or an
empty name, as pandas writes it) are recognised by name; all others are channels.
"""

from __future__ import annotations

import array
import csv
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from distree.errors import RemoteProtocolError
from distree.printable import quoted
from distree.record import record
from distree.tensors import Array

MAX_COLUMNS = 200_000
MAX_LINE_CHARS = 4 << 20
_SHOWN = 40
_LONGEST_NUMBER = 64  # raw values may look like one that is longer

_TIME = (
    r"(t|ts|time|timestamp|datetime|date|epoch|ms|millis|seconds|seconds_elapsed|elapsed|logging_?time|loggingsample)"
    r"(?=$|[\s_(\[])"
)
_UNITS_S = (
    (r"[(\[_\s](ms|msec|millis|milliseconds)[)\]]?$|^(ms|millis)$", 1e-3),
    (r"[(\[_\s](us|µs|microseconds)[)\]]?$", 1e-6),
    (r"[(\[_\s](ns|nanoseconds)[)\]]?$", 1e-9),
    (r"[(\[_\s](s|sec|seconds)[)\]]?$|^seconds", 1.0),
)
_LABELS = frozenset({"label", "labels", "class", "class_name", "activity", "target", "gesture", "category"})
_ROW_NUMBERS = frozenset({"", "index", "row", "unnamed: 0"})
_TEXT = frozenset(range(0x20, 0x7F)) | {0x09, 0x0A, 0x0D} | frozenset(range(0x80, 0x100))
_PAUSE = 10.0
"""A time step this many times the usual one is a pause: what follows is a new recording."""

_REGULAR_ROWS = 8
"""Rows after which the usual step is known."""


@record
class Table:
    """Rows of one recording, in the order of time.

    values: float64 (rows, channels). columns: the channels' names, () without a header row. label: from the label
    column, None without one. period_s: the usual time between rows, if known; `period` is the same in the
    unit of the time column, which may not be known. first_line: line of the file where it begins, from 1.
    """

    values: Array
    columns: tuple[str, ...]
    label: str | None
    period: float | None
    period_s: float | None
    first_line: int


@record
class _Layout:
    """Which column is what; numbers count from 0."""

    channels: tuple[int, ...]
    names: tuple[str, ...]
    time: int | None
    time_unit_s: float | None
    label: int | None
    width: int


def looks_like_table(content: bytes) -> bool:
    r"""Whether bytes are text whose second line, or only one, has a number in at least one cell.

    >>> looks_like_table(b"time,x\n0,1.5\n"), looks_like_table(b"hello"), looks_like_table(b"\x00\x01,\n")
    (True, False, False)
    """
    head = content[:65_536]
    if not head or not _TEXT.issuperset(head):
        return False
    lines = [line for line in head.decode("latin-1").splitlines()[:3] if line.strip()]
    if not lines:
        return False
    separator = _separator(lines[0])
    cells = [line.split(separator) if separator else [line] for line in lines[:2]]
    return any(_number(cell.strip(' "'), separator) is not None for cell in cells[-1])


def as_utf8(content: bytes) -> bytes:
    """Return text in UTF-16 with a byte order mark, as spreadsheets write it, in UTF-8; anything else as it is."""
    if content[:2] not in (b"\xff\xfe", b"\xfe\xff") or content[4:64].count(0) < len(content[4:64]) // 3:
        return content  # raw values may begin so, too, but are not every other byte 0
    try:
        return content.decode("utf-16").encode()
    except UnicodeError:
        return content


def read_tables(content: bytes) -> list[Table]:
    """Read all recordings in the content of a CSV file; see `tables_in`."""
    return list(tables_in(io.BytesIO(content)))


def tables_in(file: BinaryIO) -> Iterator[Table]:
    """Yield the recordings in a CSV file: a new one begins where the label changes, time goes back, or after a pause.

    Raises RemoteProtocolError("table"), with the line, for a cell without a finite number or a row of another length.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace")
    lines = enumerate(iter(lambda: text.readline(MAX_LINE_CHARS + 1), ""), 1)
    numbered = ((number, line) for number, line in lines if line.strip())
    first = next(numbered, None)
    if first is None:
        raise _refused(1, "there are no rows")
    separator = _separator(first[1])
    rows = _cells(itertools.chain([first], numbered), separator)
    number, cells = next(rows)
    has_header = any(_number(cell, separator) is None for cell in cells)
    layout = _layout(number, cells) if has_header else _unnamed(len(cells))
    if not has_header:
        rows = itertools.chain([(number, cells)], rows)
    found = False
    for part in _parts(rows, layout, separator):
        found = True
        yield part
    text.detach()
    if not found:
        raise _refused(number, "there are no rows after the header")


class LineTables:
    """Rows of a table that come line by line, such as a sensor's: a header, if there is one, and numbers.

    A line that is no row of numbers is a header if `is_header` says so of the names of its channels; a device that is
    switched on again sends its header again.
    """

    def __init__(self, is_header: Callable[[tuple[str, ...]], bool]) -> None:
        self._is_header = is_header
        self._layout: _Layout | None = None
        self._separator = ""
        self._has_header = False

    def read(self, number: int, line: str) -> Table | None:
        """Return the one row in a line, whose number is for errors; None if it is empty or a header.

        Raises RemoteProtocolError("table") for anything else.
        """
        if not line.strip():
            return None
        separator = self._separator if self._has_header else _separator(line)
        _, cells = next(_cells(iter([(number, line)]), separator))
        if any(_number(cell, separator) is None for cell in cells):
            found = _header(number, cells, self._is_header, separator)
            if found is not None:
                self._layout, self._separator, self._has_header = found, separator, True
                return None
        if not self._has_header:
            self._layout, self._separator = _unnamed(len(cells)), separator
        layout = self._layout
        assert layout is not None  # noqa: S101
        return next(_parts(iter([(number, cells)]), layout, separator))


def _header(
    number: int, cells: Sequence[str], is_header: Callable[[tuple[str, ...]], bool], separator: str
) -> _Layout | None:
    """Return what a line says as a header; None if it is none, such as a row that is damaged."""
    if any(_number(cell, separator) is not None for cell in cells):
        return None
    layout = _layout(number, cells)
    return layout if is_header(layout.names) else None


def _separator(line: str) -> str:
    counts = {separator: line.count(separator) for separator in ("\t", ";", ",")}
    best = max(counts, key=lambda separator: counts[separator])
    return best if counts[best] else ""


def _cells(lines: Iterable[tuple[int, str]], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line, without quotes around cells."""
    for number, line in lines:
        if len(line) > MAX_LINE_CHARS:
            raise _refused(number, f"it has {len(line)} characters, but at most {MAX_LINE_CHARS} are read")
        if '"' not in line:
            yield number, line.strip("\r\n").split(separator) if separator else [line.strip()]
            continue
        try:
            yield number, next(csv.reader([line], delimiter=separator or ","))
        except (csv.Error, StopIteration) as error:
            raise _refused(number, f"it cannot be read ({error})") from None


def _layout(number: int, cells: Sequence[str]) -> _Layout:
    names = [cell.strip() for cell in cells]
    if len(names) > MAX_COLUMNS:
        raise _refused(number, f"it has {len(names)} columns, but at most {MAX_COLUMNS} are read")
    times = [at for at, name in enumerate(names) if re.match(_TIME, name, re.IGNORECASE)]
    labels = [at for at, name in enumerate(names) if name.lower() in _LABELS]
    if len(labels) > 1:
        raise _refused(
            number, f"it has {len(labels)} columns of labels ({', '.join(names[at] for at in labels)}); keep one"
        )
    numbers = [at for at, name in enumerate(names) if name.lower() in _ROW_NUMBERS]
    others = {*times, *labels, *numbers}
    channels = tuple(at for at in range(len(names)) if at not in others)
    if not channels:
        raise _refused(number, f"there is no column of values among {', '.join(names)[:_SHOWN]}")
    units = {at: _unit_s(names[at]) for at in times}
    best = next((at for at in times if units[at] is not None), times[0] if times else None)
    return _Layout(
        channels=channels,
        names=tuple(names[at] for at in channels),
        time=best,
        time_unit_s=None if best is None else units[best],
        label=labels[0] if labels else None,
        width=len(names),
    )


def _unnamed(columns: int) -> _Layout:
    return _Layout(channels=tuple(range(columns)), names=(), time=None, time_unit_s=None, label=None, width=columns)


def _unit_s(name: str) -> float | None:
    return next((unit for pattern, unit in _UNITS_S if re.search(pattern, name, re.IGNORECASE)), None)


def _number(cell: str, separator: str) -> float | None:
    text = cell.strip()
    if len(text) > _LONGEST_NUMBER:
        return None
    if separator in ("\t", ";") and "." not in text:
        text = text.replace(",", ".")
    if "_" in text:
        return None  # which Python would read
    try:
        return float(text)
    except ValueError:
        return None


class _Part:
    """The rows of one recording, as they are read."""

    def __init__(self, first_line: int, label: str | None) -> None:
        self.first_line = first_line
        self.label = label
        self.rows = 0
        self._values = array.array("d")
        self._times = array.array("d")

    def add(self, values: Sequence[float], time: float | None) -> None:
        """Add a row."""
        self.rows += 1
        self._values.extend(values)
        if time is not None:
            self._times.append(time)

    def ends_before(self, label: str | None, time: float | None) -> bool:
        """Whether a row begins another recording."""
        if label != self.label:
            return True
        if time is None or len(self._times) < self.rows:
            return False
        step = time - self._times[-1]
        is_regular = self.rows >= _REGULAR_ROWS
        usual = (self._times[-1] - self._times[0]) / (self.rows - 1) if is_regular else math.inf
        return step < 0 or 0 < _PAUSE * usual < step

    def table(self, layout: _Layout) -> Table:
        """Return what was read."""
        period = float(np.median(np.diff(self._times))) if len(self._times) == self.rows > 1 else 0.0
        is_known = 0 < period < math.inf
        return Table(
            values=np.array(self._values, np.float64).reshape(self.rows, len(layout.channels)),
            columns=layout.names,
            label=self.label,
            period=period if is_known else None,
            period_s=period * layout.time_unit_s if is_known and layout.time_unit_s is not None else None,
            first_line=self.first_line,
        )


def _parts(rows: Iterable[tuple[int, list[str]]], layout: _Layout, separator: str) -> Iterator[Table]:
    """Yield the recordings that rows of cells make up."""
    part: _Part | None = None
    for number, cells in rows:
        if len(cells) != layout.width:
            raise _refused(number, f"it has {len(cells)} cells, but the first line has {layout.width}")
        time = None if layout.time is None else _number(cells[layout.time], separator)
        label = None if layout.label is None else cells[layout.label].strip()
        if part is not None and part.ends_before(label, time):
            yield part.table(layout)
            part = None
        if part is None:
            part = _Part(number, label)
        part.add([_value(number, cells, at, layout, separator) for at in layout.channels], time)
    if part is not None:
        yield part.table(layout)


def _value(number: int, cells: Sequence[str], at: int, layout: _Layout, separator: str) -> float:
    value = _number(cells[at], separator)
    if value is None or not math.isfinite(value):
        name = layout.names[layout.channels.index(at)] if layout.names else str(at + 1)
        raise _refused(number, f"{quoted(cells[at], _SHOWN)} in column {quoted(name, _SHOWN)} is not a finite number")
    return value


def _refused(line: int, why: str) -> RemoteProtocolError:
    return RemoteProtocolError("table", f"line {line}: {why}"[:300], "correct the line, or leave it out")
