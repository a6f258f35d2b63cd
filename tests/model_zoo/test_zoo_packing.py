"""A bundle as one file: what was packed comes out, and nothing else comes out of anything."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from distree.bundle.loading import load_bundle
from model_zoo.packing import pack


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    return tmp_path / "share" / "distree" / "bundles"


@pytest.fixture
def packed(tmp_path, fashion):
    path = tmp_path / "mine.distree"
    pack(fashion, path)
    return path


def test_there_and_back(zoo, tmp_path, fashion, own_folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert zoo("pack", "fashion", "--out", "mine.distree") == 0
    assert f"next: distree zoo unpack mine.distree --revision {fashion.revision}" in capsys.readouterr().out
    assert zoo("unpack", "mine.distree", "--revision", fashion.revision) == 0
    bundle = load_bundle("mine")
    assert bundle.revision == fashion.revision
    assert bundle.path == own_folder / "mine"
    assert sorted(path.name for path in bundle.path.iterdir()) == sorted(path.name for path in fashion.path.iterdir())
    assert [path.name for path in own_folder.iterdir()] == ["mine"]


def test_the_same_bundle_gives_the_same_file(tmp_path, fashion, packed):
    pack(fashion, tmp_path / "again.distree")
    assert (tmp_path / "again.distree").read_bytes() == packed.read_bytes()


def test_a_wide_bundle_goes_too(zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert zoo("pack", "cifar10-wide") == 0
    assert zoo("unpack", "cifar10-wide.distree", "--out", "here") == 0
    assert load_bundle(tmp_path / "here").revision == load_bundle("cifar10-wide").revision


def test_a_name_that_is_taken_is_replaced_by_force_alone(zoo, packed, own_folder, capsys):
    assert zoo("unpack", packed) == 0
    assert zoo("unpack", packed) == 2
    assert "already exists" in capsys.readouterr().err
    assert zoo("unpack", packed, "--force") == 0
    assert [path.name for path in own_folder.iterdir()] == ["mine"]


def test_names_of_the_model_zoo_are_not_taken(zoo, packed, capsys):
    packed.rename(packed.with_name("fashion.distree"))
    assert zoo("unpack", packed.with_name("fashion.distree")) == 2
    assert "a shipped bundle has this name" in capsys.readouterr().err


def again(path, change):
    """Write the zip again with entries changed: a function of names and contents."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in change(entries):
            archive.writestr(zipfile.ZipInfo(name), content)
    path.write_bytes(made.getvalue())


def with_entry(name, content=b"x"):
    return lambda entries: [*entries, (name, content)]


def without(name):
    return lambda entries: [entry for entry in entries if entry[0] != name]


def spoilt(name):
    return lambda entries: [(one, content + b"x" if one == name else content) for one, content in entries]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (with_entry("../evil.txt"), "'../evil.txt', which is not a plain file name"),
        (with_entry("/etc/evil"), "which is not a plain file name"),
        (with_entry("a/b.tflite"), "which is not a plain file name"),
        (with_entry("..\\evil"), "which is not a plain file name"),
        (with_entry("folder/"), "which is not a plain file name"),
        (with_entry(".."), "which is not a plain file name"),
        (with_entry("evil.py"), "'evil.py', which its manifest does not name"),
        (without("stage1.tflite"), "copy the whole bundle"),
        (without("bundle.yaml"), "contains no bundle.yaml"),
        (spoilt("stage1.tflite"), "its SHA-256 differs from the manifest's"),
        (spoilt("golden.npz"), "its SHA-256 differs from the manifest's"),
    ],
)
def test_what_does_not_belong_is_refused_and_leaves_nothing(zoo, packed, own_folder, tmp_path, capsys, change, why):
    again(packed, change)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert zoo("unpack", packed) == 2
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "share") == before
    assert not own_folder.exists() or not list(own_folder.iterdir())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_is_there_twice_is_refused(zoo, packed, capsys):
    again(packed, with_entry("stage0.tflite", b"other"))
    assert zoo("unpack", packed) == 2
    assert "'stage0.tflite' twice" in capsys.readouterr().err


def test_another_revision_than_expected_is_refused(zoo, packed, own_folder, capsys):
    assert zoo("unpack", packed, "--revision", "0123456789ab") == 2
    assert "not 0123456789ab" in capsys.readouterr().err
    assert not own_folder.exists()


def test_bombs_are_not_let_off(zoo, packed, monkeypatch, capsys):
    again(packed, with_entry("bomb.tflite", bytes(50 << 20)))
    monkeypatch.setattr("model_zoo.packing.MAX_SEGMENT_BYTES", 1 << 20)
    assert zoo("unpack", packed) == 2
    assert "longer than 1,048,576 bytes" in capsys.readouterr().err
    monkeypatch.setattr("model_zoo.packing.MAX_BYTES", 40 << 20)
    assert zoo("unpack", packed) == 2
    assert "give a file that distree zoo pack wrote" in capsys.readouterr().err


def test_damaged_files_are_one_line(zoo, packed, own_folder, capsys):
    whole = packed.read_bytes()
    generator = np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(whole)
        if number % 2:
            damaged = damaged[: int(generator.integers(0, len(whole)))]
        else:
            for place in generator.integers(0, len(whole), 8):
                damaged[place] ^= 1 << int(generator.integers(0, 8))
        packed.write_bytes(bytes(damaged))
        if zoo("unpack", packed, "--force") == 2:
            assert capsys.readouterr().err.count("\n") == 1
        assert not own_folder.exists() or {path.name for path in own_folder.iterdir()} <= {"mine"}


def test_what_is_no_packed_bundle_is_told(zoo, tmp_path, capsys):
    (tmp_path / "text.distree").write_text("hello")
    for name, why in (("text.distree", "is not a packed bundle"), ("nothing.distree", "No such file or directory")):
        assert zoo("unpack", tmp_path / name) == 2
        assert why in capsys.readouterr().err
