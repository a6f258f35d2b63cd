"""From raw inputs to the first tensor: the tables and the layouts against the formula, written out plainly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distree.bundle.frontends import LogMel, make_frontend
from distree.bundle.loading import load_bundle
from distree.bundle.manifest import InputSpec, Preprocess, TensorSpec
from distree.bundle.preprocessing import Preprocessor
from distree.errors import RemoteProtocolError

MANIFEST = load_bundle("fashion", verify=()).manifest


def manifest(
    shape, dtype="uint8", layout="nhwc", mean=None, std=None, out="int8", scale=0.02, zero_point=-5, value_range=None
):
    channels = shape[-1]
    laid_out = (shape[-1], *shape[:-1]) if layout == "nchw" else shape
    taken = TensorSpec(name="x", dtype=out, shape=(1, *laid_out), scale=scale, zero_point=zero_point)
    return dataclasses.replace(
        MANIFEST,
        input=InputSpec(dtype=dtype, shape=shape),
        preprocess=Preprocess(
            mean=mean or tuple(0.3 + 0.1 * c for c in range(channels)),
            std=std or tuple(0.2 + 0.05 * c for c in range(channels)),
            layout=layout,
        )
        if value_range is None
        else Preprocess(range=value_range, layout=layout),
        stages=(dataclasses.replace(MANIFEST.stages[0], input=taken), *MANIFEST.stages[1:]),
    )


def plainly(made, raw):
    """The formula of the manifest, value by value."""
    spec, recipe = made.stages[0].input, made.preprocess
    out = np.empty(raw.shape, spec.dtype)
    for at in np.ndindex(raw.shape):
        value = float(raw[at]) / (255.0 if made.input.dtype == "uint8" else 1.0)
        value = (value - recipe.mean[at[-1]]) / recipe.std[at[-1]]
        if spec.dtype in ("int8", "uint8"):
            low, high = (-128, 127) if spec.dtype == "int8" else (0, 255)
            value = min(high, max(low, round(value / spec.scale) + spec.zero_point))
        out[at] = value
    if recipe.layout == "nchw":
        out = np.moveaxis(out, -1, 0)
    return out.reshape(spec.shape)


def random_image(shape, seed=1):
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image.ravel()[:2] = (0, 255)
    return image


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("out", ["int8", "uint8", "float32", "float16"])
def test_the_tables_give_what_the_formula_gives(layout, channels, out):
    made = manifest((6, 5, channels), layout=layout, out=out)
    raw = random_image((6, 5, channels))
    tensor = Preprocessor(made).tensor(raw)
    assert tensor.dtype == np.dtype(out)
    assert tensor.flags.c_contiguous
    assert tensor.shape == made.stages[0].input.shape
    np.testing.assert_array_equal(tensor, plainly(made, raw))


@pytest.mark.parametrize("channels", [1, 3])
def test_all_256_values_of_every_channel_are_right(channels):
    made = manifest((16, 16, channels))
    raw = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * channels, axis=-1)
    np.testing.assert_array_equal(Preprocessor(made).tensor(raw), plainly(made, raw))


def test_values_beyond_the_range_are_clipped_and_do_not_wrap():
    made = manifest((2, 2, 1), scale=0.001, zero_point=0)
    raw = np.array([[[0], [76]], [[77], [255]]], np.uint8)
    tensor = Preprocessor(made).tensor(raw)
    assert tensor.ravel()[0] == -128
    assert tensor.ravel()[3] == 127
    np.testing.assert_array_equal(tensor, plainly(made, raw))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("out", ["int8", "float32"])
def test_float_inputs_are_not_scaled_by_255(layout, out):
    made = manifest((4, 3, 2), dtype="float32", layout=layout, out=out)
    raw = np.random.default_rng(2).normal(size=(4, 3, 2)).astype(np.float32)
    tensor = Preprocessor(made).tensor(raw)
    np.testing.assert_allclose(tensor, plainly(made, raw), rtol=1e-6)


def test_the_shipped_bundle_is_preprocessed_by_its_formula():
    raw = random_image(MANIFEST.input.shape)
    np.testing.assert_array_equal(Preprocessor(MANIFEST).tensor(raw), plainly(MANIFEST, raw))


def test_a_view_that_is_not_contiguous_is_taken_too():
    made = manifest((6, 5, 3))
    raw = random_image((5, 6, 3)).transpose(1, 0, 2)
    np.testing.assert_array_equal(Preprocessor(made).tensor(raw), plainly(made, raw))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (np.zeros((6, 5, 1), np.int8), "dtype"),
        (np.zeros((6, 5, 1), np.float32), "dtype"),
        (np.zeros((5, 6, 1), np.uint8), "shape"),
        (np.zeros((6, 5), np.uint8), "shape"),
        (np.zeros((1, 6, 5, 1), np.uint8), "shape"),
    ],
)
def test_another_dtype_or_shape_is_refused(raw, reason):
    with pytest.raises(RemoteProtocolError) as caught:
        Preprocessor(manifest((6, 5, 1))).tensor(raw)
    assert caught.value.reason == reason


# ---------------------------------------------------------------- ranges, and what is not uint8


@pytest.mark.parametrize(
    ("value_range", "expected"), [("0..1", [0, 0.2, 1]), ("-1..1", [-1, -0.6, 1]), ("0..255", [0, 51, 255])]
)
def test_a_range_is_what_the_network_sees(value_range, expected):
    made = manifest((1, 3, 1), out="float32", value_range=value_range)
    raw = np.array([[[0], [51], [255]]], np.uint8)
    np.testing.assert_allclose(Preprocessor(made).tensor(raw).ravel(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(Preprocessor(made).values(raw).ravel(), expected, rtol=1e-12, atol=1e-12)


def test_0_to_255_with_a_scale_of_one_is_every_byte_itself():
    made = manifest((16, 16, 1), out="int8", scale=1.0, zero_point=-128, value_range="0..255")
    raw = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(Preprocessor(made).tensor(raw).ravel(), np.arange(-128, 128))


def test_quantised_inputs_are_the_tensor_and_their_values_are_real():
    made = manifest((7, 5, 1), dtype="int8", out="int8", scale=0.5, zero_point=83, value_range="quantised")
    raw = np.random.default_rng(3).integers(-128, 128, (7, 5, 1)).astype(np.int8)
    np.testing.assert_array_equal(Preprocessor(made).tensor(raw)[0], raw)
    np.testing.assert_array_equal(Preprocessor(made).values(raw), (raw.astype(float) - 83) * 0.5)


def test_int16_becomes_minus_one_to_one_before_mean_and_std():
    made = manifest((4,), dtype="int16", out="float32", mean=(0.5,), std=(2.0,))
    tensor = Preprocessor(made).tensor(np.array([-32768, 0, 16384, 32767], np.int16))
    np.testing.assert_allclose(tensor[0], [-0.75, -0.25, 0, (32767 / 32768 - 0.5) / 2], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(bad):
    raw = np.zeros((4, 3), np.float32)
    raw[2, 1] = bad
    with pytest.raises(RemoteProtocolError, match=r"value: expected finite numbers, received (nan|-?inf) at \[2, 1\]"):
        Preprocessor(manifest((4, 3), dtype="float32")).tensor(raw)


def test_what_a_network_is_trained_on_has_its_order_of_colours():
    made = manifest((4, 5, 3))
    raw = np.random.default_rng(2).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    turned = dataclasses.replace(made, preprocess=dataclasses.replace(made.preprocess, channel_order="bgr"))
    np.testing.assert_array_equal(Preprocessor(turned).values(raw), Preprocessor(made).values(raw[..., ::-1]))


def test_features_of_sound_are_normalised_per_band_and_quantised():
    logmel = LogMel(frame=64, step=32, bands=8, low_hz=100.0, high_hz=3500.0, power=2)
    mean, std = tuple(np.linspace(-8, -4, 8).tolist()), (3.0,) * 8
    taken = TensorSpec(name="x", dtype="int8", shape=(1, 15, 8, 1), scale=0.05, zero_point=7)
    made = dataclasses.replace(
        MANIFEST,
        input=InputSpec(dtype="int16", shape=(512,), rate_hz=8000.0),
        preprocess=Preprocess(mean=mean, std=std, layout="nhwc", frontend=logmel),
        stages=(dataclasses.replace(MANIFEST.stages[0], input=taken), *MANIFEST.stages[1:]),
    )
    raw = np.random.default_rng(4).integers(-9000, 9000, 512).astype(np.int16)
    features = make_frontend(logmel, (512,), 8000.0).features(raw / 32768.0)
    assert features.shape == (15, 8)
    values = (features - mean) / std
    np.testing.assert_array_equal(Preprocessor(made).values(raw), values)
    steps = np.clip(np.rint(values / 0.05) + 7, -128, 127)
    np.testing.assert_array_equal(Preprocessor(made).tensor(raw)[0, ..., 0], steps)
    assert len(np.unique(steps)) > 20
