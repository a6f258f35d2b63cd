"""Examples in CSV files: recordings of samples, cut into windows, or one window per row."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distree.bundle.inputs import InputReader, RawInput
from distree.bundle.inputs.tables import Table, looks_like_table, tables_in
from distree.errors import CHECK_PATH, RemoteProtocolError
from distree.regular_files import open_regular
from model_zoo.data.examples import MAX_BYTES, Examples, too_much
from model_zoo.data.wanted import Labels, Wanted, labels_by_name
from model_zoo.errors import DataError

TABLES = (".csv", ".tsv")
_ANY_NUMBER = 1 << 31


def is_table(path: Path) -> bool:
    """Whether a file begins as a CSV file of numbers does."""
    try:
        with open_regular(path) as file:
            return looks_like_table(file.read(65_536))
    except OSError:
        return False


def load_table(path: Path, wanted: Wanted) -> Examples:
    """Read a CSV file. A recording begins where the label changes, time goes back, or after a pause.

    Recordings too short for a window are left out, and the source's name says how many. Raises DataError, with the
    line, for a damaged file, for columns or a rate that differ from the bundle's, and if no window is left.
    """
    wanted.no_split(path)
    reader = wanted.reader(path)
    found: list[RawInput] = []
    short = 0
    try:
        with open_regular(path) as file:
            for table in tables_in(file):
                if _is_short(table, reader, wanted):
                    short += 1
                    continue
                found += reader.inputs_of(table, _ANY_NUMBER)
                if len(found) * reader.nbytes > MAX_BYTES:
                    raise too_much(path, len(found), len(found) * reader.nbytes)
                if wanted.limit is not None and len(found) >= wanted.limit:
                    found = found[: wanted.limit]
                    break
    except RemoteProtocolError as error:
        raise DataError(f"{path}: {error.detail}", error.remedy) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})", CHECK_PATH) from None
    if not found:
        raise DataError(
            f"{path}: has no recording as long as a window, which is {reader.shape[0]} rows (too short: {short})",
            "record longer ones, or declare window: {short: pad}",
        )
    labels = _labels(path, found, wanted)
    return Examples(
        inputs=np.stack([item.raw for item in found]),
        labels=None if labels is None else labels.ids,
        index=np.arange(len(found)),
        source=path.name if not short else f"{path.name} ({short} recordings shorter than a window left out)",
        names=None if labels is None else labels.names,
        files=tuple(item.named(path.name) for item in found),
    )


def _is_short(table: Table, reader: InputReader, wanted: Wanted) -> bool:
    may_pad = wanted.preprocess is not None and wanted.preprocess.window.short == "pad"
    return not may_pad and not reader.has_rows_of_windows(table) and len(table.values) < reader.shape[0]


def _labels(path: Path, found: list[RawInput], wanted: Wanted) -> Labels | None:
    given = [item.label for item in found]
    if all(label is None for label in given):
        return None
    return labels_by_name([label or "" for label in given], wanted, str(path))
