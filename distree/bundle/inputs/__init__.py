"""Reads what a source delivers as raw inputs of a bundle: one reader for boards, `distree zoo` and the demo.

The first bytes of a file say what it is, never its name or the way it arrived, so that a file becomes the same input
from a folder, from `distree submit`, over MQTT and in a program. Its length alone says nothing: raw values are what has
the right length and is not known to be anything else.
"""

from __future__ import annotations

import math

import numpy as np

from distree.bundle.inputs.formats import described, known_format, what_to_do
from distree.bundle.inputs.images import fit_picture, looks_like_image, read_image
from distree.bundle.inputs.tables import Table, as_utf8, looks_like_table, read_tables
from distree.bundle.inputs.wav import looks_like_wav, read_wav
from distree.bundle.inputs.wrapped import Rows, as_table, unwrap
from distree.bundle.manifest import InputSpec, Preprocess
from distree.bundle.npy import MAGIC, read_array
from distree.bundle.windows import MAX_WINDOWS, cut
from distree.errors import RemoteProtocolError
from distree.record import record
from distree.tensors import Array

RATE_TOLERANCE = 0.05
"""How far the rate of a table, computed from its time column, may differ from the manifest's: sensors have poor
clocks.
"""

_UNITS_S = (1.0, 1e-3, 1e-6, 1e-9)


@record
class RawInput:
    """One input out of a file.

    raw: an array of the input spec's dtype and shape. at: where in the file it begins, such as "1.5s", or "" if it
    is the whole file. label: its label in a column of labels.
    """

    raw: Array
    at: str = ""
    label: str | None = None

    def named(self, name: str) -> str:
        """Return its name as a part of the file `name`: at most 256 characters.

        >>> RawInput(raw=np.zeros(2), at="1.5s").named("clip.wav")
        'clip.wav@1.5s'
        """
        at = f"@{self.at}" if self.at else ""
        return name[: 256 - len(at)] + at


@record
class NamedInputs:
    """The inputs in a message or a file, at least one, with the name and the request id that it gives them, if any."""

    inputs: list[RawInput]
    name: str = ""
    request: str | None = None


class InputReader:
    """Reads files as raw inputs, as a manifest declares them."""

    def __init__(self, spec: InputSpec, preprocess: Preprocess) -> None:
        self.dtype = np.dtype(spec.dtype)
        self.shape = spec.shape
        self.nbytes = self.dtype.itemsize * math.prod(spec.shape)
        self._spec = spec
        self._preprocess = preprocess

    @property
    def rate_hz(self) -> float | None:
        """The rate of the bundle's recordings, in samples per second."""
        return self._spec.rate_hz

    @property
    def hop(self) -> int | None:
        """Samples from the start of one window to that of the next, if the bundle says."""
        return self._preprocess.window.hop

    @property
    def pads_short(self) -> bool:
        """Whether a recording shorter than a window is padded, instead of refused."""
        return self._preprocess.window.short == "pad"

    def read(self, content: bytes) -> Array:
        """Return the one input in the content of a file: an array of the spec's dtype and shape.

        Raises RemoteProtocolError for anything else, including a recording of several windows.
        """
        first, *others = self.read_all(content)
        if others:
            raise RemoteProtocolError(
                "size",
                f"the recording has {1 + len(others)} windows, but only one is expected",
                "cut it into several files",
            )
        return first.raw

    def read_all(self, content: bytes, most: int = MAX_WINDOWS) -> list[RawInput]:
        """Return the inputs in the content of a file, at least one: the windows of a recording, in order.

        Raises RemoteProtocolError if it is damaged or not what the bundle expects: "dtype", "shape" or "encoding" for
        an .npy array, "image", "wav", "table", "json", "base64"; "image" or "size" for anything that is none of these,
        nor the raw values.
        """
        return self.read_named(content, most=most).inputs

    def read_named(self, content: bytes, json_field: str | None = None, most: int = MAX_WINDOWS) -> NamedInputs:
        """Return the inputs in a message, with their name if it has one; like `read_all`.

        `json_field` is where in JSON the input is; by default it is found by the names of the fields.
        """
        wrapped = unwrap(content, json_field)
        if wrapped is None:
            return NamedInputs(inputs=self._read(content, most))
        inputs = self._read(wrapped.content, most) if wrapped.rows is None else self._rows(wrapped.rows, most)
        return NamedInputs(inputs=inputs, name=wrapped.name, request=wrapped.request)

    def _read(self, content: bytes, most: int) -> list[RawInput]:
        """Read what is not wrapped in text, or no longer."""
        if content.startswith(MAGIC):
            return [RawInput(raw=self._array(content))]
        if looks_like_wav(content):
            return self._sound(content, most)
        if looks_like_image(content):
            if not self._spec.is_image:
                raise self._unexpected("an image file")
            return [RawInput(raw=self._image(content))]
        if self._spec.is_window and looks_like_table(text := as_utf8(content)):
            return self._tables(text, most)
        if len(content) == self.nbytes and not known_format(content):
            return [RawInput(raw=np.frombuffer(content, self.dtype).reshape(self.shape))]
        raise self._unexpected(described(content), what_to_do(content, self._convert))

    def of_picture(self, picture: Array) -> Array:
        """Return the input that a picture becomes, uint8 (height, width, 1 or 3): the same as from a file with it.

        Raises ImportError without Pillow.
        """
        return fit_picture(picture, self.shape, self._preprocess.resize, self._preprocess.background)

    def expected(self) -> str:
        """Say what is expected."""
        raw = f"{self.nbytes} raw bytes or an .npy array ({self.dtype} {self.shape})"
        if self._spec.is_image:
            return f"an image file, {raw}"
        if not self._spec.is_window:
            return raw
        return f"{'a WAV or CSV file' if self._takes_sound else 'a CSV file'}, {raw}"

    # ------------------------------------------------------------ one input

    def _array(self, content: bytes) -> Array:
        array = read_array(content)
        if array.dtype != self.dtype:
            raise RemoteProtocolError(
                "dtype",
                f"expected {self.dtype} {self.shape}, received {'text' if array.dtype.kind in 'US' else array.dtype}",
                f"convert it: array.astype({str(self.dtype)!r})",
            )
        if array.shape != self.shape:
            raise RemoteProtocolError(
                "shape",
                f"expected {self.shape} {self.dtype}, received {array.shape or 'a single value'}",
                "save one input per file",
            )
        return array

    def _unexpected(self, received: str, remedy: str = "") -> RemoteProtocolError:
        kind = "image" if self._spec.is_image else "size"
        return RemoteProtocolError(kind, f"expected {self.expected()}, received {received}", remedy or self._convert)

    @property
    def _convert(self) -> str:
        """What to do with a file of another kind."""
        if self._spec.is_image:
            return "save it as a JPEG or a PNG"
        if not self._spec.is_window:
            return "save it with numpy.save"
        return "convert it to a WAV or CSV file" if self._takes_sound else "convert it to a CSV file"

    def _image(self, content: bytes) -> Array:
        return read_image(content, self.shape, self._preprocess.resize, self._preprocess.background)

    # ------------------------------------------------------------ recordings

    @property
    def _takes_sound(self) -> bool:
        return self._spec.is_window and self._spec.rate_hz is not None

    def _windows(self, recording: Array, most: int, label: str | None = None) -> list[RawInput]:
        """Cut a recording whose channels are the last axis, if the spec has one."""
        windows = cut(recording, self.shape[0], self._preprocess.window)
        if len(windows) > most:
            raise RemoteProtocolError(
                "size",
                f"the recording has {len(windows)} windows, but at most {most} are read",
                "cut it into several files",
            )
        if len(windows) == 1:
            return [RawInput(raw=windows[0].values, label=label)]
        return [RawInput(raw=window.values, at=self.place(window.start), label=label) for window in windows]

    def place(self, start: int) -> str:
        """Return the name of the window that begins at a sample: its time in the recording, if the rate is known."""
        rate = self._spec.rate_hz
        return f"{start}" if rate is None else f"{start / rate:.10g}s"

    def _sound(self, content: bytes, most: int) -> list[RawInput]:
        if not self._takes_sound:
            raise self._unexpected("a WAV file")
        sound = read_wav(content)
        rate = self._spec.rate_hz
        if sound.rate_hz != rate:
            raise RemoteProtocolError(
                "wav",
                f"sampled at {sound.rate_hz:,} Hz, but the bundle expects {rate:,g} Hz",
                f"convert it: ffmpeg -i IN -ar {rate:g} OUT.wav",
            )
        samples = sound.as_int16() if self.dtype == np.int16 else sound.as_float32()
        return self._windows(self._of_channels(samples), most)

    def _of_channels(self, samples: Array) -> Array:
        """Convert (samples, channels) to the channels of the spec: several are averaged into one."""
        wanted = self.shape[1] if len(self.shape) == 2 else 1
        if samples.shape[1] != wanted and wanted == 1:
            mean = samples.mean(axis=1, dtype=np.float64, keepdims=True)
            samples = (np.rint(mean) if samples.dtype.kind == "i" else mean).astype(samples.dtype)
        if samples.shape[1] != wanted:
            raise RemoteProtocolError(
                "wav",
                f"{samples.shape[1]} channels, but the bundle expects {wanted}",
                f"convert it: ffmpeg -i IN -ac {wanted} …",
            )
        return samples.astype(self.dtype, copy=False).reshape(-1, *self.shape[1:])

    def _rows(self, rows: Rows, most: int) -> list[RawInput]:
        """Read a recording in JSON by the rules of tables."""
        if not self._spec.is_window:
            raise self._unexpected("JSON with a list")
        if self._channels > 1 and len(rows) == math.prod(self.shape) and not isinstance(rows[0], list | dict):
            width = self._channels
            rows = [rows[at : at + width] for at in range(0, len(rows), width)]
        try:
            return self._tables(as_table(rows), most)
        except RemoteProtocolError as error:
            remedy = "send a list of a window's numbers, or of objects whose fields are named as the bundle's channels"
            raise RemoteProtocolError("json", f"it is JSON; as a table, {error.detail}", remedy) from None

    def _tables(self, content: bytes, most: int) -> list[RawInput]:
        inputs: list[RawInput] = []
        for table in read_tables(content):
            inputs += self.inputs_of(table, most)
            if len(inputs) > most:
                raise RemoteProtocolError("size", f"the file has more than {most} windows", "cut it into several files")
        return inputs

    def inputs_of(self, table: Table, most: int = MAX_WINDOWS) -> list[RawInput]:
        """Return the windows of one recording in a table, or its rows if each of them is a whole window.

        Raises RemoteProtocolError("table") if the columns or the rate are not the manifest's.
        """
        if self.has_rows_of_windows(table):
            rows = self._as_dtype(table.values, table.first_line).reshape(-1, *self.shape)
            return [
                RawInput(raw=row, at=f"line {table.first_line + k}", label=table.label) for k, row in enumerate(rows)
            ]
        samples = self.samples_of(table)
        self._check_period(table)
        return self._windows(samples, most, table.label)

    def samples_of(self, table: Table) -> Array:
        """Return the rows of a table as samples: the manifest's channels, in its order, (rows,) or (rows, channels).

        Raises RemoteProtocolError("table") if the columns are not the manifest's, or values do not fit its dtype.
        """
        return self._as_dtype(self._columns(table), table.first_line).reshape(-1, *self.shape[1:])

    def has_rows_of_windows(self, table: Table) -> bool:
        """Whether each row of a table is a whole window: as many values as a window, but not one per channel."""
        columns: int = table.values.shape[1]
        return not self._spec.channels and columns == math.prod(self.shape) != self._channels

    @property
    def _channels(self) -> int:
        return self.shape[1] if len(self.shape) == 2 else 1

    def _columns(self, table: Table) -> Array:
        channels = self._channels
        if not self._spec.channels:
            if table.values.shape[1] != channels:
                there = f" ({', '.join(table.columns)})"[:80] if table.columns else ", without names"
                raise RemoteProtocolError(
                    "table",
                    f"{table.values.shape[1]} columns of values{there}, but the bundle expects {channels}",
                    "remove the others, or name the columns in a header",
                )
            return table.values
        places = {_plain_name(name): at for at, name in enumerate(table.columns)}
        missing = [name for name in self._spec.channels if _plain_name(name) not in places]
        if missing:
            there = ", ".join(table.columns)[:80] or "no header"
            raise RemoteProtocolError("table", f"no column {', '.join(missing)} ({there})", "name it in the header")
        return table.values[:, [places[_plain_name(name)] for name in self._spec.channels]]

    def _check_period(self, table: Table) -> None:
        """Refuse samples at another rate; if the unit of time is not known, any usual one will do."""
        rate = self._spec.rate_hz
        if rate is None or table.period is None:
            return
        periods = [table.period_s] if table.period_s is not None else [table.period * unit for unit in _UNITS_S]
        if not any(math.isclose(period * rate, 1.0, rel_tol=RATE_TOLERANCE) for period in periods):
            found = (
                f"{1 / periods[0]:,.4g} Hz"
                if table.period_s is not None
                else f"every {table.period:g} units of its time column"
            )
            raise RemoteProtocolError(
                "table",
                f"line {table.first_line}: sampled {('at ' if table.period_s is not None else '')}{found}, but "
                f"the bundle expects {rate:,g} Hz",
                "resample it",
            )

    def is_header(self, names: tuple[str, ...]) -> bool:
        """Whether a header with these names of channels is one of a table for this bundle."""
        if not self._spec.channels:
            return len(names) == self._channels
        return {_plain_name(name) for name in self._spec.channels} <= {_plain_name(name) for name in names}

    def _as_dtype(self, values: Array, line: int) -> Array:
        is_whole = self.dtype.kind == "i"
        limits = np.iinfo(self.dtype) if is_whole else np.finfo(self.dtype)
        if values.min() < limits.min or values.max() > limits.max or (is_whole and (np.rint(values) != values).any()):
            what = "whole numbers" if is_whole else "numbers"
            raise RemoteProtocolError(
                "table", f"line {line}: values are not {what} in the range of {self.dtype}", "scale or round them"
            )
        return values.astype(self.dtype)


def _plain_name(name: str) -> str:
    """Return a column's name without case and without a unit in brackets."""
    return name.split("(")[0].split("[")[0].strip().casefold()
