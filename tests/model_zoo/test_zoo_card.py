"""Bundles by name, and their cards."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from distree.bundle.loading import find_bundle, load_bundle, user_folder
from distree.errors import BundleError
from model_zoo.card import card

SHIPPED = ["cifar10-wide", "fashion", "spoken-digits", "wrist-exercises"]


@pytest.fixture
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    return tmp_path / "share" / "distree" / "bundles"


def test_the_card_of_a_chain(fashion):
    lines = list(card(fashion))
    assert lines[:9] == [
        "fashion: Fashion-MNIST clothing, 28 x 28 grey, three exits, int8",
        f"revision    {fashion.revision}, 361 kB of segments, in {fashion.path}",
        "licence     Apache-2.0",
        "input       28x28x1 uint8, (value / 255 - 0.286) / 0.353, as 28x28x1 int8",
        "            image files: other aspect ratios: crop; transparent parts: black",
        "classes     10: T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot",
        "stage 0     stage0.tflite, 45 kB, 1.13 MMACs + head 0.23, sends 1,568 bytes (7x7x32 int8)",
        "stage 1     stage1.tflite, 104 kB, 2.78 MMACs + head 0.31, sends 1,568 bytes (7x7x32 int8)",
        "stage 2     stage2.tflite, 212 kB, 3.48 MMACs + head 0.01",
    ]
    assert max(map(len, "\n".join(lines).splitlines())) <= 120


def test_the_card_of_a_wide_bundle():
    text = "\n".join(card(load_bundle("cifar10-wide", verify=())))
    assert "            branch 1: stage2.branch1.tflite, 488 kB, 9.08 MMACs + embedding 0.01, sends 64 bytes" in text
    assert "            without branch 1: at 0.93856, 0.551367" in text
    assert "[0.4914, 0.4822, 0.4465]" in text


def test_many_labels_are_not_all_listed(fashion):
    manifest = dataclasses.replace(fashion.manifest, labels=tuple(f"kind {k}" for k in range(1000)))
    text = "\n".join(card(dataclasses.replace(fashion, manifest=manifest)))
    assert "kind 23," in text
    assert "… 1000 in all" in text
    assert "kind 24" not in text


def test_a_bundle_of_which_nothing_was_measured_has_a_card(fashion):
    manifest = dataclasses.replace(fashion.manifest, measured=None)
    assert list(card(dataclasses.replace(fashion, manifest=manifest)))[-1].startswith("measured    nothing")


def test_own_bundles_go_by_name(zoo, own_folder, capsys):
    shutil.copytree(find_bundle("fashion"), own_folder / "mine")
    assert find_bundle("mine") == own_folder / "mine"
    assert load_bundle("mine").name == "fashion"
    assert zoo("list") == 0
    assert [line.split("  ")[0::3] for line in capsys.readouterr().out.splitlines()] == [
        *([name, "shipped"] for name in SHIPPED),
        ["mine", "yours"],
    ]
    with pytest.raises(BundleError, match="cifar10-wide, fashion, mine, "):
        find_bundle("yours")


def test_a_broken_bundle_does_not_hide_the_others(zoo, own_folder, capsys):
    (own_folder / "broken").mkdir(parents=True)
    (own_folder / "broken" / "bundle.yaml").write_text("format: 7\n")
    assert zoo("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("broken  yours  cannot be read:")
    assert len(lines) == len(SHIPPED) + 1


def test_where_own_bundles_are(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", value)
        assert user_folder() == tmp_path / ".local" / "share" / "distree" / "bundles"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert user_folder() == tmp_path / "data" / "distree" / "bundles"
