"""Odd files of all kinds have one outcome, by whatever way they are handed over: `python -m benchmarks.odd_files`."""

from __future__ import annotations

import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'distree[images]'")

from thoroughness import some

from benchmarks.odd_files.accuracy import LOSSY, variants
from benchmarks.odd_files.sets import BUNDLES, files_for
from benchmarks.odd_files.ways import Ways, differing

ANSWERED = {
    "fashion": {f"exif{k}.png" for k in range(1, 9)} | {
        "exif6.jpg", "grey16.png", "alpha-half.png", "palette.png", "cmyk.jpg", "ycck.jpg", "animated.gif", "1x1.png",
        "top-down.bmp", "ascii.ppm", "48-megapixels.jpg", "exif-thumbnail-damaged.jpg", "right.npy", "raw.bin",
        "fortran.npy", "big-endian.npy", "image.json", "base64.txt", "data-url.txt", "raw.json",
    },
    "spoken-digits": {
        "mono.wav", "stereo.wav", "8-bit.wav", "24-bit.wav", "32-bit.wav", "extensible.wav", "odd-chunk.wav",
        "chunk-before.wav", "chunk-after.wav", "piped.wav", "short.wav", "long.wav", "right.npy", "numbers.json",
    },
    "wrist-exercises": {
        "plain.csv", "time.csv", "semicolons.csv", "decimal-commas.csv", "tabs.tsv", "bom.csv", "utf16-le.csv",
        "utf16-be.csv", "crlf.csv", "quoted.csv", "shuffled.csv", "label.csv", "long.csv", "right.npy", "raw.bin",
    },
}  # fmt: skip
ANSWERED["cifar10-wide"] = ANSWERED["fashion"]
REFUSED = {
    "empty", "hello.txt", "page.jpg", "paper.pdf", "photo.heic", "photo.avif", "photo.tiff", "cut.jpg", "cut.png",
    "bomb.png", "float.wav", "cut.wav", "other-rate.wav", "nan.csv", "ragged.csv", "header-only.csv", "objects.npy",
    "records.npy", "cut.npy", "more.npy", "huge.npy", "channels-first.npy", "batch.npy", "other-dtype.npy",
    "archive.npz", "pickle.pkl", "raw-short.bin", "raw-long.bin", "as-long-jpeg.bin", "as-long-json.bin",
    "as-long-text.bin", "as-long-npy.bin", "cut.json", "foreign.json", "not-base64.json",
}  # fmt: skip
"""By every bundle, but for an array of one axis that is channels first as well as last."""


@pytest.mark.any_broker
@pytest.mark.parametrize("name", BUNDLES)
def test_every_odd_file_has_one_outcome_by_all_ways(name, tmp_path):
    with Ways(name, tmp_path) as ways:
        files = files_for(ways.bundle)
        outcomes = ways.hand_over(files)
    assert len(files) >= 160
    assert not [*differing(outcomes)]
    answered = {file for file, by_way in outcomes.items() if by_way["folder"].refusal is None}
    assert answered >= ANSWERED[name]
    assert not (REFUSED - ({"channels-first.npy"} if name == "spoken-digits" else set())) & answered
    for file, by_way in outcomes.items():
        for outcome in by_way.values():
            if outcome.refusal is not None:
                assert outcome.refusal.remedy, file
                assert not any(word in str(outcome.refusal) for word in ("0x", "BytesIO", "Error", "object at", "None"))


@pytest.mark.parametrize("name", some(["cifar10-wide", "fashion"], 2))
def test_a_picture_stored_in_another_way_is_answered_as_the_picture(name):
    found = [*variants(name)]
    assert len(found) >= 14
    for one in found:
        if one.name not in LOSSY:
            assert one.identical == 1.0, one
            assert abs(one.accuracy - one.of_samples) <= 0.005, one
