"""Bundles: the manifest, the tables beside it, and bundles packed into one file."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.fuzz.target import Form, Target, constant, from_file
from distree.bundle.golden import read_golden
from distree.bundle.loading import load_bundle, zoo_folder
from distree.bundle.manifest import MANIFEST
from model_zoo.packing import pack, unpack

_TINY = Path(__file__).parents[3] / "tests/data"


def _shipped(name: str) -> Path:
    folder = zoo_folder()
    assert folder is not None
    return folder / name


def copied(source: Path, folder: Path) -> Path:
    """Copy a bundle into a folder of its own."""
    copy = folder / source.name
    shutil.copytree(source, copy, dirs_exist_ok=True)
    return copy


def _manifests(folder: Path) -> Sequence[Form]:
    forms = []
    for source in (*map(_shipped, ("fashion", "wrist-exercises", "spoken-digits")), _TINY / "tiny-wide"):
        copy = copied(source, folder)

        def read(copy: Path = copy) -> object:
            bundle = load_bundle(copy, verify=())
            assert all(size > 0 for size in bundle.manifest.input.shape)
            return bundle

        manifest = copy / MANIFEST
        forms.append(
            Form(f"{source.name}: {MANIFEST}", constant(manifest.read_bytes()), from_file(manifest, read), "text")
        )
    return forms


def read_anyway(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a reader of a file of a bundle, whose hash in the manifest is made to fit: as whoever forges one would."""
    manifest = path.parent / MANIFEST
    text, before = manifest.read_text(), hashlib.sha256(path.read_bytes()).hexdigest()
    assert before in text

    def write_and_read(content: bytes) -> object:
        path.write_bytes(content)
        manifest.write_text(re.sub(before, hashlib.sha256(content).hexdigest(), text))
        return read(path.parent)

    return write_and_read


def _tables(folder: Path) -> Sequence[Form]:
    forms = []
    for source in (_shipped("wrist-exercises"), _TINY / "tiny-wide"):
        copy = copied(source, folder)
        bundle = load_bundle(copy, verify=())
        golden = copy / bundle.manifest.golden.file
        content = golden.read_bytes()

        def vectors(where: Path) -> object:
            return read_golden(load_bundle(where, verify=()))

        forms.append(Form(f"{source.name}: golden vectors", constant(content), read_anyway(golden, vectors)))
        if bundle.manifest.exits.parameters is not None:
            table = copied(source, folder / "parameters") / bundle.manifest.exits.parameters.file

            def parameters(where: Path) -> object:
                return load_bundle(where, verify=()).criterion_parameters()

            forms.append(
                Form(f"{source.name}: parameters", constant(table.read_bytes()), read_anyway(table, parameters))
            )
    return forms


def _packed(folder: Path) -> Sequence[Form]:
    path, out = folder / "mine.distree", folder / "out"
    forms = []
    for source in (_TINY / "tiny-wide", _TINY / "tiny-mixed"):
        pack(load_bundle(source), path)

        def read() -> object:
            try:
                return unpack(path, out, replace=True)
            finally:
                strangers = {entry.name for entry in folder.iterdir()} - {path.name, out.name}
                assert not strangers, f"left behind: {strangers}"

        forms.append(Form(f"{source.name}.distree", constant(path.read_bytes()), from_file(path, read)))
    return forms


MANIFESTS = Target("manifests", "files", 7, _manifests, 32)
TABLES = Target("tables", "files", 7, _tables, 256)
PACKED = Target("packed bundles", "files", 5, _packed, 64)
