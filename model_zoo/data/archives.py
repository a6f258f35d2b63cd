"""Archives of arrays, .npz: an array is read when it is asked for, and never more than its header declares.

NumPy's own reader allocates whatever a header declares, and can raise any exception on damaged files.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from distree.bundle.npy import ArrayHeader, in_native_order, read_header, read_rows
from distree.bundle.npz import MAX_ARRAYS
from distree.errors import RemoteProtocolError
from distree.regular_files import open_regular
from distree.zip_files import open_zip
from model_zoo.data.examples import MAX_BYTES, SPLIT_NAMES, Array, Split, too_much
from model_zoo.errors import DataError


def is_archive(path: Path) -> bool:
    """Whether a file begins as an .npz archive does."""
    return begins(path, b"PK\x03\x04")


def begins(path: Path, magic: bytes) -> bool:
    """Whether a file can be read and begins with these bytes."""
    with contextlib.suppress(OSError), open_regular(path) as file:
        return file.read(len(magic)) == magic
    return False


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an .npz archive; any exception raised by damage while it is read becomes a DataError."""
    try:
        with open_regular(path) as file, open_zip(file, MAX_ARRAYS) as archive:
            yield Archive(path, archive)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - zipfile and zlib raise many kinds for damaged archives
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(
            f"{path}: not a readable .npz archive ({why[:120]})", "save it again with numpy.savez"
        ) from None


class Archive:
    """The arrays of an .npz file, each read when it is asked for."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self.names = {name.removesuffix(".npy").lower(): name for name in archive.namelist() if name.endswith(".npy")}

    def find(self, base: Sequence[str], split: Split | None) -> str | None:
        """Return the name of the array with one of these base names, of a split or of undivided data, or None."""
        affixes = ("",) if split is None else SPLIT_NAMES[split]
        for name in base:
            for affix in affixes:
                for spelt in (f"{name}_{affix}".rstrip("_"), f"{affix}_{name}".lstrip("_"), f"{name}{affix}"):
                    if spelt in self.names:
                        return self.names[spelt]
        return None

    def header(self, name: str) -> ArrayHeader:
        """Return the header of an array."""
        with self._opened(name) as file:
            return read_header(file)

    def read(self, name: str, rows: int | None = None) -> Array:
        """Read an array, or its first rows."""
        with self._opened(name) as file:
            header = read_header(file)
            if header.nbytes > MAX_BYTES and (rows is None or header.is_fortran):
                raise too_much(self._where(name), header.shape[0] if header.shape else 1, header.nbytes)
            return in_native_order(read_rows(file, header, rows))

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO]:
        try:
            with self._archive.open(name) as file:
                yield cast("BinaryIO", file)
        except RemoteProtocolError as error:
            raise DataError(f"{self._where(name)}: {error.detail}", error.remedy) from None

    def _where(self, name: str) -> str:
        return f"{self.path}: {name.removesuffix('.npy')}"
