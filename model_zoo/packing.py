"""A bundle as one file: a zip of its files, for copying and passing on.

A packed bundle can come from anywhere, so nothing in it is trusted: names must not contain folders, only files that
the manifest names are allowed, sizes are bounded, every hash is verified, and the bundle is put in place as a whole
or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from distree.bundle.loading import MAX_SEGMENT_BYTES, Bundle, load_bundle
from distree.bundle.manifest import MANIFEST, Manifest
from distree.errors import CHECK_PATH, BundleError, ConfigError
from distree.regular_files import open_regular, read_regular
from distree.strict_yaml import MAX_BYTES as MAX_MANIFEST_BYTES
from distree.topics import check_id
from distree.zip_files import open_zip, read_entry
from model_zoo.publishing import own_place, published

SUFFIX = ".distree"
MAX_FILES = 2 * 32 * 65
"""More files than any bundle has: 32 stages of 64 branches and a fusion head each, and two tables."""

MAX_BYTES = 1 << 30
_WHEN = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can record: the same bundle always has the same bytes
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)


def pack(bundle: Bundle, path: Path) -> int:
    """Write a bundle, already verified, into the file `path`; return its size in bytes. ConfigError if that fails."""
    draft = path.with_name(f".{path.name}.new")
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in (MANIFEST, *_named(bundle.manifest)):
                entry = zipfile.ZipInfo(name, _WHEN)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, read_regular(bundle.path / name, MAX_SEGMENT_BYTES))
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})", "give another file with --out") from None
    finally:
        draft.unlink(missing_ok=True)
    return path.stat().st_size


def _named(manifest: Manifest) -> list[str]:
    """Return the files that a manifest names, each once."""
    names = [manifest.golden.file]
    if manifest.exits.parameters is not None:
        names.append(manifest.exits.parameters.file)
    for stage in manifest.stages:
        names += [stage.segment, *(branch.segment for branch in stage.branches)]
    return list(dict.fromkeys(names))


def unpack(path: Path, out: Path | None, *, expected: str | None = None, replace: bool = False) -> Bundle:
    """Put a packed bundle into the folder `out`, by default `user_folder` / the file's name; return it, verified.

    expected: the revision that it must have. Raises BundleError for a file that is not a packed bundle, is damaged, or
    has another revision, and ConfigError if the bundle cannot be put there; nothing is left behind then.
    """
    manifest_bytes = _manifest_bytes(path)
    revision = hashlib.sha256(manifest_bytes).hexdigest()[:12]
    if expected is not None and expected != revision:
        raise BundleError(f"{path}: has revision {revision}, not {expected}", "get the file with the right revision")
    place = out or _place_of(path)
    with published(place, replace=replace) as folder:
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_bytes(manifest_bytes)
        _extract(path, folder)
    return load_bundle(place)


def _place_of(path: Path) -> Path:
    return own_place(check_id(path.name.removesuffix(SUFFIX), "name of the file"), "give a folder with --out")


def _manifest_bytes(path: Path) -> bytes:
    try:
        with _opened(path) as archive:
            return read_entry(archive, archive.getinfo(MANIFEST), MAX_MANIFEST_BYTES)
    except KeyError:
        raise BundleError(f"{path}: contains no {MANIFEST}", "give a file that distree zoo pack wrote") from None
    except _UNREADABLE as error:
        raise _damaged(path, error) from None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        file = open_regular(path)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}", CHECK_PATH) from None
    with file, open_zip(file, MAX_FILES) as archive:
        yield archive


def _damaged(path: Path, error: Exception) -> BundleError:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:150]
    return BundleError(f"{path}: is not a packed bundle, or is damaged ({reason})", "copy it again")


def _extract(path: Path, folder: Path) -> None:
    """Write all entries but the manifest into `folder`; BundleError for any that does not belong."""
    try:
        with _opened(path) as archive:
            entries = list(_entries(path, archive))
            for entry in entries:
                (folder / entry.filename).write_bytes(read_entry(archive, entry, MAX_SEGMENT_BYTES))
    except _UNREADABLE as error:
        raise _damaged(path, error) from None
    wanted = set(_named(load_bundle(folder, verify=()).manifest))
    strangers = {entry.filename for entry in entries} - wanted
    if strangers:
        raise BundleError(
            f"{path}: contains {sorted(strangers)[0]!r}, which its manifest does not name",
            "give a file that distree zoo pack wrote",
        )


def _entries(path: Path, archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    found = archive.infolist()
    if sum(entry.file_size for entry in found) > MAX_BYTES:
        raise BundleError(f"{path}: contains more than {MAX_BYTES} bytes", "give a file that distree zoo pack wrote")
    seen = set()
    for entry in found:
        name = entry.filename
        # A name with a folder, or one that means a folder, would be written elsewhere.
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name or entry.is_dir():
            raise BundleError(
                f"{path}: contains {name[:80]!r}, which is not a plain file name",
                "give a file that distree zoo pack wrote",
            )
        if name in seen:
            raise BundleError(f"{path}: contains {name[:80]!r} twice", "give a file that distree zoo pack wrote")
        seen.add(name)
        if name != MANIFEST:
            yield entry
