"""Puts a bundle's folder into its place: as a whole, by a rename, or not at all."""

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
    """Give a folder that does not exist yet; a bundle that is written there is verified and becomes `out`.

    Whatever goes wrong, `out` stays as it is and nothing is left beside it. replace: whether `out` may be a bundle
    already. Raises ConfigError, before anything is done, where `out` cannot be written, and BundleError where what was
    written is no whole bundle.
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
        raise ConfigError(f"{out}: exists already", "give another folder by --out, or replace it with --force")
    if out.exists() and not (out / MANIFEST).is_file():
        raise ConfigError(f"{out}: is no bundle, so it is not replaced", "give another folder by --out")
    near = next(folder for folder in out.absolute().parents if folder.exists())
    if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
        raise ConfigError(f"{out}: {near} cannot be written to", "give another folder by --out")


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
