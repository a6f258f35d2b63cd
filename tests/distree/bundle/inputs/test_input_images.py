"""Image files as raw inputs: turned, flattened, reduced to 8 bits and fitted by rules that the manifest states."""

from __future__ import annotations

import io
import math
import struct
import zlib

import numpy as np
import pytest

from distree.bundle.inputs import InputReader
from distree.bundle.inputs.images import MAX_IMAGE_BYTES, MAX_PIXELS, check_size, looks_like_image, read_image
from distree.bundle.manifest import InputSpec, Preprocess
from distree.errors import RemoteProtocolError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'distree[images]'")


def reader(shape, **rules):
    return InputReader(InputSpec(dtype="uint8", shape=shape), Preprocess(layout="nhwc", range="0..1", **rules))


def read(shape, content, **rules):
    return reader(shape, **rules).read(content)


def random_image(shape, seed=1):
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image.ravel()[:2] = (0, 255)
    return image


def encoded(picture, kind="PNG", **options):
    with io.BytesIO() as file:
        picture.save(file, kind, **options)
        return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "GIF"])
def test_a_lossless_grey_image_is_what_was_drawn(kind):
    raw = random_image((6, 5, 1))
    np.testing.assert_array_equal(read((6, 5, 1), encoded(Image.fromarray(raw[..., 0]), kind)), raw)


def test_a_lossless_colour_image_is_what_was_drawn():
    raw = random_image((6, 5, 3))
    np.testing.assert_array_equal(read((6, 5, 3), encoded(Image.fromarray(raw))), raw)


def test_an_image_file_of_as_many_bytes_as_a_raw_input_is_an_image():
    content = encoded(Image.new("L", (4, 4), 7))
    shape = (1, len(content), 1)
    np.testing.assert_array_equal(read(shape, content), np.full(shape, 7, np.uint8))


def test_colour_becomes_grey_and_grey_colour():
    colour, grey = random_image((6, 5, 3)), random_image((6, 5, 1))
    as_grey = read((6, 5, 1), encoded(Image.fromarray(colour)))
    np.testing.assert_allclose(as_grey[..., 0], colour @ np.array([0.299, 0.587, 0.114]), atol=1.0)
    as_colour = read((6, 5, 3), encoded(Image.fromarray(grey[..., 0])))
    np.testing.assert_array_equal(as_colour, np.repeat(grey, 3, axis=-1))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "CMYK", "I;16", "1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_image_of_any_mode_is_the_same_picture(mode, channels):
    gradient = Image.linear_gradient("L").resize((800, 600))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(gradient).astype(np.uint16) * 257)
    else:
        picture = gradient.convert(mode)
    kind = "JPEG" if mode in ("L", "RGB", "CMYK") else "PNG"
    made = read((60, 80, channels), encoded(picture, kind))
    plain = Image.linear_gradient("L").resize((80, 60))
    # One bit a pixel is dithered: right on the average alone.
    atol = 90 if mode == "1" else 4
    np.testing.assert_allclose(made, np.repeat(np.asarray(plain)[..., None], channels, axis=-1), atol=atol)


# ---------------------------------------------------------------- turned


def turned(picture, orientation, kind, **options):
    """Store a picture the way a camera does that is held so: turned, with a note of how to turn it back."""
    stored = {
        1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
        7: "TRANSVERSE", 8: "ROTATE_270",
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(
        picture if stored is None else picture.transpose(Image.Transpose[stored]), kind, exif=exif, **options
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("size", [(5, 6), (50, 61)])
def test_a_picture_stored_turned_is_the_upright_one(orientation, kind, size):
    options = {"lossless": True} if kind == "WEBP" else {}
    picture = Image.fromarray(random_image((size[1], size[0], 3)))
    upright = read((6, 5, 3), encoded(picture, kind, **options))
    np.testing.assert_array_equal(read((6, 5, 3), turned(picture, orientation, kind, **options)), upright)


def test_a_photo_of_a_phone_is_turned():
    half = Image.new("RGB", (1200, 1600), "white")
    half.paste("black", (0, 0, 1200, 800))
    made = read((32, 24, 3), turned(half, 6, "JPEG"))
    assert made[:15].max() < 8
    assert made[17:].min() > 247


def test_damaged_exif_data_turn_nothing():
    content = turned(Image.fromarray(random_image((6, 5, 3))), 6, "PNG")
    at = content.index(b"eXIf")
    length = int.from_bytes(content[at - 4 : at], "big")
    body = b"eXIf" + b"\xff" * length
    damaged = content[:at] + body + struct.pack(">I", zlib.crc32(body)) + content[at + 8 + length :]
    assert read((6, 5, 3), damaged).shape == (6, 5, 3)


# ---------------------------------------------------------------- transparent, 16 bits, other colours


@pytest.mark.parametrize(("background", "value"), [("black", 0), ("white", 255)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_shows_the_background(background, value, mode, channels):
    picture = Image.new("RGBA", (4, 2), (102, 102, 102, 255))  # a colour of the usual palette
    picture.paste((200, 200, 200, 0), (2, 0, 4, 2))
    if mode == "P":
        picture = picture.convert("RGB").convert("P")
        options = {"transparency": picture.getpixel((3, 0))}
    else:
        picture, options = picture.convert(mode), {}
    made = read((2, 4, channels), encoded(picture, **options), background=background)
    np.testing.assert_array_equal(made[:, :2], 102)
    np.testing.assert_array_equal(made[:, 2:], value)


def test_half_transparent_is_half_way_to_the_background():
    content = encoded(Image.new("RGBA", (2, 2), (100, 200, 40, 128)))
    np.testing.assert_allclose(read((2, 2, 3), content)[0, 0], [50, 100, 20], atol=1)
    np.testing.assert_allclose(read((2, 2, 3), content, background="white")[0, 0], [177, 227, 147], atol=1)


def test_of_16_bits_the_upper_8_count():
    values = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFEFF, 0xFFFF]], np.uint16)
    for content in (encoded(Image.fromarray(values)), b"P5 4 2 65535\n" + values.astype(">u2").tobytes()):
        np.testing.assert_array_equal(read((2, 4, 1), content)[..., 0], values >> 8)


def test_cmyk_becomes_rgb_without_a_profile():
    content = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(read((8, 8, 3), content)[4, 4], [0, 255, 255], atol=3)


def test_values_in_floating_point_are_refused():
    content = b"Pf\n2 2\n-1.0\n" + np.zeros(4, "<f4").tobytes()
    with pytest.raises(RemoteProtocolError, match="image: the image has floating-point values"):
        read((2, 2, 1), content)


# ---------------------------------------------------------------- fitted


def wide_picture():
    """Black, white in the middle third, black: 60 x 20."""
    picture = Image.new("L", (60, 20), 0)
    picture.paste(255, (20, 0, 40, 20))
    return encoded(picture)


def test_by_default_the_middle_is_cut_out():
    assert read((20, 20, 1), wide_picture()).min() == 255


def test_with_pad_all_of_it_is_there_between_bars():
    made = read((30, 30, 1), wide_picture(), resize="pad", background="white")[..., 0]
    assert made[:10].min() == made[20:].min() == 255
    assert made[15, 2] == made[15, 27] == 0
    assert made[15, 15] == 255
    assert read((30, 30, 1), wide_picture(), resize="pad")[:10].max() == 0


def test_with_stretch_all_of_it_is_there_and_narrower():
    made = read((20, 30, 1), wide_picture(), resize="stretch")[..., 0]
    assert made[:, :9].max() == made[:, 21:].max() == 0
    assert made[:, 11:19].min() == 255


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (33, 47), (640, 480)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_size_is_fitted_by_every_rule(resize, size, kind):
    made = read((12, 16, 3), encoded(Image.new("RGB", size, (9, 9, 9)), kind), resize=resize)
    assert made.shape == (12, 16, 3)
    assert made.max() <= 10


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_the_same_aspect_is_the_same_by_every_rule(resize):
    content = encoded(Image.fromarray(random_image((48, 64, 3))))
    plain = np.asarray(Image.open(io.BytesIO(content)).resize((16, 12), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read((12, 16, 3), content, resize=resize), plain)


# ---------------------------------------------------------------- too large, damaged, not images


def test_too_many_pixels_are_refused_before_they_are_unpacked(monkeypatch):
    side = math.isqrt(MAX_IMAGE_BYTES // 2) + 1
    bomb = encoded(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("unpacked"))
    with pytest.raises(RemoteProtocolError, match=rf"image: {side}x{side} pixels are too many"):
        read((6, 5, 1), bomb)


@pytest.mark.parametrize(
    ("mode", "target", "kind", "most"),
    [
        ("RGB", "L", "PNG", 16), ("RGB", "RGB", "JPEG", 16), ("L", "RGB", "PNG", 64), ("P", "L", "GIF", 32),
        ("RGBA", "RGB", "PNG", 8), ("CMYK", "L", "JPEG", 64 / 5), ("RGBA", "RGB", "WEBP", 4), ("RGB", "L", "WEBP", 64 / 12),
    ],
)  # fmt: skip
def test_pixels_are_bounded_by_the_memory_they_take(mode, target, kind, most):
    width = int(most * (1 << 20)) // 4096
    check_size((width, 4096), mode, target, kind)
    with pytest.raises(RemoteProtocolError, match=f"{width + 1}x4096 pixels are too many; at most"):
        check_size((width + 1, 4096), mode, target, kind)


def test_a_photo_of_48_megapixels_is_read_at_an_eighth_of_its_size():
    content = encoded(Image.new("RGB", (8000, 6000), (10, 200, 30)), "JPEG")
    np.testing.assert_allclose(read((24, 24, 3), content)[5, 5], [10, 200, 30], atol=3)
    with pytest.raises(
        RemoteProtocolError, match=r"8000x6000 pixels are too many; at most \d+ million are read; shrink it"
    ):
        read((24, 24, 3), encoded(Image.new("RGB", (8000, 6000)), "JPEG", progressive=True))
    with pytest.raises(RemoteProtocolError, match="too many; at most"):
        check_size((1, 1), "RGB", "RGB", "JPEG", full=(MAX_PIXELS // 1000 + 1, 1000))


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "TGA", "PCX", "SGI"])
def test_formats_beyond_the_usual_ones_are_not_even_tried(kind):
    picture = Image.fromarray(random_image((6, 5, 3)))
    with pytest.raises(RemoteProtocolError, match="image: expected an image file, 90 raw bytes or an"):
        read((6, 5, 3), encoded(picture, kind))


def test_damaged_images_are_refused_in_one_line_or_read():
    contents = [encoded(Image.fromarray(random_image((28, 28, 3))), kind) for kind in ("PNG", "GIF", "JPEG", "WEBP")]
    random = np.random.default_rng(11)
    refused = []
    for content in contents * 50:
        damaged = bytearray(content[: random.integers(1, len(content) + 1)])
        for at in random.integers(0, len(damaged), 4):
            damaged[at] = random.integers(0, 256)
        try:
            assert read((28, 28, 3), bytes(damaged)).shape == (28, 28, 3)
        except RemoteProtocolError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not [text for text in refused if "\n" in text or "0x" in text]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG", "PPM", "WEBP"])
def test_files_of_images_are_known_by_their_first_bytes(kind):
    content = encoded(Image.new("RGB", (3, 3)), kind)
    assert looks_like_image(content)
    assert not looks_like_image(content[1:])


@pytest.mark.parametrize(
    "content", [b"", b"BM", b"BM" + bytes(40), b"P5", b"P9 1 1", b"RIFF....WAVE", b"\xff\xd8", bytes(784)]
)
def test_other_bytes_are_no_images(content):
    assert not looks_like_image(content)


@pytest.mark.parametrize(
    ("dtype", "shape", "told"),
    [
        ("uint8", (28, 28, 1), True), ("uint8", (28, 28, 3), True), ("uint8", (28, 28), False), ("uint8", (2, 2, 4), False),
        ("int8", (28, 28, 3), False), ("float32", (28, 28, 3), False),
    ],
)  # fmt: skip
def test_what_inputs_are_images(dtype, shape, told):
    assert InputSpec(dtype=dtype, shape=shape).is_image is told


def test_without_pillow_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(
        RemoteProtocolError, match=r"image: image files need Pillow; run: pip install 'distree\[images\]'"
    ):
        read_image(b"\xff\xd8\xff", (2, 2, 1), "crop", "black")
