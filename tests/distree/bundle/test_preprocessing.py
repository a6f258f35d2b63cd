"""From raw inputs to the first tensor: the tables and the layouts against the formula, written out plainly."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
import pytest

from distree.bundle.loading import load_bundle
from distree.bundle.manifest import InputSpec, Preprocess, TensorSpec
from distree.bundle.preprocessing import MAX_IMAGE_BYTES, Preprocessor, _check_size
from distree.errors import RemoteProtocolError

MANIFEST = load_bundle("fashion", verify=()).manifest


def manifest(shape, dtype="uint8", layout="nhwc", mean=None, std=None, out="int8", scale=0.02, zero_point=-5):
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
        ),
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


def test_bytes_of_the_right_length_are_the_raw_input():
    made = Preprocessor(manifest((6, 5, 3)))
    raw = random_image((6, 5, 3))
    assert made.nbytes == 90
    np.testing.assert_array_equal(made.from_bytes(raw.tobytes()), raw)


def test_bytes_of_another_length_are_refused_where_images_are_no_input():
    made = Preprocessor(manifest((4, 3, 2), dtype="float32"))
    raw = np.ones((4, 3, 2), np.float32)
    np.testing.assert_array_equal(made.from_bytes(raw.tobytes()), raw)
    with pytest.raises(RemoteProtocolError, match=r"size: expected 96 bytes \(float32 \(4, 3, 2\)\), received 5"):
        made.from_bytes(b"12345")


# ---------------------------------------------------------------- images


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def encoded(picture, kind="PNG", **options):
    with io.BytesIO() as file:
        picture.save(file, kind, **options)
        return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "GIF"])
def test_a_lossless_grey_image_is_what_was_drawn(pillow, kind):
    raw = random_image((6, 5, 1))
    made = Preprocessor(manifest((6, 5, 1)))
    np.testing.assert_array_equal(made.from_bytes(encoded(pillow.fromarray(raw[..., 0]), kind)), raw)


def test_a_lossless_colour_image_is_what_was_drawn(pillow):
    raw = random_image((6, 5, 3))
    made = Preprocessor(manifest((6, 5, 3)))
    np.testing.assert_array_equal(made.from_bytes(encoded(pillow.fromarray(raw))), raw)


def test_colour_becomes_grey_and_grey_colour(pillow):
    colour, grey = random_image((6, 5, 3)), random_image((6, 5, 1))
    as_grey = Preprocessor(manifest((6, 5, 1))).from_image(encoded(pillow.fromarray(colour)))
    weights = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(as_grey[..., 0], weights, atol=1.0)
    as_colour = Preprocessor(manifest((6, 5, 3))).from_image(encoded(pillow.fromarray(grey[..., 0])))
    np.testing.assert_array_equal(as_colour, np.repeat(grey, 3, axis=-1))


def test_other_sizes_are_resized_to_height_and_width(pillow):
    wide = pillow.new("L", (50, 20), 100)
    made = Preprocessor(manifest((6, 5, 1))).from_image(encoded(wide, "JPEG"))
    assert made.shape == (6, 5, 1)
    np.testing.assert_allclose(made, 100, atol=2)


def test_too_many_pixels_are_refused_before_they_are_unpacked(pillow, monkeypatch):
    side = math.isqrt(MAX_IMAGE_BYTES // 2) + 1
    bomb = encoded(pillow.new("1", (side, side)))
    assert len(bomb) < 100_000
    monkeypatch.setattr(pillow.Image, "load", lambda _: pytest.fail("unpacked"))
    with pytest.raises(RemoteProtocolError, match=rf"image: {side}x{side} pixels are too many"):
        Preprocessor(manifest((6, 5, 1))).from_image(bomb)


@pytest.mark.parametrize(
    ("mode", "target", "kind", "most"),
    [
        ("RGB", "L", "PNG", 16), ("RGB", "RGB", "JPEG", 16), ("L", "RGB", "PNG", 64), ("P", "L", "GIF", 32),
        ("RGBA", "RGB", "PNG", 8), ("CMYK", "L", "JPEG", 64 / 5), ("RGBA", "RGB", "WEBP", 4), ("RGB", "L", "WEBP", 64 / 12),
    ],
)  # fmt: skip
def test_pixels_are_bounded_by_the_memory_they_take(mode, target, kind, most):
    width = int(most * (1 << 20)) // 4096
    _check_size(width, 4096, mode, target, kind)
    with pytest.raises(RemoteProtocolError, match=f"{width + 1}x4096 pixels are too many, at most"):
        _check_size(width + 1, 4096, mode, target, kind)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_and_large_images(pillow, mode, channels):
    picture = pillow.linear_gradient("L").resize((800, 600)).convert(mode)
    kind = "JPEG" if mode in ("L", "RGB", "CMYK") else "PNG"
    made = Preprocessor(manifest((60, 80, channels))).from_image(encoded(picture, kind))
    plain = pillow.linear_gradient("L").resize((80, 60))
    np.testing.assert_allclose(made, np.repeat(np.asarray(plain)[..., None], channels, axis=-1), atol=4)


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "TGA", "PCX", "SGI"])
def test_formats_beyond_the_usual_ones_are_not_even_tried(pillow, kind):
    picture = pillow.fromarray(random_image((6, 5, 3)))
    with pytest.raises(RemoteProtocolError, match="nor a readable image"):
        Preprocessor(manifest((6, 5, 3))).from_image(encoded(picture, kind))
