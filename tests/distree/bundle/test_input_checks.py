"""What a manifest declares of its inputs: what fits is taken, what cannot work is refused with its key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from distree.bundle.checks import check_manifest
from distree.bundle.frontends import EdgeImpulseMfe, LogMel, Mfcc
from distree.bundle.loading import load_bundle
from distree.bundle.manifest import InputSpec, Preprocess, TensorSpec, WindowRule
from distree.errors import ConfigError

MANIFEST = load_bundle("fashion", verify=()).manifest
LOGMEL = LogMel(frame=480, step=320, bands=40, low_hz=20.0, high_hz=4000.0, power=1)
SOUND = InputSpec(dtype="int16", shape=(16000,), rate_hz=16000.0)
ONE = {"mean": (0.0,), "std": (1.0,)}


def manifest(spec, taken, dtype="int8", **preprocess):
    tensor = TensorSpec(name="x", dtype=dtype, shape=(1, *taken))
    stage = dataclasses.replace(MANIFEST.stages[0], input=tensor)
    return dataclasses.replace(
        MANIFEST,
        input=spec,
        preprocess=Preprocess(layout="nhwc", **preprocess),
        stages=(stage, *MANIFEST.stages[1:]),
    )


GOOD = {
    "an image by its range": (InputSpec(dtype="uint8", shape=(28, 28, 1)), (28, 28, 1), {"range": "0..255"}),
    "quantised features": (InputSpec(dtype="int8", shape=(49, 10, 1)), (49, 10, 1), {"range": "quantised"}),
    "motion": (
        InputSpec(dtype="float32", shape=(128, 3), rate_hz=50.0, channels=("x", "y", "z")), (128, 3),
        {"mean": (0.0,) * 3, "std": (1.0,) * 3, "window": WindowRule(hop=64)},
    ),
    "motion as it is": (InputSpec(dtype="float32", shape=(128, 3)), (128, 3), {}),
    "log-mel": (SOUND, (49, 40, 1), {"frontend": LOGMEL, "window": WindowRule(hop=8000, short="pad")}),
    "mfcc": (SOUND, (49, 10, 1), {"frontend": Mfcc(coefficients=10, logmel=LOGMEL), "mean": (0.0,) * 10, "std": (2.0,) * 10}),
    "edge impulse": (
        SOUND, (99, 40),
        {"frontend": EdgeImpulseMfe(frame=320, step=160, fft=256, bands=40, low_hz=300.0, high_hz=8000.0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", GOOD)
def test_what_fits_is_taken(what):
    spec, taken, preprocess = GOOD[what]
    check_manifest(manifest(spec, taken, **preprocess), Path("bundle.yaml"))


def image(shape=(28, 28, 1), dtype="uint8", **more):
    return InputSpec(dtype=dtype, shape=shape, **more)


def logmel(**changes):
    return {"frontend": dataclasses.replace(LOGMEL, **changes)}


BAD = [
    (image(()), (1,), ONE, r"input\.shape: \[\] is not possible; give 1 to \d+ sizes"),
    (image((28, -28, 1)), (1,), ONE, r"input\.shape: \[28, -28, 1\] is not possible"),
    (image((0,)), (0,), ONE, r"input\.shape: \[0\]"),
    (image((1,) * 20), (1,), ONE, r"input\.shape: .* is not possible; give 1 to"),
    (image((1 << 20, 1 << 20, 3)), (1,), ONE, r"input\.shape: .* is too large; give at most 16777216 bytes"),
    (image(), (28, 28, 3), ONE, r"input\.shape: \[28, 28, 1\] does not fill stages\[0\]\.input, \[1, 28, 28, 3\]"),
    (image(rate_hz=0.0), (28, 28, 1), ONE, r"input\.rate_hz: 0 is out of range"),
    (image(rate_hz=-1.0), (28, 28, 1), ONE, r"input\.rate_hz"),
    (image((5, 2), "float32", channels=("x",)), (5, 2), ONE, r"input\.channels: 1 names"),
    (image((5, 2), "float32", channels=("x", "X")), (5, 2), ONE, r"input\.channels: a name is given twice"),
    (image(), (28, 28, 1), {}, r"does not say which range the network expects uint8 values in; give range \(0\.\.1, -1\.\.1 or 0\.\.255\)"),
    (image((9,), "int8"), (9,), {}, r"does not say which range the network expects int8 values in; give range \(quantised\)"),
    (image(), (28, 28, 1), {"range": "0..1", **ONE}, "range cannot be combined with mean or std"),
    (image((9,), "float32"), (9,), {"range": "0..1"}, r"preprocess\.range: 0\.\.1 works only for uint8 values without a front end"),
    (image(), (28, 28, 1), {"range": "quantised"}, r"quantised inputs have the dtype of stages\[0\]\.input, int8, not uint8"),
    (image(), (28, 28, 1), {"mean": (0.1,) * 3, "std": (1.0,) * 3}, r"preprocess\.mean: 3 values; give one, or one for each of the 1"),
    (image(), (28, 28, 1), {"mean": (0.1,), "std": ()}, "give both one value per channel"),
    (image(), (28, 28, 1), {"mean": (0.1,), "std": (0.0,)}, "std has a 0"),
    (image(), (28, 28, 1), {"mean": (float("inf"),), "std": (1.0,)}, "mean and std"),
    (image(), (28, 28, 1), {"window": WindowRule(hop=4), **ONE}, r"preprocess\.window: only recordings can be cut into windows"),
    (image((9,), "float32"), (9,), {"window": WindowRule(hop=0)}, r"preprocess\.window\.hop: 0 is out of range; choose 1 to 9"),
    (image((9,), "float32"), (9,), {"window": WindowRule(hop=10)}, r"preprocess\.window\.hop"),
    (image((16000,), "int16"), (49, 40), logmel(), r"preprocess\.frontend: logmel: needs the sampling rate of its inputs; add input\.rate_hz"),
    (image((8000, 2), "int16", rate_hz=8000.0), (49, 40), logmel(), r"logmel: needs windows of one channel"),
    (SOUND, (50, 40), logmel(), r"input\.shape: \[16000\] becomes \[49, 40\], which does not fill .*\[1, 50, 40\]"),
    (SOUND, (49, 40), logmel(frame=0), "logmel: frame: 0 is out of range; choose 1 to 16000"),
    (SOUND, (49, 40), logmel(frame=20000), "logmel: frame: 20000 is out of range"),
    (SOUND, (49, 40), logmel(step=0), "logmel: step: 0 is out of range; choose at least 1"),
    (SOUND, (49, 40), logmel(step=1), "logmel: step: 1 samples make 15521 frames per window, more than 4096"),
    (SOUND, (49, 40), logmel(fft=500), "logmel: fft: .* is not possible; choose a power of two from 480"),
    (SOUND, (49, 40), logmel(fft=256), "logmel: fft: .* is not possible; choose a power of two from 480"),
    (SOUND, (49, 40), logmel(bands=1), "logmel: bands: 1 is out of range; choose 2 to 512"),
    (SOUND, (49, 40), logmel(high_hz=9000.0), "logmel: low_hz, high_hz: .* are out of range; choose ascending values"),
    (SOUND, (49, 40), logmel(low_hz=4000.0), "logmel: low_hz, high_hz"),
    (SOUND, (49, 40), logmel(offset=0.0), "logmel: offset: 0 is out of range"),
    (SOUND, (49, 41), {"frontend": Mfcc(coefficients=41, logmel=LOGMEL)}, "mfcc: coefficients: 41 is out of range; choose 1 to 40"),
    (
        SOUND, (99, 40),
        {"frontend": EdgeImpulseMfe(frame=320, step=160, fft=64, bands=40, low_hz=0.0, high_hz=8000.0)},
        "edge-impulse-mfe: bands: 40 are too many for fft 64; lower bands or raise fft",
    ),
    (
        SOUND, (99, 40),
        {"frontend": EdgeImpulseMfe(frame=320, step=160, fft=300, bands=40, low_hz=0.0, high_hz=8000.0)},
        "edge-impulse-mfe: fft: 300 is not possible; choose a power of two",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "taken", "preprocess", "why"), BAD)
def test_what_cannot_work_is_refused_with_its_key(spec, taken, preprocess, why):
    with pytest.raises(ConfigError, match=why) as caught:
        check_manifest(manifest(spec, taken, **preprocess), Path("bundle.yaml"))
    assert str(caught.value).startswith("bundle.yaml: ")
    assert "\n" not in str(caught.value)
