"""Puts a bundle's folder in its place: as a whole, by a rename, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from distree.bundle.loading import load_bundle, user_folder, zoo_folder
from distree.bundle.manifest import MANIFEST
from distree.errors import ConfigError


@contextlib.contextmanager
def published(out: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a folder that does not exist yet; a bundle written there is verified and becomes `out`.

    Whatever goes wrong, `out` stays as it is and nothing is left next to it. replace: whether `out` may already be a
    bundle. Raises ConfigError, before anything is done, if `out` cannot be written, and BundleError if what was written
    is not a complete bundle.
    """
    check_place(out, replace=replace)
    staged = out.parent / f".{out.name}.{secrets.token_hex(4)}"
    try:
        yield staged
        if staged.exists():
            load_bundle(staged)
            _take_place(staged, out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def own_place(name: str, remedy: str) -> Path:
    """Return where a bundle of this name goes among the user's own.

    Raises ConfigError for the name of a shipped bundle, with the `remedy` for it, and for a user without a home.
    """
    shipped, own = zoo_folder(), user_folder()
    if shipped is not None and (shipped / name).exists():
        raise ConfigError(f"{name}: a shipped bundle has this name", remedy)
    if own is None:
        raise ConfigError("there is no home folder for bundles of your own", "give a folder by --out")
    return own / name


def check_place(out: Path, *, replace: bool) -> None:
    """Raise ConfigError unless a bundle can become `out`."""
    if out.exists() and not replace:
        raise ConfigError(f"{out}: already exists", "give another folder with --out, or replace it with --force")
    if out.exists() and not (out / MANIFEST).is_file():
        raise ConfigError(f"{out}: is not a bundle, so it is not replaced", "give another folder with --out")
    near = next(folder for folder in out.absolute().parents if folder.exists())
    if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
        raise ConfigError(f"{out}: {near} cannot be written to", "give another folder with --out")


def _take_place(staged: Path, out: Path) -> None:
    if not out.exists():
        staged.rename(out)
        return
    old = staged.with_name(f"{staged.name}.old")
    out.rename(old)
    try:
        staged.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
