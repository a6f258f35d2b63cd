"""Archives of arrays, .npz: never pickles, never objects, and never more memory than their reader allows.

NumPy's own reader allocates whatever a header declares, and can raise any exception on damaged files.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

from distree.bundle.npy import in_native_order, read_header, read_rows
from distree.errors import RemoteProtocolError
from distree.printable import printable
from distree.tensors import Array
from distree.zip_files import open_zip

MAX_ARRAYS = 4096
"""Most arrays in an archive."""

_ENDING = ".npy"


def read_npz(
    file: BinaryIO, most_bytes: int, names: Iterable[str] | None = None, *, rows: int | None = None
) -> dict[str, Array]:
    """Return the arrays of an .npz file by name: all of them, or those of `names` that it has.

    rows: the first so many of each. Raises RemoteProtocolError("encoding") if the file is not an archive of arrays of
    numbers or text, is damaged, or what is asked for takes more than `most_bytes` in all.
    """
    with _opened(file) as archive:
        there = _entries(archive)
        arrays: dict[str, Array] = {}
        left = most_bytes
        for name in there if names is None else [name for name in names if name in there]:
            arrays[name] = _array(archive, there[name], left, rows)
            left -= arrays[name].nbytes
        return arrays


def names_in_npz(file: BinaryIO) -> tuple[str, ...]:
    """Return the names of the arrays of an .npz file; RemoteProtocolError("encoding") if it is not one."""
    with _opened(file) as archive:
        return tuple(_entries(archive))


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    try:
        with open_zip(file, MAX_ARRAYS) as archive:
            yield archive
    except RemoteProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - zipfile and zlib raise many kinds for damaged archives
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        what = f"not a readable .npz archive: {printable(why)}"
        raise RemoteProtocolError("encoding", what, "save it again with numpy.savez") from None


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    arrays = (entry for entry in archive.infolist() if entry.filename.endswith(_ENDING))
    return {entry.filename.removesuffix(_ENDING): entry for entry in arrays}


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, left: int, rows: int | None) -> Array:
    where = printable(entry.filename.removesuffix(_ENDING), 64)
    with archive.open(entry) as opened:
        inside = cast("BinaryIO", opened)
        try:
            header = read_header(inside)
            wanted = rows if header.shape and not header.is_fortran else None
            if (header.nbytes if wanted is None else wanted * header.row_bytes) > left and header.nbytes > left:
                raise RemoteProtocolError("encoding", f"{header} takes more memory than is allowed", "shorten it")
            return in_native_order(read_rows(inside, header, rows))
        except RemoteProtocolError as error:
            raise RemoteProtocolError(error.reason, f"{where}: {error.detail}", error.remedy) from None
